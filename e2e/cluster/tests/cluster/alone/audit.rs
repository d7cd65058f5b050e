//! `connect-inject audit` on the cluster, from inside of a pod, with the rights that it
//! prints itself. Every code is made to happen. There is one node: a second one, in Kubernetes
//! and in Consul, is an object only, without a kubelet and an agent.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use cluster::client::{Cluster, Namespace, text};
use cluster::{images, mesh};
use reqwest::Method;
use serde_json::{Value, json};

use crate::logins::{Acls, MANAGEMENT, with_account};
use crate::support::{alone, annotate, in_container_mode, is_ours, ours, server, set_of};

/// A finding, by its code and name.
type Named = (String, String);

/// A pod in which audits are run.
struct Auditor {
    cluster: &'static Cluster,
    /// Of its account, its role and its pods.
    name: String,
    /// The namespace and name of the injector, whose policy it has.
    injector: (&'static str, &'static str),
    pod: String,
}

/// Where the chart's webhooks are.
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// How many pods there have been: one that is being deleted keeps its name.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl Auditor {
    /// With the rights that `--print-rbac` prints, and none beside.
    fn new(cluster: &'static Cluster, injector: (&'static str, &'static str)) -> Self {
        let name = format!("audit-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut auditor = Self { cluster, name: name.clone(), injector, pod: String::new() };
        auditor.kubectl(&["create", "serviceaccount", &name]);
        auditor.start();
        let (code, rights, log) = auditor.run(&["--print-rbac"]);
        assert_eq!(code, Some(0), "{log}");
        let rights = rights.replace("name: connect-inject-audit", &format!("name: {name}"));
        cluster.kubectl(&["apply", "--filename=-"], &rights).unwrap();
        auditor.bind();
        auditor
    }

    fn bind(&self) {
        let account = format!("--serviceaccount={}:{}", self.injector.0, self.name);
        let role = format!("--clusterrole={}", self.name);
        self.kubectl(&["create", "clusterrolebinding", &self.name, &role, &account]);
    }

    fn unbind(&self) {
        self.kubectl(&["delete", "clusterrolebinding", &self.name]);
    }

    /// Starts the pod anew: it sees the policy that is installed now.
    fn start(&mut self) {
        let (namespace, injector) = self.injector;
        if !self.pod.is_empty() {
            self.kubectl(&["delete", "pod", &self.pod, "--wait=false"]);
        }
        self.pod = format!("{}-{}", self.name, COUNT.fetch_add(1, Ordering::Relaxed));
        let port = if namespace == mesh::ACL { 9500 } else { 8500 };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.pod, "namespace": namespace},
            "spec": {
                "serviceAccountName": self.name,
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "audit", "image": images::INJECT, "imagePullPolicy": "IfNotPresent",
                    // It waits for documents that never come.
                    "args": ["uninject"], "stdin": true,
                    "env": [
                        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
                        {"name": "CONSUL_HTTP_ADDR", "value": format!("http://$(HOST_IP):{port}")},
                    ],
                    "volumeMounts": [{"name": "config", "mountPath": "/config"}],
                }],
                "volumes": [{"name": "config", "configMap": {"name": injector}}],
            },
        });
        self.cluster.kubectl(&["apply", "--filename=-"], &pod.to_string()).unwrap();
        self.kubectl(&["wait", "pod", &self.pod, "--for=condition=Ready", "--timeout=60s"]);
    }

    fn kubectl(&self, args: &[&str]) -> String {
        let args = [&["--namespace", self.injector.0], args].concat();
        self.cluster.kubectl(&args, "").unwrap()
    }

    /// An audit's exit code, what it writes, and its log.
    fn run(&self, flags: &[&str]) -> (Option<i32>, String, String) {
        let exec = ["--namespace", self.injector.0, "exec", &self.pod, "--"];
        let audit = ["/connect-inject", "audit", "--config=/config/config.yaml"];
        let args = [&exec, audit.as_slice(), flags].concat();
        let output = self.cluster.try_kubectl(&args, "").unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    /// The findings, with all that is said of each.
    fn report(&self, flags: &[&str]) -> Vec<Value> {
        let (code, report, log) = self.run(&[&["--output=json"], flags].concat());
        let report: Value =
            serde_json::from_str(&report).unwrap_or_else(|_| panic!("{code:?}: {report}{log}"));
        let findings = report["findings"].as_array().unwrap().clone();
        assert_eq!(code, Some(i32::from(!findings.is_empty())), "{log}");
        findings
    }
}

