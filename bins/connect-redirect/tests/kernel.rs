//! Loads the rules into a real kernel and makes connections between a pod and a host outside
//! of it, each a network namespace. Requires root, `ip` and `nft`.

#![expect(clippy::unwrap_used, reason = "in fixtures, too, a panic reports the failure")]

mod network;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Output;

use assert_cmd::Command;
use network::{Network, connect, output, pod_and_outside, serve};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// The user that Envoy runs as.
const ENVOY: &str = "5995";

fn connect_redirect(args: &[String]) -> Output {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("connect-redirect"));
    command.env("CONNECT_TERMINATION_LOG", "").args(args).output().unwrap()
}

/// Runs the program in the pod. Returns the log, and panics with it on failure.
fn succeed(pod: &Network, line: &str) -> String {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let output = pod.run(move || connect_redirect(&args));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{line}: {log}");
    log
}

/// Runs the program without capabilities. Returns exit code and log.
fn without_rights(pod: &Network, line: &str) -> (Option<i32>, String) {
    let program = assert_cmd::cargo::cargo_bin!("connect-redirect").display().to_string();
    let line = format!("--reuid 65534 --clear-groups {program} {line}");
    let output = pod.run(move || output("setpriv", &line));
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn listing(pod: &Network) -> String {
    let output = pod.run(|| output("nft", "list ruleset"));
    String::from_utf8(output.stdout).unwrap()
}

/// Any valid flags.
fn flags() -> impl Strategy<Value = String> {
    let list = |flag: &'static str, values: BoxedStrategy<String>| {
        prop::collection::vec(values, 0..4).prop_map(move |values| {
            let flags = values.iter().map(|value| format!(" {flag} {value}"));
            flags.collect::<Vec<_>>().concat()
        })
    };
    let number = |least: u32, most: u32| (least..most).prop_map(|n| n.to_string()).boxed();
    let v4 = (any::<[u8; 4]>(), 0u8..=32)
        .prop_map(|(address, prefix)| format!("{}/{prefix}", std::net::Ipv4Addr::from(address)));
    let v6 = (any::<[u8; 16]>(), 0u8..=128)
        .prop_map(|(address, prefix)| format!("{}/{prefix}", std::net::Ipv6Addr::from(address)));
    let dns =
        prop_oneof![Just(""), Just(" --consul-dns 127.0.0.1:8653"), Just(" --consul-dns [::1]:53")];
    let services = (0u16..3).prop_map(|many| {
        let flags = (0..many).map(|n| format!(" --service {}={}", 9000 + n, 20001 + n));
        flags.collect::<Vec<_>>().concat()
    });
    let parts: [BoxedStrategy<String>; 6] = [
        list("--exclude-uid", number(0, u32::MAX)).boxed(),
        list("--exclude-inbound-port", number(1, 9000)).boxed(),
        list("--exclude-outbound-port", number(1, 65536)).boxed(),
        list("--exclude-outbound-cidr", prop_oneof![v4, v6].boxed()).boxed(),
        services.boxed(),
        dns.prop_map(str::to_owned).boxed(),
    ];
    Vec::from(parts).prop_map(|parts| parts.concat())
}

/// The kernel lists the same rules after `apply` and after `nft -f` of the output of
/// `print`.
#[test]
fn apply_loads_the_same_rules_as_nft() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    let mut runner =
        TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
    let ran = runner.run(&flags(), |flags| {
        succeed(&pod, &format!("apply{flags}"));
        let ours = listing(&pod);
        let printed = succeed_with_output(&pod, &format!("print{flags}"));
        let loaded = pod.run(move || network::output_with_input("nft", "-f -", &printed));
        prop_assert!(loaded.status.success(), "{loaded:?}");
        prop_assert_eq!(ours, listing(&pod));
        Ok(())
    });
    ran.unwrap();
}

fn succeed_with_output(pod: &Network, line: &str) -> String {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let output = pod.run(move || connect_redirect(&args));
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn applying_twice_replaces_the_rules() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    succeed(&pod, "apply --exclude-uid 7");
    let once = listing(&pod);
    succeed(&pod, "apply --exclude-uid 7");
    assert_eq!(once, listing(&pod));
    // The old rules are gone.
    succeed(&pod, "apply");
    assert!(!listing(&pod).contains("skuid 7"));
}

#[test]
fn two_thousand_exclusions_fit() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    let cidrs: Vec<String> =
        (0..2000).map(|n| format!("10.{}.{}.0/24", n / 250, n % 250)).collect();
    succeed(&pod, &format!("apply --exclude-outbound-cidr {}", cidrs.join(",")));
    assert_eq!(listing(&pod).matches("ip daddr").count(), 2000);
}

/// As in a pod at PodSecurity level restricted, whose rules are loaded from outside.
#[test]
fn verify_needs_no_capabilities() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    let (code, log) = without_rights(&pod, "verify");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("was not redirected to port 15001"), "{log}");
    succeed(&pod, "apply");
    let (code, log) = without_rights(&pod, "verify");
    assert_eq!(code, Some(0), "{log}");
    // That user's connections are not redirected.
    succeed(&pod, "apply --exclude-uid 65534");
    let (code, log) = without_rights(&pod, "verify");
    assert_eq!(code, Some(1), "{log}");
}

#[test]
fn verify_with_net_admin_reports_changed_rules() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    succeed(&pod, "apply");
    succeed(&pod, "verify");
    pod.run(|| output("nft", "insert rule inet connect_redirect prerouting tcp dport 80 return"));
    let args = ["verify".to_owned()];
    let output = pod.run(move || connect_redirect(&args));
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("of chain prerouting is missing or was changed"), "{log}");
}

