//! How much a pod may send and be sent: the annotations that kubelets and CNI plugins know, and what a runtime asks for at ADD.

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
    /// Bytes it may be sent at once; none: what is best.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_burst: Option<u64>,
    /// Bytes it may send at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_burst: Option<u64>,
}

/// What annotations say. What is no quantity, or outside what upstream calls reasonable, is no limit: a pod that runs is
/// not stopped for it. [`complaint`] tells its author, and a pod that is to start with it is refused.
pub fn of(annotations: Option<&Labels>) -> Bandwidth {
    let rate = |name| annotations.and_then(|a| bits(a.get(name)?)).map(|bits| bits / 8);
    Bandwidth { ingress: rate(INGRESS), egress: rate(EGRESS), ..Bandwidth::default() }
}

/// What is wrong with annotations, in words for their author.
pub fn complaint(annotations: Option<&Labels>) -> Option<String> {
    let wrong = |name: &str| {
        let text = annotations?.get(name)?;
        bits(text).is_none().then(|| format!("annotation {name} is {text:?}"))
    };
    let wrong: Vec<String> = [INGRESS, EGRESS].into_iter().filter_map(wrong).collect();
    let expected = "not a quantity of bits a second from 1k to 1P, such as 10M";
    (!wrong.is_empty()).then(|| format!("{}: {expected}", wrong.join(", ")))
}

impl Bandwidth {
    /// The limits, by direction.
    pub fn limits(&self) -> impl Iterator<Item = (u8, Limit)> + use<> {
        let ways = [(direction::INGRESS, self.ingress, self.ingress_burst), (direction::EGRESS, self.egress, self.egress_burst)];
        ways.into_iter().filter_map(|(way, rate, burst)| Some((way, limit(rate?, burst))))
    }

    /// This, and in directions of which it says nothing, the other.
    pub fn or(self, other: Bandwidth) -> Bandwidth {
        let (ingress, ingress_burst) = match self.ingress {
            Some(_) => (self.ingress, self.ingress_burst),
            None => (other.ingress, other.ingress_burst),
        };
        let (egress, egress_burst) = match self.egress {
            Some(_) => (self.egress, self.egress_burst),
            None => (other.egress, other.egress_burst),
        };
        Bandwidth { ingress, egress, ingress_burst, egress_burst }
    }

    /// What of this is no copy of the other: a runtime hands on the annotations it was given, and those may change later.
    pub fn beyond(self, annotations: Bandwidth) -> Bandwidth {
        let (ingress, egress) = (annotations.ingress.is_none(), annotations.egress.is_none());
        Bandwidth {
            ingress: self.ingress.filter(|_| ingress),
            ingress_burst: self.ingress_burst.filter(|_| ingress),
            egress: self.egress.filter(|_| egress),
            egress_burst: self.egress_burst.filter(|_| egress),
        }
    }
}

const SECOND: u64 = 1_000_000_000;
/// A bucket holds so many bytes at least: TCP sends 64 KiB in one piece, and a sender whose every second piece is lost never
/// comes up to its rate. Else it holds what a second brings: who lost much is silent until TCP's timer runs out, 200 ms and
/// twice that the next time, and what fills into the bucket meanwhile must not be lost too.
const LEAST: u64 = 256 << 10;

fn limit(rate: u64, burst: Option<u64>) -> Limit {
    let rate = rate.max(1);
    let bytes = burst.unwrap_or(rate).max(LEAST);
    let time = u128::from(bytes) * u128::from(SECOND) / u128::from(rate);
    Limit { rate, burst: u64::try_from(time).unwrap_or(u64::MAX).min(u64::MAX / 4), until: 0 }
}

