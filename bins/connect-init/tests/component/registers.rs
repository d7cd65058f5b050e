//! All goes well: what is sent, what is written.

use serde_json::json;
use testkit::{Route, ScriptedAgent};

use crate::pod::{HELPER, PROXY, Pod, SERVICE, assert_registered};

#[test]
fn the_service_is_registered_and_then_its_proxy() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent)
        .and("--upstream", "db:1234,cache:6379:dc2")
        .and("--upstream", "prepared_query:geo:7000")
        .and("--tag", "v1")
        .and("--tag", "a,b")
        .and("--meta", "team=a=b")
        .run()
        .code(0);

    let meta = json!({"team": "a=b", "pod-name": "web-0", "k8s-namespace": "shop"});
    let lease = |id: &str| {
        json!({
            "CheckID": format!("{id}-lease"),
            "Name": "Pod Lease",
            "Notes": "Renewed by connect-lifecycle for as long as the pod lives.",
            "TTL": "30s",
            "DeregisterCriticalServiceAfter": "1m0s",
        })
    };
    let service = json!({
        "ID": SERVICE,
        "Name": "web",
        "Tags": ["v1", "a,b"],
        "Meta": meta,
        "Address": "10.0.0.7",
        "Port": 8080,
        "Checks": [lease(SERVICE), {
            "CheckID": "shop_web-0_web-application",
            "Name": "Application Health",
            "Notes": "Set by connect-lifecycle, which asks the readiness probe over loopback, or else connects to port 8080.",
            "TTL": "30s",
            "Status": "critical",
        }],
    });
    let proxy = json!({
        "Kind": "connect-proxy",
        "ID": PROXY,
        "Name": "web-sidecar-proxy",
        "Tags": ["v1", "a,b"],
        "Meta": meta,
        "Address": "10.0.0.7",
        "Port": 20000,
        "Proxy": {
            "DestinationServiceName": "web",
            "DestinationServiceID": SERVICE,
            "LocalServiceAddress": "127.0.0.1",
            "LocalServicePort": 8080,
            "Upstreams": [
                {"DestinationType": "service", "DestinationName": "db", "LocalBindPort": 1234},
                {"DestinationType": "service", "DestinationName": "cache", "LocalBindPort": 6379, "Datacenter": "dc2"},
                {"DestinationType": "prepared_query", "DestinationName": "geo", "LocalBindPort": 7000},
            ],
        },
        "Checks": [
            {
                "CheckID": "shop_web-0_web-sidecar-proxy-listener",
                "Name": "Proxy Public Listener",
                "TCP": "10.0.0.7:20000",
                "Interval": "10s",
            },
            {
                "CheckID": "shop_web-0_web-sidecar-proxy-destination",
                "Name": "Destination Alias",
                "AliasService": SERVICE,
            },
            lease(PROXY),
        ],
    });
    let registrations = agent.asked(Route::Register);
    let bodies: Vec<_> = registrations.iter().map(testkit::Request::json).collect();
    assert_eq!(bodies, [service, proxy]);
    for request in registrations {
        // Checks of others, such as maintenance, stay.
        assert_eq!(request.query, "");
    }
}

#[test]
fn the_files_are_whole_and_only_for_those_whom_they_concern() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.run().code(0);

    let files = pod.files();
    let files: Vec<_> = files.iter().map(|(name, mode)| (name.as_str(), *mode)).collect();
    assert_eq!(
        files,
        [
            ("connect-lifecycle", 0o555),
            ("envoy-bootstrap.json", 0o600),
            ("lock", 0o640),
            ("registration.json", 0o640),
        ]
    );
    assert_eq!(std::fs::read_to_string(pod.shared("connect-lifecycle")).unwrap(), HELPER);
    let bootstrap = pod.json("envoy-bootstrap.json");
    assert_eq!(bootstrap["node"]["id"], PROXY);
    assert_eq!(bootstrap["node"]["cluster"], "web");
    assert_eq!(bootstrap["admin"]["address"]["socket_address"]["port_value"], 19000);
}

/// Other releases read the record: pods keep their sidecar in an upgrade of the injector, as in
/// <https://github.com/istio/istio/issues/16432>.
#[test]
fn the_record_says_what_was_registered_and_with_whom() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).with("--admin-bind", "localhost:19001");
    pod.run().code(0);

    let services = agent.services();
    assert_eq!(
        pod.json("registration.json"),
        json!({
            "version": 1,
            "service": services[SERVICE],
            "proxy": services[PROXY],
            "agent": {"http_addr": agent.address(), "tls": {}, "node": "n1"},
            "admin": "127.0.0.1:19001",
        })
    );
}

#[test]
fn a_pod_that_runs_it_twice_has_one_service_and_one_proxy() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.run().code(0);
    let (services, files) = (agent.services(), pod.files());
    pod.run().code(0);
    assert_eq!(agent.services(), services);
    assert_eq!(pod.files(), files);
    assert_registered(&agent);
}

