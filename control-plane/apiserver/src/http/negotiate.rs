//! Content negotiation: what the client sends and what it wants back.

use http::{HeaderMap, header};
use xebec_api::status::{self, ApiError};

/// The encoding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Json,
    /// Indented JSON, for `?pretty=true`.
    JsonPretty,
    Yaml,
}

/// The shape in which objects are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Object,
    /// `meta.k8s.io/v1 Table` (v1beta1 is answered in the version asked for).
    Table {
        v1beta1: bool,
    },
    /// `PartialObjectMetadata` or its list.
    Metadata {
        v1beta1: bool,
    },
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub format: Format,
    pub shape: Shape,
}

/// One range of an `Accept` header.
struct Range<'a> {
    main: &'a str,
    sub: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

fn ranges(headers: &HeaderMap) -> Vec<Range<'_>> {
    let mut ranges = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        for part in value.to_str().unwrap_or_default().split(',') {
            let mut pieces = part.split(';').map(str::trim);
            let media = pieces.next().unwrap_or_default();
            let Some((main, sub)) = media.split_once('/').or_else(|| (media == "*").then_some(("*", "*"))) else { continue };
            let mut range = Range { main, sub, parameters: Vec::new(), quality: 1.0 };
            for piece in pieces {
                let Some((key, value)) = piece.split_once('=') else { continue };
                let (key, value) = (key.trim(), value.trim().trim_matches('"'));
                if key == "q" {
                    range.quality = value.parse().unwrap_or(0.0);
                } else {
                    range.parameters.push((key, value));
                }
            }
            ranges.push(range);
        }
    }
    // Stable: equal quality keeps the client's order.
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    ranges
}

/// Chooses format and shape from `Accept`. `shapes` says whether Table and PartialObjectMetadata make sense here.
///
/// # Errors
/// 406 when nothing the client accepts can be made.
pub fn accept(headers: &HeaderMap, pretty: bool, shapes: bool) -> Result<Wanted, ApiError> {
    let json = if pretty { Format::JsonPretty } else { Format::Json };
    let ranges = ranges(headers);
    if ranges.is_empty() {
        return Ok(Wanted { format: json, shape: Shape::Object });
    }
    for range in &ranges {
        if range.quality == 0.0 {
            continue;
        }
        let format = match (range.main, range.sub) {
            ("*" | "application", "*") | ("application", "json") => json,
            ("application", "yaml") => Format::Yaml,
            _ => continue,
        };
        let parameter = |name: &str| range.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let shape = match parameter("as") {
            None => Shape::Object,
            Some(as_) if shapes && parameter("g").unwrap_or("meta.k8s.io") == "meta.k8s.io" => {
                let v1beta1 = match parameter("v") {
                    Some("v1") | None => false,
                    Some("v1beta1") => true,
                    Some(_) => continue,
                };
                match as_ {
                    "Table" => Shape::Table { v1beta1 },
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata { v1beta1 },
                    _ => continue,
                }
            }
            Some(_) => continue,
        };
        return Ok(Wanted { format, shape });
    }
    Err(status::not_acceptable(&["application/json", "application/yaml"]))
}

/// Format for an error: never fails, JSON if nothing else fits.
pub fn accept_for_error(headers: &HeaderMap) -> Format {
    accept(headers, false, true).map_or(Format::Json, |wanted| wanted.format)
}

/// The media type of the request's body without parameters, lower case; empty if there is none.
pub fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether the client takes gzip.
pub fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|part| {
        let mut pieces = part.split(';').map(str::trim);
        let coding = pieces.next().unwrap_or_default();
        coding.eq_ignore_ascii_case("gzip") && !pieces.any(|p| p.replace(' ', "") == "q=0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept_header: &str, expected: Option<(Format, Shape)>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept_header.parse().unwrap());
        let got = accept(&headers, false, true).ok().map(|w| (w.format, w.shape));
        assert_eq!(got, expected, "{accept_header}");
    }

    #[test]
    fn accept_headers_of_common_clients() {
        let table = Shape::Table { v1beta1: false };
        check("application/json", Some((Format::Json, Shape::Object)));
        check("*/*", Some((Format::Json, Shape::Object)));
        check("application/yaml", Some((Format::Yaml, Shape::Object)));
        check("application/vnd.kubernetes.protobuf,application/json", Some((Format::Json, Shape::Object)));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
            Some((Format::Json, table)),
        );
        check(
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Format::Json, Shape::Metadata { v1beta1: false })),
        );
        check("application/json;q=0.5, application/yaml", Some((Format::Yaml, Shape::Object)));
        check("application/vnd.kubernetes.protobuf", None);
        check("text/html", None);
        check("application/json;as=Nonsense;v=v1;g=meta.k8s.io", None);
    }
}
