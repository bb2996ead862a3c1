//! The kinds that the API server offers, as loops that treat all kinds alike need them.

use std::sync::Arc;

use kube::discovery::{ApiResource, Discovery, Scope, verbs};
use xebec_loops::Error;

/// One kind, in its group's preferred version.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    /// The preferred version.
    pub version: String,
    /// CamelCase name.
    pub kind: String,
    /// Plural name, as in paths.
    pub plural: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Whether many can be deleted in one request.
    pub delete_collection: bool,
    /// Whether changes can be watched.
    pub watch: bool,
}

impl Kind {
    /// What a dynamic client needs.
    pub fn resource(&self) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }

    /// "v1" or "apps/v1".
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The group in an `apiVersion`.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Every kind whose objects can be listed and deleted, but for events, which nobody owns.
///
/// # Errors
/// When discovery fails.
pub async fn deletable(client: &kube::Client) -> Result<Vec<Arc<Kind>>, Error> {
    let found = Discovery::new(client.clone()).run_aggregated().await?;
    let mut kinds = Vec::new();
    for group in found.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let can = |verb| capabilities.supports_operation(verb);
            if !can(verbs::DELETE) || !can(verbs::LIST) || !can(verbs::GET) {
                continue;
            }
            kinds.push(Arc::new(Kind {
                group: resource.group,
                version: resource.version,
                kind: resource.kind,
                plural: resource.plural,
                namespaced: capabilities.scope == Scope::Namespaced,
                delete_collection: can(verbs::DELETE_COLLECTION),
                watch: can(verbs::WATCH),
            }));
        }
    }
    kinds.sort();
    Ok(kinds)
}