#[test]
fn apply_without_net_admin_fails_and_loads_nothing() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    let (code, log) = without_rights(&pod, "apply");
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("NET_ADMIN"), "{log}");
    assert_eq!(listing(&pod), "");
}

/// User 0 with this capability only, no_new_privs and a read-only root file system.
#[test]
fn apply_needs_only_net_admin() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    let program = assert_cmd::cargo::cargo_bin!("connect-redirect").display().to_string();
    let apply_with = |capabilities: &str| {
        let script = format!(
            "mount --make-rprivate / && mount -o bind,remount,ro / && ! touch /tried 2>/dev/null && \
             exec setpriv --no-new-privs --inh-caps=-all --bounding-set={capabilities} {program} apply"
        );
        pod.run(move || Command::new("unshare").args(["--mount", "sh", "-c", &script]).output())
    };
    let output = apply_with("-all,+net_admin").unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(listing(&pod).contains("table inet connect_redirect"));
    let output = apply_with("-all").unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn apply_skips_the_test_connection_if_envoy_already_listens() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    pod.run(|| serve("127.0.0.1:15001"));
    let log = succeed(&pod, "apply");
    assert!(log.contains("port 15001 of 127.0.0.1 is in use"), "{log}");
}

/// Each listener sends its own port, so that the client knows which one it reached.
#[test]
fn connections_are_redirected_unless_excluded() {
    let Some((pod, outside)) = pod_and_outside() else { return };
    let (pod_is, outside_is) = (network::POD, network::OUTSIDE);
    for address in
        ["127.0.0.1:15001", "0.0.0.0:20000", "0.0.0.0:20001", "0.0.0.0:9100", "0.0.0.0:8080"]
    {
        pod.run(move || serve(address));
    }
    for port in [7000, 7001] {
        outside.run(move || serve(&format!("{outside_is}:{port}")));
        outside.run(move || serve(&format!("[{}]:{port}", network::OUTSIDE_V6)));
    }
    for port in [8080, 9100] {
        pod.run(move || serve(&format!("[{}]:{port}", network::POD_V6)));
    }
    let by_pod = |address: String| pod.run(move || connect(&address));
    let by_outside = |port: u16| outside.run(move || connect(&format!("{pod_is}:{port}")));
    let by_outside_v6 =
        |port: u16| outside.run(move || connect(&format!("[{}]:{port}", network::POD_V6)));
    assert_eq!(by_outside_v6(8080), Some(8080), "before the rules");

    // Connections in both directions that were open before the rules.
    let mut into = outside.run(move || TcpStream::connect(format!("{pod_is}:8080")).unwrap());
    let mut out = pod.run(move || TcpStream::connect(format!("{outside_is}:7001")).unwrap());

    succeed(
        &pod,
        "apply --service 9090=20001 --exclude-inbound-port 9100 --exclude-outbound-port 7000",
    );

    for (address, reached) in [
        // No host has this address: only the redirection answers.
        ("198.51.100.1:80".to_owned(), Some(15001)),
        (format!("{outside_is}:7001"), Some(15001)),
        (format!("{outside_is}:7000"), Some(7000)),
        ("127.0.0.1:8080".to_owned(), Some(8080)),
        (format!("{pod_is}:8080"), Some(8080)),
        // Envoy does not listen on IPv6: the connection is refused and can't bypass it.
        (format!("[{}]:7001", network::OUTSIDE_V6), None),
    ] {
        assert_eq!(by_pod(address.clone()), reached, "{address}");
    }
    for (port, reached) in
        [(8080, 20000), (1, 20000), (20000, 20000), (9090, 20001), (20001, 20001), (9100, 9100)]
    {
        assert_eq!(by_outside(port), Some(reached), "{port}");
    }
    assert_eq!([8080, 9100].map(by_outside_v6), [None, Some(9100)]);
    let as_envoy = |port: u16| {
        let bash = format!("exec 3<>/dev/tcp/{outside_is}/{port}; head -c 4 <&3");
        let args = ["--reuid", ENVOY, "--clear-groups", "bash", "-c", &bash].map(str::to_owned);
        let output =
            pod.run(move || std::process::Command::new("setpriv").args(args).output().unwrap());
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(as_envoy(7001), "7001");

    for stream in [&mut into, &mut out] {
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).unwrap();
        stream.write_all(b"more.").unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"more.");
    }

    succeed(&pod, &format!("apply --exclude-outbound-cidr {outside_is},::/0"));
    for address in [format!("{outside_is}:7001"), format!("[{}]:7001", network::OUTSIDE_V6)] {
        assert_eq!(by_pod(address.clone()), Some(7001), "{address}");
    }
}

#[test]
fn dns_queries_are_redirected_to_consul_dns() {
    let Some((pod, _outside)) = pod_and_outside() else { return };
    pod.run(|| serve("127.0.0.1:8653"));
    let server = pod.run(|| UdpSocket::bind("127.0.0.1:8653").unwrap());
    succeed(&pod, "apply --consul-dns 127.0.0.1:8653");
    let nameserver: SocketAddr = "10.96.0.10:53".parse().unwrap();
    let asking = pod.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    asking.set_read_timeout(Some(network::PATIENCE)).unwrap();
    server.set_read_timeout(Some(network::PATIENCE)).unwrap();
    asking.send_to(b"web.virtual.consul?", nameserver).unwrap();
    let mut query = [0; 64];
    let (length, from) = server.recv_from(&mut query).unwrap();
    assert_eq!(&query[..length], b"web.virtual.consul?");
    server.send_to(b"240.0.0.1", from).unwrap();
    let (length, from) = asking.recv_from(&mut query).unwrap();
    // The answer comes from the address that the client asked.
    assert_eq!((&query[..length], from), (&b"240.0.0.1"[..], nameserver));
    assert_eq!(pod.run(|| connect("10.96.0.10:53")), Some(8653));
}
