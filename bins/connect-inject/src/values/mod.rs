//! Parsers of values, shared by flags, the file of `--config` and annotations. Each error
//! says what is accepted.

pub(crate) mod quantity;
mod words;

use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::str::FromStr;

use crate::names::DOWNWARD;
use quantity::Quantity;

/// A value that may be unset, which is written as an empty text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Optional<T>(pub(crate) Option<T>);

/// Version of Kubernetes: major and minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
}

/// Forms that [`boolean`] accepts, for errors.
pub(crate) const BOOLEAN_FORMS: &str = "`true` or `false`";

/// Maximum size of a CA bundle: Linux limits an environment variable with its name to 128
/// KiB (`MAX_ARG_STRLEN`).
const LONGEST_CA: usize = 127 << 10;

/// Makes a parser accept an empty text as unset.
pub(crate) fn optional<T>(
    read: impl Fn(&str) -> Result<T, String> + Clone,
) -> impl Fn(&str) -> Result<Optional<T>, String> + Clone {
    move |text| {
        if text.is_empty() { Ok(Optional(None)) } else { read(text).map(Some).map(Optional) }
    }
}

/// Reads a boolean. Accepts the forms of Go's `strconv.ParseBool`, because users' manifests
/// were written for consul-k8s.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Like [`boolean`], with an error that names the forms.
pub(crate) fn switch(text: &str) -> Result<bool, String> {
    boolean(text).ok_or_else(|| format!("expected {BOOLEAN_FORMS}"))
}

/// Reads a number of seconds, at most a day.
pub(crate) fn seconds(text: &str) -> Result<u32, String> {
    const DAY: u32 = 86_400;
    number(text)
        .filter(|seconds| *seconds <= DAY)
        .ok_or_else(|| format!("expected a number of seconds from 0 to {DAY}"))
}

/// Reads a number of Envoy's worker threads.
pub(crate) fn threads(text: &str) -> Result<u32, String> {
    number(text).ok_or_else(|| "expected a number of threads; Envoy treats 0 as 1".to_owned())
}

/// Reads a number written in digits only.
fn number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Reads an unprivileged port: 1024 to 65535.
pub(crate) fn port(text: &str) -> Result<u16, String> {
    registration::port::resolve(text, &[])
        .map_err(|_| "expected a port from 1024 to 65535".to_owned())
        .and_then(unprivileged)
}

/// Rejects privileged ports: the sidecar has neither root nor capabilities.
pub(crate) fn unprivileged(port: u16) -> Result<u16, String> {
    if port < 1024 {
        return Err(format!("port {port} is privileged: expected 1024 to 65535"));
    }
    Ok(port)
}

