//! Nobody grants what they do not hold: the checks on writes of roles and bindings.

use serde_json::Value;

use xebec_api::status::{self, ApiError};

use super::rbac::{self, Rbac, Rule};
use crate::auth::{Attributes, Authorizer, Decision, MASTERS, UserInfo};

/// The parts of `wanted` that `held` does not cover, one rule each.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted.iter().flat_map(atoms).filter(|atom| !held.iter().any(|rule| covers(rule, atom))).collect()
}

/// A rule as rules of one verb, group, resource and name each.
fn atoms(rule: &Rule) -> Vec<Rule> {
    let mut atoms = Vec::new();
    for verb in &rule.verbs {
        for url in &rule.non_resource_urls {
            atoms.push(Rule { verbs: vec![verb.clone()], non_resource_urls: vec![url.clone()], ..Rule::default() });
        }
        for group in &rule.api_groups {
            for resource in &rule.resources {
                let atom = Rule {
                    verbs: vec![verb.clone()],
                    api_groups: vec![group.clone()],
                    resources: vec![resource.clone()],
                    ..Rule::default()
                };
                if rule.resource_names.is_empty() {
                    atoms.push(atom);
                } else {
                    atoms.extend(rule.resource_names.iter().map(|n| Rule { resource_names: vec![n.clone()], ..atom.clone() }));
                }
            }
        }
    }
    atoms
}

fn covers(rule: &Rule, atom: &Rule) -> bool {
    let one = |list: &[String], value: &str| list.iter().any(|v| v == "*" || v == value);
    if !one(&rule.verbs, &atom.verbs[0]) {
        return false;
    }
    if let Some(url) = atom.non_resource_urls.first() {
        return rule
            .non_resource_urls
            .iter()
            .any(|held| held == "*" || held == url || held.strip_suffix('*').is_some_and(|start| url.starts_with(start)));
    }
    let resource = &atom.resources[0];
    let resources = rule.resources.iter().any(|held| {
        held == "*" || held == resource || resource.split_once('/').is_some_and(|(_, sub)| held.strip_prefix("*/") == Some(sub))
    });
    let names = rule.resource_names.is_empty() || atom.resource_names.first().is_some_and(|n| rule.resource_names.contains(n));
    one(&rule.api_groups, &atom.api_groups[0]) && resources && names
}

/// Whether `user` may write this Role, ClusterRole, RoleBinding or ClusterRoleBinding (`kind` is the plural).
///
/// # Errors
/// 403 in upstream's words.
pub fn check(
    authorizer: &dyn Authorizer,
    rbac: &Rbac,
    user: &UserInfo,
    plural: &str,
    namespace: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if user.in_group(MASTERS) {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let may = |verb: &str, resource: &str, namespace: &str, name: &str| {
        let attributes = Attributes {
            user,
            verb,
            group: GROUP,
            version: "v1",
            resource,
            subresource: "",
            namespace,
            name,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        authorizer.authorize(&attributes) == Decision::Allow
    };
    let wanted = match plural {
        "roles" | "clusterroles" => {
            let same = old.is_some_and(|old| old["rules"] == object["rules"] && old["aggregationRule"] == object["aggregationRule"]);
            if same || may("escalate", plural, namespace, name) {
                return Ok(());
            }
            if object["aggregationRule"].is_object() {
                // An aggregated role may come to hold anything.
                let all = Rule { verbs: vec!["*".into()], api_groups: vec!["*".into()], resources: vec!["*".into()], ..Rule::default() };
                vec![all, Rule { verbs: vec!["*".into()], non_resource_urls: vec!["*".into()], ..Rule::default() }]
            } else {
                rbac::rules(object).to_vec()
            }
        }
        "rolebindings" | "clusterrolebindings" => {
            let same = old.is_some_and(|old| old["subjects"] == object["subjects"] && old["roleRef"] == object["roleRef"]);
            let role = object["roleRef"]["name"].as_str().unwrap_or_default();
            let (resource, role_namespace) = match object["roleRef"]["kind"].as_str() {
                Some("Role") => ("roles", namespace),
                _ => ("clusterroles", ""),
            };
            if same || may("bind", resource, namespace, role) {
                return Ok(());
            }
            match rbac.role(role_namespace, role) {
                Some(rules) => rules.to_vec(),
                None => {
                    let message = format!("{resource}.{GROUP} {role:?} not found");
                    let details = serde_json::json!({"name": role, "group": GROUP, "kind": resource});
                    return Err(ApiError { code: 404, reason: "NotFound", message, details });
                }
            }
        }
        _ => return Ok(()),
    };
    let missing = uncovered(&rbac.rules_of(user, namespace), &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(describe).collect();
    let why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        list.join("\n")
    );
    Err(status::forbidden_named(GROUP, plural, name, &why))
}

/// As Go prints a list of strings with `%q`.
fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" "))
}

