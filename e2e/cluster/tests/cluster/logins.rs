//! ACLs with default policy "deny" and Consul's auth method `kubernetes`: pods log in with
//! the token of their service account, which the API server reviews, and log out when they
//! end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cluster::client::{Cluster, Namespace, text};
use cluster::helm::Helm;
use cluster::mesh::{self, ACL, ACL_METHOD};
use harness::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{self, annotate, await_answer, shell};
use crate::transparent::caller;

/// The initial management token in the manifest.
pub(crate) const MANAGEMENT: &str = "7d6e1a54-0000-4000-8000-5eed5eed5eed";

/// The Consul with ACLs and its injector, for one test at a time. Both are removed on drop.
pub(crate) struct Acls {
    pub(crate) cluster: &'static Cluster,
    pub(crate) helm: Helm,
    _alone: MutexGuard<'static, ()>,
}

static ACLS: Mutex<()> = Mutex::new(());

impl Acls {
    fn install(cluster: &'static Cluster) -> Result<Self> {
        let acls = Self::start(cluster)?;
        acls.helm.apply("install", ACL, &mesh::acl_values())?;
        acls.await_consul()?;
        acls.have_auth_method(&json!({}))?;
        acls.have_rule(&json!({"Selector": "serviceaccount.name!=default"}))?;
        Ok(acls)
    }

    /// Starts Consul, without the injector.
    pub(crate) fn start(cluster: &'static Cluster) -> Result<Self> {
        let alone = ACLS.lock().unwrap_or_else(PoisonError::into_inner);
        let acls = Self { cluster, helm: Helm::find()?, _alone: alone };
        // The namespace of an earlier test may still be terminating.
        let gone = ["delete", "namespace", ACL, "--ignore-not-found", "--timeout=120s"];
        cluster.kubectl(&gone, "")?;
        cluster.kubectl(&["apply", "--filename=-"], mesh::ACL_CONSUL)?;
        Ok(acls)
    }

    pub(crate) fn await_consul(&self) -> Result<()> {
        let rollout = ["rollout", "status", "deployment/consul-acl", "--timeout=120s"];
        self.cluster.kubectl(&[rollout.as_slice(), &["--namespace", ACL]].concat(), "").map(drop)
    }

    /// Creates the auth method, with these settings.
    pub(crate) fn have_auth_method(&self, own: &Value) -> Result<()> {
        let secret = format!("/api/v1/namespaces/{ACL}/secrets/consul-auth-method");
        harness::until("the token that reviews tokens", || {
            self.cluster.get(&secret).is_ok_and(|secret| secret["data"]["token"].is_string())
        })?;
        let secret = self.cluster.get(&secret)?;
        let decoded = |key: &str| -> Result<String> {
            use base64::Engine as _;
            let value = text(&secret["data"][key]);
            Ok(String::from_utf8(base64::prelude::BASE64_STANDARD.decode(value)?)?)
        };
        let endpoints = self.cluster.get("/api/v1/namespaces/default/endpoints/kubernetes")?;
        let subset = &endpoints["subsets"][0];
        let host = format!(
            "https://{}:{}",
            text(&subset["addresses"][0]["ip"]),
            subset["ports"][0]["port"]
        );
        let mut method = json!({
            "Name": ACL_METHOD,
            "Type": "kubernetes",
            "Config": {
                "Host": host,
                "CACert": decoded("ca.crt")?,
                "ServiceAccountJWT": decoded("token")?,
            },
        });
        json_patch::merge(&mut method, own);
        self.ask(Method::PUT, "/v1/acl/auth-method", Some(&method)).map(drop)
    }

    /// Creates a binding rule that gives a service account the identity of the service with
    /// its name, with these settings.
    pub(crate) fn have_rule(&self, own: &Value) -> Result<Value> {
        let mut rule = json!({
            "AuthMethod": ACL_METHOD,
            "BindType": "service",
            "BindName": "${serviceaccount.name}",
        });
        json_patch::merge(&mut rule, own);
        self.ask(Method::PUT, "/v1/acl/binding-rule", Some(&rule))
    }

    /// Sends a request with the management token.
    pub(crate) fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let pods = format!("/api/v1/namespaces/{ACL}/pods?labelSelector=app%3Dconsul-acl");
        let pods = self.cluster.get(&pods)?;
        let pod = text(&pods["items"][0]["metadata"]["name"]);
        let separator = if path.contains('?') { '&' } else { '?' };
        let path = format!(
            "/api/v1/namespaces/{ACL}/pods/http:{pod}:9500/proxy{path}{separator}token={MANAGEMENT}"
        );
        self.cluster.request(method, &path, body)
    }

    /// Descriptions of the tokens created by login.
    fn logins(&self) -> Result<Vec<String>> {
        let tokens = self.ask(Method::GET, "/v1/acl/tokens", None)?;
        let tokens = tokens.as_array().ok_or("the tokens are no list")?.iter();
        let logins = tokens.filter(|token| token["AuthMethod"] == ACL_METHOD);
        Ok(logins.map(|token| text(&token["Description"]).to_owned()).collect())
    }
}

impl Drop for Acls {
    fn drop(&mut self) {
        let _ = self.helm.run(&["uninstall", ACL, "--namespace", ACL]);
        let delete = ["delete", "--filename=-", "--ignore-not-found", "--wait=false"];
        let _ = self.cluster.kubectl(&delete, mesh::ACL_CONSUL);
    }
}

pub(crate) fn with_account(mut pod: Value, account: &str) -> Value {
    pod["spec"]["serviceAccountName"] = account.into();
    pod
}

fn create(namespace: &Namespace<'_>, pod: &Value) -> Result<String> {
    namespace.apply(&pod.to_string())
}

