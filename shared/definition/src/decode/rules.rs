//! What the agent, or a proxy, could not work with, although it is well-formed.
//!
//! Source: what Consul 1.8's agent refuses on registration, and what Consul's
//! pages on services, checks and proxies say of limits. Each is said before
//! anything is sent, with its place.

use std::collections::HashSet;

use duration::GoDuration;
use registration::proxy::Expose;
use registration::service::{Kind, SidecarService};
use registration::{Check, Proxy, Service, Upstream, upstream};

use crate::object::Object;

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
    address(o, &service.address);
    meta(o, service.meta.iter(), service.kind);
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
    // One on a unix socket takes no port.
    let listening = proxy.upstreams.iter().filter(|upstream| upstream.local_bind_port > 0);
    let listening: Vec<Upstream> = listening.cloned().collect();
    if let Some(conflict) = upstream::conflict(&listening, &[]) {
        o.report("upstreams", conflict.to_string());
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
    let mut ports = HashSet::new();
    let mut paths = HashSet::new();
    for (index, path) in expose.paths.iter().enumerate() {
        let at = |key| format!("paths[{index}].{key}");
        if path.listener_port == 0 {
            let message = "missing: a path has a port to be reached at, from 1 to 65535";
            o.report(&at("listener_port"), message);
        } else if !ports.insert(path.listener_port) {
            o.report(&at("listener_port"), "given twice: each path has a port of its own");
        }
        if !paths.insert(path.path.as_str()) {
            o.report(&at("path"), "given twice: a path is exposed once");
        }
    }
}

pub(super) fn check_ids(o: &mut Object<'_, '_>, checks: &[Check]) {
    let mut ids = HashSet::new();
    for check in checks.iter().filter(|check| !check.check_id.is_empty()) {
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
    // The agent process of release 1.8 ends on it.
    if !check.alias_node.is_empty() && check.alias_service.is_empty() {
        o.report(
            "alias_node",
            "not accepted without alias_service: it ends the whole agent of older Consul releases",
        );
    }
}
