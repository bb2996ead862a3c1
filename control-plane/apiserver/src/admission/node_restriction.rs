//! NodeRestriction: a node writes its own Node and the pods bound to it, nothing of others'.

use serde_json::Value;
use xebec_api::{
    meta,
    status::ApiError,
    value::{entries, list, text},
};

use super::refuse;
use crate::authz::node_name;
use crate::extension::{Change, Operation};
use crate::objects::Objects;

const MIRROR: &str = "kubernetes.io/config.mirror";

pub(super) fn admit(objects: &dyn Objects, change: &Change<'_>) -> Result<(), ApiError> {
    let Some(node) = node_name(change.user) else { return Ok(()) };
    let group = change.resource.group.as_str();
    match (group, change.resource.plural.as_str(), change.subresource) {
        ("", "nodes", _) => own_node(change, node),
        ("", "pods", "") => pod(change, node),
        ("", "pods", "status") => pod_status(change, node),
        ("", "pods", "eviction") => {
            let bound = objects.get("pods", change.namespace, change.name);
            match bound {
                Some(pod) if pod["spec"]["nodeName"] == node => Ok(()),
                Some(_) => Err(refuse(change, format!("node {node:?} can only evict pods with spec.nodeName set to itself"))),
                None => Ok(()),
            }
        }
        ("coordination.k8s.io", "leases", _) => {
            if change.namespace != "kube-node-lease" {
                return Err(refuse(change, "can only access leases in the \"kube-node-lease\" system namespace"));
            }
            own_name(change, node, "lease")
        }
        ("storage.k8s.io", "csinodes", _) => own_name(change, node, "csinode"),
        _ => Ok(()),
    }
}

fn name<'a>(change: &'a Change<'_>) -> &'a str {
    if change.name.is_empty() { change.object.as_ref().map(meta::name).unwrap_or_default() } else { change.name }
}

fn own_name(change: &Change<'_>, node: &str, what: &str) -> Result<(), ApiError> {
    if name(change) == node {
        return Ok(());
    }
    Err(refuse(change, format!("can only access node {what} with the same name as the requesting node")))
}

fn own_node(change: &Change<'_>, node: &str) -> Result<(), ApiError> {
    if name(change) != node {
        return Err(refuse(change, format!("node {node:?} is not allowed to modify node {:?}", name(change))));
    }
    let Some(new) = &change.object else { return Ok(()) };
    if change.operation == Operation::Create && new["spec"]["configSource"].is_object() {
        return Err(refuse(change, format!("node {node:?} is not allowed to create pods with a non-nil configSource")));
    }
    let labels = |doc: Option<&Value>| -> Vec<(String, String)> {
        let of = |doc: &Value| entries(&doc["metadata"]["labels"]).map(|(k, v)| (k.to_string(), text(v).to_string())).collect();
        doc.map(of).unwrap_or_default()
    };
    let (now, before) = (labels(Some(new)), labels(change.old));
    let changed = now.iter().filter(|l| !before.contains(l)).chain(before.iter().filter(|l| !now.contains(l)));
    let mut forbidden: Vec<&str> = changed.map(|(key, _)| key.as_str()).filter(|key| protected(key)).collect();
    if !forbidden.is_empty() {
        forbidden.sort_unstable();
        forbidden.dedup();
        let verb = if change.operation == Operation::Create { "set" } else { "modify" };
        return Err(refuse(change, format!("is not allowed to {verb} the following labels: {}", forbidden.join(", "))));
    }
    if let Some(old) = change.old
        && change.operation == Operation::Update
    {
        if list(&new["spec"]["taints"]) != list(&old["spec"]["taints"]) {
            return Err(refuse(change, format!("node {node:?} is not allowed to modify taints")));
        }
        if list(&new["metadata"]["ownerReferences"]) != list(&old["metadata"]["ownerReferences"]) {
            return Err(refuse(change, format!("node {node:?} is not allowed to modify ownerReferences")));
        }
    }
    Ok(())
}

/// Labels that say what a node is trusted with. A kubelet may set the well-known ones about itself.
fn protected(key: &str) -> bool {
    const OWN: [&str; 14] = [
        "kubernetes.io/hostname",
        "kubernetes.io/arch",
        "kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "failure-domain.beta.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.kubernetes.io/region",
        "failure-domain.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
        "node.kubernetes.io/windows-build",
    ];
    let prefix = key.split_once('/').map(|(prefix, _)| prefix).unwrap_or_default();
    let under = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
    if under("node-restriction.kubernetes.io") {
        return true;
    }
    if !under("kubernetes.io") && !under("k8s.io") {
        return false;
    }
    !OWN.contains(&key) && !under("kubelet.kubernetes.io") && !under("node.kubernetes.io")
}

fn pod(change: &Change<'_>, node: &str) -> Result<(), ApiError> {
    match change.operation {
        Operation::Create => {
            let Some(pod) = &change.object else { return Ok(()) };
            if pod["metadata"]["annotations"].get(MIRROR).is_none() {
                return Err(refuse(change, format!("pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods")));
            }
            if pod["spec"]["nodeName"] != node {
                return Err(refuse(change, format!("node {node:?} can only create pods with spec.nodeName set to itself")));
            }
            let owners = list(&pod["metadata"]["ownerReferences"]);
            let own = |o: &Value| o["apiVersion"] == "v1" && o["kind"] == "Node" && o["name"] == node;
            if owners.len() > 1 || !owners.iter().all(own) {
                return Err(refuse(change, format!("node {node:?} can only create pods with an owner reference set to itself")));
            }
            let refers = list(&pod["spec"]["volumes"])
                .iter()
                .any(|v| ["secret", "configMap", "persistentVolumeClaim", "projected"].iter().any(|s| v[*s].is_object()));
            if refers || !text(&pod["spec"]["serviceAccountName"]).is_empty() {
                return Err(refuse(change, format!("node {node:?} can not create pods that reference other objects")));
            }
            Ok(())
        }
        Operation::Delete => match change.old {
            Some(pod) if pod["spec"]["nodeName"] != node => {
                Err(refuse(change, format!("node {node:?} can only delete pods with spec.nodeName set to itself")))
            }
            _ => Ok(()),
        },
        Operation::Update | Operation::Connect => Err(refuse(change, format!("unexpected operation {:?}", change.operation))),
    }
}

