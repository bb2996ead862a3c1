//! A cluster from `cargo xtask up` to `down`, used as its users do: with kubectl, from pods and from outside.

mod kubectl;
mod lifecycle;
mod nodes;
mod restart;
mod streams;
