//! A tree into registrations.
//!
//! Sources: Consul's "Service definition reference", "Health check configuration
//! reference", "Connect proxy configuration reference" and "Multiport services"
//! pages.

use duration::GoDuration;
use registration::check::Status;
use registration::proxy::{
    AccessLogs, EnvoyExtension, Expose, ExposePath, MeshGateway, TransparentProxy,
};
use registration::service::{
    Connect, Kind, Locality, NamedPort, SidecarService, TaggedAddress, Weights,
};
use registration::upstream::DestinationType;
use registration::{Check, Proxy, Service, Token, Upstream};
use secrecy::SecretString;

use crate::Since;
use crate::error::Found;
use crate::object::{At, Object, Reader};
use crate::tree::{Node, Value};

mod rules;

const KINDS: [(&str, Kind); 6] = [
    ("connect-proxy", Kind::ConnectProxy),
    ("mesh-gateway", Kind::MeshGateway),
    ("terminating-gateway", Kind::TerminatingGateway),
    ("ingress-gateway", Kind::IngressGateway),
    ("api-gateway", Kind::ApiGateway),
    ("", Kind::Typical),
];

const STATUSES: [(&str, Option<Status>); 4] = [
    ("passing", Some(Status::Passing)),
    ("warning", Some(Status::Warning)),
    ("critical", Some(Status::Critical)),
    ("", None),
];

const DESTINATION_TYPES: [(&str, DestinationType); 3] = [
    ("service", DestinationType::Service),
    ("prepared_query", DestinationType::PreparedQuery),
    ("", DestinationType::Service),
];

const MESH_GATEWAY_MODES: [(&str, &str); 4] =
    [("none", "none"), ("local", "local"), ("remote", "remote"), ("", "")];

const PROXY_MODES: [(&str, &str); 3] =
    [("direct", "direct"), ("transparent", "transparent"), ("", "")];

const PROTOCOLS: [(&str, &str); 3] = [("http", "http"), ("http2", "http2"), ("", "")];

const LOG_TYPES: [(&str, &str); 4] =
    [("stdout", "stdout"), ("stderr", "stderr"), ("file", "file"), ("", "")];

/// A definition, its place and what was noted, in bytes of the text.
#[derive(Default)]
pub(crate) struct Decoded {
    pub(crate) offset: usize,
    pub(crate) service: Service,
    pub(crate) token: Option<SecretString>,
    pub(crate) warnings: Vec<Found>,
    pub(crate) newer: Vec<(Since, Found)>,
}

pub(crate) fn definitions(root: &Node) -> Result<Vec<Decoded>, Vec<Found>> {
    let mut reader = Reader::default();
    let at = At { node: root, path: String::new() };
    if is_bare_service(root) {
        reader.report(
            &at,
            "a service stands within `service`: expected {\"service\": {\"name\": ...}} or service { name = ... }",
        );
        return Err(reader.problems);
    }
    let definitions = reader.object(&at, |file| {
        file.explain_unknown(beside_services);
        let mut definitions = file.read("services", |reader, at| reader.list(at, service));
        definitions.extend(file.optional("service", service));
        definitions
    });
    if reader.problems.is_empty() { Ok(definitions) } else { Err(reader.problems) }
}

/// What to do with a key beside the services, which Consul's CLI ignores.
fn beside_services(key: &str) -> Option<String> {
    let nearest = crate::spelling::nearest(key, &["service", "services"]);
    if key.eq_ignore_ascii_case("check") || key.eq_ignore_ascii_case("checks") {
        return Some(
            "not accepted beside a service: move a service's check into the service, and a \
             node's into the agent's configuration"
                .to_owned(),
        );
    }
    nearest.is_none().then(|| {
        "not accepted: a definition file has `service` or `services`; settings of the agent \
         belong in the agent's own configuration"
            .to_owned()
    })
}

/// Whether someone wrote what the HTTP API takes: a service on its own.
fn is_bare_service(root: &Node) -> bool {
    let Value::Object(entries) = &root.value else {
        return false;
    };
    let has = |name: &str| entries.iter().any(|(key, _)| key.text.eq_ignore_ascii_case(name));
    has("name") && !has("service") && !has("services")
}