impl Drop for Auditor {
    fn drop(&mut self) {
        let namespace = ["--namespace", self.injector.0];
        for what in [
            ["pod", self.pod.as_str()],
            ["clusterrolebinding", &self.name],
            ["clusterrole", &self.name],
            ["serviceaccount", &self.name],
        ] {
            let delete = ["delete", "--ignore-not-found", "--wait=false"];
            let _ = self.cluster.kubectl(&[namespace.as_slice(), &delete, &what].concat(), "");
        }
    }
}

fn named(finding: &Value) -> Named {
    (text(&finding["code"]).to_owned(), text(&finding["name"]).to_owned())
}

/// In both modes, and while pods are replaced.
#[test]
fn a_healthy_mesh_has_no_findings_in_either_mode_nor_during_a_rollout() {
    let Some((cluster, _shared)) = ours() else { return };
    let auditor = Auditor::new(cluster, (mesh::NAMESPACE, mesh::INJECT));
    let namespace = cluster.namespace("audit-well").unwrap();
    let well = server("audit-well", "hello");
    namespace.apply(&set_of("Deployment", &well, 2).to_string()).unwrap();
    let container = in_container_mode(server("audit-container", "hello"));
    namespace.apply(&set_of("Deployment", &container, 1).to_string()).unwrap();
    for name in ["audit-well", "audit-container"] {
        namespace.await_rollout(&format!("deployment/{name}")).unwrap();
    }
    // What is the whole cluster's may be another test's.
    let findings = |flags: &[&str]| -> Vec<Value> {
        let of = format!("--namespace={}", namespace.name);
        let mut findings = auditor.report(&[&[of.as_str()], flags].concat());
        findings.retain(|finding| {
            finding["namespace"] == namespace.name.as_str()
                || text(&finding["name"]).contains("audit-")
        });
        findings
    };
    // No pod is too young to be judged.
    assert_eq!(findings(&["--grace=0s"]), Vec::<Value>::new());
    let restart = ["rollout", "restart", "deployment/audit-well", "deployment/audit-container"];
    namespace.kubectl(&restart).unwrap();
    assert_eq!(findings(&[]), Vec::<Value>::new());
}

/// A mesh of its own, with ACLs: its Consul, its injector with a certificate from a Secret,
/// and who audits it.
struct Ill<'n> {
    acls: Acls,
    auditor: Auditor,
    /// Of the mesh; of the mesh before long; and none of it.
    shop: Namespace<'n>,
    bank: Namespace<'n>,
    token: String,
    /// The webhooks of the other injector, while they are away.
    away: Value,
    /// What was found so far.
    found: BTreeSet<String>,
}

/// The name of the mesh's injector.
const INJECT: &str = "acl-connect-inject";

/// A certificate for the injector that ends then, and what trusts it.
struct Serving {
    certificate: String,
    key: String,
}

impl Serving {
    fn ending_in(days: u64) -> Self {
        let host = format!("{INJECT}.{}.svc", mesh::ACL);
        let mut params = rcgen::CertificateParams::new([host]).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        params.not_before = epoch + now.saturating_sub(Duration::from_secs(3600));
        params.not_after = epoch + (now + Duration::from_secs(days * 24 * 3600));
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, key: key.serialize_pem() }
    }

    fn bundle(&self) -> String {
        BASE64_STANDARD.encode(&self.certificate)
    }

    /// The Secret of that name.
    fn secret(&self, name: &str) -> String {
        json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": name, "namespace": mesh::ACL},
            "stringData": {"tls.crt": self.certificate, "tls.key": self.key}})
        .to_string()
    }
}

