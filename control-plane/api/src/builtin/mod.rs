//! The table of built-in kinds.

mod table;

use std::sync::LazyLock;

use crate::{
    kinds,
    resource::{Resource, Subresource},
};

static RESOURCES: LazyLock<Vec<Resource>> = LazyLock::new(|| table::ROWS.iter().map(resource).collect());

/// Kinds whose registry upstream creates an object that an update names but that is not there.
const CREATES_ON_UPDATE: &[&str] =
    &["Endpoints", "Event", "Lease", "LimitRange", "PodTemplate", "Service", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];

/// Kinds whose updates must name the revision they are based on.
const CONDITIONAL_UPDATE: &[&str] = &[
    "APIService",
    "CustomResourceDefinition",
    "CSIDriver",
    "CSINode",
    "CSIStorageCapacity",
    "Lease",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "PodDisruptionBudget",
    "RuntimeClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
    "VolumeAttachment",
];

/// Every built-in kind, one row each, in the order discovery lists groups.
pub fn resources() -> &'static [Resource] {
    &RESOURCES
}

/// The row of `group`/`version` whose plural is `plural`.
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    resources().iter().find(|r| r.plural == plural && r.group == group && r.version == version)
}

/// The row of `api_version` (`v1`, `apps/v1`) and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    resources().iter().find(|r| r.kind == kind && r.api_version() == api_version)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn resource(row: &table::Row) -> Resource {
    let mut resource = Resource {
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        plural: row.plural.into(),
        singular: row.kind.to_lowercase(),
        list_kind: format!("{}List", row.kind),
        short_names: words(row.short),
        categories: words(row.categories),
        scope: row.scope,
        verbs: row.verbs.to_vec(),
        subresources: row.subresources.iter().map(|&(name, kind, verbs)| Subresource { name, kind, verbs: verbs.to_vec() }).collect(),
        storage_prefix: row.storage.unwrap_or(row.plural).into(),
        storage_api_version: String::new(),
        counts_generation: row.generation,
        creates_on_update: CREATES_ON_UPDATE.contains(&row.kind),
        unconditional_update: !CONDITIONAL_UPDATE.contains(&row.kind),
        hooks: kinds::hooks(row.group, row.version, row.kind, row.subresources.iter().any(|(name, ..)| *name == "status")),
    };
    resource.storage_api_version = row.stored_as.map_or_else(|| resource.api_version(), str::to_owned);
    resource
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Verb;

    #[test]
    fn rows_are_unique() {
        let mut seen = std::collections::HashSet::new();
        for r in resources() {
            assert!(seen.insert((&r.group, &r.version, &r.plural)), "{} twice", r.plural);
            assert!(r.verbs.contains(&Verb::Create) || r.kind == "ComponentStatus");
            assert_eq!(r.storage_prefix.is_empty(), !r.verbs.contains(&Verb::Watch), "{}", r.kind);
        }
    }

    #[test]
    fn storage_follows_kube_apiserver() {
        let prefix = |group: &str, plural: &str| by_plural(group, "v1", plural).unwrap().storage_prefix.clone();
        assert_eq!(prefix("", "nodes"), "minions");
        assert_eq!(prefix("", "services"), "services/specs");
        assert_eq!(prefix("", "endpoints"), "services/endpoints");
        assert_eq!(prefix("", "replicationcontrollers"), "controllers");
        assert_eq!(prefix("networking.k8s.io", "ingresses"), "ingress");
        assert_eq!(prefix("autoscaling", "horizontalpodautoscalers"), "horizontalpodautoscalers");
        assert_eq!(by_kind("events.k8s.io/v1", "Event").unwrap().storage_api_version, "v1");
    }
}
