//! Small plugins that fill a field: DefaultTolerationSeconds, DefaultStorageClass, DefaultIngressClass; and
//! PersistentVolumeClaimResize.

use serde_json::{Value, json};
use xebec_api::{
    Document, meta,
    quantity::Quantity,
    status::{self, ApiError},
    value::{list, text},
};

use super::{is, refuse};
use crate::extension::{Change, Operation};
use crate::objects::Objects;

/// How long pods stay on a node that is not ready or cannot be reached.
const TOLERATION_SECONDS: i64 = 300;

pub(super) fn tolerations(change: &mut Change<'_>) {
    if !matches!(change.operation, Operation::Create | Operation::Update) {
        return;
    }
    let Some(spec) = change.object.as_mut().map(|pod| &mut pod["spec"]).filter(|spec| spec.is_object()) else { return };
    let mut tolerations = list(&spec["tolerations"]).to_vec();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = tolerations.iter().any(|t| ["", key].contains(&text(&t["key"])) && ["", "NoExecute"].contains(&text(&t["effect"])));
        if !tolerated {
            tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}));
        }
    }
    if !tolerations.is_empty() {
        spec["tolerations"] = tolerations.into();
    }
}

/// The class that the annotation marks; of several the newest.
fn default_class(objects: &dyn Objects, prefix: &str, annotations: &[&str]) -> Vec<Document> {
    let marked = |c: &Document| annotations.iter().any(|a| c["metadata"]["annotations"][*a] == "true");
    let mut classes: Vec<Document> = objects.list(prefix, "").into_iter().filter(marked).collect();
    classes.sort_by(|a, b| {
        let created = |c: &Document| text(&c["metadata"]["creationTimestamp"]).to_string();
        created(b).cmp(&created(a)).then_with(|| meta::name(a).cmp(meta::name(b)))
    });
    classes
}

pub(super) fn storage_class(objects: &dyn Objects, change: &mut Change<'_>) -> Result<(), ApiError> {
    if !is(change, "", "persistentvolumeclaims") {
        return Ok(());
    }
    let Some(claim) = change.object.as_mut() else { return Ok(()) };
    let annotated = claim["metadata"]["annotations"].get("volume.beta.kubernetes.io/storage-class").is_some();
    if annotated || !claim["spec"].is_object() || !claim["spec"]["storageClassName"].is_null() {
        return Ok(());
    }
    let annotations = ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if let Some(class) = default_class(objects, "storageclasses", &annotations).first() {
        claim["spec"]["storageClassName"] = meta::name(class).into();
    }
    Ok(())
}

pub(super) fn ingress_class(objects: &dyn Objects, change: &mut Change<'_>) -> Result<(), ApiError> {
    if !is(change, "networking.k8s.io", "ingresses") {
        return Ok(());
    }
    let Some(ingress) = change.object.as_ref() else { return Ok(()) };
    let annotated = ingress["metadata"]["annotations"].get("kubernetes.io/ingress.class").is_some();
    if annotated || !ingress["spec"]["ingressClassName"].is_null() {
        return Ok(());
    }
    let classes = default_class(objects, "ingressclasses", &["ingressclass.kubernetes.io/is-default-class"]);
    if classes.len() > 1 {
        return Err(refuse(change, format!("{} default IngressClasses were found, only 1 allowed", classes.len())));
    }
    if let (Some(class), Some(ingress)) = (classes.first(), change.object.as_mut())
        && ingress.is_object()
    {
        ingress["spec"]["ingressClassName"] = meta::name(class).into();
    }
    Ok(())
}

/// A claim grows only when its class says so.
pub(super) fn claim_resize(objects: &dyn Objects, change: &Change<'_>) -> Result<(), ApiError> {
    let (Some(new), Some(old)) = (&change.object, change.old) else { return Ok(()) };
    let size = |claim: &Value| Quantity::from_value(&claim["spec"]["resources"]["requests"]["storage"]);
    let (Some(wanted), Some(present)) = (size(new), size(old)) else { return Ok(()) };
    if wanted.nanos() <= present.nanos() {
        return Ok(());
    }
    if old["status"]["phase"] != "Bound" {
        return Err(refuse(change, "Only bound persistent volume claims can be expanded"));
    }
    let class = objects.get("storageclasses", "", text(&new["spec"]["storageClassName"]));
    if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    Err(status::forbidden(
        change.resource,
        meta::name(new),
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::auth::UserInfo;
    use crate::objects::fixed::Fixed;

    #[test]
    fn pods_leave_sick_nodes_after_a_while() {
        let user = UserInfo::loopback();
        let admit = |tolerations: Value| {
            let pod = json!({"spec": {"tolerations": tolerations}});
            let mut change = change(&user, Operation::Create, ("v1", "Pod"), Some(pod), None);
            super::tolerations(&mut change);
            list(&change.object.unwrap()["spec"]["tolerations"]).len()
        };
        assert_eq!(admit(json!(null)), 2);
        assert_eq!(admit(json!([{"operator": "Exists"}])), 1);
        assert_eq!(admit(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}])), 2);
        assert_eq!(admit(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])), 3);
    }

    #[test]
    fn the_newest_default_class_is_taken() {
        let class = |name: &str, created: &str, default: &str| {
            (
                "storageclasses",
                json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {"storageclass.kubernetes.io/is-default-class": default}}}),
            )
        };
        let objects = Fixed::new(vec![class("old", "2020", "true"), class("new", "2021", "true"), class("no", "2022", "false")]);
        let user = UserInfo::loopback();
        let admit = |spec: Value| {
            let mut change = change(&user, Operation::Create, ("v1", "PersistentVolumeClaim"), Some(json!({"spec": spec})), None);
            storage_class(&objects, &mut change).unwrap();
            change.object.unwrap()["spec"]["storageClassName"].take()
        };
        assert_eq!(admit(json!({})), "new");
        assert_eq!(admit(json!({"storageClassName": ""})), "");
    }

    #[test]
    fn claims_grow_when_the_class_allows() {
        let objects = Fixed::new(vec![("storageclasses", json!({"metadata": {"name": "s"}, "allowVolumeExpansion": true}))]);
        let user = UserInfo::loopback();
        let claim = |class: &str, size: &str, phase: &str| json!({"metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}}, "status": {"phase": phase}});
        let ask = |old: Value, new: Value| {
            claim_resize(&objects, &change(&user, Operation::Update, ("v1", "PersistentVolumeClaim"), Some(new), Some(&old)))
        };
        assert!(ask(claim("s", "1Gi", "Bound"), claim("s", "2Gi", "Bound")).is_ok());
        assert!(ask(claim("x", "1Gi", "Bound"), claim("x", "1024Mi", "Bound")).is_ok());
        assert!(ask(claim("x", "1Gi", "Bound"), claim("x", "2Gi", "Bound")).is_err());
        assert!(ask(claim("s", "1Gi", "Pending"), claim("s", "2Gi", "Pending")).is_err());
    }
}
