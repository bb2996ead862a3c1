//! Resource quantities: `100m`, `1.5Gi`, `1e3`. Parsed exactly down to nano units, printed in canonical form.

use std::fmt;

/// Upstream's error for text that is no quantity.
pub const PATTERN_ERROR: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";

const NANOS: i128 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Decimal,
    Binary,
    Exponent,
}

/// A quantity; equality and order are by amount when compared through [`Quantity::nanos`].
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

impl Quantity {
    /// `None` when the text is no quantity. Amounts beyond what upstream holds are capped.
    pub fn parse(text: &str) -> Option<Quantity> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 200 {
            return None;
        }
        let (format, exponent, multiplier) = suffix_of(suffix)?;
        // The amount is digits * 10^(exponent - fraction length) * multiplier; counted in nanos.
        let digits: String = format!("{whole}{fraction}").trim_start_matches('0').to_owned();
        let mut nanos = scaled(&digits, 9 + exponent - fraction.len() as i32, multiplier);
        nanos = nanos.min(i128::from(i64::MAX) * NANOS);
        Some(Quantity { nanos: if text.starts_with('-') { -nanos } else { nanos }, format })
    }

    /// From a JSON value: text, or a number as clients may write it.
    pub fn from_value(value: &serde_json::Value) -> Option<Quantity> {
        match value {
            serde_json::Value::String(text) => Quantity::parse(text),
            serde_json::Value::Number(number) => Quantity::parse(&number.to_string()),
            _ => None,
        }
    }

    /// The amount in units of 10^-9.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The amount in thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        div_ceil(self.nanos, 1_000_000)
    }

    /// The whole amount, rounded up.
    pub fn value(&self) -> i64 {
        div_ceil(self.nanos, NANOS)
    }

    /// Whether the amount is a whole number.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANOS == 0
    }
}

fn div_ceil(amount: i128, by: i128) -> i64 {
    let quotient = amount.div_euclid(by) + i128::from(amount.rem_euclid(by) != 0);
    i64::try_from(quotient).unwrap_or(if quotient < 0 { i64::MIN } else { i64::MAX })
}

fn suffix_of(suffix: &str) -> Option<(Format, i32, i128)> {
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((Format::Decimal, *exponent, 1));
    }
    if let Some(power) = BINARY.iter().position(|s| *s == suffix) {
        return Some((Format::Binary, 0, 1_i128 << (10 * (power + 1))));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let exponent = exponent.strip_prefix('+').filter(|r| !r.starts_with('-')).unwrap_or(exponent);
    Some((Format::Exponent, exponent.parse::<i16>().ok()?.into(), 1))
}

/// `digits * 10^exponent * multiplier`, fractions rounded up, saturating.
fn scaled(digits: &str, exponent: i32, multiplier: i128) -> i128 {
    if digits.is_empty() {
        return 0;
    }
    // What lies more than 60 digits below the point only matters for rounding up.
    let (mut value, mut exponent) = (0_i128, exponent);
    let mut rest = false;
    for (i, d) in digits.bytes().enumerate() {
        let digit = i128::from(d - b'0');
        match value.checked_mul(10).and_then(|v| v.checked_add(digit)) {
            Some(v) if v < i128::MAX / (1 << 62) => value = v,
            _ => {
                exponent = exponent.saturating_add((digits.len() - i) as i32);
                rest = true;
                break;
            }
        }
    }
    let Some(mut value) = value.checked_mul(multiplier) else { return i128::MAX };
    while exponent > 0 {
        let Some(v) = value.checked_mul(10) else { return i128::MAX };
        value = v;
        exponent -= 1;
    }
    while exponent < 0 && value > 0 {
        rest |= value % 10 != 0;
        value /= 10;
        exponent += 1;
    }
    value + i128::from(rest)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANOS;
        if self.format == Format::Binary && !small {
            // Binary units have no fractions.
            let mut value = self.nanos / NANOS + i128::from(self.nanos % NANOS > 0);
            let mut unit = "";
            for next in BINARY {
                if value % 1024 != 0 {
                    break;
                }
                value /= 1024;
                unit = next;
            }
            return write!(f, "{value}{unit}");
        }
        let (mut value, mut exponent) = (self.nanos, -9);
        while value % 1000 == 0 && exponent < 18 {
            value /= 1000;
            exponent += 3;
        }
        if self.format == Format::Exponent {
            return if exponent == 0 { write!(f, "{value}") } else { write!(f, "{value}e{exponent}") };
        }
        let unit = DECIMAL.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| s);
        write!(f, "{value}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, want) in [
            ("0", "0"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12E2", "1200"),
            ("100m", "100m"),
            ("+5", "5"),
            ("-1.5", "-1500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("2E", "2E"),
            ("1n", "1n"),
            ("0.1n", "1n"),
        ] {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()).as_deref(), Some(want), "{text}");
        }
        for bad in ["", "a", "1x", "1 Gi", "1..2", "--1", "1e", "1.2.3", "Gi", "1gi", "."] {
            assert!(Quantity::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn amounts_round_up() {
        let q = |t: &str| Quantity::parse(t).unwrap();
        assert_eq!((q("1500m").value(), q("1500m").milli(), q("2Ki").value()), (2, 1500, 2048));
        assert!(q("2").is_integer() && !q("2.5").is_integer());
        assert_eq!(q("1e900").value(), i64::MAX);
    }

    proptest! {
        #[test]
        fn printing_keeps_the_amount(n in 0_u32.., unit in prop::sample::select(vec!["", "m", "k", "M", "Ki", "Mi", "e2"])) {
            let q = Quantity::parse(&format!("{n}{unit}")).unwrap();
            let again = Quantity::parse(&q.to_string()).unwrap();
            prop_assert_eq!(q.nanos(), again.nanos());
            prop_assert_eq!(q.to_string(), again.to_string());
        }

        #[test]
        fn never_panics(text in "[-+0-9.eEkKMGiu]{0,40}") {
            let _ = Quantity::parse(&text).map(|q| q.to_string());
        }
    }
}
