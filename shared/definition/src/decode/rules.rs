//! Refuses what is well-formed and can't work, before anything is sent.
//!
//! Source: what Consul's agent refuses on registration, and the limits on
//! Consul's pages on services, checks and proxies.

use std::collections::HashSet;

use duration::GoDuration;
use registration::listener::{Bind, Listener, collisions};
use registration::proxy::{AccessLogs, Expose};
use registration::service::{Kind, NamedPort, SidecarService};
use registration::{Check, Proxy, Service, Upstream, upstream};

use crate::Since;
use crate::object::{At, Object, Reader};

/// How many pairs of meta a service may have.
const MOST_META: usize = 64;
const LONGEST_META_KEY: usize = 128;
const LONGEST_META_VALUE: usize = 512;
const RESERVED_META: &str = "consul-";
/// The one that Consul itself asks for, of mesh gateways.
const WAN_FEDERATION: &str = "consul-wan-federation";

pub(super) fn service(o: &mut Object<'_, '_>, service: &Service) {
    if service.name.is_empty() {
        o.report("name", "missing: a service has a name");
    }
    id(o, if service.id.is_empty() { "name" } else { "id" }, service.id());
    address(o, &service.address);
    meta(o, service.meta.iter(), service.kind);
    if service.port != 0 && !service.ports.is_empty() {
        o.report("ports", "not accepted beside `port`: name that port in `ports`, as the default");
    }
    ports(o, service);
    let is_native = service.connect.as_ref().is_some_and(|connect| connect.native);
    if is_native && service.port == 0 && service.ports.is_empty() && service.socket_path.is_empty()
    {
        o.report("port", "missing: a Connect-native service has a port, from 1 to 65535");
    }
    if service.kind == Kind::ConnectProxy {
        if service.port == 0 && service.socket_path.is_empty() {
            o.report("port", "missing: a connect-proxy has a port, from 1 to 65535");
        }
        let proxy = service.proxy.as_ref();
        if proxy.is_none_or(|proxy| proxy.destination_service_name.is_empty()) {
            o.report(
                "proxy.destination_service_name",
                "missing: a connect-proxy names the service that it stands for",
            );
        }
        if service.connect.as_ref().is_some_and(|connect| connect.native) {
            o.report("connect.native", "not accepted: a proxy is not Connect-native itself");
        }
    } else if service.kind != Kind::Typical {
        if matches!(service.kind, Kind::MeshGateway | Kind::TerminatingGateway) && service.port == 0
        {
            o.report("port", "missing: this gateway has a port, from 1 to 65535");
        }
        let proxy = service.proxy.as_ref();
        if proxy.is_some_and(|proxy| !proxy.destination_service_name.is_empty()) {
            let message = "not accepted: a gateway stands for no single service";
            o.report("proxy.destination_service_name", message);
        }
    }
}

pub(super) fn sidecar(o: &mut Object<'_, '_>, sidecar: &SidecarService) {
    if !sidecar.id.is_empty() {
        o.report("id", "not accepted: the agent makes the id of a sidecar_service");
    }
    address(o, &sidecar.address);
    meta(o, sidecar.meta.iter(), Kind::ConnectProxy);
}

/// The id is part of the path in later requests, where `.` and `..` are steps:
/// what has such an id can be registered and never deregistered.
fn id(o: &mut Object<'_, '_>, key: &str, id: &str) {
    if matches!(id, "." | "..") {
        o.report(key, format!("not accepted: the agent could never deregister the id {id:?}"));
    }
}

pub(super) fn named_ports(reader: &mut Reader, at: &At<'_>, ports: &[NamedPort]) {
    let mut names = HashSet::new();
    for NamedPort { name, port, default: _ } in ports {
        if name.trim().is_empty() {
            reader.report(at, "each port has a name");
        } else if !names.insert(name) {
            reader
                .report(at, format!("two ports have the name {name:?}: expected different names"));
        } else if *port == 0 {
            reader.report(at, format!("port {name:?} has no number, from 1 to 65535"));
        }
    }
    let defaults = ports.iter().filter(|port| port.default).count();
    if !ports.is_empty() && defaults != 1 {
        let message = format!("expected one port with `default = true`, found {defaults}");
        reader.report(at, message);
    }
}

