//! Reads the schemas of k8s-openapi's types.

use std::collections::HashMap;

use k8s_openapi::{
    api,
    apiextensions_apiserver::pkg::apis::apiextensions,
    apimachinery::pkg::apis::meta,
    kube_aggregator::pkg::apis::apiregistration,
    schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings},
};
use serde_json::{Map, Value};

use super::{Field, Schemas, Struct, StructId, Type, merge};

/// Lists every kind that has a body: its `apiVersion` and Rust type.
macro_rules! kinds {
    ($($version:literal: $($module:ident)::+ { $($kind:ident)* })*) => {
        /// Adds all kinds to the generator; answers (apiVersion, kind, definition name) of each.
        fn register(generator: &mut SchemaGenerator) -> Vec<(&'static str, &'static str, String)> {
            let mut list = Vec::new();
            $({
                use $($module)::+ as module;
                $(
                    generator.subschema_for::<module::$kind>();
                    let name = <module::$kind as JsonSchema>::schema_name().into_owned();
                    list.push(($version, stringify!($kind), name));
                )*
            })*
            list
        }
    };
}

kinds! {
    "v1": api::core::v1 { Binding ComponentStatus ConfigMap Endpoints Event LimitRange Namespace Node PersistentVolume
        PersistentVolumeClaim Pod PodTemplate ReplicationController ResourceQuota Secret Service ServiceAccount }
    "v1": meta::v1 { DeleteOptions Status }
    "apps/v1": api::apps::v1 { ControllerRevision DaemonSet Deployment ReplicaSet StatefulSet }
    "batch/v1": api::batch::v1 { CronJob Job }
    "autoscaling/v1": api::autoscaling::v1 { HorizontalPodAutoscaler Scale }
    "autoscaling/v2": api::autoscaling::v2 { HorizontalPodAutoscaler }
    "authentication.k8s.io/v1": api::authentication::v1 { SelfSubjectReview TokenRequest TokenReview }
    "authorization.k8s.io/v1": api::authorization::v1 { LocalSubjectAccessReview SelfSubjectAccessReview
        SelfSubjectRulesReview SubjectAccessReview }
    "certificates.k8s.io/v1": api::certificates::v1 { CertificateSigningRequest }
    "coordination.k8s.io/v1": api::coordination::v1 { Lease }
    "discovery.k8s.io/v1": api::discovery::v1 { EndpointSlice }
    "events.k8s.io/v1": api::events::v1 { Event }
    "flowcontrol.apiserver.k8s.io/v1": api::flowcontrol::v1 { FlowSchema PriorityLevelConfiguration }
    "networking.k8s.io/v1": api::networking::v1 { Ingress IngressClass IPAddress NetworkPolicy ServiceCIDR }
    "node.k8s.io/v1": api::node::v1 { RuntimeClass }
    "policy/v1": api::policy::v1 { Eviction PodDisruptionBudget }
    "rbac.authorization.k8s.io/v1": api::rbac::v1 { ClusterRole ClusterRoleBinding Role RoleBinding }
    "resource.k8s.io/v1": api::resource::v1 { DeviceClass ResourceClaim ResourceClaimTemplate ResourceSlice }
    "scheduling.k8s.io/v1": api::scheduling::v1 { PriorityClass }
    "storage.k8s.io/v1": api::storage::v1 { CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment
        VolumeAttributesClass }
    "admissionregistration.k8s.io/v1": api::admissionregistration::v1 { MutatingAdmissionPolicy
        MutatingAdmissionPolicyBinding MutatingWebhookConfiguration ValidatingAdmissionPolicy
        ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration }
    "apiextensions.k8s.io/v1": apiextensions::v1 { CustomResourceDefinition }
    "apiregistration.k8s.io/v1": apiregistration::v1 { APIService }
}

/// OpenAPI definitions of all kinds by name, with descriptions, and (apiVersion, kind, name) of the kinds.
/// Several megabytes: for documents, not to keep.
pub fn definitions() -> (Map<String, Value>, Vec<(&'static str, &'static str, String)>) {
    let mut generator = SchemaSettings::draft07().into_generator();
    let kinds = register(&mut generator);
    (generator.take_definitions(true), kinds)
}