/// Reads an HTTP path.
pub(crate) fn path(text: &str) -> Result<String, String> {
    if !text.starts_with('/') || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("expected a path such as `/metrics`".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a quantity, such as `64Mi`.
pub(crate) fn quantity(text: &str) -> Result<Quantity, String> {
    text.parse()
}

/// Reads an image name. Only an empty name and one with spaces are rejected here, before a
/// pod waits for an image that can't be pulled; the registry and the kubelet check the
/// rest.
pub(crate) fn image(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("expected an image such as `registry/name:tag`".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads one of the given words.
pub(crate) fn one_of(
    words: &'static [&'static str],
) -> impl Fn(&str) -> Result<String, String> + Clone {
    move |text| {
        if words.contains(&text) {
            Ok(text.to_owned())
        } else {
            Err(format!("expected one of {}", words.join(", ")))
        }
    }
}

/// Reads a Consul name, which has no spaces.
pub(crate) fn word(text: &str) -> Result<String, String> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("expected one word".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads an agent's address, in which `$(NAME)` is an environment variable of the init
/// container. An unknown name is rejected: the kubelet would leave it unexpanded, and no
/// pod would start.
///
/// Source: "Define Dependent Environment Variables" of the Kubernetes documentation.
pub(crate) fn template(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("expected an address such as `$(HOST_IP):8500`".to_owned());
    }
    let mut rest = text;
    while let Some((_, from)) = rest.split_once('$') {
        rest = if let Some(after) = from.strip_prefix('$') {
            after
        } else if let Some((name, after)) = from.strip_prefix('(').and_then(|r| r.split_once(')')) {
            if !DOWNWARD.iter().any(|(known, _)| *known == name) {
                let known: Vec<_> = DOWNWARD.iter().map(|(known, _)| *known).collect();
                return Err(format!(
                    "unknown variable `$({name})`: the init container has {}",
                    known.join(", ")
                ));
            }
            after
        } else {
            return Err("a single `$`: write `$(NAME)`, or `$$` for a dollar sign".to_owned());
        };
    }
    Ok(text.to_owned())
}

/// Reads a PEM file with at least one CA certificate, and returns its text.
pub(crate) fn ca_certificates(file: &str) -> Result<String, String> {
    let shown = Path::new(file).display();
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("cannot read {shown}: {error}"))?;
    ca_certificates_in(&text).map_err(|problem| format!("{shown}: {problem}"))?;
    Ok(text)
}

/// Checks that a text has a CA certificate in PEM and fits into an environment variable.
pub(crate) fn ca_certificates_in(text: &str) -> Result<(), String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    // The text is written with `$$`, which the kubelet reads as `$`.
    if text.replace('$', "$$").len() > LONGEST_CA {
        return Err(format!(
            "{} bytes: an environment variable of a pod holds at most {LONGEST_CA}; keep \
             only the CA certificates of the Consul agents",
            text.len()
        ));
    }
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(()),
        Ok(_) => Err("it has no PEM certificate".to_owned()),
        Err(error) => Err(format!("invalid PEM: {error}")),
    }
}

/// Splits arguments for Envoy as a shell would. Rejects the options for the configuration:
/// the injector sets them, and Envoy accepts them only once.
pub(crate) fn envoy_arguments(text: &str) -> Result<Vec<String>, String> {
    const OURS: [&str; 4] = ["--config-path", "-c", "--config-yaml", "--mode"];
    let arguments = words::split(text).map_err(|error| error.to_string())?;
    for argument in &arguments {
        if argument.contains(|c: char| c.is_whitespace()) && argument.starts_with('-') {
            return Err(format!(
                "`{argument}` is one word: quote the value only, not option and value together"
            ));
        }
        let option = argument.split_once('=').map_or(argument.as_str(), |(option, _)| option);
        if OURS.contains(&option) || argument.starts_with("-c") {
            return Err(format!(
                "`{option}` is set by the injector: Envoy starts from the bootstrap of connect-init"
            ));
        }
    }
    Ok(arguments)
}

/// The known word that is closest to a misspelt one, if any is close enough.
pub(crate) fn nearest<'k>(
    misspelt: &str,
    known: impl IntoIterator<Item = &'k str>,
) -> Option<&'k str> {
    // Largest edit distance of a typing error.
    const NEAR: usize = 3;
    known
        .into_iter()
        // The length difference is a lower bound of the distance, and cheaper.
        .filter(|known| known.len().abs_diff(misspelt.len()) <= NEAR)
        .map(|known| (strsim::levenshtein(misspelt, known), known))
        .filter(|(distance, _)| *distance <= NEAR)
        .min()
        .map(|(_, known)| known)
}

// === impl Optional ===

impl<T> Deref for Optional<T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.0
    }
}

// === impl Version ===

impl Version {
    /// The first version with native sidecars enabled by default.
    ///
    /// Source: "Sidecar Containers" of the Kubernetes documentation.
    pub(crate) const NATIVE_SIDECAR: Self = Self { major: 1, minor: 29 };
    /// The first version with the preStop action `sleep` enabled by default.
    ///
    /// Source: "Container Lifecycle Hooks" of the Kubernetes documentation.
    pub(crate) const SLEEP: Self = Self { major: 1, minor: 30 };

