//! What the operator decided: who is injected, and with what.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::names::DOWNWARD;
use crate::quantity::Resources;
use crate::words;

/// What the operator decided.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Whether a pod that says nothing is injected.
    pub(crate) default_inject: bool,
    /// The namespaces whose pods may be injected; `*` is any.
    pub(crate) allow_namespaces: BTreeSet<String>,
    /// The namespaces whose pods are not, whatever the other list says.
    pub(crate) deny_namespaces: BTreeSet<String>,
    /// The image with `connect-init` and `connect-lifecycle`.
    pub(crate) init_image: String,
    /// The image with Envoy.
    pub(crate) envoy_image: String,
    /// When the kubelet pulls them; none: as Kubernetes does by default.
    pub(crate) pull_when: Option<String>,
    /// The secrets of the pods' namespaces with which it does.
    pub(crate) pull_secrets: Vec<String>,
    /// Arguments that Envoy gets besides ours.
    pub(crate) envoy_extra_args: Vec<String>,
    /// Envoy's worker threads; 0: as many as the node has cores.
    pub(crate) concurrency: u32,
    /// What the sidecar may use.
    pub(crate) sidecar_resources: Resources,
    /// What the init container may use.
    pub(crate) init_resources: Resources,
    /// Whether the injected containers run as a user of their own, or as the one
    /// that the cluster gives them.
    pub(crate) fixed_user: bool,
    /// Whether Prometheus can read Envoy's metrics.
    pub(crate) metrics: bool,
    /// On which port.
    pub(crate) metrics_port: u16,
    /// Under which path.
    pub(crate) metrics_path: String,
    /// How many seconds the application is held for its proxy at most.
    pub(crate) startup_grace: u32,
    /// How many seconds the sidecar drains at most; none: the helper's default.
    pub(crate) shutdown_grace: Option<u32>,
    /// How many seconds the application goes on when the pod is to end.
    pub(crate) application_sleep: u32,
    /// How the sidecar is run.
    pub(crate) sidecar_mode: SidecarMode,
    /// The cluster's version, if it is known.
    pub(crate) kubernetes: Option<Version>,
    /// How much the injected containers log; none: as they do by default.
    pub(crate) pod_log_level: Option<String>,
    /// In which form.
    pub(crate) pod_log_format: Option<String>,
    /// How traffic to other datacenters goes by Consul's central configuration;
    /// none: nobody was asked.
    pub(crate) mesh_gateways: Option<MeshGateways>,
    /// The agent's HTTP address, with `$(VARIABLE)`s of the init container.
    pub(crate) consul_http_addr: String,
    /// The agent's gRPC address, likewise.
    pub(crate) consul_grpc_addr: String,
    /// The CA certificates that the agent's is checked against, in PEM.
    pub(crate) consul_ca: Option<String>,
    /// The name in the agent's certificate, with `$(VARIABLE)`s as well; none:
    /// the host of its address.
    pub(crate) consul_server_name: Option<String>,
    /// The auth method that a pod logs in with; none: there are no ACLs.
    pub(crate) acl_auth_method: Option<String>,
}

/// How traffic to other datacenters goes by Consul's central configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MeshGateways {
    /// Through gateways.
    Used,
    /// Not through gateways, and so not at all.
    Unused,
}

/// How the sidecar is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SidecarMode {
    /// Native where the cluster is known to have it.
    #[default]
    Auto,
    /// An init container that goes on running.
    Native,
    /// A container as any other.
    Container,
}

/// A version of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

/// The mistakes in a command line, so that all are reported in one run.
#[derive(Debug, Default)]
pub(crate) struct Mistakes(Vec<String>);

// === impl Policy ===

impl Policy {
    /// Whether pods of the namespace may be injected by the allow list.
    pub(crate) fn allows(&self, namespace: &str) -> bool {
        self.allow_namespaces.contains("*") || self.allow_namespaces.contains(namespace)
    }

    /// Whether a sidecar of that mode is an init container that goes on running.
    ///
    /// # Errors
    /// The cluster is known to be too old for it.
    pub(crate) fn is_native(&self, mode: SidecarMode) -> Result<bool, String> {
        match (mode, self.kubernetes) {
            (SidecarMode::Container, _) | (SidecarMode::Auto, None) => Ok(false),
            (SidecarMode::Native, Some(version)) if version < Version::NATIVE_SIDECAR => {
                Err(format!(
                    "Kubernetes {version} has no native sidecars: they came with {}",
                    Version::NATIVE_SIDECAR
                ))
            }
            (SidecarMode::Native, _) => Ok(true),
            (SidecarMode::Auto, Some(version)) => Ok(version >= Version::NATIVE_SIDECAR),
        }
    }
}

// === impl SidecarMode ===

impl FromStr for SidecarMode {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "native" => Ok(Self::Native),
            "container" => Ok(Self::Container),
            _ => Err("expected `auto`, `native` or `container`"),
        }
    }
}

// === impl Version ===

