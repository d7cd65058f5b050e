//! Requests to the Kubernetes API, with timeouts. An error says what failed, at which
//! server, and why.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use kube::Client;
use serde::de::DeserializeOwned;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::values::Version;

/// Why a request to the API server failed.
#[derive(Debug)]
pub(crate) enum Problem {
    /// Another client changed or created the object first (409 Conflict): read it again.
    Overtaken,
    /// A sentence that says why there is no answer.
    Failed(String),
}

/// Why a resource could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Access is denied (401 or 403); a sentence.
    Denied(String),
    /// 404 Not Found.
    Missing,
    /// There is no usable answer; a sentence that says why.
    Failed(String),
}

/// A client of the Kubernetes API.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) client: Client,
    /// The server's URL, for errors.
    pub(crate) server: String,
}

// === impl Api ===

impl Api {
    /// Waits for the answer for at most `patience`.
    pub(crate) async fn within<T>(
        &self,
        patience: Duration,
        what: &str,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Problem> {
        // The client library logs every failure as well; that would be a second message.
        let request = request.with_subscriber(NoSubscriber::default());
        let failed = |problem| {
            Problem::Failed(format!("cannot {what}: Kubernetes API {}: {problem}", self.server))
        };
        match tokio::time::timeout(patience, request).await {
            Ok(Ok(answer)) => Ok(answer),
            // Another client has updated or created the object.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Problem::Overtaken),
            Ok(Err(error)) => Err(failed(cause(&error))),
            Err(_) => Err(failed(format!("no answer within {} s", patience.as_secs()))),
        }
    }

    /// Sends a request and reads the answer, within `patience`.
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

    /// Asks the API server for its version.
    pub(crate) async fn version(&self, patience: Duration) -> Result<Version, String> {
        let what = "ask for the API server's version";
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

/// The error with its causes: on its own it says only "client error".
fn cause(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return format!("{} ({} {})", status.message, status.code, status.reason);
    }
    let mut words = error.to_string();
    let mut beneath = error.source();
    while let Some(error) = beneath {
        let more = error.to_string();
        // Some layers repeat the text of the error that they wrap; others don't.
        if !words.contains(&more) {
            words.push_str(": ");
            words.push_str(&more);
        }
        beneath = error.source();
    }
    words
}
