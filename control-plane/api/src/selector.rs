//! Label and field selectors: parsing with upstream's error texts, and matching.

use std::fmt;

use serde_json::Value;

use crate::{
    Document,
    resource::Resource,
    status::{ApiError, FieldError, bad_request},
    validate::names,
};

/// How a requirement compares.
#[derive(Debug, Clone, PartialEq)]
enum Op {
    Exists,
    DoesNotExist,
    In(Vec<String>),
    NotIn(Vec<String>),
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Debug, Clone, PartialEq)]
struct Requirement {
    key: String,
    op: Op,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        match &self.op {
            Op::Exists => value.is_some(),
            Op::DoesNotExist => value.is_none(),
            Op::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
            // An absent label is not in any set.
            Op::NotIn(values) => value.is_none_or(|v| !values.iter().any(|w| w == v)),
            Op::GreaterThan(bound) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v > *bound),
            Op::LessThan(bound) => value.and_then(|v| v.parse::<i64>().ok()).is_some_and(|v| v < *bound),
        }
    }
}

/// `app=web,tier in (a,b),!legacy`. The empty selector matches everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// A selector that selects nothing, as a missing `metav1.LabelSelector`.
    nothing: bool,
}

impl LabelSelector {
    /// Parses the query form. Errors are 400 with the parser's message.
    pub fn parse(text: &str) -> Result<LabelSelector, ApiError> {
        let requirements = Parser { tokens: lex(text), at: 0 }.parse().map_err(bad_request)?;
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// From a `metav1.LabelSelector` document; `null` selects nothing, `{}` everything.
    /// An unusable operator or value selects nothing: validation reports it.
    pub fn from_document(selector: &Value) -> LabelSelector {
        let nothing = LabelSelector { requirements: Vec::new(), nothing: true };
        if selector.is_null() {
            return nothing;
        }
        let mut requirements: Vec<Requirement> = string_map(selector.get("matchLabels"))
            .map(|(key, value)| Requirement { key: key.into(), op: Op::In(vec![value.into()]) })
            .collect();
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values: Vec<String> = expression["values"]
                .as_array()
                .map(|v| v.iter().filter_map(Value::as_str).map(str::to_owned).collect())
                .unwrap_or_default();
            let op = match expression["operator"].as_str() {
                Some("In") => Op::In(values),
                Some("NotIn") => Op::NotIn(values),
                Some("Exists") => Op::Exists,
                Some("DoesNotExist") => Op::DoesNotExist,
                _ => return nothing,
            };
            requirements.push(Requirement { key, op });
        }
        LabelSelector { requirements, nothing: false }
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether an object with these labels is selected; `label` looks one up.
    pub fn matches_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether `doc` is selected by its `metadata.labels`.
    pub fn matches(&self, doc: &Document) -> bool {
        self.matches_map(&doc["metadata"]["labels"])
    }

    /// Whether a JSON object of labels is selected.
    pub fn matches_map(&self, labels: &Value) -> bool {
        self.matches_labels(|key| labels.get(key).and_then(Value::as_str))
    }
}

/// The query form; parses back to the same selector.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Requirement { key, op }) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match op {
                Op::Exists => write!(f, "{key}")?,
                Op::DoesNotExist => write!(f, "!{key}")?,
                Op::In(v) if v.len() == 1 => write!(f, "{key}={}", v[0])?,
                Op::In(v) => write!(f, "{key} in ({})", v.join(","))?,
                Op::NotIn(v) if v.len() == 1 => write!(f, "{key}!={}", v[0])?,
                Op::NotIn(v) => write!(f, "{key} notin ({})", v.join(","))?,
                Op::GreaterThan(n) => write!(f, "{key}>{n}")?,
                Op::LessThan(n) => write!(f, "{key}<{n}")?,
            }
        }
        Ok(())
    }
}

fn string_map(value: Option<&Value>) -> impl Iterator<Item = (&str, &str)> {
    value.and_then(Value::as_object).into_iter().flatten().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)))
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    /// A run of special characters that is no symbol.
    Bad(String),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(w) | Token::Bad(w) => w,
            Token::Symbol(s) => s,
            Token::End => "",
        }
    }
    fn is(&self, symbol: &str) -> bool {
        matches!(self, Token::Symbol(s) if *s == symbol)
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn lex(text: &str) -> Vec<Token> {
    let special = |c: char| "=!(),><".contains(c);
    let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(space);
    while let Some(first) = rest.chars().next() {
        let (token, used) = if special(first) {
            match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
                Some(symbol) => (Token::Symbol(symbol), symbol.len()),
                None => (Token::Bad(first.to_string()), first.len_utf8()),
            }
        } else {
            let end = rest.find(|c| special(c) || space(c)).unwrap_or(rest.len());
            (Token::Word(rest[..end].to_owned()), end)
        };
        tokens.push(token);
        rest = rest[used..].trim_start_matches(space);
    }
    tokens
}

