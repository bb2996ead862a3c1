//! Authorization: `system:masters`, then the Node authorizer, then RBAC. The first that allows decides.

pub mod escalation;
mod node;
mod rbac;
pub mod review;

use std::sync::Arc;

use crate::auth::{Attributes, Authorizer, Decision, MASTERS, UserInfo};
use crate::objects::Objects;

pub(crate) use node::node_name;
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
    fn masters_need_no_rule() {
        let chain = Chain::new(Arc::new(crate::objects::fixed::Fixed::default()));
        let mut user = UserInfo::component("root");
        assert_eq!(chain.authorize(&attributes(&user, "get", "secrets", "a", "b")), Decision::Deny(String::new()));
        user.groups.push(MASTERS.into());
        assert_eq!(chain.authorize(&attributes(&user, "get", "secrets", "a", "b")), Decision::Allow);
        assert!(!chain.rules(&user, "a").0.is_empty());
    }
}