fn describe(rule: &Rule) -> String {
    let list = |values: &[String]| values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(", ");
    let mut parts = Vec::new();
    for (name, values) in [
        ("APIGroups", &rule.api_groups),
        ("Resources", &rule.resources),
        ("NonResourceURLs", &rule.non_resource_urls),
        ("ResourceNames", &rule.resource_names),
        ("Verbs", &rule.verbs),
    ] {
        if !values.is_empty() {
            parts.push(format!("{name}:[{}]", list(values)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::authz::Chain;
    use crate::objects::fixed::Fixed;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        Rule { verbs: own(verbs), api_groups: own(groups), resources: own(resources), resource_names: own(names), ..Rule::default() }
    }

    #[test]
    fn covering_is_by_every_combination() {
        let held = [
            rule(&["get", "list"], &[""], &["pods"], &[]),
            rule(&["get"], &["apps"], &["*"], &["a"]),
            rule(&["get"], &["x"], &["*/status"], &[]),
        ];
        assert!(uncovered(&held, &[rule(&["get"], &[""], &["pods"], &["p"])]).is_empty());
        assert!(uncovered(&held, &[rule(&["get"], &["apps"], &["deployments/scale"], &["a"])]).is_empty());
        assert!(uncovered(&held, &[rule(&["get"], &["x"], &["y/status"], &[])]).is_empty());
        assert_eq!(uncovered(&held, &[rule(&["get", "delete"], &[""], &["pods", "secrets"], &[])]).len(), 3);
        assert_eq!(uncovered(&held, &[rule(&["get"], &["apps"], &["deployments"], &[])]).len(), 1);
        assert_eq!(uncovered(&held, &[rule(&["*"], &[""], &["pods"], &[])]).len(), 1);
    }

    #[test]
    fn only_held_permissions_are_granted() {
        let objects = Arc::new(Fixed::new(vec![
            (
                "clusterroles",
                json!({"metadata": {"name": "pods"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]}),
            ),
            ("clusterroles", json!({"metadata": {"name": "all"}, "rules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]})),
            (
                "clusterroles",
                json!({"metadata": {"name": "binder"}, "rules": [
                {"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["all"]}]}),
            ),
            (
                "clusterrolebindings",
                json!({"roleRef": {"kind": "ClusterRole", "name": "pods"}, "subjects": [{"kind": "User", "name": "jo"}]}),
            ),
            (
                "clusterrolebindings",
                json!({"roleRef": {"kind": "ClusterRole", "name": "binder"}, "subjects": [{"kind": "User", "name": "bi"}]}),
            ),
        ]));
        let chain = Chain::new(objects);
        let jo = UserInfo { name: "jo".into(), groups: vec!["g".into()], ..UserInfo::default() };
        let bi = UserInfo { name: "bi".into(), ..UserInfo::default() };
        let ask = |user: &UserInfo, plural: &str, doc: Value| check(&chain, chain.rbac(), user, plural, "a", &doc, None);
        let role = |verb: &str| json!({"metadata": {"name": "r"}, "rules": [{"verbs": [verb], "apiGroups": [""], "resources": ["pods"]}]});
        let bind = |to: &str| json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": to}});
        ask(&jo, "roles", role("get")).unwrap();
        let refused = ask(&jo, "roles", role("delete")).unwrap_err();
        assert_eq!(
            refused.message,
            "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"jo\" (groups=[\"g\"]) is attempting to grant RBAC permissions \
             not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        );
        ask(&jo, "rolebindings", bind("pods")).unwrap();
        assert_eq!(ask(&jo, "rolebindings", bind("all")).unwrap_err().code, 403);
        ask(&bi, "rolebindings", bind("all")).unwrap();
        assert_eq!(ask(&jo, "rolebindings", bind("none")).unwrap_err().code, 404);
        let unchanged = role("delete");
        check(&chain, chain.rbac(), &jo, "roles", "a", &unchanged, Some(&unchanged)).unwrap();
    }
}