impl Ill<'_> {
    /// Upgrades the injector, and awaits the end of the old one, which goes on answering for a
    /// while by its own policy.
    fn upgrade(&self, own: &Value) {
        let mut values = mesh::acl_values();
        let inject = json!({"resources": {"requests": {"cpu": "10m"}},
            "audit": {"enabled": true,
                "aclToken": {"secretName": "audit-token", "secretKey": "token"}}});
        json_patch::merge(&mut values["connectInject"], &inject);
        json_patch::merge(&mut values["connectInject"], own);
        self.acls.helm.apply("upgrade", mesh::ACL, &values).unwrap();
        harness::until("the end of the old injector", || self.injectors().len() == 1).unwrap();
    }

    /// The names of the injector's pods.
    fn injectors(&self) -> Vec<String> {
        let pods = format!(
            "/api/v1/namespaces/{}/pods?labelSelector=app.kubernetes.io%2Fname%3Dconnect-inject",
            mesh::ACL
        );
        let pods = self.acls.cluster.get(&pods).unwrap();
        let name = |pod: &Value| text(&pod["metadata"]["name"]).to_owned();
        pods["items"].as_array().into_iter().flatten().map(name).collect()
    }

    /// The findings that are this mesh's, all of them explained.
    fn report(&mut self, flags: &[&str]) -> Vec<Value> {
        let token = format!("--token={}", self.token);
        let mut findings = self.auditor.report(&[&["--settle=1s", &token], flags].concat());
        findings.retain(|finding| {
            let namespace = text(&finding["namespace"]);
            namespace.is_empty()
                || [&self.shop.name, &self.bank.name].iter().any(|n| *n == namespace)
        });
        for finding in &findings {
            self.found.insert(text(&finding["code"]).to_owned());
            assert!(text(&finding["detail"]).len() > 10, "{finding}");
            assert!(text(&finding["advice"]).len() > 10, "{finding}");
        }
        findings
    }

    /// Awaits exactly these findings: what is merely on its way is none.
    fn expect(&mut self, flags: &[&str], expected: &[(&str, &str)]) -> Vec<Value> {
        let expected: BTreeSet<Named> =
            expected.iter().map(|(code, name)| ((*code).to_owned(), (*name).to_owned())).collect();
        let mut seen = Vec::new();
        let found = harness::until("the findings", || {
            seen = self.report(flags);
            seen.iter().map(named).collect::<BTreeSet<_>>() == expected
        });
        found.unwrap_or_else(|error| panic!("{error}: not {expected:#?}, but {seen:#?}"));
        seen
    }

    fn intend(&self, source: &str, destination: &str) {
        let intention =
            json!({"SourceName": source, "DestinationName": destination, "Action": "allow"});
        self.acls.ask(Method::POST, "/v1/connect/intentions", Some(&intention)).unwrap();
    }
}

impl Drop for Ill<'_> {
    fn drop(&mut self) {
        // The others need it.
        if self.away.is_object() {
            let _ = self.acls.cluster.request(Method::POST, WEBHOOKS, Some(&self.away));
        }
        let _ = self.acls.cluster.kubectl(&["delete", "node", ELSEWHERE, "--ignore-not-found"], "");
        let _ = self.acls.cluster.request(Method::DELETE, &format!("{WEBHOOKS}/{FAR}"), None);
        let agent = ["delete", "pod", OUTDATED, "--ignore-not-found", "--wait=false"];
        let _ = self
            .acls
            .cluster
            .kubectl(&[&["--namespace", mesh::ACL], agent.as_slice()].concat(), "");
        let pod = ["--namespace=kube-system", "delete", "pod", EXCLUDED, "--ignore-not-found"];
        let _ = self.acls.cluster.kubectl(&[&pod, ["--wait=false"].as_slice()].concat(), "");
    }
}

/// A node without a kubelet and an agent.
const ELSEWHERE: &str = "audit-elsewhere";

/// An injector that nobody reaches from a pod, and that is asked about no pod.
const FAR: &str = "audit-far";

/// Its webhook, and its Service with an endpoint in a network for documentation (RFC 5737).
fn far(ca_bundle: &str) -> String {
    let rules = json!([{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
        "resources": ["pods"]}]);
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": FAR, "labels": {"app.kubernetes.io/name": "connect-inject"}},
        "webhooks": [{"name": "far.example.org", "rules": rules, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
            "namespaceSelector": {"matchLabels": {"mesh": FAR}},
            "clientConfig": {"caBundle": ca_bundle,
                "service": {"namespace": mesh::ACL, "name": FAR, "path": "/mutate"}}}],
    });
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": FAR, "namespace": mesh::ACL},
        "spec": {"ports": [{"port": 443, "targetPort": 8443}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": FAR, "namespace": mesh::ACL,
            "labels": {"kubernetes.io/service-name": FAR}},
        "addressType": "IPv4", "ports": [{"port": 8443}],
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}]});
    json!({"apiVersion": "v1", "kind": "List", "items": [webhook, service, slice]}).to_string()
}

/// A pod of the system's that asks.
const EXCLUDED: &str = "audit-excluded";

/// A pod that asks, with the account by which it may be its service.
fn pod(name: &str) -> Value {
    let mut pod = with_account(server(name, "hello"), name);
    // It ends at once, and has the time to log out.
    annotate(&mut pod, &[("application-sleep-seconds", "0")]);
    pod
}

fn create(namespace: &Namespace<'_>, pod: &Value) {
    namespace.apply(&pod.to_string()).unwrap();
}

