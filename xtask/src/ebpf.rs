//! `cargo xtask build-ebpf`: builds `ebpf/programs` for the kernel's virtual machine and keeps the
//! stripped object in `ebpf/prebuilt`, so that nobody who does not change the programs needs a BPF
//! toolchain.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::{sh, workspace};

mod prototypes;
mod strip;
mod toolchain;

/// How to build the BPF object.
#[derive(clap::Args)]
pub struct Args {
    /// Only say whether the kept object belongs to the sources.
    #[arg(long)]
    check: bool,
}

/// Runs the task.
pub fn run(args: &Args) -> Result<()> {
    if args.check { check() } else { build() }
}

/// The object that the repository keeps.
pub fn object() -> PathBuf {
    workspace::root().join("ebpf/prebuilt/xebec.bpf.o")
}

/// The same with values of a next version, which tests of upgrades play; nobody ships it.
fn next_object() -> PathBuf {
    workspace::root().join("ebpf/prebuilt/next.bpf.o")
}

fn hashes() -> PathBuf {
    workspace::root().join("ebpf/prebuilt/xebec.bpf.o.sources.sha256")
}

/// Builds the object and keeps it with the hash of its sources.
///
/// # Errors
/// Names what is missing of the toolchain and how to get it, or what the compiler said.
pub fn build() -> Result<()> {
    let tools = toolchain::ensure()?;
    let (object, next) = (object(), next_object());
    let kept = [build_one(&tools, "", &object)?, build_one(&tools, "next", &next)?];
    std::fs::write(hashes(), hash_lines(&sources_hash()?, &kept)).with_context(|| format!("cannot write {}", hashes().display()))
}

/// Builds it with these features.
fn build_one(tools: &toolchain::Tools, features: &str, object: &Path) -> Result<Vec<u8>> {
    let root = workspace::root();
    let target = workspace::target().join("ebpf");
    sh::step(format_args!("building {} from ebpf/programs for bpfel-unknown-none", object.display()));
    let path = std::env::join_paths(
        std::iter::once(tools.bin.clone()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let mut cargo = workspace::cargo();
    cargo
        .current_dir(root.join("ebpf/programs"))
        .args(["build", "--locked", "--release", "-Z", "build-std=core"])
        .args(["--target", "bpfel-unknown-none", "--features", features])
        // -Z build-std is not for stable toolchains otherwise.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", path)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(&root, &tools.sysroot).join("\x1f"))
        .env_remove("RUSTFLAGS");
    sh::run(&mut cargo)?;
    let built = target.join("bpfel-unknown-none/release/xebec");
    let elf = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let stripped = strip::without_debug_sections(&elf).with_context(|| format!("cannot strip {}", built.display()))?;
    prototypes::check(&stripped).with_context(|| format!("{} would be refused", built.display()))?;
    std::fs::create_dir_all(root.join("ebpf/prebuilt"))?;
    std::fs::write(object, &stripped).with_context(|| format!("cannot write {}", object.display()))?;
    sh::step(format_args!("wrote {} ({} bytes)", object.display(), stripped.len()));
    Ok(stripped)
}

/// What the object is built with: BTF for the verifier's messages and types, no path of this machine.
fn rustflags(root: &Path, sysroot: &Path) -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let mut flags: Vec<String> = ["-Cdebuginfo=2", "-Clinker=bpf-linker", "-Clink-arg=--btf", "-Ctarget-cpu=v3"].map(String::from).into();
    let mut remap = |from: &Path, to: &str| {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    };
    if let Some(home) = cargo_home {
        remap(&home, "cargo");
    }
    remap(sysroot, "rust");
    remap(root, "xebec");
    flags
}

fn check() -> Result<()> {
    let read = |object: PathBuf| std::fs::read(&object).with_context(|| format!("cannot read {}", object.display()));
    let objects = [read(object())?, read(next_object())?];
    let kept = std::fs::read_to_string(hashes()).with_context(|| format!("cannot read {}", hashes().display()))?;
    if kept != hash_lines(&sources_hash()?, &objects) {
        bail!("ebpf/prebuilt is not what the sources make: run `cargo xtask build-ebpf`");
    }
    Ok(())
}

fn hash_lines(sources: &str, objects: &[Vec<u8>; 2]) -> String {
    let [object, next] = objects.each_ref().map(|object| hex(&Sha256::digest(object)));
    format!("{sources}  sources\n{object}  xebec.bpf.o\n{next}  next.bpf.o\n")
}

/// SHA-256 over everything the object is made of: names and contents of the sources of `abi`, `logic`
/// and `programs`, and the versions of their dependencies.
pub fn sources_hash() -> Result<String> {
    let root = workspace::root();
    let mut files = Vec::new();
    for part in ["abi", "logic", "programs"] {
        let dir = Path::new("ebpf").join(part);
        files.push(dir.join("Cargo.toml"));
        collect(&root, &dir.join("src"), &mut files)?;
    }
    files.push("ebpf/programs/Cargo.lock".into());
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let content = std::fs::read(root.join(&file)).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(format!("{} {}\n", file.display(), content.len()));
        hash.update(content);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(root.join(dir)).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kept_object_belongs_to_the_sources() {
        if let Err(error) = check() {
            panic!("{error:#}");
        }
    }

    #[test]
    fn the_kept_object_names_no_path_of_the_machine_it_was_built_on() {
        let root = workspace::root();
        let root = root.to_str().unwrap().as_bytes();
        for object in [object(), next_object()].map(|object| std::fs::read(object).unwrap()) {
            assert!(!object.windows(root.len()).any(|w| w == root));
            assert!(!object.windows(6).any(|w| w == b"/home/" || w == b"/root/"));
        }
    }
}
