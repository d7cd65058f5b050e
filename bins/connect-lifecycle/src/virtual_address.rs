//! The address by which transparent clients know the service, where it is that of a
//! name. A Kubernetes Service that is created anew has another address, and one that is
//! created after the pod has its first.
//!
//! An address that is found takes the place of the one before. A name that is gone, or
//! has no single address, changes nothing: clients that hold the address still get
//! through.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dns::Domain;
use registration::pod::VIRTUAL;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::dns::Lookup;
use crate::pod::Pod;

/// The address of a name, looked up again at heartbeats, when its TTL has ended.
#[derive(Debug)]
pub(crate) struct VirtualAddress {
    /// None: it stays as it is.
    lookup: Option<Arc<Lookup>>,
    /// The pod's own, which is that of a headless Service.
    pod: Option<IpAddr>,
    known: Option<Ipv4Addr>,
    /// At most one look-up. It ends when this is dropped.
    asked: JoinSet<Option<(Vec<Ipv4Addr>, Duration)>>,
    due: Instant,
    /// Whether the log says that the name has no single address.
    is_unclear: bool,
}

/// The longest time for which an address is taken to hold.
const LONGEST: Duration = Duration::from_secs(5 * 60);

// === impl VirtualAddress ===

impl VirtualAddress {
    /// That of the pod's service, by the nameservers of that `resolv.conf`.
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

    /// A heartbeat: looks it up if that is due.
    pub(crate) fn look(&mut self) {
        if let Some(lookup) = &self.lookup
            && self.asked.is_empty()
            && self.due <= Instant::now()
        {
            let lookup = Arc::clone(lookup);
            self.asked.spawn(async move { lookup.look_up().await });
        }
    }

    /// Waits until there is another address. It may be dropped and called again.
    pub(crate) async fn changed(&mut self) -> Ipv4Addr {
        loop {
            let Some(found) = self.asked.join_next().await else {
                return std::future::pending().await;
            };
            // A task that panicked found nothing.
            let Some((addresses, ttl)) = found.ok().flatten() else { continue };
            self.due = Instant::now() + ttl.min(LONGEST);
            if let Some(address) = self.single(&addresses)
                && self.known.replace(address) != Some(address)
            {
                return address;
            }
        }
    }

    /// The address, if it is one, and not the pod's: of a headless Service, each pod is
    /// one.
    fn single(&mut self, addresses: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let single = match addresses {
            [one] if self.pod != Some(IpAddr::V4(*one)) => Some(*one),
            _ => None,
        };
        let was_unclear = std::mem::replace(&mut self.is_unclear, single.is_none());
        if self.is_unclear && !was_unclear {
            tracing::warn!(
                "the name of the virtual address has {} addresses, so that it is headless: the \
                 service keeps the address that it has",
                addresses.len()
            );
        }
        single
    }
}
