//! Resource quantities as exact numbers (`k8s.io/apimachinery/pkg/api/resource`).

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// How a quantity was written, kept for writing sums back in the same style.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Powers of ten: m, k, M.
    Decimal,
    /// Powers of two: Ki, Mi.
    Binary,
}

/// A number of billionths, exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    /// Billionths of the unit.
    pub nanos: i128,
    /// How it is written.
    pub style: Style,
}

const NANO: i128 = 1_000_000_000;
const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
const DECIMAL: [(&str, i32); 9] = [("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("m", -3), ("u", -6), ("n", -9)];

impl Amount {
    /// Nothing, in decimal style.
    pub const ZERO: Amount = Amount { nanos: 0, style: Style::Decimal };

    /// A whole number.
    pub fn whole(value: i64) -> Self {
        Amount { nanos: i128::from(value) * NANO, style: Style::Decimal }
    }

    /// Reads a quantity; `None` if it is not one (the API server lets none of those in).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let (number, style, exponent10, shift) = split_suffix(text)?;
        let (negative, digits) = match number.as_bytes().first()? {
            b'-' => (true, &number[1..]),
            b'+' => (false, &number[1..]),
            _ => (false, number),
        };
        let (int, frac) = digits.split_once('.').unwrap_or((digits, ""));
        if (int.is_empty() && frac.is_empty()) || !int.bytes().chain(frac.bytes()).all(|b| b.is_ascii_digit()) {
            return None;
        }
        let mut mantissa: i128 = 0;
        let mut scale = exponent10 + 9;
        for b in int.bytes() {
            mantissa = mantissa.checked_mul(10)?.checked_add(i128::from(b - b'0'))?;
        }
        // More digits after the point than billionths can hold only matter for rounding up.
        for b in frac.bytes().take(18) {
            mantissa = mantissa.checked_mul(10)?.checked_add(i128::from(b - b'0'))?;
            scale -= 1;
        }
        mantissa = mantissa.checked_mul(1_i128.checked_shl(shift)?)?;
        let nanos = if scale >= 0 {
            mantissa.checked_mul(10_i128.checked_pow(scale.unsigned_abs())?)?
        } else {
            let divisor = 10_i128.checked_pow(scale.unsigned_abs())?;
            ceil_div(mantissa, divisor)
        };
        Some(Amount { nanos: if negative { -nanos } else { nanos }, style })
    }

    /// The value in whole units, rounded up.
    pub fn value(self) -> i64 {
        clamp(ceil_div(self.nanos, NANO))
    }

    /// The value in thousandths, rounded up.
    pub fn milli(self) -> i64 {
        clamp(ceil_div(self.nanos, NANO / 1000))
    }

    /// The canonical text of the value.
    pub fn to_quantity(self) -> Quantity {
        let (sign, n) = if self.nanos < 0 { ("-", -self.nanos) } else { ("", self.nanos) };
        if n == 0 {
            return Quantity("0".into());
        }
        if self.style == Style::Binary && n % NANO == 0 {
            let whole = n / NANO;
            for (suffix, bits) in BINARY {
                if whole % (1 << bits) == 0 {
                    return Quantity(format!("{sign}{}{suffix}", whole >> bits));
                }
            }
            return Quantity(format!("{sign}{whole}"));
        }
        for (suffix, power) in [("E", 27), ("P", 24), ("T", 21), ("G", 18), ("M", 15), ("k", 12), ("", 9), ("m", 6), ("u", 3)] {
            let unit = 10_i128.pow(power);
            if n % unit == 0 {
                return Quantity(format!("{sign}{}{suffix}", n / unit));
            }
        }
        Quantity(format!("{sign}{n}n"))
    }
}

impl std::ops::Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        // As upstream: a zero takes the style of what is added to it.
        let style = if self.nanos == 0 { other.style } else { self.style };
        Amount { nanos: self.nanos.saturating_add(other.nanos), style }
    }
}

/// Reads a quantity; one that does not parse counts as zero.
pub fn amount(q: &Quantity) -> Amount {
    Amount::parse(&q.0).unwrap_or(Amount::ZERO)
}

fn ceil_div(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn clamp(v: i128) -> i64 {
    i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX })
}

fn split_suffix(text: &str) -> Option<(&str, Style, i32, u32)> {
    for (suffix, bits) in BINARY {
        if let Some(number) = text.strip_suffix(suffix) {
            return Some((number, Style::Binary, 0, bits));
        }
    }
    for (suffix, power) in DECIMAL {
        if let Some(number) = text.strip_suffix(suffix) {
            return Some((number, Style::Decimal, power, 0));
        }
    }
    if let Some((number, exponent)) = text.split_once(['e', 'E']) {
        let exponent: i32 = exponent.parse().ok()?;
        return (-18..=18).contains(&exponent).then_some((number, Style::Decimal, exponent, 0));
    }
    Some((text, Style::Decimal, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_the_api_allows() {
        for (text, milli, value) in [
            ("0", 0, 0),
            ("1", 1000, 1),
            ("100m", 100, 1),
            ("1.5", 1500, 2),
            ("0.1", 100, 1),
            ("1u", 1, 1),
            ("2Ki", 2_048_000, 2048),
            ("1.5Gi", 1_610_612_736_000, 1_610_612_736),
            ("1k", 1_000_000, 1000),
            ("12e3", 12_000_000, 12000),
            ("1E", i64::MAX, 1_000_000_000_000_000_000),
            ("-500m", -500, 0),
        ] {
            let a = Amount::parse(text).unwrap();
            assert_eq!(a.milli(), milli, "{text}");
            assert_eq!(a.value(), value, "{text}");
        }
        for bad in ["", "x", "1Q", "1.2.3", "e3", "Ki", "--1"] {
            assert_eq!(Amount::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn writes_the_shortest_form_of_its_style() {
        for (text, canonical) in
            [("1000m", "1"), ("1500m", "1500m"), ("1024Ki", "1Mi"), ("1.5Gi", "1536Mi"), ("2000", "2k"), ("1000Ki", "1000Ki")]
        {
            assert_eq!(Amount::parse(text).unwrap().to_quantity().0, canonical);
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(nanos in -1_000_000_000_000_000_000_i128..1_000_000_000_000_000_000, binary: bool) {
            let style = if binary { Style::Binary } else { Style::Decimal };
            let a = Amount { nanos, style };
            prop_assert_eq!(Amount::parse(&a.to_quantity().0).unwrap().nanos, nanos);
        }
    }
}
