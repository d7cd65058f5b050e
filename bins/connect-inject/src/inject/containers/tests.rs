use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use proptest::prelude::*;
use registration::upstream::{Context, parse_list};

use super::fields::literal;
use super::init::with_pod_name;
use super::sidecar::Of;
use super::*;
use crate::plan::upstreams::dotted_stems;
use crate::plan::{Lifecycle, Metrics, Plan, Service};
use crate::policy::tests::{policy, policy_of};
use crate::policy::{Cluster, Policy};
use crate::values::Optional;

/// Expands an argument as the kubelet does: replaces `$(NAME)` with the value of a known
/// variable and `$$` with `$`, and leaves the rest.
///
/// Source: `k8s.io/kubernetes/third_party/forked/golang/expansion`.
pub(crate) fn expanded(argument: &str) -> String {
    let mut result = String::new();
    let mut rest = argument;
    while let Some((before, from)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(after) = from.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((_, after)) = from.strip_prefix('(').and_then(|r| r.split_once(')')) {
            result.push_str("web-0");
            rest = after;
        } else {
            result.push('$');
            rest = from;
        }
    }
    result + rest
}

fn plan(upstreams: &str) -> Plan {
    let service = Service { name: "web".to_owned(), port: Some(8080), ..Service::default() };
    Plan {
        service,
        upstreams: parse_list(upstreams, Context::default()).unwrap(),
        dotted_stems: dotted_stems(upstreams),
        ..Plan::default()
    }
}

/// The container as Kubernetes reads it.
fn typed(container: &container::Container<'_>) -> Container {
    let written = serde_json::to_value(container).unwrap();
    let read: Container = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read).unwrap(), written, "a field that Kubernetes lacks");
    read
}

fn init_container(plan: &Plan, policy: &Policy) -> Container {
    typed(&init::init_container(plan, policy))
}

fn sidecar(plan: &Plan, policy: &Policy) -> Container {
    typed(&sidecar::sidecar(plan, Of::default(), policy))
}

/// Text from annotations was run by a shell or a template. Reported in
/// <https://github.com/hashicorp/consul-k8s/pull/115>.
#[test]
fn hostile_annotations_reach_the_process_unchanged() {
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
    let mut plan = plan("");
    plan.envoy.extra_args = vec!["$(HOME) x".to_owned()];
    let command = sidecar(&plan, &policy()).command.unwrap();
    assert_eq!(expanded(command.last().unwrap()), "$(HOME) x");
}

#[test]
fn the_metrics_port_has_the_planned_name() {
    for port_name in ["prometheus", "envoy-metrics"] {
        let metrics = Metrics {
            port: 20200,
            port_name,
            path: "/metrics".to_owned(),
            merging: None,
            tls: Vec::new(),
        };
        let plan = Plan { metrics: Some(metrics), ..plan("") };
        let port = &sidecar(&plan, &policy()).ports.unwrap()[0];
        assert_eq!((port.name.as_deref(), port.container_port), (Some(port_name), 20200));
    }
}

/// Consul's own injector also replaces only this variable.
#[test]
fn only_pod_name_is_replaced() {
    for (text, reached) in [
        ("$POD_NAME", "web-0"),
        ("a-$POD_NAME,$POD_NAME", "a-web-0,web-0"),
        ("$POD_NAMESPACE", "$POD_NAMESPACE"),
        ("$POD_NAMES $POD_NAME", "$POD_NAMES web-0"),
        ("$(POD_NAME) ${POD_NAME} $$POD", "$(POD_NAME) ${POD_NAME} $$POD"),
        ("$$POD_NAME", "$web-0"),
        ("`id` $(id) $HOME", "`id` $(id) $HOME"),
    ] {
        assert_eq!(expanded(&with_pod_name(text)), reached, "{text}");
    }
}