impl Version {
    /// The first with native sidecars on by default.
    ///
    /// Source: "Sidecar Containers" of the Kubernetes documentation.
    pub(crate) const NATIVE_SIDECAR: Self = Self { major: 1, minor: 29 };
    /// The first with the sleep action on by default.
    ///
    /// Source: "Container Lifecycle Hooks" of the Kubernetes documentation.
    pub(crate) const SLEEP: Self = Self { major: 1, minor: 30 };
}

impl FromStr for Version {
    type Err = String;

    /// Reads what `kubectl version` prints: `v1.31.2`, with anything behind it.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        // Clouds have it with a plus behind.
        let part = |part: Option<&str>| part?.trim_end_matches('+').parse().ok();
        match (part(parts.next()), part(parts.next())) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err(format!("`{text}` is no version of Kubernetes: expected one such as `1.31`")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

// === impl Mistakes ===

impl Mistakes {
    /// Takes the value, or notes what is wrong with the flag.
    pub(crate) fn note<T, E: std::fmt::Display>(
        &mut self,
        flag: &str,
        value: Result<T, E>,
    ) -> Option<T> {
        value.map_err(|error| self.0.push(format!("{flag}: {error}"))).ok()
    }

    /// Notes a mistake.
    pub(crate) fn push(&mut self, mistake: String) {
        self.0.push(mistake);
    }

    /// All of them as one failure, unless there are none.
    pub(crate) fn failure(self) -> Option<runtime::Failure> {
        (!self.0.is_empty()).then(|| {
            runtime::Failure::usage(self.0.join("; "))
                .hint("see `connect-inject help` and the README for what each flag takes")
        })
    }
}

/// Reads the name of an image. The registry and the kubelet know best what one
/// is; an empty one, or two, are caught here, before a pod waits for them.
pub(crate) fn image(text: String) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(format!("`{text}` is no image: expected one such as `registry/name:tag`"));
    }
    Ok(text)
}

/// Reads an address of the agent, in which `$(NAME)` stands for a variable of
/// the init container. The kubelet leaves a name that it doesn't know as it is,
/// and every pod would fail to start.
///
/// Source: "Define Dependent Environment Variables" of the Kubernetes
/// documentation.
pub(crate) fn address_template(text: String) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err(format!("`{text}` is no address: expected one such as `$(HOST_IP):8500`"));
    }
    let mut rest = text.as_str();
    while let Some((_, from)) = rest.split_once('$') {
        rest = if let Some(after) = from.strip_prefix('$') {
            after
        } else if let Some((name, after)) = from.strip_prefix('(').and_then(|r| r.split_once(')')) {
            if !DOWNWARD.iter().any(|(known, _)| *known == name) {
                let known: Vec<_> = DOWNWARD.iter().map(|(known, _)| *known).collect();
                return Err(format!(
                    "`$({name})` in `{text}` is no variable of the init container: there are {}",
                    known.join(", ")
                ));
            }
            after
        } else {
            return Err(format!("a single `$` in `{text}`: write `$(NAME)`, or `$$` for one"));
        };
    }
    Ok(text)
}

/// Reads a file of CA certificates: its text, which has one at least.
pub(crate) fn ca_certificates(file: &std::path::Path) -> Result<String, String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(text),
        Ok(_) => Err(format!("{}: no certificate in PEM in it", file.display())),
        Err(error) => Err(format!("{}: no PEM: {error}", file.display())),
    }
}

/// Reads the name of something of Consul's: one word.
pub(crate) fn word(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{text}` is no name: expected one word"));
    }
    Ok(text.to_owned())
}

/// Reads arguments as a shell would split them.
pub(crate) fn arguments(text: &str) -> Result<Vec<String>, String> {
    words::split(text).map_err(|error| format!("{error} in `{text}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_refer_to_variables_that_exist() {
        for text in [
            "http://$(HOST_IP):8500",
            "$(NODE_NAME).node.consul:8502",
            "unix:///run/consul.sock",
            "a$$(b)",
        ] {
            assert_eq!(address_template(text.to_owned()).as_deref(), Ok(text));
        }
        for (text, problem) in [
            ("", "no address"),
            ("http://host :1", "no address"),
            ("http://$(HOSTIP):8500", "`$(HOSTIP)` in"),
            ("$HOST_IP:8500", "a single `$`"),
            ("$(HOST_IP:8500", "a single `$`"),
            ("x$", "a single `$`"),
        ] {
            let error = address_template(text.to_owned()).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn versions_are_those_of_kubectl() {
        for (text, version) in [
            ("1.29", "1.29"),
            ("v1.31.2", "1.31"),
            ("v1.30.4-gke.1348000", "1.30"),
            ("1.27+", "1.27"),
        ] {
            assert_eq!(text.parse::<Version>().unwrap().to_string(), version);
        }
        for text in ["", "1", "v1", "one.two", "1.-2"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
        assert!("1.9".parse::<Version>() < "1.29".parse());
    }

    #[test]
    fn an_image_is_one_word() {
        assert!(image("envoyproxy/envoy:v1.40".to_owned()).is_ok());
        assert!(image(String::new()).is_err());
        assert!(image("a b".to_owned()).is_err());
    }
}
