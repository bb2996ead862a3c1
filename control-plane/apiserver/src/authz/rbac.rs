//! Role-based access control over an index of roles and bindings, rebuilt when one of them changes.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::auth::{Attributes, Decision, UserInfo};
use crate::objects::Objects;

/// `rbac.authorization.k8s.io/v1 PolicyRule`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    pub verbs: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub api_groups: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub resources: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub non_resource_urls: Vec<String>,
}

/// A list that may be `null`.
fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

impl Rule {
    /// Whether the rule covers the request.
    pub fn allows(&self, a: &Attributes<'_>) -> bool {
        if !holds(&self.verbs, a.verb) {
            return false;
        }
        if a.resource.is_empty() {
            return self.non_resource_urls.iter().any(|url| url_matches(url, a.path));
        }
        holds(&self.api_groups, a.group)
            && self.resources.iter().any(|r| resource_matches(r, a.resource, a.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| n == a.name))
    }
}

fn holds(list: &[String], value: &str) -> bool {
    list.iter().any(|v| v == "*" || v == value)
}

fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => subresource.is_empty() && rule == resource,
        Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
        Some((of, sub)) => of == resource && sub == subresource && !sub.is_empty(),
    }
}

/// A rule's URL may end in `*`.
pub(super) fn url_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|start| path.starts_with(start))
}

const KINDS: [&str; 4] = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];

/// The authorizer.
pub struct Rbac {
    objects: Arc<dyn Objects>,
    index: RwLock<([u64; 4], Arc<Index>)>,
}

#[derive(Default)]
struct Index {
    cluster_roles: HashMap<String, Arc<[Rule]>>,
    /// By namespace and name.
    roles: HashMap<(String, String), Arc<[Rule]>>,
    /// What a subject (`u:NAME`, `g:GROUP`) is bound to.
    grants: HashMap<String, Vec<Grant>>,
}

struct Grant {
    /// Empty: everywhere.
    namespace: String,
    rules: Option<Arc<[Rule]>>,
    /// For the message when the role does not exist.
    role: String,
}

impl Rbac {
    pub fn new(objects: Arc<dyn Objects>) -> Rbac {
        Rbac { objects, index: RwLock::new(([u64::MAX; 4], Arc::default())) }
    }

    fn index(&self) -> Arc<Index> {
        // Read before the objects: a change in between makes the next request build again.
        let now = KINDS.map(|kind| self.objects.changed(kind));
        {
            let index = self.index.read();
            if index.0 == now {
                return index.1.clone();
            }
        }
        let mut index = self.index.write();
        if index.0 != now {
            *index = (now, Arc::new(Index::build(&*self.objects)));
        }
        index.1.clone()
    }

    /// RBAC's answer alone.
    pub fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let mut missing = Vec::new();
        let index = self.index();
        for grant in index.grants(attributes.user, attributes.namespace) {
            match &grant.rules {
                Some(rules) if rules.iter().any(|rule| rule.allows(attributes)) => return Decision::Allow,
                Some(_) => {}
                None => missing.push(format!("{} not found", grant.role)),
            }
        }
        missing.dedup();
        Decision::Deny(match missing.len() {
            0 => String::new(),
            1 => format!("RBAC: {}", missing[0]),
            _ => format!("RBAC: [{}]", missing.join(", ")),
        })
    }

    /// Every rule that applies to the user in the namespace (empty: only those that apply everywhere).
    pub fn rules_of(&self, user: &UserInfo, namespace: &str) -> Vec<Rule> {
        let index = self.index();
        index.grants(user, namespace).filter_map(|g| g.rules.as_ref()).flat_map(|rules| rules.iter().cloned()).collect()
    }

    /// The rules of a role (`namespace` non-empty) or cluster role.
    pub fn role(&self, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        let index = self.index();
        match namespace {
            "" => index.cluster_roles.get(name).cloned(),
            namespace => index.roles.get(&(namespace.to_string(), name.to_string())).cloned(),
        }
    }

    pub(super) fn rules_documents(&self, user: &UserInfo, namespace: &str) -> (Vec<Value>, Vec<Value>) {
        let rules = self.rules_of(user, namespace);
        let document = |rule: &Rule| serde_json::to_value(rule).unwrap_or_default();
        let resources = rules.iter().filter(|r| !r.resources.is_empty()).map(document).collect();
        let urls = rules.iter().filter(|r| !r.non_resource_urls.is_empty()).map(document).collect();
        (resources, urls)
    }
}

