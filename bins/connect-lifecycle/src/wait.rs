//! Runs a command while the proxy runs: starts it when Envoy is ready and, with `--quit`,
//! stops the sidecar afterwards. For Jobs, whose pods complete only when all of their
//! containers have exited.

use std::process::ExitCode;
use std::time::Duration;

use envoy::Envoy;
use nix::sys::signal::Signal;
use runtime::deadline::{Cut, race};
use runtime::{Deadline, Exit, Failure, Signals, signal};

use crate::args::WaitArgs;
use crate::child::{self, Child};
use crate::ready;

/// How long to retry stopping a sidecar.
const QUIT: Duration = Duration::from_secs(5);

/// Pause between requests to Envoy.
const AGAIN: Duration = Duration::from_millis(200);

/// Runs the command, and exits with its exit code.
///
/// Only Envoy is told to exit; `run` notices that, deregisters and shuts down gracefully.
/// This process can't deregister itself, because it may run as a user who can't read the
/// hand-off files. Clients lose nothing: the application is gone already.
pub(crate) async fn run(args: WaitArgs, mut signals: Signals) -> Result<ExitCode, Failure> {
    let WaitArgs { admin_bind, timeout, go_on_without, quit, command } = args;
    let envoys: Vec<Envoy> = admin_bind.into_iter().map(Envoy::at).collect();
    let deadline = Deadline::after(timeout);
    let mut ready = Ok(());
    // From this sidecar on, they are absent, or were not looked for.
    let mut absent_from = envoys.len();
    for (index, envoy) in envoys.iter().enumerate() {
        if let Some(patience) = go_on_without
            && tokio::time::timeout(patience, until_there(*envoy)).await.is_err()
        {
            tracing::warn!("no sidecar is running: starting the command without one");
            absent_from = index;
            break;
        }
        ready = until_ready(*envoy, deadline, &mut signals).await;
        if ready.is_err() {
            break;
        }
    }
    let outcome = match ready.and_then(|()| Child::spawn(&command)) {
        Ok(child) => Ok(attend(child, &mut signals).await),
        Err(failure) => Err(failure),
    };
    // Also if the command was not started: the sidecar alone would keep the pod running.
    if quit {
        let was_asked_to_end = matches!(outcome, Ok((_, true)));
        let patience = if was_asked_to_end { Duration::ZERO } else { QUIT };
        let (present, absent) = envoys.split_at(absent_from);
        end_sidecars(present, absent, patience).await;
    }
    outcome.map(|(code, _)| code)
}

/// Tells all sidecars to exit, and retries for that long with those that were present.
///
/// Only logs a failure: a sidecar that keeps running keeps the pod running, but the
/// command's exit code must not be lost.
async fn end_sidecars(present: &[Envoy], absent: &[Envoy], patience: Duration) {
    for envoy in present {
        if let Err(error) = end_sidecar(*envoy, patience).await {
            tracing::warn!(
                "cannot tell the sidecar to exit: {error}; hint: check --admin-bind: a sidecar that runs keeps the pod from completing"
            );
        }
    }
    // These may have started during the command. If not, nothing is wrong, and the Job must
    // not take longer.
    for envoy in absent {
        if let Err(error) = end_sidecar(*envoy, Duration::ZERO).await {
            tracing::debug!("no sidecar to tell to exit: {error}");
        }
    }
}

/// Waits until Envoy's admin interface answers, whether Envoy is ready or not.
async fn until_there(envoy: Envoy) {
    while let Err(envoy::Error::Connect(..)) = envoy.ready().await {
        tokio::time::sleep(AGAIN).await;
    }
}

async fn until_ready(
    envoy: Envoy,
    deadline: Deadline,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let cut = match race(deadline, signals, ready::until_ready(envoy)).await {
        Ok(()) => return Ok(()),
        Err(cut) => cut,
    };
    let not_started = "the command was not started";
    match cut {
        Cut::Signal(signal) => Err(Failure::new(
            Exit::Failure,
            format_args!("ended by {signal} before Envoy was ready: {not_started}"),
        )),
        Cut::Deadline => match envoy.ready().await {
            Ok(()) => Ok(()), // just now
            Err(error) => Err(Failure::new(
                Exit::Deadline,
                format_args!("Envoy was not ready within {deadline}, {not_started}: {error}"),
            )
            .hint(ready::advice(&error))),
        },
    }
}

/// Waits until the command exits, and forwards signals. Returns its exit code, and whether
/// it got a signal.
async fn attend(mut child: Child, signals: &mut Signals) -> (ExitCode, bool) {
    let mut was_asked_to_end = false;
    loop {
        let signal = tokio::select! {
            biased;
            status = child.end() => {
                tracing::info!(%status, "the command exited");
                return (child::exit_code(status), was_asked_to_end);
            }
            signal = signals.next() => signal,
        };
        was_asked_to_end = true;
        child.kill(match signal {
            signal::Signal::Terminate => Signal::SIGTERM,
            signal::Signal::Interrupt => Signal::SIGINT,
        });
    }
}

/// Tells Envoy to exit, and retries for that long, because the sidecar may be restarting
/// right now. If the whole pod is being shut down, it may be gone already.
async fn end_sidecar(envoy: Envoy, patience: Duration) -> Result<(), envoy::Error> {
    let deadline = Deadline::after(patience);
    loop {
        match envoy.quit().await {
            Ok(()) => {
                tracing::info!("told the sidecar to exit");
                return Ok(());
            }
            Err(error) if deadline.left().is_zero() => return Err(error),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
