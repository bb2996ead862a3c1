//! What every namespace has: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use xebec_loops::{Cache, Error, Key, Outcome, api_already_exists, api_namespace_terminating};

use crate::setup::{Setup, sides};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const CA_KEY: &str = "ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const DESCRIPTION_TEXT: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";

/// Registers the loops for both.
pub fn register(setup: &mut Setup) {
    let namespaces = setup.cache::<Namespace>();
    register_accounts(setup, &namespaces);
    register_root_ca(setup, &namespaces);
}

/// Whether things may be made in the namespace.
fn is_active(namespaces: &Cache<Namespace>, name: &str) -> bool {
    let namespace = namespaces.get(&Key::new("", name));
    namespace.is_some_and(|n| n.metadata.deletion_timestamp.is_none())
}

fn register_accounts(setup: &mut Setup, namespaces: &Arc<Cache<Namespace>>) {
    let (client, accounts, all) = (setup.client.clone(), setup.cache::<ServiceAccount>(), namespaces.clone());
    let cache = accounts.clone();
    let queue = setup.control_loop("serviceaccount", namespaces, 2, move |key| {
        let (client, cache, all) = (client.clone(), cache.clone(), all.clone());
        async move {
            if !is_active(&all, &key.name) || cache.get(&Key::new(&*key.name, ACCOUNT)).is_some() {
                return Ok(Outcome::Done);
            }
            let account = ServiceAccount { metadata: named(&key.name, ACCOUNT), ..Default::default() };
            create(&client, &cache, &key.name, &account).await
        }
    });
    accounts.on_change(move |c| {
        for account in sides(c).filter(|a| a.metadata.name.as_deref() == Some(ACCOUNT)) {
            queue.add(Key::new("", account.metadata.namespace.clone().unwrap_or_default()));
        }
    });
}

fn register_root_ca(setup: &mut Setup, namespaces: &Arc<Cache<Namespace>>) {
    if setup.config.ca_pem.is_empty() {
        return;
    }
    let (client, maps, all, config) = (setup.client.clone(), setup.cache::<ConfigMap>(), namespaces.clone(), setup.config.clone());
    let cache = maps.clone();
    let queue = setup.control_loop("root-ca-cert-publisher", namespaces, 2, move |key| {
        let (client, cache, all, config) = (client.clone(), cache.clone(), all.clone(), config.clone());
        async move {
            if !is_active(&all, &key.name) {
                return Ok(Outcome::Done);
            }
            let data = [(CA_KEY.to_owned(), config.ca_pem.clone())].into();
            let Some(map) = cache.get(&Key::new(&*key.name, ROOT_CA)) else {
                let mut metadata = named(&key.name, ROOT_CA);
                metadata.annotations = Some([(DESCRIPTION.to_owned(), DESCRIPTION_TEXT.to_owned())].into());
                let map = ConfigMap { metadata, data: Some(data), ..Default::default() };
                return create(&client, &cache, &key.name, &map).await;
            };
            if map.data.as_ref() == Some(&data) {
                return Ok(Outcome::Done);
            }
            let mut changed = (*map).clone();
            changed.data = Some(data);
            let api: Api<ConfigMap> = Api::namespaced(client, &key.name);
            cache.observe(api.replace(ROOT_CA, &PostParams::default(), &changed).await?);
            Ok(Outcome::Done)
        }
    });
    maps.on_change(move |c| {
        for map in sides(c).filter(|m| m.metadata.name.as_deref() == Some(ROOT_CA)) {
            queue.add(Key::new("", map.metadata.namespace.clone().unwrap_or_default()));
        }
    });
}

fn named(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), namespace: Some(namespace.to_owned()), ..Default::default() }
}

async fn create<K>(client: &kube::Client, cache: &Cache<K>, namespace: &str, object: &K) -> Result<Outcome, Error>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::Serialize
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    match api.create(&PostParams::default(), object).await {
        Ok(created) => cache.observe(created),
        Err(error) if api_already_exists(&error) || api_namespace_terminating(&error) => {}
        // The namespace went before its end was seen here.
        Err(error) if xebec_loops::api_not_found(&error) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(Outcome::Done)
}
