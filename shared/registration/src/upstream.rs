//! Upstreams, and the grammar in which the annotation `connect-service-upstreams` and
//! `--upstream` write them.
//!
//! A list is separated by commas; blanks around an element are ignored. An element is
//! one of
//!
//! ```text
//! NAME:PORT                                   a service
//! NAME:PORT:DATACENTER                        a service in another datacenter
//! prepared_query:NAME:PORT                    a prepared query
//! NAME.svc[.NS.ns][.PEER.peer|.PART.ap|.DC.dc]:PORT     with labels
//! NAME.NS[.PART]:PORT[:DATACENTER]            with Consul Enterprise's namespaces
//! ```
//!
//! followed by `?key=value&key=value` or `:key=value` for `local_bind_address`,
//! `mesh_gateway_mode` and `datacenter`. PORT is the local port, as a number or by a
//! container port's name.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::listener::{Bind, Listener, collisions};
use crate::port::Named;
use crate::proxy::{MeshGateway, null_is_default};
use crate::{is_default, name, port};

/// An upstream as the agent registers it.
///
/// Source: Consul's "Sidecar Service Registration" page, "Upstream
/// Configuration Reference".
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Upstream {
    pub destination_type: DestinationType,
    /// Name of the service or prepared query.
    pub destination_name: String,
    /// Consul Enterprise namespace.
    #[serde(skip_serializing_if = "is_default")]
    pub destination_namespace: String,
    /// Consul Enterprise admin partition.
    #[serde(skip_serializing_if = "is_default")]
    pub destination_partition: String,
    /// Name of one of the destination's ports (Consul 2.0).
    #[serde(skip_serializing_if = "is_default")]
    pub destination_port: String,
    /// Cluster peer that exports the destination (Consul 1.13).
    #[serde(skip_serializing_if = "is_default")]
    pub destination_peer: String,
    /// Empty: the agent's own.
    #[serde(skip_serializing_if = "is_default")]
    pub datacenter: String,
    /// Address on which the proxy listens; empty: 127.0.0.1.
    #[serde(skip_serializing_if = "is_default")]
    pub local_bind_address: String,
    #[serde(skip_serializing_if = "is_default")]
    pub local_bind_port: u16,
    /// Unix socket instead of address and port (Consul 1.10).
    #[serde(skip_serializing_if = "is_default")]
    pub local_bind_socket_path: String,
    /// File mode of the socket in octal digits.
    #[serde(skip_serializing_if = "is_default")]
    pub local_bind_socket_mode: String,
    /// Upstream settings, such as `connect_timeout_ms`.
    #[serde(skip_serializing_if = "is_default", deserialize_with = "null_is_default")]
    pub config: Map<String, Value>,
    /// Routing to other datacenters.
    #[serde(skip_serializing_if = "is_default")]
    pub mesh_gateway: MeshGateway,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationType {
    #[default]
    #[serde(alias = "")]
    Service,
    PreparedQuery,
}

/// Context that the grammar depends on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// Container ports that may stand for a local port.
    pub named_ports: &'a [Named<'a>],
    /// Whether a dot in an unlabelled name separates Consul Enterprise's namespace and
    /// partition; otherwise it is part of the name.
    pub namespaces: bool,
}

/// An error in a list of upstreams.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("upstream `{element}`, column {column}: {problem}")]
pub struct SpecError {
    /// The wrong element of the list.
    pub element: String,
    /// Position in characters of the whole list, from 1.
    pub column: usize,
    /// What is wrong, and what is accepted.
    pub problem: String,
}

/// Two upstreams that can't coexist, or one on a port in use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Both have the same local port.
    #[error(
        "upstreams `{first}` and `{second}` both listen on {}: give each a local port of its own",
        std::net::SocketAddr::new(*.address, *.port)
    )]
    SamePort {
        first: String,
        second: String,
        /// The local address, or the one of the two that covers both.
        address: IpAddr,
        port: u16,
    },
    /// Both have the same unix socket.
    #[error(
        "upstreams `{first}` and `{second}` both listen on {path}: give each a socket of its own"
    )]
    SameSocket { first: String, second: String, path: String },
    /// Both have the same destination, which the agent rejects.
    #[error("upstream `{destination}` is given twice: one is enough for any number of connections")]
    SameDestination { destination: String },
    #[error(
        "upstream `{destination}` would listen on port {port}, which is {owner}: choose another local port"
    )]
    Taken {
        destination: String,
        port: u16,
        /// The user of the port.
        owner: String,
    },
}

