//! Follows the virtual address of a service whose address is given as a Kubernetes Service
//! (`service:NAME`). The cluster IP changes when the Service is recreated, and exists only
//! later when the Service is created after the pod.
//!
//! A new address replaces the registered one. If the name no longer resolves, or resolves
//! to several addresses, the registered one stays: clients that cached it can still
//! connect.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dns::Domain;
use registration::pod::VIRTUAL;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::pod::Pod;
use crate::serve::dns::Lookup;

/// The virtual address, resolved again at a heartbeat once its TTL has expired.
#[derive(Debug)]
pub(crate) struct VirtualAddress {
    /// `None` if the address is not that of a name.
    lookup: Option<Arc<Lookup>>,
    /// The pod's address: a headless Service resolves to it.
    pod: Option<IpAddr>,
    known: Option<Ipv4Addr>,
    /// At most one lookup, aborted when this is dropped.
    asked: JoinSet<Option<(Vec<Ipv4Addr>, Duration)>>,
    due: Instant,
    /// Whether the warning about several addresses has been logged.
    is_unclear: bool,
}

/// Upper limit of the TTL.
const LONGEST: Duration = Duration::from_secs(5 * 60);

// === impl VirtualAddress ===

impl VirtualAddress {
    /// The virtual address of the pod's service, resolved with that `resolv.conf`.
    pub(crate) fn of(pod: &Pod, resolv_conf: PathBuf) -> Self {
        let name = pod.record.virtual_name.as_deref();
        let name = name.and_then(|name| name.parse::<Domain>().ok());
        let proxy = &pod.record.pair.proxy;
        let known = proxy.tagged_addresses.get(VIRTUAL);
        Self {
            lookup: name.map(|name| Arc::new(Lookup::of(name, resolv_conf))),
            pod: proxy.address.parse().ok(),
            known: known.and_then(|known| known.address.parse().ok()),
            asked: JoinSet::new(),
            due: Instant::now(),
            is_unclear: false,
        }
    }

    /// Starts a lookup if one is due. Called at each heartbeat.
    pub(crate) fn look(&mut self) {
        if let Some(lookup) = &self.lookup
            && self.asked.is_empty()
            && self.due <= Instant::now()
        {
            let lookup = Arc::clone(lookup);
            self.asked.spawn(async move { lookup.look_up().await });
        }
    }

    /// Waits for another address. Cancel safe.
    pub(crate) async fn changed(&mut self) -> Ipv4Addr {
        loop {
            let Some(found) = self.asked.join_next().await else {
                return std::future::pending().await;
            };
            // A lookup that panicked counts as one without result.
            let Some((addresses, ttl)) = found.ok().flatten() else { continue };
            self.due = Instant::now() + ttl.min(LONGEST);
            if let Some(address) = self.single(&addresses)
                && self.known.replace(address) != Some(address)
            {
                return address;
            }
        }
    }

    /// The address, if there is exactly one and it is not the pod's, which a headless
    /// Service resolves to.
    fn single(&mut self, addresses: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let single = match addresses {
            [one] if self.pod != Some(IpAddr::V4(*one)) => Some(*one),
            _ => None,
        };
        let was_unclear = std::mem::replace(&mut self.is_unclear, single.is_none());
        if self.is_unclear && !was_unclear {
            tracing::warn!(
                "the name of the virtual address resolves to {} addresses, as that of a headless \
                 Service does: keeping the registered address",
                addresses.len()
            );
        }
        single
    }
}
