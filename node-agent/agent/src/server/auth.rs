//! Who may use the kubelet's API: clients with a certificate of the cluster's CA or a token the API server knows, as far as
//! the API server's authorization lets them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use http::{Method, header};
use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec},
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use parking_lot::Mutex;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Request, Response, route::Route, text};

/// The group that may do everything; the API server's own client certificate carries it.
const MASTERS: &str = "system:masters";
/// How long answers of the API server are good: kubelet's defaults.
const ALLOWED_FOR: Duration = Duration::from_secs(5 * 60);
const DENIED_FOR: Duration = Duration::from_secs(30);
/// Answers remembered; more callers than this are a flood.
const REMEMBERED: usize = 1024;

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct User {
    pub name: String,
    pub uid: Option<String>,
    pub groups: Vec<String>,
}

/// The subject of a client certificate that TLS has verified: CN is the name, each O a group.
pub(super) fn user(certificate: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    Some(User { name, uid: None, groups })
}

/// Asks the API server and remembers what it said.
pub(super) struct Access {
    client: kube::Client,
    node_name: String,
    answers: Mutex<HashMap<Question, (bool, Instant)>>,
}

type Question = (User, &'static str, &'static str);

impl Access {
    pub fn new(client: kube::Client, node_name: &str) -> Access {
        Access { client, node_name: node_name.to_owned(), answers: Mutex::default() }
    }

    /// The caller, from the certificate or the bearer token.
    ///
    /// # Errors
    /// The response that refuses the caller.
    pub async fn authenticate(&self, request: &Request, certificate: Option<User>) -> Result<User, Response> {
        if let Some(user) = certificate {
            return Ok(user);
        }
        let refused = || text(401, "Unauthorized");
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = authorization.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(refused)?.trim();
        let review =
            TokenReview { spec: TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() }, ..TokenReview::default() };
        let review = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let status = match review {
            Ok(review) => review.status.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, "cannot have a token reviewed");
                return Err(refused());
            }
        };
        let user = status.user.filter(|_| status.authenticated == Some(true)).ok_or_else(refused)?;
        Ok(User { name: user.username.unwrap_or_default(), uid: user.uid, groups: user.groups.unwrap_or_default() })
    }

    /// # Errors
    /// The response that refuses the caller.
    pub async fn authorize(&self, user: &User, method: &Method, route: &Route) -> Result<(), Response> {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Ok(());
        }
        let verb = verb(method);
        for subresource in route.subresources() {
            if self.allowed((user.clone(), verb, subresource)).await? {
                return Ok(());
            }
        }
        let subresources = route.subresources().join(" or ");
        Err(text(403, format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource={subresources})", user.name)))
    }

    async fn allowed(&self, question: Question) -> Result<bool, Response> {
        let remembered = self.answers.lock().get(&question).copied();
        if let Some((allowed, _)) = remembered.filter(|(_, until)| *until > Instant::now()) {
            return Ok(allowed);
        }
        let (user, verb, subresource) = &question;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some((*verb).to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some((*subresource).to_owned()),
                    name: Some(self.node_name.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let review = Api::<SubjectAccessReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let allowed = match review {
            Ok(review) => review.status.is_some_and(|status| status.allowed),
            Err(error) => return Err(text(500, format!("Internal Error: cannot ask for authorization: {error}"))),
        };
        let now = Instant::now();
        let mut answers = self.answers.lock();
        if answers.len() >= REMEMBERED {
            answers.retain(|_, (_, until)| *until > now);
        }
        if answers.len() < REMEMBERED {
            answers.insert(question, (allowed, now + if allowed { ALLOWED_FOR } else { DENIED_FOR }));
        }
        Ok(allowed)
    }
}

/// The API verb of a method, as kubelet maps them.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_become_names_and_groups() {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        let mut name = rcgen::DistinguishedName::new();
        name.push(rcgen::DnType::CommonName, "system:node:a");
        name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name = name;
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let user = user(certificate.der()).unwrap();
        assert_eq!(user, User { name: "system:node:a".into(), uid: None, groups: vec!["system:nodes".into()] });
    }

    #[test]
    fn what_is_no_certificate_names_nobody() {
        assert_eq!(user(b"not a certificate"), None);
    }
}
