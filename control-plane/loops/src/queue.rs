//! A work queue: each key at most once, never handed to two workers at a time, delays and per-key back-off.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// First delay after a failure; doubles with each further failure of the same key.
pub const BACKOFF_START: Duration = Duration::from_millis(5);
/// Longest delay between two tries of a failing key.
pub const BACKOFF_LIMIT: Duration = Duration::from_secs(60);

/// Keys waiting for a worker.
pub struct Queue<T> {
    state: Mutex<State<T>>,
    notify: Notify,
}

struct State<T> {
    ready: VecDeque<T>,
    /// Keys in `ready`, or changed again while a worker has them.
    dirty: HashSet<T>,
    /// Keys a worker has now. A key in both `running` and `dirty` is queued again when the worker is done.
    running: HashSet<T>,
    delayed: BTreeSet<(Instant, T)>,
    due: HashMap<T, Instant>,
    failures: HashMap<T, u32>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Queue {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                running: HashSet::new(),
                delayed: BTreeSet::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
            }),
            notify: Notify::new(),
        }
    }
}

impl<T: Clone + Eq + Hash + Ord> Queue<T> {
    /// Queues a key now, unless it waits already.
    pub fn add(&self, key: T) {
        if self.state.lock().add(key) {
            self.notify.notify_one();
        }
    }

    /// Queues a key after a delay. Of several delays of one key the shortest counts.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().add_at(key, Instant::now() + delay);
        self.notify.notify_one();
    }

    /// Queues a key that failed, after its back-off.
    pub fn add_failed(&self, key: T) {
        let delay = {
            let mut state = self.state.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures = failures.saturating_add(1);
            backoff(*failures)
        };
        self.add_after(key, delay);
    }

    /// Forgets that a key ever failed.
    pub fn forget(&self, key: &T) {
        self.state.lock().failures.remove(key);
    }

    /// The next key; the caller must call [`Queue::done`] with it.
    pub async fn next(&self) -> T {
        loop {
            let wake = {
                let mut state = self.state.lock();
                state.release_due(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.running.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.notify.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match wake {
                Some(at) => tokio::select! {
                    () = self.notify.notified() => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => self.notify.notified().await,
            }
        }
    }

    /// Gives a key back; if it changed meanwhile it is queued again.
    pub fn done(&self, key: &T) {
        let mut state = self.state.lock();
        state.running.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.notify.notify_one();
        }
    }

    /// Keys ready for a worker.
    pub fn len(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// Whether no key is ready.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone + Eq + Hash + Ord> State<T> {
    fn add(&mut self, key: T) -> bool {
        if !self.dirty.insert(key.clone()) || self.running.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: T, at: Instant) {
        if let Some(old) = self.due.get(&key).copied() {
            if old <= at {
                return;
            }
            self.delayed.remove(&(old, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    fn release_due(&mut self, now: Instant) {
        while let Some((at, _)) = self.delayed.first() {
            if *at > now {
                break;
            }
            if let Some((_, key)) = self.delayed.pop_first() {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

/// The delay after this many failures in a row, of which there is at least one.
fn backoff(failures: u32) -> Duration {
    BACKOFF_START.saturating_mul(1 << (failures.max(1) - 1).min(20)).min(BACKOFF_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_key_waits_once() {
        let q = Queue::default();
        q.add("a");
        q.add("a");
        q.add("b");
        assert_eq!(q.len(), 2);
        assert_eq!(q.next().await, "a");
        assert_eq!(q.next().await, "b");
        assert!(q.is_empty());
    }

    #[tokio::test]
    async fn a_running_key_is_not_handed_out_again_until_done() {
        let q = Queue::default();
        q.add("a");
        assert_eq!(q.next().await, "a");
        q.add("a");
        assert!(q.is_empty());
        q.done(&"a");
        assert_eq!(q.next().await, "a");
        q.done(&"a");
        assert!(q.is_empty());
    }

    #[test]
    fn the_shortest_delay_counts() {
        let q = Queue::default();
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut state = q.state.lock();
        for seconds in [60, 5, 30] {
            state.add_at("a", start + second * seconds);
        }
        state.release_due(start + second * 4);
        assert!(state.ready.is_empty());
        state.release_due(start + second * 5);
        assert_eq!(state.ready, ["a"]);
        assert!(state.delayed.is_empty() && state.due.is_empty());
    }

    #[test]
    fn failures_back_off_to_a_limit_and_are_forgotten() {
        let delays: Vec<Duration> = (1..40).map(backoff).collect();
        assert_eq!(delays[0], BACKOFF_START);
        assert!(delays.is_sorted());
        assert_eq!(delays[38], BACKOFF_LIMIT);
        let q = Queue::default();
        for _ in 0..3 {
            q.add_failed("a");
        }
        assert_eq!(q.state.lock().failures["a"], 3);
        q.forget(&"a");
        assert!(q.state.lock().failures.is_empty());
    }
}