#[test]
fn a_pod_that_starts_again_is_not_ending_any_more() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    std::fs::File::create(pod.shared("deregistered")).unwrap();
    pod.run().code(0);
    assert_registered(&agent);
    assert!(!pod.files().contains_key("deregistered"));
}

/// An agent allows 200 connections for each client. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/750>.
#[test]
fn one_connection_serves_all_requests() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent).without("--grpc-addr").run().code(0);
    let requests = agent.requests();
    assert_eq!(requests.len(), 6);
    assert!(requests.iter().all(|request| request.connection == 1), "{requests:#?}");
}

#[test]
fn a_service_without_a_port_takes_no_connections() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent).with("--service", "web").run().code(0);
    let services = agent.services();
    assert_eq!(services[SERVICE]["Port"], json!(null));
    assert_eq!(services[SERVICE]["Checks"].as_array().unwrap().len(), 1);
    assert_eq!(services[PROXY]["Proxy"]["LocalServicePort"], json!(null));
}

/// "too many colons in address". Reported in
/// <https://github.com/hashicorp/consul/issues/10291>.
#[test]
fn an_ipv6_pod_is_registered_with_its_address() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent).with("--pod-ip", "fd00::7").run().code(0);
    let services = agent.services();
    assert_eq!(services[SERVICE]["Address"], "fd00::7");
    assert_eq!(services[PROXY]["Checks"][0]["TCP"], "[fd00::7]:20000");
}

/// Secrets in arguments, logs and files.
#[test]
fn the_token_goes_to_the_agent_and_to_envoy_and_nowhere_else() {
    const TOKEN: &str = "5f1d1dc0-secret-token";
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let file = pod.file("token", &format!("{TOKEN}\n"));
    let source = file.clone();
    let pod = pod.with_path("--token-file", &file).with("--log-level", "trace");
    let outcome = pod.run().code(0);

    for request in agent.requests() {
        assert_eq!(request.token.as_deref(), Some(TOKEN), "{} {}", request.method, request.path);
        assert!(!request.path.contains(TOKEN) && !request.query.contains(TOKEN));
        assert!(!String::from_utf8_lossy(&request.body).contains(TOKEN));
    }
    assert!(!outcome.stderr().contains(TOKEN), "{}", outcome.stderr());
    let bootstrap = pod.json("envoy-bootstrap.json");
    assert_eq!(
        bootstrap["dynamic_resources"]["ads_config"]["grpc_services"]["initial_metadata"],
        json!([{"key": "x-consul-token", "value": TOKEN}])
    );
    let record = pod.json("registration.json");
    assert!(!record.to_string().contains(TOKEN));
    // The helper reads it from a file that is for its user alone.
    let file = pod.shared("acl-token");
    assert_eq!(record["agent"]["token_file"], file.to_str().unwrap());
    assert_eq!(record["agent"]["token_source"], source.to_str().unwrap());
    assert_eq!(std::fs::read_to_string(file).unwrap(), TOKEN);
    assert_eq!(pod.files()["acl-token"], 0o600);
}

/// Envoy's token is replaced without a restart, that of each of the pod's services.
#[test]
fn an_envoy_that_can_watch_its_token_reads_it_from_a_file() {
    const TOKEN: &str = "2b6cd5a7-the-token";
    for (version, watches) in
        [("1.33.9", false), ("1.34.0", true), ("envoy:v1.40.0", true), ("envoy:latest", false)]
    {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent);
        let token = pod.file("token", TOKEN);
        let pod = pod.with_path("--token-file", &token).and("--service", "admin:9090");
        let pod = pod.with("--envoy-version", version);
        pod.run().code(0);
        for suffix in ["", "-admin"] {
            let bootstrap = pod.json(&format!("envoy-bootstrap{suffix}.json")).to_string();
            assert_ne!(bootstrap.contains(TOKEN), watches, "{version}{suffix}: {bootstrap}");
            let file = format!("envoy-acl-token{suffix}.json");
            assert_eq!(bootstrap.contains(&file), watches, "{version}{suffix}: {bootstrap}");
            assert_eq!(pod.files().get(&file), watches.then_some(&0o600), "{version}{suffix}");
        }
    }
}

#[test]
fn the_environment_says_what_flags_say() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    let token = pod.file("token", "secret");
    let pod = pod.with("--upstream", "db:1234,cache:6379").with_path("--token-file", &token);
    let pod = pod
        .by_env("--service", "CONNECT_SERVICE")
        .by_env("--upstream", "CONNECT_UPSTREAMS")
        .by_env("--pod-name", "POD_NAME")
        .by_env("--pod-namespace", "POD_NAMESPACE")
        .by_env("--pod-ip", "POD_IP")
        .by_env("--node-name", "NODE_NAME")
        .by_env("--http-addr", "CONSUL_HTTP_ADDR")
        .by_env("--grpc-addr", "CONSUL_GRPC_ADDR")
        .by_env("--token-file", "CONSUL_HTTP_TOKEN_FILE")
        .by_env("--dir", "CONNECT_DIR");
    pod.run().code(0);
    assert_registered(&agent);
    let upstreams = &agent.services()[PROXY]["Proxy"]["Upstreams"];
    assert_eq!(upstreams.as_array().unwrap().len(), 2);
    assert!(agent.requests().iter().all(|request| request.token.as_deref() == Some("secret")));
}

