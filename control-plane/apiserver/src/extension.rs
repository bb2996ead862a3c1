//! What the registry calls while it writes: admission and allocation.

use std::sync::Arc;

use xebec_api::{Document, resource::Resource, status::ApiError};

use crate::auth::{Authorizer, TokenAuthenticator, UserInfo};

/// `admission.Operation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// A write on its way to the store.
pub struct Change<'a> {
    pub user: &'a UserInfo,
    pub operation: Operation,
    pub resource: &'a Resource,
    /// Empty for the object itself.
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty while a generated name is not yet chosen.
    pub name: &'a str,
    /// What will be stored; `None` for delete and for connect without a body. In the version of the request.
    pub object: Option<Document>,
    /// What is stored now; `None` for create.
    pub old: Option<&'a Document>,
    pub dry_run: bool,
    /// `Warning:` headers for the client.
    pub warnings: Vec<String>,
}

/// Admission: may change the object, may refuse it.
#[async_trait::async_trait]
pub trait Admission: Send + Sync {
    /// Before defaulting, preparation and validation.
    async fn mutate(&self, change: &mut Change<'_>) -> Result<(), ApiError>;

    /// After validation, right before the store. Called again on each retry of a conflicting write.
    async fn validate(&self, change: &mut Change<'_>) -> Result<(), ApiError>;
}

/// What an allocation wants to be told afterwards. Dropping it without [`Allocation::committed`] undoes it.
#[derive(Default)]
pub struct Allocation {
    on_commit: Option<Box<dyn FnOnce() + Send + Sync>>,
    on_failure: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Allocation {
    pub fn new(on_commit: impl FnOnce() + Send + Sync + 'static, on_failure: impl FnOnce() + Send + Sync + 'static) -> Self {
        Allocation { on_commit: Some(Box::new(on_commit)), on_failure: Some(Box::new(on_failure)) }
    }

    /// The object that carries the allocation is in the store.
    pub fn committed(mut self) {
        self.on_failure = None;
        if let Some(then) = self.on_commit.take() {
            then();
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if let Some(undo) = self.on_failure.take() {
            undo();
        }
    }
}

/// Cluster addresses and node ports of Services.
#[async_trait::async_trait]
pub trait Allocator: Send + Sync {
    /// Fills what the object needs (create, update) between preparation and validation.
    async fn allocate(&self, change: &mut Change<'_>) -> Result<Allocation, ApiError>;

    /// The object is gone from the store.
    fn released(&self, resource: &Resource, old: &Document);
}

/// The parts of the server that are exchangeable.
#[derive(Clone)]
pub struct Extensions {
    pub authorizer: Arc<dyn Authorizer>,
    pub tokens: Arc<dyn TokenAuthenticator>,
    pub admission: Arc<dyn Admission>,
    pub allocator: Arc<dyn Allocator>,
}

/// Admits everything as it is.
pub struct AdmitAll;

#[async_trait::async_trait]
impl Admission for AdmitAll {
    async fn mutate(&self, _change: &mut Change<'_>) -> Result<(), ApiError> {
        Ok(())
    }

    async fn validate(&self, _change: &mut Change<'_>) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Allocates nothing.
pub struct NoAllocation;

#[async_trait::async_trait]
impl Allocator for NoAllocation {
    async fn allocate(&self, _change: &mut Change<'_>) -> Result<Allocation, ApiError> {
        Ok(Allocation::default())
    }

    fn released(&self, _resource: &Resource, _old: &Document) {}
}

/// What extensions are built from.
pub struct Parts {
    pub config: crate::Config,
    pub pki: Arc<crate::pki::Pki>,
    pub store: Arc<dyn xebec_store::Store>,
    /// Live objects of every kind; implements [`crate::objects::Objects`].
    pub hub: Arc<crate::cache::Hub>,
}

impl Extensions {
    /// What the server runs with.
    ///
    /// # Errors
    /// When the key of service-account tokens cannot be used.
    pub fn built_in(parts: &Parts) -> crate::Result<Extensions> {
        use crate::{admission::BuiltIn, allocator::ServiceAllocator, authz::Chain, objects::Objects, tokens};
        let Parts { config, pki, hub, store } = parts;
        let key = (&pki.service_account_key, &pki.service_account_public);
        let issuer = Arc::new(tokens::Issuer::new(&config.service_account_issuer, key.0, key.1)?);
        let services = hub.list("services/specs", "");
        let authorizer = Arc::new(Chain::new(hub.clone()));
        Ok(Extensions {
            admission: Arc::new(BuiltIn::new(hub.clone(), store.clone(), authorizer.clone())),
            authorizer,
            tokens: Arc::new(tokens::Tokens::new(issuer, hub.clone())),
            allocator: Arc::new(ServiceAllocator::new(&config.service_cidrs, config.node_ports, &services)),
        })
    }
}
