//! Whether the agent supports a release of Envoy. Pure.

/// Describes the misfit if the agent does not support Envoy's minor release, by
/// `xDS.SupportedProxies.envoy` of the agent's answer about itself. `None` if it does,
/// or if either side is unknown.
///
/// `envoy` is a version such as `1.40.0`, or an image such as
/// `envoyproxy/envoy:v1.40.0`.
pub fn misfit(envoy: &str, supported: &[String]) -> Option<String> {
    let (major, minor) = release(envoy)?;
    let known: Vec<(u32, u32)> = supported.iter().filter_map(|text| release(text)).collect();
    if known.is_empty() || known.contains(&(major, minor)) {
        return None;
    }
    let known: Vec<String> =
        known.iter().map(|(major, minor)| format!("{major}.{minor}")).collect();
    Some(format!(
        "Envoy {major}.{minor} is not supported by the Consul agent, which supports {}",
        known.join(", ")
    ))
}

/// What today's Envoys can't do with an agent of this release; `None` if nothing is
/// missing, or if the release is unknown.
///
/// Tried with Envoy 1.36 and 1.40: they reject the HTTP listeners of 1.10.12 and
/// 1.11.11 ("Didn't find a registered implementation for 'envoy.filters.http.router'"),
/// and accept those of 1.12.9, 1.13.9 and 1.14.11. xDS v3, the only version since Envoy
/// 1.18, came with Consul 1.10.
pub fn limits_of(consul: &str) -> Option<Limits> {
    match release(consul)? {
        release if release < XDS_V3 => Some(Limits::NoXds),
        release if release < HTTP_LISTENERS => Some(Limits::TcpOnly),
        _ => None,
    }
}

/// Limits of an old agent with today's Envoys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limits {
    /// The agent serves xDS v2 only.
    NoXds,
    /// Envoy rejects its listeners for http, http2 and grpc.
    TcpOnly,
}

const XDS_V3: (u32, u32) = (1, 10);
const HTTP_LISTENERS: (u32, u32) = (1, 12);

// === impl Limits ===

impl Limits {
    pub fn words(self) -> &'static str {
        match self {
            Self::NoXds => "serves xDS v2 only, which Envoy 1.18 and newer do not speak",
            Self::TcpOnly => {
                "feeds today's Envoys for TCP services only: they reject its listeners for the protocols http, http2 and grpc"
            }
        }
    }

    pub fn hint(self) -> &'static str {
        match self {
            Self::NoXds => {
                "Envoy needs an agent of Consul 1.10 or newer at the gRPC address, and of 1.12 or newer for HTTP services"
            }
            Self::TcpOnly => "use Consul 1.12 or newer, or leave the services' protocol at tcp",
        }
    }
}

/// Major and minor number; `None` if the text has none, such as an image without a tag.
pub fn release(text: &str) -> Option<(u32, u32)> {
    let name = text.split('@').next().unwrap_or_default();
    // A colon before a slash belongs to the registry's port.
    let last = name.rsplit('/').next().unwrap_or_default();
    let version = match last.split_once(':') {
        Some((_, tag)) => tag,
        None if last == text => text,
        None => return None,
    };
    // Tags such as `distroless-v1.40.0` and `v1.40-latest`.
    version.split('-').find_map(|part| {
        let mut numbers = part.strip_prefix('v').unwrap_or(part).split('.');
        let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        Some((major, minor))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_read_from_versions_and_images() {
        for text in [
            "1.40.0",
            "v1.40.3",
            "1.40",
            "envoyproxy/envoy:v1.40.0",
            "registry.example:5000/envoy:v1.40.0-dev@sha256:abc",
            "envoyproxy/envoy:distroless-v1.40.0",
            "envoyproxy/envoy:v1.40-latest",
        ] {
            assert_eq!(release(text), Some((1, 40)), "{text}");
        }
        for text in [
            "",
            "latest",
            "envoyproxy/envoy",
            "envoyproxy/envoy:latest",
            "registry.example:5000/envoy",
            "envoy@sha256:1.40",
            "1",
            "v.1",
            "a/1.40",
        ] {
            assert_eq!(release(text), None, "{text}");
        }
    }

    #[test]
    fn an_old_agent_has_limits() {
        for (version, limits) in [
            ("1.8.7", Some(Limits::NoXds)),
            ("1.10.12", Some(Limits::TcpOnly)),
            ("1.11.11+ent", Some(Limits::TcpOnly)),
            ("1.12.9", None),
            ("1.22.1", None),
            ("2.0.0", None),
            ("", None),
        ] {
            assert_eq!(limits_of(version), limits, "{version}");
        }
    }

    #[test]
    fn an_envoy_that_the_agent_does_not_know_is_named_with_those_it_knows() {
        let supported = ["1.14.5", "1.13.6"].map(str::to_owned);
        assert_eq!(misfit("1.14.2", &supported), None);
        assert_eq!(
            misfit("envoyproxy/envoy:v1.40.0", &supported).as_deref(),
            Some("Envoy 1.40 is not supported by the Consul agent, which supports 1.14, 1.13")
        );
        assert_eq!(misfit("envoyproxy/envoy:latest", &supported), None);
        assert_eq!(misfit("1.40.0", &[]), None);
        assert_eq!(misfit("1.40.0", &["next".to_owned()]), None);
    }
}