#[test]
fn settings_become_arguments_of_connect_init() {
    let mut plan = plan("db:1");
    plan.service.tags = vec!["v1".to_owned(), "$POD_NAME".to_owned()];
    plan.service.meta = [("k".to_owned(), "a=$POD_NAME".to_owned())].into();
    plan.service.proxy_config.insert("a".to_owned(), "$x".into());
    plan.metrics = Some(Metrics {
        port: 20200,
        port_name: "prometheus",
        path: "/metrics".to_owned(),
        merging: None,
        tls: vec![("--prometheus-ca-file", "/ca".to_owned())],
    });
    assert_eq!(
        init_container(&plan, &policy()).args.unwrap(),
        [
            "--service=web:8080",
            "--upstream=db:1",
            "--tag=v1",
            "--tag=$(POD_NAME)",
            "--meta=k=a=$(POD_NAME)",
            r#"--proxy-config={"a":"$$x"}"#,
            "--prometheus-scrape-path=/metrics",
            "--prometheus-ca-file=/ca",
        ]
    );
}

/// connect-init and connect-lifecycle need them to log in and to trust the agent.
#[test]
fn injected_containers_get_the_login_token_and_the_agents_ca() {
    let policy = Policy {
        consul_ca_cert: Optional(Some("PEM $(HOST_IP)\n".to_owned())),
        consul_tls_server_name: Optional(Some("client.$(NODE_NAME)".to_owned())),
        acl_auth_method: Optional(Some("k8s $(id)".to_owned())),
        ..policy()
    };
    let with_ca = Plan { agents_ca: policy.agents_ca(&Cluster::default()), ..plan("") };
    let container = init_container(&with_ca, &policy);
    let args = container.args.unwrap();
    assert_eq!(
        args[1..],
        ["--acl-auth-method=k8s $$(id)", "--bearer-token-file=/consul/service-account/token"]
    );
    let value = |name: &str| {
        let variables = container.env.as_ref().unwrap();
        variables.iter().find(|variable| variable.name == name)?.value.clone()
    };
    assert_eq!(expanded(&value("CONSUL_CACERT_PEM").unwrap()), "PEM $(HOST_IP)\n");
    assert_eq!(value("CONSUL_TLS_SERVER_NAME").unwrap(), "client.$(NODE_NAME)");
    let mounted = |container: Container| {
        let mounts = container.volume_mounts.unwrap();
        mounts.into_iter().map(|mount| (mount.name, mount.mount_path)).collect::<Vec<_>>()
    };
    let token = (token_volume().name, "/consul/service-account".to_owned());
    assert!(mounted(init_container(&plan(""), &policy)).contains(&token));
    assert!(mounted(sidecar(&plan(""), &policy)).contains(&token));
    let without = Policy { acl_auth_method: Optional(None), ..policy };
    assert!(!mounted(sidecar(&plan(""), &without)).contains(&token));
}

#[test]
fn each_service_gets_a_sidecar() {
    let mut plan = plan("db:1");
    plan.service.more = vec![("web-admin".to_owned(), 9090)];
    plan.envoy.readiness = true;
    plan.lifecycle.hold = 5;
    let args = init_container(&plan, &policy()).args.unwrap();
    assert_eq!(args, ["--service=web:8080", "--service=web-admin:9090", "--upstream=db:1"]);
    let policy = policy();
    let sidecars: Vec<_> = sidecars(&plan, &policy).iter().map(typed).collect();
    let [first, second] = &sidecars[..] else { panic!() };
    assert_eq!((&*first.name, &*second.name), ("envoy-sidecar", "envoy-sidecar-web-admin"));
    assert!(!first.command.as_ref().unwrap().iter().any(|word| word.starts_with("--service")));
    let helper = "/consul/connect-inject/connect-lifecycle";
    let service = "--service=web-admin";
    assert_eq!(
        second.command.as_ref().unwrap()[..],
        [
            helper,
            "run",
            service,
            "--",
            "envoy",
            "--config-path",
            "/consul/connect-inject/envoy-bootstrap-web-admin.json",
            "--disable-hot-restart",
            "--base-id",
            "1",
            "--drain-strategy",
            "immediate",
            "--drain-time-s",
            "20",
            "--concurrency",
            "0",
        ]
    );
    let lifecycle = second.lifecycle.as_ref().unwrap();
    let words = |handler: &Option<LifecycleHandler>| {
        handler.as_ref().unwrap().exec.as_ref().unwrap().command.clone().unwrap()
    };
    assert_eq!(words(&lifecycle.pre_stop), [helper, "deregister", service, "--timeout=5s"]);
    assert_eq!(words(&lifecycle.post_start), [helper, "ready", service, "--wait", "5s"]);
    let probe = second.readiness_probe.as_ref().unwrap().exec.as_ref().unwrap();
    let ready = [helper, "ready", service, "--serving", "--timeout=7s"];
    assert_eq!(probe.command.as_ref().unwrap()[..], ready);
}

