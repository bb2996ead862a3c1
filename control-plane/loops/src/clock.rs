//! Now, as the API writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// Now in whole seconds, as `metav1.Time` keeps it.
pub fn now() -> Time {
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Now in microseconds.
pub fn now_micro() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// Seconds from `earlier` to `later`, negative if they are the other way round.
pub fn seconds_between(earlier: &Time, later: &Time) -> f64 {
    later.0.duration_since(earlier.0).as_secs_f64()
}

/// `time` plus whole seconds; stays put when the result is out of range.
pub fn plus_seconds(time: &Time, seconds: i64) -> Time {
    Time(time.0.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(time.0))
}
