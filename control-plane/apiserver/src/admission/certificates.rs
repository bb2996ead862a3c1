//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use x509_parser::prelude::FromDer;
use xebec_api::{
    status::ApiError,
    value::{list, text},
};

use super::refuse;
use crate::auth::{Attributes, Authorizer, Decision, MASTERS};
use crate::extension::{Change, Operation};

pub(super) fn validate(authorizer: &dyn Authorizer, change: &Change<'_>) -> Result<(), ApiError> {
    let Some(request) = &change.object else { return Ok(()) };
    match (change.operation, change.subresource) {
        (Operation::Update, "approval") => {
            // Who approved before is no concern of this writer.
            let conditions = |doc: &Value| list(&doc["status"]["conditions"]).to_vec();
            if change.old.is_some_and(|old| conditions(old) == conditions(request)) {
                return Ok(());
            }
            may(authorizer, change, "approve", "approve")
        }
        (Operation::Update, "status") => {
            let certificate = |doc: &Value| doc["status"]["certificate"].clone();
            let failed = |doc: &Value| list(&doc["status"]["conditions"]).iter().any(|c| c["type"] == "Failed");
            if change.old.is_some_and(|old| certificate(old) == certificate(request) && failed(old) == failed(request)) {
                return Ok(());
            }
            may(authorizer, change, "sign", "sign")
        }
        (Operation::Create, "") => subject(change, request),
        _ => Ok(()),
    }
}

/// `signers` by name or, for a whole domain, `DOMAIN/*`.
fn may(authorizer: &dyn Authorizer, change: &Change<'_>, verb: &str, word: &str) -> Result<(), ApiError> {
    let signer = change.old.or(change.object.as_ref()).map(|doc| text(&doc["spec"]["signerName"])).unwrap_or_default();
    let domain = signer.split_once('/').map(|(domain, _)| format!("{domain}/*")).unwrap_or_default();
    let allowed = [signer, &domain].into_iter().any(|name| {
        let attributes = Attributes {
            user: change.user,
            verb,
            group: "certificates.k8s.io",
            version: "*",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            path: "",
            field_selector: "",
            label_selector: "",
        };
        authorizer.authorize(&attributes) == Decision::Allow
    });
    if allowed {
        return Ok(());
    }
    Err(refuse(change, format!("user not permitted to {word} requests with signerName {signer:?}")))
}

/// Nobody asks a client signer to be made a cluster administrator.
fn subject(change: &Change<'_>, request: &Value) -> Result<(), ApiError> {
    if request["spec"]["signerName"] != "kubernetes.io/kube-apiserver-client" {
        return Ok(());
    }
    let pem = STANDARD.decode(text(&request["spec"]["request"])).unwrap_or_default();
    // What does not parse is for validation to refuse.
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(&pem) else { return Ok(()) };
    let Ok((_, parsed)) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents) else { return Ok(()) };
    let subject = &parsed.certification_request_info.subject;
    if subject.iter_organization().any(|o| o.as_str() == Ok(MASTERS)) {
        return Err(refuse(change, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::super::testing::change;
    use super::*;
    use crate::auth::UserInfo;
    use crate::authz::Chain;
    use crate::objects::fixed::Fixed;

    const KIND: (&str, &str) = ("certificates.k8s.io/v1", "CertificateSigningRequest");

    fn request(organization: &str) -> Value {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        json!({"metadata": {"name": "r"}, "spec": {"signerName": "kubernetes.io/kube-apiserver-client", "request": STANDARD.encode(pem)}})
    }

    #[test]
    fn administrators_are_not_made_by_request() {
        let chain = Chain::new(Arc::new(Fixed::default()));
        let user = UserInfo::loopback();
        let ask = |organization: &str| validate(&chain, &change(&user, Operation::Create, KIND, Some(request(organization)), None));
        ask("devs").unwrap();
        assert!(ask("system:masters").unwrap_err().message.contains("system:masters group is not allowed"));
    }

    #[test]
    fn approvers_need_the_signer() {
        let objects = Fixed::new(vec![
            (
                "clusterroles",
                json!({"metadata": {"name": "a"}, "rules": [{"verbs": ["approve"], "apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "resourceNames": ["kubernetes.io/*"]}]}),
            ),
            ("clusterrolebindings", json!({"roleRef": {"kind": "ClusterRole", "name": "a"}, "subjects": [{"kind": "User", "name": "jo"}]})),
        ]);
        let chain = Chain::new(Arc::new(objects));
        let old = request("devs");
        let mut approved = old.clone();
        approved["status"]["conditions"] = json!([{"type": "Approved"}]);
        let ask = |name: &str, sub: &'static str, new: &Value| {
            let user = UserInfo { name: name.into(), ..UserInfo::default() };
            let mut change = change(&user, Operation::Update, KIND, Some(new.clone()), Some(&old));
            change.subresource = sub;
            validate(&chain, &change)
        };
        ask("jo", "approval", &approved).unwrap();
        ask("al", "approval", &old).unwrap();
        let error = ask("al", "approval", &approved).unwrap_err();
        assert_eq!(
            error.message,
            "certificatesigningrequests.certificates.k8s.io \"r\" is forbidden: user not permitted to approve requests with signerName \"kubernetes.io/kube-apiserver-client\""
        );
        let mut signed = approved.clone();
        signed["status"]["certificate"] = "x".into();
        assert!(ask("jo", "status", &signed).is_err());
    }
}
