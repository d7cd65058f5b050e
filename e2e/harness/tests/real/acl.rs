//! ACLs of the real agent, with default policy "deny": pods log in and log out, and leave no
//! token behind.

use harness::node::Node;
use harness::node::acl::{Acls, METHOD};
use harness::parts::Parts;
use harness::process::Process;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;

/// The bearer token's file, and the directory that the pod's containers share.
struct Pod<'n> {
    node: &'n Node,
    name: String,
    folder: std::path::PathBuf,
}

impl<'n> Pod<'n> {
    /// The pod `web-0`, with its files in a directory of that name.
    fn new(node: &'n Node, name: &str, bearer_token: &str) -> Self {
        Self::named(node, "web-0", name, bearer_token)
    }

    fn named(node: &'n Node, pod: &str, name: &str, bearer_token: &str) -> Self {
        let folder = node.folder(&format!("acl-{name}")).unwrap();
        std::fs::create_dir_all(folder.join("shared")).unwrap();
        let mut file = std::fs::File::create(folder.join("bearer")).unwrap();
        std::io::Write::write_all(&mut file, bearer_token.as_bytes()).unwrap();
        Self { node, name: pod.to_owned(), folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).to_string_lossy().into_owned()
    }

    /// Runs connect-init. Returns its exit code and its log.
    fn init(&self, further: &[&str]) -> (Option<i32>, String) {
        let mut init = self.start_init(further);
        (init.wait().unwrap().code(), init.output())
    }

    fn start_init(&self, further: &[&str]) -> Process {
        let bins = &self.node.parts().bins;
        let mut args: Vec<String> = [
            "--pod-namespace=shop",
            "--pod-uid=c0ffee",
            "--pod-ip=10.99.0.77",
            "--grpc-addr=10.99.0.1:8502",
            "--timeout=20s",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(format!("--pod-name={}", self.name));
        args.push(format!("--http-addr=http://{}:8500", self.node.ip()));
        args.push(format!("--acl-auth-method={METHOD}"));
        args.push(format!("--bearer-token-file={}", self.path("bearer")));
        args.push(format!("--dir={}", self.path("shared")));
        args.push(format!("--helper={}", bins.join("connect-lifecycle").display()));
        args.extend(further.iter().map(|&arg| arg.to_owned()));
        self.node.start(&bins.join("connect-init"), &args).unwrap()
    }
}

impl Pod<'_> {
    /// Starts the sidecar, with another program instead of Envoy.
    fn run(&self) -> Process {
        // Ends with its parent, even if that is killed.
        let envoy = ["setpriv", "--pdeathsig=KILL", "sleep", "infinity"];
        let args = ["run", "--dir", &self.path("shared"), "--drain-timeout=1s", "--"];
        let args: Vec<_> = args.into_iter().chain(envoy).map(str::to_owned).collect();
        self.node.start(&self.node.parts().bins.join("connect-lifecycle"), &args).unwrap()
    }

    /// Starts the preStop hook.
    fn start_hook(&self) -> Process {
        let args = ["deregister", "--dir", &self.path("shared")].map(str::to_owned);
        self.node.start(&self.node.parts().bins.join("connect-lifecycle"), &args).unwrap()
    }
}

/// Number of pods at a time, and in total; `E2E_LIVES` overrides the total.
const AT_ONCE: usize = 20;
const LIVES: usize = 40;

/// How a pod ends.
#[derive(Clone, Copy, PartialEq)]
enum Life {
    /// It gets SIGTERM.
    Short,
    /// Its preStop hook runs first.
    Hooked,
    /// Its init container runs twice.
    InitAgain,
    /// The sidecar is killed and restarts.
    Killed,
}

const KINDS: [Life; 4] = [Life::Short, Life::Hooked, Life::InitAgain, Life::Killed];

