//! Who asks, and the questions the server puts to authentication and authorization.

use std::collections::BTreeMap;

use xebec_api::{
    Document,
    status::{self, ApiError},
};

/// The authenticated user, `user.Info` upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Group of every authenticated user.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Group of every request without credentials.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// User of every request without credentials.
pub const ANONYMOUS: &str = "system:anonymous";
/// Group that authorization never denies.
pub const MASTERS: &str = "system:masters";

impl UserInfo {
    /// A part of the control plane, e.g. `system:kube-scheduler`.
    pub fn component(name: &str) -> UserInfo {
        UserInfo { name: name.into(), groups: vec![AUTHENTICATED.into()], ..UserInfo::default() }
    }

    /// The server itself: may do everything.
    pub fn loopback() -> UserInfo {
        UserInfo { name: "system:apiserver".into(), groups: vec![AUTHENTICATED.into(), MASTERS.into()], ..UserInfo::default() }
    }

    /// The user of a request without credentials.
    pub fn anonymous() -> UserInfo {
        UserInfo { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..UserInfo::default() }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is asked of the authorizer, `authorizer.Attributes` upstream.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    pub user: &'a UserInfo,
    /// `get`, `list`, `watch`, `create`, ... or the lower-case method of a path that is no resource.
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    /// Plural name; empty for a path that is no resource.
    pub resource: &'a str,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub path: &'a str,
    /// `fieldSelector` of list, watch and deletecollection, as sent.
    pub field_selector: &'a str,
    pub label_selector: &'a str,
}

/// An authorizer's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow,
    /// Not allowed by anything, with a reason for the message (may be empty).
    Deny(String),
}

/// Decides from what is in memory: it is asked on every request and must not wait.
pub trait Authorizer: Send + Sync {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision;

    /// The rules of `user` in `namespace`, as `SelfSubjectRulesReview` reports them: (resource rules, non-resource rules, incomplete).
    fn rules(&self, _user: &UserInfo, _namespace: &str) -> (Vec<serde_json::Value>, Vec<serde_json::Value>, bool) {
        (Vec::new(), Vec::new(), true)
    }
}

/// Turns a bearer token into a user.
#[async_trait::async_trait]
pub trait TokenAuthenticator: Send + Sync {
    /// `Ok(None)`: not a token of this kind; `Err`: it is, but must not be trusted (message for TokenReview).
    /// `audiences` empty means the API server itself.
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<UserInfo>, String>;

    /// Answers `serviceaccounts/token`: fills `status` of the TokenRequest `request` for the ServiceAccount `account`.
    ///
    /// # Errors
    /// 422 for a request that makes no sense, 404 and 409 for objects to bind to that are not there.
    async fn issue(&self, _account: &Document, _request: Document, _user: &UserInfo) -> Result<Document, ApiError> {
        Err(status::no_such_path())
    }

    /// `/.well-known/openid-configuration` of the issuer of tokens; `server` is the URL of this server.
    fn discovery(&self, _server: &str) -> Option<Document> {
        None
    }

    /// `/openid/v1/jwks`: the keys that tokens are signed with.
    fn keys(&self) -> Option<Document> {
        None
    }
}

/// Allows `system:masters`, nodes and the control plane's own parts everything, everybody the health and version paths.
pub struct MastersOnly;

impl Authorizer for MastersOnly {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        let public = attributes.resource.is_empty()
            && (["/healthz", "/readyz", "/livez", "/version"].contains(&attributes.path) || attributes.path.starts_with("/version/"));
        let user = attributes.user;
        let own = user.in_group(MASTERS) || user.in_group("system:nodes") || user.name.starts_with("system:kube-");
        if public || own { Decision::Allow } else { Decision::Deny(String::new()) }
    }
}

/// Knows no token.
pub struct NoTokens;

#[async_trait::async_trait]
impl TokenAuthenticator for NoTokens {
    async fn authenticate(&self, _token: &str, _audiences: &[String]) -> Result<Option<UserInfo>, String> {
        Ok(None)
    }
}
