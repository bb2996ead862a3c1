//! Documents to bytes.

use base64::Engine;
use prost::{
    Message as _,
    encoding::{WireType, encode_key},
};
use serde_json::{Map, Value};

use super::{
    MAGIC,
    numbers::{self, Message, Slot},
    scalars::{IntOrString, Quantity, Raw, Timestamp, TypeMeta, Unknown},
    wire::{bytes, varint},
};
use crate::{
    Document,
    schema::{Struct, StructId, Type, schemas},
};

/// The message of a document; `None` for kinds that have no protobuf form.
pub fn encode(doc: &Document) -> Option<Vec<u8>> {
    let (api_version, kind) = (doc["apiVersion"].as_str()?, doc["kind"].as_str()?);
    // `Status` is of every version.
    let id = schemas().kind(api_version, kind)?;
    let raw = structure(id, doc.as_object()?)?;
    Some(wrap(api_version, kind, raw))
}

/// A list (`PodList` ...) of documents of one kind; `metadata` is the list's.
pub fn encode_list<'a>(
    api_version: &str,
    list_kind: &str,
    item_kind: &str,
    metadata: &Value,
    items: impl IntoIterator<Item = &'a Document>,
) -> Option<Vec<u8>> {
    let id = schemas().kind(api_version, item_kind)?;
    let list_meta = schemas().structs().iter().find(|s| s.name.ends_with(".meta.v1.ListMeta"))?;
    let mut raw = Vec::new();
    let mut meta = Vec::new();
    fields(list_meta, numbers::message(list_meta)?, metadata.as_object()?, &mut meta)?;
    bytes(1, &meta, &mut raw);
    for item in items {
        bytes(2, &structure(id, item.as_object()?)?, &mut raw);
    }
    Some(wrap(api_version, list_kind, raw))
}

/// One event of a watch: its length in four bytes, big-endian, and a `meta/v1.WatchEvent` around the object's message.
pub fn watch_frame(event_type: &str, object: Vec<u8>) -> Vec<u8> {
    let mut event = Vec::with_capacity(object.len() + 32);
    bytes(1, event_type.as_bytes(), &mut event);
    bytes(2, &Raw { raw: Some(object) }.encode_to_vec(), &mut event);
    let mut frame = u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    frame.append(&mut event);
    frame
}

fn wrap(api_version: &str, kind: &str, raw: Vec<u8>) -> Vec<u8> {
    let unknown = Unknown {
        type_meta: Some(TypeMeta { api_version: Some(api_version.into()), kind: Some(kind.into()) }),
        raw: Some(raw),
        content_encoding: Some(String::new()),
        content_type: Some(String::new()),
    };
    let mut out = Vec::with_capacity(unknown.encoded_len() + MAGIC.len());
    out.extend_from_slice(MAGIC);
    // Writing to a Vec cannot fail: it grows.
    let _ = unknown.encode(&mut out);
    out
}

fn structure(id: StructId, object: &Map<String, Value>) -> Option<Vec<u8>> {
    let structure = schemas().get(id);
    let mut out = Vec::new();
    fields(structure, numbers::message(structure)?, object, &mut out)?;
    Some(out)
}

fn fields(structure: &Struct, message: &Message, object: &Map<String, Value>, out: &mut Vec<u8>) -> Option<()> {
    for (number, slot) in message.slots() {
        match slot {
            Slot::Inline(inner) => {
                let mut body = Vec::new();
                fields(structure, inner, object, &mut body)?;
                bytes(number, &body, out);
            }
            Slot::Field { name, .. } => {
                if let (Some(field), Some(value)) = (structure.fields.get(name), object.get(name))
                    && !value.is_null()
                {
                    put(number, &field.ty, value, out)?;
                }
            }
        }
    }
    Some(())
}

