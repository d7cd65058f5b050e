//! The ACL token of a bootstrap: replacing it, or moving it to a file that Envoy
//! watches.

use serde_json::{Value, json};

use crate::document::cluster::LOCAL_AGENT;

/// The gRPC metadata key of the ACL token.
pub(crate) const METADATA_KEY: &str = "x-consul-token";

/// The name under which Envoy asks for the token.
pub(crate) const SECRET: &str = "consul-token";

/// The first minor release of Envoy 1 whose `credential_injector` works as an
/// upstream filter, as that of the xDS cluster is.
///
/// Source: "Made the credential injector filter work as an upstream filter" in
/// Envoy's [version history of 1.34.0](https://www.envoyproxy.io/docs/envoy/latest/version_history/v1.34/v1.34.0).
/// The tests run on 1.36 and 1.40.
pub const WATCHES_TOKEN: u32 = 34;

/// Contents of the file from which Envoy reads its token: a secret of Envoy's secret
/// discovery service.
pub fn token_secret(token: &str) -> Value {
    json!({
        "resources": [{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": SECRET,
            "generic_secret": { "secret": { "inline_string": token } },
        }],
    })
}

/// Makes Envoy read its token from a file with the contents of [`token_secret`], and
/// again whenever the file is replaced. Returns `false` for a bootstrap from a user's
/// template, which keeps its token where it is.
///
/// Source: Envoy's "Credential injector" page, and `SdsSecretConfig`.
pub fn watch_token(document: &mut Value, file: &str) -> bool {
    let Some(services) = document.pointer("/dynamic_resources/ads_config/grpc_services") else {
        return false;
    };
    let metadata = services["initial_metadata"].as_array();
    if !metadata.is_some_and(|list| list.len() == 1 && list[0]["key"] == METADATA_KEY) {
        return false;
    }
    let clusters = document.pointer_mut("/static_resources/clusters").and_then(Value::as_array_mut);
    let agent = clusters.into_iter().flatten().find(|cluster| cluster["name"] == LOCAL_AGENT);
    let options = agent.and_then(|cluster| {
        let options = cluster.get_mut("typed_extension_protocol_options")?;
        options.get_mut("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")?.as_object_mut()
    });
    let Some(options) = options else { return false };
    options.insert("http_filters".to_owned(), injector(file));
    let services = document.pointer_mut("/dynamic_resources/ads_config/grpc_services");
    if let Some(services) = services.and_then(Value::as_object_mut) {
        services.remove("initial_metadata");
    }
    true
}

/// HTTP filters of the cluster: the one that adds the token, and the one that must come
/// last.
fn injector(file: &str) -> Value {
    json!([
        {
            "name": "envoy.filters.http.credential_injector",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector",
                "overwrite": true,
                "credential": {
                    "name": "envoy.http.injected_credentials.generic",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic",
                        "credential": {
                            "name": SECRET,
                            "sds_config": {
                                "path_config_source": { "path": file },
                                "resource_api_version": "V3",
                            },
                        },
                        "header": METADATA_KEY,
                    },
                },
            },
        },
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec",
            },
        },
    ])
}

/// Replaces every occurrence of the ACL token, and returns how many there were. A
/// user's template may put it anywhere.
pub fn replace_token(document: &mut Value, token: &str) -> usize {
    match document {
        Value::Object(members) => {
            let is_token = members.get("key").is_some_and(|key| key == METADATA_KEY);
            match members.get_mut("value") {
                Some(value) if is_token => {
                    *value = token.into();
                    1
                }
                _ => members.values_mut().map(|value| replace_token(value, token)).sum(),
            }
        }
        Value::Array(list) => list.iter_mut().map(|value| replace_token(value, token)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, Token, XdsAddress};

    #[test]
    fn a_token_that_envoy_watches_is_not_in_the_document() {
        let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
        let mut input = Input::new("web-sidecar-proxy", "web", agent);
        input.xds.token = Token::new("s3cret");
        let mut document = crate::render(&input, &|_| None).unwrap();
        assert!(watch_token(&mut document, "/d/token.json"));
        let text = document.to_string();
        assert!(text.contains("/d/token.json") && !text.contains("s3cret"), "{text}");
        assert!(token_secret("s3cret").to_string().contains("s3cret"));
        // Neither this bootstrap nor one from a template contains a token to replace.
        assert!(!watch_token(&mut document, "/d/other.json"));
        assert!(!watch_token(&mut json!({"static_resources": {"clusters": []}}), "/d"));
    }

    #[test]
    fn another_token_is_all_that_changes() {
        let rendered = |token: &str| {
            let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
            let mut input = Input::new("web-sidecar-proxy", "web", agent);
            input.xds.token = Token::new(token);
            crate::render(&input, &|_| None).unwrap()
        };
        let mut document = rendered("old");
        assert_eq!(replace_token(&mut document, "new"), 1);
        assert_eq!(document, rendered("new"));
    }
}