fn service(reader: &mut Reader, at: &At<'_>) -> Decoded {
    let (service, token) = reader.object(at, |o| {
        o.explain_unknown(in_a_service);
        let service = Service {
            kind: o.read("kind", kind),
            id: o.read("id", Reader::text),
            name: o.read("name", Reader::text),
            tags: o.read("tags", Reader::texts),
            address: o.read("address", Reader::text),
            tagged_addresses: o
                .read("tagged_addresses", |reader, at| reader.map(at, tagged_address)),
            port: o.read("port", Reader::port),
            ports: o.read_since(Since::Release(1, 22), "ports", named_ports),
            socket_path: o.read("socket_path", Reader::text),
            meta: o.read("meta", |reader, at| reader.map(at, Reader::text)),
            weights: o.read("weights", weights),
            enable_tag_override: o.read("enable_tag_override", Reader::boolean),
            proxy: o.optional("proxy", proxy),
            connect: o.optional("connect", connect),
            checks: checks(o),
            locality: locality(o),
            namespace: o.read_since(Since::Enterprise, "namespace", Reader::text),
            partition: o.read_since(Since::Enterprise, "partition", Reader::text),
        };
        let token = o.read("token", Reader::secret);
        if o.is_sound() {
            rules::service(o, &service);
        }
        (service, token)
    });
    for (found, owner) in std::mem::take(&mut reader.owners) {
        let sidecar = format!("{}-sidecar-proxy", service.id());
        if owner != service.id() && owner != sidecar {
            reader.warnings.push(found);
        }
    }
    Decoded {
        offset: at.node.offset,
        service,
        token,
        warnings: std::mem::take(&mut reader.warnings),
        newer: std::mem::take(&mut reader.newer),
    }
}

fn kind(reader: &mut Reader, at: &At<'_>) -> Kind {
    if matches!(&at.node.value, Value::Text(text) if text == INFERENCE) {
        reader.report(at, ENTERPRISE_AI);
        return Kind::default();
    }
    reader.one_of(at, &KINDS)
}

/// What to do with a key of a service that is known and not accepted.
fn in_a_service(key: &str) -> Option<String> {
    key.eq_ignore_ascii_case("ai").then(|| ENTERPRISE_AI.to_owned())
}

const INFERENCE: &str = "inference-gateway";

/// Source: Consul's "AI Inference Gateway" page, which has it from 2.1 on.
const ENTERPRISE_AI: &str = "not accepted: the AI gateway is part of Consul Enterprise 2.1 and \
     newer, and has no public API types; register this service with `consul services register`";

fn named_ports(reader: &mut Reader, at: &At<'_>) -> Vec<NamedPort> {
    let ports = reader.list(at, |reader, at| {
        reader.object(at, |o| NamedPort {
            name: o.read("name", Reader::text),
            port: o.read("port", Reader::port),
            default: o.read("default", Reader::boolean),
        })
    });
    rules::named_ports(reader, at, &ports);
    ports
}

fn tagged_address(reader: &mut Reader, at: &At<'_>) -> TaggedAddress {
    reader.object(at, |o| TaggedAddress {
        address: o.read("address", Reader::text),
        port: o.read("port", Reader::port),
    })
}

/// Each half has its own default.
fn weights(reader: &mut Reader, at: &At<'_>) -> Option<Weights> {
    reader.object(at, |o| {
        let passing = o.optional("passing", |reader, at| reader.whole(at, 1, u16::MAX));
        let warning = o.optional("warning", |reader, at| reader.whole(at, 0, u16::MAX));
        Some(Weights { passing: passing.unwrap_or(1), warning: warning.unwrap_or(1) })
    })
}

fn locality(o: &mut Object<'_, '_>) -> Option<Locality> {
    o.read_since(Since::Release(1, 16), "locality", |reader, at| {
        Some(reader.object(at, |o| Locality {
            region: o.read("region", Reader::text),
            zone: o.read("zone", Reader::text),
        }))
    })
}

fn connect(reader: &mut Reader, at: &At<'_>) -> Connect {
    reader.object(at, |o| Connect {
        native: o.read("native", Reader::boolean),
        sidecar_service: o.optional("sidecar_service", sidecar_service).map(Box::new),
    })
}

fn sidecar_service(reader: &mut Reader, at: &At<'_>) -> SidecarService {
    reader.object(at, |o| {
        // The agent sets it anyway.
        let () = o.read("kind", |reader, at| reader.one_of(at, &[("connect-proxy", ()), ("", ())]));
        let sidecar = SidecarService {
            id: o.read("id", Reader::text),
            name: o.read("name", Reader::text),
            tags: o.read("tags", Reader::texts),
            address: o.read("address", Reader::text),
            tagged_addresses: o
                .read("tagged_addresses", |reader, at| reader.map(at, tagged_address)),
            port: o.read("port", Reader::port),
            meta: o.read("meta", |reader, at| reader.map(at, Reader::text)),
            weights: o.read("weights", weights),
            enable_tag_override: o.read("enable_tag_override", Reader::boolean),
            proxy: o.optional("proxy", proxy),
            token: o.read("token", Reader::secret).map(Token::new),
            checks: checks(o),
            socket_path: o.read("socket_path", Reader::text),
            locality: locality(o),
            namespace: o.read_since(Since::Enterprise, "namespace", Reader::text),
            partition: o.read_since(Since::Enterprise, "partition", Reader::text),
        };
        // The key is known, although a sidecar has no use for it.
        if o.optional("connect", connect).is_some_and(|connect| connect != Connect::default()) {
            o.report("connect", "not accepted: a sidecar has no sidecar and is not Connect-native");
        }
        if o.is_sound() {
            rules::sidecar(o, &sidecar);
        }
        sidecar
    })
}

