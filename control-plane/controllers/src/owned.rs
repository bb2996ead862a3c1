//! Claiming objects by selector: adopt orphans that match, release owned ones that no longer do.

use std::sync::Arc;

use kube::Resource;
use kube::api::{Api, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;
use xebec_loops::meta::{controller_of, controller_reference, deleting, uid};
use xebec_loops::{Cache, Error, Key, Selector, ignore_not_found};

/// What to do with an object that may belong to an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Ours and it matches.
    Keep,
    /// Nobody's and it matches.
    Adopt,
    /// Ours and it matches no longer.
    Release,
    /// Not ours.
    Ignore,
}

/// Decides about one object.
pub fn claim<O: Resource, K: Resource>(owner: &O, selector: &Selector, object: &K) -> Claim {
    let matches = selector.matches(object.meta().labels.as_ref());
    match controller_of(object.meta()) {
        Some(c) if c.uid != uid(owner.meta()) => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if deleting(owner.meta()) => Claim::Ignore,
        Some(_) => Claim::Release,
        None if deleting(owner.meta()) || deleting(object.meta()) || !matches => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The objects of the owner's namespace that are its own, after adopting and releasing.
///
/// # Errors
/// Any refusal of the API, except that an object vanished meanwhile.
pub async fn claim_all<O, K>(client: &kube::Client, cache: &Cache<K>, owner: &O, selector: &Selector) -> Result<Vec<Arc<K>>, Error>
where
    O: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    O: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    let namespace = owner.meta().namespace.clone().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let mut mine = Vec::new();
    let mut may_adopt = None;
    for object in cache.in_namespace(&namespace) {
        match claim(owner, selector, &*object) {
            Claim::Ignore => {}
            Claim::Keep => mine.push(object),
            Claim::Adopt => {
                // The cache may lag behind: never adopt for an owner that is gone or was replaced.
                let allowed = match may_adopt {
                    Some(allowed) => allowed,
                    None => {
                        let api: Api<O> = Api::namespaced(client.clone(), &namespace);
                        let fresh = api.get_opt(owner.meta().name.as_deref().unwrap_or_default()).await?;
                        fresh.is_some_and(|f| uid(f.meta()) == uid(owner.meta()) && !deleting(f.meta()))
                    }
                };
                may_adopt = Some(allowed);
                if !allowed {
                    continue;
                }
                let patch = json!({ "metadata": {
                    "uid": uid(object.meta()), "ownerReferences": [controller_reference(owner)] } });
                if let Some(adopted) = write(&api, &*object, patch).await? {
                    cache.observe(adopted.clone());
                    mine.push(Arc::new(adopted));
                }
            }
            Claim::Release => {
                let patch = json!({ "metadata": { "uid": uid(object.meta()),
                    "ownerReferences": [{ "$patch": "delete", "uid": uid(owner.meta()) }] } });
                if let Some(released) = write(&api, &*object, patch).await? {
                    cache.observe(released);
                }
            }
        }
    }
    Ok(mine)
}

async fn write<K>(api: &Api<K>, object: &K, patch: serde_json::Value) -> Result<Option<K>, Error>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let name = Key::of_meta(object.meta()).name;
    let answer = api.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await;
    match ignore_not_found(answer) {
        Ok(object) => Ok(object),
        // The uid in the patch no longer fits: another object has the name now.
        Err(kube::Error::Api(s)) if s.reason == "Invalid" || s.reason == "Conflict" => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{Value, from_value, json};

    #[test]
    fn claims_follow_ownership_selector_and_deletion() {
        let owner = |deleted: bool| -> ReplicaSet {
            let mut v = json!({"metadata": {"name": "rs", "uid": "me"}});
            if deleted {
                v["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
            }
            from_value(v).unwrap()
        };
        let pod = |owner: Option<&str>, matches: bool, deleted: bool| -> Pod {
            let mut v: Value = json!({"metadata": {"labels": {"a": if matches { "b" } else { "c" }}}});
            if let Some(uid) = owner {
                v["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid, "controller": true}]);
            }
            if deleted {
                v["metadata"]["deletionTimestamp"] = json!("2024-01-01T00:00:00Z");
            }
            from_value(v).unwrap()
        };
        let selector = Selector::from_map(Some(&[("a".to_owned(), "b".to_owned())].into()));
        for (owned_by, matches, pod_deleted, owner_deleted, want) in [
            (Some("me"), true, false, false, Claim::Keep),
            (Some("me"), true, true, true, Claim::Keep),
            (Some("me"), false, false, false, Claim::Release),
            (Some("me"), false, false, true, Claim::Ignore),
            (Some("other"), true, false, false, Claim::Ignore),
            (None, true, false, false, Claim::Adopt),
            (None, true, true, false, Claim::Ignore),
            (None, true, false, true, Claim::Ignore),
            (None, false, false, false, Claim::Ignore),
        ] {
            let got = claim(&owner(owner_deleted), &selector, &pod(owned_by, matches, pod_deleted));
            assert_eq!(got, want, "{owned_by:?} {matches} {pod_deleted} {owner_deleted}");
        }
    }
}
