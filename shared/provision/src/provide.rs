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

/// Writes the bootstrap, and the file with the ACL token if Envoy watches it.
pub async fn bootstrap(
    handoff: &Handoff,
    agent: &Agent,
    flags: &BootstrapArgs,
    pair: &Pair,
    xds: &XdsServer,
    watches_token: bool,
    deadline: Deadline,
) -> Result<(), Failure> {
    let mut document = render(agent, flags, pair, xds, deadline).await?;
    give_token(handoff, agent, &mut document, watches_token)?;
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

/// Whether this Envoy can read its token from a file again and again. An unknown
/// release may not even start with that setting.
pub fn watches_token(envoy: Option<&str>) -> bool {
    let release = envoy.and_then(consul::envoy_version::release);
    release.is_some_and(|release| release >= (1, bootstrap::WATCHES_TOKEN))
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