pub(super) fn build() -> Schemas {
    let (definitions, kinds) = definitions();
    let ids: HashMap<&str, StructId> = definitions.keys().enumerate().map(|(i, name)| (name.as_str(), StructId(i as u16))).collect();
    let structs =
        definitions.iter().map(|(name, schema)| Struct { name: name.as_str().into(), fields: fields(name, schema, &ids) }).collect();
    let kinds = kinds.iter().filter_map(|(v, k, name)| Some(((*v, *k), *ids.get(name.as_str())?))).collect();
    Schemas { structs, kinds }
}

fn fields(name: &str, schema: &Value, ids: &HashMap<&str, StructId>) -> HashMap<Box<str>, Field> {
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties
        .map(|(field, schema)| {
            let merge = merge::of(name, field);
            (field.as_str().into(), Field { ty: type_of(schema, ids), merge })
        })
        .collect()
}

fn type_of(schema: &Value, ids: &HashMap<&str, StructId>) -> Type {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    if let Some(name) = reference.and_then(|r| r.rsplit('/').next()) {
        return named(name, ids);
    }
    let format = schema["format"].as_str().unwrap_or_default();
    match schema["type"].as_str().unwrap_or_default() {
        "string" if format == "byte" => Type::Bytes,
        "string" if format == "date-time" => Type::Time,
        "string" => Type::String,
        "boolean" => Type::Bool,
        "integer" if format == "int32" => Type::Int32,
        "integer" => Type::Int64,
        "number" => Type::Float,
        "array" => Type::List(Box::new(type_of(&schema["items"], ids))),
        "object" if schema["additionalProperties"].is_object() => Type::Map(Box::new(type_of(&schema["additionalProperties"], ids))),
        _ => Type::Any,
    }
}

/// Names whose JSON form is not what their schema says, or that are leaves.
fn named(name: &str, ids: &HashMap<&str, StructId>) -> Type {
    const CRD: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.";
    let props = || ids.get(format!("{CRD}JSONSchemaProps").as_str()).map_or(Type::Any, |id| Type::Struct(*id));
    match name.rsplit('.').next().unwrap_or_default() {
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "RawExtension" | "FieldsV1" | "JSON" => Type::Any,
        "JSONSchemaPropsOrArray" => Type::Either(Box::new(props()), Box::new(Type::List(Box::new(props())))),
        "JSONSchemaPropsOrBool" => Type::Either(Box::new(props()), Box::new(Type::Bool)),
        "JSONSchemaPropsOrStringArray" => Type::Either(Box::new(props()), Box::new(Type::List(Box::new(Type::String)))),
        _ => ids.get(name).map_or(Type::Any, |id| Type::Struct(*id)),
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        builtin,
        schema::{Type, schemas},
    };

    #[test]
    fn every_row_has_a_schema() {
        for r in builtin::resources() {
            let id = schemas().of(r).unwrap_or_else(|| panic!("{} has none", r.kind));
            assert!(schemas().get(id).fields.contains_key("metadata"), "{}", r.kind);
            for sub in &r.subresources {
                if let Some((group, version, kind)) = sub.kind.filter(|(_, _, k)| !k.ends_with("Options")) {
                    let api_version = if group.is_empty() { version.into() } else { format!("{group}/{version}") };
                    assert!(schemas().kind(&api_version, kind).is_some(), "{kind}");
                }
            }
        }
    }

    #[test]
    fn types_are_read() {
        let named = |name: &str| schemas().named(&format!("io.k8s.api.core.v1.{name}")).unwrap();
        assert_eq!(named("Secret").fields["data"].ty, Type::Map(Box::new(Type::Bytes)));
        assert_eq!(named("ResourceRequirements").fields["limits"].ty, Type::Map(Box::new(Type::Quantity)));
        assert_eq!(named("ServicePort").fields["targetPort"].ty, Type::IntOrString);
        assert_eq!(named("ServicePort").fields["port"].ty, Type::Int32);
        assert_eq!(named("PodSpec").go_name(), "v1.PodSpec");
        assert_eq!(named("PodSpec").fields["containers"].merge.patch_key, Some("name"));
    }
}
