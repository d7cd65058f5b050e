//! The subcommand `sidecar`: registers one service with its sidecar, and writes the
//! files that `connect-lifecycle run` reads.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Duration;

use consul::Agent;
use definition::Definition;
use flags::{BootstrapArgs, Report};
use handoff::{Handoff, Record};
use lifecycle::{RegisterError, Registered};
use provision::{Trust, Watched};
use registration::machine;
use registration::pod::Pair;
use registration::service::Kind;
use runtime::deadline::{Deadline, race};
use runtime::file::write_whole;
use runtime::{Exit, Failure, Signals, retry};
use secrecy::ExposeSecret;

use crate::agent::{ask, cut_short, why, with_token};
use crate::args::SidecarArgs;
use crate::output::{self, Output};
use crate::{files, register};

/// Time limit of the rollback.
const ROLLBACK: Duration = Duration::from_secs(5);

/// Registers the service and its sidecar, and writes the files; rolls everything back
/// if a step fails.
pub(crate) async fn run(args: SidecarArgs, mut signals: Signals) -> Result<(), Failure> {
    let SidecarArgs { file, dir, auto_encrypt, envoy, reach } = args;
    let definition = only(&[file])?;
    let pair = machine::pair(definition.service.clone()).map_err(|problem| {
        let place = &definition.place;
        Failure::usage(format_args!(
            "{}:{}: service `{}`: {problem}",
            place.file, place.line, definition.service.name
        ))
    })?;
    let handoff = Handoff::new(dir);
    let trust = Trust::of(auto_encrypt);
    let mut config = reach.agent.config(None)?;
    trust.remember(&handoff, &mut config.tls);
    if auto_encrypt && !config.tls.has_ca() {
        return Err(Failure::usage("--auto-encrypt: the roots of Connect's CA are missing").hint(
            "save them to a file and give it with --ca-file (CONSUL_CACERT); any agent that you trust has them: GET /v1/connect/ca/roots?pem=true",
        ));
    }
    let agent = Agent::new(config).map_err(Report::failure)?;
    let agent = with_token(&agent, definition.token.as_ref())?;
    let deadline = Deadline::after(reach.timeout);
    let sidecar = Sidecar { handoff, agent, pair, envoy, trust, arrived: Cell::new(false) };
    let work = sidecar.provide(&definition, deadline);
    let failure = match race(deadline, &mut signals, work).await {
        Ok(Ok(())) => {
            let Pair { service, proxy } = &sidecar.pair;
            let lines = [service, proxy].map(|each| format!("Registered service: {}", each.name));
            return output::print(lines);
        }
        Ok(Err(failure)) => failure,
        Err(cut) => cut_short(cut, &sidecar.agent, deadline),
    };
    sidecar.roll_back().await;
    Err(failure.while_doing(format_args!("the sidecar of service `{}`", sidecar.pair.service.id())))
}

/// The file's only service.
fn only(files: &[PathBuf]) -> Result<Definition, Failure> {
    let mut definitions = files::read(files, Output::Text)?.definitions;
    match definitions.len() {
        1 => Ok(definitions.remove(0)),
        count => Err(Failure::usage(format_args!("the definition file defines {count} services"))
            .hint(
                "expected one service: each sidecar has a file, a directory and an Envoy of its own",
            )),
    }
}

/// One service with its sidecar, while it is being registered.
struct Sidecar {
    handoff: Handoff,
    agent: Agent,
    pair: Pair,
    envoy: BootstrapArgs,
    trust: Trust,
    /// Whether the agent may have received a registration.
    arrived: Cell<bool>,
}

// === impl Sidecar ===

impl Sidecar {
    async fn provide(&self, definition: &Definition, deadline: Deadline) -> Result<(), Failure> {
        let Self { handoff, agent, pair, envoy, trust, .. } = self;
        let admin = envoy.admin().await?;
        let tls = provision::prepare(handoff, agent.config(), *trust)?;
        match agent.token() {
            Some(token) => {
                write_whole(&handoff.token(), 0o600, token.expose_secret().as_bytes())?;
            }
            None => handoff.remove_token()?,
        }
        handoff.unbury()?;
        register::require_newest(agent, deadline, std::slice::from_ref(definition)).await?;
        // First, so that nothing is registered with an agent that can't serve Envoy.
        let xds = envoy.find_xds(agent, &tls, deadline).await?;
        self.refuse_taken_port(deadline).await?;
        self.register(deadline).await?;
        let watched = Watched::by(envoy.envoy_version.as_deref(), *trust);
        provision::bootstrap(handoff, agent, envoy, pair, &xds, watched, deadline).await?;
        // Last: a reader of the record must find all other files.
        let agent = provision::agent_record(handoff, agent, &tls);
        Record::new(pair.clone(), agent, admin, None).write(handoff)?;
        Ok(())
    }

    /// Rejects a public listener's port that another proxy of this machine uses: one of
    /// the two Envoys could not listen.
    async fn refuse_taken_port(&self, deadline: Deadline) -> Result<(), Failure> {
        let Self { agent, pair: Pair { proxy, .. }, .. } = self;
        let services = ask(agent, deadline, || agent.services()).await?;
        let other = services.values().find(|other| {
            other.kind != Kind::Typical
                && other.id != proxy.id
                && other.port == proxy.port
                && other.address == proxy.address
        });
        let Some(other) = other else { return Ok(()) };
        Err(Failure::usage(format_args!("port {} is in use by `{}`", proxy.port, other.id))
            .hint("set connect.sidecar_service.port and --admin-bind (CONNECT_ADMIN_BIND) to other ports: each sidecar of a machine needs its own"))
    }

    async fn register(&self, deadline: Deadline) -> Result<(), Failure> {
        let Self { handoff, agent, pair, arrived, .. } = self;
        let attempt = || async {
            let before = arrived.replace(true);
            let result = lifecycle::register(handoff, agent, pair, deadline).await;
            if result.as_ref().is_err_and(|error| !error.may_have_arrived()) {
                arrived.set(before);
            }
            result
        };
        let done = retry::until(deadline, retry::NODE_AGENT, RegisterError::is_transient, attempt);
        match done.await.map_err(|stopped| why(stopped, agent, deadline))? {
            Registered::Done => Ok(()),
            Registered::Buried => Err(Failure::new(Exit::Failure, "it is being deregistered")
                .hint(
                    "a connect-lifecycle with this directory is ending: run this again afterwards",
                )),
        }
    }

    /// Deregisters what the agent may have received: without Envoy, no client may be sent here.
    async fn roll_back(&self) {
        let Self { handoff, agent, pair, arrived, .. } = self;
        if arrived.get()
            && let Err(leftovers) =
                lifecycle::retract(handoff, agent, pair, Deadline::after(ROLLBACK)).await
        {
            tracing::warn!("{}", leftovers.failure());
        }
    }
}
