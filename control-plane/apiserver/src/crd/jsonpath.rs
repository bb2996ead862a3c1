//! The part of JSONPath that printed columns and selectable fields use: `.a.b`, `['a.b']`, `[0]`, `[*]` and
//! `[?(@.type=="Ready")]`.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
    /// Elements whose field equals the text.
    Where(Vec<String>, String),
}

impl Path {
    /// `None` for what this subset does not read.
    pub fn parse(text: &str) -> Option<Path> {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix('.') {
                // Dots in a name are escaped.
                let mut name = String::new();
                let mut chars = after.char_indices().peekable();
                let mut end = after.len();
                while let Some((at, c)) = chars.next() {
                    match c {
                        '\\' => name.extend(chars.next().map(|(_, c)| c)),
                        '.' | '[' => {
                            end = at;
                            break;
                        }
                        c => name.push(c),
                    }
                }
                match name.as_str() {
                    "" => return None,
                    "*" => steps.push(Step::Every),
                    _ => steps.push(Step::Field(name)),
                }
                rest = &after[end..];
            } else if let Some(after) = rest.strip_prefix('[') {
                let end = closing(after)?;
                steps.push(bracket(&after[..end])?);
                rest = &after[end + 1..];
            } else {
                return None;
            }
        }
        Some(Path(steps))
    }

    /// Everything the path leads to.
    pub fn find<'a>(&self, doc: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![doc];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                match step {
                    Step::Field(name) => next.extend(value.get(name)),
                    Step::Index(index) => {
                        let list = value.as_array().map_or(&[][..], Vec::as_slice);
                        let at = if *index < 0 { list.len() as i64 + index } else { *index };
                        next.extend(usize::try_from(at).ok().and_then(|at| list.get(at)));
                    }
                    Step::Every => match value {
                        Value::Array(list) => next.extend(list),
                        Value::Object(map) => next.extend(map.values()),
                        _ => {}
                    },
                    Step::Where(fields, text) => {
                        let matches = |item: &&Value| {
                            let value = fields.iter().try_fold(*item, |value, field| value.get(field));
                            value.is_some_and(|v| v.as_str().map_or_else(|| &v.to_string() == text, |s| s == text))
                        };
                        next.extend(value.as_array().into_iter().flatten().filter(matches));
                    }
                }
            }
            found = next;
        }
        found
    }
}

/// Where the bracket ends, quotes respected.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, ']') => return Some(at),
            _ => {}
        }
    }
    None
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::Every);
    }
    if let Some(condition) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        let (left, right) = condition.split_once("==")?;
        let fields = left.trim().strip_prefix("@.")?.split('.').map(str::to_string).collect();
        return Some(Step::Where(fields, unquote(right.trim()).to_string()));
    }
    if let Ok(index) = text.parse() {
        return Some(Step::Index(index));
    }
    let name = unquote(text);
    (name != text).then(|| Step::Field(name.to_string()))
}

fn unquote(text: &str) -> &str {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return inner;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(path: &str, expected: Value) {
        let doc = json!({"spec": {"a.b": 1, "list": [{"n": 1}, {"n": 2}]}, "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "X", "status": "No"}]}});
        let found: Vec<Value> = Path::parse(path).unwrap().find(&doc).into_iter().cloned().collect();
        assert_eq!(Value::Array(found), expected, "{path}");
    }

    #[test]
    fn paths_lead_where_they_say() {
        check(".spec['a.b']", json!([1]));
        check(".spec.a\\.b", json!([1]));
        check(".spec.list[1].n", json!([2]));
        check(".spec.list[-1].n", json!([2]));
        check(".spec.list[*].n", json!([1, 2]));
        check(".status.conditions[?(@.type==\"Ready\")].status", json!(["True"]));
        check(".status.none.at.all", json!([]));
        for bad in ["spec", ".", ".a[", ".a[b]", ".a[?(x)]"] {
            assert_eq!(Path::parse(bad), None, "{bad}");
        }
    }
}