#[test]
fn the_users_envoy_arguments_take_precedence() {
    let command = |extra: &[&str], concurrency| {
        let mut plan = plan("");
        plan.envoy.extra_args = extra.iter().map(|word| (*word).to_owned()).collect();
        plan.envoy.concurrency = concurrency;
        plan.lifecycle.drain = Some(7);
        let mut command = sidecar(&plan, &policy()).command.unwrap();
        assert_eq!(command[2], "--drain-timeout=7s");
        command.split_off(7)
    };
    let drain = ["--drain-strategy", "immediate", "--drain-time-s", "7"];
    let with = |before: &[&'static str], after: &[&'static str]| [before, &drain, after].concat();
    let ours = ["--disable-hot-restart"];
    assert_eq!(command(&[], 2), with(&ours, &["--concurrency", "2"]));
    assert_eq!(command(&[], 0), with(&ours, &["--concurrency", "0"]));
    assert_eq!(command(&["--concurrency", "9"], 2), with(&ours, &["--concurrency", "9"]));
    assert_eq!(command(&["--concurrency=9"], 2), with(&ours, &["--concurrency=9"]));
    assert_eq!(
        command(&["--disable-hot-restart"], 2),
        with(&[], &["--concurrency", "2", "--disable-hot-restart"])
    );
    assert_eq!(
        command(&["--drain-time-s=1", "--drain-strategy=gradual"], 2),
        [
            "--disable-hot-restart",
            "--concurrency",
            "2",
            "--drain-time-s=1",
            "--drain-strategy=gradual"
        ]
    );
}

#[test]
fn the_application_waits_for_envoy_by_a_hook_or_a_startup_probe() {
    let lifecycle = Lifecycle { native: true, hold: 30, ..Lifecycle::default() };
    let mut plan = Plan { lifecycle, ..plan("") };
    let native = sidecar(&plan, &policy());
    assert_eq!(native.restart_policy.as_deref(), Some("Always"));
    assert!(native.startup_probe.is_none());
    let hook = native.lifecycle.unwrap().post_start.unwrap();
    assert_eq!(hook.exec.unwrap().command.unwrap()[1..], ["ready", "--wait", "30s"]);

    plan.envoy.startup_failure = Some(60);
    let probed = sidecar(&plan, &policy());
    let startup = probed.startup_probe.unwrap();
    assert_eq!((startup.period_seconds, startup.failure_threshold), (Some(1), Some(60)));
    assert!(probed.lifecycle.unwrap().post_start.is_none());

    plan.lifecycle.native = false;
    let container = sidecar(&plan, &policy());
    assert!(container.startup_probe.is_some());
    assert!(container.lifecycle.unwrap().post_start.is_some());
    plan.lifecycle.hold = 0;
    let container = sidecar(&plan, &policy());
    assert!(container.restart_policy.is_none());
    assert!(container.lifecycle.unwrap().post_start.is_none(), "the application must not wait");
}

/// `kubectl describe pod` soon shows that the agent is unreachable. Not in Jobs, which the
/// first failure could fail.
#[test]
fn the_first_run_of_the_init_container_is_short_if_the_kubelet_restarts_it() {
    let mut plan = plan("");
    for (restarts, last) in [(true, "--first-timeout=30s"), (false, "--service=web:8080")] {
        plan.lifecycle.restarts = restarts;
        let args = init_container(&plan, &policy()).args.unwrap();
        assert_eq!(args.last().unwrap(), last);
    }
}

#[test]
fn an_envoy_that_hangs_is_restarted_as_soon_as_one_that_fails() {
    for (seconds, rounds) in [(1, (1, 1)), (3, (1, 3)), (10, (3, 4)), (60, (5, 12))] {
        let mut plan = plan("");
        plan.envoy.liveness_failure = Some(seconds);
        let probe = sidecar(&plan, &policy()).liveness_probe.unwrap();
        assert_eq!(probe.period_seconds, probe.timeout_seconds, "{seconds}");
        let found = (probe.period_seconds, probe.failure_threshold);
        assert_eq!(found, (Some(rounds.0), Some(rounds.1)), "{seconds}");
    }
}

