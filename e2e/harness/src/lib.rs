//! The end-to-end harness: a node with a Consul agent, pods made of namespaces,
//! and what a kubelet and an API server do for them. Programs are known to it
//! only as processes.
//!
//! - [`parts`]: the programs that run, ours and the real ones
//! - [`consul`]: Consul as it is deployed: servers and client agents
//! - [`node`]: a node: its network, agent and injector
//! - [`acl`]: an agent with ACLs, and an auth method for its pods
//! - [`asked`]: what an agent was asked
//! - [`admission`]: what the API server does: review and patch
//! - [`kubelet`]: what a kubelet does: a pod's life from its specification
//! - [`image`]: what stands in for container images
//! - [`container`]: one container, and the runtime that makes it
//! - [`load`]: constant load from a pod
//! - [`cgroup`]: a limit on memory
//! - [`volume`]: a volume in memory of a given size
//! - [`process`]: child processes that end with their parent
//! - [`tutorial`]: the pods of the tutorial "Connect Sidecar on Kubernetes"
//! - [`demo`]: plays the tutorial
//! - [`python`]: Helm, and Kubernetes' schemas
//! - [`pod_security`]: what PodSecurity has against a pod

pub mod acl;
pub mod admission;
pub mod asked;
pub mod cgroup;
pub mod consul;
pub mod container;
pub mod demo;
pub mod image;
pub mod kubelet;
pub mod load;
pub mod node;
pub mod parts;
pub mod pod_security;
pub mod process;
pub mod python;
pub mod tutorial;
pub mod volume;

/// Why something of the harness did not work. It ends a test or the demo.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long anything may take: more than any of it needs on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Between two looks at what is waited for.
const SHORTEST_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Waits for a condition that nothing announces.
///
/// # Errors
/// It did not come within [`PATIENCE`]; with what was waited for.
pub fn until(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    until_within(PATIENCE, what, condition)
}

/// As [`until`], for what takes its time by design.
///
/// # Errors
/// It did not come within `patience`; with what was waited for.
pub fn until_within(
    patience: std::time::Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    let start = std::time::Instant::now();
    loop {
        let look = std::time::Instant::now();
        if condition() {
            return Ok(());
        }
        if start.elapsed() > patience {
            return Err(format!("waited {patience:?} in vain: {what}").into());
        }
        // What is looked at has work to do, too.
        let pause = 4 * look.elapsed();
        std::thread::sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}

/// Sends a request; what is answered, as JSON if it is that.
///
/// # Errors
/// There is no answer, or not one of success; with `what` was asked.
pub fn answer_to(
    runtime: &tokio::runtime::Runtime,
    request: reqwest::RequestBuilder,
    what: &str,
) -> Result<serde_json::Value> {
    let (status, text) = runtime.block_on(async {
        let answer = request.send().await?;
        let status = answer.status();
        Ok::<_, reqwest::Error>((status, answer.text().await?))
    })?;
    if !status.is_success() {
        return Err(format!("{what}: {status} {text}").into());
    }
    Ok(serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
}
