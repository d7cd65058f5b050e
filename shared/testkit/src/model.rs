//! An agent without faults, in memory: services, their checks, and other state that the
//! binaries use. It answers as Consul 1.8 does.
//!
//! Source: Consul's "Agent HTTP API", "Service - Agent HTTP API" and "Check - Agent
//! HTTP API" pages.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::fault::Route;
use crate::request::Request;

#[derive(Debug)]
pub struct Model {
    services: BTreeMap<String, Value>,
    checks: BTreeMap<String, Check>,
    /// The ACL tokens; `None` if ACLs are off.
    pub(crate) tokens: Option<BTreeSet<String>>,
    logins: usize,
    /// Lifetime of tokens in seconds. By a client's clock they have expired long ago,
    /// so that each is replaced at once.
    pub(crate) token_life: Option<u64>,
    /// Config entries by kind and name.
    pub(crate) entries: BTreeMap<(String, String), Value>,
    /// Central configuration merged into every proxy's own.
    pub(crate) proxy_config: Map<String, Value>,
    /// The agent's description of itself.
    pub(crate) about: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    service: String,
    has_ttl: bool,
    /// `passing`, `warning` or `critical`.
    pub status: String,
    /// Message of the last update.
    pub output: String,
}

/// Status, headers and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) content_hash: Option<String>,
    /// Whether the ACL token may not see all results.
    pub(crate) is_filtered: bool,
    pub(crate) body: String,
}

