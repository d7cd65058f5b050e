//! The flags of what the operator decides about pods.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::annotation::{number, seconds, switch};
use crate::plan::{check_arguments, metrics_path, unprivileged};
use crate::policy::{Mistakes, Policy, address_template, arguments, ca_certificates, image, word};
use crate::quantity::{Bounds, Quantity, Resources};

/// What the operator decides about pods. Texts all of them, so that every
/// mistake of the command line and the file is reported in one run.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Policy")]
pub(crate) struct PolicyArgs {
    /// A YAML file with these flags by their names, without dashes; flags and
    /// environment variables win
    #[arg(long, env = "CONNECT_INJECT_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What is wrong with the file.
    #[arg(skip)]
    pub(crate) file_mistakes: Vec<String>,
    /// Inject pods that don't say whether they want it
    #[arg(long, env = "CONNECT_INJECT_DEFAULT_INJECT", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    default_inject: String,
    /// A namespace whose pods may be injected, or * for any; repeatable
    #[arg(
        long = "allow-k8s-namespace",
        env = "CONNECT_INJECT_ALLOW_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        default_value = "*"
    )]
    allow_k8s_namespaces: Vec<String>,
    /// A namespace whose pods are not injected, even if it is allowed;
    /// repeatable
    #[arg(
        long = "deny-k8s-namespace",
        env = "CONNECT_INJECT_DENY_K8S_NAMESPACE",
        value_name = "NAMESPACE",
        value_delimiter = ','
    )]
    deny_k8s_namespaces: Vec<String>,
    /// The image with connect-init and connect-lifecycle; required
    #[arg(long, env = "CONNECT_INJECT_INIT_IMAGE", value_name = "IMAGE")]
    init_image: Option<String>,
    /// The image with Envoy; required
    #[arg(long, env = "CONNECT_INJECT_ENVOY_IMAGE", value_name = "IMAGE")]
    envoy_image: Option<String>,
    /// When the kubelet pulls them: Always, IfNotPresent or Never
    #[arg(long, env = "CONNECT_INJECT_GLOBAL_IMAGE_PULL_POLICY", value_name = "POLICY")]
    global_image_pull_policy: Option<String>,
    /// A secret of the pods' namespaces with which the kubelet pulls them;
    /// repeatable
    #[arg(
        long = "image-pull-secret",
        env = "CONNECT_INJECT_IMAGE_PULL_SECRET",
        value_name = "NAME",
        value_delimiter = ','
    )]
    image_pull_secrets: Vec<String>,
    /// Arguments for Envoy besides the injector's, split as a shell would
    #[arg(
        long,
        env = "CONNECT_INJECT_ENVOY_EXTRA_ARGS",
        value_name = "ARGS",
        hide_default_value = true,
        allow_hyphen_values = true,
        default_value = ""
    )]
    envoy_extra_args: String,
    /// Envoy's worker threads; 0 for as many as the node has cores
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_ENVOY_PROXY_CONCURRENCY",
        value_name = "NUMBER",
        default_value = "2"
    )]
    default_envoy_proxy_concurrency: String,
    /// The sidecar's CPU request
    #[arg(long, env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_CPU_REQUEST", value_name = "QUANTITY")]
    default_sidecar_proxy_cpu_request: Option<String>,
    /// The sidecar's CPU limit
    #[arg(long, env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_CPU_LIMIT", value_name = "QUANTITY")]
    default_sidecar_proxy_cpu_limit: Option<String>,
    /// The sidecar's memory request
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_MEMORY_REQUEST",
        value_name = "QUANTITY"
    )]
    default_sidecar_proxy_memory_request: Option<String>,
    /// The sidecar's memory limit
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_MEMORY_LIMIT",
        value_name = "QUANTITY"
    )]
    default_sidecar_proxy_memory_limit: Option<String>,
    /// The init container's CPU request; empty for none
    #[arg(
        long,
        env = "CONNECT_INJECT_INIT_CONTAINER_CPU_REQUEST",
        value_name = "QUANTITY",
        default_value = "50m"
    )]
    init_container_cpu_request: Option<String>,
    /// The init container's CPU limit
    #[arg(long, env = "CONNECT_INJECT_INIT_CONTAINER_CPU_LIMIT", value_name = "QUANTITY")]
    init_container_cpu_limit: Option<String>,
    /// The init container's memory request; empty for none
    #[arg(
        long,
        env = "CONNECT_INJECT_INIT_CONTAINER_MEMORY_REQUEST",
        value_name = "QUANTITY",
        default_value = "25Mi"
    )]
    init_container_memory_request: Option<String>,
    /// The init container's memory limit; empty for none
    #[arg(
        long,
        env = "CONNECT_INJECT_INIT_CONTAINER_MEMORY_LIMIT",
        value_name = "QUANTITY",
        default_value = "150Mi"
    )]
    init_container_memory_limit: Option<String>,
    /// Let the cluster give the injected containers their user, as OpenShift does
    #[arg(long, env = "CONNECT_INJECT_ENABLE_OPENSHIFT", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    enable_openshift: String,
    /// Let Prometheus read Envoy's metrics in pods that don't say
    #[arg(long, env = "CONNECT_INJECT_DEFAULT_ENABLE_METRICS", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    default_enable_metrics: String,
    /// On which port
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_PROMETHEUS_SCRAPE_PORT",
        value_name = "PORT",
        default_value = "20200"
    )]
    default_prometheus_scrape_port: String,
    /// Under which path
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_PROMETHEUS_SCRAPE_PATH",
        value_name = "PATH",
        default_value = "/metrics"
    )]
    default_prometheus_scrape_path: String,
    /// How long the application is held for its proxy at most; 0 for not at all
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_LIFECYCLE_STARTUP_GRACE_PERIOD_SECONDS",
        value_name = "SECONDS",
        default_value = "30"
    )]
    default_sidecar_proxy_lifecycle_startup_grace_period_seconds: String,
    /// How long the sidecar drains at most; connect-lifecycle's default if absent
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_SIDECAR_PROXY_LIFECYCLE_SHUTDOWN_GRACE_PERIOD_SECONDS",
        value_name = "SECONDS"
    )]
    default_sidecar_proxy_lifecycle_shutdown_grace_period_seconds: Option<String>,
    /// How long an application without a preStop hook goes on when its pod is to
    /// end, on Kubernetes 1.30 and newer; 0 for not at all
    #[arg(
        long,
        env = "CONNECT_INJECT_DEFAULT_APPLICATION_SLEEP_SECONDS",
        value_name = "SECONDS",
        default_value = "5"
    )]
    default_application_sleep_seconds: String,
    /// How the sidecar is run: native, container, or auto for native where the
    /// cluster is known to have it
    #[arg(long, env = "CONNECT_INJECT_SIDECAR_MODE", value_name = "MODE", default_value = "auto")]
    sidecar_mode: String,
    /// The cluster's version, such as 1.31; by default the API server is asked, if
    /// it can be
    #[arg(long, env = "CONNECT_INJECT_KUBERNETES_VERSION", value_name = "VERSION")]
    kubernetes_version: Option<String>,
    /// How much the injected containers log
    #[arg(long, env = "CONNECT_INJECT_POD_LOG_LEVEL", value_name = "LEVEL")]
    pod_log_level: Option<String>,
    /// In which form: plain or json
    #[arg(long, env = "CONNECT_INJECT_POD_LOG_FORMAT", value_name = "FORMAT")]
    pod_log_format: Option<String>,
    /// The HTTP address of a pod's agent; $(HOST_IP), $(NODE_NAME), $(POD_IP),
    /// $(POD_NAME), $(POD_NAMESPACE) and $(POD_UID) are those of the pod. By
    /// default http://$(HOST_IP):8500, or https://$(HOST_IP):8501 with
    /// --consul-ca-cert
    #[arg(long, env = "CONNECT_INJECT_CONSUL_HTTP_ADDR_TEMPLATE", value_name = "TEMPLATE")]
    consul_http_addr_template: Option<String>,
    /// The gRPC address of a pod's agent, likewise. By default $(HOST_IP):8502,
    /// or https://$(HOST_IP):8502 with --consul-ca-cert
    #[arg(long, env = "CONNECT_INJECT_CONSUL_GRPC_ADDR_TEMPLATE", value_name = "TEMPLATE")]
    consul_grpc_addr_template: Option<String>,
    /// A PEM file with the CA certificates of the pods' agents, which are spoken
    /// to over TLS then; its text goes into the pods
    #[arg(long, env = "CONNECT_INJECT_CONSUL_CA_CERT", value_name = "FILE")]
    consul_ca_cert: Option<String>,
    /// The name in the certificates of the pods' agents, if not the host of their
    /// address; with the same variables
    #[arg(long, env = "CONNECT_INJECT_CONSUL_TLS_SERVER_NAME", value_name = "TEMPLATE")]
    consul_tls_server_name: Option<String>,
    /// The auth method that pods log in with; ACLs are on then
    #[arg(long, env = "CONNECT_INJECT_ACL_AUTH_METHOD", value_name = "NAME")]
    acl_auth_method: Option<String>,
}