const FORMS: &str = "`name:port`, `name:port:datacenter` or `prepared_query:name:port`";
const LABELS: &str = "`name.svc[.NAMESPACE.ns][.PEER.peer|.PARTITION.ap|.DATACENTER.dc]:port`";
const OPTIONS: &str = "`local_bind_address`, `mesh_gateway_mode` or `datacenter`";

/// Parses a list of upstreams. An empty or blank text is an empty list.
///
/// # Errors
/// The first wrong element, with its column.
pub fn parse_list(list: &str, context: Context<'_>) -> Result<Vec<Upstream>, SpecError> {
    if list.trim().is_empty() {
        return Ok(Vec::new());
    }
    let mut upstreams = Vec::new();
    let mut start = 0;
    for raw in list.split(',') {
        let column = 1
            + list[..start].chars().count()
            + raw.chars().take_while(|c| c.is_whitespace()).count();
        upstreams.push(Element { text: raw.trim(), column, context }.parse()?);
        start += raw.len() + 1;
    }
    Ok(upstreams)
}

/// Finds upstreams that can't be served together. `taken` lists local ports in use in
/// the pod, with their users.
pub fn conflict(upstreams: &[Upstream], taken: &[(u16, String)]) -> Option<Conflict> {
    same_destination(upstreams)
        .or_else(|| same_port(upstreams, taken))
        .or_else(|| same_socket(upstreams))
}

/// Source: the agent's own rule, "upstreams cannot contain duplicates of [type,
/// name, namespace, datacenter]".
pub fn same_destination(upstreams: &[Upstream]) -> Option<Conflict> {
    let mut destinations = HashSet::new();
    let second = upstreams.iter().find(|upstream| !destinations.insert(upstream.to_string()))?;
    Some(Conflict::SameDestination { destination: second.to_string() })
}

fn same_port(upstreams: &[Upstream], taken: &[(u16, String)]) -> Option<Conflict> {
    let taken = taken.iter().map(|(port, owner)| Listener {
        bind: Bind::Any,
        port: *port,
        what: owner.clone(),
        is_application: true,
    });
    let mut listeners: Vec<Listener> = taken.collect();
    let others = listeners.len();
    // An upstream on a unix socket has no port.
    let upstreams: Vec<&Upstream> =
        upstreams.iter().filter(|upstream| upstream.local_bind_port > 0).collect();
    listeners.extend(upstreams.iter().map(|upstream| upstream.listener()));
    let (first, second) = collisions(&listeners).into_iter().next()?;
    let destination = upstreams[second - others].to_string();
    let port = listeners[second].port;
    let Some(first) = first.checked_sub(others) else {
        let owner = listeners[first].what.clone();
        return Some(Conflict::Taken { destination, port, owner });
    };
    let first = upstreams[first];
    let second = upstreams[second - others];
    let address = match first.bind_address() {
        address if address.is_unspecified() => address,
        _ => second.bind_address(),
    };
    Some(Conflict::SamePort { first: first.to_string(), second: destination, address, port })
}

/// Finds two upstreams on one unix socket.
pub fn same_socket(upstreams: &[Upstream]) -> Option<Conflict> {
    let mut first: HashMap<&str, &Upstream> = HashMap::new();
    upstreams.iter().filter(|upstream| !upstream.local_bind_socket_path.is_empty()).find_map(
        |upstream| {
            let path = upstream.local_bind_socket_path.as_str();
            let first = first.insert(path, upstream)?;
            Some(Conflict::SameSocket {
                first: first.to_string(),
                second: upstream.to_string(),
                path: path.to_owned(),
            })
        },
    )
}

