//! What is written into a pod: the volume, the init container, the sidecar and
//! the environment variables.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::core::v1::{
    Capabilities, Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, ExecAction, Lifecycle,
    LifecycleHandler, ObjectFieldSelector, SeccompProfile, SecurityContext, Volume, VolumeMount,
};
use registration::Upstream;

use crate::names::{DOWNWARD, FOLDER, HELPER, INIT_CONTAINER, SIDECAR, VOLUME};
use crate::plan::Plan;
use crate::policy::Policy;

/// The user and group of the injected containers.
const USER: i64 = 5995;

/// The volume that the injected containers share, in memory because it holds
/// secrets.
pub(crate) fn volume() -> Volume {
    Volume {
        name: VOLUME.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The container that registers the pod and writes the Envoy bootstrap.
pub(crate) fn init_container(plan: &Plan, policy: &Policy) -> Container {
    let service = match plan.port {
        Some(port) => format!("{}:{port}", plan.service),
        None => plan.service.clone(),
    };
    let args = std::iter::once(format!("--service={service}"))
        .chain(plan.upstreams.iter().map(|upstream| format!("--upstream={}", upstream.spec())))
        .map(|argument| literal(&argument));
    let identity = DOWNWARD.iter().map(|(name, field)| EnvVar {
        name: (*name).to_owned(),
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: (*field).to_owned(),
                ..ObjectFieldSelector::default()
            }),
            ..EnvVarSource::default()
        }),
        ..EnvVar::default()
    });
    // Behind those that they refer to: the kubelet expands in order.
    let agent = [
        variable("CONSUL_HTTP_ADDR".to_owned(), policy.consul_http_addr.clone()),
        variable("CONSUL_GRPC_ADDR".to_owned(), policy.consul_grpc_addr.clone()),
    ];
    Container {
        command: Some(vec!["/connect-init".to_owned()]),
        args: Some(args.collect()),
        env: Some(identity.chain(agent).collect()),
        ..injected(INIT_CONTAINER, &policy.init_image)
    }
}

/// The container with Envoy, run by the lifecycle helper.
pub(crate) fn sidecar(policy: &Policy) -> Container {
    let bootstrap = format!("{FOLDER}/envoy-bootstrap.json");
    let command = [HELPER, "run", "--", "envoy", "--config-path", &bootstrap]
        .into_iter()
        // One Envoy a container: there is no other to take over from. And by
        // default it starts a thread for each core of the node.
        .chain(["--disable-hot-restart", "--concurrency", "2"])
        .chain(policy.envoy_extra_args.iter().map(String::as_str))
        .map(literal);
    let exec = |command: &[&str]| LifecycleHandler {
        exec: Some(ExecAction {
            command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
        }),
        ..LifecycleHandler::default()
    };
    Container {
        command: Some(command.collect()),
        lifecycle: Some(Lifecycle {
            // The kubelet starts the next container when this has returned, so
            // that the application starts with its proxy ready.
            post_start: Some(exec(&[HELPER, "ready", "--wait", "30s"])),
            pre_stop: Some(exec(&[HELPER, "deregister"])),
            ..Lifecycle::default()
        }),
        ..injected(SIDECAR, &policy.envoy_image)
    }
}

/// The variables by which an application finds its upstreams.
pub(crate) fn variables(upstreams: &[Upstream]) -> Vec<EnvVar> {
    let mut variables: Vec<EnvVar> = Vec::new();
    for upstream in upstreams {
        let stem = upstream.variable_stem();
        let host = match upstream.bind_address() {
            IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            address => address,
        };
        for (name, value) in [
            (format!("{stem}_CONNECT_SERVICE_HOST"), host.to_string()),
            (format!("{stem}_CONNECT_SERVICE_PORT"), upstream.local_bind_port.to_string()),
        ] {
            if variables.iter().all(|earlier| earlier.name != name) {
                variables.push(variable(name, value));
            }
        }
    }
    variables
}

/// A text that reaches the process as it is: the kubelet replaces `$(NAME)` in
/// commands and arguments, and `$$` by a single `$`.
///
/// Source: "Define a Command and Arguments for a Container" of the Kubernetes
/// documentation.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn variable(name: String, value: String) -> EnvVar {
    EnvVar { name, value: Some(value), ..EnvVar::default() }
}

