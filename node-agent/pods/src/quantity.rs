//! Kubernetes quantities as exact numbers.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity in billionths, the finest step the API knows (`n`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(pub i128);

const UNIT: i128 = 1_000_000_000;

impl Amount {
    /// Reads `100m`, `1.5Gi`, `2e3`. `None` when it is no quantity.
    pub fn parse(text: &str) -> Option<Amount> {
        let text = text.trim();
        let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '+' || c == '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (negative, number) = match number.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digit = |c: char| c.is_ascii_digit();
        if (whole.is_empty() && fraction.is_empty()) || !whole.chars().chain(fraction.chars()).all(digit) {
            return None;
        }
        let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
        let (multiplier, divisor): (i128, i128) = match suffix {
            "" => (UNIT, 1),
            "n" => (1, 1),
            "u" => (1_000, 1),
            "m" => (1_000_000, 1),
            "k" => (UNIT * 1_000, 1),
            "M" => (UNIT * 1_000_000, 1),
            "G" => (UNIT * 1_000_000_000, 1),
            "T" => (UNIT * 1_000_000_000_000, 1),
            "P" => (UNIT * 1_000_000_000_000_000, 1),
            "E" => (UNIT * 1_000_000_000_000_000_000, 1),
            "Ki" => (UNIT << 10, 1),
            "Mi" => (UNIT << 20, 1),
            "Gi" => (UNIT << 30, 1),
            "Ti" => (UNIT << 40, 1),
            "Pi" => (UNIT << 50, 1),
            "Ei" => (UNIT << 60, 1),
            _ => {
                let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
                let power = 10i128.checked_pow(exponent.unsigned_abs())?;
                if exponent >= 0 { (UNIT.checked_mul(power)?, 1) } else { (UNIT, power) }
            }
        };
        let scale = 10i128.checked_pow(fraction.len() as u32)?.checked_mul(divisor)?;
        let value = digits.checked_mul(multiplier)?;
        // Finer than a billionth rounds up, as upstream.
        let value = value / scale + i128::from(value % scale != 0);
        Some(Amount(if negative { -value } else { value }))
    }

    /// Whole units, rounded up.
    pub fn value(self) -> i64 {
        i64::try_from(ceil_div(self.0, UNIT)).unwrap_or(i64::MAX)
    }

    /// Thousandths, rounded up.
    pub fn milli(self) -> i64 {
        i64::try_from(ceil_div(self.0, UNIT / 1000)).unwrap_or(i64::MAX)
    }

    /// How many of `divisor` it takes to hold this, rounded up.
    pub fn divided_by(self, divisor: Amount) -> i64 {
        if divisor.0 <= 0 {
            return self.value();
        }
        i64::try_from(ceil_div(self.0, divisor.0)).unwrap_or(i64::MAX)
    }
}

fn ceil_div(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

/// A resource of a list; absent and unreadable are both `None`.
pub fn get(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<Amount> {
    list?.get(resource).and_then(|q| Amount::parse(&q.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes() {
        for (text, milli) in [
            ("1", 1000),
            ("100m", 100),
            ("0.1", 100),
            ("1.5", 1500),
            ("1k", 1_000_000),
            ("1Ki", 1_024_000),
            ("2e3", 2_000_000),
            ("1E-3", 1),
            ("1n", 1),
            ("-2", -2000),
            (".5", 500),
            ("3.", 3000),
        ] {
            assert_eq!(Amount::parse(text).map(Amount::milli), Some(milli), "{text}");
        }
        assert_eq!(Amount::parse("1Gi").unwrap().value(), 1 << 30);
        assert_eq!(Amount::parse("1.5Gi").unwrap().divided_by(Amount::parse("1Mi").unwrap()), 1536);
        assert_eq!(Amount::parse("100m").unwrap().divided_by(Amount::parse("1").unwrap()), 1);
    }

    #[test]
    fn not_quantities() {
        for text in ["", "x", "1x", "1.2.3", "Ki", "1e", "--1", "9e99"] {
            assert_eq!(Amount::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = Amount::parse(&text);
        }
        #[test]
        fn milli_round_trips(milli in 0i64..1_000_000_000_000) {
            prop_assert_eq!(Amount::parse(&format!("{milli}m")).unwrap().milli(), milli);
        }
    }
}
