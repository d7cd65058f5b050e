//! The state of one delta stream. Pure: requests and resources go in, responses
//! come out.
//!
//! The rules are those of "Incremental xDS", "Eventual consistency
//! considerations" and "Resource warming" in Envoy's page "xDS REST and gRPC
//! protocol":
//! - a type has at most one response that Envoy hasn't answered yet;
//! - make before break: clusters, then their endpoints, then listeners. Envoy
//!   acknowledges a cluster when it is warm, so listeners wait for that;
//!   endpoints don't, because a cluster gets warm by them;
//! - what nothing refers to any more is removed last;
//! - a changed cluster wants its endpoints again, even if they are the same.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as Sent,
};

use super::resources::{Kind, Resource};

/// The version of what must be sent again; no content has it.
const OUTDATED: &str = "";

/// What Envoy subscribes to, has, and is to have.
#[derive(Default)]
pub struct Session {
    types: [Type; Kind::ALL.len()],
    /// Whether it is known what Envoy is to have.
    set: bool,
    nonces: u64,
}

/// What a request says of the response before it.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it only changes subscriptions.
    None,
    /// Envoy uses what it got.
    Ack(Kind),
    /// Envoy refuses what it got, and says why.
    Nack(Kind, String),
    /// It asks for a type that we don't serve.
    Unknown(String),
}

/// The state of one type of resources.
#[derive(Default)]
struct Type {
    /// The resources that there are.
    wanted: BTreeMap<String, Resource>,
    /// The names that Envoy asked for.
    names: BTreeSet<String>,
    /// Whether Envoy asked for all there are.
    wildcard: bool,
    /// The versions that Envoy has; none for a name of which it knows that there
    /// is no resource.
    held: BTreeMap<String, Option<String>>,
    /// Whether the first request for this type has come.
    begun: bool,
    /// The response that isn't answered yet.
    pending: Option<String>,
}

// === impl Session ===

impl Session {
    /// Sets the resources that Envoy is to have.
    pub fn set(&mut self, resources: Vec<Resource>) {
        self.set = true;
        for it in &mut self.types {
            it.wanted.clear();
        }
        for resource in resources {
            let wanted = &mut self.types[resource.kind as usize].wanted;
            wanted.insert(resource.name.clone(), resource);
        }
    }

    /// Takes in a request of Envoy's.
    pub fn request(&mut self, request: &DeltaDiscoveryRequest) -> Verdict {
        let Some(kind) = Kind::from_type_url(&request.type_url) else {
            return Verdict::Unknown(request.type_url.clone());
        };
        let it = &mut self.types[kind as usize];
        it.subscribe(kind, request);
        // An answer to anything but the last response says nothing new.
        if it.pending.is_none() || it.pending.as_ref() != Some(&request.response_nonce) {
            return Verdict::None;
        }
        it.pending = None;
        match &request.error_detail {
            None => Verdict::Ack(kind),
            // What was refused stays noted as sent: the same again would be
            // refused again.
            Some(status) => Verdict::Nack(kind, status.message.clone()),
        }
    }

    /// The next response to send; none until something else happens.
    pub fn respond(&mut self) -> Option<DeltaDiscoveryResponse> {
        if !self.set {
            return None;
        }
        self.make(Kind::Cluster)
            .or_else(|| self.make(Kind::Endpoints))
            .or_else(|| self.settled(&[Kind::Cluster, Kind::Endpoints])?.make(Kind::Listener))
            .or_else(|| self.settled(&Kind::ALL)?.remove(Kind::Cluster))
            .or_else(|| self.settled(&Kind::ALL)?.remove(Kind::Endpoints))
    }

    fn settled(&mut self, kinds: &[Kind]) -> Option<&mut Self> {
        let settled = kinds.iter().all(|kind| self.types[*kind as usize].pending.is_none());
        settled.then_some(self)
    }

    /// What is new or changed. A listener that has gone is told with it, because
    /// another may have taken its port; and so is everything that Envoy waits for
    /// in vain.
    fn make(&mut self, kind: Kind) -> Option<DeltaDiscoveryResponse> {
        let it = &self.types[kind as usize];
        let changed = it.changed();
        let mut gone = it.gone();
        gone.retain(|name| kind == Kind::Listener || it.lacks(name));
        self.send(kind, changed, gone)
    }

    fn remove(&mut self, kind: Kind) -> Option<DeltaDiscoveryResponse> {
        let gone = self.types[kind as usize].gone();
        self.send(kind, vec![], gone)
    }

