//! The agent's CA in a document: in a file that Envoy watches.

use serde_json::{Value, json};

use crate::document::cluster::LOCAL_AGENT;

/// The name under which Envoy asks for the certificates.
const SECRET: &str = "consul-agent-ca";

/// What the file holds from which Envoy reads the CA certificates of the agent: a secret
/// of Envoy's secret discovery service, by file.
pub fn ca_secret(pem: &str) -> Value {
    json!({
        "resources": [{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            "name": SECRET,
            "validation_context": { "trusted_ca": { "inline_string": pem } },
        }],
    })
}

/// Lets Envoy read the agent's CA certificates from a file in the form of [`ca_secret`], and
/// read it again when it is replaced. Returns whether the bootstrap could be changed: one made
/// from a user's template stays unchanged.
///
/// Source: `SdsSecretConfig` and `PathConfigSource` of Envoy's API.
pub fn watch_ca(document: &mut Value, file: &str) -> bool {
    let clusters = document.pointer_mut("/static_resources/clusters").and_then(Value::as_array_mut);
    let agent = clusters.into_iter().flatten().find(|cluster| cluster["name"] == LOCAL_AGENT);
    let context = agent
        .and_then(|agent| agent.pointer_mut("/transport_socket/typed_config/common_tls_context"))
        .and_then(Value::as_object_mut);
    let Some(context) = context else { return false };
    if context.remove("validation_context").is_none() {
        return false;
    }
    context.insert(
        "validation_context_sds_secret_config".to_owned(),
        json!({
            "name": SECRET,
            "sds_config": {
                "path_config_source": { "path": file },
                "resource_api_version": "V3",
            },
        }),
    );
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, XdsAddress};

    #[test]
    fn certificates_that_envoy_watches_are_not_in_the_document() {
        let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
        let mut input = Input::new("web-sidecar-proxy", "web", agent);
        let mut plain = crate::render(&input, &|_| None).unwrap();
        assert!(!watch_ca(&mut plain, "/d/ca.json"));

        input.xds.ca_pem = Some("-----BEGIN CERTIFICATE-----\n".to_owned());
        let mut document = crate::render(&input, &|_| None).unwrap();
        assert!(watch_ca(&mut document, "/d/ca.json"));
        let text = document.to_string();
        assert!(text.contains("/d/ca.json") && !text.contains("BEGIN CERTIFICATE"), "{text}");
        assert!(ca_secret("-----BEGIN").to_string().contains("-----BEGIN"));
    }
}
