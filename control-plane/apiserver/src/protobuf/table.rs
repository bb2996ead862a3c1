//! The field numbers of the built-in kinds, read from `fields.txt` at first use.

use std::{collections::HashMap, sync::LazyLock};

/// What a field's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    String,
    Bytes,
    Bool,
    Int32,
    Int64,
    Double,
    Message(String),
    Special(Special),
}

/// Messages whose JSON is no object of their fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// Embedded JSON.
    Raw,
    /// A list of strings in a message.
    Strings,
    SchemaOrBool,
    SchemaOrArray,
    SchemaOrStrings,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    One,
    Repeated,
    Map,
    Inline,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    pub number: u32,
    pub name: String,
    pub kind: Kind,
    pub shape: Shape,
    /// Set to zero is not the same as not set.
    pub keeps_zero: bool,
}

static TABLE: LazyLock<HashMap<&'static str, Vec<Field>>> = LazyLock::new(|| parse(include_str!("fields.txt")));

/// The fields of a message, e.g. `core.v1.PodSpec`.
pub(super) fn named(message: &str) -> Option<&'static [Field]> {
    TABLE.get(message).map(Vec::as_slice)
}

/// The fields of a kind.
pub(super) fn of_kind(api_version: &str, kind: &str) -> Option<&'static [Field]> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    // Packages are named by the first label of the group; options may be sent in any group's version.
    let package = match group {
        "" => "core",
        "rbac.authorization.k8s.io" => "rbac",
        "flowcontrol.apiserver.k8s.io" => "flowcontrol",
        "meta.k8s.io" => "meta",
        other => other.split('.').next().unwrap_or_default(),
    };
    named(&format!("{package}.{version}.{kind}")).or_else(|| kind.ends_with("Options").then(|| named(&format!("meta.v1.{kind}"))).flatten())
}

fn parse(text: &'static str) -> HashMap<&'static str, Vec<Field>> {
    let mut table: HashMap<&str, Vec<Field>> = HashMap::new();
    let mut current = "";
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix(' ') {
            None => {
                current = line;
                table.entry(current).or_default();
            }
            Some(field) => table.entry(current).or_default().extend(parse_field(field)),
        }
    }
    table
}

fn parse_field(line: &str) -> Option<Field> {
    let mut parts = line.split(' ');
    let (number, name, mut type_) = (parts.next()?.parse().ok()?, parts.next()?.to_string(), parts.next()?);
    let mut shape = Shape::One;
    for (mark, marked) in [('*', Shape::Repeated), ('%', Shape::Map), ('~', Shape::Inline)] {
        if let Some(rest) = type_.strip_prefix(mark) {
            (shape, type_) = (marked, rest);
        }
    }
    let keeps_zero = type_.starts_with('?');
    let kind = match type_.trim_start_matches('?') {
        "s" => Kind::String,
        "y" => Kind::Bytes,
        "b" => Kind::Bool,
        "i" => Kind::Int32,
        "l" => Kind::Int64,
        "d" => Kind::Double,
        special if special.starts_with('!') => Kind::Special(match &special[1..] {
            "Quantity" => Special::Quantity,
            "IntOrString" => Special::IntOrString,
            "Time" => Special::Time,
            "MicroTime" => Special::MicroTime,
            "RawExtension" | "FieldsV1" | "JSON" => Special::Raw,
            "ExtraValue" | "Verbs" => Special::Strings,
            "JSONSchemaPropsOrBool" => Special::SchemaOrBool,
            "JSONSchemaPropsOrArray" => Special::SchemaOrArray,
            "JSONSchemaPropsOrStringArray" => Special::SchemaOrStrings,
            _ => return None,
        }),
        message => Kind::Message(message.to_string()),
    };
    // Quantities and the like are kept whatever they are: zero is a value of theirs.
    let keeps_zero = keeps_zero || matches!(kind, Kind::Special(_));
    Some(Field { number, name, kind, shape, keeps_zero })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_kind_and_every_message_named_is_in_the_table() {
        for resource in xebec_api::builtin::resources() {
            // Not in the published .proto files of v1 yet, or converted on the way in.
            let skipped = ["MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"].contains(&resource.kind.as_str());
            assert!(skipped || of_kind(&resource.api_version(), &resource.kind).is_some(), "{} {}", resource.api_version(), resource.kind);
        }
        for (message, fields) in TABLE.iter() {
            for field in fields {
                if let Kind::Message(name) = &field.kind {
                    assert!(named(name).is_some(), "{message}.{}: {name}", field.name);
                }
            }
        }
    }

    #[test]
    fn every_line_is_understood() {
        let lines = include_str!("fields.txt").lines().filter(|line| line.starts_with(' ')).count();
        assert_eq!(TABLE.values().map(Vec::len).sum::<usize>(), lines);
    }
}
