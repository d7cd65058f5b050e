//! The kubelet's probes of a transparent pod. They would reach Envoy's public listener,
//! which requires mutual TLS. So HTTP and gRPC probes are sent to Envoy listeners that each
//! serve one path in plain text, and the others to the sidecar, which runs them over
//! loopback.

use probe::{NotRun, Probe};
use serde_json::{Map, Value, json};

use super::taken::Owner;
use super::{Surroundings, Taken};
use crate::annotation::EXCLUDE_INBOUND_PORTS;
use crate::outcome::{Denial, Reason, Warnings};
use crate::pod::Container;

/// A path that Envoy serves without mutual TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposed {
    /// The path, without a query.
    pub(crate) path: String,
    /// Port on which Envoy serves it.
    pub(crate) listener: u16,
    /// Port on which the application serves it.
    pub(crate) port: u16,
    /// Whether it is HTTP/2, as for gRPC.
    pub(crate) http2: bool,
}

/// A probe that is changed to use another port or handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// JSON pointer of the object to change.
    pub(crate) pointer: String,
    /// Members to set in that object.
    pub(crate) members: Map<String, Value>,
}

/// Probes that the sidecar runs over loopback.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Relay {
    /// Port on which the kubelet calls the sidecar.
    pub(crate) port: u16,
    /// Each probe with the path at which the sidecar runs it.
    pub(crate) probes: Vec<(String, Probe)>,
}

/// How the pod's probes are changed.
#[derive(Debug, Default)]
pub(super) struct Probes {
    pub(super) exposed: Vec<Exposed>,
    pub(super) rewritten: Vec<Rewritten>,
    pub(super) relay: Option<Relay>,
    /// Ports that bypass Envoy, because their probe can't be rewritten.
    pub(super) excluded: Vec<u16>,
}

/// Kinds of probes, each with the first port of its listeners, as in consul-k8s.
const KINDS: [(&str, u16); 3] =
    [("readinessProbe", 20300), ("livenessProbe", 20400), ("startupProbe", 20500)];

/// Maximum number of listeners of a kind.
const LISTENERS: u16 = 100;

/// Preferred port of the sidecar's probe endpoint; if it is taken, a following one is used.
const RELAY: u16 = 20700;

/// Fields of a probe's handler.
const HANDLERS: [&str; 4] = ["exec", "grpc", "httpGet", "tcpSocket"];

/// The gRPC method that the kubelet calls.
///
/// Source: "GRPC Health Checking Protocol" of gRPC's documentation.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

enum Call<'p> {
    /// An HTTP path; with `http2`, a gRPC method.
    Path { path: &'p str, http2: bool },
    /// HTTPS or a TCP connection, for which Envoy gets no listener.
    Other,
}

/// Plans the changes, and marks the new listeners' ports as taken. Init containers run
/// after the sidecar if `sidecar_is_first`.
pub(super) fn probes(
    around: &Surroundings<'_>,
    sidecar_is_first: bool,
    excluded: &[u16],
    taken: &mut Taken<'_>,
    warnings: &mut Warnings,
) -> Result<Probes, Denial> {
    let mut probes = Probes::default();
    let long_running = around.init_containers.iter().filter(|init| init.is_long_running());
    for container in around.containers.iter().chain(long_running.clone()) {
        warn_of_hooks(*container, warnings);
    }
    // These containers' startup probes must succeed before the kubelet starts the sidecar.
    for container in long_running.clone().filter(|_| !sidecar_is_first) {
        probes.exclude(*container, excluded, warnings);
    }
    let late = long_running.filter(|_| sidecar_is_first);
    for container in around.containers.iter().chain(late) {
        for (kind, first) in KINDS {
            let Some((handler, port, call)) = probe(*container, kind) else { continue };
            if excluded.contains(&port) || probes.excluded.contains(&port) {
                continue;
            }
            let exposed = match call {
                Call::Path { path, http2 } => probes.expose(path, port, http2, first, taken)?,
                Call::Other => None,
            };
            let rewritten = match exposed {
                Some(port) => Ok(Rewritten {
                    pointer: format!("{}/{kind}/{handler}", container.pointer()),
                    members: Map::from_iter([("port".to_owned(), port.into())]),
                }),
                None => probes.relay(*container, kind, taken)?,
            };
            match rewritten {
                Ok(rewritten) => probes.rewritten.push(rewritten),
                Err(why) => {
                    probes.excluded.push(port);
                    warnings.push(|| {
                        format!(
                            "fix the {kind} of container `{}`, which the sidecar cannot run \
                             ({why}): port {port} bypasses Envoy and all intentions, as with \
                             `{EXCLUDE_INBOUND_PORTS}`",
                            container.name
                        )
                    });
                }
            }
        }
    }
    Ok(probes)
}