// === impl Model ===

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            services: BTreeMap::new(),
            checks: BTreeMap::new(),
            tokens: None,
            logins: 0,
            token_life: None,
            entries: BTreeMap::new(),
            proxy_config: Map::new(),
            about: about(),
        }
    }

    /// The services by id, as they were registered.
    pub fn services(&self) -> &BTreeMap<String, Value> {
        &self.services
    }

    /// A check by its id.
    pub fn check(&self, id: &str) -> Option<&Check> {
        self.checks.get(id)
    }

    /// Whether a check has that status.
    pub fn is(&self, status: &str, check: &str) -> bool {
        self.check(check).is_some_and(|check| check.status == status)
    }

    /// Forgets what was registered.
    pub(crate) fn wipe(&mut self) {
        self.services.clear();
        self.checks.clear();
    }

    /// Content hash of a service, for blocking queries.
    pub(crate) fn content_hash(&self, id: &str) -> Option<String> {
        self.service(id).map(|service| hash_of(&service))
    }

    pub(crate) fn answer(&mut self, request: &Request) -> Answer {
        let id = request.id().unwrap_or_default();
        let route = Route::asked_by(request);
        if let Some(denied) = self.denied(route, request) {
            return denied;
        }
        match route {
            Some(Route::Login) => self.log_in(),
            Some(Route::Logout) => {
                if let (Some(tokens), Some(token)) = (&mut self.tokens, &request.token) {
                    tokens.remove(token);
                }
                Answer::words(200, "true")
            }
            Some(Route::TokenSelf) => Answer::json(&json!({
                "SecretID": request.token,
                "CreateTime": "1970-01-01T00:00:00Z",
                "ExpirationTime": self.token_life.map(|life| {
                    format!("1970-01-01T{:02}:{:02}:{:02}Z", life / 3600, life / 60 % 60, life % 60)
                }),
            })),
            Some(Route::Register) => self.register(request),
            Some(Route::Deregister) => {
                self.deregister(&id);
                Answer::done()
            }
            Some(Route::Service) => match self.service(&id) {
                Some(mut service) => {
                    let hash = hash_of(&service);
                    service["ContentHash"] = hash.clone().into();
                    Answer { content_hash: Some(hash), ..Answer::json(&service) }
                }
                None => Answer::words(404, &format!("unknown service ID: {id}")),
            },
            Some(Route::Update) => self.update(&id, request),
            Some(Route::Config) => self.entry(request),
            Some(Route::AgentSelf) => Answer::json(&self.about),
            Some(Route::Leader) => Answer::json(&json!("127.0.0.1:8300")),
            Some(Route::Roots) => Answer::json(&json!({"ActiveRootID": "root-1", "Roots": []})),
            Some(Route::Checks) => Answer::json(&self.checks()),
            Some(Route::Health) => Answer::json(&self.instances(&id)),
            Some(Route::RegisterCheck) => self.register_check(request),
            Some(Route::DeregisterCheck) => {
                self.checks.remove(&id);
                Answer::done()
            }
            Some(Route::Any) | None => Answer::words(404, ""),
        }
    }

    /// With ACLs on, rejects a request without a known token.
    fn denied(&self, route: Option<Route>, request: &Request) -> Option<Answer> {
        let is_about_tokens =
            matches!(route, Some(Route::Login | Route::Logout | Route::TokenSelf));
        match (&self.tokens, &request.token) {
            (None, _) if is_about_tokens => Some(Answer::words(401, "ACL support disabled")),
            (None, _) => None,
            _ if matches!(route, Some(Route::Login | Route::Leader | Route::Roots)) => None,
            // Hides what the anonymous token may not see.
            (Some(_), None) if route == Some(Route::Checks) => Some(Answer::json(&json!({}))),
            (Some(tokens), Some(token)) if tokens.contains(token) => None,
            (Some(_), Some(_)) => Some(Answer::words(403, "ACL not found")),
            (Some(_), None) => Some(Answer::words(403, "Permission denied")),
        }
    }

    fn log_in(&mut self) -> Answer {
        self.logins += 1;
        let token = format!("token-{}", self.logins);
        if let Some(tokens) = &mut self.tokens {
            tokens.insert(token.clone());
        }
        Answer::json(&json!({"SecretID": token}))
    }

    fn register(&mut self, request: &Request) -> Answer {
        let service: Value = match serde_json::from_slice(&request.body) {
            Ok(service) => service,
            Err(error) => return Answer::words(400, &format!("Request decode failed: {error}")),
        };
        self.put(service, request.query_value("replace-existing-checks").is_some())
    }

    /// Registers or replaces a service.
    pub(crate) fn put(&mut self, service: Value, replace_checks: bool) -> Answer {
        let text = |key: &str| service[key].as_str().unwrap_or_default().to_owned();
        let (id, name) = (text("ID"), text("Name"));
        if name.is_empty() {
            return Answer::words(400, "Missing service name");
        }
        let id = if id.is_empty() { name } else { id };
        let mut checks = BTreeMap::new();
        for (index, check) in service["Checks"].as_array().into_iter().flatten().enumerate() {
            let check_id = check["CheckID"]
                .as_str()
                .map_or_else(|| format!("service:{id}:{}", index + 1), str::to_owned);
            let new = || Check {
                service: id.clone(),
                has_ttl: check["TTL"].is_string(),
                status: check["Status"].as_str().unwrap_or("critical").to_owned(),
                output: String::new(),
            };
            // An existing check keeps its status.
            let check = self.checks.remove(&check_id).unwrap_or_else(new);
            checks.insert(check_id, check);
        }
        if replace_checks {
            self.checks.retain(|_, check| check.service != id);
        }
        self.checks.extend(checks);
        self.services.insert(id, service);
        Answer::done()
    }

    /// Deregisters a service. Without ACLs, an unknown id is not an error.
    pub(crate) fn deregister(&mut self, id: &str) {
        self.services.remove(id);
        self.checks.retain(|_, check| check.service != id);
    }

    /// The agent's answer for a service, without its content hash.
    fn service(&self, id: &str) -> Option<Value> {
        let registered = self.services.get(id)?;
        let mut service = registered.as_object().cloned().unwrap_or_default();
        service.remove("Checks");
        service.insert("ID".to_owned(), id.into());
        let name = service.remove("Name").unwrap_or_default();
        service.insert("Service".to_owned(), name);
        for key in ["Tags", "Meta"] {
            service.entry(key).or_insert(Value::Null);
        }
        if let Some(proxy) = service.get_mut("Proxy") {
            let mut config = self.proxy_config.clone();
            if let Some(own) = proxy["Config"].as_object() {
                config.extend(own.clone());
            }
            proxy["Config"] = config.into();
        }
        Some(service.into())
    }

    fn checks(&self) -> Value {
        let checks = self.checks.iter().map(|(id, check)| {
            let Check { service, status, output, .. } = check;
            let name = self.name_of(service, id);
            (id.clone(), json!({"CheckID": id, "Name": name, "ServiceID": service, "Status": status, "Output": output}))
        });
        checks.collect::<Map<_, _>>().into()
    }

    /// The instances of a service, as if the servers had the agent's state at once.
    fn instances(&self, name: &str) -> Value {
        let checks = self.checks();
        let instances = self.services.iter().filter(|(_, service)| service["Name"] == name);
        instances
            .map(|(id, _)| {
                let own = checks.as_object().into_iter().flat_map(Map::values);
                let own: Vec<_> = own.filter(|check| check["ServiceID"] == id.as_str()).collect();
                json!({"Service": self.service(id), "Checks": own})
            })
            .collect()
    }

    /// The name of a check as it was registered.
    fn name_of(&self, service: &str, check_id: &str) -> Value {
        let checks = self.services.get(service).map(|service| &service["Checks"]);
        let mut checks = checks.and_then(Value::as_array).into_iter().flatten();
        checks
            .find(|check| check["CheckID"] == check_id)
            .and_then(|check| check["Name"].as_str())
            .unwrap_or_default()
            .into()
    }

    fn register_check(&mut self, request: &Request) -> Answer {
        let check = request.json();
        let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
        let service = text("ServiceID");
        if !self.services.contains_key(&service) {
            return Answer::words(500, &format!("ServiceID \"{service}\" does not exist"));
        }
        let status = match check["Status"].as_str() {
            Some(status) => status.to_owned(),
            None => "critical".to_owned(),
        };
        let has_ttl = check["TTL"].is_string();
        // An existing check keeps its status.
        self.checks.entry(text("ID")).or_insert(Check {
            service,
            has_ttl,
            status,
            output: String::new(),
        });
        Answer::done()
    }

    /// Restarts with its data: checks that the agent runs itself start critical again,
    /// others keep their status.
    pub(crate) fn restart(&mut self) {
        for check in self.checks.values_mut().filter(|check| !check.has_ttl) {
            "critical".clone_into(&mut check.status);
        }
    }

    fn update(&mut self, id: &str, request: &Request) -> Answer {
        let Some(check) = self.checks.get_mut(id).filter(|check| check.has_ttl) else {
            return Answer::words(500, &format!("CheckID \"{id}\" does not have associated TTL"));
        };
        let update = request.json();
        let status = update["Status"].as_str().unwrap_or_default();
        if !["passing", "warning", "critical"].contains(&status) {
            return Answer::words(400, &format!("Invalid check status: '{status}'"));
        }
        status.clone_into(&mut check.status);
        update["Output"].as_str().unwrap_or_default().clone_into(&mut check.output);
        Answer::done()
    }

    fn entry(&self, request: &Request) -> Answer {
        let mut segments = request.path.rsplit('/').map(str::to_owned);
        let (name, kind) = (segments.next().unwrap_or_default(), segments.next());
        let key = (kind.unwrap_or_default(), name);
        match self.entries.get(&key) {
            Some(entry) => Answer::json(entry),
            None => Answer::words(
                404,
                &format!("Config entry not found for \"{}\" / \"{}\"", key.0, key.1),
            ),
        }
    }
}

fn hash_of(service: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    service.to_string().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

// === impl Answer ===

impl Answer {
    pub(crate) fn words(status: u16, words: &str) -> Self {
        Self { status, content_hash: None, is_filtered: false, body: words.to_owned() }
    }

    fn done() -> Self {
        Self::words(200, "")
    }

    fn json(value: &Value) -> Self {
        Self::words(200, &value.to_string())
    }
}

/// Description of itself by a 1.8 agent, as far as it is read.
fn about() -> Value {
    json!({
        "Config": {"Datacenter": "dc1", "NodeName": "n1", "Version": "1.8.7"},
        "DebugConfig": {"GRPCPort": 8502},
        "xDS": {"SupportedProxies": {"envoy": ["1.14.5"]}},
    })
}
