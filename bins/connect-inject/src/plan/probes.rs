//! The kubelet's probes of a transparent pod. They would come to Envoy's public
//! listener, which takes mutual TLS only: so they go to listeners that serve one path
//! each without it.

use serde_json::Value;

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
    /// Where Envoy listens for it.
    pub(crate) listener: u16,
    /// Where the application serves it.
    pub(crate) port: u16,
    /// Whether it is spoken in HTTP/2, as gRPC is.
    pub(crate) http2: bool,
}

/// A probe that gets another port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// The object with the port, as a JSON pointer.
    pub(crate) pointer: String,
    /// Port of Envoy's listener, instead of the application's.
    pub(crate) port: u16,
}

/// What becomes of the probes.
#[derive(Debug, Default)]
pub(super) struct Probes {
    pub(super) exposed: Vec<Exposed>,
    pub(super) rewritten: Vec<Rewritten>,
    /// Ports that are reached directly, because the probe can't be rewritten.
    pub(super) excluded: Vec<u16>,
}

/// The probes of a container, and the port of the first listener for each kind:
/// those of consul-k8s.
const KINDS: [(&str, u16); 3] =
    [("readinessProbe", 20300), ("livenessProbe", 20400), ("startupProbe", 20500)];

/// How many listeners there are of a kind.
const LISTENERS: u16 = 100;

/// What the kubelet calls in a gRPC probe.
///
/// Source: "GRPC Health Checking Protocol" of gRPC's documentation.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

enum Call<'p> {
    /// A path of HTTP, or of HTTP/2.
    Path { path: &'p str, http2: bool },
    /// A path over TLS.
    Tls,
    /// A port that is to be open.
    Open,
}

/// Plans the probes. From then on, the listeners of their paths are taken.
pub(super) fn probes(
    around: &Surroundings<'_>,
    excluded: &[u16],
    taken: &mut Taken<'_>,
    warnings: &mut Warnings,
) -> Result<Probes, Denial> {
    let mut probes = Probes::default();
    let long_running = around.init_containers.iter().filter(|init| init.is_long_running());
    for container in around.containers.iter().chain(long_running) {
        for (kind, first) in KINDS {
            let Some((handler, port, call)) = probe(*container, kind) else { continue };
            if excluded.contains(&port) || probes.excluded.contains(&port) {
                continue;
            }
            let pointer = format!("{}/{kind}/{handler}", container.pointer());
            let named = || format!("{kind} of container `{}`", container.name);
            let exposed = match call {
                Call::Path { path, http2 } => probes.expose(path, port, http2, first, taken)?,
                Call::Open => {
                    warnings.push(|| {
                        format!(
                            "make the {} an httpGet, grpc or exec probe: a tcpSocket probe of port \
                             {port} reaches Envoy, and always succeeds",
                            named()
                        )
                    });
                    continue;
                }
                Call::Tls => None,
            };
            if let Some(port) = exposed {
                probes.rewritten.push(Rewritten { pointer, port });
                continue;
            }
            probes.excluded.push(port);
            warnings.push(|| {
                format!(
                    "make the {} one of HTTP with a path of its own: it can't go through Envoy, so \
                     port {port} is as in `{EXCLUDE_INBOUND_PORTS}`: open, past all intentions",
                    named()
                )
            });
        }
        warn_of_hooks(*container, warnings);
    }
    Ok(probes)
}

