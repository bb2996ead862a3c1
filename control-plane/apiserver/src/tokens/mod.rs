//! Service-account tokens: issued for TokenRequests, checked on each request; bootstrap tokens.

mod authenticate;
mod claims;
mod issuer;
mod request;

pub use authenticate::Tokens;
pub use claims::{Claims, Kubernetes, Named};
pub use issuer::Issuer;
pub use request::issue;

/// Key of a user's extra values, upstream's names.
const EXTRA_POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const EXTRA_POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const EXTRA_NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const EXTRA_NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const EXTRA_CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";