/// The `rules` of a role document.
pub fn rules(doc: &Value) -> Arc<[Rule]> {
    let list = doc["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(|rule| Rule::deserialize(rule).ok()).collect()
}

impl Index {
    fn build(objects: &dyn Objects) -> Index {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let mut index = Index::default();
        for doc in objects.list("clusterroles", "") {
            index.cluster_roles.insert(text(&doc["metadata"]["name"]), rules(&doc));
        }
        for doc in objects.list("roles", "") {
            index.roles.insert((text(&doc["metadata"]["namespace"]), text(&doc["metadata"]["name"])), rules(&doc));
        }
        for kind in ["clusterrolebindings", "rolebindings"] {
            for doc in objects.list(kind, "") {
                let namespace = if kind == "rolebindings" { text(&doc["metadata"]["namespace"]) } else { String::new() };
                let name = text(&doc["roleRef"]["name"]);
                let (rules, role) = match doc["roleRef"]["kind"].as_str() {
                    Some("ClusterRole") => (index.cluster_roles.get(&name), "clusterrole"),
                    Some("Role") => (index.roles.get(&(namespace.clone(), name.clone())), "role"),
                    _ => continue,
                };
                let rules = rules.cloned();
                let role = format!("{role}.rbac.authorization.k8s.io {name:?}");
                for subject in doc["subjects"].as_array().map(Vec::as_slice).unwrap_or_default() {
                    if let Some(key) = subject_key(subject, &namespace) {
                        let grant = Grant { namespace: namespace.clone(), rules: rules.clone(), role: role.clone() };
                        index.grants.entry(key).or_default().push(grant);
                    }
                }
            }
        }
        index
    }

    fn grants<'a>(&'a self, user: &'a UserInfo, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let subjects = std::iter::once(format!("u:{}", user.name)).chain(user.groups.iter().map(|g| format!("g:{g}")));
        subjects
            .filter_map(|subject| self.grants.get(&subject))
            .flatten()
            .filter(move |grant| grant.namespace.is_empty() || grant.namespace == namespace)
    }
}

