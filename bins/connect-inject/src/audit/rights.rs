//! The rights with which nothing is left unread, and none beside.

/// A ClusterRole, and as a comment a policy of Consul's ACLs, as one document of YAML.
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
# --repair also requires, for what it takes back: node_prefix "" and service_prefix ""
# with policy = "write", and acl = "write".
"#;
