//! Requests to the agent.
//!
//! Source: Consul's "Agent HTTP API", "Service - Agent HTTP API" and "Check -
//! Agent HTTP API" pages.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use certificate::Validity;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use registration::Service;
use registration::check::{Check, Status};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use reqwest::tls::TlsInfo;
use reqwest::{Method, Response};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::address::Address;
use crate::answer::{
    AgentCheck, AgentSelf, AgentService, CatalogService, HealthyInstance, PeerState, Roots,
};
use crate::blocking::{Follow, Watch};
use crate::error::{Cause, Error, Request, SetupError};
use crate::http::client;
use crate::tls::TlsFiles;

/// Which agent, and how to connect to it.
#[derive(Clone, Debug)]
pub struct Config {
    pub address: Address,
    /// The initial ACL token.
    pub token: Option<SecretString>,
    /// The file that the token was read from. It may get another token later.
    pub token_file: Option<PathBuf>,
    /// `user:password` for HTTP basic authentication.
    pub http_auth: Option<SecretString>,
    pub tls: TlsFiles,
    /// Consul Enterprise namespace; not sent if `None`.
    pub namespace: Option<String>,
    /// Admin partition; not sent if `None`.
    pub partition: Option<String>,
    /// The name of the agent's node, for errors.
    pub node: Option<String>,
}

/// The node's agent. Consecutive requests share one kept-alive connection. A clone
/// shares connection and token.
#[derive(Clone, Debug)]
pub struct Agent {
    http: reqwest::Client,
    config: Arc<Config>,
    token: Arc<RwLock<Option<SecretString>>>,
    /// Time limit of a request.
    patience: Duration,
}

/// The servers' leader, as the agent reports it.
#[derive(Clone, Debug)]
pub struct Leader {
    /// Empty if there is no leader.
    pub address: String,
    /// Validity of the agent's certificate, if the connection uses TLS.
    pub certificate: Option<Validity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deregistered {
    /// The service is deregistered. Without ACLs, the agent does not say whether it was
    /// registered.
    Gone,
    /// The agent had no such service.
    WasUnknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewed {
    Done,
    Unknown,
}

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");

/// Set, from Consul 1.11 on, if the ACL token may not see all results.
const FILTERED: HeaderName = HeaderName::from_static("x-consul-results-filtered-by-acls");

/// Time limit of a request. A server without a leader takes 7 s to accept a
/// registration; that must not look like a failure.
const TIMEOUT: Duration = Duration::from_secs(15);

/// Larger than any answer of an agent.
const LARGEST_ANSWER: usize = 16 * 1024 * 1024;

// === impl Agent ===

impl Agent {
    /// Makes a client, without connecting.
    ///
    /// # Errors
    /// A TLS file can't be read, or has the wrong contents.
    pub fn new(mut config: Config) -> Result<Self, SetupError> {
        let http = client(&config.address, &config.tls)?;
        let token = Arc::new(RwLock::new(config.token.take()));
        Ok(Self { http, config: Arc::new(config), token, patience: TIMEOUT })
    }

    /// The configuration, without the token: see [`Agent::token`].
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same agent over the same connections, but with a token of its own.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self { token: Arc::new(RwLock::new(self.token())), ..self.clone() }
    }

    /// The same agent with this time limit for requests.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// The ACL token that requests carry now.
    pub fn token(&self) -> Option<SecretString> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the ACL token of later requests.
    pub fn set_token(&self, token: Option<SecretString>) {
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = token;
    }

    /// Registers a service, or replaces the one with its id and its checks.
    pub async fn register(&self, service: &Service) -> Result<(), Error> {
        self.registration(service)?.query("replace-existing-checks", "true").done().await
    }

    /// Like [`Agent::register`], but keeps checks that the agent has already, unless
    /// the service brings one of the same id.
    pub async fn register_keeping_checks(&self, service: &Service) -> Result<(), Error> {
        self.registration(service)?.done().await
    }

    fn registration(&self, service: &Service) -> Result<Call<'_>, Error> {
        let call = self.call(Method::PUT, "/v1/agent/service/register");
        // The agent would accept these ids, and could never be asked to remove them.
        if matches!(service.id(), "." | "..") {
            let cause = Cause::Unsendable(format!("`{}` is not a service id", service.id()));
            return Err(Error { request: call.request(), cause });
        }
        Ok(call.json(service))
    }

