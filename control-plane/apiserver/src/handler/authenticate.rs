//! Who the user of a request is.

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use percent_encoding::percent_decode_str;
use xebec_api::status::{self, ApiError};

use super::forbidden;
use crate::{
    auth::{AUTHENTICATED, Attributes, Decision, UserInfo},
    core::Core,
    http::Peer,
};

/// Certificate first, then bearer token, then anonymous (which authorization lets do little).
///
/// # Errors
/// 401 when credentials were given and none of them holds.
pub(super) async fn authenticate(core: &Core, peer: &Peer, headers: &HeaderMap) -> Result<UserInfo, ApiError> {
    let certificate = match peer {
        Peer::Internal(user) => return Ok(user.clone()),
        Peer::Remote { certificate, .. } => certificate,
    };
    let mut failed = false;
    match certificate {
        Some(Ok(user)) => return Ok(authenticated(user.clone())),
        Some(Err(reason)) => {
            tracing::debug!(%reason, "client certificate refused");
            failed = true;
        }
        None => {}
    }
    if let Some(token) = bearer(headers) {
        match core.extensions.tokens.authenticate(token, &[]).await {
            Ok(Some(user)) => return Ok(authenticated(user)),
            Ok(None) => {}
            Err(reason) => tracing::debug!(%reason, "bearer token refused"),
        }
        failed = true;
    }
    if failed { Err(status::unauthorized()) } else { Ok(UserInfo::anonymous()) }
}

fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.into());
    }
    user
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The user the caller wants to be, if it may be.
///
/// # Errors
/// 403 when it may not, 400 (as upstream: 500) when groups are given without a user.
pub(super) fn impersonate(core: &Core, user: &UserInfo, headers: &HeaderMap) -> Result<Option<UserInfo>, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name = text("impersonate-user");
    let groups: Vec<String> = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).map(str::to_string).collect();
    let uid = text("impersonate-uid");
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix("impersonate-extra-") {
            let key = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
            extra.entry(key).or_default().push(value.to_str().unwrap_or_default().to_string());
        }
    }
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(status::internal("requested impersonation without impersonating a user"));
    }
    let allowed = |resource: &str, group: &str, namespace: &str, subresource: &str, name: &str| -> Result<(), ApiError> {
        let attributes = Attributes {
            user,
            verb: "impersonate",
            group,
            version: "",
            resource,
            subresource,
            namespace,
            name,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        match core.extensions.authorizer.authorize(&attributes) {
            Decision::Allow => Ok(()),
            Decision::Deny(reason) => Err(forbidden(&attributes, &reason)),
        }
    };
    let mut all_groups = groups.clone();
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            allowed("serviceaccounts", "", namespace, "", account)?;
            if groups.is_empty() {
                all_groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        None => allowed("users", "", "", "", name)?,
    }
    for group in &groups {
        allowed("groups", "", "", "", group)?;
    }
    if !uid.is_empty() {
        allowed("uids", "authentication.k8s.io", "", "", uid)?;
    }
    for (key, values) in &extra {
        for value in values {
            allowed("userextras", "authentication.k8s.io", "", key, value)?;
        }
    }
    let other = UserInfo { name: name.to_string(), uid: uid.to_string(), groups: all_groups, extra };
    Ok(Some(if name == crate::auth::ANONYMOUS { other } else { authenticated(other) }))
}