/// Reports listeners of a service and of its proxy that would take each other's
/// place: whoever starts second does not start, or Envoy rejects the listener.
fn ports(o: &mut Object<'_, '_>, service: &Service) {
    let mut found = Listeners::default();
    let sidecar = service.connect.as_ref().and_then(|connect| connect.sidecar_service.as_ref());
    if let Some(sidecar) = sidecar {
        found.application("", &service.address, service.port);
        for port in &service.ports {
            found.application("", &service.address, port.port);
        }
        let address = if sidecar.address.is_empty() { &service.address } else { &sidecar.address };
        let none = Proxy::default();
        let proxy = sidecar.proxy.as_ref().unwrap_or(&none);
        let local =
            if proxy.local_service_port == 0 { service.port } else { proxy.local_service_port };
        found.proxy("connect.sidecar_service.", address, sidecar.port, proxy, local);
    } else if let Some(proxy) = &service.proxy {
        found.proxy("", &service.address, service.port, proxy, proxy.local_service_port);
    }
    let Listeners { listeners, paths } = found;
    for (first, second) in collisions(&listeners) {
        let (taken, at) = match (listeners[first].is_application, listeners[second].is_application)
        {
            (false, true) => (second, first),
            _ => (first, second),
        };
        let Listener { port, what, .. } = &listeners[taken];
        let whose = &listeners[at].what;
        let message = format!("port {port} is taken by {what}: {whose} needs a port of its own");
        o.report(&paths[at], message);
    }
}

/// What listens on the host of a service, and by which key.
#[derive(Default)]
struct Listeners {
    listeners: Vec<Listener>,
    paths: Vec<String>,
}

impl Listeners {
    fn add(&mut self, path: String, listener: Listener) {
        if listener.port != 0 {
            self.listeners.push(listener);
            self.paths.push(path);
        }
    }

    fn application(&mut self, path: &str, address: &str, port: u16) {
        // The application of a host name is on that host, whose addresses only
        // that host knows.
        if let Some(bind) = Bind::of(address) {
            let what = "the service itself".to_owned();
            self.add(path.to_owned(), Listener { bind, port, what, is_application: true });
        }
    }

    fn envoy(&mut self, path: String, address: &str, port: u16, what: &str) {
        let bind = Bind::of(address).unwrap_or(Bind::Any);
        let what = what.to_owned();
        self.add(path, Listener { bind, port, what, is_application: false });
    }

    /// A proxy's listeners, and the application behind it.
    fn proxy(&mut self, prefix: &str, address: &str, port: u16, proxy: &Proxy, local_port: u16) {
        let config = |key: &str| proxy.config.get(key);
        let text = |key: &str| config(key).and_then(|value| value.as_str());
        if proxy.local_service_socket_path.is_empty() {
            let local = match proxy.local_service_address.as_str() {
                "" => "127.0.0.1",
                address => address,
            };
            self.application("", local, local_port);
            for named in &proxy.local_service_ports {
                self.application("", local, named.port);
            }
        }
        let address = text("bind_address").unwrap_or(address);
        let bind_port = config("bind_port").and_then(serde_json::Value::as_u64);
        let (port, key) = match bind_port.and_then(|port| u16::try_from(port).ok()) {
            Some(port) if port != 0 => (port, "proxy.config.bind_port"),
            _ => (port, "port"),
        };
        self.envoy(format!("{prefix}{key}"), address, port, "the proxy's public listener");
        for (index, upstream) in proxy.upstreams.iter().enumerate() {
            let path = format!("{prefix}proxy.upstreams[{index}].local_bind_port");
            self.add(path, upstream.listener());
        }
        for (index, exposed) in proxy.expose.paths.iter().enumerate() {
            let path = format!("{prefix}proxy.expose.paths[{index}].listener_port");
            let what = format!("the exposed path `{}`", exposed.path);
            self.envoy(path, address, exposed.listener_port, &what);
        }
        for key in ["envoy_prometheus_bind_addr", "envoy_stats_bind_addr"] {
            if let Some((host, port)) = text(key).and_then(|address| address.rsplit_once(':'))
                && let Ok(port) = port.parse()
            {
                self.envoy(format!("{prefix}proxy.config.{key}"), host, port, &format!("`{key}`"));
            }
        }
        let (key, outbound) = match proxy.transparent_proxy.outbound_listener_port {
            0 => ("mode", TRANSPARENT_PORT),
            port => ("transparent_proxy.outbound_listener_port", port),
        };
        if proxy.mode == "transparent" {
            let what = "the outbound listener of the transparent proxy";
            self.envoy(format!("{prefix}proxy.{key}"), "127.0.0.1", outbound, what);
        }
    }
}

/// Where Consul has a transparent proxy listen if the file does not say.
const TRANSPARENT_PORT: u16 = 15001;

/// Empty is the agent's own.
fn address(o: &mut Object<'_, '_>, address: &str) {
    if matches!(address, "0.0.0.0" | "::" | "[::]") {
        o.report("address", "expected an address at which others reach it, not one for listening");
    }
}

