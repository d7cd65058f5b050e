//! Requests to the agent, retried until the deadline.

use std::fmt;
use std::future::Future;

use consul::{Agent, Config, Error};
use flags::Report;
use runtime::deadline::{Cut, Deadline};
use runtime::retry::{self, Stopped};
use runtime::{Exit, Failure};
use secrecy::SecretString;

/// Retries while the failure is transient and the deadline has not passed.
pub(crate) async fn ask<T, F>(
    agent: &Agent,
    deadline: Deadline,
    question: impl FnMut() -> F,
) -> Result<T, Failure>
where
    F: Future<Output = Result<T, Error>>,
{
    let answer = retry::until(deadline, retry::NODE_AGENT, Error::is_transient, question);
    answer.await.map_err(|stopped| why(stopped, agent, deadline))
}

pub(crate) fn why<E: Report>(stopped: Stopped<E>, agent: &Agent, deadline: Deadline) -> Failure {
    match stopped {
        // The last error says more than "the deadline passed".
        Stopped::Final(error) | Stopped::Deadline(_, Some(error)) => error.failure(),
        Stopped::Deadline(_, None) => no_answer(agent, deadline),
    }
}

/// The same agent, with another token if there is one.
pub(crate) fn with_token(agent: &Agent, token: Option<&SecretString>) -> Result<Agent, Failure> {
    match token {
        None => Ok(agent.clone()),
        Some(token) => Agent::new(Config {
            token: Some(token.clone()),
            token_file: None,
            ..agent.config().clone()
        })
        .map_err(Report::failure),
    }
}

/// Turns an interruption into a failure.
pub(crate) fn cut_short(cut: Cut, agent: &Agent, deadline: Deadline) -> Failure {
    match cut {
        Cut::Deadline => no_answer(agent, deadline),
        Cut::Signal(signal) => Failure::new(Exit::Failure, format_args!("ended by {signal}")),
    }
}

fn no_answer(agent: &Agent, deadline: Deadline) -> Failure {
    let address: &dyn fmt::Display = &agent.config().address;
    Failure::new(
        Exit::Deadline,
        format_args!("the Consul agent at {address} did not answer within {deadline}"),
    )
    .hint("check that the agent works, or give it more time with --timeout")
}
