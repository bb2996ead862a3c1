//! How lists and maps merge: the `x-kubernetes-*` extensions of the API's types.
//!
//! A list without a row is atomic for server-side apply and replaced by strategic merge patches.

use std::{collections::HashMap, sync::LazyLock};

use super::Merge;

/// (definition without its common prefix, fields). A field is
/// - `name:key[,key]`: items are identified by the keys; strategic patches merge by the first
/// - `name:+`: unique scalars, merged by strategic patches too
/// - `name#`: a map owned as a whole; a lone `#`: the struct itself is
/// - `name!`: strategic patches retain keys; `name=`: they replace the value
///
/// with `~` before for server-side apply only, `^` for strategic merge patches only, and `!` after keys for retainKeys.
const LIST_ROWS: &[(&str, &str)] = &[
    ("admissionregistration.v1.MatchResources", "#"),
    ("admissionregistration.v1.MutatingAdmissionPolicySpec", "matchConditions:name"),
    ("admissionregistration.v1.MutatingWebhook", "matchConditions:name"),
    ("admissionregistration.v1.MutatingWebhookConfiguration", "webhooks:name"),
    ("admissionregistration.v1.NamedRuleWithOperations", "#"),
    ("admissionregistration.v1.ParamKind", "#"),
    ("admissionregistration.v1.ParamRef", "#"),
    ("admissionregistration.v1.ValidatingAdmissionPolicyBindingSpec", "~validationActions:+"),
    ("admissionregistration.v1.ValidatingAdmissionPolicySpec", "matchConditions:name variables:name"),
    ("admissionregistration.v1.ValidatingAdmissionPolicyStatus", "~conditions:type"),
    ("admissionregistration.v1.ValidatingWebhook", "matchConditions:name"),
    ("admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks:name"),
    ("admissionregistration.v1.Variable", "#"),
    ("apps.v1.DaemonSetStatus", "conditions:type"),
    ("apps.v1.DeploymentSpec", "strategy!"),
    ("apps.v1.DeploymentStatus", "conditions:type"),
    ("apps.v1.ReplicaSetStatus", "conditions:type"),
    ("apps.v1.StatefulSetStatus", "conditions:type"),
    ("autoscaling.v1.CrossVersionObjectReference", "#"),
    ("autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions:type"),
    ("batch.v1.JobStatus", "^conditions:type"),
    ("batch.v1.PodFailurePolicyOnExitCodesRequirement", "~values:+"),
    ("batch.v1.UncountedTerminatedPods", "~failed:+ ~succeeded:+"),
    ("certificates.v1.CertificateSigningRequestStatus", "~conditions:type"),
    ("core.v1.ComponentStatus", "conditions:type"),
    ("core.v1.ConfigMapKeySelector", "#"),
    ("core.v1.Container", CONTAINER),
    ("core.v1.ContainerRestartRuleOnExitCodes", "~values:+"),
    ("core.v1.ContainerStatus", "allocatedResourcesStatus:name volumeMounts:mountPath"),
    ("core.v1.EndpointAddress", "#"),
    ("core.v1.EndpointPort", "#"),
    ("core.v1.EphemeralContainer", CONTAINER),
    ("core.v1.FileKeySelector", "#"),
    ("core.v1.LocalObjectReference", "#"),
    ("core.v1.NamespaceStatus", "conditions:type"),
    ("core.v1.NodeAllocatableResourceClaimStatus", "~containers:+"),
    ("core.v1.NodeSelector", "#"),
    ("core.v1.NodeSelectorTerm", "#"),
    ("core.v1.NodeSpec", "podCIDRs:+"),
    ("core.v1.NodeStatus", "addresses:type conditions:type"),
    ("core.v1.ObjectFieldSelector", "#"),
    ("core.v1.ObjectReference", "#"),
    ("core.v1.PersistentVolumeClaimStatus", "conditions:type"),
    (
        "core.v1.PodSpec",
        "containers:name ephemeralContainers:name hostAliases:ip imagePullSecrets:name initContainers:name nodeSelector# \
         resourceClaims:name! schedulingGates:name topologySpreadConstraints:topologyKey,whenUnsatisfiable volumes:name!",
    ),
    ("core.v1.PodStatus", "conditions:type ^hostIPs:ip podIPs:ip resourceClaimStatuses:name!"),
    ("core.v1.ReplicationControllerSpec", "selector#"),
    ("core.v1.ReplicationControllerStatus", "conditions:type"),
    ("core.v1.ResourceFieldSelector", "#"),
    ("core.v1.ResourceRequirements", "~claims:name"),
    ("core.v1.ResourceStatus", "~resources:resourceID"),
    ("core.v1.ScopeSelector", "#"),
    ("core.v1.SecretKeySelector", "#"),
    ("core.v1.SecretReference", "#"),
    ("core.v1.ServiceAccount", "secrets:name"),
    ("core.v1.ServiceSpec", "ports:port,protocol selector#"),
    ("core.v1.ServiceStatus", "conditions:type"),
    ("core.v1.TopologySelectorTerm", "#"),
    ("core.v1.TypedLocalObjectReference", "#"),
    ("discovery.v1.Endpoint", "~addresses:+"),
    ("discovery.v1.EndpointPort", "#"),
    ("flowcontrol.v1.FlowSchemaStatus", "conditions:type"),
    ("flowcontrol.v1.NonResourcePolicyRule", "~nonResourceURLs:+ ~verbs:+"),
    ("flowcontrol.v1.PriorityLevelConfigurationStatus", "conditions:type"),
    ("flowcontrol.v1.ResourcePolicyRule", "~apiGroups:+ ~namespaces:+ ~resources:+ ~verbs:+"),
    ("networking.v1.ServiceBackendPort", "#"),
    ("networking.v1.ServiceCIDRStatus", "conditions:type"),
    ("node.v1.Scheduling", "nodeSelector#"),
    ("policy.v1.PodDisruptionBudgetSpec", "selector="),
    ("policy.v1.PodDisruptionBudgetStatus", "conditions:type"),
    ("rbac.v1.RoleRef", "#"),
    ("rbac.v1.Subject", "#"),
    ("resource.v1.AllocatedDeviceStatus", "~conditions:type"),
    ("resource.v1.ResourceClaimStatus", "~devices:driver,device,pool,shareID reservedFor:uid"),
    ("storage.v1.CSIDriverSpec", "~volumeLifecycleModes:+"),
    ("storage.v1.CSINodeSpec", "drivers:name"),
    ("apiextensions.v1.CustomResourceDefinitionStatus", "~conditions:type"),
    ("apiextensions.v1.JSONSchemaProps", "x-kubernetes-validations:rule"),
    ("meta.v1.LabelSelector", "#"),
    ("meta.v1.ObjectMeta", "finalizers:+ ownerReferences:uid"),
    ("meta.v1.OwnerReference", "#"),
    ("apiregistration.v1.APIServiceStatus", "conditions:type"),
];

