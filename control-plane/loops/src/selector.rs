//! Label selectors, compiled once and matched often.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// A set of requirements that all must hold.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Selector {
    /// What an absent selector means: nothing matches.
    Nothing,
    /// Every requirement must hold; with none, everything matches.
    All(Vec<Requirement>),
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// How it is compared.
    pub operator: Operator,
}

/// How a label is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// The label has one of the values.
    In(Vec<String>),
    /// The label is absent or has none of the values.
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

impl Selector {
    /// Everything matches.
    pub const EVERYTHING: Selector = Selector::All(Vec::new());

    /// Compiles a `metav1.LabelSelector`; absent means nothing. An operator the API does not know matches nothing.
    pub fn from_label_selector(selector: Option<&LabelSelector>) -> Self {
        let Some(selector) = selector else { return Selector::Nothing };
        let mut all = Vec::new();
        for (key, value) in selector.match_labels.iter().flatten() {
            all.push(Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) });
        }
        for e in selector.match_expressions.iter().flatten() {
            let values = || e.values.clone().unwrap_or_default();
            let operator = match e.operator.as_str() {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Selector::Nothing,
            };
            all.push(Requirement { key: e.key.clone(), operator });
        }
        Selector::All(all)
    }

    /// Compiles a plain map of labels (a Service's selector); absent or empty means nothing.
    pub fn from_map(labels: Option<&BTreeMap<String, String>>) -> Self {
        match labels {
            Some(labels) if !labels.is_empty() => {
                Selector::All(labels.iter().map(|(k, v)| Requirement { key: k.clone(), operator: Operator::In(vec![v.clone()]) }).collect())
            }
            _ => Selector::Nothing,
        }
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let Selector::All(all) = self else { return false };
        all.iter().all(|r| r.matches(labels.and_then(|l| l.get(&r.key)).map(String::as_str)))
    }

    /// Whether there is no requirement at all.
    pub fn is_everything(&self) -> bool {
        matches!(self, Selector::All(all) if all.is_empty())
    }
}

impl Requirement {
    /// Whether a label with this value (`None`: absent) satisfies the requirement.
    pub fn matches(&self, value: Option<&str>) -> bool {
        match (&self.operator, value) {
            (Operator::In(values), Some(v)) => values.iter().any(|x| x == v),
            (Operator::In(_), None) => false,
            (Operator::NotIn(values), Some(v)) => !values.iter().any(|x| x == v),
            (Operator::NotIn(_), None) => true,
            (Operator::Exists, v) => v.is_some(),
            (Operator::DoesNotExist, v) => v.is_none(),
        }
    }
}

/// The selector in the query syntax that `status.selector` of a scale carries.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Selector::All(all) = self else { return Ok(()) };
        for (i, r) in all.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match &r.operator {
                Operator::In(v) if v.len() == 1 => write!(f, "{}={}", r.key, v[0])?,
                Operator::In(v) => write!(f, "{} in ({})", r.key, v.join(","))?,
                Operator::NotIn(v) => write!(f, "{} notin ({})", r.key, v.join(","))?,
                Operator::Exists => f.write_str(&r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    fn expression(key: &str, operator: &str, values: &[&str]) -> Selector {
        Selector::from_label_selector(Some(&LabelSelector {
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: key.into(),
                operator: operator.into(),
                values: Some(values.iter().map(|v| v.to_string()).collect()),
            }]),
            match_labels: None,
        }))
    }

    #[test]
    fn absent_selects_nothing_and_empty_selects_everything() {
        assert!(!Selector::from_label_selector(None).matches(Some(&labels(&[("a", "b")]))));
        assert!(Selector::from_label_selector(Some(&LabelSelector::default())).matches(None));
        assert!(!Selector::from_map(Some(&labels(&[]))).matches(None));
    }

    #[test]
    fn operators_follow_the_api() {
        let (ab, none) = (labels(&[("a", "b")]), labels(&[]));
        for (operator, values, with, without) in [
            ("In", &["b", "c"][..], true, false),
            ("In", &["c"], false, false),
            ("NotIn", &["b"], false, true),
            ("NotIn", &["c"], true, true),
            ("Exists", &[], true, false),
            ("DoesNotExist", &[], false, true),
            ("Near", &["b"], false, false),
        ] {
            let s = expression("a", operator, values);
            assert_eq!(s.matches(Some(&ab)), with, "{operator} {values:?} with the label");
            assert_eq!(s.matches(Some(&none)), without, "{operator} {values:?} without the label");
        }
    }
}
