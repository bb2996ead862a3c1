//! Service-account tokens in Secrets: fills those that ask for one, removes those whose account is gone.

use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use xebec_loops::meta::{annotation, deleting, uid};
use xebec_loops::{Cache, Error, Key, Outcome, ignore_not_found};

use crate::Config;
use crate::setup::{Setup, sides};

const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Such a token ends when its Secret does; the API wants an end in time too: ten years.
const LIFETIME_SECONDS: i64 = 10 * 365 * 24 * 3600;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    config: Arc<Config>,
    secrets: Arc<Cache<Secret>>,
    accounts: Arc<Cache<ServiceAccount>>,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let controller = Controller {
        client: setup.client.clone(),
        config: setup.config.clone(),
        secrets: setup.cache::<Secret>(),
        accounts: setup.cache::<ServiceAccount>(),
    };
    let Controller { secrets, accounts, .. } = controller.clone();
    let queue = setup.control_loop("serviceaccount-token", &secrets, 2, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
    accounts.on_change(move |c| {
        for account in sides(c) {
            for secret in secrets.in_namespace(account.metadata.namespace.as_deref().unwrap_or_default()) {
                if is_token(&secret) && annotation(&secret.metadata, ACCOUNT) == account.metadata.name.as_deref() {
                    queue.add(Key::of(&*secret));
                }
            }
        }
    });
}

fn is_token(secret: &Secret) -> bool {
    secret.type_.as_deref() == Some(TYPE)
}

fn has(secret: &Secret, key: &str) -> bool {
    secret.data.as_ref().and_then(|d| d.get(key)).is_some_and(|v| !v.0.is_empty())
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(secret) = self.secrets.get(&key).filter(|s| is_token(s) && !deleting(&s.metadata)) else {
            return Ok(Outcome::Done);
        };
        let Some(name) = annotation(&secret.metadata, ACCOUNT) else { return Ok(Outcome::Done) };
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &key.namespace);
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &key.namespace);
        let account = match self.accounts.get(&Key::new(&*key.namespace, name)) {
            Some(account) => Some((*account).clone()),
            // The cache may lag behind a new account: only the API's word counts for removing.
            None => accounts.get_opt(name).await?,
        };
        let wanted_uid = annotation(&secret.metadata, ACCOUNT_UID);
        let account = account.filter(|a| wanted_uid.is_none_or(|u| u == uid(&a.metadata)));
        let Some(account) = account else {
            let exactly = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
            let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
            ignore_not_found(secrets.delete(&key.name, &params).await)?;
            return Ok(Outcome::Done);
        };
        if has(&secret, "token") && has(&secret, "namespace") && (has(&secret, "ca.crt") || self.config.ca_pem.is_empty()) {
            return Ok(Outcome::Done);
        }
        let mut changed = (*secret).clone();
        let data = changed.data.get_or_insert_default();
        if !has(&secret, "token") {
            let token = request_token(&accounts, name, &secret).await?;
            data.insert("token".into(), ByteString(token.into_bytes()));
        }
        data.insert("namespace".into(), ByteString(key.namespace.clone().into_bytes()));
        data.insert("ca.crt".into(), ByteString(self.config.ca_pem.clone().into_bytes()));
        changed.metadata.annotations.get_or_insert_default().insert(ACCOUNT_UID.into(), uid(&account.metadata).to_owned());
        self.secrets.observe(secrets.replace(&key.name, &PostParams::default(), &changed).await?);
        Ok(Outcome::Done)
    }
}

async fn request_token(accounts: &Api<ServiceAccount>, name: &str, secret: &Secret) -> Result<String, Error> {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: None,
            expiration_seconds: Some(LIFETIME_SECONDS),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Secret".into()),
                name: secret.metadata.name.clone(),
                uid: secret.metadata.uid.clone(),
            }),
        }),
        ..Default::default()
    };
    let answer: TokenRequest = accounts.create_subresource("token", name, &PostParams::default(), &request).await?;
    answer.status.and_then(|s| s.token).ok_or_else(|| Error::Retry("the API server's token request has no token".into()))
}
