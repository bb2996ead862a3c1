//! The project's tasks as a library, so that end-to-end tests bring clusters up and down with the very code users run.
//!
//! Nothing here talks to the Kubernetes API or needs `protoc`: this crate is what installs `protoc`. What needs the API is a
//! subcommand of the `xebec` binary, which these tasks start.

use anyhow::Result;
use clap::Parser;

pub mod bench;
pub mod build;
pub mod down;
pub mod ebpf;
pub mod image;
pub mod lint;
pub mod packages;
pub mod sh;
pub mod test;
pub mod up;
pub mod vm;
pub mod workspace;

/// `cargo xtask TASK`.
#[derive(Parser)]
#[command(name = "cargo xtask", about = "Bring up, test, build and measure xebec")]
pub enum Task {
    /// Bring up a cluster of one or several nodes in network namespaces and check it.
    Up(up::Args),
    /// End a cluster and leave nothing of it.
    Down(down::Args),
    /// Run the tests, after installing what they need.
    Test(test::Args),
    /// Build the BPF object that `ebpf/prebuilt` keeps.
    BuildEbpf(ebpf::Args),
    /// Measure: one JSON object a line.
    Bench(bench::Args),
    /// Make the images a node needs, without a registry.
    Image(image::Args),
    /// Formatting and clippy, as a change should have them.
    Lint(lint::Args),
    /// Run a command under another kernel, in a virtual machine.
    Vm(vm::Args),
}

impl Task {
    /// Runs the task to its end.
    pub fn run(self) -> Result<()> {
        match self {
            Task::Up(args) => up::run(&args),
            Task::Down(args) => down::run(&args),
            Task::Test(args) => test::run(&args),
            Task::BuildEbpf(args) => ebpf::run(&args),
            Task::Bench(args) => bench::run(&args),
            Task::Image(args) => image::run(&args),
            Task::Lint(args) => lint::run(&args),
            Task::Vm(args) => vm::run(&args),
        }
    }
}
