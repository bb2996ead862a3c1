//! Building the binaries a node runs.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::{packages, sh, workspace};

/// The only target release binaries are built for: static against glibc.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Which binaries to build and run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// Quick to build, for development.
    Dev,
    /// Static, optimised and stripped, what users run.
    Release,
}

/// The files a node needs.
#[derive(Debug, Clone)]
pub struct Binaries {
    pub xebec: PathBuf,
    pub cni: PathBuf,
}

impl Profile {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Dev => "dev",
            Profile::Release => "release",
        }
    }

    /// Where the profile's binaries are once built.
    pub fn binaries(self) -> Binaries {
        let (xebec, cni) = match self {
            Profile::Dev => (workspace::target().join("debug"), workspace::target().join("debug")),
            Profile::Release => {
                let target = workspace::target().join(TARGET);
                (target.join("release"), target.join("small"))
            }
        };
        Binaries { xebec: xebec.join("xebec"), cni: cni.join("xebec-cni") }
    }
}

/// Builds `xebec` and `xebec-cni`.
pub fn binaries(profile: Profile) -> Result<Binaries> {
    packages::ensure(&[packages::BUILD])?;
    match profile {
        Profile::Dev => sh::run(workspace::cargo().args(["build", "-p", "xebec", "-p", "xebec-cni"]))?,
        Profile::Release => {
            // xebec-cni runs once per pod and is copied to every node: its own profile favours size.
            for (package, profile) in [("xebec", "release"), ("xebec-cni", "small")] {
                let mut build = workspace::cargo();
                build.args(["build", "--target", TARGET, "--profile", profile, "-p", package]);
                sh::run(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
            }
        }
    }
    Ok(profile.binaries())
}
