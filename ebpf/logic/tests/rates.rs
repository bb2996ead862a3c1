//! Buckets of bytes and of events beside what they promise.

use proptest::prelude::*;
use xebec_ebpf_abi::Limit;
use xebec_ebpf_logic::{budget::Budget, limit, news};

const SECOND: u64 = 1_000_000_000;

proptest! {
    #[test]
    fn no_stretch_of_time_passes_more_than_its_rate_and_one_bucket(
        rate in 1_000u64..10_000_000,
        bucket in 2_000u64..1_000_000,
        packets in proptest::collection::vec((0u64..SECOND / 50, 60u32..1514), 1..400),
    ) {
        let mut bucket_of = Limit { rate, burst: bucket * SECOND / rate, until: 0 };
        let (mut now, mut passed) = (7 * SECOND, Vec::new());
        for (pause, bytes) in packets {
            now += pause;
            if limit::take(&mut bucket_of, now, bytes) {
                passed.push((now, u64::from(bytes)));
            }
        }
        // A full bucket takes one packet whatever its size; divisions round by a byte a packet at most.
        for (i, (from, _)) in passed.iter().enumerate() {
            let mut sum = 0;
            for (n, (to, bytes)) in passed[i..].iter().enumerate() {
                sum += bytes;
                let may = bucket + rate * (to - from) / SECOND + 1514 + n as u64 + 2;
                prop_assert!(sum <= may, "{sum} of {may} in {} ns", to - from);
            }
        }
    }

    #[test]
    fn who_stays_below_the_rate_loses_nothing(
        rate in 1_000u64..10_000_000,
        packets in proptest::collection::vec(60u32..1514, 1..200),
    ) {
        let mut limit = Limit { rate, burst: 4_000 * SECOND / rate, until: 0 };
        let mut now = SECOND;
        for bytes in packets {
            prop_assert!(limit::take(&mut limit, now, bytes));
            now += u64::from(bytes) * SECOND / rate + 1;
        }
    }

    #[test]
    fn events_are_told_at_the_rate_and_a_seconds_worth_at_once(
        rate in 1u32..5_000,
        pauses in proptest::collection::vec(0u64..SECOND / 10, 1..500),
    ) {
        let mut allowance = Budget::default();
        let begun = 100 * SECOND;
        let (mut now, mut told) = (begun, 0u64);
        for pause in pauses {
            now += pause;
            told += u64::from(news::may_tell(&mut allowance, now, rate));
        }
        let cost = SECOND / u64::from(rate);
        prop_assert!(told * cost <= (now - begun) + SECOND);
        // After a pause there is something to tell again.
        prop_assert!(news::may_tell(&mut allowance, now + SECOND, rate));
        prop_assert!(!news::may_tell(&mut allowance, now + 2 * SECOND, 0), "nobody wants any");
    }
}
