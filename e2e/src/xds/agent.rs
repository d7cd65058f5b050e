//! The agent's HTTP API: the few answers that a proxy's configuration is made of.
//!
//! Every read is a blocking query where the agent has one ("Blocking Queries" in
//! Consul's API documentation): a [`Cursor`] says what is known already, and the
//! agent answers when there is something else to know.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, StatusCode, Url};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

/// How long the agent may hold a blocking query: Consul's own default.
const WAIT: Duration = Duration::from_secs(5 * 60);

/// The agent adds up to a sixteenth of the wait, and may need some seconds for
/// an answer of its own when its servers have no leader.
const TIMEOUT: Duration = WAIT.saturating_add(Duration::from_secs(WAIT.as_secs() / 16 + 15));

/// A source that no intention names: asking for it tells what applies to all
/// sources that aren't named either.
const NOBODY: &str = "no-service-has-this-name";

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address of the agent is not a URL that paths can be put after.
    #[error("not an agent's address: {address:?}, expected http://HOST:PORT")]
    Address {
        /// What was given.
        address: String,
    },
    /// The token has characters that no header may have.
    #[error("the token is not a valid header value")]
    Token,
    /// No connection, or none that lived long enough.
    #[error("GET {path}: {}", root_cause(source))]
    Unreachable {
        /// The path that was asked for.
        path: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The agent refuses the token, or the token lacks a permission.
    #[error("GET {path}: the agent answered 403: {body}")]
    Forbidden {
        /// The path that was asked for.
        path: String,
        /// What the agent said.
        body: String,
    },
    /// Any other answer than 200.
    #[error("GET {path}: the agent answered {status}: {body}")]
    Refused {
        /// The path that was asked for.
        path: String,
        /// The status of the answer.
        status: u16,
        /// What the agent said.
        body: String,
    },
    /// The agent has no connect-proxy of this id.
    #[error("no connect-proxy {id:?} is registered with the agent: {why}")]
    NoProxy {
        /// The id that was asked for.
        id: String,
        /// What the agent has instead.
        why: String,
    },
}

impl Error {
    /// Whether asking again can't help: the token or the registration must change.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Forbidden { .. } | Self::NoProxy { .. } | Self::Token)
    }
}

/// What is known already of an answer, so that the agent can wait for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cursor {
    /// Nothing: answer at once.
    #[default]
    Start,
    /// The index of the answer before, as all but the agent's own state has it.
    Index(u64),
    /// The hash of the answer before, as the agent's own state has it.
    Hash(String),
}

impl Cursor {
    fn of(headers: &HeaderMap) -> Self {
        let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        if let Some(hash) = header("x-consul-contenthash") {
            return Self::Hash(hash.to_owned());
        }
        // An index below 1 would turn blocking queries into a busy loop.
        let index = header("x-consul-index").and_then(|index| index.parse().ok());
        index.map_or(Self::Start, |index: u64| Self::Index(index.max(1)))
    }

    /// Where to go on after `next`. An index that goes backwards means that the
    /// agent's state was replaced: begin anew.
    fn advance(&self, next: Self) -> Self {
        match (self, &next) {
            (Self::Index(before), Self::Index(after)) if after < before => Self::Start,
            _ => next,
        }
    }

    fn query(&self) -> Vec<(&'static str, String)> {
        let wait = || ("wait", format!("{}s", WAIT.as_secs()));
        match self {
            Self::Start => Vec::new(),
            Self::Index(index) => vec![("index", index.to_string()), wait()],
            Self::Hash(hash) => vec![("hash", hash.clone()), wait()],
        }
    }
}

/// A connect-proxy's registration: `/v1/agent/service/:id`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Registration {
    /// `connect-proxy`, or the agent doesn't have it as a proxy.
    pub kind: String,
    /// Where the public listener is; empty means on all addresses.
    pub address: String,
    /// The port of the public listener.
    pub port: u16,
    /// What is specific to proxies.
    pub proxy: Proxy,
}

/// What a connect-proxy stands for, and what it reaches.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Proxy {
    /// The service that it stands for.
    pub destination_service_name: String,
    /// Where the application listens; empty means 127.0.0.1.
    pub local_service_address: String,
    /// The application's port; 0 if it has none.
    pub local_service_port: u16,
    /// The services that it reaches.
    #[serde(deserialize_with = "null_is_empty")]
    pub upstreams: Vec<Upstream>,
}

/// A service that the application reaches through its proxy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Upstream {
    /// The service, or the prepared query.
    #[serde(flatten)]
    pub target: Target,
    /// Where the proxy listens for it; empty means 127.0.0.1.
    pub local_bind_address: String,
    /// The port on which the proxy listens for it.
    pub local_bind_port: u16,
}