/// What the injected containers have in common. The security context passes
/// PodSecurity's level `restricted`.
///
/// Source: "Pod Security Standards" of the Kubernetes documentation.
fn injected(name: &str, image: &str) -> Container {
    Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        volume_mounts: Some(vec![VolumeMount {
            name: VOLUME.to_owned(),
            mount_path: FOLDER.to_owned(),
            ..VolumeMount::default()
        }]),
        security_context: Some(SecurityContext {
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            run_as_non_root: Some(true),
            read_only_root_filesystem: Some(true),
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..SecurityContext::default()
        }),
        // `kubectl describe pod` shows why it failed even if it wrote nothing.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..Container::default()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use registration::upstream::{Context, parse_list};

    use super::*;
    use crate::decision::tests::policy;

    /// What the kubelet makes of an argument: `k8s.io/kubernetes/third_party/
    /// forked/golang/expansion` replaces `$(NAME)` by a known variable's value,
    /// `$$` by `$`, and leaves the rest.
    pub(crate) fn expanded(argument: &str) -> String {
        let mut result = String::new();
        let mut rest = argument;
        while let Some((before, from)) = rest.split_once('$') {
            result.push_str(before);
            if let Some(after) = from.strip_prefix('$') {
                result.push('$');
                rest = after;
            } else if let Some((_, after)) = from.strip_prefix('(').and_then(|r| r.split_once(')'))
            {
                result.push_str("EXPANDED");
                rest = after;
            } else {
                result.push('$');
                rest = from;
            }
        }
        result + rest
    }

    fn plan(upstreams: &str) -> Plan {
        Plan {
            service: "web".to_owned(),
            port: Some(8080),
            upstreams: parse_list(upstreams, Context::default()).unwrap(),
            defaults: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Pain 63: annotation text that a shell or a template runs.
    #[test]
    fn values_are_data() {
        for hostile in
            ["$(POD_NAME)", "$$(POD_NAME)", "`id`", "'\"; rm -rf /", "--timeout=0", "$", "é\n"]
        {
            let list = format!("prepared_query:{hostile}:1234");
            let container = init_container(&plan(&list), &policy());
            let args = container.args.unwrap();
            let name = hostile.trim();
            assert_eq!(expanded(&args[1]), format!("--upstream=prepared_query:{name}:1234"));
            assert_eq!(args.len(), 2);
            assert_eq!(container.command.unwrap(), ["/connect-init"]);
        }
        let policy = Policy { envoy_extra_args: vec!["$(HOME) x".to_owned()], ..policy() };
        assert_eq!(expanded(sidecar(&policy).command.unwrap().last().unwrap()), "$(HOME) x");
    }

    #[test]
    fn a_client_has_no_port() {
        let plan = Plan { port: None, ..plan("") };
        assert_eq!(init_container(&plan, &policy()).args.unwrap(), ["--service=web"]);
    }

    /// Pain 40: variables for every form.
    #[test]
    fn every_upstream_has_its_variables() {
        let upstreams = plan(
            "db:1,v1.db:2:dc2, prepared_query:near:3,3scale:4,ip:5?local_bind_address=127.0.0.2,any:6?local_bind_address=::",
        );
        let variables: Vec<_> = variables(&upstreams.upstreams)
            .into_iter()
            .map(|variable| format!("{}={}", variable.name, variable.value.unwrap()))
            .collect();
        assert_eq!(
            variables,
            [
                "DB_CONNECT_SERVICE_HOST=127.0.0.1",
                "DB_CONNECT_SERVICE_PORT=1",
                "V1_DB_CONNECT_SERVICE_HOST=127.0.0.1",
                "V1_DB_CONNECT_SERVICE_PORT=2",
                "NEAR_CONNECT_SERVICE_HOST=127.0.0.1",
                "NEAR_CONNECT_SERVICE_PORT=3",
                "_3SCALE_CONNECT_SERVICE_HOST=127.0.0.1",
                "_3SCALE_CONNECT_SERVICE_PORT=4",
                "IP_CONNECT_SERVICE_HOST=127.0.0.2",
                "IP_CONNECT_SERVICE_PORT=5",
                "ANY_CONNECT_SERVICE_HOST=::1",
                "ANY_CONNECT_SERVICE_PORT=6",
            ]
        );
    }

    proptest! {
        #[test]
        fn arguments_reach_the_process_as_they_are(text in any::<String>()) {
            prop_assert_eq!(expanded(&literal(&text)), text);
        }

        #[test]
        fn dollars_reach_the_process_as_they_are(text in "[$()A]{0,12}") {
            prop_assert_eq!(expanded(&literal(&text)), text);
        }
    }
}