/// A pod again, as it is restarted.
fn restart(namespace: &Namespace<'_>, pod: &Value) {
    delete(namespace, pod);
    create(namespace, pod);
}

fn delete(namespace: &Namespace<'_>, pod: &Value) {
    namespace.kubectl(&["delete", "pod", text(&pod["metadata"]["name"])]).unwrap();
}

fn ready(namespace: &Namespace<'_>, names: &[&str]) {
    for name in names {
        namespace.await_condition(&format!("pod/{name}"), "Ready").unwrap();
    }
}

/// Without its management token, an audit reads by the policy that it prints.
fn reading_token(acls: &Acls, auditor: &Auditor) -> String {
    let (_, rights, _) = auditor.run(&["--print-rbac"]);
    let rules = rights.split("-rules @rules.hcl\n#\n").nth(1).unwrap();
    let rules: Vec<&str> = rules
        .lines()
        .take_while(|line| *line != "#")
        .map(|line| line.trim_start_matches("# "))
        .collect();
    let policy = json!({"Name": "audit", "Rules": rules.join("\n")});
    acls.ask(Method::PUT, "/v1/acl/policy", Some(&policy)).unwrap();
    let token = json!({"Policies": [{"Name": "audit"}]});
    let token = acls.ask(Method::PUT, "/v1/acl/token", Some(&token)).unwrap();
    text(&token["SecretID"]).to_owned()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one mesh goes through it all: each step needs the last")]
fn each_code_is_found_explained_and_gone_after_its_advice() {
    let Some((cluster, _alone)) = alone().filter(|(cluster, _)| is_ours(cluster)) else { return };
    let acls = Acls::start(cluster).unwrap();
    let (soon, good) = (Serving::ending_in(1), Serving::ending_in(300));
    for secret in [soon.secret("soon"), good.secret("good")] {
        cluster.kubectl(&["apply", "--filename=-"], &secret).unwrap();
    }
    let shop = cluster.namespace("audit-shop").unwrap();
    let bank = cluster.namespace("audit-bank").unwrap();
    let into_mesh = |namespace: &Namespace<'_>| {
        cluster.kubectl(&["label", "namespace", &namespace.name, "mesh=acl"], "").unwrap();
    };
    into_mesh(&shop);
    for (namespace, account) in [
        (&shop, "web"),
        (&shop, "db"),
        (&shop, "bare"),
        (&shop, "wrong"),
        (&bank, "db"),
        (&bank, "outside"),
    ] {
        namespace.kubectl(&["create", "serviceaccount", account]).unwrap();
    }
    acls.await_consul().unwrap();
    // A certificate that the API server does not trust, soon at its end; no auth method.
    let values = |secret: &str, trusted: &Serving, policy: &str| {
        json!({"certs": {"secretName": secret, "caBundle": trusted.bundle()},
            "failurePolicy": policy})
    };
    // The policy is read by the auditor when it starts.
    let mut values_of_helm = mesh::acl_values();
    json_patch::merge(&mut values_of_helm["connectInject"], &values("soon", &good, "Ignore"));
    acls.helm.apply("install", mesh::ACL, &values_of_helm).unwrap();
    let auditor = Auditor::new(cluster, (mesh::ACL, INJECT));
    let token = reading_token(&acls, &auditor);
    let mut ill =
        Ill { acls, auditor, shop, bank, token, away: Value::Null, found: BTreeSet::new() };
    let secret = json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "audit-token", "namespace": mesh::ACL},
        "stringData": {"token": ill.token}});
    cluster.kubectl(&["apply", "--filename=-"], &secret.to_string()).unwrap();

    // Two injectors are asked about the shop.
    ill.expect(
        &[],
        &[
            ("webhook-untrusted", INJECT),
            ("webhook-overlaps", INJECT),
            ("auth-method-missing", mesh::ACL_METHOD),
        ],
    );
    let mut theirs = cluster.get(&format!("{WEBHOOKS}/{}", mesh::INJECT)).unwrap();
    for field in ["uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"] {
        theirs["metadata"].as_object_mut().unwrap().remove(field);
    }
    ill.away = theirs;
    cluster.kubectl(&["delete", "mutatingwebhookconfiguration", mesh::INJECT], "").unwrap();

    // Pods that are created while nobody injects them.
    let bare = pod("bare");
    let mut wrong = pod("wrong");
    annotate(&mut wrong, &[("connect-service-port", "nonsense")]);
    let outside = pod("outside");
    let mut excluded = server(EXCLUDED, "hello");
    excluded["metadata"]["namespace"] = "kube-system".into();
    cluster.kubectl(&["apply", "--filename=-"], &excluded.to_string()).unwrap();
    create(&ill.shop, &bare);
    create(&ill.shop, &wrong);
    create(&ill.bank, &outside);
    ill.expect(
        &["--grace=0s"],
        &[
            ("pod-without-sidecar", "bare"),
            ("pod-denied", "wrong"),
            ("webhook-excludes", "outside"),
            ("webhook-untrusted", INJECT),
            ("webhook-ignores-failures", INJECT),
            ("auth-method-missing", mesh::ACL_METHOD),
        ],
    );
    let of_system = ["--namespace=kube-system", "--only=pod-excluded"];
    let is_excluded = |ill: &Ill<'_>| {
        let token = format!("--token={}", ill.token);
        let findings = ill.auditor.report(&[&[token.as_str()], of_system.as_slice()].concat());
        findings.iter().any(|finding| finding["name"] == EXCLUDED)
    };
    assert!(is_excluded(&ill));
    ill.found.insert("pod-excluded".to_owned());
    let annotation = "consul.hashicorp.com/connect-inject-";
    cluster
        .kubectl(&["--namespace=kube-system", "annotate", "pod", EXCLUDED, annotation], "")
        .unwrap();
    assert!(!is_excluded(&ill));

    // As advised: what trusts the certificate, an auth method, the namespace's label, and
    // restarts. Nobody may log in yet.
    ill.upgrade(&values("soon", &soon, "Ignore"));
    ill.acls.have_auth_method(&json!({})).unwrap();
    let rule = ill.acls.have_rule(&json!({"Selector": "serviceaccount.name==nobody"})).unwrap();
    let rule = text(&rule["ID"]).to_owned();
    into_mesh(&ill.bank);
    ill.shop.kubectl(&["delete", "pod", "wrong", "--wait=false"]).unwrap();
    restart(&ill.bank, &outside);
    restart(&ill.shop, &bare);
    ill.auditor.start();
    ill.expect(
        &["--grace=0s"],
        &[
            ("pod-unregistered", "bare"),
            ("pod-unregistered", "outside"),
            ("webhook-certificate-ends", INJECT),
            ("webhook-ignores-failures", INJECT),
            ("tokens-without-expiry", mesh::ACL_METHOD),
            ("binding-rule-unmatched", &rule),
        ],
    );

    // As advised: another certificate and policy, tokens that end, a rule that matches.
    ill.upgrade(&values("good", &good, "Fail"));
    ill.acls.have_auth_method(&json!({"MaxTokenTTL": "1h"})).unwrap();
    ill.acls.ask(Method::DELETE, &format!("/v1/acl/binding-rule/{rule}"), None).unwrap();
    // Sooner than by the kubelet's back-off. Gone before they may log in: a pod that ends
    // between its init container and its sidecar leaves its token behind.
    delete(&ill.bank, &outside);
    delete(&ill.shop, &bare);
    let selector = r#"not (serviceaccount.name == default or "kube-" in serviceaccount.namespace)"#;
    ill.acls.have_rule(&json!({"Selector": selector})).unwrap();
    create(&ill.bank, &outside);
    create(&ill.shop, &bare);

    // Names, upstreams and intentions that do not add up.
    let db = pod("db");
    let mut web = pod("web");
    annotate(&mut web, &[("connect-service-upstreams", "db:1234")]);
    let mut lost = web.clone();
    annotate(&mut lost, &[("connect-service-upstreams", "db:1234,nobody:1235")]);
    create(&ill.shop, &db);
    create(&ill.bank, &db);
    create(&ill.shop, &lost);
    ill.intend("ghost", "db");
    ready(&ill.shop, &["db", "web", "bare"]);
    ready(&ill.bank, &["db", "outside"]);
    ill.auditor.start();
    ill.expect(
        &["--grace=0s"],
        &[
            ("service-shared", "db"),
            ("upstream-unserved", "nobody"),
            ("upstream-denied", "web -> db"),
            ("upstream-denied", "web -> nobody"),
            ("intention-unmatched", "ghost -> db"),
        ],
    );
    let ghost = "/v1/connect/intentions/exact?source=ghost&destination=db";
    ill.acls.ask(Method::DELETE, ghost, None).unwrap();
    ill.intend("web", "db");
    ill.bank.kubectl(&["delete", "pod", "db", "--wait=false"]).unwrap();
    restart(&ill.shop, &web);
    ready(&ill.shop, &["web"]);
    ill.expect(&["--grace=0s"], &[]);

    // Registrations and tokens that are nobody's, or wrong; a node that is too old.
    let id = |pod: &str| format!("{}_{pod}", ill.shop.name);
    let (of_bare, of_gone) = (id("bare_bare"), id("gone_web"));
    let of_web = id("web_web");
    let elsewhere = json!({
        "metadata": {"name": ELSEWHERE},
        "spec": {"taints": [{"key": "audit", "effect": "NoSchedule"}]},
        "status": {"nodeInfo": node_info(cluster)},
    });
    cluster.request(Method::POST, "/api/v1/nodes", Some(&elsewhere)).unwrap();
    let register = |service: &str, pod: &str, id: &str, address: &str| {
        json!({"ID": id, "Name": service, "Address": address, "Port": 8080,
            "Meta": {"pod-name": pod, "k8s-namespace": ill.shop.name}})
    };
    let agent = "/v1/agent/service/register";
    for service in [
        register("web", "gone", &of_gone, "10.9.9.9"),
        register("bare", "bare", &of_bare, "10.9.9.9"),
        // By hand.
        register("web", "hand", "audit-by-hand", "10.9.9.9"),
    ] {
        ill.acls.ask(Method::PUT, agent, Some(&service)).unwrap();
    }
    let address = ill.shop.pod("web").unwrap()["status"]["podIP"].clone();
    let mut service = register("web", "web", &of_web, text(&address));
    service["Service"] = service.as_object_mut().unwrap().remove("Name").unwrap();
    let entry = json!({"Node": ELSEWHERE, "Address": "10.9.9.8", "Service": service});
    ill.acls.ask(Method::PUT, "/v1/catalog/register", Some(&entry)).unwrap();
    let jwt = ill.shop.kubectl(&["create", "token", "web"]).unwrap();
    let meta = json!({"pod": format!("{}/gone", ill.shop.name)});
    let login = json!({"AuthMethod": mesh::ACL_METHOD, "BearerToken": jwt.trim(), "Meta": meta});
    let login = ill.acls.ask(Method::POST, "/v1/acl/login", Some(&login)).unwrap();
    let accessor = text(&login["AccessorID"]).to_owned();
    let changed = "consul.hashicorp.com/connect-service-upstreams=web:1234";
    ill.shop.kubectl(&["annotate", "pod", "db", changed]).unwrap();
    let nobodys = [("registration-orphaned", of_gone.as_str())];
    let wrong = [
        ("registration-stale-address", of_bare.as_str()),
        ("registration-wrong-node", &of_web),
        ("kubelet-too-old", ELSEWHERE),
        ("annotations-changed", "db"),
    ];
    ill.expect(&["--grace=0s"], &[nobodys.as_slice(), &wrong].concat());

    // As advised. A token whose pod is still registered is not missed yet.
    ill.acls.ask(Method::PUT, "/v1/catalog/deregister", Some(&json!({"Node": ELSEWHERE}))).unwrap();
    cluster.kubectl(&["delete", "node", ELSEWHERE], "").unwrap();
    restart(&ill.shop, &db);
    restart(&ill.shop, &bare);
    ready(&ill.shop, &["db", "bare"]);
    let management = format!("--token={MANAGEMENT}");
    let repair = |ill: &Ill<'_>, code: &str| {
        let only = format!("--only={code}");
        let flags = ["--repair", "--yes", "--grace=0s", "--settle=1s", &management, &only];
        let (code, _, log) = ill.auditor.run(&flags);
        assert_eq!(code, Some(0), "{log}");
    };
    repair(&ill, "registration-orphaned");
    ill.expect(&["--grace=0s"], &[("token-orphaned", &accessor)]);
    repair(&ill, "token-orphaned");
    ill.expect(&["--grace=0s"], &[]);
    let by_hand = ill.acls.ask(Method::GET, "/v1/agent/service/audit-by-hand", None);
    assert!(by_hand.is_ok(), "{by_hand:?}");
    ill.acls.ask(Method::PUT, "/v1/agent/service/deregister/audit-by-hand", None).unwrap();

    // A heartbeat that fails, until the sidecar renews it.
    let lease = format!("{of_web}-sidecar-proxy-lease");
    harness::until("a critical sidecar", || {
        let fail = format!("/v1/agent/check/fail/{lease}?note=cut%20off");
        ill.acls.ask(Method::PUT, &fail, None).unwrap();
        let found = ill.report(&["--grace=0s", "--only=sidecar-critical"]);
        found.iter().any(|finding| text(&finding["detail"]).contains("cut off"))
    })
    .unwrap();
    ill.expect(&["--grace=0s"], &[]);

    // One that warns, as connect-lifecycle does of a certificate that is not renewed.
    harness::until("a sidecar whose certificate ends", || {
        let warn = format!("/v1/agent/check/warn/{lease}?note=certificate%20ends");
        ill.acls.ask(Method::PUT, &warn, None).unwrap();
        let found = ill.report(&["--grace=0s", "--only=sidecar-certificate-ends"]);
        found.iter().any(|finding| text(&finding["detail"]).contains("certificate ends"))
    })
    .unwrap();
    ill.expect(&["--grace=0s"], &[]);

    let outdated = outdated_agent(&mut ill);

    // What may not be read.
    let (code, report, log) = ill.auditor.run(&["--output=json", "--settle=0s"]);
    assert!(code == Some(1) && report.contains("unreadable"), "{report}{log}");
    ill.auditor.unbind();
    harness::until("what may not be read of Kubernetes", || {
        let found: BTreeSet<_> = ill.report(&[]).iter().map(named).collect();
        ["pods", "nodes", "namespaces", "mutatingwebhookconfigurations"]
            .iter()
            .all(|what| found.contains(&("unreadable".to_owned(), (*what).to_owned())))
    })
    .unwrap();
    ill.auditor.bind();
    ill.expect(&["--grace=0s"], &[]);

    // Another policy, then another and too old an Envoy: what a restart would change.
    let mut own = values("good", &good, "Fail");
    own["sidecarProxy"] = json!({"concurrency": 3});
    ill.upgrade(&own);
    ill.auditor.start();
    let pods = ["bare", "db", "outside", "web"];
    ill.expect(&["--grace=0s"], &pods.map(|pod| ("sidecar-other-policy", pod)));
    restart(&ill.shop, &db);
    ready(&ill.shop, &["db"]);
    ill.expect(
        &["--grace=0s"],
        &["bare", "outside", "web"].map(|pod| ("sidecar-other-policy", pod)),
    );
    own["imageEnvoy"] = "envoyproxy/envoy:v1.20.0".into();
    ill.upgrade(&own);
    ill.auditor.start();
    restart(&ill.shop, &db);
    ill.expect(
        // It never starts.
        &[],
        &[
            ("sidecar-outdated", "bare"),
            ("sidecar-outdated", "outside"),
            ("sidecar-outdated", "web"),
            ("envoy-unsupported", "envoyproxy/envoy:v1.20.0"),
        ],
    );
    ill.upgrade(&values("good", &good, "Fail"));
    ill.auditor.start();
    restart(&ill.shop, &db);
    ready(&ill.shop, &["db"]);
    // A pod whose sidecar never ran does not log out.
    repair(&ill, "token-orphaned");
    ill.expect(&["--grace=0s"], &[]);

    // The CronJob leaves the results where the injector's metrics have them from.
    let job = format!("--from=cronjob/{INJECT}-audit");
    ill.auditor.kubectl(&["create", "job", "audit-now", &job]);
    let results = format!("/api/v1/namespaces/{}/configmaps/{INJECT}-audit", mesh::ACL);
    let mut seen = Value::Null;
    harness::until_within(Duration::from_secs(90), "the results", || {
        seen = cluster.get(&results).unwrap_or_default();
        seen["data"]["results.json"].is_string()
    })
    .unwrap_or_else(|error| panic!("{error}: {seen:#}"));
    let injector = ill.injectors().remove(0);
    // A change of the pod has the kubelet look at its volumes.
    ill.auditor.kubectl(&["annotate", "pod", &injector, "audit=done"]);
    let metrics =
        format!("/api/v1/namespaces/{}/pods/http:{injector}:9445/proxy/metrics", mesh::ACL);
    let mut told = String::new();
    harness::until_within(Duration::from_secs(120), "the metrics of the audit", || {
        told = cluster.kubectl(&["get", "--raw", &metrics], "").unwrap_or_default();
        told.contains(
            "connect_inject_audit_findings{code=\"webhook-untrusted\",severity=\"error\"} 0",
        )
    })
    .unwrap_or_else(|error| panic!("{error}: {told}"));

    // Endpoints that are ready for Kubernetes and out of reach from here.
    let far = far(&good.bundle());
    cluster.kubectl(&["apply", "--filename=-"], &far).unwrap();
    ill.expect(&[], &[("webhook-unchecked", FAR)]);
    cluster.kubectl(&["delete", "--filename=-"], &far).unwrap();
    ill.expect(&[], &[]);

    // Nobody answers, and nobody is asked.
    let deployment = format!("deployment/{INJECT}");
    ill.auditor.kubectl(&["scale", &deployment, "--replicas=0"]);
    ill.expect(&[], &[("webhook-unreachable", INJECT)]);
    ill.auditor.kubectl(&["scale", &deployment, "--replicas=1"]);
    ill.expect(&[], &[]);
    ill.auditor.kubectl(&["delete", "mutatingwebhookconfiguration", INJECT]);
    ill.expect(&[], &[("webhook-missing", "connect-inject")]);
    ill.upgrade(&values("good", &good, "Fail"));
    ill.expect(&[], &[]);

    let readme = include_str!("../../../../../bins/connect-inject/README.md");
    let codes = readme.lines().skip_while(|line| *line != "### Findings of audit").skip(1);
    let codes = codes.take_while(|line| !line.starts_with('#'));
    let codes = codes.filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let missing: Vec<_> = codes.filter(|code| !ill.found.contains(*code)).collect();
    let expected = if outdated { &[][..] } else { &["agent-too-old"] };
    assert_eq!(missing, expected);
}

