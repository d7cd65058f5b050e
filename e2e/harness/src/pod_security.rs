//! Finds violations of PodSecurity's level `restricted`.
//!
//! Source: "Pod Security Standards" of the Kubernetes documentation: the policies of
//! `restricted`, which include those of `baseline`.

use serde_json::Value;

/// The volumes that `restricted` allows.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// The sysctls that `baseline` allows.
const SYSCTLS: [&str; 11] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
];

/// Violations of `restricted` in a pod's specification: of the container with that name, or
/// of all.
pub fn violations(spec: &Value, container: Option<&str>) -> Vec<String> {
    let mut found = Vec::new();
    let mut forbid = |is_so: bool, what: String| {
        if is_so {
            found.push(what);
        }
    };
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        forbid(spec[field] == true, field.to_owned());
    }
    for volume in list(&spec["volumes"]) {
        let is_allowed = VOLUMES.iter().any(|kind| volume.get(kind).is_some());
        forbid(!is_allowed, format!("volume {}", volume["name"]));
    }
    let pod = &spec["securityContext"];
    for sysctl in list(&pod["sysctls"]) {
        let is_safe = SYSCTLS.iter().any(|name| sysctl["name"] == *name);
        forbid(!is_safe, format!("sysctl {}", sysctl["name"]));
    }
    forbid(of_the_host(pod), "pod: options of the host's".to_owned());
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(&spec[kind])
            .iter()
            .filter(|found| container.is_none_or(|name| found["name"] == name))
        {
            let name = &container["name"];
            let own = &container["securityContext"];
            // A container's own setting overrides the pod's.
            let set = |field: &str| if own[field].is_null() { &pod[field] } else { &own[field] };
            let mut forbid = |is_so, what: &str| forbid(is_so, format!("{name}: {what}"));
            forbid(of_the_host(own), "options of the host's");
            forbid(own["privileged"] == true, "privileged");
            forbid(own["allowPrivilegeEscalation"] != false, "allowPrivilegeEscalation");
            forbid(set("runAsNonRoot") != true, "runAsNonRoot");
            forbid(set("runAsUser") == 0, "runAsUser 0");
            let seccomp = &set("seccompProfile")["type"];
            forbid(seccomp != "RuntimeDefault" && seccomp != "Localhost", "seccompProfile");
            let capabilities = &own["capabilities"];
            forbid(!list(&capabilities["drop"]).iter().any(|name| name == "ALL"), "drop ALL");
            let adds = list(&capabilities["add"])
                .iter()
                .any(|capability| capability != "NET_BIND_SERVICE");
            forbid(adds, "capabilities");
            let proc_mount = &own["procMount"];
            forbid(!proc_mount.is_null() && proc_mount != "Default", "procMount");
            for port in list(&container["ports"]) {
                forbid(port["hostPort"].as_u64().is_some_and(|port| port != 0), "hostPort");
            }
            for handler in [
                &container["livenessProbe"],
                &container["readinessProbe"],
                &container["startupProbe"],
                &container["lifecycle"]["postStart"],
                &container["lifecycle"]["preStop"],
            ] {
                for protocol in ["httpGet", "tcpSocket"] {
                    let host = &handler[protocol]["host"];
                    forbid(!host.is_null() && host != "", "a host to probe");
                }
            }
        }
    }
    found
}

/// Whether a security context has AppArmor, SELinux or Windows HostProcess options that
/// `baseline` forbids.
fn of_the_host(context: &Value) -> bool {
    let selinux = &context["seLinuxOptions"];
    let kinds = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    let kind = selinux["type"].as_str().unwrap_or_default();
    context["windowsOptions"]["hostProcess"] == true
        || context["appArmorProfile"]["type"] == "Unconfined"
        || !kinds.contains(&kind)
        || selinux.get("user").is_some()
        || selinux.get("role").is_some()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn restricted() -> Value {
        json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{
                "name": "c",
                "securityContext": {
                    "allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
                },
            }],
        })
    }

    #[test]
    fn every_policy_is_looked_at() {
        assert_eq!(violations(&restricted(), None), Vec::<String>::new());
        for (place, value) in [
            ("/hostNetwork", json!(true)),
            ("/hostPID", json!(true)),
            ("/hostIPC", json!(true)),
            ("/volumes/0", json!({"name": "v", "hostPath": {"path": "/"}})),
            ("/securityContext/runAsNonRoot", json!(false)),
            ("/securityContext/runAsUser", json!(0)),
            ("/securityContext/seccompProfile/type", json!("Unconfined")),
            ("/securityContext/seccompProfile", json!(null)),
            ("/securityContext/sysctls", json!([{"name": "kernel.msgmax"}])),
            ("/securityContext/seLinuxOptions", json!({"type": "spc_t"})),
            ("/securityContext/appArmorProfile", json!({"type": "Unconfined"})),
            ("/securityContext/windowsOptions", json!({"hostProcess": true})),
            ("/containers/0/securityContext/runAsNonRoot", json!(false)),
            ("/containers/0/securityContext/runAsUser", json!(0)),
            ("/containers/0/securityContext/privileged", json!(true)),
            ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true)),
            ("/containers/0/securityContext/allowPrivilegeEscalation", json!(null)),
            ("/containers/0/securityContext/capabilities/drop", json!(["NET_RAW"])),
            ("/containers/0/securityContext/capabilities/add", json!(["SYS_ADMIN"])),
            ("/containers/0/securityContext/procMount", json!("Unmasked")),
            ("/containers/0/securityContext/seccompProfile", json!({"type": "Unconfined"})),
            ("/containers/0/securityContext/seLinuxOptions", json!({"user": "u"})),
            ("/containers/0/ports", json!([{"containerPort": 1, "hostPort": 1}])),
            ("/containers/0/livenessProbe", json!({"httpGet": {"host": "h"}})),
            ("/containers/0/lifecycle", json!({"preStop": {"tcpSocket": {"host": "h"}}})),
            ("/initContainers", json!([{"name": "i"}])),
        ] {
            let mut spec = restricted();
            let (parent, key) = place.rsplit_once('/').unwrap();
            let parent = spec.pointer_mut(parent).unwrap();
            match parent.as_array_mut() {
                Some(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
                None => parent[key] = value.clone(),
            }
            assert_ne!(violations(&spec, None), Vec::<String>::new(), "{place} {value}");
        }
    }
}