/// Returns a probe's handler, the port that it calls, and the call. `None` if it calls no
/// port of the pod, or if the port's name is unknown.
fn probe<'p>(container: Container<'p>, kind: &str) -> Option<(&'static str, u16, Call<'p>)> {
    let probe = container.fields.get(kind)?;
    let port_of = |value: Option<&Value>| match value? {
        Value::Number(number) => u16::try_from(number.as_u64()?).ok().filter(|port| *port > 0),
        Value::String(name) => {
            let ports = container.ports().ok()?;
            let named = ports.iter().find(|port| port.name == Some(name.as_str()));
            named.map(|port| port.number)
        }
        _ => None,
    };
    let text = |value: &'p Value, field: &str| value.get(field).and_then(Value::as_str);
    // A probe with a host does not call this pod.
    let is_here = |value: &'p Value| text(value, "host").is_none_or(str::is_empty);
    if let Some(get) = probe.get("httpGet").filter(|get| get.is_object() && is_here(get)) {
        let path = text(get, "path").filter(|path| path.starts_with('/')).unwrap_or("/");
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let call = match text(get, "scheme") {
            Some("HTTPS") => Call::Other,
            _ => Call::Path { path, http2: false },
        };
        return Some(("httpGet", port_of(get.get("port"))?, call));
    }
    if let Some(grpc) = probe.get("grpc").filter(|grpc| grpc.is_object()) {
        let call = Call::Path { path: GRPC_HEALTH, http2: true };
        return Some(("grpc", port_of(grpc.get("port"))?, call));
    }
    let tcp = probe.get("tcpSocket").filter(|tcp| tcp.is_object() && is_here(tcp))?;
    Some(("tcpSocket", port_of(tcp.get("port"))?, Call::Other))
}

/// httpGet hooks are not rewritten: their endpoints should not be open to everyone.
fn warn_of_hooks(container: Container<'_>, warnings: &mut Warnings) {
    let hooks = container.fields.get("lifecycle");
    for hook in ["postStart", "preStop"] {
        let calls = hooks.and_then(|hooks| hooks.get(hook)?.get("httpGet"));
        if calls.is_some_and(Value::is_object) {
            warnings.push(|| {
                format!(
                    "list the port of the {hook} hook of container `{}` in \
                     `{EXCLUDE_INBOUND_PORTS}`, or make it an exec hook: an httpGet hook reaches \
                     Envoy, which rejects it",
                    container.name
                )
            });
        }
    }
}

// === impl Probes ===

impl Probes {
    /// Returns the port of the listener for a path, and adds the listener if it is new. `None`
    /// if the path is exposed for another port already: Consul accepts each path once.
    fn expose(
        &mut self,
        path: &str,
        port: u16,
        http2: bool,
        first: u16,
        taken: &mut Taken<'_>,
    ) -> Result<Option<u16>, Denial> {
        if let Some(known) = self.exposed.iter().find(|known| known.path == path) {
            let is_same = (known.port, known.http2) == (port, http2);
            return Ok(is_same.then_some(known.listener));
        }
        let listener = free(first, taken)?;
        self.exposed.push(Exposed { path: path.to_owned(), listener, port, http2 });
        Ok(Some(listener))
    }

    /// Lets the sidecar run a probe; the inner error says why it can't.
    fn relay(
        &mut self,
        container: Container<'_>,
        kind: &str,
        taken: &mut Taken<'_>,
    ) -> Result<Result<Rewritten, NotRun>, Denial> {
        let Some(Value::Object(fields)) = container.fields.get(kind) else {
            return Ok(Err(NotRun::Shape("it is not an object".to_owned())));
        };
        let ports = container.ports()?;
        let named: Vec<_> =
            ports.iter().filter_map(|port| Some((port.name?, port.number))).collect();
        let probe = match Probe::of(&Value::Object(fields.clone()), &named) {
            Ok(probe) => probe,
            Err(why) => return Ok(Err(why)),
        };
        let port = match &self.relay {
            Some(relay) => relay.port,
            None => free(RELAY, taken)?,
        };
        let relay = self.relay.get_or_insert(Relay { port, probes: Vec::new() });
        let path = format!("/{}/{kind}", container.name);
        relay.probes.push((path.clone(), probe));
        let mut fields = fields.clone();
        fields.retain(|field, _| !HANDLERS.contains(&field.as_str()));
        fields.insert("httpGet".to_owned(), json!({"path": path, "port": port}));
        Ok(Ok(Rewritten {
            pointer: container.pointer(),
            members: Map::from_iter([(kind.to_owned(), fields.into())]),
        }))
    }

