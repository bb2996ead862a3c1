//! The Node authorizer: a node's credentials reach only what its own pods need.
//!
//! RBAC is asked after it, so what every node may do (watch Services, write Events) is an ordinary ClusterRole;
//! here are the grants that depend on which pods run on the node.

use std::sync::Arc;

use serde_json::Value;

use crate::auth::{Attributes, Decision, UserInfo};
use crate::objects::Objects;

pub(super) struct NodeAuthorizer {
    objects: Arc<dyn Objects>,
}

/// The node a user is, by its name and group.
pub(crate) fn node_name(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|name| !name.is_empty() && user.in_group("system:nodes"))
}

/// What a pod may refer to.
enum Reference<'a> {
    Secret(&'a str),
    ConfigMap(&'a str),
    Claim(&'a str),
    ServiceAccount(&'a str),
}

impl NodeAuthorizer {
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }

    pub fn authorize(&self, a: &Attributes<'_>) -> Decision {
        let Some(node) = node_name(a.user) else { return Decision::Deny(String::new()) };
        let related = |holds: bool| match holds {
            true => Decision::Allow,
            false => Decision::Deny(format!("no relationship found between node '{node}' and this object")),
        };
        let deny = |reason: &str| Decision::Deny(reason.to_string());
        // List and watch of one object name it in a field selector.
        let name = match a.field_selector.strip_prefix("metadata.name=") {
            Some(name) if a.name.is_empty() => name,
            _ => a.name,
        };
        let reads = matches!(a.verb, "get" | "list" | "watch");
        match (a.group, a.resource, a.subresource) {
            ("", "secrets" | "configmaps", "") if !reads => deny("can only read resources of this type"),
            ("", "secrets" | "configmaps", "") if name.is_empty() || a.namespace.is_empty() => {
                deny("can only read namespaced object of this type")
            }
            ("", "secrets", "") => related(self.pod_refers(node, a.namespace, &Reference::Secret(name))),
            ("", "configmaps", "") => related(self.pod_refers(node, a.namespace, &Reference::ConfigMap(name))),
            ("", "persistentvolumeclaims", "") if a.verb == "get" => related(self.pod_refers(node, a.namespace, &Reference::Claim(name))),
            ("", "persistentvolumeclaims", "status") if matches!(a.verb, "get" | "update" | "patch") => {
                related(self.pod_refers(node, a.namespace, &Reference::Claim(name)))
            }
            ("", "persistentvolumeclaims", _) => deny("can only get individual resources of this type"),
            ("", "persistentvolumes", "") if a.verb == "get" => related(self.uses_volume(node, name)),
            ("", "serviceaccounts", "token") if a.verb == "create" => {
                related(self.pod_refers(node, a.namespace, &Reference::ServiceAccount(name)))
            }
            ("", "serviceaccounts", "") if a.verb == "get" => related(self.pod_refers(node, a.namespace, &Reference::ServiceAccount(name))),
            ("storage.k8s.io", "volumeattachments", "") if a.verb == "get" => {
                let attachment = self.objects.get("volumeattachments", "", name);
                related(attachment.is_some_and(|doc| doc["spec"]["nodeName"] == node))
            }
            ("coordination.k8s.io", "leases", "") => {
                if a.namespace != "kube-node-lease" {
                    return deny("can only access leases in the \"kube-node-lease\" system namespace");
                }
                match a.verb {
                    "create" => Decision::Allow,
                    "get" | "update" | "patch" | "delete" if name == node => Decision::Allow,
                    "get" | "update" | "patch" | "delete" => deny("can only access node lease with the same name as the requesting node"),
                    _ => deny("can only get, create, update, patch, or delete a node lease"),
                }
            }
            ("storage.k8s.io", "csinodes", "") => match a.verb {
                "create" => Decision::Allow,
                "get" | "update" | "patch" | "delete" if name == node => Decision::Allow,
                "get" | "update" | "patch" | "delete" => deny("can only access CSINode with the same name as the requesting node"),
                _ => deny("can only get, create, update, patch, or delete a CSINode"),
            },
            ("resource.k8s.io", "resourceslices", "") => match a.verb {
                "create" => Decision::Allow,
                "list" | "watch" | "deletecollection" if a.field_selector == format!("spec.nodeName={node}") => Decision::Allow,
                "get" | "update" | "patch" | "delete" => {
                    related(self.objects.get("resourceslices", "", name).is_some_and(|doc| doc["spec"]["nodeName"] == node))
                }
                _ => deny(&format!("can only list/watch/deletecollection resourceslices with nodeName field selector '{node}'")),
            },
            ("", "nodes", "") => match a.verb {
                "create" => Decision::Allow,
                "get" | "list" | "watch" | "update" | "patch" if name == node => Decision::Allow,
                _ => deny("node can only access its own Node object"),
            },
            ("", "nodes", "status") if matches!(a.verb, "update" | "patch") && name == node => Decision::Allow,
            ("", "pods", "") => match a.verb {
                // Which pods a node may write is for the NodeRestriction admission plugin.
                "create" | "delete" => Decision::Allow,
                "get" => related(self.runs(node, a.namespace, name)),
                "list" | "watch" if a.field_selector == format!("spec.nodeName={node}") => Decision::Allow,
                _ => deny(&format!("can only list/watch pods with spec.nodeName field selector '{node}'")),
            },
            ("", "pods", "status") if matches!(a.verb, "update" | "patch") => Decision::Allow,
            ("", "pods", "eviction") if a.verb == "create" => Decision::Allow,
            ("resource.k8s.io", "resourceclaims", "") if a.verb == "get" => {
                let claimed = self.objects.select("pods", a.namespace, "spec.nodeName", node).iter().any(|pod| {
                    array(&pod["status"]["resourceClaimStatuses"]).iter().any(|s| s["resourceClaimName"] == name)
                        || array(&pod["spec"]["resourceClaims"]).iter().any(|c| c["resourceClaimName"] == name)
                });
                related(claimed)
            }
            _ => Decision::Deny(String::new()),
        }
    }

    fn runs(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.objects.get("pods", namespace, name).is_some_and(|pod| pod["spec"]["nodeName"] == node)
    }

    fn pod_refers(&self, node: &str, namespace: &str, to: &Reference<'_>) -> bool {
        self.objects.select("pods", namespace, "spec.nodeName", node).iter().any(|pod| refers(pod, to))
    }

    fn uses_volume(&self, node: &str, name: &str) -> bool {
        let Some(volume) = self.objects.get("persistentvolumes", "", name) else { return false };
        let claim = &volume["spec"]["claimRef"];
        match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(namespace), Some(name)) => self.pod_refers(node, namespace, &Reference::Claim(name)),
            _ => false,
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The volume sources that name a secret for their driver, as pointer to the name.
const VOLUME_SECRETS: [&str; 10] = [
    "/secret/secretName",
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/csi/nodePublishSecretRef/name",
    "/flexVolume/secretRef/name",
    "/iscsi/secretRef/name",
    "/rbd/secretRef/name",
    "/scaleIO/secretRef/name",
    "/storageos/secretRef/name",
];

fn refers(pod: &Value, to: &Reference<'_>) -> bool {
    let spec = &pod["spec"];
    let containers = || ["containers", "initContainers", "ephemeralContainers"].iter().flat_map(|list| array(&spec[*list]));
    let in_env = |from: &str, key: &str, name: &str| {
        containers().any(|c| {
            array(&c["envFrom"]).iter().any(|e| e[from]["name"] == name)
                || array(&c["env"]).iter().any(|e| e["valueFrom"][key]["name"] == name)
        })
    };
    let volumes = || array(&spec["volumes"]).iter();
    let projected =
        |source: &str, name: &str| volumes().any(|v| array(&v["projected"]["sources"]).iter().any(|s| s[source]["name"] == name));
    match to {
        Reference::ServiceAccount(name) => spec["serviceAccountName"] == **name,
        Reference::Secret(name) => {
            array(&spec["imagePullSecrets"]).iter().any(|s| s["name"] == **name)
                || in_env("secretRef", "secretKeyRef", name)
                || projected("secret", name)
                || volumes().any(|v| VOLUME_SECRETS.iter().any(|p| v.pointer(p).and_then(Value::as_str) == Some(name)))
        }
        Reference::ConfigMap(name) => {
            in_env("configMapRef", "configMapKeyRef", name)
                || projected("configMap", name)
                || volumes().any(|v| v["configMap"]["name"] == **name)
        }
        Reference::Claim(name) => {
            let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
            volumes().any(|v| {
                v["persistentVolumeClaim"]["claimName"] == **name
                    || (v["ephemeral"].is_object() && v["name"].as_str().is_some_and(|volume| format!("{pod_name}-{volume}") == **name))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::fixed::Fixed;

    #[test]
    fn a_node_reaches_what_its_pods_use() {
        let pod = |name: &str, node: &str, spec: Value| {
            let mut doc = json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec});
            doc["spec"]["nodeName"] = node.into();
            ("pods", doc)
        };
        let objects = Fixed::new(vec![
            pod(
                "p",
                "n1",
                json!({"serviceAccountName": "bot", "imagePullSecrets": [{"name": "pull"}],
                "volumes": [{"secret": {"secretName": "vol"}}, {"projected": {"sources": [{"configMap": {"name": "proj"}}]}},
                            {"persistentVolumeClaim": {"claimName": "claim"}}, {"name": "tmp", "ephemeral": {}}],
                "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "env"}}}], "envFrom": [{"configMapRef": {"name": "from"}}]}]}),
            ),
            pod("q", "n2", json!({"volumes": [{"secret": {"secretName": "other"}}]})),
            ("persistentvolumes", json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "a", "name": "claim"}}})),
        ]);
        let node = NodeAuthorizer::new(Arc::new(objects));
        let user = UserInfo { name: "system:node:n1".into(), groups: vec!["system:nodes".into()], ..UserInfo::default() };
        let ask = |verb: &str, resource: &str, namespace: &str, name: &str, selector: &str| {
            let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            node.authorize(&Attributes {
                user: &user,
                verb,
                group,
                version: "v1",
                resource,
                subresource,
                namespace,
                name,
                path: "",
                field_selector: selector,
                label_selector: "",
            })
        };
        for (verb, resource, namespace, name, selector) in [
            ("get", "secrets", "a", "pull", ""),
            ("get", "secrets", "a", "vol", ""),
            ("list", "secrets", "a", "", "metadata.name=env"),
            ("watch", "configmaps", "a", "", "metadata.name=proj"),
            ("get", "configmaps", "a", "from", ""),
            ("get", "persistentvolumeclaims", "a", "claim", ""),
            ("get", "persistentvolumeclaims", "a", "p-tmp", ""),
            ("get", "persistentvolumes", "", "pv", ""),
            ("create", "serviceaccounts/token", "a", "bot", ""),
            ("get", "nodes", "", "n1", ""),
            ("patch", "nodes/status", "", "n1", ""),
            ("watch", "nodes", "", "", "metadata.name=n1"),
            ("list", "pods", "", "", "spec.nodeName=n1"),
            ("get", "pods", "a", "p", ""),
            ("update", "coordination.k8s.io:leases", "kube-node-lease", "n1", ""),
        ] {
            assert_eq!(ask(verb, resource, namespace, name, selector), Decision::Allow, "{verb} {resource} {name}");
        }
        for (verb, resource, namespace, name, selector) in [
            ("get", "secrets", "a", "other", ""),
            ("get", "secrets", "b", "vol", ""),
            ("list", "secrets", "a", "", ""),
            ("list", "secrets", "", "", "metadata.name=vol"),
            ("update", "secrets", "a", "vol", ""),
            ("get", "configmaps", "a", "vol", ""),
            ("create", "serviceaccounts/token", "a", "default", ""),
            ("get", "nodes", "", "n2", ""),
            ("delete", "nodes", "", "n1", ""),
            ("list", "pods", "", "", ""),
            ("list", "pods", "", "", "spec.nodeName=n2"),
            ("get", "pods", "a", "q", ""),
            ("update", "coordination.k8s.io:leases", "kube-node-lease", "n2", ""),
            ("update", "coordination.k8s.io:leases", "default", "n1", ""),
            ("get", "services", "a", "x", ""),
        ] {
            assert_ne!(ask(verb, resource, namespace, name, selector), Decision::Allow, "{verb} {resource} {name}");
        }
        assert_eq!(
            ask("get", "secrets", "a", "other", ""),
            Decision::Deny("no relationship found between node 'n1' and this object".into())
        );
    }
}