#[test]
fn flags_set_pull_policy_user_and_log_level_of_the_containers() {
    let policy = policy_of(&[
        "--enable-openshift",
        "--global-image-pull-policy=Always",
        "--pod-log-level=debug",
    ]);
    let mut plan = plan("");
    plan.init_resources.memory.limit = "0".parse().ok();
    for container in [init_container(&plan, &policy), sidecar(&plan, &policy)] {
        assert_eq!(container.image_pull_policy.as_deref(), Some("Always"));
        let security = container.security_context.unwrap();
        assert_eq!((security.run_as_user, security.run_as_group), (None, None));
        assert_eq!(security.run_as_non_root, Some(true));
        let level = container.env.unwrap().pop().unwrap();
        assert_eq!(
            (level.name.as_str(), level.value.as_deref()),
            ("CONNECT_LOG_LEVEL", Some("debug"))
        );
    }
    let limits = init_container(&plan, &policy).resources.unwrap().limits.unwrap();
    assert_eq!(limits["memory"].0, "0");
    assert!(sidecar(&plan, &policy).resources.is_none());
}

#[test]
fn a_client_is_registered_without_a_port() {
    let mut plan = plan("");
    plan.service.port = None;
    assert_eq!(init_container(&plan, &policy()).args.unwrap(), ["--service=web"]);
}

/// Reported in <https://github.com/hashicorp/consul-k8s/issues/224>.
#[test]
fn upstreams_of_every_form_have_variables() {
    let upstreams = plan(
        "db:1,v1.my-db:2:dc2, prepared_query:near:3,3scale:4,far.svc.dc2.dc:7,ip:5?local_bind_address=127.0.0.2,any:6?local_bind_address=::",
    );
    let variables: Vec<_> = variables(&upstreams)
        .into_iter()
        .map(|variable| format!("{}={}", variable.name, variable.value.unwrap()))
        .collect();
    assert_eq!(
        variables,
        [
            "DB_CONNECT_SERVICE_HOST=127.0.0.1",
            "DB_CONNECT_SERVICE_PORT=1",
            "V1_MY_DB_CONNECT_SERVICE_HOST=127.0.0.1",
            "V1_MY_DB_CONNECT_SERVICE_PORT=2",
            // Consul's own injector sets these.
            "V1.MY_DB_CONNECT_SERVICE_HOST=127.0.0.1",
            "V1.MY_DB_CONNECT_SERVICE_PORT=2",
            "NEAR_CONNECT_SERVICE_HOST=127.0.0.1",
            "NEAR_CONNECT_SERVICE_PORT=3",
            "_3SCALE_CONNECT_SERVICE_HOST=127.0.0.1",
            "_3SCALE_CONNECT_SERVICE_PORT=4",
            "FAR_CONNECT_SERVICE_HOST=127.0.0.1",
            "FAR_CONNECT_SERVICE_PORT=7",
            "FAR.SVC.DC2.DC_CONNECT_SERVICE_HOST=127.0.0.1",
            "FAR.SVC.DC2.DC_CONNECT_SERVICE_PORT=7",
            "IP_CONNECT_SERVICE_HOST=127.0.0.2",
            "IP_CONNECT_SERVICE_PORT=5",
            "ANY_CONNECT_SERVICE_HOST=::1",
            "ANY_CONNECT_SERVICE_PORT=6",
        ]
    );
}

proptest! {
    #[test]
    fn arguments_reach_the_process_unchanged(text in any::<String>()) {
        prop_assert_eq!(expanded(&literal(&text)), text);
    }

    #[test]
    fn no_text_but_pod_name_is_replaced(text in "[$()A_]{0,12}(POD_NAME)?[$()A_{}]{0,4}") {
        let filled = expanded(&with_pod_name(&text));
        if !text.contains("$POD_NAME") {
            prop_assert_eq!(filled, text);
        }
    }

    #[test]
    fn dollars_reach_the_process_unchanged(text in "[$()A]{0,12}") {
        prop_assert_eq!(expanded(&literal(&text)), text);
    }
}