fn put(number: u32, ty: &Type, value: &Value, out: &mut Vec<u8>) -> Option<()> {
    match ty {
        Type::List(item) => {
            for value in value.as_array()? {
                match item.as_ref() {
                    Type::List(inner) => bytes(number, &wrapped(inner, value)?, out),
                    item => put(number, item, value, out)?,
                }
            }
        }
        Type::Map(item) => {
            for (key, value) in value.as_object()? {
                let mut entry = Vec::new();
                bytes(1, key.as_bytes(), &mut entry);
                match item.as_ref() {
                    Type::List(inner) => bytes(2, &wrapped(inner, value)?, &mut entry),
                    item => put(2, item, value, &mut entry)?,
                }
                bytes(number, &entry, out);
            }
        }
        Type::Bool => varint(number, u64::from(value.as_bool()?), out),
        // Two's complement in 64 bits, as protobuf has it for negative numbers.
        Type::Int32 | Type::Int64 => varint(number, value.as_i64()? as u64, out),
        Type::Float => {
            encode_key(number, WireType::SixtyFourBit, out);
            out.extend_from_slice(&value.as_f64()?.to_le_bytes());
        }
        Type::String => bytes(number, value.as_str()?.as_bytes(), out),
        Type::Bytes => bytes(number, &base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()?, out),
        Type::Time | Type::MicroTime => bytes(number, &Timestamp::from_json(value.as_str()?)?.encode_to_vec(), out),
        Type::IntOrString => bytes(number, &IntOrString::from_json(value).encode_to_vec(), out),
        Type::Quantity => {
            let string = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            bytes(number, &Quantity { string: Some(string) }.encode_to_vec(), out);
        }
        Type::Any => bytes(number, &Raw { raw: Some(serde_json::to_vec(value).ok()?) }.encode_to_vec(), out),
        Type::Struct(id) => bytes(number, &structure(*id, value.as_object()?)?, out),
        Type::Either(first, second) => bytes(number, &either(first, second, value)?, out),
    }
    Some(())
}

fn wrapped(item: &Type, value: &Value) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    for value in value.as_array()? {
        put(1, item, value, &mut out)?;
    }
    Some(out)
}

