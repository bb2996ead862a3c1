//! The node's heartbeat: a Lease in `kube-node-lease` (KEP-589).

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
};
use kube::{Api, api::PostParams};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

const NAMESPACE: &str = "kube-node-lease";
/// kubelet's nodeLeaseDurationSeconds.
const DURATION_SECONDS: i32 = 40;
/// A quarter of it.
const RENEW: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Renews the lease until cancelled.
pub(crate) async fn renew(node: &str, node_uid: &str, client: &kube::Client, cancel: &CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client.clone(), NAMESPACE);
    let mut last: Option<Lease> = None;
    loop {
        let pause = match renew_once(&api, node, node_uid, last.take()).await {
            Ok(lease) => {
                debug!("lease renewed");
                last = Some(lease);
                RENEW
            }
            Err(error) => {
                // The next attempt reads the lease afresh, which also mends a conflict.
                warn!(%error, "lease not renewed");
                RETRY
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn renew_once(api: &Api<Lease>, node: &str, node_uid: &str, last: Option<Lease>) -> Result<Lease, kube::Error> {
    let known = match last {
        Some(lease) => Some(lease),
        None => api.get_opt(node).await?,
    };
    let exists = known.is_some();
    let lease = renewed(known.unwrap_or_default(), node, node_uid, jiff::Timestamp::now());
    match exists {
        true => api.replace(node, &PostParams::default(), &lease).await,
        false => api.create(&PostParams::default(), &lease).await,
    }
}

/// The lease with this node as its holder and owner.
fn renewed(mut lease: Lease, node: &str, node_uid: &str, now: jiff::Timestamp) -> Lease {
    lease.metadata = ObjectMeta {
        name: Some(node.to_owned()),
        namespace: Some(NAMESPACE.to_owned()),
        owner_references: Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Node".to_owned(),
            name: node.to_owned(),
            uid: node_uid.to_owned(),
            ..OwnerReference::default()
        }]),
        ..lease.metadata
    };
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        renew_time: Some(MicroTime(now)),
        ..lease.spec.unwrap_or_default()
    });
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_keeps_the_revision_and_what_others_wrote() {
        let now = jiff::Timestamp::from_second(1_000_000).unwrap();
        let mut old = Lease::default();
        old.metadata.resource_version = Some("7".to_owned());
        old.spec = Some(LeaseSpec { lease_transitions: Some(3), holder_identity: Some("other".to_owned()), ..LeaseSpec::default() });
        let new = renewed(old, "a", "uid", now);
        assert_eq!(new.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(new.metadata.owner_references.unwrap()[0].uid, "uid");
        let spec = new.spec.unwrap();
        assert_eq!((spec.holder_identity.as_deref(), spec.lease_transitions), (Some("a"), Some(3)));
        assert_eq!(spec.renew_time, Some(MicroTime(now)));
    }
}
