//! Validators shared by the kinds. Messages and field paths are kube-apiserver's.

pub mod names;
