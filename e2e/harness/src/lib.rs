//! The end-to-end harness: a node with a Consul agent, pods made of Linux namespaces, and
//! the parts of a kubelet and an API server that they need. It runs the programs as
//! processes and does not link them.
//!
//! - [`parts`]: finds the programs, ours and the real ones
//! - [`node`]: a node: its network, Consul agent and injector
//! - [`runtime`]: its container runtime
//! - [`admission`]: the API server's part: admission review and patch
//! - [`kubelet`]: the kubelet's part: runs a pod from its specification
//! - [`load`]: constant load from a pod
//! - [`process`]: child processes that end with their parent
//! - [`tutorial`]: the pods of the tutorial "Connect Sidecar on Kubernetes"
//! - [`demo`]: plays the tutorial
//! - [`python`]: Helm, and Kubernetes' schemas
//! - [`pod_security`]: violations of PodSecurity `restricted`

pub mod admission;
pub mod demo;
pub mod kubelet;
pub mod load;
pub mod node;
pub mod parts;
pub mod pod_security;
pub mod process;
pub mod python;
pub mod runtime;
pub mod tutorial;

/// An error of the harness, which ends the test or the demo.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Timeout of everything: more than anything needs on a busy machine.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Pause between two checks of a condition.
const SHORTEST_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
const LONGEST_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// Polls until a condition holds.
///
/// # Errors
/// It does not hold within [`PATIENCE`]. The error names it.
pub fn until(what: &str, condition: impl FnMut() -> bool) -> Result<()> {
    until_within(PATIENCE, what, condition)
}

/// Like [`until`], with another timeout.
///
/// # Errors
/// It does not hold within `patience`. The error names it.
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
        // Leave processor time to the programs under test.
        let pause = 4 * look.elapsed();
        std::thread::sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}

/// Sends a request. Returns the response's body as JSON, or as a string if it is not JSON.
///
/// # Errors
/// There is no response, or its status is not a success. The error names `what`.
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