/// A quantity in whole units, rounded up, within a thousand and 10^15 as upstream has it.
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
    let text = text.strip_prefix('+').unwrap_or(text);
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
        ("u", _) => (1, 1_000_000),
        ("n", _) => (1, 1_000_000_000),
        (_, Some(exponent)) if exponent.parse::<i32>().is_ok() => {
            let exponent: i32 = exponent.parse().ok()?;
            let power = 10u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
        _ => (UNITS.iter().find(|(name, _)| *name == suffix)?.1, 1),
    };
    let value = digits.checked_mul(times)?.div_ceil(10u128.checked_pow(fraction.len() as u32)?.checked_mul(over)?);
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
            ("+1k", Some(1000)),
            ("999.5", Some(1000)),
            ("1000000000u", Some(1000)),
            ("1000000000000n", Some(1000)),
            ("999", None),
            ("+-1k", None),
            (" 1M", None),
            ("1M ", None),
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
        assert_eq!(bandwidth, Bandwidth { egress: Some(1_000_000), ..Bandwidth::default() });
        let limits: Vec<_> = bandwidth.limits().collect();
        assert_eq!(limits.len(), 1);
        assert_eq!(limits[0], (direction::EGRESS, Limit { rate: 1_000_000, burst: SECOND, until: 0 }));
        assert_eq!(of(None), Bandwidth::default());
    }

    #[test]
    fn what_is_wrong_is_said_of_each_annotation_and_of_nothing_else() {
        let with = |ingress: &str, egress: &str| {
            complaint(Some(&Labels::from([(INGRESS.into(), ingress.into()), (EGRESS.into(), egress.into())])))
        };
        assert_eq!((complaint(None), complaint(Some(&Labels::new())), with("1k", "1P")), (None, None, None));
        let one = with("10M", "2P").expect("too much");
        assert!(one.starts_with(r#"annotation kubernetes.io/egress-bandwidth is "2P": "#), "{one}");
        let both = with("", "fast").expect("neither is one");
        assert!(both.contains("ingress-bandwidth is \"\", annotation") && both.contains("\"fast\""), "{both}");
    }

    #[test]
    fn annotations_win_over_what_the_runtime_asks_for_and_copies_do_not_outlive_them() {
        let annotated = Bandwidth { egress: Some(1000), ..Bandwidth::default() };
        let asked = Bandwidth { ingress: Some(7), ingress_burst: Some(70), egress: Some(2000), egress_burst: Some(20) };
        let own = asked.beyond(annotated);
        assert_eq!(own, Bandwidth { ingress: Some(7), ingress_burst: Some(70), ..Bandwidth::default() });
        assert_eq!(annotated.or(own), Bandwidth { egress: Some(1000), ..own });
        assert_eq!(Bandwidth::default().or(own), own, "the annotation is gone, and its copy with it");
        assert_eq!(Bandwidth::default().or(asked), asked);
        assert_eq!(asked.beyond(Bandwidth::default()), asked);
    }

    #[test]
    fn records_of_before_bursts_were_kept_are_read_and_those_without_are_written_as_before() {
        let old = r#"{"ingress":5,"egress":null}"#;
        let bandwidth: Bandwidth = serde_json::from_str(old).expect("a record");
        assert_eq!(bandwidth, Bandwidth { ingress: Some(5), ..Bandwidth::default() });
        assert_eq!(serde_json::to_string(&bandwidth).expect("JSON"), old);
    }

    #[test]
    fn a_bucket_holds_what_tcp_sends_at_once_whatever_the_rate() {
        for rate in [125, 125_000, 1_250_000_000, 125_000_000_000_000] {
            for burst in [None, Some(0), Some(1), Some(rate * 3)] {
                let limit = limit(rate, burst);
                let bytes = u128::from(limit.burst) * u128::from(rate) / u128::from(SECOND);
                let expected = u128::from(LEAST.max(burst.unwrap_or(rate)));
                assert!(bytes <= expected && bytes + 1 + u128::from(rate / SECOND) >= expected, "{rate} {burst:?}: {bytes}");
            }
        }
        assert_eq!(limit(0, None).rate, 1, "no division by zero waits in the kernel");
        assert_eq!(limit(1, Some(u64::MAX)).burst, u64::MAX / 4);
    }
}