fn either(first: &Type, second: &Type, value: &Value) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match (second, value) {
        (Type::Bool, Value::Bool(allows)) => varint(1, u64::from(*allows), &mut out),
        (Type::Bool, schema) => {
            varint(1, 1, &mut out);
            put(2, first, schema, &mut out)?;
        }
        (_, Value::Array(_)) => put(2, second, value, &mut out)?,
        (_, schema) => put(1, first, schema, &mut out)?,
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::{super::decode, *};

    fn there_and_back(doc: Value) {
        let bytes = encode(&doc).unwrap_or_else(|| panic!("{}", doc["kind"]));
        assert_eq!(decode(&bytes).unwrap(), doc);
    }

    #[test]
    fn documents_survive_the_way_there_and_back() {
        there_and_back(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "creationTimestamp": "2024-05-01T10:11:12Z", "labels": {"a": "b", "empty": ""},
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "hostNetwork": true,
                "securityContext": {"runAsUser": 0, "supplementalGroups": [1, 2, 3], "sysctls": [{"name": "a", "value": "b"}]},
                "tolerations": [{"operator": "Exists", "tolerationSeconds": 0}],
                "volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 420, "optional": false, "items": [{"key": "k", "path": "p"}]}},
                    {"name": "e", "emptyDir": {"sizeLimit": "1Gi"}},
                    {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]}}],
                "containers": [{"name": "c", "image": "i", "args": ["", "-x"], "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                    "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}}, "ports": [{"containerPort": 80}],
                    "livenessProbe": {"httpGet": {"path": "/", "port": "web", "scheme": "HTTP"}, "periodSeconds": 3},
                    "readinessProbe": {"tcpSocket": {"port": 80}}}]},
            "status": {"phase": "Running", "startTime": "1969-12-31T23:59:59Z"}}));
        there_and_back(
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAEC/w=="}, "type": "Opaque", "immutable": false}),
        );
        there_and_back(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"replicas": 0,
            "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {}, "spec": {"nodeName": "n"}}}}));
        there_and_back(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"holderIdentity": "h", "leaseDurationSeconds": 40, "renewTime": "2024-05-01T10:11:12.123456Z"}}));
        there_and_back(
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "e"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}], "ports": [{"name": "", "port": 80}]}),
        );
        there_and_back(
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {}, "spec": {"user": "u",
            "extra": {"k": ["a", "b"]}, "groups": ["g"]}, "status": {"allowed": false}}),
        );
        there_and_back(
            json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "c"}, "spec": {"group": "g", "scope": "Namespaced",
            "names": {"plural": "cs", "kind": "C"}, "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "a": {"type": "array", "items": {"type": "string", "minLength": 1, "default": "x", "enum": ["x", 1]}},
                "b": {"type": "object", "additionalProperties": {"type": "number", "minimum": 1.5}}, "c": {"additionalProperties": true}}}}}]}}),
        );
        there_and_back(
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "propagationPolicy": "Foreground", "preconditions": {"uid": "u"}}),
        );
    }

    #[test]
    fn zeros_of_plain_fields_are_left_out() {
        let pod = k8s_pb::api::core::v1::Pod {
            metadata: Some(k8s_pb::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some("p".into()),
                generate_name: Some(String::new()),
                generation: Some(0),
                creation_timestamp: Some(Default::default()),
                ..Default::default()
            }),
            spec: Some(k8s_pb::api::core::v1::PodSpec {
                host_network: Some(false),
                subdomain: Some(String::new()),
                enable_service_links: Some(false),
                containers: vec![k8s_pb::api::core::v1::Container {
                    name: Some("c".into()),
                    tty: Some(false),
                    resources: Some(Default::default()),
                    liveness_probe: Some(k8s_pb::api::core::v1::Probe {
                        handler: Some(k8s_pb::api::core::v1::ProbeHandler {
                            exec: Some(k8s_pb::api::core::v1::ExecAction { command: vec!["true".into()] }),
                            ..Default::default()
                        }),
                        timeout_seconds: Some(0),
                        period_seconds: Some(7),
                        ..Default::default()
                    }),
                    ..Default::default()
                }],
                ..Default::default()
            }),
            status: Some(Default::default()),
        };
        let bytes = wrap("v1", "Pod", pod.encode_to_vec());
        assert_eq!(
            decode(&bytes).unwrap(),
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": {}, "spec": {"enableServiceLinks": false, "containers": [
                {"name": "c", "resources": {}, "livenessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 7}}]}})
        );
    }

    #[test]
    fn others_read_what_is_written() {
        let doc = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": {"a": "b"}}, "spec": {"clusterIP": "10.96.0.9",
            "ports": [{"name": "web", "port": 80, "targetPort": "http", "nodePort": 30001}], "selector": {"app": "x"}}});
        let bytes = encode(&doc).unwrap();
        let unknown = Unknown::decode(&bytes[4..]).unwrap();
        let service = k8s_pb::api::core::v1::Service::decode(unknown.raw.unwrap().as_slice()).unwrap();
        let spec = service.spec.unwrap();
        assert_eq!(service.metadata.unwrap().labels["a"], "b");
        assert_eq!((spec.cluster_ip(), spec.ports[0].port(), spec.ports[0].node_port()), ("10.96.0.9", 80, 30001));
        assert_eq!(spec.ports[0].target_port.as_ref().unwrap().str_val(), "http");
        let list = encode_list("v1", "ServiceList", "Service", &json!({"resourceVersion": "7"}), [&doc, &doc]).unwrap();
        let unknown = Unknown::decode(&list[4..]).unwrap();
        let list = k8s_pb::api::core::v1::ServiceList::decode(unknown.raw.unwrap().as_slice()).unwrap();
        assert_eq!((list.items.len(), list.metadata.unwrap().resource_version()), (2, "7"));
    }

    #[test]
    fn damaged_messages_are_errors() {
        let bytes = encode(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"k": "v"}})).unwrap();
        assert!(decode(&bytes[1..]).unwrap_err().contains("expected prefix"));
        for cut in 5..bytes.len() {
            // Cut short it is an error, or (at a boundary) less; never a panic.
            let _ = decode(&bytes[..cut]);
        }
        assert!(decode(&wrap("v1", "NoSuchKind", Vec::new())).unwrap_err().contains("no kind \"NoSuchKind\""));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&wrap("v1", "Pod", bytes.clone()));
            let _ = decode(&wrap("apiextensions.k8s.io/v1", "CustomResourceDefinition", bytes));
        }
    }
}