    /// Deregisters a service. It is not an error if the agent does not know it.
    pub async fn deregister(&self, id: &str) -> Result<Deregistered, Error> {
        let path = format!("/v1/agent/service/deregister/{}", segment(id));
        match self.call(Method::PUT, &path).done().await {
            Ok(()) => Ok(Deregistered::Gone),
            Err(error) if error.is_unknown_service() => Ok(Deregistered::WasUnknown),
            Err(error) => Err(error),
        }
    }

    /// A service by its id; `None` if the agent does not have it. With `watch`, a
    /// blocking query: returns when the service changes or disappears, or when the wait
    /// is over.
    pub async fn service(
        &self,
        id: &str,
        watch: Option<&Watch>,
    ) -> Result<Option<AgentService>, Error> {
        let mut call = self.call(Method::GET, &format!("/v1/agent/service/{}", segment(id)));
        if let Some(watch) = watch {
            call = watch.apply(call);
        }
        let asked = Instant::now();
        let found: Option<AgentService> = match call.answer().await {
            Ok(service) => Some(service),
            Err(error) if error.is_unknown_service() => None,
            // Older releases redirect from the path of an id such as `http://h/x`,
            // because Go's multiplexer cleans it.
            Err(error @ Error { cause: Cause::Refusal(300..=399, _), .. }) => {
                self.services().await.map_err(|_| error)?.remove(id)
            }
            Err(error) => return Err(error),
        };
        if let (Some(watch), Some(service)) = (watch, &found) {
            tokio::time::sleep(watch.held_back(service, asked.elapsed())).await;
        }
        Ok(found.inspect(warn_of_unreadable))
    }

    /// All services of the agent, by id. A field that can't be read is logged and
    /// affects that service only.
    pub async fn services(&self) -> Result<BTreeMap<String, AgentService>, Error> {
        let services: BTreeMap<String, AgentService> =
            self.call(Method::GET, "/v1/agent/services").answer().await?;
        services.values().for_each(warn_of_unreadable);
        Ok(services)
    }

    /// All checks of the agent, by id.
    pub async fn checks(&self) -> Result<BTreeMap<String, AgentCheck>, Error> {
        self.call(Method::GET, "/v1/agent/checks").answer().await
    }

    /// The instances of a service in the catalog.
    pub async fn catalog_service(&self, name: &str) -> Result<Vec<CatalogService>, Error> {
        self.call(Method::GET, &format!("/v1/catalog/service/{}", segment(name))).answer().await
    }

    /// The names of all services in the catalog.
    pub async fn catalog_names(&self) -> Result<Vec<String>, Error> {
        let call = self.call(Method::GET, "/v1/catalog/services");
        let tags: BTreeMap<String, Vec<String>> = call.answer().await?;
        Ok(tags.into_keys().collect())
    }

    /// The instances of a service that have this address under this name.
    pub async fn catalog_claims(
        &self,
        service: &str,
        name: &str,
        address: &str,
    ) -> Result<Vec<CatalogService>, Error> {
        let filter = format!("ServiceTaggedAddresses.{name}.Address == {address:?}");
        let path = format!("/v1/catalog/service/{}", segment(service));
        self.call(Method::GET, &path).query("filter", &filter).answer().await
    }

    /// The nodes on which a service of this id has checks.
    pub async fn nodes_of(&self, id: &str) -> Result<Vec<String>, Error> {
        let filter = format!("ServiceID == {id:?}");
        let call = self.call(Method::GET, "/v1/health/state/any").query("filter", &filter);
        let checks: Vec<AgentCheck> = call.answer().await?;
        Ok(checks.into_iter().map(|check| check.node).collect())
    }

    /// The healthy instances by which a proxy can reach a service. An empty datacenter
    /// or peer means the agent's own.
    pub async fn healthy_connect(
        &self,
        name: &str,
        datacenter: &str,
        peer: &str,
    ) -> Result<Vec<HealthyInstance>, Error> {
        let path = format!("/v1/health/connect/{}", segment(name));
        let mut call = self.call(Method::GET, &path).query("passing", "true");
        for (key, value) in [("dc", datacenter), ("peer", peer)] {
            if !value.is_empty() {
                call = call.query(key, value);
            }
        }
        call.answer().await
    }

