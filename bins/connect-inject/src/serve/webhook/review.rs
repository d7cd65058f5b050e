//! AdmissionReviews: the API server's request and our response.
//!
//! Uses types of its own, because the patch is written as base64 text.
//!
//! Source: "Dynamic Admission Control" of the Kubernetes documentation, "Request" and
//! "Response".

use std::collections::BTreeMap;

use base64_simd::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::received;
use crate::annotation::UPSTREAMS;
use crate::json::patch::{Edit, patch};
use crate::judge::{Verdict, explain, judge};
use crate::outcome::{Denial, Outcome, Reason, one_line};
use crate::pod::Pod;
use crate::policy::{Cluster, Policy};

/// Maximum length of a name in Kubernetes, for the log. A uid has 36 characters.
const LONGEST_NAME: usize = 253;

/// The fields that we need of an AdmissionReview.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Review {
    api_version: ApiVersion,
    kind: Kind,
    request: Request,
}

/// API versions. They differ in their name only; a response has the version of its request.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum ApiVersion {
    #[serde(rename = "admission.k8s.io/v1")]
    V1,
    #[serde(rename = "admission.k8s.io/v1beta1")]
    V1Beta1,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum Kind {
    AdmissionReview,
}

/// Null counts as absent, as in Kubernetes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    #[serde(deserialize_with = "uid")]
    uid: String,
    kind: Option<ObjectKind>,
    sub_resource: Option<String>,
    name: Option<String>,
    namespace: Option<String>,
    operation: Option<String>,
    #[serde(default, deserialize_with = "received::pod")]
    object: Option<Value>,
}

/// Rejects overlong uids, because the response repeats the uid.
fn uid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let uid = String::deserialize(deserializer)?;
    if uid.len() > LONGEST_NAME {
        return Err(D::Error::custom("`uid` is too long"));
    }
    Ok(uid)
}

#[derive(Debug, Deserialize)]
struct ObjectKind {
    kind: Option<String>,
}

/// The response to the API server.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    api_version: ApiVersion,
    kind: Kind,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    /// Recorded in the cluster's audit log.
    audit_annotations: BTreeMap<&'static str, &'static str>,
    /// Printed by `kubectl`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    /// Appended by [`Answer::to_json`].
    #[serde(skip)]
    edits: Option<Vec<Edit>>,
}

/// Why the pod is denied; `kubectl` prints the message.
#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

/// A review and its result. The texts for the log are one line each.
#[derive(Debug)]
pub(crate) struct Reviewed {
    pub(crate) answer: Answer,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    /// The pod's name, or its generateName.
    pub(crate) pod: String,
    pub(crate) reason: Reason,
    /// The reason for people: a sentence.
    pub(crate) message: String,
    /// Printed by `kubectl`.
    pub(crate) warnings: Vec<String>,
}

pub(crate) fn read(body: &[u8]) -> Result<Review, serde_json::Error> {
    serde_json::from_slice(body)
}

impl Review {
    /// Whether the patch may be many times larger than the pod: each container gets
    /// variables for each upstream.
    pub(crate) fn is_long(&self) -> bool {
        const MANY: usize = 256;
        let Some(object) = &self.request.object else { return false };
        let pod = Pod::new(object);
        let list = pod.annotation(UPSTREAMS).ok().flatten().unwrap_or_default();
        let upstreams = list.bytes().filter(|byte| *byte == b',').count() + 1;
        let lists = ["containers", "initContainers"].map(|list| pod.spec(list));
        let containers = lists.into_iter().flatten().filter_map(Value::as_array).map(Vec::len);
        upstreams.saturating_mul(containers.sum()) > MANY
    }

    /// Judges the pod.
    pub(crate) fn review(self, policy: &Policy, cluster: &Cluster) -> Reviewed {
        let Self { api_version, kind, request } = self;
        let shown = |text: &str| one_line(text, LONGEST_NAME);
        let (uid, pod) = (shown(&request.uid), shown(request.pod_name()));
        let namespace = shown(request.namespace.as_deref().unwrap_or_default());
        let Verdict { reason, message, warnings, edits } = request.verdict(policy, cluster);
        let response = Response {
            uid: request.uid,
            allowed: reason.outcome() != Outcome::Denied,
            status: (reason.outcome() == Outcome::Denied).then(|| Status {
                code: 422,
                reason: reason.code(),
                message: message.clone(),
            }),
            audit_annotations: [("outcome", reason.outcome().code()), ("reason", reason.code())]
                .into(),
            warnings: warnings.clone(),
            edits,
        };
        let answer = Answer { api_version, kind, response };
        Reviewed { answer, uid, namespace, pod, reason, message, warnings }
    }
}

