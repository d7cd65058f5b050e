//! Whether Envoy is ready: a probe, and the hold on the application's start.

use std::process::ExitCode;
use std::time::Duration;

use handoff::Record;
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals};

use crate::args::ReadyArgs;
use crate::envoy::{self, Envoy};

/// Envoy needs some tens of milliseconds; nothing tells when it is done.
const AGAIN: Duration = Duration::from_millis(20);

pub(crate) async fn run(args: ReadyArgs, mut signals: Signals) -> Result<ExitCode, Failure> {
    let ReadyArgs { handoff, wait } = args;
    let envoy = Envoy::at(Record::read(&handoff.handoff())?.admin);
    let Some(wait) = wait else {
        return envoy.ready().await.map(|()| ExitCode::SUCCESS).map_err(|error| not_ready(&error));
    };
    let deadline = Deadline::after(wait);
    match race(deadline, &mut signals, until_ready(envoy)).await {
        Ok(()) => {}
        Err(Cut::Deadline) => {
            let reason = envoy
                .ready()
                .await
                .map_or_else(|error| error.to_string(), |()| "it is now".to_owned());
            tracing::warn!(
                "Envoy was not ready within {deadline}, the application starts without it: {reason}"
            );
        }
        Err(Cut::Signal(signal)) => {
            return Err(Failure::new(
                Exit::Failure,
                format_args!("ended by {signal} before Envoy was ready"),
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until Envoy is ready.
pub(crate) async fn until_ready(envoy: Envoy) {
    while envoy.ready().await.is_err() {
        tokio::time::sleep(AGAIN).await;
    }
}

fn not_ready(error: &envoy::Error) -> Failure {
    Failure::new(Exit::Failure, format_args!("Envoy is not ready: {error}")).hint(advice(error))
}

/// What to do about an Envoy that is not ready.
pub(crate) fn advice(error: &envoy::Error) -> &'static str {
    match error {
        envoy::Error::Status { .. } => {
            "it waits for its configuration from the agent's gRPC port: check that gRPC is on, and that the agent knows the proxy"
        }
        _ => "it has not started yet, or ended: check its log",
    }
}
