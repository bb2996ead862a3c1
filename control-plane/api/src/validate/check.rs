//! Checks of single values. Each adds what is wrong at `path` to `errors`.

use serde_json::Value;

use super::names::{self, NameCheck, full_match};
use crate::{
    quantity::Quantity,
    status::FieldError,
    value::{entries, has, list, text},
};

pub type Errors = Vec<FieldError>;

const PERCENT: &str = "[0-9]+%";

/// `path.key`, or `key` at the top.
pub fn at(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// `path.key[index]`
pub fn at_index(path: &str, key: &str, index: usize) -> String {
    format!("{}[{index}]", at(path, key))
}

/// Every message of `check` as an invalid value.
pub fn syntax(value: &str, path: &str, check: NameCheck, errors: &mut Errors) {
    errors.extend(check(value).into_iter().map(|m| FieldError::invalid(path, value, m)));
}

/// A name that must be there.
pub fn required_name(value: &Value, path: &str, check: NameCheck, errors: &mut Errors) {
    match text(value) {
        "" => errors.push(FieldError::required(path, "")),
        name => syntax(name, path, check, errors),
    }
}

/// A name that may be left out.
pub fn optional_name(value: &Value, path: &str, check: NameCheck, errors: &mut Errors) {
    if !text(value).is_empty() {
        syntax(text(value), path, check, errors);
    }
}

/// Text that must be there.
pub fn required(value: &Value, path: &str, errors: &mut Errors) -> bool {
    let missing = crate::value::is_zero(value);
    if missing {
        errors.push(FieldError::required(path, ""));
    }
    !missing
}

/// One of a closed set, which must be chosen.
pub fn one_of(value: &Value, path: &str, supported: &[&str], errors: &mut Errors) {
    match text(value) {
        "" => errors.push(FieldError::required(path, "")),
        chosen if !supported.contains(&chosen) => errors.push(FieldError::not_supported(path, chosen, supported)),
        _ => {}
    }
}

/// One of a closed set, if given.
pub fn maybe_one_of(value: &Value, path: &str, supported: &[&str], errors: &mut Errors) {
    if !text(value).is_empty() {
        one_of(value, path, supported, errors);
    }
}

/// Not below zero, if given.
pub fn non_negative(value: &Value, path: &str, errors: &mut Errors) {
    if let Some(n) = value.as_i64().filter(|n| *n < 0) {
        errors.push(FieldError::invalid(path, n, "must be greater than or equal to 0"));
    }
}

/// Within bounds, if given.
pub fn in_range(value: &Value, path: &str, low: i64, high: i64, errors: &mut Errors) {
    if let Some(n) = value.as_i64().filter(|n| !(low..=high).contains(n)) {
        errors.push(FieldError::invalid(path, n, format!("must be between {low} and {high}, inclusive")));
    }
}

/// A port number, which must be there.
pub fn port(value: &Value, path: &str, errors: &mut Errors) {
    let number = value.as_i64().unwrap_or(0);
    in_range(&number.into(), path, 1, 65_535, errors);
}

/// The name of a port, as containers give it.
pub fn port_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.len() > 15 {
        errors.push("must be no more than 15 bytes".to_owned());
    }
    if !full_match!("[-a-z0-9]+", name) {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        errors.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errors.push("must not begin or end with a hyphen".into());
    }
    errors
}

/// A port by number or name.
pub fn port_or_name(value: &Value, path: &str, errors: &mut Errors) {
    match value {
        Value::String(name) => syntax(name, path, port_name, errors),
        other => port(other, path, errors),
    }
}

/// A count or a percentage, not negative.
pub fn count_or_percent(value: &Value, path: &str, errors: &mut Errors) {
    match value {
        Value::String(s) if !full_match!(PERCENT, s) => {
            let text = "a valid percent string must be a numeric string followed by an ending '%'";
            errors.push(FieldError::invalid(path, s.as_str(), names::pattern_message(text, PERCENT, &["1%", "93%"])));
        }
        other => non_negative(other, path, errors),
    }
}

/// The number of a percentage.
pub fn percent(value: &Value) -> Option<i64> {
    text(value).strip_suffix('%')?.parse().ok()
}

/// At most 100%.
pub fn at_most_all(value: &Value, path: &str, errors: &mut Errors) {
    if percent(value).is_some_and(|p| p > 100) {
        errors.push(FieldError::invalid(path, value.clone(), "must not be greater than 100%"));
    }
}

/// Whether a count or percentage is none at all.
pub fn is_none_at_all(value: &Value) -> bool {
    value.as_i64() == Some(0) || percent(value) == Some(0)
}

/// Octal permission bits.
pub fn mode(value: &Value, path: &str, errors: &mut Errors) {
    if let Some(mode) = value.as_i64().filter(|m| !(0..=0o777).contains(m)) {
        errors.push(FieldError::invalid(path, mode, "must be a number between 0 and 0777 (octal), both inclusive"));
    }
}