/// What an upstream leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Target {
    /// `prepared_query`, or `service` or nothing.
    pub destination_type: String,
    /// The name of the service or query.
    pub destination_name: String,
    /// Where to look; empty means the agent's own datacenter.
    pub datacenter: String,
}

impl Target {
    /// Whether a prepared query says where the instances are.
    pub fn is_query(&self) -> bool {
        self.destination_type == "prepared_query"
    }
}

/// The roots that certificates are checked against: `/v1/agent/connect/ca/roots`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Roots {
    /// The host part of all SPIFFE ids.
    pub trust_domain: String,
    /// The active root, and those before it while they are still valid.
    pub roots: Vec<Root>,
}

/// One root certificate.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Root {
    /// The certificate, as PEM.
    pub root_cert: String,
}

/// A service's certificate: `/v1/agent/connect/ca/leaf/:service`. It has no
/// `Debug`: it holds the key.
#[derive(Clone, PartialEq, Deserialize)]
pub struct Leaf {
    /// The certificate, followed by intermediates, as PEM.
    #[serde(rename = "CertPEM")]
    pub certificate: String,
    /// Its key, as PEM.
    #[serde(rename = "PrivateKeyPEM")]
    pub key: String,
    /// The SPIFFE id that it proves.
    #[serde(rename = "ServiceURI")]
    pub uri: String,
}

/// Who may connect to a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    /// The intentions that apply to it, in no particular order.
    pub intentions: Vec<Intention>,
    /// What applies to sources that no intention names.
    pub others_allowed: bool,
}

/// One intention.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Intention {
    /// Who connects: a service, or `*`.
    pub source_name: String,
    /// To whom: a service, or `*`.
    pub destination_name: String,
    /// `allow` or `deny`.
    pub action: String,
}

/// Where the instances of an upstream are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Endpoints {
    /// The service that they prove to be; nothing if that isn't known.
    pub service: String,
    /// Its datacenter; empty means the agent's own.
    pub datacenter: String,
    /// Address and port of their proxies, sorted.
    pub addresses: Vec<(String, u16)>,
}

/// The agent, asked with one token.
#[derive(Clone)]
pub struct Agent {
    client: Client,
    base: Url,
    token: Option<HeaderValue>,
}

impl Agent {
    /// The agent at `address`, without a token.
    pub fn new(address: &str) -> Result<Self, Error> {
        let bad_address = || Error::Address { address: address.to_owned() };
        let base = Url::parse(address).map_err(|_| bad_address())?;
        if base.scheme() != "http" || !base.has_host() {
            return Err(bad_address());
        }
        // The client wants a provider although it never speaks TLS here. An
        // error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .tls_certs_only([])
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .map_err(|source| Error::Unreachable { path: String::new(), source })?;
        Ok(Self { client, base, token: None })
    }