    fn send(
        &mut self,
        kind: Kind,
        changed: Vec<Resource>,
        gone: Vec<String>,
    ) -> Option<DeltaDiscoveryResponse> {
        if (changed.is_empty() && gone.is_empty()) || self.types[kind as usize].pending.is_some() {
            return None;
        }
        if kind == Kind::Cluster {
            let endpoints = &mut self.types[Kind::Endpoints as usize];
            for cluster in &changed {
                endpoints.held.insert(cluster.name.clone(), Some(OUTDATED.to_owned()));
            }
        }
        self.nonces += 1;
        let nonce = self.nonces.to_string();
        let it = &mut self.types[kind as usize];
        it.pending = Some(nonce.clone());
        for resource in &changed {
            it.held.insert(resource.name.clone(), Some(resource.version.clone()));
        }
        for name in &gone {
            if it.names.contains(name) {
                it.held.insert(name.clone(), None);
            } else {
                it.held.remove(name);
            }
        }
        Some(DeltaDiscoveryResponse {
            type_url: kind.type_url(),
            nonce,
            resources: changed.into_iter().map(Sent::from).collect(),
            removed_resources: gone,
            ..DeltaDiscoveryResponse::default()
        })
    }
}

// === impl Type ===

impl Type {
    fn subscribe(&mut self, kind: Kind, request: &DeltaDiscoveryRequest) {
        if !std::mem::replace(&mut self.begun, true) {
            // After a reconnect Envoy says what it still has. What is outdated
            // since this stream began stays so.
            for (name, version) in &request.initial_resource_versions {
                self.held.entry(name.clone()).or_insert_with(|| Some(version.clone()));
            }
            // A first request without names asks for all, where that is possible.
            self.wildcard = kind != Kind::Endpoints && request.resource_names_subscribe.is_empty();
        }
        for name in &request.resource_names_subscribe {
            if name == "*" {
                self.wildcard = true;
            } else {
                self.names.insert(name.clone());
                // Whoever asks for something gets it, even if it got it before.
                if !request.initial_resource_versions.contains_key(name) {
                    self.held.remove(name);
                }
            }
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
                self.held.retain(|name, _| self.names.contains(name));
            } else {
                self.names.remove(name);
                self.held.remove(name);
            }
        }
    }

    fn is_subscribed(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    fn lacks(&self, name: &str) -> bool {
        self.held.get(name).is_none_or(|held| held.as_deref() == Some(OUTDATED))
    }

    fn changed(&self) -> Vec<Resource> {
        let held = |name| self.held.get(name).and_then(Option::as_ref);
        let wanted = self.wanted.values().filter(|it| self.is_subscribed(&it.name));
        wanted.filter(|it| held(&it.name) != Some(&it.version)).cloned().collect()
    }

    /// The names that Envoy has, or asks for, although there is no such resource.
    fn gone(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.held.keys().chain(&self.names).collect();
        let told = |name: &String| self.held.get(name) == Some(&None);
        let gone = |name: &&String| {
            self.is_subscribed(name) && !self.wanted.contains_key(*name) && !told(name)
        };
        names.into_iter().filter(gone).cloned().collect()
    }
}

