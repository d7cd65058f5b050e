//! Reason codes: why a review came out as it did, for log, metric and response.

/// The result of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod got a sidecar.
    Injected,
    /// The pod was allowed unchanged.
    Skipped,
    /// The pod was denied.
    Denied,
    /// The request was not a valid review and was answered with an HTTP error.
    Refused,
}

/// Defines the enum, its codes and the list of all reasons in one table.
macro_rules! reasons {
    ($($outcome:ident: $($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+)+) => {
        /// Why a review came out as it did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Reason {
            $($($(#[doc = $doc])+ $name,)+)+
        }

        impl Reason {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$($(Self::$name,)+)+];

            /// The code in log, metric, response and README.
            pub(crate) const fn code(self) -> &'static str {
                match self {
                    $($(Self::$name => $code,)+)+
                }
            }

            /// The outcome that the reason leads to.
            pub(crate) const fn outcome(self) -> Outcome {
                match self {
                    $($(Self::$name => Outcome::$outcome,)+)+
                }
            }
        }
    };
}

reasons! {
    Injected:
        /// The pod asked by annotation.
        Requested = "requested",
        /// The pod has no annotation, and injection is on by default.
        ByDefault = "by-default",
    Skipped:
        /// The review is not about the creation of a pod.
        NotAPodCreation = "not-a-pod-creation",
        /// The namespace belongs to Kubernetes.
        SystemNamespace = "system-namespace",
        /// The namespace is on the deny list.
        NamespaceDenied = "namespace-denied",
        /// The namespace is not on the allow list.
        NamespaceNotAllowed = "namespace-not-allowed",
        /// The pod is injected already.
        AlreadyInjected = "already-injected",
        /// The annotation opts out.
        OptedOut = "opted-out",
        /// The pod has no annotation, and injection is off by default.
        NotRequested = "not-requested",
        /// The pod has no annotation and uses the host's network.
        HostNetwork = "host-network",
        /// The pod has no annotation and runs on Windows.
        Windows = "windows",
        /// The pod has no annotation and mirrors a static pod.
        MirrorPod = "mirror-pod",
        /// The pod has no annotation, and its injection would fail.
        CannotBeInjected = "cannot-be-injected",
    Denied:
        /// The value of `connect-inject` is not a boolean.
        InvalidConnectInject = "invalid-connect-inject",
        /// The annotation asks for a sidecar, but the pod can't have one: host network,
        /// Windows, or a mirror pod.
        ImpossibleRequested = "impossible-requested",
        /// A field of the pod has the wrong type.
        InvalidPod = "invalid-pod",
        /// The injected pod would be too large for etcd.
        PodTooLarge = "pod-too-large",
        /// The pod has no containers.
        NoContainers = "no-containers",
        /// A container or volume has a reserved name.
        ReservedName = "reserved-name",
        /// A container exposes a reserved port.
        ReservedPort = "reserved-port",
        /// The pod runs as the user of the injected containers.
        ReservedUser = "reserved-user",
        /// Several services without a port for each, or too many services.
        SeveralServices = "several-services",
        /// The service name is invalid.
        InvalidService = "invalid-service",
        /// The service account's name is not the service's, which ACLs require.
        ServiceAccountMismatch = "service-account-mismatch",
        /// The service port is invalid or in use.
        InvalidServicePort = "invalid-service-port",
        /// The service meta is invalid.
        InvalidMeta = "invalid-meta",
        /// The proxy's configuration is invalid.
        InvalidProxyConfig = "invalid-proxy-config",
        /// The list of upstreams is invalid.
        InvalidUpstreams = "invalid-upstreams",
        /// Upstreams conflict with each other, or with a port in use.
        UpstreamConflict = "upstream-conflict",
        /// Envoy's arguments are malformed, or set what the injector sets.
        InvalidEnvoyArgs = "invalid-envoy-args",
        /// Invalid resources, or a request above its limit.
        InvalidResources = "invalid-resources",
        /// Invalid or conflicting volumes or mounts.
        InvalidVolumes = "invalid-volumes",
        /// Invalid settings of Envoy's metrics.
        InvalidMetrics = "invalid-metrics",
        /// Invalid settings of the transparent proxy.
        InvalidTransparentProxy = "invalid-transparent-proxy",
        /// Invalid settings of the sidecar's start, run or end.
        InvalidLifecycle = "invalid-lifecycle",
    Refused:
        /// The path does not exist.
        NotFound = "not-found",
        /// The method is not POST.
        MethodNotAllowed = "method-not-allowed",
        /// The headers declare a type other than uncompressed JSON.
        UnsupportedMediaType = "unsupported-media-type",
        /// The body is larger than any pod.
        TooLarge = "too-large",
        /// The body did not arrive in time, or the connection failed.
        Incomplete = "incomplete",
        /// The body is not an AdmissionReview.
        Malformed = "malformed",
}

// === impl Outcome ===

impl Outcome {
    /// The outcome in log and metric.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Skipped => "skipped",
            Self::Denied => "denied",
            Self::Refused => "refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_readme_lists_every_reason_with_its_outcome() {
        let documented: BTreeSet<(&str, &str)> = include_str!("../../README.md")
            .lines()
            .skip_while(|line| *line != "## Reasons")
            .take_while(|line| !line.starts_with("## ") || *line == "## Reasons")
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split(" | ");
                Some((cells.next()?.trim_end_matches('`'), cells.next()?))
            })
            .collect();
        let coded: BTreeSet<(&str, &str)> =
            Reason::ALL.iter().map(|reason| (reason.code(), reason.outcome().code())).collect();
        assert_eq!(documented, coded);
        assert_eq!(coded.len(), Reason::ALL.len(), "a code is used twice");
    }

    #[test]
    fn the_readme_says_what_to_do_for_every_denial() {
        let documented: BTreeSet<&str> = include_str!("../../README.md")
            .lines()
            .filter_map(|l| l.strip_prefix("#### "))
            .collect();
        let denials = Reason::ALL.iter().filter(|reason| reason.outcome() == Outcome::Denied);
        assert_eq!(documented, denials.map(|reason| reason.code()).collect());
    }

    #[test]
    fn the_troubleshooting_page_has_every_reason_and_exit_code() {
        let page = include_str!("../../docs/troubleshooting.md");
        let is_code = |text: &&str| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        let row = |line: &'static str| {
            let (cell, _) = line.strip_prefix("| ")?.split_once(" |")?;
            let cell = cell.split_once("](").map_or(cell, |(name, _)| &name[1..]);
            cell.strip_prefix('`')?.strip_suffix('`').filter(is_code)
        };
        let documented: BTreeSet<&str> = page.lines().filter_map(row).collect();
        assert_eq!(documented, Reason::ALL.iter().map(|reason| reason.code()).collect());
        for reason in Reason::ALL.iter().filter(|reason| reason.outcome() == Outcome::Denied) {
            let code = reason.code();
            assert!(page.contains(&format!("[`{code}`](../README.md#{code})")), "{code}");
        }
        for line in runtime::exit::HELP.lines().filter_map(|line| line.strip_prefix("  ")) {
            let (code, meaning) = line.split_once(' ').expect("a code and its meaning");
            assert!(page.contains(&format!("\n| {code} | {} |", meaning.trim())), "{code}");
        }
    }
}