/// Reported in <https://github.com/hashicorp/consul-k8s/pull/1914> and
/// <https://github.com/hashicorp/consul-k8s/issues/845>.
#[test]
fn pods_log_in_by_their_service_accounts_and_log_out_at_their_end() {
    let Some((cluster, _shared)) = support::ours() else { return };
    let acls = Acls::install(cluster).unwrap();
    let namespace = cluster.namespace("acls").unwrap();
    cluster.kubectl(&["label", "namespace", &namespace.name, "mesh=acl"], "").unwrap();
    for account in ["vault", "vault-client"] {
        namespace.kubectl(&["create", "serviceaccount", account]).unwrap();
    }

    // The service account decides which service a pod may register: checked at admission.
    let refused = create(&namespace, &support::server("vault", "secret")).unwrap_err().to_string();
    assert!(refused.contains("default") && refused.contains("vault"), "{refused}");

    create(&namespace, &with_account(support::server("vault", "secret"), "vault")).unwrap();
    let mut client = support::client("vault");
    // After the whole grace period, the kubelet would leave its sidecar two seconds to log out.
    let line = "trap 'exit 0' TERM; sleep 1000000 & wait";
    client["spec"]["containers"][0]["command"] = json!(["sh", "-c", line]);
    create(&namespace, &with_account(client, "vault-client")).unwrap();
    for pod in ["pod/vault", "pod/vault-client"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    let logins = acls.logins().unwrap();
    for pod in ["vault", "vault-client"] {
        let uid = namespace.pod(pod).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
        let name = format!("{}/{pod}", namespace.name);
        let is_its = |login: &&String| login.contains(&uid) && login.contains(&format!("{name}\""));
        assert_eq!(logins.iter().filter(is_its).count(), 1, "{pod}: {logins:?}");
    }

    // Without an intention, nobody may connect.
    let intention =
        json!({"SourceName": "vault-client", "DestinationName": "vault", "Action": "allow"});
    acls.ask(Method::POST, "/v1/connect/intentions", Some(&intention)).unwrap();
    await_answer(&namespace, "vault-client", "secret").unwrap();

    for pod in ["vault", "vault-client"] {
        namespace.kubectl(&["delete", "pod", pod, "--wait=false"]).unwrap();
    }
    harness::until("the end of all tokens and services", || {
        acls.logins().is_ok_and(|logins| logins.is_empty())
            && acls
                .ask(Method::GET, "/v1/agent/services", None)
                .is_ok_and(|services| services == json!({}))
    })
    .unwrap();
}

/// A denied request fails, and is not sent in plain text instead.
#[test]
fn a_transparent_client_reaches_only_what_intentions_allow() {
    let Some((cluster, _shared)) = support::ours() else { return };
    let acls = Acls::install(cluster).unwrap();
    let namespace = cluster.namespace("acls-transparent").unwrap();
    cluster.kubectl(&["label", "namespace", &namespace.name, "mesh=acl"], "").unwrap();
    for account in ["ledger", "notes", "teller"] {
        namespace.kubectl(&["create", "serviceaccount", account]).unwrap();
    }
    let notes = support::server("notes", "open");
    for mut pod in [support::server("ledger", "secret"), caller("teller"), notes] {
        let name = text(&pod["metadata"]["name"]).to_owned();
        let transparent = if name == "notes" { "false" } else { "true" };
        annotate(&mut pod, &[("transparent-proxy", transparent)]);
        create(&namespace, &with_account(pod, &name)).unwrap();
    }
    for pod in ["pod/ledger", "pod/notes", "pod/teller"] {
        namespace.await_condition(pod, "Ready").unwrap();
    }
    let get = |url: &str| {
        let line = format!("curl --silent --fail --max-time 3 {url}");
        shell(&namespace, "teller", "teller", &line).map(|answer| answer.trim().to_owned())
    };
    let await_get = |url: &str, expected: Option<&str>| {
        let mut seen = String::new();
        harness::until(&format!("{expected:?} of {url}"), || {
            let got = get(url);
            seen = format!("{got:?}");
            got.ok().as_deref() == expected
        })
        .unwrap_or_else(|error| panic!("{error}; last seen: {seen}"));
    };
    let direct = |pod: &str| {
        format!("http://{}:8080/", text(&namespace.pod(pod).unwrap()["status"]["podIP"]))
    };
    let mut address = String::new();
    harness::until("the virtual address", || {
        let found = acls.ask(Method::GET, "/v1/catalog/service/ledger-sidecar-proxy", None);
        let found = found.unwrap_or_default();
        text(&found[0]["ServiceTaggedAddresses"]["consul-virtual"]["Address"])
            .clone_into(&mut address);
        !address.is_empty()
    })
    .unwrap();
    let virtual_address = format!("http://{address}/");

    // Denied at its virtual address, and at the pod's address, too.
    get(&virtual_address).unwrap_err();
    get(&direct("ledger")).unwrap_err();
    // A service that is not transparent can be reached without its sidecar, until
    // MeshDestinationsOnly forbids that.
    await_get(&direct("notes"), Some("open"));
    let only = json!({"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": true}});
    acls.ask(Method::PUT, "/v1/config", Some(&only)).unwrap();
    await_get(&direct("notes"), None);

    let intention = json!({"Kind": "service-intentions", "Name": "ledger",
        "Sources": [{"Name": "teller", "Action": "allow"}]});
    acls.ask(Method::PUT, "/v1/config", Some(&intention)).unwrap();
    await_get(&virtual_address, Some("secret"));
    get(&direct("ledger")).unwrap_err();
    get(&direct("notes")).unwrap_err();

    acls.ask(Method::DELETE, "/v1/config/service-intentions/ledger", None).unwrap();
    await_get(&virtual_address, None);
}
