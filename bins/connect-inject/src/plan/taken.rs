//! The ports of the pod and what listens on them. Filled in order, so that each part of the
//! plan sees the ports of the parts before it.

use std::fmt;

use registration::pod::{ADMIN_PORT, PUBLIC_LISTENER_PORT};

use crate::pod::Port;

/// Ports in use, with their owners. A port may have several.
#[derive(Clone, Debug)]
pub(super) struct Taken<'p>(Vec<(u16, Owner<'p>)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner<'p> {
    Listener,
    Admin,
    Container(&'p str),
    Service,
    Metrics,
    MergedMetrics,
    Outbound,
    Dns,
    Exposed,
}

// === impl Taken ===

impl<'p> Taken<'p> {
    /// The ports of this many sidecars; each one's ports are one above those of the
    /// previous.
    pub(super) fn of_sidecars(sidecars: u16) -> Self {
        let ours = |index| {
            [(PUBLIC_LISTENER_PORT + index, Owner::Listener), (ADMIN_PORT + index, Owner::Admin)]
        };
        Self((0..sidecars).flat_map(ours).collect())
    }

    pub(super) fn add(&mut self, port: u16, owner: Owner<'p>) {
        self.0.push((port, owner));
    }

    pub(super) fn add_containers(&mut self, ports: &[Port<'p>]) {
        self.0.extend(ports.iter().map(|port| (port.number, Owner::Container(port.container))));
    }

    pub(super) fn owner(&self, port: u16) -> Option<Owner<'p>> {
        self.owner_but(port, |_| false)
    }

    /// Like [`Self::owner`], without owners that may share the port.
    pub(super) fn owner_but(
        &self,
        port: u16,
        may_share: impl Fn(Owner<'p>) -> bool,
    ) -> Option<Owner<'p>> {
        let mut owners = self.0.iter().filter(|(taken, _)| *taken == port).map(|(_, owner)| *owner);
        owners.find(|owner| !may_share(*owner))
    }

    /// The ports in the form that [`registration::upstream::conflict`] expects.
    pub(super) fn list(&self) -> Vec<(u16, String)> {
        // A service's port is usually a container's, too; the service is more informative.
        let mut list: Vec<_> = self.0.iter().collect();
        list.sort_by_key(|(_, owner)| matches!(owner, Owner::Container(_)));
        list.into_iter().map(|(port, owner)| (*port, owner.to_string())).collect()
    }
}

// === impl Owner ===

impl fmt::Display for Owner<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener => f.write_str("the sidecar's public listener"),
            Self::Admin => f.write_str("Envoy's admin port"),
            Self::Container(name) => write!(f, "a port of container `{name}`"),
            Self::Service => f.write_str("the port of the pod's own service"),
            Self::Metrics => f.write_str("the port of Envoy's metrics"),
            Self::MergedMetrics => f.write_str("the port of merged metrics"),
            Self::Outbound => f.write_str("Envoy's outbound listener"),
            Self::Dns => f.write_str("the sidecar's DNS port"),
            Self::Exposed => f.write_str("a listener for probes"),
        }
    }
}