fn meta<'m>(
    o: &mut Object<'_, '_>,
    meta: impl ExactSizeIterator<Item = (&'m String, &'m String)>,
    kind: Kind,
) {
    if meta.len() > MOST_META {
        let message = format!("expected at most {MOST_META} pairs, found {}", meta.len());
        o.report("meta", message);
        return;
    }
    for (key, value) in meta {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let problem = if key.is_empty() {
            "the key is empty".to_owned()
        } else if let Some(other) = key.chars().find(|c| !is_plain(*c)) {
            format!("the key has {other:?}: expected letters, digits, `-` and `_`")
        } else if key.len() > LONGEST_META_KEY {
            let length = key.len();
            format!("the key has {length} characters: expected at most {LONGEST_META_KEY}")
        } else if key.starts_with(RESERVED_META)
            && !(kind == Kind::MeshGateway && key == WAN_FEDERATION)
        {
            format!("keys that begin with `{RESERVED_META}` are Consul's own: expected another")
        } else if value.len() > LONGEST_META_VALUE {
            let length = value.len();
            format!("the value has {length} bytes: expected at most {LONGEST_META_VALUE}")
        } else {
            continue;
        };
        o.report_inner("meta", key, problem);
    }
}

pub(super) fn proxy(o: &mut Object<'_, '_>, proxy: &Proxy) {
    let conflict = upstream::same_destination(&proxy.upstreams)
        .or_else(|| upstream::same_socket(&proxy.upstreams));
    if let Some(conflict) = conflict {
        o.report("upstreams", conflict.to_string());
    }
}

pub(super) fn access_logs(o: &mut Object<'_, '_>, logs: &AccessLogs) {
    if logs.r#type == "file" && logs.path.is_empty() {
        o.report("path", "missing: access logs of type `file` have a path");
    }
    if !logs.json_format.is_empty() && !logs.text_format.is_empty() {
        o.report("text_format", "not accepted beside json_format: expected one of them");
    }
}

pub(super) fn upstream(o: &mut Object<'_, '_>, upstream: &Upstream) {
    if upstream.destination_name.is_empty() {
        o.report("destination_name", "missing: an upstream names its destination");
    }
    if upstream.local_bind_port == 0 && upstream.local_bind_socket_path.is_empty() {
        o.report("local_bind_port", "missing: an upstream has a local port, from 1 to 65535");
    }
}

pub(super) fn expose(o: &mut Object<'_, '_>, expose: &Expose) {
    let mut paths = HashSet::new();
    for (index, path) in expose.paths.iter().enumerate() {
        let at = |key| format!("paths[{index}].{key}");
        if path.listener_port == 0 {
            let message = "missing: a path has a port to be reached at, from 1 to 65535";
            o.report(&at("listener_port"), message);
        }
        if !paths.insert(path.path.as_str()) {
            o.report(&at("path"), "given twice: a path is exposed once");
        }
    }
}

pub(super) fn check_ids(o: &mut Object<'_, '_>, checks: &[Check]) {
    let mut ids = HashSet::new();
    for check in checks.iter().filter(|check| !check.check_id.is_empty()) {
        id(o, "checks", &check.check_id);
        if !ids.insert(check.check_id.as_str()) {
            let message =
                format!("two checks have the id {:?}: expected different ids", check.check_id);
            o.report("checks", message);
            return;
        }
    }
}

pub(super) fn check(o: &mut Object<'_, '_>, check: &Check) {
    let is_set = |duration: Option<GoDuration>| duration.is_some_and(|d| d.nanoseconds() > 0);
    let looks = [
        ("args", !check.args.is_empty()),
        ("http", !check.http.is_empty()),
        ("tcp", !check.tcp.is_empty()),
        ("udp", !check.udp.is_empty()),
        ("grpc", !check.grpc.is_empty()),
        ("h2ping", !check.h2ping.is_empty()),
        ("os_service", !check.os_service.is_empty()),
    ];
    let look = looks.iter().find(|(_, is_given)| *is_given).map(|(key, _)| *key);
    let is_alias = !check.alias_service.is_empty() || !check.alias_node.is_empty();
    if is_set(check.interval) && is_set(check.ttl) {
        o.report("ttl", "a check has either an interval or a ttl, not both");
    } else if let Some(look) = look {
        if !is_set(check.interval) {
            let message = format!(
                "missing: a check with `{look}` has an interval of more than 0, such as \"10s\""
            );
            o.report("interval", message);
        }
    } else if is_alias && is_set(check.ttl) {
        o.report("ttl", "not accepted: a check with alias_service takes over another's status");
    } else if !is_alias && !is_set(check.ttl) {
        let message = if check.ttl.is_some() {
            "expected a ttl of more than 0, such as \"30s\""
        } else {
            "missing: a check has one of ttl, http, tcp, udp, grpc, h2ping, args, os_service, alias_service"
        };
        o.report("ttl", message);
    }
    if !check.alias_node.is_empty() {
        // Without alias_service it ends the agent process of release 1.8.
        if check.alias_service.is_empty() {
            o.requires(Since::Release(1, 12), "alias_node");
        }
        // Seen with 1.14: the agent first waits for its check's blocking query.
        let message = "the agent takes up to a minute to register this service again or to \
                       deregister it: give --timeout 2m for that";
        o.warn("alias_node", message);
    }
}