/// Recursive descent over the tokens, with the error texts of apimachinery's parser.
struct Parser {
    tokens: Vec<Token>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.at).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn parse(mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {
                    let r = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(r);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        Token::Symbol(",") => match self.peek() {
                            Token::Word(_) | Token::Symbol("!") => {}
                            t => return Err(format!("found '{}', expected: identifier after ','", t.text())),
                        },
                        t => return Err(format!("found '{}', expected: ',' or 'end of string'", t.text())),
                    }
                }
                Token::End => return Ok(requirements),
                t => return Err(format!("found '{}', expected: !, identifier, or 'end of string'", t.text())),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let absent = self.peek().is("!");
        if absent {
            self.at += 1;
        }
        let Token::Word(key) = self.next() else {
            self.at -= 1;
            return Err(format!("found '{}', expected: identifier", self.peek().text()));
        };
        if let Some(message) = names::qualified_name(&key).into_iter().next() {
            return Err(FieldError::invalid("key", key, message).to_string());
        }
        if absent {
            return Ok(Requirement { key, op: Op::DoesNotExist });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement { key, op: Op::Exists });
        }
        let op = match self.next() {
            Token::Symbol("=" | "==") => Op::In(vec![self.exact_value()?]),
            Token::Symbol("!=") => Op::NotIn(vec![self.exact_value()?]),
            Token::Symbol(">") => Op::GreaterThan(self.integer(">")?),
            Token::Symbol("<") => Op::LessThan(self.integer("<")?),
            Token::Word(w) if w == "in" => Op::In(self.values()?),
            Token::Word(w) if w == "notin" => Op::NotIn(self.values()?),
            t => return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", t.text())),
        };
        if let Op::In(values) | Op::NotIn(values) = &op {
            for (i, value) in values.iter().enumerate() {
                if let Some(message) = names::label_value(value).into_iter().next() {
                    return Err(FieldError::invalid(format!("values[{i}][{key}]"), value.as_str(), message).to_string());
                }
            }
        }
        Ok(Requirement { key, op })
    }

    fn exact_value(&mut self) -> Result<String, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(String::new()),
            Token::Word(w) => {
                self.at += 1;
                Ok(w)
            }
            t => Err(format!("found '{}', expected: identifier", t.text())),
        }
    }

    fn integer(&mut self, _op: &str) -> Result<i64, String> {
        let text = self.exact_value()?;
        let invalid = || {
            let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
            FieldError::invalid("values[0]", text.as_str(), detail).to_string()
        };
        text.parse().map_err(|_| invalid())
    }

    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if !open.is("(") {
            return Err(format!("found '{}' expected: '('", open.text()));
        }
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(w) => {
                    values.push(w);
                    match self.next() {
                        Token::Symbol(",") => {
                            if self.peek().is(")") {
                                values.push(String::new());
                            }
                        }
                        Token::Symbol(")") => break,
                        t => return Err(format!("found '{}', expected: ',' or ')'", t.text())),
                    }
                }
                Token::Symbol(",") => {
                    values.push(String::new());
                    if self.peek().is(")") {
                        values.push(String::new());
                    }
                }
                Token::Symbol(")") => {
                    if values.is_empty() {
                        values.push(String::new());
                    }
                    break;
                }
                t => return Err(format!("found '{}', expected: ',', ')' or identifier", t.text())),
            }
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