fn pod_status(change: &Change<'_>, node: &str) -> Result<(), ApiError> {
    let (Some(new), Some(old)) = (&change.object, change.old) else { return Ok(()) };
    if old["spec"]["nodeName"] != node {
        return Err(refuse(change, format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")));
    }
    if new["metadata"]["labels"] != old["metadata"]["labels"] {
        return Err(refuse(change, format!("node {node:?} cannot update labels through pod status")));
    }
    Ok(())
}

/// Tokens only for pods of the node. The text says why not.
pub(crate) fn token(objects: &dyn Objects, namespace: &str, request: &Value, node: &str) -> Result<(), String> {
    let reference = &request["spec"]["boundObjectRef"];
    let (name, uid) = (text(&reference["name"]), text(&reference["uid"]));
    if reference["apiVersion"] != "v1" || reference["kind"] != "Pod" || name.is_empty() {
        return Err("node requested token not bound to a pod".into());
    }
    if uid.is_empty() {
        return Err("node requested token with a pod binding without a uid".into());
    }
    match objects.get("pods", namespace, name) {
        Some(pod) if pod["metadata"]["uid"] != *uid => {
            let known = text(&pod["metadata"]["uid"]);
            Err(format!("the UID in the bound object reference ({uid}) does not match the UID in record ({known})"))
        }
        Some(pod) if pod["spec"]["nodeName"] != node => Err("node requested token bound to a pod scheduled on a different node".into()),
        Some(_) => Ok(()),
        None => Err(format!("pod {name:?} not found")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::change;
    use super::*;
    use crate::auth::UserInfo;
    use crate::objects::fixed::Fixed;

    fn node() -> UserInfo {
        UserInfo { name: "system:node:n".into(), groups: vec!["system:nodes".into()], ..UserInfo::default() }
    }

    fn node_doc(name: &str, labels: Value) -> Value {
        json!({"metadata": {"name": name, "labels": labels}, "spec": {}})
    }

    #[test]
    fn a_node_writes_itself_only() {
        let (user, none) = (node(), Fixed::default());
        let ask = |doc: Value, old: Option<&Value>| {
            let operation = if old.is_some() { Operation::Update } else { Operation::Create };
            admit(&none, &change(&user, operation, ("v1", "Node"), Some(doc), old))
        };
        ask(node_doc("n", json!({"kubernetes.io/hostname": "n", "example.com/x": "y", "node.kubernetes.io/y": "z"})), None).unwrap();
        let error = ask(node_doc("m", json!({})), None).unwrap_err();
        assert_eq!(error.message, "nodes \"m\" is forbidden: node \"n\" is not allowed to modify node \"m\"");
        for label in ["node-restriction.kubernetes.io/a", "node-role.kubernetes.io/control-plane", "k8s.io/x"] {
            assert!(ask(node_doc("n", json!({label: ""})), None).is_err(), "{label}");
        }
        // A label somebody else set stays without harm.
        let old = node_doc("n", json!({"node-role.kubernetes.io/x": ""}));
        ask(old.clone(), Some(&old)).unwrap();
        let mut tainted = old.clone();
        tainted["spec"]["taints"] = json!([{"key": "a"}]);
        assert!(ask(tainted, Some(&old)).unwrap_err().message.contains("modify taints"));
        let other = UserInfo::loopback();
        admit(&none, &change(&other, Operation::Create, ("v1", "Node"), Some(node_doc("m", json!({}))), None)).unwrap();
    }

    #[test]
    fn a_node_writes_its_own_pods_only() {
        let user = node();
        let pod = |on: &str| json!({"metadata": {"name": "p", "uid": "u", "annotations": {MIRROR: "x"}}, "spec": {"nodeName": on}});
        let objects =
            Fixed::new(vec![("pods", json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"nodeName": "n"}}))]);
        let run = |operation: Operation, sub: &'static str, kind: (&str, &str), doc: Option<Value>, old: Option<&Value>| {
            let mut change = change(&user, operation, kind, doc, old);
            change.subresource = sub;
            change.name = "p";
            admit(&objects, &change).is_ok()
        };
        let (mine, theirs) = (pod("n"), pod("m"));
        let kind = ("v1", "Pod");
        assert!(run(Operation::Create, "", kind, Some(mine.clone()), None));
        assert!(!run(Operation::Create, "", kind, Some(theirs.clone()), None));
        assert!(!run(Operation::Create, "", kind, Some(json!({"spec": {"nodeName": "n"}})), None));
        assert!(run(Operation::Delete, "", kind, None, Some(&mine)));
        assert!(!run(Operation::Delete, "", kind, None, Some(&theirs)));
        assert!(run(Operation::Update, "status", kind, Some(mine.clone()), Some(&mine)));
        assert!(!run(Operation::Update, "status", kind, Some(theirs.clone()), Some(&theirs)));
        let token =
            |name: &str, uid: &str| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}});
        super::token(&objects, "a", &token("p", "u"), "n").unwrap();
        for (request, node) in [(token("p", "v"), "n"), (token("gone", "u"), "n"), (json!({"spec": {}}), "n"), (token("p", "u"), "m")] {
            assert!(super::token(&objects, "a", &request, node).is_err(), "{request}");
        }
    }
}
