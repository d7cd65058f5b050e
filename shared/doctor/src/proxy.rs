//! Checks a running Envoy through its admin interface, without changing anything. The
//! certificate is not requested from the agent, which would then sign one and renew it for
//! days.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use certificate::rfc3339;
use consul::answer::AgentService;
use envoy::{About, Envoy, Error, Leaf};
use registration::service::Kind;

use crate::finding::{Finding, Reason, Verdict, word};
use crate::now;

/// Checks the Envoy behind an admin listener. `services` are the agent's services by ID;
/// `None` if unknown.
pub async fn examine_envoy(
    admin: SocketAddr,
    services: Option<&BTreeMap<String, AgentService>>,
) -> Finding {
    let envoy = Envoy::at(admin);
    let seen = match envoy.about().await {
        Ok(about) => about,
        Err(error) => return unreachable(admin, &error),
    };
    let asked = async {
        Ok::<_, Error>(Seen {
            is_connected: envoy.is_connected().await?,
            leaves: envoy.leaves().await?,
            rejections: envoy.rejections().await?,
        })
    };
    match asked.await {
        Ok(rest) => judge_envoy(admin, &seen, &rest, services, &rfc3339(now())),
        Err(error) => unreachable(admin, &error),
    }
}

/// Envoy's answers, besides [`About`].
struct Seen {
    is_connected: bool,
    leaves: Vec<Leaf>,
    rejections: String,
}

/// The Envoy that is judged.
struct Judged<'a> {
    admin: SocketAddr,
    /// The id of its proxy.
    proxy: &'a str,
    state: &'a str,
}

/// The subject of these findings; `Envoy` is the subject of the check of the release.
const WHAT: &str = "sidecar";

fn unreachable(admin: SocketAddr, error: &Error) -> Finding {
    let id = admin.to_string();
    let look = format!("curl --silent http://{admin}/server_info");
    match error {
        Error::Connect(_, problem) => {
            let detail = format!("Envoy's admin listener does not answer: {problem}");
            Finding::new(WHAT, Verdict::Wrong, Reason::EnvoyDown, detail)
                .of(&id)
                .hint("Envoy does not run, or uses another --admin-bind: start it, or find out why it ended")
                .next("journalctl --lines 50 --unit 'connect-sidecar@*'")
        }
        _ => Finding::new(WHAT, Verdict::Unknown, Reason::NotTold, error.to_string())
            .of(&id)
            .hint("Envoy hangs, or something else listens there")
            .next(look),
    }
}

fn judge_envoy(
    admin: SocketAddr,
    about: &About,
    seen: &Seen,
    services: Option<&BTreeMap<String, AgentService>>,
    now: &str,
) -> Finding {
    let envoy = Judged { admin, proxy: &about.node.id, state: &about.state };
    let service = services.and_then(|services| services.get(envoy.proxy));
    if services.is_some() && service.is_none() {
        return envoy.foreign();
    }
    if !seen.is_connected {
        return envoy.without_stream();
    }
    if is_rejected(&seen.rejections) {
        return envoy.rejecting();
    }
    // A mesh gateway passes TLS through and has no certificate of its own.
    let needs_leaf = service.is_none_or(|service| service.kind != Kind::MeshGateway);
    let leaf = seen.leaves.iter().find(|leaf| uri_of(leaf).is_some());
    match leaf {
        None if needs_leaf => return envoy.without_leaf(),
        Some(leaf) if leaf.expiration_time.as_str() < now => return envoy.expired(leaf),
        _ => {}
    }
    match envoy.state {
        "LIVE" => envoy.live(leaf),
        "DRAINING" => envoy.draining(),
        _ => envoy.starting(),
    }
}

// === impl Judged ===

