//! The harness notices updates that Envoy rejects.

use harness::kubelet::Pod;
use harness::tutorial::injected_pod;
use serde_json::{Value, json};

use crate::mesh::{Mesh, server};

/// An escape hatch with a filter that lacks a required field.
#[test]
fn a_pod_whose_envoy_rejects_its_listener_does_not_count_as_started() {
    let Some(mesh) = Mesh::find_or_skip() else { return };
    let listener = json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "public_listener:0.0.0.0:20000",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 20000}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            },
        }]}],
    });
    let config = json!({"envoy_public_listener_json": listener.to_string()});
    let pod = server("api-1", &json!({"proxy-config-map": config.to_string()}), &Value::Null);
    let pod = injected_pod(&mesh.node, &mesh.injector, &pod).unwrap();
    let mut pod = Pod::create(&mesh.node, &pod).unwrap();
    let error = pod.start().unwrap_err().to_string();
    assert!(error.contains("rejected updates"), "{error}");
}
