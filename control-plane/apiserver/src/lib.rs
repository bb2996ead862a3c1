//! The API server: HTTPS, authentication, authorization, admission, the generic registry over the store, the watch
//! cache, discovery, OpenAPI, and the proxy to nodes. kube-apiserver's observable behaviour is the specification.

pub mod admission;
pub mod allocator;
pub mod auth;
pub mod authz;
pub mod bootstrap;
pub mod cache;
pub mod config;
pub mod core;
pub mod crd;
mod documents;
mod error;
pub mod extension;
mod handler;
pub mod http;
pub mod kubeconfig;
mod metrics;
pub mod objects;
pub mod pki;
pub mod proxy;
mod registry;
pub mod request_info;
pub mod rows;
mod server;
pub mod tls;
pub mod tokens;

pub use auth::UserInfo;
pub use config::Config;
pub use error::{Error, Result};
pub use server::Server;