impl Request {
    fn verdict(&self, policy: &Policy, cluster: &Cluster) -> Verdict {
        let verdict =
            |reason, message| Verdict { reason, message, warnings: Vec::new(), edits: None };
        let namespace = self.namespace.as_deref().unwrap_or_default();
        // An absent field counts as what a webhook for pod creation receives.
        let is = |found: Option<&str>, expected| found.is_none_or(|found| found == expected);
        let is_pod = is(self.kind.as_ref().and_then(|kind| kind.kind.as_deref()), "Pod");
        let is_creation = is(self.operation.as_deref(), "CREATE");
        if !is_pod || !is_creation || !is(self.sub_resource.as_deref(), "") {
            let reason = Reason::NotAPodCreation;
            return verdict(reason, explain(reason, namespace));
        }
        let Some(pod @ Value::Object(_)) = &self.object else {
            let Denial { reason, message } =
                Denial::new(Reason::InvalidPod, "`request.object`: expected a pod");
            return verdict(reason, message);
        };
        judge(pod, namespace, policy, cluster)
    }

    /// A pod of a Deployment has no name yet, only a generateName.
    fn pod_name(&self) -> &str {
        let metadata = |field| self.object.as_ref()?.get("metadata")?.get(field)?.as_str();
        self.name
            .as_deref()
            .filter(|name| !name.is_empty())
            .or_else(|| metadata("name"))
            .or_else(|| metadata("generateName"))
            .unwrap_or_default()
    }
}

impl Answer {
    /// Serializes the response. The patch is most of it, and its base64 needs no escaping,
    /// so it is appended without another copy.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        const BEFORE: &[u8] = br#","patchType":"JSONPatch","patch":""#;
        const BEHIND: &[u8] = br#""}}"#;
        let mut body = serde_json::to_vec(self).expect("an answer has string keys only");
        let Some(edits) = &self.response.edits else { return body };
        let patch = patch(edits);
        // Closing braces of `response` and of the whole.
        body.truncate(body.len() - b"}}".len());
        let length = STANDARD.encoded_length(patch.len());
        body.reserve_exact(BEFORE.len() + length + BEHIND.len());
        body.extend_from_slice(BEFORE);
        STANDARD.encode_append(patch, &mut body);
        body.extend_from_slice(BEHIND);
        body
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::annotation;
    use crate::policy::tests::policy;

    fn review(body: &Value) -> Value {
        let review = read(&serde_json::to_vec(body).unwrap()).unwrap();
        let reviewed = review.review(&policy(), &Cluster::default());
        serde_json::from_slice(&reviewed.answer.to_json()).unwrap()
    }

    fn request(version: &str, request: &Value) -> Value {
        json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview", "request": request})
    }

    fn pod(inject: &str) -> Value {
        json!({"metadata": {"annotations": {annotation::INJECT: inject}}, "spec": {"containers": [{"name": "a"}]}})
    }

    #[test]
    fn a_response_has_the_version_and_uid_of_its_request() {
        for version in ["v1", "v1beta1"] {
            for object in [pod("true"), pod("false"), pod("perhaps"), json!(null), json!([])] {
                let answer = review(&request(
                    version,
                    &json!({"uid": "u-1", "namespace": "shop", "object": object}),
                ));
                assert_eq!(answer["apiVersion"], format!("admission.k8s.io/{version}"));
                assert_eq!(answer["kind"], "AdmissionReview");
                assert_eq!(answer["response"]["uid"], "u-1");
            }
        }
    }