const CONTAINER: &str = "env:name ports:containerPort,protocol volumeDevices:devicePath volumeMounts:mountPath";

/// By (struct, field); the empty field is the struct itself.
static TABLE: LazyLock<HashMap<(&'static str, &'static str), Merge>> = LazyLock::new(|| {
    let mut table = HashMap::new();
    for (name, fields) in LIST_ROWS {
        for text in fields.split_whitespace() {
            let (field, merge) = parse(text);
            table.insert((*name, field), merge);
        }
    }
    table
});

fn parse(text: &'static str) -> (&'static str, Merge) {
    let (apply, patch) = (!text.starts_with('^'), !text.starts_with('~'));
    let text = text.trim_start_matches(['~', '^']);
    let retain_keys = text.ends_with('!');
    let replace = text.ends_with('=');
    let atomic_map = text.ends_with('#');
    let text = text.trim_end_matches(['!', '=', '#']);
    let mut merge = Merge { retain_keys, replace, atomic_map, ..Merge::default() };
    let (field, keys) = text.split_once(':').unwrap_or((text, ""));
    match keys {
        "" => {}
        "+" => {
            merge.set = apply;
            merge.patch_key = patch.then_some("");
        }
        keys => {
            // Split once for all, at first use of the table.
            let list: Vec<&'static str> = keys.split(',').collect();
            merge.patch_key = patch.then_some(list[0]);
            if apply {
                merge.list_keys = list.leak();
            }
        }
    }
    (field, merge)
}

fn strip(name: &str) -> &str {
    const PREFIXES: [&str; 4] =
        ["io.k8s.api.", "io.k8s.apimachinery.pkg.apis.", "io.k8s.apiextensions-apiserver.pkg.apis.", "io.k8s.kube-aggregator.pkg.apis."];
    PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name)
}

/// How a field of a definition merges.
pub fn of(definition: &str, field: &str) -> Merge {
    let name = strip(definition);
    TABLE.iter().find(|((n, f), _)| *n == name && *f == field).map(|(_, m)| *m).unwrap_or_default()
}

/// Whether a struct is owned as a whole by server-side apply.
pub fn is_atomic_struct(definition: &str) -> bool {
    of(definition, "").atomic_map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Type, schemas};

    #[test]
    fn rows_name_fields_that_exist() {
        for (name, field) in TABLE.keys() {
            let found = schemas().structs().iter().find(|s| strip(&s.name) == *name);
            let found = found.unwrap_or_else(|| panic!("{name} is no struct"));
            assert!(field.is_empty() || found.fields.contains_key(*field), "{name} has no {field}");
        }
    }

    #[test]
    fn keys_are_fields_of_the_items() {
        for s in schemas().structs() {
            for (name, field) in &s.fields {
                let Type::List(item) = &field.ty else { continue };
                if let Type::Struct(id) = **item {
                    for key in field.merge.list_keys {
                        assert!(schemas().get(id).fields.contains_key(*key), "{} {name} {key}", s.name);
                    }
                }
            }
        }
    }

    #[test]
    fn notation_is_read() {
        let volumes = of("io.k8s.api.core.v1.PodSpec", "volumes");
        assert!(volumes.retain_keys && volumes.patch_key == Some("name") && volumes.list_keys == ["name"]);
        let ports = of("io.k8s.api.core.v1.ServiceSpec", "ports");
        assert!(ports.list_keys == ["port", "protocol"] && ports.patch_key == Some("port"));
        let job = of("io.k8s.api.batch.v1.JobStatus", "conditions");
        assert!(job.list_keys.is_empty() && job.patch_key == Some("type"));
        assert!(is_atomic_struct("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector"));
        assert!(of("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers").set);
    }
}
