//! Validators shared by the kinds. Messages and field paths are kube-apiserver's.

pub(crate) mod affinity;
pub(crate) mod batch;
pub(crate) mod check;
pub(crate) mod container;
pub(crate) mod core;
pub(crate) mod extend;
pub mod names;
pub(crate) mod network;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod rbac;
pub(crate) mod service;
pub(crate) mod storage;
pub(crate) mod volume;
pub(crate) mod workload;
