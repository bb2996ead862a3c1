//! ServiceAccount: every pod runs as one, and finds its token, the cluster's CA and its namespace in a volume.

use std::time::Duration;

use serde_json::{Value, json};
use xebec_api::{
    meta,
    status::ApiError,
    value::{list, text},
};

use super::{BuiltIn, refuse};
use crate::extension::Change;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// Of pods that a node runs by itself and mirrors into the API.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Tokens in pods are asked for with this lifetime, which the server knows to prolong.
const TOKEN_SECONDS: i64 = 3607;
/// A namespace's default account is made by a controller, right after the namespace.
const TRIES: usize = 10;
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn mutate(plugins: &BuiltIn, change: &mut Change<'_>) -> Result<(), ApiError> {
    let Some(pod) = change.object.as_ref().filter(|pod| pod["spec"].is_object()) else { return Ok(()) };
    let spec = &pod["spec"];
    if pod["metadata"]["annotations"].get(MIRROR).is_some() {
        if !text(&spec["serviceAccountName"]).is_empty() {
            return Err(refuse(change, "a mirror pod may not reference service accounts"));
        }
        if list(&spec["volumes"]).iter().any(|v| list(&v["projected"]["sources"]).iter().any(|s| s["serviceAccountToken"].is_object())) {
            return Err(refuse(change, "a mirror pod may not use ServiceAccountToken volume projections"));
        }
        return Ok(());
    }
    let named = [&spec["serviceAccountName"], &spec["serviceAccount"]].into_iter().map(text).find(|n| !n.is_empty());
    let name = named.unwrap_or("default").to_string();
    let mut account = None;
    for attempt in 0..TRIES {
        account = plugins.fresh("serviceaccounts", change.namespace, &name).await?;
        if account.is_some() || (name != "default" && attempt > 0) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let Some(account) = account else {
        let why = format!("error looking up service account {}/{name}: serviceaccount {name:?} not found", change.namespace);
        return Err(refuse(change, why));
    };
    if let Some(pod) = change.object.as_mut() {
        apply(pod, &account, &meta::suffix(rand::random()));
    }
    Ok(())
}

/// What a pod takes from its account; `suffix` ends the volume's name.
fn apply(pod: &mut Value, account: &Value, suffix: &str) {
    let spec = &mut pod["spec"];
    spec["serviceAccountName"] = meta::name(account).into();
    spec["serviceAccount"] = meta::name(account).into();
    if list(&spec["imagePullSecrets"]).is_empty() && !list(&account["imagePullSecrets"]).is_empty() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    let flag = |v: &Value| v["automountServiceAccountToken"].as_bool();
    if !flag(spec).or(flag(account)).unwrap_or(true) {
        return;
    }
    let present = list(&spec["volumes"]).iter().find(|v| text(&v["name"]).starts_with(VOLUME) && v["projected"].is_object());
    let (volume, exists) = match present {
        Some(volume) => (text(&volume["name"]).to_string(), true),
        None => (format!("{VOLUME}{suffix}"), false),
    };
    let mount = json!({"name": volume, "readOnly": true, "mountPath": MOUNT_PATH});
    let mut mounted = false;
    for kind in ["initContainers", "containers"] {
        for container in spec[kind].as_array_mut().into_iter().flatten().filter(|c| c.is_object()) {
            if list(&container["volumeMounts"]).iter().any(|m| m["mountPath"] == MOUNT_PATH) {
                continue;
            }
            push(container, "volumeMounts", mount.clone());
            mounted = true;
        }
        // Indexing made the field where there was none.
        if spec[kind].is_null()
            && let Some(spec) = spec.as_object_mut()
        {
            spec.remove(kind);
        }
    }
    if mounted && !exists {
        push(
            spec,
            "volumes",
            json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
            ]}}),
        );
    }
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(items) => items.push(item),
        None => object[field] = json!([item]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::auth::UserInfo;

    fn objects() -> Vec<(&'static str, Value)> {
        vec![
            ("namespaces", json!({"metadata": {"name": "a"}})),
            ("serviceaccounts", json!({"metadata": {"name": "default", "namespace": "a"}, "imagePullSecrets": [{"name": "pull"}]})),
            ("serviceaccounts", json!({"metadata": {"name": "quiet", "namespace": "a"}, "automountServiceAccountToken": false})),
        ]
    }

    async fn admit(spec: Value) -> Result<Value, ApiError> {
        let (plugins, _dir) = built_in(objects());
        create(&plugins, &UserInfo::loopback(), ("v1", "Pod"), json!({"metadata": {"name": "p"}, "spec": spec})).await
    }

    #[tokio::test]
    async fn pods_get_account_secrets_and_token() {
        let pod = admit(json!({"containers": [{"name": "c"}, {"name": "own", "volumeMounts": [{"name": "x", "mountPath": MOUNT_PATH}]}]}))
            .await
            .unwrap();
        let spec = &pod["spec"];
        assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "pull"}]));
        assert_eq!(spec.get("initContainers"), None);
        let volume = &spec["volumes"][0];
        assert!(text(&volume["name"]).starts_with(VOLUME));
        assert_eq!(volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3607);
        assert_eq!(spec["containers"][0]["volumeMounts"], json!([{"name": volume["name"], "readOnly": true, "mountPath": MOUNT_PATH}]));
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_token_nobody_wants_is_not_mounted() {
        for spec in [
            json!({"serviceAccountName": "quiet", "containers": [{"name": "c"}]}),
            json!({"automountServiceAccountToken": false, "containers": [{"name": "c"}]}),
        ] {
            assert_eq!(admit(spec).await.unwrap()["spec"].get("volumes"), None);
        }
        let wanted = admit(json!({"serviceAccountName": "quiet", "automountServiceAccountToken": true, "containers": [{"name": "c"}]}))
            .await
            .unwrap();
        assert_eq!(list(&wanted["spec"]["volumes"]).len(), 1);
    }

    #[tokio::test]
    async fn an_account_that_is_not_there_is_told() {
        let error = admit(json!({"serviceAccountName": "gone", "containers": []})).await.unwrap_err();
        assert_eq!(error.message, "pods \"p\" is forbidden: error looking up service account a/gone: serviceaccount \"gone\" not found");
    }
}
