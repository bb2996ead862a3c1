//! What the server itself puts into a cluster: namespaces, default roles, priority classes, the `kubernetes` Service.
//!
//! Only what is missing is written, in few transactions, so that a start of a set-up cluster writes nothing.

mod data;
mod policy;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use xebec_api::meta;
use xebec_store::{Compare, Op, RangeRequest, Result, Store, Txn, TxnResponse};

const ROOT: &str = "/registry";
/// Where each server says that it lives, in upstream's place.
const MASTER_LEASES: &str = "/registry/masterleases/";
/// A server that does not renew for so long is taken out of the `kubernetes` Service.
const LEASE: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(10);
/// etcd takes 128 operations a transaction.
const BATCH: usize = 64;

/// What the objects are made from.
#[derive(Debug, Clone)]
pub struct Params {
    pub service_cidrs: Vec<IpNet>,
    /// The `kubernetes` Service's addresses, the primary family first.
    pub service_ips: Vec<IpAddr>,
    /// Where this server is reached.
    pub advertise: IpAddr,
    pub port: u16,
    /// PEM of the authority of client certificates.
    pub client_ca_pem: String,
    /// PEM of the authority of the front proxy's certificate; empty without one.
    pub front_proxy_ca_pem: String,
}

impl Params {
    pub fn new(config: &crate::Config, pki: &crate::pki::Pki) -> Params {
        Params {
            service_cidrs: config.service_cidrs.clone(),
            service_ips: config.kubernetes_service_ips(),
            advertise: config.advertised(),
            port: config.bind.port(),
            client_ca_pem: pki.cluster_ca.cert_pem.clone(),
            front_proxy_ca_pem: pki.front_proxy_ca.cert_pem.clone(),
        }
    }
}

/// Writes what is missing. To be called before the watch cache is filled.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn ensure(store: &dyn Store, params: &Params) -> Result<()> {
    let mut wanted = data::documents(params);
    wanted.extend(policy::documents());
    create_missing(store, wanted).await?;
    announce(store, params).await?;
    service(store, params).await
}

/// Keeps the namespaces and the `kubernetes` Service until cancelled, then takes this server out of it.
pub async fn maintain(store: Arc<dyn Store>, params: Params, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            () = tokio::time::sleep(RENEW) => {}
        }
        let round = async {
            announce(&*store, &params).await?;
            service(&*store, &params).await?;
            let namespaces = data::documents(&params).into_iter().filter(|(prefix, _)| *prefix == "namespaces").collect();
            create_missing(&*store, namespaces).await
        };
        if let Err(error) = round.await {
            tracing::warn!(%error, "the kubernetes Service could not be brought up to date");
        }
    }
}

/// The key of an object as kube-apiserver lays it out.
fn key(prefix: &str, doc: &Value) -> String {
    match meta::namespace(doc) {
        "" => format!("{ROOT}/{prefix}/{}", meta::name(doc)),
        namespace => format!("{ROOT}/{prefix}/{namespace}/{}", meta::name(doc)),
    }
}

fn finished(mut doc: Value) -> Vec<u8> {
    let fresh = meta::Fresh::generate();
    doc["metadata"]["uid"] = fresh.uid.into();
    doc["metadata"]["creationTimestamp"] = meta::timestamp(fresh.now).into();
    serde_json::to_vec(&doc).unwrap_or_default()
}