/// The handler of a probe, the port that it calls, and what there. None of one that
/// calls no port of the pod's, or none that is known.
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
    // With a host it goes elsewhere.
    let is_here = |value: &'p Value| text(value, "host").is_none_or(str::is_empty);
    if let Some(get) = probe.get("httpGet").filter(|get| get.is_object() && is_here(get)) {
        let path = text(get, "path").filter(|path| path.starts_with('/')).unwrap_or("/");
        let path = path.split_once('?').map_or(path, |(path, _)| path);
        let call = match text(get, "scheme") {
            Some("HTTPS") => Call::Tls,
            _ => Call::Path { path, http2: false },
        };
        return Some(("httpGet", port_of(get.get("port"))?, call));
    }
    if let Some(grpc) = probe.get("grpc").filter(|grpc| grpc.is_object()) {
        let call = Call::Path { path: GRPC_HEALTH, http2: true };
        return Some(("grpc", port_of(grpc.get("port"))?, call));
    }
    let tcp = probe.get("tcpSocket").filter(|tcp| tcp.is_object() && is_here(tcp))?;
    Some(("tcpSocket", port_of(tcp.get("port"))?, Call::Open))
}

/// The kubelet's hooks are no probes: what they call is not to be open to all.
fn warn_of_hooks(container: Container<'_>, warnings: &mut Warnings) {
    let hooks = container.fields.get("lifecycle");
    for hook in ["postStart", "preStop"] {
        let calls = hooks.and_then(|hooks| hooks.get(hook)?.get("httpGet"));
        if calls.is_some_and(Value::is_object) {
            warnings.push(|| {
                format!(
                    "list the port of the {hook} hook of container `{}` in \
                     `{EXCLUDE_INBOUND_PORTS}`, or make it an exec hook: by httpGet it reaches \
                     Envoy, which refuses it",
                    container.name
                )
            });
        }
    }
}

// === impl Probes ===

impl Probes {
    /// The listener of a path, which is another's or a new one. None if the path is
    /// exposed for another port: Consul takes each path once.
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
        let mut listeners = first..first + LISTENERS;
        let Some(listener) = listeners.find(|listener| taken.owner(*listener).is_none()) else {
            let problem = format!("no port from {first} on is free for a listener of probes");
            return Err(Denial::new(Reason::InvalidTransparentProxy, problem));
        };
        taken.add(listener, Owner::Exposed);
        self.exposed.push(Exposed { path: path.to_owned(), listener, port, http2 });
        Ok(Some(listener))
    }
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
        // The first is of PodSecurity.
        (plan.transparent.unwrap(), warnings)
    }

    fn exposed(path: &str, listener: u16, port: u16, http2: bool) -> Exposed {
        Exposed { path: path.to_owned(), listener, port, http2 }
    }

    #[test]
    fn probes_go_to_listeners_of_their_own() {
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
        let (transparent, warnings) = planned(&spec, &[]);
        assert_eq!(
            transparent.exposed,
            [
                exposed("/ready", 20300, 8080, false),
                // 20400 is the application's.
                exposed("/live", 20401, 8080, false),
                exposed(GRPC_HEALTH, 20402, 9000, true),
                exposed("/", 20500, 7000, false),
            ]
        );
        let at = |pointer: &str, port| Rewritten { pointer: pointer.to_owned(), port };
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
    fn what_cannot_go_through_envoy_is_said() {
        let spec = json!({"containers": [
            {"name": "a", "readinessProbe": {"httpGet": {"path": "/h", "port": 1}},
             "livenessProbe": {"tcpSocket": {"port": 1}}},
            {"name": "b", "readinessProbe": {"httpGet": {"path": "/h", "port": 2}}},
            {"name": "c", "readinessProbe": {"httpGet": {"port": 3, "scheme": "HTTPS"}},
             "lifecycle": {"preStop": {"httpGet": {"path": "/stop", "port": 1}}}},
        ]});
        let (transparent, warnings) = planned(&spec, &[]);
        assert_eq!(transparent.exposed, [exposed("/h", 20300, 1, false)]);
        assert_eq!(transparent.inbound_ports, [2, 3, 20300]);
        for (index, words) in [
            (0, "tcpSocket probe of port 1"),
            (1, "readinessProbe of container `b`"),
            (2, "port 3 is as in"),
            (3, "preStop hook of container `c`"),
        ] {
            assert!(warnings[index].contains(words), "{warnings:?}");
        }
    }

    #[test]
    fn what_is_excluded_or_elsewhere_stays() {
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
