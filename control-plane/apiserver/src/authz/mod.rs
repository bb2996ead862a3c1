//! Authorization: `system:masters`, then the Node authorizer, then RBAC. The first that allows decides.

pub mod escalation;
mod node;
mod rbac;
pub mod review;

use std::sync::Arc;

use xebec_api::status::{self, ApiError};

use crate::auth::{Attributes, Authorizer, Decision, MASTERS, UserInfo};
use crate::objects::Objects;

pub use rbac::{Rbac, Rule};

/// The authorizers of the server, in order.
pub struct Chain {
    node: node::NodeAuthorizer,
    rbac: Arc<Rbac>,
}

impl Chain {
    pub fn new(objects: Arc<dyn Objects>) -> Chain {
        Chain { node: node::NodeAuthorizer::new(objects.clone()), rbac: Arc::new(Rbac::new(objects)) }
    }

    /// The rules behind the decisions, for escalation checks.
    pub fn rbac(&self) -> &Arc<Rbac> {
        &self.rbac
    }
}

impl Authorizer for Chain {
    fn authorize(&self, attributes: &Attributes<'_>) -> Decision {
        if attributes.user.in_group(MASTERS) {
            return Decision::Allow;
        }
        let node = match self.node.authorize(attributes) {
            Decision::Allow => return Decision::Allow,
            Decision::Deny(reason) => reason,
        };
        match self.rbac.authorize(attributes) {
            Decision::Allow => Decision::Allow,
            Decision::Deny(rbac) => {
                let reasons: Vec<String> = [node, rbac].into_iter().filter(|r| !r.is_empty()).collect();
                Decision::Deny(reasons.join("\n"))
            }
        }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> (Vec<serde_json::Value>, Vec<serde_json::Value>, bool) {
        if user.in_group(MASTERS) {
            let all = serde_json::json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
            let urls = serde_json::json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
            return (vec![all], vec![urls], false);
        }
        let (resources, urls) = self.rbac.rules_documents(user, namespace);
        (resources, urls, node::node_name(user).is_some())
    }
}

/// The 403 of a denied request, in upstream's words.
pub fn forbidden(attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let user = &attributes.user.name;
    let verb = attributes.verb;
    let mut text = if attributes.resource.is_empty() {
        format!("User {user:?} cannot {verb} path {:?}", attributes.path)
    } else {
        let resource = match attributes.subresource {
            "" => attributes.resource.to_string(),
            sub => format!("{}/{sub}", attributes.resource),
        };
        let place = match attributes.namespace {
            "" => "at the cluster scope".to_string(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        format!("User {user:?} cannot {verb} resource {resource:?} in API group {:?} {place}", attributes.group)
    };
    if !reason.is_empty() {
        text.push_str(": ");
        text.push_str(reason);
    }
    status::forbidden_named(attributes.group, attributes.resource, attributes.name, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes<'a>(user: &'a UserInfo, verb: &'a str, resource: &'a str, namespace: &'a str, name: &'a str) -> Attributes<'a> {
        Attributes {
            user,
            verb,
            group: "",
            version: "v1",
            resource,
            subresource: "",
            namespace,
            name,
            path: "",
            field_selector: "",
            label_selector: "",
        }
    }

    #[test]
    fn messages_are_upstreams() {
        let user = UserInfo { name: "x".into(), ..UserInfo::default() };
        let mut a = attributes(&user, "list", "pods", "default", "");
        assert_eq!(
            forbidden(&a, "").message,
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        (a.group, a.resource, a.subresource, a.namespace, a.name, a.verb) = ("apps", "deployments", "scale", "", "d", "get");
        assert_eq!(
            forbidden(&a, "because").message,
            r#"deployments.apps "d" is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" at the cluster scope: because"#
        );
        let mut path = attributes(&user, "get", "", "", "");
        path.path = "/metrics";
        assert_eq!(forbidden(&path, "").message, r#"forbidden: User "x" cannot get path "/metrics""#);
    }

    #[test]
    fn masters_need_no_rule() {
        let chain = Chain::new(Arc::new(crate::objects::fixed::Fixed::default()));
        let mut user = UserInfo::component("root");
        assert_eq!(chain.authorize(&attributes(&user, "get", "secrets", "a", "b")), Decision::Deny(String::new()));
        user.groups.push(MASTERS.into());
        assert_eq!(chain.authorize(&attributes(&user, "get", "secrets", "a", "b")), Decision::Allow);
        assert!(!chain.rules(&user, "a").0.is_empty());
    }
}