/// One element of a list, and its position.
#[derive(Clone, Copy)]
struct Element<'a> {
    text: &'a str,
    column: usize,
    context: Context<'a>,
}

#[derive(Default)]
struct Destination {
    name: String,
    namespace: String,
    partition: String,
    peer: String,
    datacenter: String,
    labelled: bool,
}

// === impl Upstream ===

impl Upstream {
    /// The address of its listener.
    pub fn bind_address(&self) -> IpAddr {
        self.local_bind_address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    pub fn listener(&self) -> Listener {
        Listener {
            bind: Bind::Ip(self.bind_address()),
            port: self.local_bind_port,
            what: format!("upstream `{self}`"),
            is_application: false,
        }
    }

    /// Stem of the environment variables by which an application finds the upstream:
    /// `<STEM>_CONNECT_SERVICE_HOST` and `_PORT`. Characters that a shell variable
    /// can't have become `_`; a leading digit is avoided, because Kubernetes before
    /// 1.30 rejects it.
    pub fn variable_stem(&self) -> String {
        let digit = self.destination_name.starts_with(|c: char| c.is_ascii_digit());
        digit
            .then_some('_')
            .into_iter()
            .chain(self.destination_name.chars())
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' })
            .collect()
    }

    /// The upstream in the grammar, so that parsing gives the same upstream.
    pub fn spec(&self) -> String {
        let Self {
            destination_type,
            destination_name: name,
            destination_namespace: namespace,
            destination_partition: partition,
            destination_peer: peer,
            datacenter,
            local_bind_address,
            local_bind_port: port,
            mesh_gateway,
            // The grammar can't express these.
            destination_port: _,
            local_bind_socket_path: _,
            local_bind_socket_mode: _,
            config: _,
        } = self;
        let mut labels = String::new();
        for (value, label) in [(namespace, "ns"), (partition, "ap"), (peer, "peer")] {
            if !value.is_empty() {
                labels.extend([".", value, ".", label]);
            }
        }
        let destination = match destination_type {
            DestinationType::PreparedQuery => format!("prepared_query:{name}"),
            // The label distinguishes a service of that name from a query.
            DestinationType::Service if !labels.is_empty() || name == "prepared_query" => {
                format!("{name}.svc{labels}")
            }
            DestinationType::Service => name.clone(),
        };
        let options: Vec<String> = [
            ("datacenter", datacenter),
            ("mesh_gateway_mode", &mesh_gateway.mode),
            ("local_bind_address", local_bind_address),
        ]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
        let mark = if options.is_empty() { "" } else { "?" };
        format!("{destination}:{port}{mark}{}", options.join("&"))
    }
}

impl fmt::Display for Upstream {
    /// The destination in errors: `db`, `prepared_query:db`, `db (datacenter dc2)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.destination_type == DestinationType::PreparedQuery {
            f.write_str("prepared_query:")?;
        }
        f.write_str(&self.destination_name)?;
        for (what, value) in [
            ("namespace", &self.destination_namespace),
            ("partition", &self.destination_partition),
            ("peer", &self.destination_peer),
            ("port", &self.destination_port),
            ("datacenter", &self.datacenter),
        ] {
            if !value.is_empty() {
                write!(f, " ({what} {value})")?;
            }
        }
        Ok(())
    }
}

// === impl Element ===

impl<'a> Element<'a> {
    fn parse(self) -> Result<Upstream, SpecError> {
        if self.text.is_empty() {
            return Err(self.error(self.text, format!("an empty element: expected {FORMS}")));
        }
        let (body, options) = match self.text.split_once('?') {
            Some((body, options)) => (body, Some(options)),
            None => (self.text, None),
        };
        // Three at most: an option behind the third may contain colons (IPv6).
        let fields: Vec<&'a str> = body.splitn(3, ':').map(str::trim).collect();
        let mut upstream = match fields[..] {
            ["prepared_query", query, port] => self.prepared_query(query, port)?,
            ["prepared_query", ..] => {
                return Err(self.error(self.text, "expected `prepared_query:name:port`".to_owned()));
            }
            [destination, port] => self.service(destination, port, None)?,
            [destination, port, third] => self.service(destination, port, Some(third))?,
            _ => return Err(self.error(self.text, format!("no local port: expected {FORMS}"))),
        };
        if let Some(options) = options {
            self.apply_options(&mut upstream, options)?;
        }
        Ok(upstream)
    }

