//! Envoy's bootstrap and the record for `connect-lifecycle`.

use consul::answer::AgentService;
use consul::{Agent, TlsFiles};
use flags::{BootstrapArgs, Report, XdsServer};
use handoff::Handoff;
use handoff::record::AgentRecord;
use registration::pod::Pair;
use runtime::retry::{self, NODE_AGENT};
use runtime::{Deadline, Exit, Failure};
use secrecy::ExposeSecret;
use serde_json::Value;

use crate::Trust;

/// Writes the bootstrap, and the files that Envoy watches.
pub async fn bootstrap(
    handoff: &Handoff,
    agent: &Agent,
    flags: &BootstrapArgs,
    pair: &Pair,
    xds: &XdsServer,
    watched: Watched,
    deadline: Deadline,
) -> Result<(), Failure> {
    let mut document = render(agent, flags, pair, xds, deadline).await?;
    give_token(handoff, agent, &mut document, watched.token)?;
    if watched.ca && has_ca_of(agent, xds) {
        give_ca(handoff, &mut document, xds)?;
    }
    handoff.write_bootstrap(&document)?;
    tracing::info!(file = %handoff.bootstrap().display(), "wrote Envoy's bootstrap");
    Ok(())
}

/// Renders the bootstrap from the proxy as the agent returns it, with the central
/// configuration merged in.
async fn render(
    agent: &Agent,
    flags: &BootstrapArgs,
    pair: &Pair,
    xds: &XdsServer,
    deadline: Deadline,
) -> Result<Value, Failure> {
    let proxy = read_back(agent, pair, deadline).await?;
    let attempt = || flags.render(agent, &proxy, xds.clone());
    let document = retry::until(deadline, NODE_AGENT, is_transient, attempt).await;
    document.map_err(Report::failure)
}

/// Hands the ACL token to Envoy: in a file if Envoy watches it, else in the bootstrap.
fn give_token(
    handoff: &Handoff,
    agent: &Agent,
    document: &mut Value,
    watches_token: bool,
) -> Result<(), Failure> {
    let file = handoff.envoy_token();
    match agent.token() {
        Some(token)
            if watches_token && bootstrap::watch_token(document, &file.to_string_lossy()) =>
        {
            handoff.write_envoy_token(&bootstrap::token_secret(token.expose_secret()))?;
        }
        _ => handoff.remove_envoy_token()?,
    }
    Ok(())
}

/// Whether gRPC is verified with the same CAs as HTTP. A separate gRPC CA is not followed.
fn has_ca_of(agent: &Agent, xds: &XdsServer) -> bool {
    let ca_pem = agent.config().tls.ca_pem().ok();
    ca_pem.is_some() && ca_pem == xds.ca_pem
}

/// Writes the agent's CA certificates to a file that Envoy watches.
fn give_ca(handoff: &Handoff, document: &mut Value, xds: &XdsServer) -> Result<(), Failure> {
    let Some(pem) = &xds.ca_pem else { return Ok(()) };
    // The file first: the document names it.
    handoff.write_envoy_ca(&bootstrap::ca_secret(pem))?;
    bootstrap::watch_ca(document, &handoff.envoy_ca().to_string_lossy());
    Ok(())
}

/// What Envoy reads from files, and reads again when they change.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    /// Its ACL token.
    token: bool,
    /// The agent's CA certificates.
    ca: bool,
}

// === impl Watched ===

impl Watched {
    /// What this release of Envoy can watch. A token needs [`bootstrap::WATCHES_TOKEN`]: an
    /// older or unknown Envoy might not even start with that setting. CA certificates can be
    /// watched by every Envoy that Consul supports.
    pub fn by(envoy: Option<&str>, trust: Trust) -> Self {
        let release = envoy.and_then(consul::envoy_version::release);
        let token = release.is_some_and(|release| release >= (1, bootstrap::WATCHES_TOKEN));
        Self { token, ca: trust == Trust::Roots }
    }
}

/// Whether the agent failed, which a retry may help; a wrong setting stays wrong.
fn is_transient(failure: &Failure) -> bool {
    matches!(failure.exit(), Exit::Unreachable | Exit::Deadline)
}

async fn read_back(
    agent: &Agent,
    pair: &Pair,
    deadline: Deadline,
) -> Result<AgentService, Failure> {
    let id = pair.proxy.id();
    let attempt = || agent.service(id, None);
    match retry::until(deadline, NODE_AGENT, consul::Error::is_transient, attempt).await {
        Ok(Some(proxy)) => Ok(proxy),
        Ok(None) => Err(Failure::new(
            Exit::Failure,
            format_args!(
                "proxy `{id}` is not on the agent any more, right after it was registered"
            ),
        )
        .hint("the agent restarted, or something else deregistered it: the pod tries again")),
        Err(stopped) => Err(stopped.failure()),
    }
}

/// How the pod's other containers reach the agent. `tls` names the files by the paths
/// that they see; the token is the copy in the directory, unless they also see the
/// original.
pub fn agent_record(handoff: &Handoff, agent: &Agent, tls: &TlsFiles) -> AgentRecord {
    let config = agent.config();
    AgentRecord {
        http_addr: config.address.clone(),
        tls: tls.clone(),
        namespace: config.namespace.clone(),
        partition: config.partition.clone(),
        node: config.node.clone(),
        token_file: agent.token().is_some().then(|| handoff.token()),
        token_source: config.token_file.clone(),
        http_auth_file: config.http_auth.is_some().then(|| handoff.http_auth()),
    }
}
