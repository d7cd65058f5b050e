//! The API server's part before it stores a pod: it sends an admission review to the
//! injector and applies the patch.
//!
//! Source: the Kubernetes page "Dynamic Admission Control".

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::Result;

/// The admission review of a new pod.
pub fn review(pod: &Value, namespace: &str, uid: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": uid,
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": namespace,
            "name": pod["metadata"]["name"],
            "operation": "CREATE",
            "userInfo": {"username": "demo"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

/// The pod, with the patch of the injector's response.
///
/// # Errors
/// The pod was denied, or the response is not for this review.
pub fn admitted(pod: &Value, answer: &Value, uid: &str) -> Result<Value> {
    let response = &answer["response"];
    if response["uid"] != uid {
        return Err(format!("the answer is for another review: {answer}").into());
    }
    if response["allowed"] != true {
        return Err(format!("the pod was denied: {}", response["status"]["message"]).into());
    }
    let mut pod = pod.clone();
    if let Some(patch) = response["patch"].as_str() {
        let patch: json_patch::Patch = serde_json::from_slice(&BASE64_STANDARD.decode(patch)?)?;
        json_patch::patch(&mut pod, &patch)?;
    }
    Ok(pod)
}
