//! ConfigMaps, Secrets and tokens that pods refer to, read when they are needed.
//!
//! A pod's start reads afresh, so that it sees what its creator wrote just before. Several pods that
//! start at once share a read that is already under way.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use crate::spec;

/// The longest a projected token is used before a new one is asked for.
const MAX_TOKEN_AGE: SignedDuration = SignedDuration::from_hours(24);

type Read<T> = Shared<BoxFuture<'static, Result<Option<Arc<T>>, String>>>;
type Reads<T> = Mutex<HashMap<(String, String), Read<T>>>;

#[derive(Clone)]
struct Token {
    value: String,
    issued: Timestamp,
    expires: Timestamp,
}

pub struct Objects {
    client: kube::Client,
    config_maps: Reads<ConfigMap>,
    secrets: Reads<Secret>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
}

/// Pod uid, service account, audience, expiration.
type TokenKey = (String, String, Option<String>, i64);

impl Objects {
    pub fn new(client: kube::Client) -> Objects {
        Objects { client, config_maps: Mutex::default(), secrets: Mutex::default(), tokens: Mutex::default() }
    }

    /// `Ok(None)` when the API has no such object.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, String> {
        read(&self.client, &self.config_maps, namespace, name).await
    }

    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, String> {
        read(&self.client, &self.secrets, namespace, name).await
    }

    /// The volume a claim of the pod's namespace is bound to.
    pub async fn bound_volume(&self, namespace: &str, claim: &str) -> Result<PersistentVolume, String> {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        let found = claims.get_opt(claim).await.map_err(|e| e.to_string())?;
        let found = found.ok_or_else(|| format!("persistentvolumeclaim \"{claim}\" not found"))?;
        let volume = found.spec.and_then(|s| s.volume_name).filter(|v| !v.is_empty());
        let volume = volume.ok_or_else(|| format!("PVC is not bound: {namespace}/{claim}"))?;
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        volumes.get(&volume).await.map_err(|e| e.to_string())
    }

    /// A token of the pod's service account bound to the pod; renewed after four fifths of its
    /// life or a day, whichever comes first.
    pub async fn token(&self, pod: &Pod, audience: Option<&str>, seconds: i64) -> Result<String, String> {
        let account = spec::spec(pod).service_account_name.clone().filter(|s| !s.is_empty()).unwrap_or_else(|| "default".into());
        let key = (spec::uid(pod).to_owned(), account.clone(), audience.map(str::to_owned), seconds);
        let now = Timestamp::now();
        let known = self.tokens.lock().get(&key).cloned();
        if let Some(token) = known.as_ref().filter(|t| !due(t, now)) {
            return Ok(token.value.clone());
        }
        match self.request_token(pod, &account, audience, seconds).await {
            Ok(token) => {
                self.tokens.lock().insert(key, token.clone());
                Ok(token.value)
            }
            // Still good: better an old token than none.
            Err(error) => match known.filter(|t| now < t.expires) {
                Some(token) => {
                    tracing::warn!(pod = %spec::full_name(pod), error, "service-account token not renewed");
                    Ok(token.value)
                }
                None => Err(format!("failed to fetch token: {error}")),
            },
        }
    }

    async fn request_token(&self, pod: &Pod, account: &str, audience: Option<&str>, seconds: i64) -> Result<Token, String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|a| vec![a.to_owned()]),
                expiration_seconds: Some(seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..Default::default()
        };
        let api: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(self.client.clone(), spec::namespace(pod));
        let issued = Timestamp::now();
        let answer: TokenRequest =
            api.create_subresource("token", account, &PostParams::default(), &request).await.map_err(|e| api_message(&e))?;
        let status = answer.status.ok_or("the API server's answer holds no token")?;
        let expires = status.expiration_timestamp.map(|t| t.0);
        Ok(Token {
            value: status.token.ok_or("the API server's answer holds no token")?,
            issued,
            expires: expires.or_else(|| issued.checked_add(SignedDuration::from_secs(seconds)).ok()).unwrap_or(issued),
        })
    }

    /// Forgets the tokens of a pod that is gone.
    pub fn forget_pod(&self, uid: &str) {
        self.tokens.lock().retain(|key, _| key.0 != uid);
    }
}

fn due(token: &Token, now: Timestamp) -> bool {
    let life = token.expires.duration_since(token.issued);
    let age = now.duration_since(token.issued);
    age > MAX_TOKEN_AGE || age.as_millis() * 5 > life.as_millis() * 4
}

/// What the API server said, without kube's wrapping.
pub fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => crate::error::chain(other),
    }
}

async fn read<T>(client: &kube::Client, reads: &Reads<T>, namespace: &str, name: &str) -> Result<Option<Arc<T>>, String>
where
    T: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug
        + Send
        + Sync
        + 'static,
{
    let key = (namespace.to_owned(), name.to_owned());
    let shared = {
        let mut reads = reads.lock();
        // One that is done already may be older than what the caller waits for.
        match reads.get(&key).filter(|r| r.peek().is_none()) {
            Some(read) => read.clone(),
            None => {
                let api: Api<T> = Api::namespaced(client.clone(), namespace);
                let name = name.to_owned();
                let future = async move { api.get_opt(&name).await.map(|o| o.map(Arc::new)).map_err(|e| api_message(&e)) };
                let read = future.boxed().shared();
                reads.insert(key.clone(), read.clone());
                read
            }
        }
    };
    let result = shared.clone().await;
    let mut reads = reads.lock();
    if reads.get(&key).is_some_and(|r| r.ptr_eq(&shared)) {
        reads.remove(&key);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_in_time() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let hour = Token { value: String::new(), issued: at(0), expires: at(3600) };
        assert!(!due(&hour, at(2880)));
        assert!(due(&hour, at(2881)));
        let year = Token { value: String::new(), issued: at(0), expires: at(31_536_000) };
        assert!(!due(&year, at(86_400)) && due(&year, at(86_401)));
    }
}
