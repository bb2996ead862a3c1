//! Exponential back-off as kubelet's `flowcontrol.Backoff`: values in, values out.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

/// Start and bound of a back-off series.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub initial: SignedDuration,
    pub max: SignedDuration,
}

/// 10 s, doubled to 5 min: both for crashing containers and for failing image pulls.
pub const KUBELET: Limits = Limits { initial: SignedDuration::from_secs(10), max: SignedDuration::from_secs(300) };

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    delay: SignedDuration,
    updated: Timestamp,
}

/// Delays by key. Forgets a key that was quiet for twice the longest delay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BackOff {
    entries: HashMap<String, Entry>,
}

impl BackOff {
    /// The delay a key is held to at present.
    pub fn delay(&self, key: &str) -> SignedDuration {
        self.entries.get(key).map_or(SignedDuration::ZERO, |e| e.delay)
    }

    /// When the key may be tried again after failing at `event`; `None` when it may be now.
    pub fn blocked_until(&self, limits: Limits, key: &str, event: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get(key)?;
        if expired(limits, event, entry) {
            return None;
        }
        let until = event.checked_add(entry.delay).unwrap_or(Timestamp::MAX);
        (now < until).then_some(until)
    }

    /// As [`BackOff::blocked_until`], counted from the last try itself.
    pub fn blocked_since_update(&self, key: &str, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get(key)?;
        let until = entry.updated.checked_add(entry.delay).unwrap_or(Timestamp::MAX);
        (now < until).then_some(until)
    }

    /// Counts a new try: the first is free, each later one doubles the delay.
    pub fn next(&mut self, limits: Limits, key: &str, event: Timestamp, now: Timestamp) {
        let entry = self.entries.entry(key.to_owned()).or_insert(Entry { delay: SignedDuration::ZERO, updated: now });
        entry.delay =
            if entry.delay.is_zero() || expired(limits, event, entry) { limits.initial } else { (entry.delay * 2).min(limits.max) };
        entry.updated = now;
    }

    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }
}

fn expired(limits: Limits, event: Timestamp, entry: &Entry) -> bool {
    event.duration_since(entry.updated) > limits.max * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn doubles_to_the_bound_and_forgets() {
        let mut backoff = BackOff::default();
        assert_eq!(backoff.blocked_until(KUBELET, "a", at(0), at(0)), None, "the first failure is retried at once");
        let mut now = 0;
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            backoff.next(KUBELET, "a", at(now), at(now));
            assert_eq!(backoff.delay("a"), SignedDuration::from_secs(expected));
            assert_eq!(backoff.blocked_until(KUBELET, "a", at(now), at(now + expected - 1)), Some(at(now + expected)));
            now += expected;
            assert_eq!(backoff.blocked_until(KUBELET, "a", at(now - expected), at(now)), None);
        }
        let quiet = now + 601;
        assert_eq!(backoff.blocked_until(KUBELET, "a", at(quiet), at(quiet)), None);
        backoff.next(KUBELET, "a", at(quiet), at(quiet));
        assert_eq!(backoff.delay("a"), SignedDuration::from_secs(10));
    }

    #[test]
    fn keys_are_apart() {
        let mut backoff = BackOff::default();
        backoff.next(KUBELET, "a", at(0), at(0));
        assert_eq!(backoff.blocked_until(KUBELET, "b", at(0), at(0)), None);
        backoff.forget("a");
        assert_eq!(backoff.delay("a"), SignedDuration::ZERO);
    }
}
