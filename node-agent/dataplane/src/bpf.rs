//! Programs, maps and links in the kernel.

mod batch;
pub mod connections;
pub mod events;
pub mod gc;
pub mod growing;
pub mod layout;
pub mod limits;
pub mod links;
pub mod loader;
pub mod maps;
pub mod mount;
pub mod replica;
