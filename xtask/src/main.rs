//! `cargo xtask`: everything that is done to the project rather than by it.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let task = xtask::Task::parse();
    match task.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
