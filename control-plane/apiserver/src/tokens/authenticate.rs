//! From a bearer token to a user.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use serde_json::Value;
use xebec_api::{Document, status::ApiError};

use super::{Claims, EXTRA_CREDENTIAL, EXTRA_NODE_NAME, EXTRA_NODE_UID, EXTRA_POD_NAME, EXTRA_POD_UID, Issuer, Named};
use crate::auth::{AUTHENTICATED, TokenAuthenticator, UserInfo};
use crate::objects::Objects;

/// An object that is being deleted for longer than this no longer vouches for a token.
const DELETION_LEEWAY: i64 = 60;

/// Knows service-account tokens and bootstrap tokens.
pub struct Tokens {
    issuer: Arc<Issuer>,
    objects: Arc<dyn Objects>,
}

impl Tokens {
    pub fn new(issuer: Arc<Issuer>, objects: Arc<dyn Objects>) -> Tokens {
        Tokens { issuer, objects }
    }

    fn service_account(&self, token: &str, audiences: &[String], now: DateTime<Utc>) -> Result<UserInfo, String> {
        let claims = self.issuer.verify(token, now.timestamp())?;
        let own = [self.issuer.url().to_string()];
        let audiences = if audiences.is_empty() { &own[..] } else { audiences };
        if !claims.aud.iter().any(|a| audiences.contains(a)) {
            return Err(format!("token audiences [{}] is invalid for the target audiences [{}]", quoted(&claims.aud), quoted(audiences)));
        }
        self.still_valid(&claims, now.timestamp())?;
        Ok(user(&claims))
    }

    /// Whether all that the token is bound to is still there and the same.
    fn still_valid(&self, claims: &Claims, now: i64) -> Result<(), String> {
        let k = &claims.kubernetes;
        let same = |kind: &str, prefix: &str, namespace: &str, bound: &Named| {
            let Some(doc) = self.objects.get(prefix, namespace, &bound.name) else {
                return Err(format!("service account token has been invalidated: {kind} {:?} not found", bound.name));
            };
            if Named::of(&doc).uid != bound.uid {
                return Err(format!("{kind} UID ({}) does not match claim ({})", Named::of(&doc).uid, bound.uid));
            }
            let deleted = doc["metadata"]["deletionTimestamp"].as_str().and_then(|t| DateTime::parse_from_rfc3339(t).ok());
            if deleted.is_some_and(|at| at.timestamp() + DELETION_LEEWAY < now) {
                return Err(format!("{kind} has been deleted"));
            }
            Ok(())
        };
        same("ServiceAccount", "serviceaccounts", &k.namespace, &k.serviceaccount)?;
        if let Some(secret) = &k.secret {
            same("secret", "secrets", &k.namespace, secret)?;
        }
        if let Some(pod) = &k.pod {
            same("pod", "pods", &k.namespace, pod)?;
        } else if let Some(node) = &k.node {
            // With a pod the node only tells where that runs.
            same("node", "minions", "", node)?;
        }
        Ok(())
    }

    /// `ID.SECRET` of a Secret of type `bootstrap.kubernetes.io/token`.
    fn bootstrap(&self, token: &str, now: DateTime<Utc>) -> Option<Result<UserInfo, String>> {
        let (id, secret) = token.split_once('.')?;
        let well_formed =
            |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !well_formed(id, 6) || !well_formed(secret, 16) {
            return None;
        }
        let found = self.objects.get("secrets", "kube-system", &format!("bootstrap-token-{id}"));
        Some(bootstrap_user(found.as_ref(), id, secret, now).ok_or_else(|| "invalid bootstrap token".to_string()))
    }
}

