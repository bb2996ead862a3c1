//! `serviceaccounts/token`: a token for a service account, perhaps bound to a pod, secret or node.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use xebec_api::{
    Document, builtin, meta,
    status::{self, ApiError, FieldError},
};

use super::{Claims, Issuer, Kubernetes, Named};
use crate::objects::Objects;

const GROUP: &str = "authentication.k8s.io";
const SHORTEST: i64 = 600;
const LONGEST: i64 = 1 << 32;
const DEFAULT: i64 = 3600;
/// What kubelets ask for when a pod did not say: such tokens are prolonged for clients that never read them again.
const PROLONGED: i64 = 3607;
const PROLONGED_TO: i64 = 365 * 24 * 3600;

/// Answers a TokenRequest for the service account. The caller was authorized to ask.
///
/// # Errors
/// As upstream: 404 when the bound object is not there, 409 when it is another of that name, 422 for bad durations,
/// 400 for bindings that are not possible.
pub fn issue(
    objects: &dyn Objects,
    issuer: &Issuer,
    account: &Document,
    mut doc: Document,
    now: DateTime<Utc>,
) -> Result<Document, ApiError> {
    let (namespace, name) = (meta::namespace(account), meta::name(account));
    for (field, own, asked) in [("name", name, meta::name(&doc)), ("namespace", namespace, meta::namespace(&doc))] {
        if !asked.is_empty() && asked != own {
            return Err(status::bad_request(format!("the {field} of the provided object does not match the {field} sent on the request")));
        }
    }
    let spec = &doc["spec"];
    let seconds = match &spec["expirationSeconds"] {
        Value::Null => DEFAULT,
        value => value.as_i64().unwrap_or(0),
    };
    let mut errors = Vec::new();
    if seconds < SHORTEST {
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > LONGEST {
        errors.push(FieldError::invalid("spec.expirationSeconds", seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    if !errors.is_empty() {
        return Err(status::invalid_kind(GROUP, "TokenRequest", "", &errors));
    }
    let mut audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect();
    if audiences.is_empty() {
        audiences.push(issuer.url().to_string());
    }

    let mut private = Kubernetes { namespace: namespace.into(), serviceaccount: Named::of(account), ..Kubernetes::default() };
    let reference = spec["boundObjectRef"].clone();
    if reference.is_object() {
        bind(objects, name, &reference, &mut private)?;
    }

    let issued = now.timestamp();
    let mut expires = issued + seconds;
    if seconds == PROLONGED && private.pod.is_some() && audiences.iter().any(|a| a == issuer.url()) {
        private.warnafter = Some(issued + seconds);
        expires = issued + PROLONGED_TO;
    }
    let claims = Claims {
        aud: audiences.clone(),
        exp: expires,
        iat: issued,
        iss: issuer.url().to_string(),
        jti: uuid::Uuid::new_v4().to_string(),
        kubernetes: private,
        nbf: issued,
        sub: format!("system:serviceaccount:{namespace}:{name}"),
    };
    let token = issuer.sign(&claims).map_err(|e| status::internal(&format!("failed to sign token: {e}")))?;

    if !doc.is_object() {
        doc = json!({});
    }
    doc["apiVersion"] = format!("{GROUP}/v1").into();
    doc["kind"] = "TokenRequest".into();
    doc["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": meta::timestamp(now)});
    doc["spec"]["audiences"] = audiences.into();
    doc["spec"]["expirationSeconds"] = seconds.into();
    if !reference.is_object() {
        doc["spec"]["boundObjectRef"] = Value::Null;
    }
    // What was asked for: the rest is for clients that do not look.
    let told = DateTime::from_timestamp(issued + seconds, 0).unwrap_or(now);
    doc["status"] = json!({"token": token, "expirationTimestamp": meta::timestamp(told)});
    Ok(doc)
}

fn bind(objects: &dyn Objects, account: &str, reference: &Value, private: &mut Kubernetes) -> Result<(), ApiError> {
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (api_version, kind, name, uid) = (text("apiVersion"), text("kind"), text("name"), text("uid"));
    let namespace = private.namespace.clone();
    let (prefix, of) = match (api_version, kind) {
        ("v1", "Pod") => ("pods", namespace.as_str()),
        ("v1", "Secret") => ("secrets", namespace.as_str()),
        ("v1", "Node") => ("minions", ""),
        _ => {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            return Err(status::bad_request(format!("cannot bind token to object of type {group}/{version}, Kind={kind}")));
        }
    };
    let row = builtin::by_kind("v1", kind).ok_or_else(status::no_such_path)?;
    let bound = objects.get(prefix, of, name).ok_or_else(|| status::not_found(row, name))?;
    let named = Named::of(&bound);
    if !uid.is_empty() && uid != named.uid {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(status::conflict_because(row, name, &why));
    }
    match kind {
        "Pod" => {
            if bound["spec"]["serviceAccountName"] != account {
                return Err(status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            if let Some(node) = bound["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()) {
                let uid = objects.get("minions", "", node).map(|doc| Named::of(&doc).uid).unwrap_or_default();
                private.node = Some(Named { name: node.to_string(), uid });
            }
            private.pod = Some(named);
        }
        "Secret" => private.secret = Some(named),
        _ => private.node = Some(named),
    }
    Ok(())
}