fn proxy(reader: &mut Reader, at: &At<'_>) -> Proxy {
    reader.object(at, |o| {
        let proxy = Proxy {
            destination_service_name: o.read("destination_service_name", Reader::text),
            destination_service_id: o.read("destination_service_id", Reader::text),
            local_service_address: o.read("local_service_address", Reader::text),
            local_service_port: o.read("local_service_port", Reader::port),
            local_service_ports: o.read_since(
                Since::Release(2, 0),
                "local_service_ports",
                named_ports,
            ),
            local_service_socket_path: o.read("local_service_socket_path", Reader::text),
            mode: o.read("mode", |reader, at| reader.one_of(at, &PROXY_MODES)).to_owned(),
            transparent_proxy: o.read("transparent_proxy", transparent_proxy),
            config: o.read("config", Reader::free),
            upstreams: o.read("upstreams", |reader, at| reader.list(at, upstream)),
            mesh_gateway: o.read("mesh_gateway", mesh_gateway),
            expose: o.read("expose", expose),
            envoy_extensions: o.read_since(
                Since::Release(1, 15),
                "envoy_extensions",
                |reader, at| reader.list(at, envoy_extension),
            ),
            access_logs: o.read_since(Since::Release(1, 15), "access_logs", access_logs),
        };
        if o.is_sound() {
            rules::proxy(o, &proxy);
        }
        proxy
    })
}

fn transparent_proxy(reader: &mut Reader, at: &At<'_>) -> TransparentProxy {
    reader.object(at, |o| TransparentProxy {
        outbound_listener_port: o.read("outbound_listener_port", Reader::port),
        dialed_directly: o.read("dialed_directly", Reader::boolean),
    })
}

fn envoy_extension(reader: &mut Reader, at: &At<'_>) -> EnvoyExtension {
    reader.object(at, |o| {
        let extension = EnvoyExtension {
            name: o.read("name", Reader::text),
            required: o.read("required", Reader::boolean),
            arguments: o.read("arguments", Reader::free),
            consul_version: o.read("consul_version", Reader::text),
            envoy_version: o.read("envoy_version", Reader::text),
        };
        if o.is_sound() && extension.name.is_empty() {
            o.report("name", "missing: an extension has a name, such as \"builtin/lua\"");
        }
        extension
    })
}

fn access_logs(reader: &mut Reader, at: &At<'_>) -> AccessLogs {
    reader.object(at, |o| {
        let logs = AccessLogs {
            enabled: o.read("enabled", Reader::boolean),
            disable_listener_logs: o.read("disable_listener_logs", Reader::boolean),
            r#type: o.read("type", |reader, at| reader.one_of(at, &LOG_TYPES)).to_owned(),
            path: o.read("path", Reader::text),
            json_format: o.read("json_format", Reader::text),
            text_format: o.read("text_format", Reader::text),
        };
        if o.is_sound() {
            rules::access_logs(o, &logs);
        }
        logs
    })
}

fn upstream(reader: &mut Reader, at: &At<'_>) -> Upstream {
    reader.object(at, |o| {
        let upstream = Upstream {
            destination_type: o
                .read("destination_type", |reader, at| reader.one_of(at, &DESTINATION_TYPES)),
            destination_name: o.read("destination_name", Reader::text),
            destination_namespace: o.read("destination_namespace", Reader::text),
            destination_partition: o.read_since(
                Since::Release(1, 11),
                "destination_partition",
                Reader::text,
            ),
            destination_port: o.read_since(Since::Release(2, 0), "destination_port", Reader::text),
            destination_peer: o.read_since(Since::Release(1, 13), "destination_peer", Reader::text),
            datacenter: o.read("datacenter", Reader::text),
            local_bind_address: o.read("local_bind_address", Reader::text),
            local_bind_port: o.read("local_bind_port", Reader::port),
            local_bind_socket_path: o.read("local_bind_socket_path", Reader::text),
            local_bind_socket_mode: o.read("local_bind_socket_mode", Reader::text),
            config: o.read("config", Reader::free),
            mesh_gateway: o.read("mesh_gateway", mesh_gateway),
        };
        if o.is_sound() {
            rules::upstream(o, &upstream);
        }
        upstream
    })
}

fn mesh_gateway(reader: &mut Reader, at: &At<'_>) -> MeshGateway {
    reader.object(at, |o| MeshGateway {
        mode: o.read("mode", |reader, at| reader.one_of(at, &MESH_GATEWAY_MODES)).to_owned(),
    })
}