#[test]
fn without_a_token_and_a_namespace_neither_is_sent() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent).run().code(0);
    for request in agent.requests() {
        assert_eq!(request.token, None);
        assert_eq!((request.query_value("ns"), request.query_value("partition")), (None, None));
    }
}

#[test]
fn a_namespace_and_a_partition_are_passed_on() {
    let agent = ScriptedAgent::start();
    Pod::of(&agent).with("--namespace", "team a").with("--partition", "p").run().code(0);
    for request in agent.requests() {
        assert_eq!(request.query_value("ns").as_deref(), Some("team a"), "{}", request.path);
        assert_eq!(request.query_value("partition").as_deref(), Some("p"), "{}", request.path);
    }
}

#[test]
fn envoy_is_fed_from_where_the_agent_says() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent).without("--grpc-addr");
    pod.run().code(0);
    let text = pod.json("envoy-bootstrap.json")["static_resources"].to_string();
    assert!(text.contains(r#""address":"127.0.0.1","port_value":8502"#), "{text}");
}

#[test]
fn the_central_configuration_is_in_the_bootstrap() {
    let agent = ScriptedAgent::start();
    agent.proxy_config("envoy_prometheus_bind_addr", "0.0.0.0:9102");
    agent.config_entry("proxy-defaults", "global", json!({"AccessLogs": {"Enabled": true}}));
    let pod = Pod::of(&agent);
    pod.run().code(0);
    let bootstrap = pod.json("envoy-bootstrap.json");
    assert!(bootstrap["static_resources"].to_string().contains("9102"));
    assert!(bootstrap["admin"].to_string().contains("StdoutAccessLog"), "{}", bootstrap["admin"]);
}

/// Two pods of one name in two namespaces on one node. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/690>.
#[test]
fn two_pods_of_one_name_are_both_registered() {
    let agent = ScriptedAgent::start();
    let pods = ["shop", "staging"].map(|name| Pod::of(&agent).with("--pod-namespace", name));
    for pod in &pods {
        pod.run().code(0);
    }
    let services = agent.services();
    assert_eq!(services.len(), 4, "{services:#?}");
    for pod in &pods {
        let record = pod.json("registration.json");
        for half in [&record["service"], &record["proxy"]] {
            assert_eq!(services[half["ID"].as_str().unwrap()], *half);
        }
    }
}

/// An earlier release made ids of the pod's name and the service's. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/690>.
#[test]
fn what_an_earlier_release_registered_under_other_ids_is_deregistered() {
    let agent = ScriptedAgent::start();
    let pod = Pod::of(&agent);
    pod.run().code(0);
    let record = pod.json("registration.json").to_string().replace(SERVICE, "web-0-web");
    pod.replace("registration.json", &record);
    let record = pod.json("registration.json");
    agent.seed(record["service"].clone()).seed(record["proxy"].clone());
    assert_eq!(agent.services().len(), 4);

    pod.run().code(0);
    assert_registered(&agent);
    assert_eq!(pod.json("registration.json")["service"]["ID"], SERVICE);
}

/// Transparent clients know the service by the address; `connect-lifecycle` looks the name
/// up again.
#[test]
fn a_transparent_pod_is_registered_as_one() {
    for (address, name) in [("10.96.0.10:80", None), ("service:db", Some("db.shop.svc"))] {
        let agent = ScriptedAgent::start();
        let pod = Pod::of(&agent)
            .switch("--transparent")
            .with("--virtual", address)
            .with("--expose", "/healthz=20300:8080")
            .with_env("DB_SERVICE_HOST", "10.96.0.10")
            .with_env("DB_SERVICE_PORT", "80");
        pod.run().code(0);
        let proxy = agent.asked(Route::Register)[1].json();
        assert_eq!(proxy["Proxy"]["Mode"], "transparent");
        assert_eq!(proxy["Proxy"]["TransparentProxy"]["OutboundListenerPort"], 15001);
        assert_eq!(
            proxy["TaggedAddresses"],
            json!({"virtual": {"Address": "10.96.0.10", "Port": 80}})
        );
        let exposed = &proxy["Proxy"]["Expose"]["Paths"][0];
        assert_eq!(exposed["Path"], "/healthz");
        assert_eq!(
            (&exposed["ListenerPort"], &exposed["LocalPathPort"]),
            (&json!(20300), &json!(8080))
        );
        assert_eq!(pod.json("registration.json")["virtual_name"].as_str(), name);
    }
}