/// A path that stays below where it starts.
pub fn relative_path(value: &str, path: &str, errors: &mut Errors) {
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    no_backsteps(value, path, errors);
}

/// No `..` among the parts of a path.
pub fn no_backsteps(value: &str, path: &str, errors: &mut Errors) {
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
}

/// An IP address in canonical text.
pub fn ip(value: &str, path: &str, errors: &mut Errors) {
    if value.parse::<std::net::IpAddr>().is_err() {
        errors.push(FieldError::invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
    }
}

/// Whether text is an address block.
pub fn is_cidr(value: &str) -> bool {
    let Some((address, bits)) = value.split_once('/') else { return false };
    let canonical = !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && (bits == "0" || !bits.starts_with('0'));
    match address.parse::<std::net::IpAddr>() {
        Ok(ip) => canonical && bits.parse::<u8>().is_ok_and(|b| b <= if ip.is_ipv4() { 32 } else { 128 }),
        Err(_) => false,
    }
}

/// An address block.
pub fn cidr(value: &str, path: &str, errors: &mut Errors) {
    if !is_cidr(value) {
        let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
        errors.push(FieldError::invalid(path, value, detail));
    }
}

/// A key of a config map or secret.
pub fn data_key(key: &str) -> Vec<String> {
    const PATTERN: &str = "[-._a-zA-Z0-9]+";
    let mut errors = Vec::new();
    if key.len() > 253 {
        errors.push("must be no more than 253 bytes".to_owned());
    }
    if !full_match!(PATTERN, key) {
        errors.push(names::pattern_message(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            PATTERN,
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match key {
        "." | ".." => errors.push(format!("must not be '{key}'")),
        k if k.starts_with("..") => errors.push("must not start with '..'".into()),
        _ => {}
    }
    errors
}

/// A `metav1.LabelSelector`.
pub fn label_selector(selector: &Value, path: &str, errors: &mut Errors) {
    let labels = at(path, "matchLabels");
    for (key, value) in entries(&selector["matchLabels"]) {
        syntax(key, &labels, names::qualified_name, errors);
        syntax(text(value), &format!("{labels}[{key}]"), names::label_value, errors);
    }
    for (i, e) in list(&selector["matchExpressions"]).iter().enumerate() {
        let path = at_index(path, "matchExpressions", i);
        let values = list(&e["values"]);
        match text(&e["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                errors.push(FieldError::required(at(&path, "values"), "must be specified when `operator` is 'In' or 'NotIn'"))
            }
            "In" | "NotIn" => {}
            "Exists" | "DoesNotExist" if !values.is_empty() => errors
                .push(FieldError::forbidden(at(&path, "values"), "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")),
            "Exists" | "DoesNotExist" => {}
            other => errors.push(FieldError::invalid(at(&path, "operator"), other, "not a valid selector operator")),
        }
        syntax(text(&e["key"]), &at(&path, "key"), names::qualified_name, errors);
        for (j, value) in values.iter().enumerate() {
            syntax(text(value), &at_index(&path, "values", j), names::label_value, errors);
        }
    }
}

/// Whether a selector selects everything.
pub fn is_empty_selector(selector: &Value) -> bool {
    entries(&selector["matchLabels"]).next().is_none() && list(&selector["matchExpressions"]).is_empty()
}

/// An amount that is not negative; whole when `integer`.
pub fn amount(value: &Value, path: &str, integer: bool, errors: &mut Errors) {
    let Some(quantity) = Quantity::from_value(value) else { return };
    if quantity.nanos() < 0 {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
    if integer && !quantity.is_integer() {
        errors.push(FieldError::invalid(path, value.clone(), "must be an integer"));
    }
}

/// Adds an error for each repeated value of `key` in a list.
pub fn unique<'a>(items: &'a [Value], path: &str, list_key: &str, key: &str, errors: &mut Errors) {
    let mut seen: Vec<&'a str> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let value = text(&item[key]);
        if value.is_empty() {
            continue;
        }
        if seen.contains(&value) {
            errors.push(FieldError::duplicate(at(&at_index(path, list_key, i), key), value));
        }
        seen.push(value);
    }
}

/// How many of `keys` an object has.
pub fn given<'a>(object: &Value, keys: &[&'a str]) -> Vec<&'a str> {
    keys.iter().copied().filter(|k| has(object, k)).collect()
}

/// A time zone by name. Which ones exist only the controllers' machine knows: here the form is checked.
pub fn has_time_zone(zone: &str, path: &str, errors: &mut Errors) {
    if zone.is_empty() {
        errors.push(FieldError::invalid(path, zone, "timeZone must be nil or non-empty string"));
    } else if zone.eq_ignore_ascii_case("local") {
        errors.push(FieldError::invalid(
            path,
            zone,
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
        ));
    } else if !full_match!("[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}", zone) {
        errors.push(FieldError::invalid(path, zone, format!("unknown time zone {zone}")));
    }
}