/// An agent that is too old for today's Envoys, and its upgrade. Returns whether there is one:
/// in CI, it must be there.
fn outdated_agent(ill: &mut Ill<'_>) -> bool {
    let outdated = std::env::var_os("CONSUL_OUTDATED_BIN").ok_or_else(|| {
        "CONSUL_OUTDATED_BIN is not set: scripts/tools consul-outdated gets it".to_owned()
    });
    if harness::parts::or_skip(outdated).is_none() {
        return false;
    }
    let expected = [("agent-too-old", OUTDATED)];
    for (program, expected) in [(images::OUTDATED_CONSUL, &expected[..]), ("/bin/consul", &[])] {
        ill.auditor.cluster.kubectl(&["apply", "--filename=-"], &agent(program)).unwrap();
        let kubectl = |args: &[&str]| ill.auditor.kubectl(args);
        kubectl(&["wait", "pod", OUTDATED, "--for=condition=Ready", "--timeout=60s"]);
        // As connect-init registers pod `web` of namespace `default`.
        let id = ["-name=web", "-id=default_web_web", "-port=1"];
        let meta = ["-meta=pod-name=web", "-meta=k8s-namespace=default"];
        let register = ["exec", OUTDATED, "--", program, "services", "register"];
        kubectl(&[register.as_slice(), &id, &meta].concat());
        let nodes = ["exec", OUTDATED, "--", program, "catalog", "nodes", "-service=web"];
        harness::until("the registration in the catalog", || kubectl(&nodes).contains(OUTDATED))
            .unwrap();
        ill.expect(&["--grace=0s", "--only=agent-too-old"], expected);
        // The agent leaves.
        ill.auditor.kubectl(&["delete", "pod", OUTDATED]);
    }
    true
}

