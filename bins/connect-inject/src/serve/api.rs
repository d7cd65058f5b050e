//! Requests to the Kubernetes API, within bounds, and their errors: once, with
//! what failed, where and why.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use kube::Client;
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

use crate::values::Version;

/// What the API server did not do.
#[derive(Debug)]
pub(super) enum Problem {
    /// Somebody else was faster: what they wrote is to be read.
    Overtaken,
    /// Why the answer is missing, in a sentence.
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
    pub(super) async fn within<T>(
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

    /// The version of the API server.
    pub(super) async fn version(&self, patience: Duration) -> Result<Version, String> {
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
