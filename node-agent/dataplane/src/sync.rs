//! How far the maps are behind the API.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde::Serialize;

/// Measures from the first event that is not yet in the maps to the round that has written it.
#[derive(Clone, Debug)]
pub struct SyncClock {
    waiting: Option<Instant>,
    last: Duration,
    /// Seconds from event to map, of rounds that wrote something.
    pub latency: Histogram,
    /// Rounds.
    pub rounds: Counter,
    /// Rounds with a write that failed.
    pub errors: Counter,
    /// Entries written or deleted.
    pub writes: Counter,
}

impl Default for SyncClock {
    fn default() -> SyncClock {
        SyncClock {
            waiting: None,
            last: Duration::ZERO,
            // 1 ms to 16 s.
            latency: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            rounds: Counter::default(),
            errors: Counter::default(),
            writes: Counter::default(),
        }
    }
}

impl SyncClock {
    /// The API told of a change.
    pub fn changed(&mut self, now: Instant) {
        self.waiting.get_or_insert(now);
    }

    /// A round has written all there was to write, or all but what failed.
    pub fn round(&mut self, now: Instant, writes: usize, failures: usize) {
        self.rounds.inc();
        self.writes.inc_by(writes as u64);
        if failures > 0 {
            // What waits goes on waiting.
            self.errors.inc();
            return;
        }
        let Some(since) = self.waiting.take() else {
            return;
        };
        // A change that meant nothing to the maps says nothing of their lag.
        if writes > 0 {
            self.last = now.saturating_duration_since(since);
            self.latency.observe(self.last.as_secs_f64());
        }
    }

    /// For people.
    pub fn status(&self, now: Instant) -> SyncStatus {
        SyncStatus {
            lag_seconds: self.waiting.map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
            last_seconds: self.last.as_secs_f64(),
            rounds: self.rounds.get(),
            errors: self.errors.get(),
            writes: self.writes.get(),
        }
    }
}

/// How far the maps are behind the API, and what was done about it.
#[derive(Clone, Debug, Default, Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SyncStatus {
    /// How long the oldest change that is not in the maps has waited; 0: there is none.
    pub lag_seconds: f64,
    /// How long the last change took from the API's event to the maps.
    pub last_seconds: f64,
    /// Rounds since the agent started.
    pub rounds: u64,
    /// Rounds with a write that failed.
    pub errors: u64,
    /// Entries written or deleted.
    pub writes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_that_of_the_oldest_change_and_survives_failures() {
        let mut clock = SyncClock::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(clock.status(at(5)).lag_seconds, 0.0);
        clock.changed(at(0));
        clock.changed(at(50));
        assert_eq!(clock.status(at(100)).lag_seconds, 0.1);
        clock.round(at(200), 3, 1);
        assert_eq!(clock.status(at(300)).lag_seconds, 0.3, "what failed still waits");
        clock.round(at(400), 1, 0);
        let status = clock.status(at(500));
        assert_eq!((status.lag_seconds, status.last_seconds), (0.0, 0.4));
        assert_eq!((status.rounds, status.errors, status.writes), (2, 1, 4));
    }

    #[test]
    fn a_change_without_a_write_is_no_measurement() {
        let mut clock = SyncClock::default();
        let start = Instant::now();
        clock.changed(start);
        clock.round(start + Duration::from_secs(1), 0, 0);
        let status = clock.status(start + Duration::from_secs(2));
        assert_eq!((status.lag_seconds, status.last_seconds), (0.0, 0.0));
    }
}
