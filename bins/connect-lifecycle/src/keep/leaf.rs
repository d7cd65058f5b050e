//! Envoy's leaf certificate: whether the agent renews it in time.
//!
//! While agent or servers are away, Envoy goes on with the certificate that it has, and
//! once that has ended, every TLS handshake with it fails. The heartbeat warns ahead of
//! that. It does not turn critical even then: an agent deregisters a pod that is critical
//! for a minute, which would then register again and again until the CA is back.

use consul::acl::seconds;
use envoy::Envoy;

/// What is known of the leaf certificate. Times are in seconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Leaf {
    /// None until Envoy has one.
    known: Option<Validity>,
    is_late: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Validity {
    /// From when on it should have been renewed.
    late: i64,
    end: i64,
    /// The end in RFC 3339.
    until: String,
}

/// An agent renews a leaf at 60% to 90% of its lifetime. It is late when less than this
/// part of the lifetime is left: six hours of Consul's default of three days.
///
/// Source: `calculateSoftExpiry` of Consul's `agent/cache-types/connect_ca_leaf.go`.
const LATE: i64 = 12;

// === impl Leaf ===

impl Leaf {
    /// Asks Envoy, unless the certificate that it had is not due yet.
    pub(crate) async fn look(&mut self, envoy: Envoy, now: i64) {
        if self.known.as_ref().is_some_and(|known| now < known.late) {
            return;
        }
        match envoy.leaves().await {
            Ok(leaves) => self.take(&leaves, now),
            Err(error) => tracing::debug!("{error}"),
        }
    }

    /// Takes the one that ends last: Envoy has earlier ones for as long as it drains the
    /// listeners that had them.
    fn take(&mut self, leaves: &[envoy::Leaf], now: i64) {
        let last = leaves.iter().filter_map(Validity::of).max_by_key(|validity| validity.end);
        if last.is_some() && last != self.known {
            self.known = last;
            if let Some(Validity { until, .. }) = &self.known {
                tracing::info!(until, "Envoy has a leaf certificate");
            }
        }
        let warning = self.warning(now);
        match &warning {
            Some(warning) if !self.is_late => tracing::warn!("{warning}; hint: {HINT}"),
            None if self.is_late => tracing::info!("Envoy's leaf certificate is renewed"),
            _ => {}
        }
        self.is_late = warning.is_some();
    }

    /// What is wrong with it; none if nothing is. The words change only when it ends: each
    /// change is written to the catalog.
    pub(crate) fn warning(&self, now: i64) -> Option<String> {
        let Validity { late, end, until } = self.known.as_ref()?;
        if now < *late {
            None
        } else if now <= *end {
            Some(format!("Envoy's leaf certificate ends {until}: the agent has not renewed it"))
        } else {
            Some(format!("Envoy's leaf certificate ended {until}: every TLS handshake fails"))
        }
    }
}

const HINT: &str = "see the agent's log at `leaf`, and whether Connect's CA works";

// === impl Validity ===

impl Validity {
    /// Of a certificate that Connect's CA signed for a service.
    fn of(leaf: &envoy::Leaf) -> Option<Self> {
        let is_service =
            |uri: &str| uri.starts_with("spiffe://") && uri.split('/').any(|part| part == "svc");
        leaf.subject_alt_names.iter().find(|name| is_service(&name.uri))?;
        let (begin, end) = (seconds(&leaf.valid_from)?, seconds(&leaf.expiration_time)?);
        let late = end.saturating_sub(end.saturating_sub(begin) / LATE);
        Some(Self { late, end, until: leaf.expiration_time.clone() })
    }
}

#[cfg(test)]
mod tests {
    use envoy::AltName;

    use super::*;

    const SERVICE: &str = "spiffe://d.consul/ns/default/dc/dc1/svc/web";

    /// Of 1970-01-01, within that hours.
    fn leaf(uri: &str, from: u8, to: u8) -> envoy::Leaf {
        let time = |hour| format!("1970-01-01T{hour:02}:00:00Z");
        envoy::Leaf {
            subject_alt_names: vec![AltName { uri: uri.to_owned() }],
            valid_from: time(from),
            expiration_time: time(to),
            ..envoy::Leaf::default()
        }
    }

    fn warning(leaves: &[envoy::Leaf], now: i64) -> Option<String> {
        let mut leaf = Leaf::default();
        leaf.take(leaves, now);
        leaf.warning(now)
    }

    #[test]
    fn a_leaf_is_late_in_the_last_twelfth_of_its_life_and_then_ended() {
        let leaves = [leaf(SERVICE, 0, 12)];
        let hour = 3600;
        assert_eq!(warning(&leaves, 11 * hour - 1), None);
        for (now, words) in [
            (11 * hour, "ends 1970-01-01T12:00:00Z: the agent has not renewed it"),
            (12 * hour, "ends 1970-01-01T12:00:00Z"),
            (12 * hour + 1, "ended 1970-01-01T12:00:00Z: every TLS handshake fails"),
        ] {
            let warning = warning(&leaves, now).unwrap_or_default();
            assert!(warning.contains(words), "{now}: {warning}");
        }
    }

    /// Envoy keeps the listeners of an earlier one until they are drained; an agent's own
    /// certificate and one of an escape hatch are not renewed by the agent's leaf cache.
    #[test]
    fn the_last_leaf_of_the_service_counts() {
        let (old, new) = (leaf(SERVICE, 0, 6), leaf(SERVICE, 4, 16));
        assert_eq!(warning(&[new.clone(), old.clone()], 8 * 3600), None);
        assert_eq!(warning(&[old, new], 8 * 3600), None);
        let agent = "spiffe://d.consul/agent/client/dc/dc1/id/a";
        for other in [agent, "spiffe://other/web", ""] {
            assert_eq!(warning(&[leaf(other, 0, 6)], 8 * 3600), None, "{other}");
        }
        assert_eq!(warning(&[], 0), None);
    }

    #[test]
    fn a_leaf_without_readable_dates_is_not_judged() {
        let unreadable = envoy::Leaf { valid_from: String::new(), ..leaf(SERVICE, 0, 6) };
        assert_eq!(warning(&[unreadable], 8 * 3600), None);
    }
}
