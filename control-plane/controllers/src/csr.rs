//! Certificate signing requests: approves kubelets' own client certificates, signs what is approved, forgets old ones.

mod sign;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest as Request, CertificateSigningRequestCondition as Condition};
use kube::api::{Api, DeleteParams, PostParams};
use xebec_loops::clock::{self, seconds_between};
use xebec_loops::meta::deleting;
use xebec_loops::{Cache, Error, Key, Outcome, ignore_not_found};

use crate::setup::Setup;

const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Decided requests are kept this long.
const DECIDED_SECONDS: f64 = 3600.0;
/// Undecided ones this long.
const PENDING_SECONDS: f64 = 24.0 * 3600.0;

#[derive(Clone)]
struct Controller {
    client: kube::Client,
    requests: Arc<Cache<Request>>,
    signer: Option<Arc<sign::Signer>>,
}

/// Registers the loop.
pub fn register(setup: &mut Setup) {
    let signer = setup.config.cluster_signer.as_ref().and_then(|c| match sign::Signer::new(&c.cert_pem, &c.key_pem) {
        Ok(signer) => Some(Arc::new(signer)),
        Err(error) => {
            tracing::error!(%error, "the cluster CA cannot be used; certificate requests stay unsigned");
            None
        }
    });
    let requests = setup.cache::<Request>();
    let controller = Controller { client: setup.client.clone(), requests: requests.clone(), signer };
    setup.control_loop("certificatesigningrequest", &requests, 2, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(key).await }
    });
}

fn is(request: &Request, type_: &str) -> bool {
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == type_ && c.status != "False")
}

fn condition(type_: &str, reason: &str, message: String) -> Condition {
    Condition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(clock::now()),
        last_transition_time: Some(clock::now()),
    }
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Outcome, Error> {
        let Some(request) = self.requests.get(&key).filter(|r| !deleting(&r.metadata)) else { return Ok(Outcome::Done) };
        let api: Api<Request> = Api::all(self.client.clone());
        let decided = is(&request, "Approved") || is(&request, "Denied") || is(&request, "Failed");
        let age = request.metadata.creation_timestamp.as_ref().map_or(0.0, |t| seconds_between(t, &clock::now()));
        if age > if decided { DECIDED_SECONDS } else { PENDING_SECONDS } {
            ignore_not_found(api.delete(&key.name, &DeleteParams::default()).await)?;
            return Ok(Outcome::Done);
        }
        if !decided && request.spec.signer_name == KUBELET_CLIENT {
            self.approve(&api, &request).await?;
        } else if is(&request, "Approved") && !is(&request, "Failed") {
            self.sign(&api, &request).await?;
        }
        Ok(Outcome::Again(Duration::from_secs(600)))
    }

    async fn approve(&self, api: &Api<Request>, request: &Request) -> Result<(), Error> {
        let Some(subject) = sign::kubelet_client(&request.spec.request.0, request.spec.usages.as_deref().unwrap_or_default()) else {
            return Ok(());
        };
        let own = request.spec.username.as_deref() == Some(&subject);
        let (subresource, message) = if own {
            ("selfnodeclient", "Auto approving self kubelet client certificate after SubjectAccessReview.")
        } else {
            ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.")
        };
        if !self.may(request, subresource).await? {
            return Ok(());
        }
        let mut changed = request.clone();
        let conditions = changed.status.get_or_insert_default().conditions.get_or_insert_default();
        conditions.push(condition("Approved", "AutoApproved", message.into()));
        let name = request.metadata.name.as_deref().unwrap_or_default();
        self.requests.observe(api.replace_subresource("approval", name, &PostParams::default(), &changed).await?);
        Ok(())
    }

    async fn may(&self, request: &Request, subresource: &str) -> Result<bool, Error> {
        let spec = &request.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone(),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    version: Some("*".into()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }

    async fn sign(&self, api: &Api<Request>, request: &Request) -> Result<(), Error> {
        let unsigned = request.status.as_ref().is_none_or(|s| s.certificate.as_ref().is_none_or(|c| c.0.is_empty()));
        let Some(signer) = self.signer.as_ref().filter(|_| unsigned) else { return Ok(()) };
        if !sign::SIGNERS.contains(&request.spec.signer_name.as_str()) {
            return Ok(());
        }
        let mut changed = request.clone();
        let status = changed.status.get_or_insert_default();
        match signer.sign(&request.spec) {
            Ok(pem) => status.certificate = Some(ByteString(pem.into_bytes())),
            Err(error) => {
                status.conditions.get_or_insert_default().push(condition("Failed", "SignerValidationFailure", error.to_string()));
            }
        }
        let name = request.metadata.name.as_deref().unwrap_or_default();
        self.requests.observe(api.replace_status(name, &PostParams::default(), &changed).await?);
        Ok(())
    }
}
