//! Kinds that are only ever answered: access reviews, token reviews, who-am-I.

use http::StatusCode;
use serde_json::{Value, json};
use xebec_api::{
    Document,
    status::{self, ApiError},
};

use super::{
    Call,
    body::{self, Received},
};
use crate::{auth::UserInfo, authz::review, http::Response};

/// POST of a kind that is never stored.
pub(crate) async fn create(mut call: Call, received: Received) -> Result<Response, ApiError> {
    let (doc, warnings) = body::decode(&call, &received)?;
    call.warnings.extend(warnings);
    let resource = call.resource.clone();
    let authorizer = call.core.extensions.authorizer.clone();
    let mut answered = match (resource.group.as_str(), resource.kind.as_str()) {
        ("authorization.k8s.io", "SelfSubjectRulesReview") => review::rules(authorizer.as_ref(), doc, &call.user)?,
        ("authorization.k8s.io", kind) => review::access(authorizer.as_ref(), kind, doc, &call.info.namespace, &call.user)?,
        ("authentication.k8s.io", "SelfSubjectReview") => self_review(doc, &call.user),
        ("authentication.k8s.io", "TokenReview") => token_review(&call, doc).await?,
        _ => return Err(status::method_not_supported(&resource, "create")),
    };
    answered["kind"] = resource.kind.as_str().into();
    answered["apiVersion"] = resource.api_version().into();
    call.answer(StatusCode::CREATED, &answered)
}

fn user_document(user: &UserInfo) -> Value {
    let mut doc = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        doc["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        doc["extra"] = json!(user.extra);
    }
    doc
}

fn self_review(mut doc: Document, user: &UserInfo) -> Document {
    doc["status"] = json!({"userInfo": user_document(user)});
    doc
}

async fn token_review(call: &Call, mut doc: Document) -> Result<Document, ApiError> {
    let token = doc["spec"]["token"].as_str().unwrap_or_default().to_string();
    if token.is_empty() {
        return Err(status::bad_request("token is required for TokenReview in authentication"));
    }
    let audiences: Vec<String> =
        doc["spec"]["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_string).collect();
    doc["status"] = match call.core.extensions.tokens.authenticate(&token, &audiences).await {
        Ok(Some(mut user)) => {
            if !user.in_group(crate::auth::AUTHENTICATED) {
                user.groups.push(crate::auth::AUTHENTICATED.into());
            }
            let audiences = if audiences.is_empty() { vec![call.core.config.service_account_issuer.clone()] } else { audiences };
            json!({"authenticated": true, "user": user_document(&user), "audiences": audiences})
        }
        Ok(None) => json!({"authenticated": false, "user": {}}),
        Err(reason) => json!({"authenticated": false, "user": {}, "error": reason}),
    };
    Ok(doc)
}