    /// Sets the status of a TTL check, which also renews it.
    pub async fn update_check(
        &self,
        check_id: &str,
        status: Status,
        output: &str,
    ) -> Result<Renewed, Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Update<'a> {
            status: Status,
            output: &'a str,
        }
        let path = format!("/v1/agent/check/update/{}", segment(check_id));
        match self.call(Method::PUT, &path).json(&Update { status, output }).done().await {
            Ok(()) => Ok(Renewed::Done),
            Err(error) if error.is_unknown_check() => Ok(Renewed::Unknown),
            Err(error) => Err(error),
        }
    }

    /// A check by its id; `None` if the agent does not have it.
    pub async fn check(&self, id: &str) -> Result<Option<AgentCheck>, Error> {
        // Not all checks: a node may have hundreds.
        let filter = format!("CheckID == {id:?}");
        let call = self.call(Method::GET, "/v1/agent/checks").query("filter", &filter);
        let mut checks: BTreeMap<String, AgentCheck> = call.answer().await?;
        Ok(checks.remove(id))
    }

    /// The agent's checks of these services, by id.
    pub async fn checks_of(&self, ids: &[&str]) -> Result<BTreeMap<String, AgentCheck>, Error> {
        let each: Vec<_> = ids.iter().map(|id| format!("ServiceID == {id:?}")).collect();
        let filter = each.join(" or ");
        self.call(Method::GET, "/v1/agent/checks").query("filter", &filter).answer().await
    }

    /// Recreates a service's check, so that it starts with the status given here:
    /// re-registering keeps the status of an existing check.
    pub async fn restart_check(&self, service_id: &str, check: &Check) -> Result<(), Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(rename = "ID")]
            id: &'a str,
            #[serde(rename = "ServiceID")]
            service_id: &'a str,
            #[serde(flatten)]
            check: Check,
        }
        let id = &check.check_id;
        let path = format!("/v1/agent/check/deregister/{}", segment(id));
        match self.call(Method::PUT, &path).done().await {
            Ok(()) | Err(Error { cause: Cause::NotFound(_), .. }) => {}
            Err(error) if error.is_unknown_check() => {}
            Err(error) => return Err(error),
        }
        let body =
            Body { id, service_id, check: Check { check_id: String::new(), ..check.clone() } };
        self.call(Method::PUT, "/v1/agent/check/register").json(&body).done().await
    }

    /// The agent's configuration. With ACLs on, it requires `agent:read`.
    pub async fn agent_self(&self) -> Result<AgentSelf, Error> {
        self.call(Method::GET, "/v1/agent/self").answer().await
    }

    /// The servers' leader. It requires no token.
    pub async fn leader(&self) -> Result<Leader, Error> {
        let call = self.call(Method::GET, "/v1/status/leader");
        let request = call.request();
        let (body, shown) = call.exchange().await?;
        let address = serde_json::from_slice(&body)
            .map_err(|error| Error { request, cause: Cause::Garbage(error.to_string()) })?;
        Ok(Leader { address, certificate: shown.and_then(|shown| certificate::validity(&shown)) })
    }

    /// State of the peering with a cluster; `None` if the servers have no such peer.
    /// With ACLs on, it requires `peering:read`.
    pub async fn peer(&self, name: &str) -> Result<Option<PeerState>, Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Peering {
            state: PeerState,
        }
        let path = format!("/v1/peering/{}", segment(name));
        match self.call(Method::GET, &path).answer::<Peering>().await {
            Ok(Peering { state }) => Ok(Some(state)),
            Err(Error { cause: Cause::NotFound(words), .. })
                if words.starts_with("Peering not found") =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The datacenters that the servers know. It requires no token.
    pub async fn datacenters(&self) -> Result<Vec<String>, Error> {
        self.call(Method::GET, "/v1/catalog/datacenters").answer().await
    }

    /// The roots of Connect's CA. It requires no token.
    pub async fn connect_roots(&self) -> Result<Roots, Error> {
        self.call(Method::GET, "/v1/agent/connect/ca/roots").answer().await
    }

    /// The roots of Connect's CA, when they have changed or the wait is over.
    pub async fn next_connect_roots(&self, follow: &mut Follow) -> Result<Roots, Error> {
        let call = self.call(Method::GET, "/v1/agent/connect/ca/roots");
        follow.answer(call, Answered::parsed).await
    }

    /// A config entry; `None` if it does not exist.
    pub async fn config_entry<T: DeserializeOwned>(
        &self,
        kind: &str,
        name: &str,
    ) -> Result<Option<T>, Error> {
        let path = format!("/v1/config/{}/{}", segment(kind), segment(name));
        match self.call(Method::GET, &path).answer().await {
            Ok(entry) => Ok(Some(entry)),
            Err(Error { cause: Cause::NotFound(words), .. })
                if words.starts_with("Config entry not found") =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// A config entry, when it has changed or the wait is over; `None` if it does not exist.
    pub async fn next_config_entry<T: DeserializeOwned>(
        &self,
        kind: &str,
        name: &str,
        follow: &mut Follow,
    ) -> Result<Option<T>, Error> {
        let path = format!("/v1/config/{}/{}", segment(kind), segment(name));
        let found = |answered: Answered, request| match answered.status {
            404 => Ok(None),
            _ => answered.parsed(request).map(Some),
        };
        follow.answer(self.call(Method::GET, &path), found).await
    }

    /// A request with the agent's token, in its namespace and partition.
    pub(crate) fn call(&self, method: Method, path: &str) -> Call<'_> {
        let tenancy = [("ns", &self.config.namespace), ("partition", &self.config.partition)];
        let mut call = Call {
            agent: self,
            method,
            path: path.to_owned(),
            query: String::new(),
            body: None,
            token: self.token(),
            timeout: self.patience,
        };
        for (key, value) in tenancy {
            if let Some(value) = value {
                call = call.query(key, value);
            }
        }
        call
    }
}

/// Logs the fields of a service that could not be read.
fn warn_of_unreadable(service: &AgentService) {
    for problem in &service.unreadable {
        tracing::warn!(service = service.id, "the agent's entry is unreadable in part: {problem}");
    }
}

/// All characters that RFC 3986, section 2.3 does not call unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Percent-encodes one path segment, including slashes: an id may contain one.
pub fn segment(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

pub(crate) struct Call<'a> {
    agent: &'a Agent,
    method: Method,
    path: String,
    query: String,
    body: Option<Vec<u8>>,
    token: Option<SecretString>,
    timeout: Duration,
}

pub(crate) struct Answered {
    status: u16,
    body: Vec<u8>,
    /// The certificate that the agent presented.
    shown: Option<Vec<u8>>,
    /// The state index of the answer, for blocking queries.
    pub(crate) index: Option<u64>,
    /// Whether the ACL token may not see all results.
    pub(crate) is_filtered: bool,
}

// === impl Call ===

impl Call<'_> {
    pub(crate) fn query(mut self, key: &str, value: &str) -> Self {
        let separator = if self.query.is_empty() { '?' } else { '&' };
        self.query.push(separator);
        self.query.push_str(key);
        self.query.push('=');
        self.query.push_str(&segment(value));
        self
    }

    /// With this time limit.
    pub(crate) fn within(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Without the token: the request body carries a bearer token.
    pub(crate) fn anonymous(mut self) -> Self {
        self.token = None;
        self
    }

    pub(crate) fn json(mut self, body: &impl Serialize) -> Self {
        // Our request bodies serialize without errors: strings, numbers, lists and maps
        // with string keys.
        self.body = Some(serde_json::to_vec(body).expect("a registration is JSON"));
        self
    }

    /// Sends the request and ignores the answer's body.
    pub(crate) async fn done(self) -> Result<(), Error> {
        self.send().await.map(drop)
    }

    pub(crate) async fn answer<T: DeserializeOwned>(self) -> Result<T, Error> {
        let request = self.request();
        self.answered().await?.parsed(request)
    }

    async fn send(self) -> Result<Vec<u8>, Error> {
        self.exchange().await.map(|(body, _)| body)
    }

    /// Sends the request. Returns the answer's body and the certificate that the agent
    /// presented.
    async fn exchange(self) -> Result<(Vec<u8>, Option<Vec<u8>>), Error> {
        let request = self.request();
        let Answered { status, body, shown, .. } = self.answered().await?;
        if status == 200 {
            return Ok((body, shown));
        }
        let cause = Cause::of_status(status, &String::from_utf8_lossy(&body));
        Err(Error { request, cause })
    }

    /// Sends the request, and returns the answer whatever its status.
    pub(crate) async fn answered(self) -> Result<Answered, Error> {
        let request = self.request();
        let failed = |cause| Error { request: request.clone(), cause };
        // URLs treat these as path steps even if they are percent-encoded.
        if self.path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(failed(Cause::Unsendable("`.` and `..` are no ids".to_owned())));
        }
        let base = match &self.agent.config.address {
            Address::Url(_) => self.agent.config.address.to_string(),
            // The socket decides where the request goes; the host only fills the
            // header.
            Address::Unix(_) => "http://localhost".to_owned(),
        };
        let url = format!("{base}{}{}", self.path, self.query);
        let mut builder = self.agent.http.request(self.method, url).timeout(self.timeout);
        if let Some(token) = &self.token {
            builder = builder.header(TOKEN, secret_header(token.expose_secret()).map_err(failed)?);
        }
        if let Some(auth) = &self.agent.config.http_auth {
            let basic = format!("Basic {}", BASE64_STANDARD.encode(auth.expose_secret()));
            builder = builder.header(AUTHORIZATION, secret_header(&basic).map_err(failed)?);
        }
        if let Some(body) = self.body {
            builder = builder.body(body);
        }
        let response = builder.send().await.map_err(|error| failed(Cause::of(&error)))?;
        let status = response.status().as_u16();
        let shown = response.extensions().get::<TlsInfo>();
        let shown = shown.and_then(TlsInfo::peer_certificate).map(<[u8]>::to_vec);
        let index = response.headers().get("x-consul-index").and_then(|index| index.to_str().ok());
        let index = index.and_then(|index| index.parse().ok());
        let is_filtered = response.headers().contains_key(FILTERED);
        let body = read(response).await.map_err(failed)?;
        Ok(Answered { status, body, shown, index, is_filtered })
    }

    pub(crate) fn request(&self) -> Request {
        Request {
            method: match self.method {
                Method::PUT => "PUT",
                Method::POST => "POST",
                Method::DELETE => "DELETE",
                _ => "GET",
            },
            agent: self.agent.config.address.to_string(),
            path: self.path.clone(),
            node: self.agent.config.node.clone(),
        }
    }
}