    fn prepared_query(self, query: &'a str, port: &'a str) -> Result<Upstream, SpecError> {
        if query.is_empty() {
            return Err(self.error(query, "the prepared query has no name".to_owned()));
        }
        Ok(Upstream {
            destination_type: DestinationType::PreparedQuery,
            destination_name: query.to_owned(),
            local_bind_port: self.local_port(port)?,
            ..Upstream::default()
        })
    }

    fn service(
        self,
        destination: &'a str,
        port: &'a str,
        third: Option<&'a str>,
    ) -> Result<Upstream, SpecError> {
        let parts = self.destination(destination)?;
        let mut upstream = Upstream {
            destination_name: parts.name,
            destination_namespace: parts.namespace,
            destination_partition: parts.partition,
            destination_peer: parts.peer,
            datacenter: parts.datacenter,
            local_bind_port: self.local_port(port)?,
            ..Upstream::default()
        };
        match third {
            None => {}
            Some(options) if options.contains('=') => self.apply_options(&mut upstream, options)?,
            Some(datacenter) if parts.labelled => {
                let problem = format!(
                    "expected no third field, because the labels name the datacenter: {LABELS}"
                );
                return Err(self.error(datacenter, problem));
            }
            Some(datacenter) => self.datacenter(datacenter)?.clone_into(&mut upstream.datacenter),
        }
        Ok(upstream)
    }

    /// `NAME`, `NAME.svc...` or, with namespaces, `NAME.NS[.PARTITION]`.
    fn destination(self, text: &'a str) -> Result<Destination, SpecError> {
        let pieces: Vec<&'a str> = text.split('.').collect();
        let mut parts = Destination::default();
        if pieces.get(1) == Some(&"svc") {
            parts.labelled = true;
            self.service_name(pieces[0])?.clone_into(&mut parts.name);
            for pair in pieces[2..].chunks(2) {
                let &[value, label] = pair else {
                    return Err(self
                        .error(pair[0], format!("a value without its label: expected {LABELS}")));
                };
                let slot = match label {
                    "ns" => &mut parts.namespace,
                    "ap" => &mut parts.partition,
                    "peer" => &mut parts.peer,
                    "dc" => &mut parts.datacenter,
                    _ => {
                        return Err(self
                            .error(label, format!("`{label}` is not a label: expected {LABELS}")));
                    }
                };
                if !slot.is_empty() {
                    return Err(self.error(label, format!("the label `{label}` is given twice")));
                }
                self.service_name(value)?.clone_into(slot);
            }
            let exclusive = [&parts.partition, &parts.peer, &parts.datacenter];
            if exclusive.iter().filter(|value| !value.is_empty()).count() > 1 {
                return Err(self.error(
                    text,
                    format!("at most one of `peer`, `ap` and `dc`: expected {LABELS}"),
                ));
            }
            return Ok(parts);
        }
        // Kubernetes' own names (`web.default.svc...`) and consul-k8s' of a named port
        // (`http.port.web.svc`) would be parsed as a service's name.
        if let Some(label) = pieces.iter().skip(2).find(|piece| **piece == "svc") {
            let problem = format!("`svc` must follow the service's name: expected {LABELS}");
            return Err(self.error(label, problem));
        }
        if !self.context.namespaces {
            self.service_name(text)?.clone_into(&mut parts.name);
            return Ok(parts);
        }
        let slots = [&mut parts.name, &mut parts.namespace, &mut parts.partition];
        if pieces.len() > slots.len() {
            let problem =
                "too many dots: expected `name`, `name.namespace` or `name.namespace.partition`";
            return Err(self.error(pieces[3], problem.to_owned()));
        }
        for (slot, piece) in slots.into_iter().zip(pieces) {
            self.service_name(piece)?.clone_into(slot);
        }
        Ok(parts)
    }