/// `metadata.name=a,status.phase!=Running`. The empty selector matches everything.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FieldSelector {
    /// (field, value, equal or not).
    terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Parses the query form; errors are 400. Which fields exist depends on the kind: see [`FieldSelector::check`].
    pub fn parse(text: &str) -> Result<FieldSelector, ApiError> {
        let mut terms = Vec::new();
        for part in split_unescaped(text) {
            if part.is_empty() {
                continue;
            }
            let (field, op, value) =
                split_term(part).ok_or_else(|| bad_request(format!("invalid selector: '{text}'; can't understand '{part}'")))?;
            terms.push((field.to_owned(), unescape(value).map_err(bad_request)?, op != "!="));
        }
        Ok(FieldSelector { terms })
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value `field` must equal, if the selector says so.
    pub fn exact(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|(f, _, equal)| f == field && *equal).map(|(_, value, _)| value.as_str())
    }

    /// Errors (400) when a field is not selectable for the kind.
    pub fn check(&self, resource: &Resource) -> Result<(), ApiError> {
        let own = resource.hooks.selectable_fields(&Value::Null);
        for (field, _, _) in &self.terms {
            if field == "metadata.name"
                || (field == "metadata.namespace" && resource.is_namespaced())
                || own.iter().any(|(name, _)| name == field)
            {
                continue;
            }
            return Err(bad_request(if own.is_empty() {
                format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            } else {
                format!("field label not supported: {field}")
            }));
        }
        Ok(())
    }

    /// Whether an object is selected; `field` looks up a value, absent counts as empty.
    pub fn matches_fields<'a>(&self, field: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.terms.iter().all(|(name, value, equal)| (field(name).unwrap_or_default() == value) == *equal)
    }

    /// Whether `doc` is selected.
    pub fn matches(&self, resource: &Resource, doc: &Document) -> bool {
        if self.terms.is_empty() {
            return true;
        }
        let own = resource.hooks.selectable_fields(doc);
        self.matches_fields(|name| match name {
            "metadata.name" => doc["metadata"]["name"].as_str(),
            "metadata.namespace" => doc["metadata"]["namespace"].as_str(),
            _ => own.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str()),
        })
    }
}

/// Commas separate, unless escaped.
fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn split_term(part: &str) -> Option<(&str, &str, &str)> {
    (0..part.len())
        .filter(|i| part.is_char_boundary(*i))
        .find_map(|i| ["!=", "==", "="].iter().find(|op| part[i..].starts_with(**op)).map(|op| (&part[..i], *op, &part[i + op.len()..])))
}

fn unescape(value: &str) -> Result<String, String> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(c) => return Err(format!("invalid field selector: invalid escape sequence: \\{c}")),
                None => return Err("invalid field selector: invalid escape sequence: \\".into()),
            },
            ',' | '=' => return Err(format!("invalid field selector: unescaped {c} in value: {value}")),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn selects(selector: &str, labels: Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches_map(&labels)
    }

    #[test]
    fn labels_match() {
        for (selector, want) in [
            ("", true),
            ("a=1", true),
            ("a==1,b", true),
            ("a!=1", false),
            ("c!=1", true),
            ("!c", true),
            ("!a", false),
            ("a in (1,2)", true),
            ("a notin (1,2)", false),
            ("c notin (1)", true),
            ("a in ( 2 , 3 )", false),
            ("a>0", true),
            ("a<1", false),
            ("b=", true),
            ("in=x", false),
        ] {
            assert_eq!(selects(selector, json!({"a": "1", "b": ""})), want, "{selector}");
        }
    }

    #[test]
    fn errors_are_upstreams() {
        for (selector, want) in [
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().message, want, "{selector}");
        }
    }

    #[test]
    fn documents_select() {
        let s = LabelSelector::from_document(&json!({"matchLabels": {"a": "1"}, "matchExpressions": [
            {"key": "b", "operator": "NotIn", "values": ["x"]}]}));
        assert!(s.matches_map(&json!({"a": "1"})));
        assert!(!s.matches_map(&json!({"a": "1", "b": "x"})));
        assert!(!LabelSelector::from_document(&Value::Null).matches_map(&json!({})));
        assert!(LabelSelector::from_document(&json!({})).matches_map(&json!({})));
    }

    #[test]
    fn fields_match_and_fail() {
        let s = FieldSelector::parse("metadata.name=a,x!=b\\,c").unwrap();
        assert_eq!(s.exact("metadata.name"), Some("a"));
        assert!(s.matches_fields(|f| if f == "x" { Some("b") } else { Some("a") }));
        assert!(!s.matches_fields(|f| if f == "x" { Some("b,c") } else { Some("a") }));
        assert_eq!(FieldSelector::parse("a").unwrap_err().message, "invalid selector: 'a'; can't understand 'a'");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn prints_what_it_parsed(text in "(!?[ab](=|!=)?[xy]?|[ab] (in|notin) \\([xy](,[xyz])?\\)|[ab][<>][0-9])(,[cd]=[xy]?)?") {
            if let Ok(s) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&s.to_string()).unwrap(), s);
            }
        }
    }
}
