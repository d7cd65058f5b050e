//! Requests to the Kubernetes API, within bounds, and their errors: once, with
//! what failed, where and why.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use kube::Client;
use serde::de::DeserializeOwned;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::values::Version;

/// What the API server did not do.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Somebody else was faster: what they wrote is to be read.
    Overtaken,
    /// Why the answer is missing, in a sentence.
    Failed(String),
}

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It may not be read: a sentence.
    Denied(String),
    /// It does not exist.
    Missing,
    /// Why the answer is missing: a sentence.
    Failed(String),
}

/// A way to the Kubernetes API.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) client: Client,
    /// Where it is, for errors.
    pub(crate) server: String,
}

// === impl Api ===

impl Api {
    /// Waits for an answer, at most so long.
    pub(crate) async fn within<T>(
        &self,
        patience: Duration,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Problem> {
        // The client library reports each failure by itself, again and again.
        let request = request.with_subscriber(NoSubscriber::default());
        let failed = |problem| {
            Problem::Failed(format!("cannot {what}: Kubernetes API {}: {problem}", self.server))
        };
        match tokio::time::timeout(patience, request).await {
            Ok(Ok(answer)) => Ok(answer),
            // Written by somebody since, or made by somebody already.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Problem::Overtaken),
            Ok(Err(error)) => Err(failed(cause(&error))),
            Err(_) => Err(failed(format!("no answer within {} s", patience.as_secs()))),
        }
    }

    /// Reads what a request asks for, at most so long.
    pub(crate) async fn read<T: DeserializeOwned>(
        &self,
        patience: Duration,
        what: &str,
        request: kube::Result<hyper::Request<Vec<u8>>>,
    ) -> Result<T, Refusal> {
        let sentence =
            |problem: &str| format!("cannot {what}: Kubernetes API {}: {problem}", self.server);
        let answer = async { self.client.request::<T>(request?).await };
        let answer = answer.with_subscriber(NoSubscriber::default());
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(match &error {
                kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                    Refusal::Denied(sentence(&cause(&error)))
                }
                kube::Error::Api(status) if status.code == 404 => Refusal::Missing,
                _ => Refusal::Failed(sentence(&cause(&error))),
            }),
            Err(_) => {
                let problem = format!("no answer within {} s", patience.as_secs());
                Err(Refusal::Failed(sentence(&problem)))
            }
        }
    }

    /// The version of the API server.
    pub(crate) async fn version(&self, patience: Duration) -> Result<Version, String> {
        let what = "ask for the cluster's version";
        match self.within(patience, what, self.client.apiserver_version()).await {
            Ok(info) => format!("{}.{}", info.major, info.minor).parse(),
            Err(Problem::Failed(problem)) => Err(problem),
            Err(Problem::Overtaken) => Err(format!("cannot {what}: 409")),
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("server", &self.server).finish_non_exhaustive()
    }
}

/// An error with what lies beneath it: its own words are only "client error".
fn cause(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({} {})", status.message, status.code, status.reason);
    }
    let mut words = error.to_string();
    let mut beneath = error.source();
    while let Some(error) = beneath {
        let more = error.to_string();
        // Each layer repeats what it wraps, or doesn't.
        if !words.contains(&more) {
            words.push_str(": ");
            words.push_str(&more);
        }
        beneath = error.source();
    }
    words
}
