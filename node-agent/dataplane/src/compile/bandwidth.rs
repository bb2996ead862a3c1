//! How much a pod may send and be sent: the annotations that kubelets and CNI plugins know.

use serde::{Deserialize, Serialize};
use xebec_ebpf_abi::{Limit, direction};

use super::input::Labels;

/// Annotation of a pod: bits a second that it may be sent.
pub const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
/// Annotation of a pod: bits a second that it may send.
pub const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Bytes a second; none: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// What the pod may be sent.
    pub ingress: Option<u64>,
    /// What it may send.
    pub egress: Option<u64>,
}

/// What annotations say. What is no quantity, or outside what upstream calls reasonable, is no limit: a pod that runs is
/// not stopped for it.
pub fn of(annotations: Option<&Labels>) -> Bandwidth {
    let rate = |name| annotations.and_then(|a| bits(a.get(name)?)).map(|bits| bits / 8);
    Bandwidth { ingress: rate(INGRESS), egress: rate(EGRESS) }
}

impl Bandwidth {
    /// The limits, by direction.
    pub fn limits(&self) -> impl Iterator<Item = (u8, Limit)> + use<> {
        let ways = [(direction::INGRESS, self.ingress), (direction::EGRESS, self.egress)];
        ways.into_iter().filter_map(|(way, rate)| Some((way, limit(rate?))))
    }
}

const SECOND: u64 = 1_000_000_000;
/// A bucket holds so many bytes at least: TCP sends 64 KiB in one piece, and a sender whose every second piece is lost never
/// comes up to its rate. Else it holds what a second brings: who lost much is silent until TCP's timer runs out, 200 ms and
/// twice that the next time, and what fills into the bucket meanwhile must not be lost too.
const LEAST: u64 = 256 << 10;

fn limit(rate: u64) -> Limit {
    let least = u128::from(LEAST) * u128::from(SECOND) / u128::from(rate.max(1));
    Limit { rate, burst: u64::try_from(least).unwrap_or(u64::MAX / 4).max(SECOND), until: 0 }
}

/// A quantity in whole units, within a thousand and 10^15 as upstream has it.
fn bits(text: &str) -> Option<u64> {
    const UNITS: [(&str, u128); 12] = [
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
    ];
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if number.len() > 20 || fraction.contains('.') || whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (times, over) = match (suffix, suffix.strip_prefix(['e', 'E']).filter(|s| !s.is_empty())) {
        ("", _) => (1, 1),
        ("m", _) => (1, 1_000),
        (_, Some(exponent)) if exponent.parse::<i32>().is_ok() => {
            let exponent: i32 = exponent.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
        _ => (UNITS.iter().find(|(name, _)| *name == suffix)?.1, 1),
    };
    let value = digits.checked_mul(times)? / 10u128.checked_pow(fraction.len() as u32)?.checked_mul(over)?;
    u64::try_from(value).ok().filter(|bits| (1_000..=1_000_000_000_000_000).contains(bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bits() {
        for (text, expected) in [
            ("10M", Some(10_000_000)),
            ("1.5G", Some(1_500_000_000)),
            ("1Mi", Some(1 << 20)),
            ("1000", Some(1000)),
            ("1e6", Some(1_000_000)),
            ("15e-1", None),
            ("5E3", Some(5000)),
            ("1000000m", Some(1000)),
            ("999", None),
            ("2P", None),
            ("1E", None),
            ("", None),
            ("k", None),
            ("-1M", None),
            ("1.2.3M", None),
            ("1 M", None),
            ("1e99", None),
            ("99999999999999999999E", None),
        ] {
            assert_eq!(bits(text), expected, "{text}");
        }
    }

    #[test]
    fn annotations_are_bytes_a_second_by_direction() {
        let annotations = Labels::from([(EGRESS.into(), "8M".into()), (INGRESS.into(), "fast".into())]);
        let bandwidth = of(Some(&annotations));
        assert_eq!(bandwidth, Bandwidth { ingress: None, egress: Some(1_000_000) });
        let limits: Vec<_> = bandwidth.limits().collect();
        assert_eq!(limits.len(), 1);
        assert_eq!(limits[0], (direction::EGRESS, Limit { rate: 1_000_000, burst: SECOND, until: 0 }));
        assert_eq!(of(None), Bandwidth::default());
    }

    #[test]
    fn a_bucket_holds_what_tcp_sends_at_once_whatever_the_rate() {
        for rate in [125, 125_000, 1_250_000_000, 125_000_000_000_000] {
            let limit = limit(rate);
            let bytes = u128::from(limit.burst) * u128::from(rate) / u128::from(SECOND);
            assert!(bytes + 1 >= u128::from(LEAST.max(rate)), "{rate}: {bytes}");
        }
    }
}