impl From<Resource> for Sent {
    fn from(Resource { name, version, body, .. }: Resource) -> Self {
        Self { name, version, resource: Some(body), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::google::rpc::Status;

    use super::*;

    fn resource(kind: Kind, name: &str, version: &str) -> Resource {
        let [name, version] = [name, version].map(str::to_owned);
        Resource { kind, name, version, body: envoy_types::pb::google::protobuf::Any::default() }
    }

    /// A cluster with its endpoints, and a listener that leads to it.
    fn world(version: &str, names: &[&str]) -> Vec<Resource> {
        let kinds = |name: &&str| Kind::ALL.map(|kind| resource(kind, name, version));
        names.iter().flat_map(kinds).collect()
    }

    /// An Envoy that follows the protocol.
    #[derive(Default)]
    struct Client(Session);

    impl Client {
        fn subscribe(&mut self, kind: Kind, names: &[&str]) {
            self.reconnect(kind, names, &[]);
        }

        fn reconnect(&mut self, kind: Kind, names: &[&str], has: &[(&str, &str)]) {
            let versions = has.iter().map(|(name, it)| (name.to_string(), it.to_string()));
            let verdict = self.0.request(&DeltaDiscoveryRequest {
                type_url: kind.type_url(),
                resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
                initial_resource_versions: versions.collect::<HashMap<_, _>>(),
                ..DeltaDiscoveryRequest::default()
            });
            assert_eq!(verdict, Verdict::None);
        }

        /// The next response: kind, what is sent, what is removed.
        fn receive(&mut self) -> Option<(DeltaDiscoveryResponse, Kind, String)> {
            let it = self.0.respond()?;
            let kind = Kind::from_type_url(&it.type_url).unwrap();
            let sent = it.resources.iter().map(|it| format!("+{}@{}", it.name, it.version));
            let removed = it.removed_resources.iter().map(|name| format!("-{name}"));
            let text = sent.chain(removed).collect::<Vec<_>>().join(" ");
            Some((it, kind, text))
        }

        fn answer(&mut self, it: &DeltaDiscoveryResponse, error: Option<&str>) -> Verdict {
            self.0.request(&DeltaDiscoveryRequest {
                type_url: it.type_url.clone(),
                response_nonce: it.nonce.clone(),
                error_detail: error
                    .map(|message| Status { message: message.into(), ..Status::default() }),
                ..DeltaDiscoveryRequest::default()
            })
        }

        /// Everything that comes while all is acknowledged at once.
        fn drain(&mut self) -> Vec<String> {
            let mut seen = Vec::new();
            while let Some((it, kind, text)) = self.receive() {
                assert_eq!(self.answer(&it, None), Verdict::Ack(kind));
                seen.push(format!("{kind:?} {text}"));
            }
            seen
        }

        /// One that has `names` in version 1.
        fn with(names: &[&str]) -> Self {
            let mut it = Self::default();
            it.subscribe(Kind::Cluster, &[]);
            it.subscribe(Kind::Endpoints, names);
            it.subscribe(Kind::Listener, &["*"]);
            it.0.set(world("1", names));
            it.drain();
            it
        }
    }

    #[test]
    fn a_new_envoy_gets_everything_in_order() {
        let mut it = Client::default();
        it.subscribe(Kind::Listener, &[]);
        it.subscribe(Kind::Cluster, &[]);
        assert_eq!(it.drain(), [""; 0], "nothing is known yet");

        it.0.set(world("1", &["a", "b"]));
        assert_eq!(it.drain(), ["Cluster +a@1 +b@1", "Listener +a@1 +b@1"]);
        it.subscribe(Kind::Endpoints, &["b"]);
        assert_eq!(it.drain(), ["Endpoints +b@1"], "only what was asked for");
        it.0.set(world("1", &["a", "b"]));
        assert_eq!(it.drain(), [""; 0], "nothing has changed");
    }

    #[test]
    fn only_what_has_changed_is_sent() {
        let mut it = Client::with(&["a", "b"]);
        let mut next = world("1", &["a", "b"]);
        next[1] = resource(Kind::Endpoints, "a", "2");
        it.0.set(next.clone());
        assert_eq!(it.drain(), ["Endpoints +a@2"]);
        next[2] = resource(Kind::Listener, "a", "2");
        it.0.set(next);
        assert_eq!(it.drain(), ["Listener +a@2"]);
    }

    #[test]
    fn a_changed_cluster_gets_its_endpoints_again() {
        let mut it = Client::with(&["a", "b"]);
        let mut next = world("1", &["a", "b"]);
        next[0] = resource(Kind::Cluster, "a", "2");
        it.0.set(next);
        assert_eq!(it.drain(), ["Cluster +a@2", "Endpoints +a@1"]);
    }

    #[test]
    fn listeners_wait_until_clusters_are_warm_and_endpoints_do_not() {
        let mut it = Client::with(&["a"]);
        it.0.set(world("2", &["a"]));
        let (cluster, kind, _) = it.receive().unwrap();
        assert_eq!(kind, Kind::Cluster);
        let (endpoints, kind, _) = it.receive().unwrap();
        assert_eq!(kind, Kind::Endpoints);
        assert!(it.receive().is_none(), "the listener waits");

        it.answer(&endpoints, None);
        assert!(it.receive().is_none(), "the listener still waits");
        it.answer(&cluster, None);
        assert_eq!(it.drain(), ["Listener +a@2"]);
    }

    #[test]
    fn what_a_listener_refers_to_is_removed_after_it() {
        let mut it = Client::with(&["a", "b"]);
        it.0.set(world("1", &["b"]));
        let (listener, kind, text) = it.receive().unwrap();
        assert_eq!((kind, &*text), (Kind::Listener, "-a"));
        assert!(it.receive().is_none(), "the cluster is still in use");
        it.answer(&listener, None);
        assert_eq!(it.drain(), ["Cluster -a", "Endpoints -a"]);

        it.0.set(world("3", &["a", "b"]));
        let back = ["Cluster +a@3 +b@3", "Endpoints +a@3 +b@3", "Listener +a@3 +b@3"];
        assert_eq!(it.drain(), back);
    }

    #[test]
    fn a_reconnecting_envoy_gets_only_what_it_lacks() {
        let mut it = Client::default();
        it.reconnect(Kind::Cluster, &[], &[("a", "1"), ("b", "1"), ("old", "1")]);
        it.reconnect(Kind::Endpoints, &["a", "b"], &[("a", "1"), ("b", "0")]);
        it.reconnect(Kind::Listener, &[], &[("a", "1"), ("b", "1")]);
        assert_eq!(it.drain(), [""; 0], "nothing is removed while nothing is known");
        it.0.set(world("1", &["a", "b"]));
        assert_eq!(it.drain(), ["Endpoints +b@1", "Cluster -old"]);
    }

    #[test]
    fn a_cluster_that_changed_before_its_endpoints_were_asked_for_gets_them() {
        let mut it = Client::default();
        it.reconnect(Kind::Cluster, &["*"], &[("a", "0")]);
        it.0.set(world("1", &["a"]));
        assert_eq!(it.drain(), ["Cluster +a@1"]);
        it.reconnect(Kind::Endpoints, &["a"], &[("a", "1")]);
        assert_eq!(it.drain(), ["Endpoints +a@1"]);
    }

    #[test]
    fn what_envoy_refuses_is_not_sent_again_until_it_changes() {
        let mut it = Client::with(&["a"]);
        let mut next = world("1", &["a"]);
        next[2] = resource(Kind::Listener, "a", "bad");
        it.0.set(next.clone());
        let (response, ..) = it.receive().unwrap();
        let verdict = it.answer(&response, Some("no such filter"));
        assert_eq!(verdict, Verdict::Nack(Kind::Listener, "no such filter".into()));
        assert_eq!(it.drain(), [""; 0]);
        next[2] = resource(Kind::Listener, "a", "good");
        it.0.set(next);
        assert_eq!(it.drain(), ["Listener +a@good"]);
    }

    #[test]
    fn an_answer_to_an_older_response_says_nothing() {
        let mut it = Client::with(&["a"]);
        it.0.set(world("2", &["a"]));
        let (response, ..) = it.receive().unwrap();
        let stale = DeltaDiscoveryResponse { nonce: "1".into(), ..response.clone() };
        assert_eq!(it.answer(&stale, None), Verdict::None);
        assert_eq!(it.answer(&response, None), Verdict::Ack(Kind::Cluster));
        assert_eq!(it.answer(&response, None), Verdict::None);
    }

    #[test]
    fn a_name_that_does_not_exist_is_answered_once() {
        let mut it = Client::with(&["a"]);
        it.subscribe(Kind::Endpoints, &["x"]);
        assert_eq!(it.drain(), ["Endpoints -x"]);
        it.0.set(world("1", &["a"]));
        assert_eq!(it.drain(), [""; 0]);
    }

    #[test]
    fn a_cluster_that_goes_while_it_warms_does_not_wait_for_endpoints() {
        let mut it = Client::with(&["a"]);
        it.0.set(world("1", &["a", "b"]));
        let (cluster, _, text) = it.receive().unwrap();
        assert_eq!(text, "+b@1");
        it.0.set(world("1", &["a"]));
        it.subscribe(Kind::Endpoints, &["b"]);
        assert_eq!(it.drain(), ["Endpoints -b"], "although the cluster isn't warm");
        it.answer(&cluster, None);
        assert_eq!(it.drain(), ["Cluster -b"]);
    }

    #[test]
    fn asking_again_and_unsubscribing() {
        let mut it = Client::with(&["a", "b"]);
        it.subscribe(Kind::Endpoints, &["a"]);
        assert_eq!(it.drain(), ["Endpoints +a@1"]);
        it.0.request(&DeltaDiscoveryRequest {
            type_url: Kind::Endpoints.type_url(),
            resource_names_unsubscribe: vec!["a".into()],
            ..DeltaDiscoveryRequest::default()
        });
        let mut next = world("1", &["a", "b"]);
        next[1] = resource(Kind::Endpoints, "a", "2");
        next[4] = resource(Kind::Endpoints, "b", "2");
        it.0.set(next);
        assert_eq!(it.drain(), ["Endpoints +b@2"]);
    }

    #[test]
    fn an_unknown_type_is_left_alone() {
        let type_url = "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned();
        let request = DeltaDiscoveryRequest {
            type_url: type_url.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        assert_eq!(Session::default().request(&request), Verdict::Unknown(type_url));
    }
}
