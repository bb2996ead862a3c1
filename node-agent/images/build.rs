//! Compiles `pause.rs`, a program of a few hundred bytes with neither `std` nor libc, for embedding.
//!
//! It is no package of its own because cargo would link it like a normal program: the start files and the dynamic linker
//! are what it must not have.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=pause.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    let out = PathBuf::from(variable("OUT_DIR")).join("pause");
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.args(["--edition=2024", "--crate-name=pause", "--crate-type=bin", "--target"]).arg(variable("TARGET"));
    rustc.args(["-Copt-level=z", "-Cpanic=abort", "-Crelocation-model=static", "-Cstrip=symbols", "-Cdebuginfo=0"]);
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-Wl,--build-id=none", "-Wl,-z,noexecstack"] {
        rustc.arg(format!("-Clink-arg={arg}"));
    }
    let status = rustc.arg("-o").arg(&out).arg("pause.rs").status().expect("cannot run rustc");
    assert!(status.success(), "rustc failed on pause.rs: {status}");
}