fn expose(reader: &mut Reader, at: &At<'_>) -> Expose {
    reader.object(at, |o| {
        let expose = Expose {
            checks: o.read("checks", Reader::boolean),
            paths: o.read("paths", |reader, at| reader.list(at, expose_path)),
        };
        // Consul's CLI reads it and has nowhere to send it.
        o.read("port", |reader, at| {
            if reader.port(at) != 0 {
                reader.warn(at, "has no effect: each path has a `listener_port` of its own");
            }
        });
        if o.is_sound() {
            rules::expose(o, &expose);
        }
        expose
    })
}

fn expose_path(reader: &mut Reader, at: &At<'_>) -> ExposePath {
    reader.object(at, |o| ExposePath {
        path: o.read("path", Reader::text),
        listener_port: o.read("listener_port", Reader::port),
        local_path_port: o.read("local_path_port", Reader::port),
        protocol: o.read("protocol", |reader, at| reader.one_of(at, &PROTOCOLS)).to_owned(),
    })
}

/// The entries of `checks`, then `check`: the order in which Consul's CLI sends
/// them and the agent numbers them.
fn checks(o: &mut Object<'_, '_>) -> Vec<Check> {
    let mut checks = o.read("checks", |reader, at| reader.list(at, check));
    checks.extend(o.optional("check", check));
    rules::check_ids(o, &checks);
    checks
}

fn check(reader: &mut Reader, at: &At<'_>) -> Check {
    reader.object(at, |o| {
        fn duration(o: &mut Object<'_, '_>, key: &'static str) -> Option<GoDuration> {
            o.read(key, Reader::duration)
        }
        let check = Check {
            check_id: check_id(o),
            name: o.read("name", Reader::text),
            notes: o.read("notes", Reader::text),
            status: o.read("status", |reader, at| reader.one_of(at, &STATUSES)),
            ttl: duration(o, "ttl"),
            interval: duration(o, "interval"),
            timeout: duration(o, "timeout"),
            tcp: o.read("tcp", Reader::text),
            tcp_use_tls: o.read_since(Since::Release(1, 17), "tcp_use_tls", Reader::boolean),
            udp: o.read_since(Since::Release(1, 13), "udp", Reader::text),
            http: o.read("http", Reader::text),
            method: o.read("method", Reader::text),
            header: o.read("header", |reader, at| reader.map(at, Reader::texts)),
            body: o.read("body", Reader::text),
            disable_redirects: o.read("disable_redirects", Reader::boolean),
            grpc: o.read("grpc", Reader::text),
            grpc_use_tls: o.read("grpc_use_tls", Reader::boolean),
            h2ping: o.read("h2ping", Reader::text),
            h2ping_use_tls: o.read_since(Since::Release(1, 11), "h2ping_use_tls", |reader, at| {
                Some(reader.boolean(at))
            }),
            tls_skip_verify: o.read("tls_skip_verify", Reader::boolean),
            tls_server_name: o.read("tls_server_name", Reader::text),
            args: o.read("args", Reader::texts),
            docker_container_id: o.read("docker_container_id", Reader::text),
            shell: o.read("shell", Reader::text),
            os_service: o.read_since(Since::Release(1, 14), "os_service", Reader::text),
            alias_service: o.read("alias_service", Reader::text),
            alias_node: o.read("alias_node", Reader::text),
            success_before_passing: o.read("success_before_passing", Reader::count),
            failures_before_warning: o.read_since(
                Since::Release(1, 11),
                "failures_before_warning",
                Reader::count,
            ),
            failures_before_critical: o.read("failures_before_critical", Reader::count),
            output_max_size: o.read("output_max_size", Reader::count),
            deregister_critical_service_after: duration(o, "deregister_critical_service_after"),
        };
        without_effect(o);
        if o.is_sound() {
            rules::check(o, &check);
        }
        check
    })
}

/// Reads the keys that have no effect in a check within a service, and warns of them.
fn without_effect(o: &mut Object<'_, '_>) {
    o.read("service_id", |reader, at| {
        let owner = reader.text(at);
        let message = "has no effect: a check within a service belongs to that service";
        let found =
            Found { offset: at.node.offset, path: at.path.clone(), message: message.to_owned() };
        reader.owners.push((found, owner));
    });
    if o.read("token", Reader::secret).is_some() {
        o.warn("token", "has no effect: the agent uses the token of the check's service");
    }
}

/// The HTTP API has another name for it, as it has an `id` for services.
fn check_id(o: &mut Object<'_, '_>) -> String {
    let id = o.read("id", Reader::text);
    let api = o.read("check_id", Reader::text);
    if !id.is_empty() && !api.is_empty() {
        o.report("check_id", "given twice: first as `id`");
    }
    if id.is_empty() { api } else { id }
}

#[cfg(test)]
mod tests;
