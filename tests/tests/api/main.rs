//! What clients see of the API server, through a real socket: kubectl, the official Python client, and plain HTTP for
//! what those would never send.

mod bad_input;
mod identity;
mod kubectl;
mod python;
mod reads;
mod server;
mod writes;