/// Name of the agent's pod, and of its node.
const OUTDATED: &str = "audit-outdated";

/// A client agent of the mesh with ACLs, by this program.
fn agent(program: &str) -> String {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let acl = format!(
        "-hcl=acl {{ enabled = true tokens {{ default = \"{MANAGEMENT}\" agent = \"{MANAGEMENT}\" }} }}"
    );
    let container = json!({
        "name": "consul", "image": images::CONSUL, "imagePullPolicy": "IfNotPresent",
        "command": [program, "agent", format!("-node={OUTDATED}"), "-data-dir=/tmp/consul",
            "-bind=$(POD_IP)", "-client=0.0.0.0", "-retry-join=$(HOST_IP):9301",
            "-retry-interval=1s", "-hcl=disable_update_check = true", acl],
        "env": [{"name": "POD_IP", "valueFrom": field("status.podIP")},
            {"name": "HOST_IP", "valueFrom": field("status.hostIP")},
            {"name": "CONSUL_HTTP_TOKEN", "value": MANAGEMENT}],
        // It knows a leader when it has joined.
        "readinessProbe": {"periodSeconds": 1, "exec": {"command": ["sh", "-c",
            format!("{program} operator raft list-peers")]}},
    });
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": OUTDATED, "namespace": mesh::ACL},
        "spec": {"terminationGracePeriodSeconds": 10, "containers": [container]}})
    .to_string()
}

/// What a kubelet says of itself that is too old.
fn node_info(cluster: &Cluster) -> Value {
    let nodes = cluster.get("/api/v1/nodes").unwrap();
    let mut info = nodes["items"][0]["status"]["nodeInfo"].clone();
    info["kubeletVersion"] = "v1.28.3".into();
    info
}
