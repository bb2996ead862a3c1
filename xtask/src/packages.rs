//! What the machine must have, and installing it where that is Debian or Ubuntu.

use std::path::Path;

use anyhow::{Result, bail};

use crate::sh;

/// Something the project needs from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The Debian package.
    pub package: &'static str,
    /// How to see that it is there.
    pub sign: Sign,
    /// What it is for, said where it cannot be installed.
    pub purpose: &'static str,
}

/// The evidence that a need is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// A program on `PATH`.
    Program(&'static str),
    /// A program on `PATH` that needs no dynamic linker.
    StaticProgram(&'static str),
    /// One of these files.
    AnyFile(&'static [&'static str]),
    /// A command that exits with 0.
    Succeeds(&'static [&'static str]),
}

impl Sign {
    fn is_there(self) -> bool {
        match self {
            Sign::Program(name) => sh::which(name).is_some(),
            Sign::StaticProgram(name) => sh::which(name).and_then(|file| std::fs::read(file).ok()).is_some_and(|elf| is_static(&elf)),
            Sign::AnyFile(files) => files.iter().any(|file| Path::new(file).exists()),
            Sign::Succeeds(words) => words.split_first().is_some_and(|(program, args)| sh::succeeds(&mut sh::cmd(program, args))),
        }
    }
}

const fn program(package: &'static str, name: &'static str, purpose: &'static str) -> Need {
    Need { package, sign: Sign::Program(name), purpose }
}

/// To build anything that depends on the container runtime's or etcd's interface.
pub const BUILD: &[Need] = &[
    program("gcc", "cc", "links programs"),
    program("protobuf-compiler", "protoc", "compiles the interfaces of containerd and etcd"),
    Need {
        package: "libprotobuf-dev",
        sign: Sign::AnyFile(&["/usr/include/google/protobuf/empty.proto", "/usr/local/include/google/protobuf/empty.proto"]),
        purpose: "protoc's well-known types",
    },
];

/// To run a node.
pub const NODE: &[Need] = &[
    program("containerd", "containerd", "runs containers"),
    program("runc", "runc", "starts containers"),
    program("iproute2", "ip", "makes the node's network namespace"),
    program("util-linux", "nsenter", "enters the node's network namespace"),
    Need { package: "busybox-static", sign: Sign::StaticProgram("busybox"), purpose: "is the demo image" },
];

/// To keep the cluster's state in etcd.
pub const ETCD: &[Need] = &[program("etcd-server", "etcd", "stores the cluster's state with --store etcd")];

/// To use the cluster as its users do.
pub const CLIENTS: &[Need] = &[
    program("kubernetes-client", "kubectl", "the Kubernetes command line"),
    Need {
        package: "python3-venv",
        sign: Sign::Succeeds(&["python3", "-c", "import venv, ensurepip"]),
        purpose: "runs the official Python client in the API tests",
    },
];

/// To measure the dataplane beside others.
pub const BENCH: &[Need] = &[program("nftables", "nft", "writes the rules that the dataplane's bench measures it beside")];

/// To boot a machine of its own for the test of `xebec up`.
pub const HOST: &[Need] = &[program("systemd-container", "systemd-nspawn", "boots a machine to install on")];

/// To boot another kernel.
pub const VM: &[Need] = &[
    program("qemu-system-x86", "qemu-system-x86_64", "runs a kernel in a virtual machine"),
    program("kmod", "depmod", "tells what a kernel's modules need"),
    program("xz-utils", "xz", "unpacks a kernel's modules"),
    Need { package: "busybox-static", sign: Sign::StaticProgram("busybox"), purpose: "is what the kernel starts first" },
];

/// Installs what is missing of `needs`, or says what is missing and stops.
///
/// # Errors
/// Names each missing package and its purpose if this is not Debian or Ubuntu, or if installing did not help.
pub fn ensure(needs: &[&[Need]]) -> Result<()> {
    let missing = missing(needs);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !is_debian(&std::fs::read_to_string("/etc/os-release").unwrap_or_default()) || sh::which("apt-get").is_none() {
        bail!("this machine lacks the following (Debian's package names); install them and try again:\n{}", describe(&missing));
    }
    sh::step(format_args!("installing {}", names.join(" ")));
    // A list that cannot be refreshed may still be good enough to install from.
    if let Err(error) = sh::quiet(sh::as_root("apt-get")?.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "update"])) {
        eprintln!("warning: {error:#}");
    }
    let mut install = sh::as_root("env")?;
    install.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-y", "--no-install-recommends", "install"]).args(&names);
    sh::quiet(&mut install)?;
    let still = self::missing(needs);
    if !still.is_empty() {
        bail!("installed the packages, yet these are not found:\n{}", describe(&still));
    }
    Ok(())
}

fn missing(needs: &[&[Need]]) -> Vec<Need> {
    needs.iter().flat_map(|group| group.iter()).copied().filter(|need| !need.sign.is_there()).collect()
}

fn describe(needs: &[Need]) -> String {
    needs.iter().map(|need| format!("  {} ({})", need.package, need.purpose)).collect::<Vec<_>>().join("\n")
}

/// Whether a 64-bit little-endian ELF file has no `PT_INTERP` program header, so that it runs in an otherwise empty image.
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let interpreter = || -> Option<bool> {
        let (offset, size, count) = (number(32, 8)? as usize, number(54, 2)? as usize, number(56, 2)? as usize);
        (0..count).try_fold(false, |found, index| Some(found || number(offset.checked_add(index * size)?, 4)? == PT_INTERP))
    };
    elf.starts_with(b"\x7fELF\x02\x01") && interpreter() == Some(false)
}

/// Whether an `os-release` file is Debian's or a descendant's.
fn is_debian(os_release: &str) -> bool {
    os_release.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| {
        matches!(key, "ID" | "ID_LIKE") && value.trim_matches('"').split_whitespace().any(|id| matches!(id, "debian" | "ubuntu"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_descendants_are_known() {
        assert!(is_debian("NAME=x\nID=debian\n"));
        assert!(is_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!is_debian("ID=fedora\nID_LIKE=\"rhel\"\n"));
        assert!(!is_debian("PRETTY_NAME=debian\n"));
    }

    #[test]
    fn programs_with_an_interpreter_are_not_static() {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64 + 56, 0);
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64] = 1;
        assert!(is_static(&elf));
        elf[64] = 3;
        assert!(!is_static(&elf));
        elf[64] = 1;
        elf.truncate(64);
        assert!(!is_static(&elf), "a header that is cut off");
        assert!(!is_static(b"#!/bin/sh"));
    }

    #[test]
    fn a_missing_need_is_named_with_its_purpose() {
        const NEEDS: &[Need] = &[program("imaginary", "no-such-program-anywhere", "does nothing")];
        let missing = missing(&[NEEDS]);
        assert_eq!(missing, NEEDS);
        assert_eq!(describe(&missing), "  imaginary (does nothing)");
    }
}
