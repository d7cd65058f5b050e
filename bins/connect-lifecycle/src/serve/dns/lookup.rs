//! Resolves a name with the pod's nameservers and search list, as the C library does, but
//! for IPv4 only and with one query at a time.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use dns::{Addresses, Domain, Query, address};

use super::exchange::Protocol;
use super::upstreams::{Source, Upstreams};

/// A name that is resolved repeatedly.
#[derive(Debug)]
pub(crate) struct Lookup {
    name: Domain,
    nameservers: Upstreams,
    /// The fully qualified name that resolved last; tried first.
    whole: Mutex<Option<Domain>>,
}

// === impl Lookup ===

impl Lookup {
    /// Resolves the name with the nameservers in that `resolv.conf`.
    pub(crate) fn of(name: Domain, resolv_conf: PathBuf) -> Self {
        let nameservers = Upstreams::new(
            "the pod's nameserver",
            "the service keeps its virtual address; hint: check the nameservers of the pod's \
             resolv.conf, and that Envoy's user reaches them",
            Source::File { path: resolv_conf, not: None },
        );
        Self { name, nameservers, whole: Mutex::default() }
    }

    /// Returns the addresses and their TTL; `None` if no nameserver answers or the name
    /// does not exist.
    pub(crate) async fn look_up(&self) -> Option<(Vec<Ipv4Addr>, Duration)> {
        let known = self.whole.lock().unwrap_or_else(PoisonError::into_inner).take();
        let searched = self.nameservers.search().into_iter();
        let searched = searched.filter_map(|parent| self.name.under(&parent).ok());
        for name in known.into_iter().chain(searched).chain([self.name.clone()]) {
            let question = address::question(&name);
            let query = Query::read(&question).ok()?;
            let answer = self.nameservers.ask(query, Protocol::Udp).await?;
            if let Addresses::Of { addresses, ttl } = address::read(&answer)? {
                *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(name);
                return Some((addresses, ttl));
            }
        }
        None
    }
}