fn subject_key(subject: &Value, binding_namespace: &str) -> Option<String> {
    let name = subject["name"].as_str()?;
    match subject["kind"].as_str()? {
        "User" => Some(format!("u:{name}")),
        "Group" => Some(format!("g:{name}")),
        "ServiceAccount" => {
            let namespace = subject["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(binding_namespace);
            (!namespace.is_empty()).then(|| format!("u:system:serviceaccount:{namespace}:{name}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::fixed::Fixed;

    fn request<'a>(user: &'a UserInfo, verb: &'a str, resource: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let path = if resource.is_empty() { name } else { "" };
        Attributes {
            user,
            verb,
            group,
            version: "v1",
            resource,
            subresource,
            namespace,
            name,
            path,
            field_selector: "",
            label_selector: "",
        }
    }

    fn rbac() -> (Arc<Fixed>, Rbac) {
        let objects = Arc::new(Fixed::new(vec![
            (
                "clusterroles",
                json!({"metadata": {"name": "reader"}, "rules": [
                {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log", "*/scale"]},
                {"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]}]}),
            ),
            (
                "roles",
                json!({"metadata": {"name": "named", "namespace": "a"}, "rules": [
                {"verbs": ["*"], "apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["web"]}]}),
            ),
            (
                "clusterrolebindings",
                json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
                "subjects": [{"kind": "Group", "name": "readers"}]}),
            ),
            (
                "rolebindings",
                json!({"metadata": {"name": "b", "namespace": "a"}, "roleRef": {"kind": "Role", "name": "named"},
                "subjects": [{"kind": "User", "name": "jo"}, {"kind": "ServiceAccount", "name": "bot"}]}),
            ),
            (
                "rolebindings",
                json!({"metadata": {"name": "c", "namespace": "c"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
                "subjects": [{"kind": "User", "name": "jo"}]}),
            ),
            (
                "rolebindings",
                json!({"metadata": {"name": "d", "namespace": "d"}, "roleRef": {"kind": "Role", "name": "gone"},
                "subjects": [{"kind": "User", "name": "jo"}]}),
            ),
        ]));
        (objects.clone(), Rbac::new(objects))
    }

    #[test]
    fn rules_allow_what_they_say_and_no_more() {
        let (_, rbac) = rbac();
        let reader = UserInfo { name: "r".into(), groups: vec!["readers".into()], ..UserInfo::default() };
        let jo = UserInfo { name: "jo".into(), ..UserInfo::default() };
        let bot = UserInfo { name: "system:serviceaccount:a:bot".into(), ..UserInfo::default() };
        let table = [
            (&reader, "get", "pods", "x", "p", true),
            (&reader, "get", "pods", "", "", true),
            (&reader, "delete", "pods", "x", "p", false),
            (&reader, "get", "pods/log", "x", "p", true),
            (&reader, "get", "pods/exec", "x", "p", false),
            (&reader, "get", "deployments/scale", "x", "p", true),
            (&reader, "get", "apps:pods", "x", "p", false),
            (&reader, "get", "", "", "/metrics", true),
            (&reader, "get", "", "", "/metrics/x", false),
            (&reader, "get", "", "", "/logs/x", true),
            (&reader, "post", "", "", "/metrics", false),
            (&jo, "delete", "apps:deployments", "a", "web", true),
            (&jo, "delete", "apps:deployments", "a", "other", false),
            (&jo, "list", "apps:deployments", "a", "", false),
            (&jo, "delete", "apps:deployments", "b", "web", false),
            (&jo, "get", "pods", "c", "p", true),
            (&jo, "get", "pods", "a", "p", false),
            (&bot, "patch", "apps:deployments", "a", "web", true),
        ];
        for (user, verb, resource, namespace, name, allowed) in table {
            let decision = rbac.authorize(&request(user, verb, resource, namespace, name));
            assert_eq!(decision == Decision::Allow, allowed, "{} {verb} {resource} {namespace}/{name}", user.name);
        }
        let missing = rbac.authorize(&request(&jo, "get", "pods", "d", "p"));
        assert_eq!(missing, Decision::Deny(r#"RBAC: role.rbac.authorization.k8s.io "gone" not found"#.into()));
    }

    #[test]
    fn a_new_binding_is_in_force_at_once() {
        let (objects, rbac) = rbac();
        let new = UserInfo { name: "new".into(), ..UserInfo::default() };
        assert_ne!(rbac.authorize(&request(&new, "get", "pods", "x", "p")), Decision::Allow);
        objects.add(
            "clusterrolebindings",
            json!({"metadata": {"name": "n"}, "roleRef": {"kind": "ClusterRole", "name": "reader"},
            "subjects": [{"kind": "User", "name": "new"}]}),
        );
        assert_eq!(rbac.authorize(&request(&new, "get", "pods", "x", "p")), Decision::Allow);
        let (resources, urls) = rbac.rules_documents(&new, "x");
        assert_eq!((resources.len(), urls.len()), (1, 1));
        assert_eq!(urls[0], json!({"verbs": ["get"], "nonResourceURLs": ["/metrics", "/logs/*"]}));
    }
}
