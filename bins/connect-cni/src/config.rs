//! The plugin's configuration, which the container runtime writes to stdin.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use redirect::{Cidr, Plan};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::failure::{Code, Failure};
use crate::{ANNOTATIONS, PLUGIN};

/// The supported values of `cniVersion`. Earlier ones have no `prevResult` to pass on.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The annotation that holds the [`Plan`] of a transparent pod as JSON.
const PLAN: &str = "consul.hashicorp.com/transparent-proxy-redirect";

/// The plugin's entry in a configuration list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry<'a> {
    r#type: &'static str,
    capabilities: BTreeMap<&'static str, bool>,
    node_addresses: &'a [IpAddr],
    generation: u64,
}

/// The entry, with the keys that the runtime adds to it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config<'t> {
    #[serde(borrow)]
    cni_version: Option<Cow<'t, str>>,
    /// The result of the plugins before this one.
    #[serde(borrow)]
    prev_result: Option<&'t RawValue>,
    /// Values of the capabilities that the entry asks for.
    #[serde(borrow, rename = "runtimeConfig")]
    capabilities: Option<BTreeMap<Cow<'t, str>, &'t RawValue>>,
    /// Addresses of the node's Consul agent, which pods reach directly.
    #[serde(default)]
    node_addresses: Vec<IpAddr>,
}

// === impl Entry ===

impl<'a> Entry<'a> {
    /// The entry for a node with these addresses. Of two processes that keep the plugin
    /// installed, the one with the higher generation wins.
    pub(crate) fn new(node_addresses: &'a [IpAddr], generation: u64) -> Self {
        let capabilities = BTreeMap::from([(ANNOTATIONS, true)]);
        Self { r#type: PLUGIN, capabilities, node_addresses, generation }
    }
}

// === impl Config ===

impl<'t> Config<'t> {
    /// Reads the configuration.
    ///
    /// # Errors
    /// It is invalid, or its `cniVersion` is unsupported.
    pub(crate) fn read(input: &'t [u8]) -> Result<Self, Failure> {
        let config: Self = serde_json::from_slice(input).map_err(|error| {
            Failure::new(
                Code::Decode,
                format_args!("cannot read the configuration on stdin: {error}"),
                "restart connect-cni install on this node: it writes the entry of connect-cni",
            )
        })?;
        if VERSIONS.contains(&config.version()) {
            return Ok(config);
        }
        let problem = format_args!(
            "cannot use the network's configuration: its cniVersion is `{}`, expected one of {}",
            config.version(),
            VERSIONS.join(", ")
        );
        let hint = "set cniVersion to a supported version, or remove the entry of connect-cni";
        Err(Failure::new(Code::Version, problem, hint))
    }

    /// The `cniVersion`; if it is absent, the specification's first.
    pub(crate) fn version(&self) -> &str {
        self.cni_version.as_deref().unwrap_or("0.1.0")
    }

    /// The result of the plugins before this one.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn previous(&self) -> Result<&'t str, Failure> {
        self.prev_result.map(RawValue::get).ok_or_else(|| {
            Failure::new(
                Code::Config,
                "cannot pass on a result: prevResult is missing, and connect-cni creates no \
                 network itself",
                "put the entry of connect-cni behind that of another plugin",
            )
        })
    }

    /// What to redirect in this pod; `None` if the pod has no such annotation, or the
    /// runtime passes no annotations to plugins.
    ///
    /// # Errors
    /// The annotation is invalid, or the configuration has no address of the node.
    pub(crate) fn plan(&self) -> Result<Option<Plan>, Failure> {
        let capabilities = self.capabilities.as_ref();
        let Some(annotations) = capabilities.and_then(|all| all.get(ANNOTATIONS)) else {
            return Ok(None);
        };
        // null for a pod without annotations.
        let annotations: Option<BTreeMap<Cow<'_, str>, Cow<'_, str>>> =
            serde_json::from_str(annotations.get()).map_err(|error| {
                Failure::new(
                    Code::Decode,
                    format_args!("cannot read runtimeConfig `{ANNOTATIONS}`: {error}"),
                    "update the container runtime: it passes the pod's annotations to plugins \
                     by this key, as a map of strings",
                )
            })?;
        let annotations = annotations.unwrap_or_default();
        let Some(text) = annotations.get(PLAN) else { return Ok(None) };
        let invalid = |problem: &dyn std::fmt::Display| {
            Failure::new(
                Code::Annotation,
                format_args!("cannot read annotation `{PLAN}`: {problem}"),
                "remove it from the pod, since connect-inject writes it, or install connect-cni \
                 and connect-inject of the same release",
            )
        };
        let mut plan: Plan = serde_json::from_str(text).map_err(|error| invalid(&error))?;
        plan.check().map_err(|mistake| invalid(&mistake))?;
        if self.node_addresses.is_empty() {
            let problem = "cannot exclude the node's Consul agent: nodeAddresses is empty";
            let hint = "list the addresses of the node's agent in the entry of connect-cni";
            return Err(Failure::new(Code::Config, problem, hint));
        }
        let node = self.node_addresses.iter().copied().map(Cidr::from);
        plan.exclude_outbound_cidrs.splice(0..0, node);
        Ok(Some(plan))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a container runtime passes for a transparent pod.
    const INPUT: &str = r#"{"cniVersion":"1.1.0","name":"pods","type":"connect-cni","nodeAddresses":["10.0.0.1"],"runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"consul.hashicorp.com/transparent-proxy-redirect":"{\"inbound\":20000,\"outbound\":15001,\"excludeUids\":[5995],\"services\":{\"9090\":20001}}"}},"prevResult":{"cniVersion":"1.1.0"}}"#;

    /// Reads all of it.
    fn read(input: &[u8]) -> Option<Plan> {
        let config = Config::read(input).ok()?;
        let _ = config.previous();
        config.plan().ok().flatten()
    }

    #[test]
    fn the_nodes_address_is_excluded_first() {
        let plan = read(INPUT.as_bytes()).unwrap();
        assert_eq!(plan.exclude_outbound_cidrs, ["10.0.0.1".parse().unwrap()]);
    }

    proptest! {
        /// A panic would leave the runtime without an error document.
        #[test]
        fn no_input_causes_a_panic(
            changes in prop::collection::vec((0..INPUT.len(), any::<u8>()), 0..4),
            cut in 0..=INPUT.len(),
            is_cut: bool,
        ) {
            let mut input = INPUT.as_bytes().to_vec();
            for (at, byte) in changes {
                input[at] = byte;
            }
            if is_cut {
                input.truncate(cut);
            }
            if let Some(plan) = read(&input) {
                prop_assert_eq!(plan.check(), Ok(()));
                let _ = redirect::Transaction::from(&plan).encode();
            }
        }
    }
}