    /// The same agent, asked with `token`; an empty one is none.
    pub fn with_token(&self, token: &str) -> Result<Self, Error> {
        let token = match token {
            "" => None,
            token => {
                let mut value = HeaderValue::from_str(token).map_err(|_| Error::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        Ok(Self { token, ..self.clone() })
    }

    /// The registration of the proxy `id`.
    pub async fn registration(
        &self,
        id: &str,
        cursor: &Cursor,
    ) -> Result<(Registration, Cursor), Error> {
        let no_proxy = |why| Error::NoProxy { id: id.to_owned(), why };
        let answer = self.get::<Registration>(&["agent", "service", id], &[], cursor).await;
        match answer {
            Ok((it, _)) if it.kind != "connect-proxy" => {
                Err(no_proxy(format!("its kind is {:?}", it.kind)))
            }
            Err(Error::Refused { status: 404, body, .. }) => Err(no_proxy(body)),
            answer => answer,
        }
    }

    /// The roots.
    pub async fn roots(&self, cursor: &Cursor) -> Result<(Roots, Cursor), Error> {
        self.get(&["agent", "connect", "ca", "roots"], &[], cursor).await
    }

    /// The certificate of `service`.
    pub async fn leaf(&self, service: &str, cursor: &Cursor) -> Result<(Leaf, Cursor), Error> {
        self.get(&["agent", "connect", "ca", "leaf", service], &[], cursor).await
    }

    /// Who may connect to `service`.
    ///
    /// The list of all intentions tells when to look: matching blocks as well,
    /// but its answer has no index to go on from.
    pub async fn authorization(
        &self,
        service: &str,
        cursor: &Cursor,
    ) -> Result<(Authorization, Cursor), Error> {
        #[derive(Deserialize)]
        struct Anything {}
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Check {
            allowed: bool,
        }
        type Match = std::collections::BTreeMap<String, Option<Vec<Intention>>>;

        let intentions = ["connect", "intentions"];
        let (_, next) = self.get::<Vec<Anything>>(&intentions, &[], cursor).await?;
        let (matching, _) = self
            .get::<Match>(
                &["connect", "intentions", "match"],
                &[("by", "destination"), ("name", service)],
                &Cursor::Start,
            )
            .await?;
        let (check, _) = self
            .get::<Check>(
                &["connect", "intentions", "check"],
                &[("source", NOBODY), ("destination", service)],
                &Cursor::Start,
            )
            .await?;
        let intentions = matching.into_values().flatten().flatten().collect();
        Ok((Authorization { intentions, others_allowed: check.allowed }, next))
    }

    /// Where the healthy instances of `target` are. The agent has no blocking
    /// query for prepared queries: the cursor stays at the start.
    pub async fn endpoints(
        &self,
        target: &Target,
        cursor: &Cursor,
    ) -> Result<(Endpoints, Cursor), Error> {
        let name = &*target.destination_name;
        let mut query = match &*target.datacenter {
            "" => vec![],
            datacenter => vec![("dc", datacenter)],
        };
        if target.is_query() {
            query.push(("connect", "true"));
            let path = ["query", name, "execute"];
            let (it, _) = self.get::<Executed>(&path, &query, &Cursor::Start).await?;
            let addresses = addresses(it.nodes);
            let found = Endpoints { service: it.service, datacenter: it.datacenter, addresses };
            Ok((found, Cursor::Start))
        } else {
            query.push(("passing", "true"));
            let (nodes, next) = self.get(&["health", "connect", name], &query, cursor).await?;
            let datacenter = target.datacenter.clone();
            let addresses = addresses(nodes);
            Ok((Endpoints { service: name.to_owned(), datacenter, addresses }, next))
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        cursor: &Cursor,
    ) -> Result<(T, Cursor), Error> {
        let mut url = self.base.clone();
        // By segments, so that a slash in a name doesn't end the name.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !(query.is_empty() && *cursor == Cursor::Start) {
            url.query_pairs_mut().extend_pairs(query).extend_pairs(cursor.query());
        }
        let path = url.path().to_owned();
        let unreachable = |source: reqwest::Error| Error::Unreachable {
            path: path.clone(),
            source: source.without_url(),
        };

        let mut request = self.client.get(url);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token.clone());
        }
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            StatusCode::OK => {
                let next = cursor.advance(Cursor::of(response.headers()));
                Ok((response.json().await.map_err(unreachable)?, next))
            }
            status => {
                let body = response.text().await.map_err(unreachable)?.trim().to_owned();
                Err(match status {
                    StatusCode::FORBIDDEN => Error::Forbidden { path, body },
                    status => Error::Refused { path, status: status.as_u16(), body },
                })
            }
        }
    }
}

/// What happened at the bottom: the outer errors only say that something did.
fn root_cause(error: &dyn std::error::Error) -> &dyn std::error::Error {
    std::iter::successors(Some(error), |it| it.source()).last().unwrap_or(error)
}

// === the shapes that are turned into the types above ===

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Executed {
    service: String,
    datacenter: String,
    #[serde(deserialize_with = "null_is_empty")]
    nodes: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Instance,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    address: String,
    port: u16,
}

/// Sorted, because the agent's order is random: an order is not a change.
fn addresses(entries: Vec<Entry>) -> Vec<(String, u16)> {
    let mut addresses: Vec<_> = entries
        .into_iter()
        .map(|Entry { node, service }| {
            let empty = service.address.is_empty();
            (if empty { node.address } else { service.address }, service.port)
        })
        .collect();
    addresses.sort();
    addresses
}

/// Go writes an empty list as `null`.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_backwards_begins_anew() {
        let at = Cursor::Index;
        assert_eq!(at(7).advance(at(9)), at(9));
        assert_eq!(at(7).advance(at(7)), at(7));
        assert_eq!(at(7).advance(at(3)), Cursor::Start);
        assert_eq!(Cursor::Start.advance(at(3)), at(3));
    }

    #[test]
    fn a_cursor_is_read_from_the_answer() {
        let of = |name: &'static str, value| {
            Cursor::of(&HeaderMap::from_iter([(
                name.parse().unwrap(),
                HeaderValue::from_static(value),
            )]))
        };
        assert_eq!(of("x-consul-index", "12"), Cursor::Index(12));
        assert_eq!(of("x-consul-index", "0"), Cursor::Index(1));
        assert_eq!(of("x-consul-contenthash", "ab"), Cursor::Hash("ab".into()));
        assert_eq!(of("x-other", "ab"), Cursor::Start);
    }

    #[test]
    fn only_plain_http_is_an_agents_address() {
        assert!(Agent::new("http://127.0.0.1:8500").is_ok());
        for bad in ["127.0.0.1:8500", "https://127.0.0.1:8501", "", "http://"] {
            assert!(matches!(Agent::new(bad), Err(Error::Address { .. })), "{bad}");
        }
    }
}
