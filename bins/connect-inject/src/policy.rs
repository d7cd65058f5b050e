//! What the operator decided: who is injected, and with what.

use std::collections::BTreeSet;

use crate::names::DOWNWARD;
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
    /// Arguments that Envoy gets besides ours.
    pub(crate) envoy_extra_args: Vec<String>,
    /// The agent's HTTP address, with `$(VARIABLE)`s of the init container.
    pub(crate) consul_http_addr: String,
    /// The agent's gRPC address, likewise.
    pub(crate) consul_grpc_addr: String,
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
    fn an_image_is_one_word() {
        assert!(image("envoyproxy/envoy:v1.40".to_owned()).is_ok());
        assert!(image(String::new()).is_err());
        assert!(image("a b".to_owned()).is_err());
    }
}