// === impl Answered ===

impl Answered {
    /// The parsed body, if the status is 200. `request` is for the error.
    pub(crate) fn parsed<T: DeserializeOwned>(self, request: Request) -> Result<T, Error> {
        let cause = match self.status {
            200 => match serde_json::from_slice(&self.body) {
                Ok(parsed) => return Ok(parsed),
                Err(error) => Cause::Garbage(error.to_string()),
            },
            status => Cause::of_status(status, &String::from_utf8_lossy(&self.body)),
        };
        Err(Error { request, cause })
    }
}

fn secret_header(value: &str) -> Result<HeaderValue, Cause> {
    let mut header = HeaderValue::from_str(value).map_err(|_| {
        Cause::Unsendable("the token has characters that no HTTP header can carry".to_owned())
    })?;
    header.set_sensitive(true);
    Ok(header)
}

/// Reads a body of bounded size.
async fn read(mut response: Response) -> Result<Vec<u8>, Cause> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| Cause::of(&error))? {
        if body.len() + chunk.len() > LARGEST_ANSWER {
            return Err(Cause::Garbage(format!("more than {LARGEST_ANSWER} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slashes in ids. Reported in <https://github.com/hashicorp/consul/issues/9415>.
    #[test]
    fn an_id_is_one_path_segment() {
        assert_eq!(segment("web-1.a_b~"), "web-1.a_b~");
        assert_eq!(segment("a/b c\u{e9}%"), "a%2Fb%20c%C3%A9%25");
    }
}