    #[test]
    fn an_injected_pod_gets_a_patch_in_base64() {
        let answer = review(&request("v1", &json!({"uid": "u", "object": pod("true")})));
        assert_eq!(answer["response"]["allowed"], true);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        assert_eq!(
            answer["response"]["auditAnnotations"],
            json!({"outcome": "injected", "reason": "requested"})
        );
        let patch = STANDARD.decode_to_vec(answer["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: Vec<Value> = serde_json::from_slice(&patch).unwrap();
        assert!(patch.iter().all(|operation| operation["op"] == "add"), "{patch:?}");
    }

    #[test]
    fn a_skipped_pod_is_allowed_without_a_patch() {
        let answer = review(&request("v1", &json!({"uid": "u", "object": pod("false")})));
        assert_eq!(
            answer["response"],
            json!({"uid": "u", "allowed": true, "auditAnnotations": {"outcome": "skipped", "reason": "opted-out"}})
        );
    }

    #[test]
    fn a_denied_pod_comes_with_a_code_and_a_message() {
        let answer = review(&request("v1", &json!({"uid": "u", "object": pod("perhaps")})));
        assert_eq!(answer["response"]["allowed"], false);
        assert_eq!(answer["response"]["status"]["code"], 422);
        assert_eq!(answer["response"]["status"]["reason"], "invalid-connect-inject");
        assert!(answer["response"]["status"]["message"].as_str().unwrap().contains("`perhaps`"));
        let answer = review(&request("v1", &json!({"uid": "u"})));
        assert_eq!(answer["response"]["status"]["reason"], "invalid-pod");
    }

    /// Unknown annotations, also on a pod that is skipped because of a typo. Reported in
    /// <https://github.com/hashicorp/consul-k8s/issues/1584>.
    #[test]
    fn an_unknown_annotation_is_a_warning() {
        let object =
            json!({"metadata": {"annotations": {"consul.hashicorp.com/connect-injct": "true"}}});
        let answer = review(&request("v1", &json!({"uid": "u", "object": object})));
        assert_eq!(answer["response"]["auditAnnotations"]["reason"], "not-requested");
        let warning = answer["response"]["warnings"][0].as_str().unwrap();
        assert!(
            warning.starts_with("did you mean `consul.hashicorp.com/connect-inject`?"),
            "{warning}"
        );
    }

    #[test]
    fn reviews_of_other_operations_are_allowed() {
        for other in [
            json!({"kind": {"kind": "Deployment"}, "object": pod("true")}),
            json!({"operation": "DELETE", "oldObject": pod("true")}),
            json!({"operation": "CREATE", "subResource": "binding", "object": pod("true")}),
        ] {
            let mut request = request("v1", &other);
            request["request"]["uid"] = "u".into();
            let answer = review(&request);
            assert_eq!(answer["response"]["auditAnnotations"]["reason"], "not-a-pod-creation");
            assert_eq!(answer["response"]["allowed"], true);
        }
    }

    #[test]
    fn an_invalid_review_is_an_error() {
        for body in [
            &b""[..],
            b"{}",
            b"null",
            br#"{"apiVersion":"admission.k8s.io/v2","kind":"AdmissionReview","request":{"uid":"u"}}"#,
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"Review","request":{"uid":"u"}}"#,
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#,
            br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview""#,
            b"\x1f\x8b\x08",
        ] {
            assert!(read(body).is_err(), "{}", String::from_utf8_lossy(body));
        }
        let long = request("v1", &json!({"uid": "u".repeat(254)})).to_string();
        assert!(read(long.as_bytes()).unwrap_err().to_string().contains("too long"));
        let deep = "[".repeat(100_000);
        let body = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","object":{deep}"#
        );
        assert!(read(body.as_bytes()).unwrap_err().to_string().contains("recursion limit"));
    }

    #[test]
    fn a_review_whose_patch_may_be_large_is_long() {
        let is_long = |upstreams: usize, containers: usize| {
            let list = vec!["a:1"; upstreams].join(",");
            let object = json!({"metadata": {"annotations": {UPSTREAMS: list}},
                "spec": {"containers": vec![json!({"name": "a"}); containers], "initContainers": [1]}});
            let body = request("v1", &json!({"uid": "u", "object": object})).to_string();
            read(body.as_bytes()).unwrap().is_long()
        };
        assert!(!is_long(1, 1) && !is_long(20, 10));
        assert!(is_long(256, 1) && is_long(1, 300) && is_long(100, 10));
        let body = request("v1", &json!({"uid": "u"})).to_string();
        assert!(!read(body.as_bytes()).unwrap().is_long());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        #[test]
        fn no_body_panics(
            before in "(\\{\"(uid|kind|request|object|apiVersion|metadata|spec)\":|\\[|\"|admission.k8s.io/v1|,|\\}|\\]|null|1e9|\\\\u0000|\\PC){0,20}",
            object in "(\\{\"(metadata|spec|containers|env|name|annotations)\":|\\[|\"|,|\\}|\\]|null|\\PC){0,20}",
        ) {
            for body in [before, format!(r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","object":{object}}}}}"#)] {
                if let Ok(review) = read(body.as_bytes()) {
                    let reviewed = review.review(&policy(), &Cluster::default());
                    let answer: Value = serde_json::from_slice(&reviewed.answer.to_json()).unwrap();
                    prop_assert!(answer["response"]["uid"].is_string());
                }
            }
        }
    }
}