async fn create_missing(store: &dyn Store, wanted: Vec<(&'static str, Value)>) -> Result<()> {
    // One range a kind instead of a lookup an object.
    let mut by_prefix: BTreeMap<&str, Vec<(String, Value)>> = BTreeMap::new();
    for (prefix, doc) in wanted {
        by_prefix.entry(prefix).or_default().push((key(prefix, &doc), doc));
    }
    let mut missing = Vec::new();
    for (prefix, docs) in by_prefix {
        let found = if docs.len() < 8 {
            let mut found = HashSet::new();
            for (key, _) in &docs {
                found.extend(store.get(key).await?.kv.map(|kv| kv.key));
            }
            found
        } else {
            let request = RangeRequest { prefix: format!("{ROOT}/{prefix}/"), ..RangeRequest::default() };
            store.range(request).await?.kvs.into_iter().map(|kv| kv.key).collect()
        };
        missing.extend(docs.into_iter().filter(|(key, _)| !found.contains(key)));
    }
    let mut pending: Vec<Vec<(String, Value)>> = missing.chunks(BATCH).map(<[_]>::to_vec).collect();
    while let Some(batch) = pending.pop() {
        let txn = Txn {
            compares: batch.iter().map(|(key, _)| Compare::Absent { key: key.clone() }).collect(),
            ops: batch.iter().map(|(key, doc)| put(key.clone(), finished(doc.clone()), None)).collect(),
        };
        // Another server makes the same objects: then each by itself.
        if let TxnResponse::Conflict { .. } = store.txn(txn).await?
            && batch.len() > 1
        {
            pending.extend(batch.into_iter().map(|one| vec![one]));
        }
    }
    Ok(())
}

fn put(key: String, value: Vec<u8>, ttl: Option<Duration>) -> Op {
    Op::Put { key, value: value.into(), ttl }
}

/// Says that this server lives.
async fn announce(store: &dyn Store, params: &Params) -> Result<()> {
    let key = format!("{MASTER_LEASES}{}", params.advertise);
    let value = json!({"kind": "Endpoints", "apiVersion": "v1", "metadata": {"generation": 1},
        "subsets": [{"addresses": [{"ip": params.advertise.to_string()}]}]});
    let op = put(key, serde_json::to_vec(&value).unwrap_or_default(), Some(LEASE));
    store.txn(Txn { compares: Vec::new(), ops: vec![op] }).await.map(|_| ())
}

/// Makes the `kubernetes` Service and its endpoints what they should be.
async fn service(store: &dyn Store, params: &Params) -> Result<()> {
    let leases = store.range(RangeRequest { prefix: MASTER_LEASES.into(), ..RangeRequest::default() }).await?;
    let mut servers: Vec<IpAddr> = leases.kvs.iter().filter_map(|kv| kv.key[MASTER_LEASES.len()..].parse().ok()).collect();
    servers.sort_by_key(|ip| (ip.is_ipv4() != params.advertise.is_ipv4(), *ip));
    for (prefix, wanted) in data::kubernetes_service(params, &servers) {
        let key = key(prefix, &wanted);
        // A few tries: clients may write these objects as well.
        for _ in 0..5 {
            let (compare, value) = match store.get(&key).await?.kv {
                None => (Compare::Absent { key: key.clone() }, finished(wanted.clone())),
                Some(kv) => {
                    let Some(merged) = merged(&kv.value, &wanted) else { break };
                    (Compare::ModRevision { key: key.clone(), revision: kv.mod_revision }, merged)
                }
            };
            let txn = Txn { compares: vec![compare], ops: vec![put(key.clone(), value, None)] };
            if let TxnResponse::Committed { .. } = store.txn(txn).await? {
                break;
            }
        }
    }
    Ok(())
}

/// The present object with what matters of the wanted one; `None` if nothing differs.
fn merged(present: &[u8], wanted: &Value) -> Option<Vec<u8>> {
    let mut doc: Value = serde_json::from_slice(present).ok()?;
    let before = doc.clone();
    for field in ["subsets", "endpoints", "addressType"] {
        if let Some(value) = wanted.get(field) {
            doc[field] = value.clone();
        }
    }
    if wanted["kind"] == "Service" {
        doc["spec"]["ports"][0]["targetPort"] = wanted["spec"]["ports"][0]["targetPort"].clone();
    } else if let Some(ports) = wanted.get("ports") {
        doc["ports"] = ports.clone();
    }
    (doc != before).then(|| serde_json::to_vec(&doc).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use xebec_store::embedded;

    use super::*;

    fn params(advertise: &str, port: u16) -> Params {
        Params {
            service_cidrs: vec!["10.96.0.0/12".parse().unwrap()],
            service_ips: vec!["10.96.0.1".parse().unwrap()],
            advertise: advertise.parse().unwrap(),
            port,
            client_ca_pem: "ca".into(),
            front_proxy_ca_pem: "proxy".into(),
        }
    }

    async fn read(store: &dyn Store, key: &str) -> Value {
        serde_json::from_slice(&store.get(key).await.unwrap().kv.expect(key).value).unwrap()
    }

    #[tokio::test]
    async fn the_second_start_writes_nothing_but_its_lease() {
        let dir = tempfile::tempdir().unwrap();
        let store = embedded::open(dir.path().join("s"), embedded::Options::default()).unwrap();
        ensure(&store, &params("192.0.2.1", 6443)).await.unwrap();
        let revision = store.revision().await.unwrap();
        let namespace = read(&store, "/registry/namespaces/kube-system").await;
        assert_eq!(namespace["status"]["phase"], "Active");
        assert!(namespace["metadata"]["uid"].is_string() && namespace["metadata"]["creationTimestamp"].is_string());
        assert_eq!(read(&store, "/registry/services/specs/default/kubernetes").await["spec"]["clusterIP"], "10.96.0.1");
        assert!(store.count("/registry/clusterroles/").await.unwrap() > 20);

        // What an administrator changed or added stays.
        let mut changed = read(&store, "/registry/clusterroles/view").await;
        changed["rules"] = json!([]);
        let op = put("/registry/clusterroles/view".into(), serde_json::to_vec(&changed).unwrap(), None);
        store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap();
        ensure(&store, &params("192.0.2.1", 6443)).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), revision + 2, "the change and the lease");
        assert_eq!(read(&store, "/registry/clusterroles/view").await, changed);
        assert_eq!(read(&store, "/registry/namespaces/kube-system").await, namespace);
    }

    #[tokio::test]
    async fn endpoints_follow_the_servers() {
        let dir = tempfile::tempdir().unwrap();
        let store = embedded::open(dir.path().join("s"), embedded::Options::default()).unwrap();
        ensure(&store, &params("192.0.2.1", 6443)).await.unwrap();
        ensure(&store, &params("192.0.2.2", 6443)).await.unwrap();
        let addresses = |doc: &Value| {
            doc["subsets"][0]["addresses"].as_array().unwrap().iter().map(|a| a["ip"].as_str().unwrap().to_string()).collect::<Vec<_>>()
        };
        let endpoints = read(&store, "/registry/services/endpoints/default/kubernetes").await;
        assert_eq!(addresses(&endpoints), ["192.0.2.1", "192.0.2.2"]);
        let gone = Op::Delete { key: "/registry/masterleases/192.0.2.1".into() };
        store.txn(Txn { compares: vec![], ops: vec![gone] }).await.unwrap();
        ensure(&store, &params("192.0.2.2", 7443)).await.unwrap();
        let endpoints = read(&store, "/registry/services/endpoints/default/kubernetes").await;
        assert_eq!((addresses(&endpoints), &endpoints["subsets"][0]["ports"][0]["port"]), (vec!["192.0.2.2".into()], &json!(7443)));
        let slice = read(&store, "/registry/endpointslices/default/kubernetes").await;
        assert_eq!(slice["endpoints"], json!([{"addresses": ["192.0.2.2"], "conditions": {"ready": true}}]));
        assert_eq!(slice["ports"][0]["port"], 7443);
        assert_eq!(read(&store, "/registry/services/specs/default/kubernetes").await["spec"]["ports"][0]["targetPort"], 7443);
    }
}
