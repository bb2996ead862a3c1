//! The roles and bindings every cluster starts with, as tables of text.
//!
//! A rule is a line `VERBS GROUPS RESOURCES [NAMES]`, each a comma-separated list; the core group is `core`.
//! `VERBS url PATHS` is a rule for paths. `READ` and `WRITE` stand for the usual verbs.

use serde_json::{Value, json};

const RBAC: &str = "rbac.authorization.k8s.io";

/// (name, where it aggregates to or from, rules). `+x` labels the role for aggregation into `x`; `=x` makes it the
/// aggregate of all roles labelled so.
const CLUSTER_ROLES: &[(&str, &str, &str)] = &[
    ("cluster-admin", "", "* * *\n* url *"),
    ("admin", "=admin", ""),
    ("edit", "=edit +admin", ""),
    ("view", "=view +edit", ""),
    ("system:aggregate-to-admin", "+admin", "create authorization.k8s.io localsubjectaccessreviews
READ,WRITE rbac.authorization.k8s.io roles,rolebindings"),
    ("system:aggregate-to-edit", "+edit", "READ core pods/attach,pods/proxy,pods/exec,pods/portforward,secrets,services/proxy
impersonate core serviceaccounts
WRITE core pods,pods/attach,pods/proxy,pods/exec,pods/portforward
create core pods/eviction
WRITE core configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,secrets,serviceaccounts,services,services/proxy
create core serviceaccounts/token
WRITE apps daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,statefulsets,statefulsets/scale
WRITE autoscaling horizontalpodautoscalers
WRITE batch cronjobs,jobs
WRITE policy poddisruptionbudgets
WRITE networking.k8s.io ingresses,networkpolicies
READ,WRITE coordination.k8s.io leases
WRITE resource.k8s.io resourceclaims,resourceclaimtemplates"),
    ("system:aggregate-to-view", "+view", "READ core configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status
READ core bindings,events,limitranges,namespaces/status,pods/log,pods/status,replicationcontrollers/status,resourcequotas,resourcequotas/status
READ core namespaces
READ discovery.k8s.io endpointslices
READ apps controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status
READ autoscaling horizontalpodautoscalers,horizontalpodautoscalers/status
READ batch cronjobs,cronjobs/status,jobs,jobs/status
READ policy poddisruptionbudgets,poddisruptionbudgets/status
READ networking.k8s.io ingresses,ingresses/status,networkpolicies
READ resource.k8s.io resourceclaims,resourceclaims/status,resourceclaimtemplates"),
    ("system:discovery", "", "get url /api,/api/*,/apis,/apis/*,/healthz,/livez,/openapi,/openapi/*,/readyz,/version,/version/"),
    ("system:public-info-viewer", "", "get url /healthz,/livez,/readyz,/version,/version/"),
    ("system:monitoring", "", "get url /healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*"),
    ("system:basic-user", "", "create authorization.k8s.io selfsubjectaccessreviews,selfsubjectrulesreviews
create authentication.k8s.io selfsubjectreviews"),
    ("system:service-account-issuer-discovery", "", "get url /.well-known/openid-configuration,/.well-known/openid-configuration/,/openid/v1/jwks,/openid/v1/jwks/"),
    ("system:auth-delegator", "", "create authentication.k8s.io tokenreviews
create authorization.k8s.io subjectaccessreviews"),
    ("system:kube-aggregator", "", "READ core endpoints,services"),
    ("system:kubelet-api-admin", "", "get,list,watch core nodes
proxy core nodes
* core nodes/proxy,nodes/log,nodes/stats,nodes/metrics,nodes/spec,nodes/configz,nodes/healthz,nodes/pods"),
    ("system:node-bootstrapper", "", "create,get,list,watch certificates.k8s.io certificatesigningrequests"),
    ("system:node-problem-detector", "", "get core nodes
patch core nodes/status
create,patch,update core,events.k8s.io events"),
    ("system:node-proxier", "", "list,watch core services,endpoints
READ core nodes
create,patch,update core,events.k8s.io events
list,watch discovery.k8s.io endpointslices
list,watch networking.k8s.io servicecidrs"),
    ("system:kube-dns", "", "list,watch core endpoints,services"),
    ("system:heapster", "", "READ core events,namespaces,nodes,pods\nREAD apps deployments"),
    ("system:persistent-volume-provisioner", "", "create,delete,get,list,watch core persistentvolumes
get,list,update,watch core persistentvolumeclaims
READ storage.k8s.io storageclasses
READ,create,patch,update core events"),
    ("system:certificates.k8s.io:certificatesigningrequests:nodeclient", "", "create certificates.k8s.io certificatesigningrequests/nodeclient"),
    ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "", "create certificates.k8s.io certificatesigningrequests/selfnodeclient"),
    ("system:certificates.k8s.io:kube-apiserver-client-approver", "", "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client"),
    ("system:certificates.k8s.io:kube-apiserver-client-kubelet-approver", "", "approve certificates.k8s.io signers kubernetes.io/kube-apiserver-client-kubelet"),
    ("system:certificates.k8s.io:kubelet-serving-approver", "", "approve certificates.k8s.io signers kubernetes.io/kubelet-serving"),
    ("system:certificates.k8s.io:legacy-unknown-approver", "", "approve certificates.k8s.io signers kubernetes.io/legacy-unknown"),
    // What a kubelet may need; which objects of these is for the Node authorizer, so nobody is bound to it.
    ("system:node", "", "create authentication.k8s.io tokenreviews
create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews
READ core services
create,get,list,watch core nodes
patch,update core nodes/status
patch,update core nodes
create,patch,update core,events.k8s.io events
READ core pods
create,delete core pods
patch,update core pods/status
create core pods/eviction
READ core configmaps,secrets
get core persistentvolumeclaims,persistentvolumes
get,patch,update core persistentvolumeclaims/status
create core serviceaccounts/token
create,get,list,watch certificates.k8s.io certificatesigningrequests
create,delete,get,patch,update coordination.k8s.io leases
get storage.k8s.io volumeattachments
READ storage.k8s.io csidrivers
create,delete,get,patch,update storage.k8s.io csinodes
READ node.k8s.io runtimeclasses
get resource.k8s.io resourceclaims
create,delete,deletecollection,get,list,patch,update,watch resource.k8s.io resourceslices"),
    // What every node may do whatever runs on it, the network's watches included.
    ("xebec:node", "", "create authentication.k8s.io tokenreviews
create authorization.k8s.io localsubjectaccessreviews,subjectaccessreviews
READ core namespaces,nodes,pods,services
READ discovery.k8s.io endpointslices
READ networking.k8s.io networkpolicies
READ policy.networking.k8s.io clusternetworkpolicies
patch policy.networking.k8s.io clusternetworkpolicies/status
create,patch,update core,events.k8s.io events
create,get,list,watch certificates.k8s.io certificatesigningrequests
READ storage.k8s.io csidrivers
READ node.k8s.io runtimeclasses"),
    ("system:volume-scheduler", "", "READ,patch,update core persistentvolumes
READ storage.k8s.io storageclasses
READ,patch,update core persistentvolumeclaims"),
    ("system:kube-scheduler", "", "create,patch,update core,events.k8s.io events
create coordination.k8s.io leases
get,list,update,watch coordination.k8s.io leases kube-scheduler
READ core namespaces,nodes,replicationcontrollers,services
delete,get,list,watch core pods
create core bindings,pods/binding
patch,update core pods/status
READ apps,extensions replicasets
READ apps statefulsets
READ policy poddisruptionbudgets
READ core persistentvolumeclaims,persistentvolumes
create authentication.k8s.io tokenreviews
create authorization.k8s.io subjectaccessreviews
READ storage.k8s.io csidrivers,csinodes,csistoragecapacities,storageclasses,volumeattachments
READ scheduling.k8s.io priorityclasses
READ,patch,update resource.k8s.io resourceclaims
patch,update resource.k8s.io resourceclaims/status
READ resource.k8s.io deviceclasses,resourceslices"),
    ("system:kube-controller-manager", "", "create,patch,update core,events.k8s.io events
create coordination.k8s.io leases
get,update coordination.k8s.io leases kube-controller-manager
create core secrets,serviceaccounts
delete core secrets
get core configmaps,namespaces,secrets,serviceaccounts
update core secrets,serviceaccounts
create authentication.k8s.io tokenreviews
create authorization.k8s.io subjectaccessreviews
list,watch * *
create core serviceaccounts/token"),
    // All control loops share one identity here, and namespace deletion and garbage collection reach every kind.
    ("xebec:controllers", "", "* * *\nget url *"),
];

/// (name and role, subjects): `u:` user, `g:` group, `s:NAMESPACE/NAME` service account.
const CLUSTER_ROLE_BINDINGS: &[(&str, &str)] = &[
    ("cluster-admin", "g:system:masters"),
    ("system:monitoring", "g:system:monitoring"),
    ("system:discovery", "g:system:authenticated"),
    ("system:basic-user", "g:system:authenticated"),
    ("system:public-info-viewer", "g:system:authenticated g:system:unauthenticated"),
    ("system:node-proxier", "u:system:kube-proxy"),
    ("system:kube-controller-manager", "u:system:kube-controller-manager"),
    ("xebec:controllers", "u:system:kube-controller-manager"),
    ("system:kube-dns", "s:kube-system/kube-dns"),
    ("system:kube-scheduler", "u:system:kube-scheduler"),
    ("system:volume-scheduler", "u:system:kube-scheduler"),
    ("system:node", ""),
    ("xebec:node", "g:system:nodes"),
    ("system:service-account-issuer-discovery", "g:system:serviceaccounts"),
];

/// (namespace, name, rules)
const ROLES: &[(&str, &str, &str)] = &[
    ("kube-system", "extension-apiserver-authentication-reader", "READ core configmaps extension-apiserver-authentication"),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "watch core configmaps\nget,update core configmaps kube-controller-manager",
    ),
    ("kube-system", "system::leader-locking-kube-scheduler", "watch core configmaps\nget,update core configmaps kube-scheduler"),
    ("kube-system", "system:controller:bootstrap-signer", "READ core secrets"),
    ("kube-system", "system:controller:cloud-provider", "create,get,list,watch,patch,update core configmaps"),
    ("kube-system", "system:controller:token-cleaner", "READ,delete core secrets\ncreate,patch,update core,events.k8s.io events"),
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        "READ core configmaps\nupdate core configmaps cluster-info\ncreate,patch,update core,events.k8s.io events",
    ),
];

/// (namespace, name, role, subjects)
const ROLE_BINDINGS: &[(&str, &str, &str, &str)] = &[
    (
        "kube-system",
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        "u:system:kube-controller-manager u:system:kube-scheduler",
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        "u:system:kube-controller-manager s:kube-system/kube-controller-manager",
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        "u:system:kube-scheduler s:kube-system/kube-scheduler",
    ),
    ("kube-system", "system:controller:bootstrap-signer", "system:controller:bootstrap-signer", "s:kube-system/bootstrap-signer"),
    ("kube-system", "system:controller:cloud-provider", "system:controller:cloud-provider", "s:kube-system/cloud-provider"),
    ("kube-system", "system:controller:token-cleaner", "system:controller:token-cleaner", "s:kube-system/token-cleaner"),
    ("kube-public", "system:controller:bootstrap-signer", "system:controller:bootstrap-signer", "s:kube-system/bootstrap-signer"),
];

/// All of them as (storage prefix, document without uid and time).
pub(super) fn documents() -> Vec<(&'static str, Value)> {
    let mut out = Vec::new();
    for (name, marks, text) in CLUSTER_ROLES {
        let mut doc = json!({
            "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": metadata("", name),
            "rules": rules(text),
        });
        for mark in marks.split_whitespace() {
            let label = |to: &str| format!("{RBAC}/aggregate-to-{to}");
            if let Some(to) = mark.strip_prefix('+') {
                doc["metadata"]["labels"][label(to)] = "true".into();
            } else if let Some(of) = mark.strip_prefix('=') {
                doc["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label(of): "true"}}]});
                doc["rules"] = aggregate(of).into();
            }
        }
        out.push(("clusterroles", doc));
    }
    for (name, subjects) in CLUSTER_ROLE_BINDINGS {
        out.push(("clusterrolebindings", binding("ClusterRoleBinding", metadata("", name), "ClusterRole", name, subjects)));
    }
    for (namespace, name, text) in ROLES {
        let doc = json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata(namespace, name), "rules": rules(text)});
        out.push(("roles", doc));
    }
    for (namespace, name, role, subjects) in ROLE_BINDINGS {
        out.push(("rolebindings", binding("RoleBinding", metadata(namespace, name), "Role", role, subjects)));
    }
    out
}

fn metadata(namespace: &str, name: &str) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {format!("{RBAC}/autoupdate"): "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    metadata
}

/// What the aggregation controller would write, so that the roles hold from the start.
fn aggregate(into: &str) -> Vec<Value> {
    let mark = format!("+{into}");
    let members = CLUSTER_ROLES.iter().filter(|(_, marks, _)| marks.split_whitespace().any(|m| m == mark));
    members
        .flat_map(|(_, marks, text)| match marks.split_whitespace().find_map(|m| m.strip_prefix('=')) {
            Some(of) => aggregate(of),
            None => rules(text),
        })
        .collect()
}

fn binding(kind: &str, metadata: Value, role_kind: &str, role: &str, subjects: &str) -> Value {
    let subjects: Vec<Value> = subjects
        .split_whitespace()
        .filter_map(|subject| {
            let (kind, name) = subject.split_once(':')?;
            Some(match kind {
                "u" => json!({"apiGroup": RBAC, "kind": "User", "name": name}),
                "g" => json!({"apiGroup": RBAC, "kind": "Group", "name": name}),
                _ => {
                    let (namespace, name) = name.split_once('/')?;
                    json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
                }
            })
        })
        .collect();
    let mut doc = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": kind, "metadata": metadata,
        "roleRef": {"apiGroup": RBAC, "kind": role_kind, "name": role},
    });
    if !subjects.is_empty() {
        doc["subjects"] = subjects.into();
    }
    doc
}

fn rules(text: &str) -> Vec<Value> {
    text.lines().filter(|line| !line.trim().is_empty()).map(rule).collect()
}

fn rule(line: &str) -> Value {
    let mut words = line.split_whitespace().map(|list| list.split(',').collect::<Vec<_>>());
    let mut next = || words.next().unwrap_or_default();
    let verbs: Vec<&str> = next()
        .into_iter()
        .flat_map(|verb| match verb {
            "READ" => vec!["get", "list", "watch"],
            "WRITE" => vec!["create", "delete", "deletecollection", "patch", "update"],
            verb => vec![verb],
        })
        .collect();
    let groups = next();
    if groups == ["url"] {
        return json!({"verbs": verbs, "nonResourceURLs": next()});
    }
    let groups: Vec<&str> = groups.into_iter().map(|g| if g == "core" { "" } else { g }).collect();
    let (resources, names) = (next(), next());
    let mut rule = json!({"verbs": verbs, "apiGroups": groups, "resources": resources});
    if !names.is_empty() {
        rule["resourceNames"] = names.into();
    }
    rule
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::{Attributes, Authorizer, Decision, UserInfo};
    use crate::authz::Chain;
    use crate::objects::fixed::Fixed;

    #[test]
    fn every_line_is_a_rule_of_known_resources() {
        let known: Vec<String> = xebec_api::builtin::resources()
            .iter()
            .flat_map(|r| {
                let subs = r.subresources.iter().map(|s| format!("{}/{}", r.plural, s.name));
                subs.chain([r.plural.clone()]).map(|p| format!("{}:{p}", r.group)).collect::<Vec<_>>()
            })
            .collect();
        for (prefix, doc) in documents() {
            for rule in doc["rules"].as_array().into_iter().flatten() {
                assert!(!rule["verbs"].as_array().unwrap().is_empty(), "{prefix} {doc}");
                let (Some(groups), Some(resources)) = (rule["apiGroups"].as_array(), rule["resources"].as_array()) else {
                    assert!(rule["nonResourceURLs"].is_array(), "{rule}");
                    continue;
                };
                for resource in resources.iter().map(|r| r.as_str().unwrap()) {
                    let virtual_ = ["*", "signers", "deployments/rollback", "nodes/"].iter().any(|v| resource.starts_with(v))
                        || resource.starts_with("certificatesigningrequests/")
                        // A custom resource, which a control loop defines.
                        || resource.starts_with("clusternetworkpolicies");
                    let found = groups.iter().any(|g| known.contains(&format!("{}:{resource}", g.as_str().unwrap())));
                    assert!(virtual_ || found, "{}: {rule}", doc["metadata"]["name"]);
                }
            }
        }
    }

    #[test]
    fn defaults_let_everybody_do_their_work_and_no_more() {
        let objects = Fixed::new(documents());
        let chain = Chain::new(Arc::new(objects));
        let user = |name: &str, groups: &[&str]| UserInfo {
            name: name.into(),
            groups: groups.iter().map(|g| g.to_string()).collect(),
            ..UserInfo::default()
        };
        let anonymous = UserInfo::anonymous();
        let someone = user("jo", &["system:authenticated"]);
        let node = user("system:node:n", &["system:nodes", "system:authenticated"]);
        let scheduler = UserInfo::component("system:kube-scheduler");
        let controllers = UserInfo::component("system:kube-controller-manager");
        for (user, verb, group, resource, path, allowed) in [
            (&anonymous, "get", "", "", "/version", true),
            (&anonymous, "get", "", "", "/api", false),
            (&someone, "get", "", "", "/apis/apps/v1", true),
            (&someone, "get", "", "", "/metrics", false),
            (&someone, "create", "authorization.k8s.io", "selfsubjectaccessreviews", "", true),
            (&someone, "list", "", "pods", "", false),
            (&node, "watch", "", "services", "", true),
            (&node, "watch", "networking.k8s.io", "networkpolicies", "", true),
            (&node, "list", "", "pods", "", true),
            (&node, "list", "", "secrets", "", false),
            (&node, "create", "", "services", "", false),
            (&scheduler, "watch", "", "pods", "", true),
            (&scheduler, "create", "", "services", "", false),
            (&controllers, "delete", "example.com", "widgets", "", true),
        ] {
            let attributes = Attributes {
                user,
                verb,
                group,
                version: "v1",
                resource,
                subresource: "",
                namespace: "a",
                name: "",
                path,
                field_selector: "",
                label_selector: "",
            };
            assert_eq!(chain.authorize(&attributes) == Decision::Allow, allowed, "{} {verb} {resource}{path}", user.name);
        }
    }

    #[test]
    fn admin_holds_what_edit_and_view_hold() {
        let documents = documents();
        let rules = |name: &str| {
            let (_, doc) = documents.iter().find(|(_, d)| d["metadata"]["name"] == name && d["kind"] == "ClusterRole").unwrap();
            doc["rules"].as_array().unwrap().clone()
        };
        for (larger, smaller) in [("admin", "edit"), ("edit", "view"), ("view", "system:aggregate-to-view")] {
            assert!(rules(smaller).iter().all(|r| rules(larger).contains(r)), "{larger} {smaller}");
            assert!(!rules(smaller).is_empty());
        }
        assert!(rules("admin").len() > rules("edit").len());
    }
}
