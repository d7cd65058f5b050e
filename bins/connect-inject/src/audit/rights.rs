//! The permissions that a complete audit requires, and no others.

/// A YAML document: a ClusterRole, and in comments the rules of a Consul ACL policy.
pub(super) const RIGHTS: &str = r#"# Kubernetes: kubectl apply -f -
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: connect-inject-audit
rules:
  - apiGroups: [""]
    resources: [pods, nodes, namespaces, services]
    verbs: [get, list]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [get, list]
  - apiGroups: [admissionregistration.k8s.io]
    resources: [mutatingwebhookconfigurations]
    verbs: [get, list]
# Consul: the rules of an ACL policy, for
# consul acl policy create -name connect-inject-audit -rules @rules.hcl
#
# agent_prefix "" { policy = "read" }
# node_prefix "" { policy = "read" }
# service_prefix "" {
#   policy     = "read"
#   intentions = "read"
# }
# acl = "read"
#
# --repair also requires write access to what it removes: policy = "write" for
# node_prefix "" and service_prefix "", and acl = "write".
"#;
