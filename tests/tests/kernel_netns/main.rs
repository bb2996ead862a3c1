//! The dataplane on a real kernel: socket hooks, CNI calls, policies, NodePorts, restarts. Each test is a node
//! in a network namespace of its own; the API is a fake in memory. Needs root.

mod bad_input;
mod bandwidth;
mod blocks;
mod cni;
mod connects;
mod dsr;
mod explained;
mod fabric;
mod flows;
mod growth;
mod host;
mod neighbour;
mod node;
mod path;
mod policies;
mod policy_race;
mod restart;
mod seeing;
mod services;
mod steer;
mod tiers;
mod upgrade;
mod versions;
mod xdp;

use xebec_tests::netns::{api, net};
