//! A request to the agent, as tests see it.

use std::time::Instant;

use hyper::http::request::Parts;
use serde_json::Value;

#[derive(Clone, Debug)]
pub struct Request {
    /// When the request was complete.
    pub at: Instant,
    /// Number of its connection, from 1.
    pub connection: usize,
    pub method: String,
    pub path: String,
    /// The part behind the path and `?`.
    pub query: String,
    pub token: Option<String>,
    pub authorization: Option<String>,
    pub body: Vec<u8>,
}

// === impl Request ===

impl Request {
    pub(crate) fn new(head: &Parts, body: Vec<u8>, connection: usize) -> Self {
        let header = |name: &str| {
            head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        Self {
            at: Instant::now(),
            connection,
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            token: header("x-consul-token"),
            authorization: header("authorization"),
            body,
        }
    }

    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A value of the query; empty for a key without one.
    pub fn query_value(&self, key: &str) -> Option<String> {
        self.query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name == key).then(|| decoded(value))
        })
    }

    /// The id of the service or check that the request concerns.
    pub fn id(&self) -> Option<String> {
        if self.path.ends_with("/register") {
            return self.json()["ID"].as_str().map(str::to_owned);
        }
        self.path.rsplit('/').next().map(decoded)
    }
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}