    /// The oldest kubelet that this version of the API server supports.
    ///
    /// Source: "Version Skew Policy" of the Kubernetes documentation.
    pub(crate) fn oldest_kubelet(self) -> Self {
        Self { minor: self.minor.saturating_sub(3), ..self }
    }
}

impl FromStr for Version {
    type Err = String;

    /// Reads the output of `kubectl version`, such as `v1.31.2`; ignores what follows the
    /// minor version.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        // Cloud providers write `1.31+`.
        let part = |part: Option<&str>| part?.trim_end_matches('+').parse().ok();
        match (part(parts.next()), part(parts.next())) {
            (Some(major), Some(minor)) => Ok(Self { major, minor }),
            _ => Err("expected a version of Kubernetes such as `1.31`".to_owned()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans_have_the_forms_of_go() {
        for text in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(text), Some(true), "{text}");
        }
        for text in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(text), Some(false), "{text}");
        }
        for text in ["", "yes", "on", " true", "true ", "tRUE", "2"] {
            assert_eq!(boolean(text), None, "{text}");
        }
    }

    #[test]
    fn seconds_are_whole() {
        assert_eq!((seconds("0"), seconds("007"), seconds("86400")), (Ok(0), Ok(7), Ok(86_400)));
        for text in ["", "-1", "+1", "1s", "1.5", "86401", "99999999999999999999", " 1", "٣"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_refer_to_variables_that_exist() {
        for text in [
            "http://$(HOST_IP):8500",
            "$(NODE_NAME).node.consul:8502",
            "unix:///run/consul.sock",
            "a$$(b)",
        ] {
            assert_eq!(template(text).as_deref(), Ok(text));
        }
        for (text, problem) in [
            ("", "expected an address"),
            ("http://host :1", "expected an address"),
            ("http://$(HOSTIP):8500", "`$(HOSTIP)`"),
            ("$HOST_IP:8500", "a single `$`"),
            ("$(HOST_IP:8500", "a single `$`"),
            ("x$", "a single `$`"),
        ] {
            let error = template(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn versions_are_read_as_kubectl_prints_them() {
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
        assert!(image("envoyproxy/envoy:v1.40").is_ok());
        assert!(image("").is_err());
        assert!(image("a b").is_err());
    }

    /// A larger one made `execve` fail with "Argument list too long" in every pod.
    #[test]
    fn a_ca_bundle_too_large_for_a_variable_is_rejected() {
        let ca = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap().cert.pem();
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let fits = ca.repeat(LONGEST_CA / ca.len());
        std::io::Write::write_all(&mut file.as_file(), fits.as_bytes()).unwrap();
        assert_eq!(ca_certificates(path), Ok(fits));
        std::io::Write::write_all(&mut file.as_file(), ca.as_bytes()).unwrap();
        let error = ca_certificates(path).unwrap_err();
        assert!(error.contains("holds at most 130048"), "{error}");
    }

    /// `'"--config-path /x"'` was accepted as one word.
    #[test]
    fn options_for_envoys_configuration_are_rejected() {
        for text in [
            "--config-path x",
            "-c x",
            "-cx",
            "--config-path=x",
            "--config-yaml '{}'",
            "--mode validate",
        ] {
            let error = envoy_arguments(text).unwrap_err();
            assert!(error.contains("set by the injector"), "{text}: {error}");
        }
        let error = envoy_arguments(r#""--config-path /x""#).unwrap_err();
        assert!(error.contains("is one word"), "{error}");
        assert!(envoy_arguments("'").unwrap_err().contains("column 1"));
        assert_eq!(
            envoy_arguments("-l debug --component-log-level 'upstream:debug,http:trace'").unwrap(),
            ["-l", "debug", "--component-log-level", "upstream:debug,http:trace"]
        );
    }
}
