//! Why a review came out as it did: one code for log, metric and response.

/// What became of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The pod got its sidecar.
    Injected,
    /// The pod was let through unchanged.
    Skipped,
    /// The pod was denied.
    Denied,
    /// The request was no review: it was answered with an HTTP error.
    Refused,
}

/// Makes the enum, its codes and the list of all from one table, so that they
/// can't differ.
macro_rules! reasons {
    ($($outcome:ident: $($(#[doc = $doc:literal])+ $name:ident = $code:literal,)+)+) => {
        /// Why a review came out as it did.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Reason {
            $($($(#[doc = $doc])+ $name,)+)+
        }

        impl Reason {
            /// All of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$($(Self::$name,)+)+];

            /// The code: the same in log, metric, response and README.
            pub(crate) const fn code(self) -> &'static str {
                match self {
                    $($(Self::$name => $code,)+)+
                }
            }

            /// The outcome that it is a reason for.
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
        /// The pod said nothing and injection is on by default.
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
        /// The pod has its sidecar.
        AlreadyInjected = "already-injected",
        /// The pod opted out by annotation.
        OptedOut = "opted-out",
        /// The pod said nothing and injection is off by default.
        NotRequested = "not-requested",
        /// The pod said nothing and is in the node's network.
        HostNetwork = "host-network",
        /// The pod said nothing and is for Windows.
        Windows = "windows",
        /// The pod said nothing and mirrors a static pod.
        MirrorPod = "mirror-pod",
        /// The pod said nothing and can't take a sidecar.
        CannotBeInjected = "cannot-be-injected",
    Denied:
        /// The value of `connect-inject` is no boolean.
        InvalidConnectInject = "invalid-connect-inject",
        /// The pod asked, but can have no sidecar: it is in the node's network, for
        /// Windows, or a mirror.
        ImpossibleRequested = "impossible-requested",
        /// A part of the pod is not of the type that Kubernetes gives it.
        InvalidPod = "invalid-pod",
        /// The pod with its sidecar would be larger than any that can be stored.
        PodTooLarge = "pod-too-large",
        /// The pod has no containers.
        NoContainers = "no-containers",
        /// The pod has a container or volume of a name that is ours.
        ReservedName = "reserved-name",
        /// A container exposes a port that is ours.
        ReservedPort = "reserved-port",
        /// The pod runs as the user of the injected containers.
        ReservedUser = "reserved-user",
        /// Several services without as many ports, or too many of them.
        SeveralServices = "several-services",
        /// The service's name can't be one.
        InvalidService = "invalid-service",
        /// The service account is not named as the service, which ACLs take.
        ServiceAccountMismatch = "service-account-mismatch",
        /// The service's port is none, or is taken.
        InvalidServicePort = "invalid-service-port",
        /// The meta of the service is none that Consul takes.
        InvalidMeta = "invalid-meta",
        /// The proxy's settings are none.
        InvalidProxyConfig = "invalid-proxy-config",
        /// The list of upstreams can't be read.
        InvalidUpstreams = "invalid-upstreams",
        /// Upstreams that can't be served together, or on a port that is taken.
        UpstreamConflict = "upstream-conflict",
        /// Envoy's arguments can't be split, or are the injector's own.
        InvalidEnvoyArgs = "invalid-envoy-args",
        /// Resources that are none, or a request above its limit.
        InvalidResources = "invalid-resources",
        /// Volumes or mounts that are none, or clash.
        InvalidVolumes = "invalid-volumes",
        /// Settings of Envoy's metrics that can't be.
        InvalidMetrics = "invalid-metrics",
        /// Settings of the transparent proxy that can't be.
        InvalidTransparentProxy = "invalid-transparent-proxy",
        /// Settings of the sidecar's start, run and end that can't be.
        InvalidLifecycle = "invalid-lifecycle",
    Refused:
        /// There is nothing at this path.
        NotFound = "not-found",
        /// Reviews are posted.
        MethodNotAllowed = "method-not-allowed",
        /// The body is not JSON by its headers.
        UnsupportedMediaType = "unsupported-media-type",
        /// The body is larger than any pod.
        TooLarge = "too-large",
        /// The body did not arrive in time, or the connection broke.
        Incomplete = "incomplete",
        /// The body is no AdmissionReview.
        Malformed = "malformed",
}

// === impl Outcome ===

impl Outcome {
    /// The outcome as log and metric have it.
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
