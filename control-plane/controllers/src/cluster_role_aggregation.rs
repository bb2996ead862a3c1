//! ClusterRole aggregation: roles that are the sum of other roles, chosen by label.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use xebec_loops::{Key, Outcome, Selector};

use crate::setup::Setup;

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let (client, roles) = (setup.client.clone(), setup.cache::<ClusterRole>());
    let cache = roles.clone();
    let queue = setup.control_loop("clusterrole-aggregation", &roles, 1, move |key| {
        let (client, cache) = (client.clone(), cache.clone());
        async move {
            let Some(role) = cache.get(&key) else { return Ok(Outcome::Done) };
            let Some(rules) = aggregate(&role, &cache.list()) else { return Ok(Outcome::Done) };
            if role.rules.as_deref().unwrap_or_default() == rules {
                return Ok(Outcome::Done);
            }
            let api: Api<ClusterRole> = Api::all(client);
            let patch = Patch::Merge(json!({
                "metadata": { "resourceVersion": role.metadata.resource_version }, "rules": rules }));
            cache.observe(api.patch(&key.name, &PatchParams::default(), &patch).await?);
            Ok(Outcome::Done)
        }
    });
    let all = roles.clone();
    roles.on_change(move |_| {
        for role in all.list().iter().filter(|r| r.aggregation_rule.is_some()) {
            queue.add(Key::of(&**role));
        }
    });
}

/// The rules of all roles that the role's selectors choose, each once, by role name. `None` if it aggregates nothing.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_deref().unwrap_or_default();
    let mut rules: Vec<PolicyRule> = Vec::new();
    let mut taken = std::collections::BTreeSet::new();
    for selector in selectors {
        let selector = Selector::from_label_selector(Some(selector));
        // The list is in name order.
        for other in all.iter().filter(|r| selector.matches(r.metadata.labels.as_ref())) {
            if other.metadata.name == role.metadata.name || !taken.insert(other.metadata.name.clone()) {
                continue;
            }
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::from_value;

    #[test]
    fn rules_of_chosen_roles_are_joined_once() {
        let role = |name: &str, label: &str, verbs: &[&str]| -> Arc<ClusterRole> {
            Arc::new(
                from_value(json!({"metadata": {"name": name, "labels": {"to": label}},
                "rules": verbs.iter().map(|v| json!({"verbs": [v]})).collect::<Vec<_>>()}))
                .unwrap(),
            )
        };
        let sum: ClusterRole = from_value(json!({"metadata": {"name": "sum", "labels": {"to": "x"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "x"}}]}}))
        .unwrap();
        let all = [role("a", "x", &["get", "list"]), role("b", "y", &["delete"]), role("c", "x", &["list", "watch"])];
        let rules = aggregate(&sum, &all).unwrap();
        let verbs: Vec<_> = rules.iter().map(|r| r.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
        assert_eq!(aggregate(&all[0], &all), None);
    }
}