fn bootstrap_user(doc: Option<&Value>, id: &str, secret: &str, now: DateTime<Utc>) -> Option<UserInfo> {
    let doc = doc?;
    if doc["type"] != "bootstrap.kubernetes.io/token" || !doc["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    let data = |key: &str| {
        let bytes = STANDARD.decode(doc["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if data("token-id")? != id || !same_secret(&data("token-secret")?, secret) || data("usage-bootstrap-authentication")? != "true" {
        return None;
    }
    if let Some(until) = data("expiration")
        && DateTime::parse_from_rfc3339(&until).ok()? <= now
    {
        return None;
    }
    let mut groups = vec!["system:bootstrappers".to_string()];
    for group in data("auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
        if !group.starts_with("system:bootstrappers:") {
            return None;
        }
        groups.push(group.to_string());
    }
    Some(UserInfo { name: format!("system:bootstrap:{id}"), groups, ..UserInfo::default() })
}

/// Compares without telling by time where the texts differ.
fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

fn quoted(list: &[String]) -> String {
    list.iter().map(|a| format!("{a:?}")).collect::<Vec<_>>().join(" ")
}

fn user(claims: &Claims) -> UserInfo {
    let k = &claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        if !value.is_empty() {
            extra.insert(key.to_string(), vec![value.to_string()]);
        }
    };
    if !claims.jti.is_empty() {
        add(EXTRA_CREDENTIAL, &format!("JTI={}", claims.jti));
    }
    if let Some(pod) = &k.pod {
        add(EXTRA_POD_NAME, &pod.name);
        add(EXTRA_POD_UID, &pod.uid);
    }
    if let Some(node) = &k.node {
        add(EXTRA_NODE_NAME, &node.name);
        add(EXTRA_NODE_UID, &node.uid);
    }
    UserInfo {
        name: format!("system:serviceaccount:{}:{}", k.namespace, k.serviceaccount.name),
        uid: k.serviceaccount.uid.clone(),
        groups: vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{}", k.namespace), AUTHENTICATED.into()],
        extra,
    }
}

#[async_trait::async_trait]
impl TokenAuthenticator for Tokens {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<UserInfo>, String> {
        let now = Utc::now();
        if self.issuer.recognizes(token) {
            return self.service_account(token, audiences, now).map(Some);
        }
        self.bootstrap(token, now).transpose()
    }

    async fn issue(&self, account: &Document, request: Document, user: &UserInfo) -> Result<Document, ApiError> {
        if let Some(node) = crate::authz::node_name(user) {
            let namespace = xebec_api::meta::namespace(account);
            crate::admission::node_restriction::token(&*self.objects, namespace, &request, node)
                .map_err(|why| xebec_api::status::forbidden_named("", "serviceaccounts", xebec_api::meta::name(account), &why))?;
        }
        super::issue(&*self.objects, &self.issuer, account, request, Utc::now())
    }

    fn discovery(&self, server: &str) -> Option<Value> {
        Some(self.issuer.discovery(server))
    }

    fn keys(&self) -> Option<Value> {
        Some(self.issuer.keys())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::fixed::Fixed;
    use crate::pki::Pki;
    use crate::tokens::issue;

    const URL: &str = "https://kubernetes.default.svc.cluster.local";

    fn set_up() -> (Arc<Fixed>, Arc<Issuer>, Tokens) {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let issuer = Arc::new(Issuer::new(URL, &pki.service_account_key, &pki.service_account_public).unwrap());
        let objects = Arc::new(Fixed::new(vec![
            ("serviceaccounts", json!({"metadata": {"name": "bot", "namespace": "a", "uid": "u1"}})),
            (
                "pods",
                json!({"metadata": {"name": "p", "namespace": "a", "uid": "p1"}, "spec": {"serviceAccountName": "bot", "nodeName": "n"}}),
            ),
            (
                "pods",
                json!({"metadata": {"name": "old", "namespace": "a", "uid": "p2", "deletionTimestamp": "2020-01-01T00:00:00Z"}, "spec": {"serviceAccountName": "bot"}}),
            ),
            ("pods", json!({"metadata": {"name": "q", "namespace": "a", "uid": "q1"}, "spec": {"serviceAccountName": "other"}})),
            ("minions", json!({"metadata": {"name": "n", "uid": "n1"}})),
            (
                "secrets",
                json!({"metadata": {"name": "bootstrap-token-abcdef", "namespace": "kube-system"}, "type": "bootstrap.kubernetes.io/token",
                "data": {"token-id": "YWJjZGVm", "token-secret": STANDARD.encode("0123456789abcdef"), "usage-bootstrap-authentication": "dHJ1ZQ==",
                         "auth-extra-groups": STANDARD.encode("system:bootstrappers:x")}}),
            ),
        ]));
        let tokens = Tokens::new(issuer.clone(), objects.clone());
        (objects, issuer, tokens)
    }

    fn request(objects: &Fixed, issuer: &Issuer, spec: Value) -> Result<Value, xebec_api::status::ApiError> {
        let account = objects.get("serviceaccounts", "a", "bot").unwrap();
        issue(objects, issuer, &account, json!({"spec": spec}), Utc::now())
    }

    fn token(doc: &Value) -> String {
        doc["status"]["token"].as_str().unwrap().to_string()
    }

    #[tokio::test]
    async fn a_pods_token_names_its_account_pod_and_node() {
        let (objects, issuer, tokens) = set_up();
        let bound = json!({"expirationSeconds": 3607, "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "p1"}});
        let doc = request(&objects, &issuer, bound).unwrap();
        assert_eq!(doc["spec"]["audiences"], json!([URL]));
        let user = tokens.authenticate(&token(&doc), &[]).await.unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:a:bot", "u1"));
        assert!(user.in_group("system:serviceaccounts:a"));
        assert_eq!(user.extra[EXTRA_POD_NAME], ["p"]);
        assert_eq!(user.extra[EXTRA_NODE_UID], ["n1"]);
        let claims = issuer.verify(&token(&doc), Utc::now().timestamp()).unwrap();
        assert_eq!(claims.kubernetes.warnafter, Some(claims.iat + 3607));
        assert!(claims.exp - claims.iat > 300 * 24 * 3600);
        assert_eq!(issuer.verify(&token(&doc), claims.exp + 1).unwrap_err(), "service account token has expired");
    }

    #[tokio::test]
    async fn what_must_not_be_trusted_is_not() {
        let (objects, issuer, tokens) = set_up();
        let other = request(&objects, &issuer, json!({"audiences": ["vault"]})).unwrap();
        let refused = tokens.authenticate(&token(&other), &[]).await.unwrap_err();
        assert_eq!(refused, format!("token audiences [\"vault\"] is invalid for the target audiences [\"{URL}\"]"));
        assert!(tokens.authenticate(&token(&other), &["vault".into()]).await.unwrap().is_some());

        let (_, foreign, _) = set_up();
        let forged = request(&objects, &foreign, json!({})).unwrap();
        assert!(tokens.authenticate(&token(&forged), &[]).await.unwrap_err().starts_with("invalid bearer token"));
        let good = token(&request(&objects, &issuer, json!({})).unwrap());
        let (head, tail) = good.split_at(good.len() - 8);
        assert!(tokens.authenticate(&format!("{head}AAAAAAAA"), &[]).await.is_err(), "{tail}");

        let bound = json!({"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "old"}});
        let old = request(&objects, &issuer, bound).unwrap();
        assert_eq!(tokens.authenticate(&token(&old), &[]).await.unwrap_err(), "pod has been deleted");
        let empty = Tokens::new(issuer.clone(), Arc::new(Fixed::default()));
        assert!(empty.authenticate(&good, &[]).await.unwrap_err().contains("ServiceAccount \"bot\" not found"));
        for text in ["", "x", "a.b.c", "abcdef.0123456789abcdeF", "..", "é.é.é"] {
            assert_eq!(tokens.authenticate(text, &[]).await, Ok(None), "{text}");
        }
    }

    #[test]
    fn requests_that_cannot_be_met_are_refused() {
        let (objects, issuer, _) = set_up();
        let bound =
            |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name, "uid": uid}});
        for (spec, code, text) in [
            (json!({"expirationSeconds": 10}), 422, "may not specify a duration less than 10 minutes"),
            (json!({"expirationSeconds": 1i64 << 33}), 422, "may not specify a duration larger than 2^32 seconds"),
            (bound("Pod", "gone", ""), 404, "pods \"gone\" not found"),
            (bound("Pod", "p", "other"), 409, "does not match the UID in record"),
            (bound("Pod", "q", ""), 400, "different serviceaccount name"),
            (bound("Service", "q", ""), 400, "cannot bind token to object of type"),
        ] {
            let error = request(&objects, &issuer, spec).unwrap_err();
            assert!(error.code == code && error.message.contains(text), "{error:?}");
        }
    }

    #[tokio::test]
    async fn bootstrap_tokens() {
        let (_, _, tokens) = set_up();
        let user = tokens.authenticate("abcdef.0123456789abcdef", &[]).await.unwrap().unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:x"]);
        assert!(tokens.authenticate("abcdef.0123456789abcdee", &[]).await.is_err());
        assert!(tokens.authenticate("abcdeg.0123456789abcdef", &[]).await.is_err());
    }

    #[test]
    fn others_can_check_our_tokens() {
        let (objects, issuer, _) = set_up();
        let keys = issuer.keys();
        let key =
            jsonwebtoken::DecodingKey::from_ec_components(keys["keys"][0]["x"].as_str().unwrap(), keys["keys"][0]["y"].as_str().unwrap())
                .unwrap();
        let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        validation.set_audience(&[URL]);
        let token = token(&request(&objects, &issuer, json!({})).unwrap());
        let data = jsonwebtoken::decode::<Claims>(&token, &key, &validation).unwrap();
        assert_eq!(data.header.kid.as_deref(), keys["keys"][0]["kid"].as_str());
        assert_eq!(issuer.discovery("https://h:1")["jwks_uri"], "https://h:1/openid/v1/jwks");
    }
}