    fn service_name(self, text: &'a str) -> Result<&'a str, SpecError> {
        name::check(text).map(|()| text).map_err(|error| self.error(text, error.to_string()))
    }

    fn datacenter(self, text: &'a str) -> Result<&'a str, SpecError> {
        if let Some((_, rest)) = text.split_once(':') {
            return Err(self.error(rest, format!("too many fields: expected {FORMS}")));
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if text.is_empty() || !text.chars().all(legal) {
            return Err(self.error(
                text,
                format!("`{text}` is not a datacenter: expected letters, digits, `-` or `_`"),
            ));
        }
        Ok(text)
    }

    fn local_port(self, text: &'a str) -> Result<u16, SpecError> {
        port::resolve(text, self.context.named_ports)
            .map_err(|error| self.error(text, format!("local {error}")))
    }

    /// `key=value` pairs, separated by `&` or `;`.
    fn apply_options(self, upstream: &mut Upstream, options: &'a str) -> Result<(), SpecError> {
        for option in options.split(['&', ';']).map(str::trim) {
            let Some((key, value)) = option.split_once('=') else {
                return Err(self.error(
                    option,
                    format!("`{option}` has no value: expected {OPTIONS} with `=value`"),
                ));
            };
            match key {
                "local_bind_address" | "local-bind-address" | "localBindAddress" => {
                    let address: IpAddr = value.parse().map_err(|_| {
                        self.error(
                            value,
                            format!("`{value}` is no IP address: expected one such as `127.0.0.1`"),
                        )
                    })?;
                    upstream.local_bind_address = address.to_string();
                }
                "mesh_gateway_mode" | "mesh-gateway-mode" | "meshGatewayMode" => match value {
                    "none" | "local" | "remote" => {
                        value.clone_into(&mut upstream.mesh_gateway.mode);
                    }
                    _ => {
                        let problem = format!(
                            "mesh gateway mode `{value}`: expected `none`, `local` or `remote`"
                        );
                        return Err(self.error(value, problem));
                    }
                },
                "datacenter" | "dc" => self.datacenter(value)?.clone_into(&mut upstream.datacenter),
                _ => {
                    return Err(
                        self.error(key, format!("`{key}` is not an option: expected {OPTIONS}"))
                    );
                }
            }
        }
        Ok(())
    }

    /// An error at `part`, a slice of this element's text.
    fn error(self, part: &str, problem: String) -> SpecError {
        let offset = (part.as_ptr() as usize)
            .checked_sub(self.text.as_ptr() as usize)
            .filter(|offset| *offset <= self.text.len())
            .unwrap_or(0);
        let column =
            self.column + self.text.get(..offset).map_or(0, |before| before.chars().count());
        SpecError { element: self.text.to_owned(), column, problem }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(list: &str) -> Result<Vec<Upstream>, SpecError> {
        parse_list(list, Context { named_ports: &[("redis", 6379)], namespaces: false })
    }

    fn one(list: &str) -> Upstream {
        let mut upstreams = parse(list).unwrap();
        assert_eq!(upstreams.len(), 1);
        upstreams.remove(0)
    }

    #[test]
    fn the_documents_example() {
        let upstreams = parse("db:1234,auth:6789").unwrap();
        let seen: Vec<_> =
            upstreams.iter().map(|u| (u.destination_name.as_str(), u.local_bind_port)).collect();
        assert_eq!(seen, [("db", 1234), ("auth", 6789)]);
    }

    #[test]
    fn every_form() {
        assert_eq!(parse("  ").unwrap(), []);
        assert_eq!(one("db:redis").local_bind_port, 6379);
        assert_eq!(one("db:1234:dc2").datacenter, "dc2");
        assert_eq!(one("v1.db:1234").destination_name, "v1.db");
        let query = one(" prepared_query:nearest-db:1234 ");
        assert_eq!(query.destination_type, DestinationType::PreparedQuery);
        assert_eq!(query.destination_name, "nearest-db");
        assert_eq!(one("db.svc:1234").destination_name, "db");
        assert_eq!(one("db.svc.dc2.dc:1234").datacenter, "dc2");
        assert_eq!(one("db.svc.east.peer:1234").destination_peer, "east");
        let all = one("db.svc.team.ns.blue.ap:1234");
        assert_eq!(
            (all.destination_namespace.as_str(), all.destination_partition.as_str()),
            ("team", "blue")
        );
        let options = one("db:1234:dc2?mesh_gateway_mode=local&local_bind_address=127.0.0.2");
        assert_eq!(
            (options.datacenter.as_str(), options.mesh_gateway.mode.as_str()),
            ("dc2", "local")
        );
        assert_eq!(options.local_bind_address, "127.0.0.2");
        assert_eq!(one("db:1234:dc=dc2;mesh_gateway_mode=remote").mesh_gateway.mode, "remote");
        assert_eq!(one("db:1234?local_bind_address=::1").local_bind_address, "::1");
        assert_eq!(one("db:1234:local_bind_address=fd00::1").local_bind_address, "fd00::1");
    }

    #[test]
    fn dots_are_namespaces_where_consul_has_them() {
        let context = Context { namespaces: true, ..Context::default() };
        let upstreams = parse_list("a:1, b.ns:2, c.ns.part:3:dc2", context).unwrap();
        assert_eq!(upstreams[1].destination_name, "b"); // the existing injector keeps the blank
        assert_eq!(upstreams[2].destination_partition, "part");
        assert!(parse_list("a.b.c.d:1", context).is_err());
    }

    /// Half-parsed upstreams. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/224>.
    #[test]
    fn what_is_wrong_is_named_with_its_column() {
        for (list, column, problem) in [
            ("db", 1, "no local port"),
            ("db:1234,", 9, "empty element"),
            ("db:1234,,auth:1", 9, "empty element"),
            ("db:1234, auth", 10, "no local port"),
            ("db:0", 4, "out of range"),
            ("db:65536", 4, "out of range"),
            ("db:grpc", 4, "neither a number"),
            ("db:", 4, "the port is empty"),
            (":1234", 1, "name is empty"),
            ("d b:1234", 1, "column 2"),
            ("db:1234:dc 2", 9, "not a datacenter"),
            ("db:1234:dc2:x", 13, "too many fields"),
            ("prepared_query:db", 1, "expected `prepared_query:name:port`"),
            ("prepared_query::1", 16, "no name"),
            ("db.svc.dc2:1234", 8, "value without its label"),
            ("db.svc.x.zone:1234", 10, "not a label"),
            ("db.svc.a.ns.b.ns:1", 15, "twice"),
            ("db.svc.a.dc.b.peer:1", 1, "at most one"),
            ("web.default.svc.dc3.peer:9000", 13, "`svc` must follow the service's name"),
            ("http.port.web.svc.dc3.peer:9000", 15, "`svc` must follow the service's name"),
            ("web.default.svc:9000", 13, "`svc` must follow the service's name"),
            ("db.svc:1:dc2", 10, "no third field"),
            ("db:1?x=1", 6, "not an option"),
            ("db:1?dc", 6, "no value"),
            ("db:1?mesh_gateway_mode=lokal", 24, "expected `none`"),
            ("db:1?local_bind_address=here", 25, "no IP address"),
            ("a:1,\u{a0}db:0", 9, "out of range"),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.problem.contains(problem), "{list}: {error}");
            assert_eq!(error.column, column, "{list}: {error}");
        }
    }

    #[test]
    fn conflicts_are_found() {
        let find = |list: &str| {
            conflict(&parse(list).unwrap(), &[(20000, "the sidecar's public listener".to_owned())])
        };
        assert_eq!(find("a:1,b:2"), None);
        assert_eq!(find("a:1,b:1?local_bind_address=127.0.0.2"), None);
        assert!(matches!(find("a:1,b:1"), Some(Conflict::SamePort { .. })));
        assert!(matches!(find("a:1,a:2"), Some(Conflict::SameDestination { .. })));
        assert_eq!(find("a:1,a:2:dc2"), None);
        assert!(matches!(find("a:20000"), Some(Conflict::Taken { .. })));
        // 0.0.0.0 covers every IPv4 address, and no IPv6 address.
        let everywhere = find("a:1,b:1?local_bind_address=0.0.0.0").unwrap().to_string();
        assert!(everywhere.contains("both listen on 0.0.0.0:1"), "{everywhere}");
        assert_eq!(find("a:1?local_bind_address=::1,b:1?local_bind_address=0.0.0.0"), None);
        let v6 = find("a:1?local_bind_address=::,b:1?local_bind_address=::1").unwrap().to_string();
        assert!(v6.contains("both listen on [::]:1"), "{v6}");
        let on_socket = |name: &str| Upstream {
            destination_name: name.to_owned(),
            local_bind_socket_path: "/s".to_owned(),
            ..Upstream::default()
        };
        let sockets = conflict(&[on_socket("a"), on_socket("b")], &[]);
        assert!(matches!(sockets, Some(Conflict::SameSocket { .. })));
    }

    #[test]
    fn variables_are_usable_in_a_shell() {
        assert_eq!(one("echo-server:1").variable_stem(), "ECHO_SERVER");
        assert_eq!(one("v1.db:1").variable_stem(), "V1_DB");
        assert_eq!(one("3scale:1").variable_stem(), "_3SCALE");
    }

    #[test]
    fn upstreams_are_written_as_people_write_them() {
        for (written, spec_of) in [
            ("db:1234", "db:1234"),
            ("db:1234:dc2", "db:1234?datacenter=dc2"),
            ("prepared_query:q:1234", "prepared_query:q:1234"),
            ("db.svc:1234", "db:1234"),
            ("prepared_query.svc:1234", "prepared_query.svc:1234"),
            ("db.svc.a.ns.b.peer:1234", "db.svc.a.ns.b.peer:1234"),
            (
                "db:1?mesh_gateway_mode=local&local_bind_address=::1",
                "db:1?mesh_gateway_mode=local&local_bind_address=::1",
            ),
        ] {
            let upstreams = parse_list(written, Context::default()).unwrap();
            assert_eq!(upstreams[0].spec(), spec_of);
        }
    }

    proptest! {
        #[test]
        fn upstreams_are_read_back(
            name in "[a-z]{1,3}", second in "(|\\.[a-z]|\\.svc|\\.svc\\.a\\.ns|\\.svc\\.b\\.ap|\\.svc\\.c\\.peer|\\.svc\\.d\\.dc)",
            port in 1u16.., third in "(|:dc2|\\?dc=dc3|\\?mesh_gateway_mode=remote|\\?local_bind_address=127\\.0\\.0\\.9)", query: bool,
        ) {
            let text = if query { format!("prepared_query:{name}:{port}") } else { format!("{name}{second}:{port}{third}") };
            if let Ok(upstreams) = parse_list(&text, Context::default()) {
                for namespaces in [false, !upstreams[0].destination_name.contains('.')] {
                    let context = Context { namespaces, ..Context::default() };
                    prop_assert_eq!(parse_list(&upstreams[0].spec(), context), Ok(upstreams.clone()));
                }
            }
        }

        #[test]
        fn no_text_panics(list in "[a-z.:,;?&= é0-9_]{0,40}", namespaces: bool) {
            let context = Context { namespaces, ..Context::default() };
            if let Err(error) = parse_list(&list, context) {
                prop_assert!(error.column <= list.chars().count() + 1, "{error}");
            }
        }

        #[test]
        fn simple_lists_are_read_as_written(items in prop::collection::vec(("[a-z][a-z0-9]{0,8}", 1u16..), 1..6)) {
            let list = items.iter().map(|(name, port)| format!("{name}:{port}")).collect::<Vec<_>>().join(" , ");
            let upstreams = parse(&list).unwrap();
            let read: Vec<_> = upstreams.into_iter().map(|u| (u.destination_name, u.local_bind_port)).collect();
            prop_assert_eq!(read, items);
        }
    }
}