impl Judged<'_> {
    fn foreign(&self) -> Finding {
        let Self { proxy, .. } = self;
        let detail = format!("Envoy runs as `{proxy}`, which is not registered with this agent");
        self.found(Verdict::Wrong, Reason::EnvoyForeign, detail)
            .hint("without its registration it gets no configuration: register it again, or name the agent that has it with --http-addr")
            .next("connect-register status")
    }

    fn without_stream(&self) -> Finding {
        let Self { proxy, state, .. } = self;
        let detail = format!("Envoy (`{proxy}`, {state}) has no xDS stream to the agent");
        self.found(Verdict::Wrong, Reason::NoStream, detail)
            .hint("it keeps its last configuration and misses changes of endpoints and intentions: see `gRPC` and `token` above, and search the agent's log for `envoy`")
            .next(self.ask("/stats?filter=local_agent"))
    }

    fn rejecting(&self) -> Finding {
        let Self { proxy, state, .. } = self;
        let detail = format!("Envoy (`{proxy}`, {state}) rejected its last configuration");
        self.found(Verdict::Wrong, Reason::Rejected, detail)
            .hint("see `version` and `Envoy` above, and escape hatches such as envoy_public_listener_json; Envoy's log has the reason")
            .next(self.ask("/config_dump?resource=dynamic_listeners"))
    }

    fn without_leaf(&self) -> Finding {
        let Self { proxy, state, .. } = self;
        let detail = format!("Envoy (`{proxy}`, {state}) has no Connect certificate");
        self.found(Verdict::Wrong, Reason::NoLeaf, detail)
            .hint("the agent gets it from the servers: the proxy's ACL token needs service:write on the service, and Connect's CA must work; see `Connect` above, and search the agent's log for `leaf`")
            .next("consul connect ca get-config")
    }

    fn expired(&self, leaf: &Leaf) -> Finding {
        let (proxy, until) = (self.proxy, &leaf.expiration_time);
        let detail = format!("Envoy (`{proxy}`): its certificate expired {until}");
        self.found(Verdict::Wrong, Reason::LeafExpired, detail)
            .hint("every connection fails: the agent could not renew it; search its log for `leaf`, and compare the clocks")
            .next(self.ask("/certs"))
    }

    fn draining(&self) -> Finding {
        let detail = format!("Envoy (`{}`) is draining", self.proxy);
        self.found(Verdict::Warning, Reason::EnvoyDraining, detail)
            .hint("it is being stopped, and soon ends")
            .next(self.ask("/server_info"))
    }

    fn starting(&self) -> Finding {
        let Self { proxy, state, .. } = self;
        let detail = format!("Envoy (`{proxy}`) is {state}: it waits for configuration");
        self.found(Verdict::Wrong, Reason::EnvoyStarting, detail)
            .hint("it listens once the configuration is complete: see what is still warming")
            .next(self.ask("/config_dump?resource=dynamic_listeners"))
    }

    fn live(&self, leaf: Option<&Leaf>) -> Finding {
        let Self { proxy, .. } = self;
        let detail = match leaf.and_then(|leaf| Some((uri_of(leaf)?, &leaf.expiration_time))) {
            Some((uri, until)) => {
                format!("Envoy (`{proxy}`) is live; its certificate is for {uri}, until {until}")
            }
            None => format!("Envoy (`{proxy}`) is live"),
        };
        Finding::ok(WHAT, detail).of(&self.admin.to_string())
    }

    fn found(&self, verdict: Verdict, reason: Reason, detail: String) -> Finding {
        Finding::new(WHAT, verdict, reason, detail).of(&self.admin.to_string())
    }

    /// The command that shows a page of Envoy's admin interface.
    fn ask(&self, path: &str) -> String {
        format!("curl --silent {}", word(&format!("http://{}{path}", self.admin)))
    }
}

fn uri_of(leaf: &Leaf) -> Option<&str> {
    leaf.subject_alt_names.iter().map(|name| name.uri.as_str()).find(|uri| !uri.is_empty())
}

/// Whether any of Envoy's counters is above 0.
fn is_rejected(counters: &str) -> bool {
    let mut values = counters.lines().filter_map(|line| line.rsplit_once(": "));
    values.any(|(_, count)| count.trim() != "0")
}

#[cfg(test)]
mod tests {
    use envoy::{AltName, Node};

    use super::*;

    const NOW: &str = "2026-11-25T03:00:00Z";

    fn judge(change: impl FnOnce(&mut About, &mut Seen, &mut AgentService)) -> Finding {
        let mut about = About { state: "LIVE".to_owned(), node: Node { id: "web-p".to_owned() } };
        let leaf = Leaf {
            subject_alt_names: vec![AltName { uri: "spiffe://d/svc/web".to_owned() }],
            expiration_time: "2026-11-27T03:00:00Z".to_owned(),
            ..Leaf::default()
        };
        let rejections =
            "cluster_manager.cds.update_rejected: 0\nlistener_manager.lds.update_rejected: 0\n";
        let mut seen =
            Seen { is_connected: true, leaves: vec![leaf], rejections: rejections.to_owned() };
        let mut service = AgentService {
            id: "web-p".to_owned(),
            kind: Kind::ConnectProxy,
            ..AgentService::default()
        };
        change(&mut about, &mut seen, &mut service);
        let services = [(service.id.clone(), service)].into();
        let admin = "127.0.0.1:19000".parse().unwrap();
        judge_envoy(admin, &about, &seen, Some(&services), NOW)
    }

    #[test]
    fn an_envoy_is_judged_by_its_stream_certificate_and_state() {
        type Change = fn(&mut About, &mut Seen, &mut AgentService);
        let wrong: [(Reason, Change); 6] = [
            (Reason::EnvoyForeign, |_, _, service| service.id = "other".to_owned()),
            (Reason::NoStream, |_, seen, _| seen.is_connected = false),
            (Reason::NoLeaf, |about, seen, _| {
                seen.leaves.clear();
                about.state = "PRE_INITIALIZING".to_owned();
            }),
            (Reason::LeafExpired, |_, seen, _| {
                seen.leaves[0].expiration_time = "2026-11-24T03:00:00Z".to_owned();
            }),
            (Reason::Rejected, |_, seen, _| {
                seen.rejections = "listener_manager.lds.update_rejected: 2".to_owned();
            }),
            (Reason::EnvoyStarting, |about, _, _| about.state = "INITIALIZING".to_owned()),
        ];
        for (reason, change) in wrong {
            let found = judge(change);
            assert_eq!((found.verdict, found.reason), (Verdict::Wrong, Some(reason)), "{found:?}");
            assert!(found.hint.is_some() && found.next.is_some(), "{found:?}");
        }
        let well = judge(|_, _, _| {});
        assert_eq!(well.verdict, Verdict::Ok, "{well:?}");
        assert!(well.detail.contains("for spiffe://d/svc/web, until 2026-11-27"), "{well:?}");
        let gateway = judge(|_, seen, service| {
            seen.leaves.clear();
            service.kind = Kind::MeshGateway;
        });
        assert_eq!(gateway.verdict, Verdict::Ok, "{gateway:?}");
        let draining = judge(|about, _, _| about.state = "DRAINING".to_owned());
        assert_eq!(draining.verdict, Verdict::Warning);
    }
}