fn with_acls(test: impl FnOnce(&Node, &Acls<'_>, &Process)) {
    with_acls_of(Parts::find_or_skip(), test);
}

fn with_acls_of(parts: Option<Parts>, test: impl FnOnce(&Node, &Acls<'_>, &Process)) {
    let Some(parts) = parts else { return };
    let node = Node::new(parts).unwrap();
    let (acls, agent) = Acls::start(&node).unwrap();
    test(&node, &acls, &agent);
}

#[test]
fn a_pod_logs_in_registers_and_reuses_its_token() {
    log_in_again(Parts::find_or_skip());
}

#[test]
fn a_pod_logs_in_to_the_oldest_consul_and_reuses_its_token() {
    log_in_again(Parts::with_oldest_consul_or_skip());
}

fn log_in_again(parts: Option<Parts>) {
    with_acls_of(parts, |node, acls, _| {
        acls.have_method().unwrap();
        acls.bind("${value.account}").unwrap();
        let pod = Pod::new(node, "again", &acls.bearer_token("web", 600).unwrap());
        for _ in 0..3 {
            let (code, log) = pod.init(&["--service=web:8080"]);
            assert_eq!(code, Some(0), "{log}");
            let logins = acls.logins().unwrap();
            assert_eq!(logins.len(), 1, "{logins:?}");
            assert!(logins[0].contains("shop/web-0") && logins[0].contains("c0ffee"), "{logins:?}");
        }
        assert_eq!(acls.services().unwrap(), ["shop_web-0_web", "shop_web-0_web-sidecar-proxy"]);
    });
}

/// Tokens piled up. Reported in <https://github.com/hashicorp/consul-k8s/issues/845>.
#[test]
fn no_failed_start_leaves_a_token_or_a_service() {
    with_acls(|node, acls, _| {
        let good = acls.bearer_token("web", 600).unwrap();
        let fails = |name: &str, bearer: &str, args: &[&str], code: i32, words: &[&str]| {
            let (ended, log) = Pod::new(node, name, bearer).init(args);
            assert_eq!(ended, Some(code), "{name}: {log}");
            for word in words {
                assert!(log.contains(word), "{name}: `{word}` is not in: {log}");
            }
            assert!(!log.contains(bearer), "{name}: {log}");
            assert_eq!(acls.logins().unwrap(), [""; 0], "{name}: {log}");
            assert_eq!(acls.services().unwrap(), [""; 0], "{name}: {log}");
        };
        let web = &["--service=web:8080"];
        fails("no-method", &good, web, 77, &["ACL not found", "no auth method `pods`"]);
        acls.have_method().unwrap();
        fails("no-rule", &good, web, 77, &["service account `shop/web`", "no binding rule"]);
        acls.bind("${value.account}").unwrap();
        let expired = acls.bearer_token("web", -600).unwrap();
        fails(
            "expired",
            &expired,
            web,
            77,
            &["token is expired", "does not accept the bearer token"],
        );
        fails("garbage", "x.y.z", web, 77, &["does not accept the bearer token"]);
        let other = &["--service=api:8080"];
        let rule = "service:write on `api` and `api-sidecar-proxy`";
        fails(
            "other-service",
            &good,
            other,
            77,
            &["Permission denied", rule, "the service's name"],
        );
        // The registration succeeds, and then the bootstrap fails.
        let broken = &["--service=web:8080", r#"--proxy-config={"envoy_tracing_json": "{"}"#];
        fails("bootstrap", &good, broken, 64, &["envoy_tracing_json"]);
        // The first service is registered with the token, the second is not allowed.
        let second = &["--service=web:8080", "--service=api:9090"];
        fails("second", &good, second, 77, &["cannot register service `shop_web-0_api`"]);
        let (code, log) = Pod::new(node, "good", &good).init(web);
        assert_eq!(code, Some(0), "{log}");
    });
}

/// Reported in <https://github.com/hashicorp/consul-k8s/pull/1914> and
/// <https://github.com/hashicorp/consul/issues/11949>.
#[test]
fn a_deleted_token_is_replaced_by_a_login_and_logged_out_at_the_end() {
    with_acls(|node, acls, _| {
        acls.have_method().unwrap();
        acls.bind("${value.account}").unwrap();
        let pod = Pod::new(node, "revoked", &acls.bearer_token("web", 600).unwrap());
        let (code, log) = pod.init(&["--service=web:8080"]);
        assert_eq!(code, Some(0), "{log}");
        let mut sidecar = pod.run();
        sidecar.await_output("registered again").unwrap();
        acls.revoke().unwrap();
        sidecar.await_output("logged in again").unwrap();
        harness::until("another registration", || {
            let log = sidecar.output();
            log.rfind("registered again") > log.rfind("logged in again")
        })
        .unwrap();
        assert_eq!(acls.logins().unwrap().len(), 1);
        sidecar.signal(Signal::SIGTERM).unwrap();
        assert_eq!(sidecar.wait().unwrap().code(), Some(0), "{}", sidecar.output());
        assert_eq!(acls.logins().unwrap(), [""; 0], "{}", sidecar.output());
        assert_eq!(acls.services().unwrap(), [""; 0], "{}", sidecar.output());
    });
}

#[test]
fn a_pod_that_ends_without_its_token_leaves_the_catalog() {
    leave_the_catalog(Parts::find_or_skip());
}

#[test]
fn a_pod_that_ends_without_its_token_leaves_the_catalog_of_the_oldest_consul() {
    leave_the_catalog(Parts::with_oldest_consul_or_skip());
}

/// The agent tells the servers of a deregistration with the token of the registration. For
/// some seconds, it accepts a token that was deleted.
fn leave_the_catalog(parts: Option<Parts>) {
    with_acls_of(parts, |node, acls, _| {
        acls.have_method().unwrap();
        acls.bind("${value.account}").unwrap();
        let listed = || {
            let instances = ["web", "web-sidecar-proxy"].map(|name| {
                acls.ask(Method::GET, &format!("/v1/catalog/service/{name}"), None).unwrap()
            });
            instances.iter().filter_map(Value::as_array).map(Vec::len).sum::<usize>()
        };
        for has_hook in [false, true] {
            let name = if has_hook { "hooked" } else { "unhooked" };
            let pod = Pod::new(node, name, &acls.bearer_token("web", 600).unwrap());
            let (code, log) = pod.init(&["--service=web:8080"]);
            assert_eq!(code, Some(0), "{log}");
            let mut sidecar = pod.run();
            sidecar.await_output("registered again").unwrap();
            harness::until("both in the catalog", || listed() == 2).unwrap();
            acls.revoke().unwrap();
            if has_hook {
                pod.start_hook().wait().unwrap();
            }
            sidecar.signal(Signal::SIGTERM).unwrap();
            assert_eq!(sidecar.wait().unwrap().code(), Some(0), "{}", sidecar.output());
            assert_eq!(listed(), 0, "{name}: {}", sidecar.output());
            assert_eq!(acls.services().unwrap(), [""; 0], "{name}: {}", sidecar.output());
            assert_eq!(acls.logins().unwrap(), [""; 0], "{name}: {}", sidecar.output());
        }
    });
}

/// Tokens piled up. Reported in <https://github.com/hashicorp/consul-k8s/issues/845>.
#[test]
fn no_token_is_left_after_many_pods() {
    let lives = std::env::var_os("E2E_LIVES")
        .map_or(LIVES, |number| number.to_string_lossy().parse().unwrap());
    with_acls(|node, acls, _| {
        acls.have_method().unwrap();
        acls.bind("${value.account}").unwrap();
        let bearer = acls.bearer_token("web", 3600).unwrap();
        let numbers: Vec<usize> = (0..lives).collect();
        for numbers in numbers.chunks(AT_ONCE) {
            let pods: Vec<_> = numbers
                .iter()
                .map(|number| {
                    let name = format!("web-{number}");
                    (KINDS[number % KINDS.len()], Pod::named(node, &name, &name, &bearer))
                })
                .collect();
            live(&pods);
            assert_eq!(acls.logins().unwrap(), [""; 0], "after {numbers:?}");
            assert_eq!(acls.services().unwrap(), [""; 0], "after {numbers:?}");
            for (_, pod) in &pods {
                std::fs::remove_dir_all(&pod.folder).unwrap();
            }
        }
        println!("{lives} lives, and no token left");
    });
}

/// Runs pods from start to end, all at the same time.
fn live(pods: &[(Life, Pod<'_>)]) {
    let all = |end: &mut dyn FnMut(&(Life, Pod<'_>)) -> Option<Process>| {
        for mut process in pods.iter().filter_map(end).collect::<Vec<_>>() {
            assert_eq!(process.wait().unwrap().code(), Some(0), "{}", process.output());
        }
    };
    all(&mut |(_, pod)| Some(pod.start_init(&["--service=web:8080"])));
    all(&mut |(life, pod)| {
        (*life == Life::InitAgain).then(|| pod.start_init(&["--service=web:8080"]))
    });
    let mut sidecars: Vec<_> = pods.iter().map(|(_, pod)| pod.run()).collect();
    for (sidecar, (life, pod)) in sidecars.iter_mut().zip(pods) {
        sidecar.await_output("registered again").unwrap();
        if *life == Life::Killed {
            sidecar.signal(Signal::SIGKILL).unwrap();
            sidecar.wait().unwrap();
            *sidecar = pod.run();
            sidecar.await_output("registered again").unwrap();
        }
    }
    all(&mut |(life, pod)| (*life == Life::Hooked).then(|| pod.start_hook()));
    for sidecar in &sidecars {
        sidecar.signal(Signal::SIGTERM).unwrap();
    }
    for sidecar in &mut sidecars {
        assert_eq!(sidecar.wait().unwrap().code(), Some(0), "{}", sidecar.output());
    }
}
