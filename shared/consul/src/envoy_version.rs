//! Whether the Envoy that is going to run is one that the agent knows. Pure.

/// What is wrong with an Envoy, by the releases that the agent supports
/// (`xDS.SupportedProxies.envoy` of what it says of itself): none if its minor
/// release is among them, or if either side can't be told.
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
        "Envoy {major}.{minor} is none that the Consul agent supports, which are {}",
        known.join(", ")
    ))
}

/// Major and minor number; none of a text that has none, such as an image
/// without a tag.
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
    fn an_envoy_that_the_agent_does_not_know_is_named_with_those_it_knows() {
        let supported = ["1.14.5", "1.13.6"].map(str::to_owned);
        assert_eq!(misfit("1.14.2", &supported), None);
        assert_eq!(
            misfit("envoyproxy/envoy:v1.40.0", &supported).as_deref(),
            Some("Envoy 1.40 is none that the Consul agent supports, which are 1.14, 1.13")
        );
        assert_eq!(misfit("envoyproxy/envoy:latest", &supported), None);
        assert_eq!(misfit("1.40.0", &[]), None);
        assert_eq!(misfit("1.40.0", &["next".to_owned()]), None);
    }
}