// === impl PolicyArgs ===

impl PolicyArgs {
    /// What the flags mean; none if one is wrong.
    pub(crate) fn policy(self, mistakes: &mut Mistakes) -> Option<Policy> {
        let mut flags = Reading { mistakes, wrong: false };
        flags.file(&self.file_mistakes);
        let ca = self.consul_ca_cert.filter(|file| !file.is_empty());
        let tls = ca.is_some();
        let policy = Policy {
            default_inject: flags.read("--default-inject", switch(&self.default_inject)),
            allow_namespaces: self.allow_k8s_namespaces.into_iter().collect(),
            deny_namespaces: self.deny_k8s_namespaces.into_iter().collect(),
            init_image: flags.read("--init-image", required(self.init_image)),
            envoy_image: flags.read("--envoy-image", required(self.envoy_image)),
            pull_when: flags.optional(
                "--global-image-pull-policy",
                self.global_image_pull_policy,
                one_of(&["Always", "IfNotPresent", "Never"]),
            ),
            pull_secrets: self.image_pull_secrets,
            envoy_extra_args: flags.read(
                "--envoy-extra-args",
                arguments(&self.envoy_extra_args).and_then(check_arguments),
            ),
            concurrency: flags.read(
                "--default-envoy-proxy-concurrency",
                number(&self.default_envoy_proxy_concurrency).ok_or("expected a number of threads"),
            ),
            sidecar_resources: flags.resources(
                "--default-sidecar-proxy",
                [self.default_sidecar_proxy_cpu_request, self.default_sidecar_proxy_cpu_limit],
                [
                    self.default_sidecar_proxy_memory_request,
                    self.default_sidecar_proxy_memory_limit,
                ],
            ),
            init_resources: flags.resources(
                "--init-container",
                [self.init_container_cpu_request, self.init_container_cpu_limit],
                [self.init_container_memory_request, self.init_container_memory_limit],
            ),
            fixed_user: !flags.read("--enable-openshift", switch(&self.enable_openshift)),
            metrics: flags.read("--default-enable-metrics", switch(&self.default_enable_metrics)),
            metrics_port: flags.read(
                "--default-prometheus-scrape-port",
                port(&self.default_prometheus_scrape_port),
            ),
            metrics_path: flags.read(
                "--default-prometheus-scrape-path",
                metrics_path(&self.default_prometheus_scrape_path),
            ),
            startup_grace: flags.read(
                "--default-sidecar-proxy-lifecycle-startup-grace-period-seconds",
                seconds(&self.default_sidecar_proxy_lifecycle_startup_grace_period_seconds),
            ),
            shutdown_grace: flags.optional(
                "--default-sidecar-proxy-lifecycle-shutdown-grace-period-seconds",
                self.default_sidecar_proxy_lifecycle_shutdown_grace_period_seconds,
                seconds,
            ),
            application_sleep: flags.read(
                "--default-application-sleep-seconds",
                seconds(&self.default_application_sleep_seconds),
            ),
            sidecar_mode: flags.read("--sidecar-mode", self.sidecar_mode.parse()),
            kubernetes: flags.optional("--kubernetes-version", self.kubernetes_version, str::parse),
            mesh_gateways: None,
            pod_log_level: flags.optional(
                "--pod-log-level",
                self.pod_log_level,
                one_of(&["trace", "debug", "info", "warn", "error", "off"]),
            ),
            pod_log_format: flags.optional(
                "--pod-log-format",
                self.pod_log_format,
                one_of(&["plain", "json"]),
            ),
            consul_http_addr: flags
                .optional("--consul-http-addr-template", self.consul_http_addr_template, template)
                .unwrap_or_else(|| if tls { HTTPS_ADDR } else { HTTP_ADDR }.to_owned()),
            consul_grpc_addr: flags
                .optional("--consul-grpc-addr-template", self.consul_grpc_addr_template, template)
                .unwrap_or_else(|| if tls { GRPCS_ADDR } else { GRPC_ADDR }.to_owned()),
            consul_ca: flags.read(
                "--consul-ca-cert",
                ca.as_deref().map(Path::new).map(ca_certificates).transpose(),
            ),
            consul_server_name: flags.optional(
                "--consul-tls-server-name",
                self.consul_tls_server_name,
                template,
            ),
            acl_auth_method: flags.optional("--acl-auth-method", self.acl_auth_method, word),
        };
        flags.read("--sidecar-mode", policy.is_native(policy.sidecar_mode));
        (!flags.wrong).then_some(policy)
    }
}

