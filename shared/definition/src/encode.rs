//! Registrations into a definition file.

use registration::Service;
use serde_json::{Map, Value as Json};

use crate::Format;
use crate::hcl;

/// Writes services as a definition file: one as `service`, several as
/// `services`. Reading it gives the same services, but for ACL tokens, which are
/// left out.
pub fn print<'s>(services: impl IntoIterator<Item = &'s Service>, format: Format) -> String {
    let mut services: Vec<Json> = services.into_iter().map(entry).collect();
    let (key, value) = match services.len() {
        1 => ("service", services.remove(0)),
        _ => ("services", Json::Array(services)),
    };
    let file = Map::from_iter([(key.to_owned(), value)]);
    match format {
        Format::Hcl => hcl::print::print(&file),
        Format::Json => format!("{:#}\n", Json::Object(file)),
    }
}

fn entry(service: &Service) -> Json {
    // Strings, numbers, lists and maps with string keys.
    let body = serde_json::to_value(service).expect("a registration is JSON");
    renamed(body)
}

/// The keys of the HTTP API as files have them. The user's own keys stay.
fn renamed(value: Json) -> Json {
    match value {
        Json::Array(items) => items.into_iter().map(renamed).collect(),
        Json::Object(entries) => {
            let entries = entries.into_iter().filter(|(key, _)| key != "Token");
            let entries = entries.map(|(key, value)| {
                let value = match (key.as_str(), value) {
                    ("Meta" | "Config" | "Header" | "Arguments", value) => value,
                    ("TaggedAddresses", Json::Object(addresses)) => addresses
                        .into_iter()
                        .map(|(name, address)| (name, renamed(address)))
                        .collect::<Map<_, _>>()
                        .into(),
                    (_, value) => renamed(value),
                };
                (snake_case(&key), value)
            });
            Json::Object(entries.collect())
        }
        other => other,
    }
}

/// `TLSSkipVerify` is `tls_skip_verify`, `DestinationServiceID`
/// `destination_service_id`.
fn snake_case(key: &str) -> String {
    if key == "CheckID" {
        return "id".to_owned();
    }
    let chars: Vec<char> = key.chars().collect();
    let mut snake = String::new();
    for (index, c) in chars.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| chars[before]);
        let after = chars.get(index + 1);
        let begins_word = before.is_some_and(|before| {
            before.is_ascii_lowercase()
                || (before.is_ascii_uppercase() && after.is_some_and(char::is_ascii_lowercase))
        });
        if c.is_ascii_uppercase() && begins_word {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use registration::pod::{Declaration, Identity, pair};
    use registration::upstream::{Context, parse_list};

    use super::*;
    use crate::parse;

    fn declaration() -> impl Strategy<Value = Declaration> {
        let meta = prop::collection::btree_map("[a-zA-Z_-]{1,9}", any::<String>(), 0..3);
        let upstreams = prop::sample::subsequence(
            vec!["db:1", "cache:2:dc2", "prepared_query:q:3", "x.svc.n.ns.p.peer:4"],
            0..4,
        );
        let tags = prop::collection::vec(any::<String>(), 0..3);
        let port = prop::option::of(1..=u16::MAX);
        (meta, upstreams, tags, port, any::<String>()).prop_map(
            |(meta, upstreams, tags, port, text)| {
                let meta = meta.into_iter().filter(|(key, _)| !key.starts_with("consul-"));
                Declaration {
                    name: "web".to_owned(),
                    port,
                    tags,
                    meta: meta.collect::<BTreeMap<_, _>>(),
                    upstreams: parse_list(&upstreams.join(","), Context::default()).unwrap(),
                    proxy_config: Map::from_iter([("x".to_owned(), text.into())]),
                    ..Declaration::default()
                }
            },
        )
    }

    proptest! {
        /// Whatever the injector registers can be written down.
        #[test]
        fn what_a_pod_registers_is_read_back(declared in declaration()) {
            let pod = Identity {
                name: "web-0".to_owned(),
                namespace: "shop".to_owned(),
                ip: [10, 0, 0, 7].into(),
            };
            let pair = pair(&pod, declared);
            let services = [&pair.service, &pair.proxy];
            for format in [Format::Hcl, Format::Json] {
                let text = print(services, format);
                let read = parse("f", format, &text).unwrap();
                prop_assert!(read.iter().map(|read| &read.service).eq(services), "{}", text);
            }
        }
    }

    #[test]
    fn a_file_that_people_read() {
        let service = Service {
            name: "web".to_owned(),
            port: 80,
            tags: vec!["a".to_owned()],
            meta: BTreeMap::from([("Some Key".to_owned(), "${x}".to_owned())]),
            checks: vec![registration::Check {
                check_id: "c".to_owned(),
                tcp: "h:1".to_owned(),
                tls_skip_verify: true,
                ..registration::Check::default()
            }],
            ..Service::default()
        };
        assert_eq!(
            print([&service], Format::Hcl),
            "service {\n  name = \"web\"\n  port = 80\n  checks = [\n    {\n      id = \"c\"\n      \
             tcp = \"h:1\"\n      tls_skip_verify = true\n    },\n  ]\n  meta {\n    \
             \"Some Key\" = \"\\x24{x}\"\n  }\n  tags = [\"a\"]\n}\n"
        );
        let two = print([&service, &service], Format::Hcl);
        assert!(two.starts_with("services = [\n  {\n    name"), "{two}");
    }

    #[test]
    fn keys_are_those_of_files() {
        for (key, file) in [
            ("ID", "id"),
            ("CheckID", "id"),
            ("H2PING", "h2ping"),
            ("H2PingUseTLS", "h2ping_use_tls"),
            ("TLSSkipVerify", "tls_skip_verify"),
            ("OSService", "os_service"),
            ("DestinationServiceID", "destination_service_id"),
        ] {
            assert_eq!(snake_case(key), file);
        }
    }
}
