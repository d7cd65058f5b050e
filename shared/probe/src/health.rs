//! What the results of a probe come to, as the kubelet counts them.

use std::time::Duration;

use crate::Probe;

/// How long after a failure it is asked again while it has not succeeded yet: an
/// application that starts should get its traffic at once, whatever the period is.
pub const STARTING: Duration = Duration::from_millis(500);

/// Whether the application is ready. It begins unready.
#[derive(Clone, Debug)]
pub struct Health {
    success_threshold: u32,
    failure_threshold: u32,
    period: Duration,
    is_ready: bool,
    has_been_ready: bool,
    /// The last result, and how many times in a row it was had.
    last: bool,
    row: u32,
}

// === impl Health ===

impl Health {
    /// The health of an application that was not asked yet.
    pub fn new(probe: &Probe) -> Self {
        let Probe { success_threshold, failure_threshold, period, .. } = *probe;
        Self {
            success_threshold,
            failure_threshold,
            period,
            is_ready: false,
            has_been_ready: false,
            last: false,
            row: 0,
        }
    }

    /// Whether traffic may be sent.
    pub fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Takes a result, and tells whether it changed the application's readiness.
    pub fn count(&mut self, success: bool) -> bool {
        self.row = if self.last == success { self.row.saturating_add(1) } else { 1 };
        self.last = success;
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        if self.is_ready == success || self.row < threshold {
            return false;
        }
        self.is_ready = success;
        self.has_been_ready |= success;
        true
    }

    /// How long to wait before the next look.
    pub fn pause(&self) -> Duration {
        if self.has_been_ready || self.last { self.period } else { STARTING.min(self.period) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Action;

    fn health(success_threshold: u32, failure_threshold: u32) -> Health {
        Health::new(&Probe {
            action: Action::Tcp { port: 1 },
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success_threshold,
            failure_threshold,
        })
    }

    /// `+` is a success, `-` a failure; how it is after each.
    fn told(mut health: Health, results: &str) -> String {
        let count = |result| {
            let before = health.is_ready();
            let changed = health.count(result == '+');
            assert_eq!(changed, before != health.is_ready());
            if health.is_ready() { 'r' } else { '.' }
        };
        results.chars().map(count).collect()
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        assert_eq!(told(health(1, 3), "--+--+---+"), "..rrrrrr.r");
        assert_eq!(told(health(2, 1), "+-++-+-++"), "...r....r");
        assert_eq!(told(health(1, 1), "+-+-"), "r.r.");
    }

    #[test]
    fn it_is_asked_often_until_it_succeeds() {
        let mut health = health(2, 3);
        health.count(false);
        assert_eq!(health.pause(), STARTING);
        health.count(true);
        assert_eq!(
            health.pause(),
            Duration::from_secs(10),
            "successes in a row are a period apart"
        );
        health.count(false);
        assert_eq!(health.pause(), STARTING);
        health.count(true);
        health.count(true);
        health.count(false);
        assert_eq!(health.pause(), Duration::from_secs(10));
    }
}
