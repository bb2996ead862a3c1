//! NamespaceLifecycle: nothing is created where no namespace is, or where one is on its way out.

use serde_json::json;
use xebec_api::{
    builtin,
    status::{self, ApiError},
};

use super::{BuiltIn, is, refuse};
use crate::extension::{Change, Operation};

/// Namespaces that are never deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub(super) async fn lifecycle(plugins: &BuiltIn, change: &Change<'_>) -> Result<(), ApiError> {
    if is(change, "", "namespaces") {
        if change.operation == Operation::Delete && IMMORTAL.contains(&change.name) {
            return Err(refuse(change, "this namespace may not be deleted"));
        }
        return Ok(());
    }
    if change.operation != Operation::Create || !change.resource.is_namespaced() || change.namespace.is_empty() {
        return Ok(());
    }
    // Whoever asks about access may ask about namespaces that are not there.
    if change.resource.group == "authorization.k8s.io" {
        return Ok(());
    }
    let Some(namespace) = plugins.fresh("namespaces", "", change.namespace).await? else {
        let row = builtin::by_kind("v1", "Namespace").ok_or_else(status::no_such_path)?;
        return Err(status::not_found(row, change.namespace));
    };
    if namespace["status"]["phase"] != "Terminating" {
        return Ok(());
    }
    let namespace = change.namespace;
    let mut error = refuse(change, format!("unable to create new content in namespace {namespace} because it is being terminated"));
    error.details["causes"] = json!([{
        "reason": "NamespaceTerminating",
        "message": format!("namespace {namespace} is being terminated"),
        "field": "metadata.namespace",
    }]);
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::auth::UserInfo;
    use crate::extension::Admission;

    #[tokio::test]
    async fn namespaces_must_be_there_and_stay() {
        let user = UserInfo::loopback();
        let map = || json!({"metadata": {"name": "m", "namespace": "a"}});
        let (none, _dir) = built_in(vec![]);
        let error = create(&none, &user, ("v1", "ConfigMap"), map()).await.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (404, "namespaces \"a\" not found"));
        let (going, _dir) = built_in(vec![("namespaces", json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}}))]);
        let error = create(&going, &user, ("v1", "ConfigMap"), map()).await.unwrap_err();
        assert_eq!(
            error.message,
            "configmaps \"m\" is forbidden: unable to create new content in namespace a because it is being terminated"
        );
        assert_eq!(error.details["causes"][0]["reason"], "NamespaceTerminating");
        let (there, _dir) = built_in(vec![("namespaces", json!({"metadata": {"name": "a"}}))]);
        create(&there, &user, ("v1", "ConfigMap"), map()).await.unwrap();
        let old = json!({"metadata": {"name": "default"}});
        let mut delete = change(&user, Operation::Delete, ("v1", "Namespace"), None, Some(&old));
        delete.name = "default";
        let error = there.mutate(&mut delete).await.unwrap_err();
        assert_eq!(error.message, "namespaces \"default\" is forbidden: this namespace may not be deleted");
        delete.name = "a";
        there.mutate(&mut delete).await.unwrap();
    }

    #[tokio::test]
    async fn a_namespace_the_cache_has_not_seen_yet_counts() {
        let (plugins, _dir) = built_in(vec![]);
        let op = xebec_store::Op::Put {
            key: "/registry/namespaces/a".into(),
            value: br#"{"metadata":{"name":"a"}}"#.as_slice().into(),
            ttl: None,
        };
        plugins.store.txn(xebec_store::Txn { compares: vec![], ops: vec![op] }).await.unwrap();
        create(&plugins, &UserInfo::loopback(), ("v1", "ConfigMap"), json!({"metadata": {"name": "m"}})).await.unwrap();
    }
}