    /// Excludes the ports of a container's probes from redirection.
    fn exclude(&mut self, container: Container<'_>, excluded: &[u16], warnings: &mut Warnings) {
        for (kind, _) in KINDS {
            let Some((_, port, _)) = probe(container, kind) else { continue };
            if excluded.contains(&port) || self.excluded.contains(&port) {
                continue;
            }
            self.excluded.push(port);
            warnings.push(|| {
                format!(
                    "use a native sidecar that starts before init container `{}`: its {kind} runs \
                     before the sidecar does, so port {port} bypasses Envoy and all intentions, \
                     as with `{EXCLUDE_INBOUND_PORTS}`",
                    container.name
                )
            });
        }
    }
}

/// Finds the first free port from `first` on, and marks it as taken.
fn free(first: u16, taken: &mut Taken<'_>) -> Result<u16, Denial> {
    let mut listeners = first..first + LISTENERS;
    let Some(listener) = listeners.find(|listener| taken.owner(*listener).is_none()) else {
        let problem = format!(
            "all {LISTENERS} ports from {first} on are in use: none is left for a probe's listener"
        );
        return Err(Denial::new(Reason::InvalidTransparentProxy, problem));
    };
    taken.add(listener, Owner::Exposed);
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::annotation;
    use crate::plan::tests::plan_in;
    use crate::plan::transparent::Transparent;
    use crate::policy::Cluster;
    use crate::policy::tests::policy;

    fn planned(spec: &Value, more: &[(&str, &str)]) -> (Transparent, Vec<String>) {
        let mut annotations = json!({annotation::TRANSPARENT_PROXY: "true"});
        for (key, value) in more {
            annotations[*key] = (*value).into();
        }
        let pod = json!({"metadata": {"annotations": annotations}, "spec": spec});
        let (plan, warnings) = plan_in(&pod, &policy(), &Cluster::default()).unwrap();
        // The first warning is about PodSecurity.
        (plan.transparent.unwrap(), warnings)
    }

    fn exposed(path: &str, listener: u16, port: u16, http2: bool) -> Exposed {
        Exposed { path: path.to_owned(), listener, port, http2 }
    }

    #[test]
    fn each_http_and_grpc_probe_gets_a_listener() {
        let get = |path: &str, port: Value| json!({"httpGet": {"path": path, "port": port}});
        let spec = json!({
            "containers": [
                {"name": "a", "ports": [{"containerPort": 8080, "name": "http"}, {"containerPort": 20400}],
                 "readinessProbe": get("/ready?full=1", json!("http")),
                 "livenessProbe": get("/live", json!(8080)),
                 "startupProbe": get("/ready", json!(8080))},
                {"name": "b", "livenessProbe": {"grpc": {"port": 9000}},
                 "readinessProbe": {"exec": {"command": ["true"]}}},
            ],
            "initContainers": [
                {"name": "n", "restartPolicy": "Always", "startupProbe": get("", json!(7000))},
                {"name": "once", "startupProbe": get("/once", json!(7001))},
            ],
        });
        let (transparent, warnings) = planned(&spec, &[(annotation::SIDECAR_MODE, "native")]);
        assert_eq!(
            transparent.exposed,
            [
                exposed("/ready", 20300, 8080, false),
                // 20400 is a port of the application.
                exposed("/live", 20401, 8080, false),
                exposed(GRPC_HEALTH, 20402, 9000, true),
                exposed("/", 20500, 7000, false),
            ]
        );
        let at = |pointer: &str, port: u16| {
            let members = Map::from_iter([("port".to_owned(), port.into())]);
            Rewritten { pointer: pointer.to_owned(), members }
        };
        assert_eq!(
            transparent.rewritten,
            [
                at("/spec/containers/0/readinessProbe/httpGet", 20300),
                at("/spec/containers/0/livenessProbe/httpGet", 20401),
                at("/spec/containers/0/startupProbe/httpGet", 20300),
                at("/spec/containers/1/livenessProbe/grpc", 20402),
                at("/spec/initContainers/0/startupProbe/httpGet", 20500),
            ]
        );
        assert_eq!(transparent.inbound_ports, [20300, 20401, 20402, 20500]);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
    }

    #[test]
    fn probes_that_envoy_cannot_serve_are_run_by_the_sidecar() {
        let tcp = json!({"tcpSocket": {"port": "one"}, "periodSeconds": 5, "newField": 1});
        let spec = json!({"containers": [
            {"name": "a", "ports": [{"containerPort": 1, "name": "one"}, {"containerPort": 20700}],
             "readinessProbe": {"httpGet": {"path": "/h", "port": 1}}, "livenessProbe": tcp},
            {"name": "b", "readinessProbe": {"httpGet": {"path": "/h", "port": 2}}},
            {"name": "c", "startupProbe": {"httpGet": {"port": 3, "scheme": "HTTPS"}},
             "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 1}}}},
            {"name": "d", "livenessProbe": {"grpc": {"port": 4}}},
            {"name": "e", "livenessProbe": {"grpc": {"port": 5, "service": "x"}}},
        ]});
        let (transparent, warnings) = planned(&spec, &[]);
        let paths = [exposed("/h", 20300, 1, false), exposed(GRPC_HEALTH, 20400, 4, true)];
        assert_eq!(transparent.exposed, paths);
        // 20700 is a port of the application. No port bypasses Envoy.
        assert_eq!(transparent.inbound_ports, [20300, 20400, 20701]);
        let Relay { port, probes } = transparent.relay.unwrap();
        let probes: Vec<_> =
            probes.iter().map(|(path, probe)| (path.as_str(), probe.to_string())).collect();
        assert_eq!(port, 20701);
        assert_eq!(
            probes,
            [
                ("/a/livenessProbe", r#"{"periodSeconds":5,"tcpSocket":{"port":1}}"#.to_owned()),
                ("/b/readinessProbe", r#"{"httpGet":{"path":"/h","port":2}}"#.to_owned()),
                (
                    "/c/startupProbe",
                    r#"{"httpGet":{"path":"/","port":3,"scheme":"HTTPS"}}"#.to_owned()
                ),
                ("/e/livenessProbe", r#"{"grpc":{"port":5,"service":"x"}}"#.to_owned()),
            ]
        );
        let of_a = &transparent.rewritten[1];
        assert_eq!(of_a.pointer, "/spec/containers/0");
        let get = json!({"path": "/a/livenessProbe", "port": 20701});
        let whole = json!({"httpGet": get, "periodSeconds": 5, "newField": 1});
        assert_eq!(of_a.members["livenessProbe"], whole);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("preStop hook of container `c`"), "{warnings:?}");
    }

    #[test]
    fn a_probe_that_cannot_be_run_causes_a_warning() {
        let path = format!("/{}", "x".repeat(9000));
        let spec = json!({"containers": [{
            "name": "a",
            "livenessProbe": {"httpGet": {"path": path, "port": 1, "scheme": "HTTPS"}},
        }]});
        let (transparent, warnings) = planned(&spec, &[]);
        assert_eq!(transparent.inbound_ports, [1]);
        assert_eq!(transparent.relay, None);
        let told = "fix the livenessProbe of container `a`";
        assert!(warnings[0].starts_with(told), "{warnings:?}");
        assert!(warnings[0].contains("more than 8192 bytes"), "{warnings:?}");
    }

    /// The kubelet starts the sidecar only after the container's startup probe has
    /// succeeded.
    #[test]
    fn a_container_that_starts_before_the_sidecar_keeps_its_probes() {
        let spec = json!({
            "containers": [{"name": "a"}],
            "initContainers": [{
                "name": "n", "restartPolicy": "Always",
                "startupProbe": {"httpGet": {"path": "/n", "port": 7000}},
                "livenessProbe": {"tcpSocket": {"port": 7000}},
            }],
        });
        let native = (annotation::SIDECAR_MODE, "native");
        let first = planned(&spec, &[native]).0;
        assert_eq!(first.exposed, [exposed("/n", 20500, 7000, false)]);
        assert_eq!(first.inbound_ports, [20500, 20700]);
        for modes in [
            &[(annotation::SIDECAR_MODE, "container")][..],
            &[native, (annotation::POSITION, "last")],
        ] {
            let (late, warnings) = planned(&spec, modes);
            assert_eq!((late.exposed, late.rewritten), (vec![], vec![]));
            assert_eq!(late.inbound_ports, [7000]);
            assert!(warnings[0].contains("before init container `n`"), "{warnings:?}");
        }
    }

    #[test]
    fn probes_of_excluded_ports_and_other_hosts_are_not_changed() {
        let get =
            |get: Value| json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": get}}]});
        let (transparent, _) =
            planned(&get(json!({"port": 9000})), &[(annotation::EXCLUDE_INBOUND_PORTS, "9000")]);
        assert_eq!((transparent.exposed, transparent.rewritten), (vec![], vec![]));
        let off = [(annotation::OVERWRITE_PROBES, "false")];
        assert_eq!(planned(&get(json!({"port": 9000})), &off).0.exposed, []);
        for other in [
            json!({"port": 9000, "host": "192.0.2.1"}),
            json!({"port": "nobody"}),
            json!({"port": 70000}),
            json!({"port": null}),
            json!([]),
        ] {
            assert_eq!(planned(&get(other), &[]).0.exposed, []);
        }
    }
}