/// Reads flags to the last, whatever is wrong with those before. A flag that is
/// wrong is noted, and a default takes its place: nobody will see it.
struct Reading<'a> {
    mistakes: &'a mut Mistakes,
    wrong: bool,
}

impl Reading<'_> {
    fn file(&mut self, mistakes: &[String]) {
        self.wrong |= !mistakes.is_empty();
        for mistake in mistakes {
            self.mistakes.push(mistake.clone());
        }
    }

    fn read<T: Default, E: Display>(&mut self, flag: &str, value: Result<T, E>) -> T {
        let value = self.mistakes.note(flag, value);
        self.wrong |= value.is_none();
        value.unwrap_or_default()
    }

    /// A flag that may be absent; empty counts as that.
    fn optional<T>(
        &mut self,
        flag: &str,
        text: Option<String>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = text.filter(|text| !text.is_empty());
        self.read(flag, text.as_deref().map(read).transpose())
    }

    /// The requests and limits of a family of flags.
    fn resources(
        &mut self,
        family: &str,
        cpu: [Option<String>; 2],
        memory: [Option<String>; 2],
    ) -> Resources {
        let mut bounds = |resource: &str, [request, limit]: [Option<String>; 2]| Bounds {
            request: self.optional(&format!("{family}-{resource}-request"), request, quantity),
            limit: self.optional(&format!("{family}-{resource}-limit"), limit, quantity),
        };
        let resources = Resources { cpu: bounds("cpu", cpu), memory: bounds("memory", memory) };
        self.read(family, resources.check());
        resources
    }
}

/// The addresses of an agent, without and with TLS.
const HTTP_ADDR: &str = "http://$(HOST_IP):8500";
const HTTPS_ADDR: &str = "https://$(HOST_IP):8501";
const GRPC_ADDR: &str = "$(HOST_IP):8502";
const GRPCS_ADDR: &str = "https://$(HOST_IP):8502";

fn template(text: &str) -> Result<String, String> {
    address_template(text.to_owned())
}

fn required(image_of: Option<String>) -> Result<String, String> {
    image_of.ok_or_else(|| "required".to_owned()).and_then(image)
}

fn quantity(text: &str) -> Result<Quantity, String> {
    text.parse().map_err(|error| format!("`{text}`: {error}"))
}

fn one_of(words: &'static [&'static str]) -> impl FnOnce(&str) -> Result<String, String> {
    move |text| {
        if words.contains(&text) {
            Ok(text.to_owned())
        } else {
            Err(format!("`{text}`: expected one of {}", words.join(", ")))
        }
    }
}

fn port(text: &str) -> Result<u16, String> {
    registration::port::resolve(text, &[])
        .map_err(|_| format!("`{text}` is no port: expected 1024 to 65535"))
        .and_then(unprivileged)
}
