//! `cargo xtask test [host|kernel|e2e]`.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde_json::Value;

use crate::{build, packages, sh, workspace};

/// What to test.
#[derive(clap::Args)]
pub struct Args {
    /// Only this grade; all of them by default.
    grade: Option<Grade>,
    /// The binaries end-to-end tests run.
    #[arg(long, value_enum, default_value = "release", env = "XEBEC_PROFILE")]
    profile: build::Profile,
    /// Only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
}

/// What a test needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Grade {
    /// Any machine: pure logic, the store, the API.
    Host,
    /// Root and this kernel: programs, socket hooks, namespaces.
    Kernel,
    /// Whole clusters.
    E2e,
}

/// The grade of an integration test, by its name.
fn grade(name: &str) -> Grade {
    if name.starts_with("e2e") {
        Grade::E2e
    } else if ["kernel", "dataplane", "netns"].iter().any(|prefix| name.starts_with(prefix)) {
        Grade::Kernel
    } else {
        Grade::Host
    }
}

/// Runs the tests of one grade or of all; every grade runs even if an earlier one fails.
pub fn run(args: &Args) -> Result<()> {
    packages::ensure(&[packages::BUILD, packages::NODE, packages::ETCD, packages::CLIENTS, packages::HOST])?;
    let binaries = test_binaries()?;
    let of = |wanted: Grade| binaries.iter().filter(move |name| grade(name) == wanted);
    let mut failed = Vec::new();
    for wanted in [Grade::Host, Grade::Kernel, Grade::E2e] {
        if args.grade.is_some_and(|only| only != wanted) {
            continue;
        }
        sh::step(format_args!("{wanted:?} tests"));
        // The whole workspace is selected each time: another selection would have other features, and build every
        // dependency again.
        let mut command = workspace::cargo();
        command.args(["test", "--no-fail-fast", "--workspace"]);
        if wanted == Grade::Host {
            command.args(["--lib", "--bins"]);
        }
        command.args(of(wanted).flat_map(|name| ["--test", name]));
        match wanted {
            Grade::Host => {}
            Grade::Kernel | Grade::E2e if of(wanted).next().is_none() => {
                eprintln!("there are none");
                continue;
            }
            Grade::Kernel => run_binaries_as_root(&mut command)?,
            Grade::E2e => {
                run_binaries_as_root(&mut command)?;
                build::binaries(args.profile)?;
                command.env("XEBEC_PROFILE", args.profile.name());
            }
        }
        command.args(&args.filter);
        if wanted != Grade::Host {
            // They share the machine's network, cgroups and BPF file system.
            command.args(["--", "--test-threads=1"]);
        }
        if let Err(error) = sh::run(&mut command) {
            eprintln!("error: {error:#}");
            failed.push(format!("{wanted:?}"));
        }
    }
    if !failed.is_empty() {
        bail!("tests failed: {}", failed.join(", "));
    }
    sh::step("all tests passed");
    Ok(())
}

/// Makes cargo build as the user and start the test programs as root.
fn run_binaries_as_root(command: &mut Command) -> Result<()> {
    if sh::is_root() {
        return Ok(());
    }
    if sh::which("sudo").is_none() {
        bail!("kernel and end-to-end tests must run as root, and there is no sudo: run this command as root");
    }
    eprintln!("==> these tests run as root, through sudo");
    command.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER", "sudo -E");
    Ok(())
}

/// Names of the integration tests of every crate, each once.
fn test_binaries() -> Result<Vec<String>> {
    let metadata = sh::quiet(workspace::cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cannot read cargo's metadata")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let names: BTreeSet<String> = list(&metadata["packages"])
        .iter()
        .flat_map(|package| list(&package["targets"]))
        .filter(|target| list(&target["kind"]).iter().any(|kind| kind == "test"))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_decide_the_grade() {
        assert_eq!(grade("e2e_first_light"), Grade::E2e);
        assert_eq!(grade("kernel_load"), Grade::Kernel);
        assert_eq!(grade("dataplane_nodeport"), Grade::Kernel);
        assert_eq!(grade("netns_policy"), Grade::Kernel);
        assert_eq!(grade("api_verbs"), Grade::Host);
    }
}
