//! What building for BPF needs beyond stable Rust: the source of `core`, and bpf-linker.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{sh, workspace};

/// The release that fits the versions of LLVM named in [`linker_feature`].
const LINKER_VERSION: &str = "0.13.0";

/// Where the tools are.
pub struct Tools {
    pub sysroot: PathBuf,
    /// Holds `bpf-linker`.
    pub bin: PathBuf,
}

/// Finds or installs what is needed.
pub fn ensure() -> Result<Tools> {
    let version = rustc_version()?;
    let sysroot = PathBuf::from(sh::quiet(&mut rustc(&["--print", "sysroot"]))?.trim());
    rust_src(&sysroot, &version.release)?;
    let bin = linker(&sysroot, &version)?;
    Ok(Tools { sysroot, bin })
}

fn rustc(args: &[&str]) -> Command {
    let program = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = sh::cmd(program, args);
    command.current_dir(workspace::root());
    command
}

#[derive(Debug, PartialEq, Eq)]
struct RustcVersion {
    release: String,
    llvm_major: u32,
}

fn rustc_version() -> Result<RustcVersion> {
    parse_version(&sh::quiet(&mut rustc(&["--version", "--verbose"]))?)
}

fn parse_version(text: &str) -> Result<RustcVersion> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = field("release:").context("rustc does not tell its release")?.to_owned();
    let llvm = field("LLVM version:").context("rustc does not tell its LLVM version")?;
    let llvm_major = llvm.split('.').next().unwrap_or_default().parse().with_context(|| format!("rustc's LLVM version is {llvm}"))?;
    Ok(RustcVersion { release, llvm_major })
}

/// The source of `core`, in the toolchain's own place: `rustup`, or Debian's package of it.
fn rust_src(sysroot: &Path, release: &str) -> Result<()> {
    let place = sysroot.join("lib/rustlib/src/rust/library");
    if place.join("core/Cargo.toml").exists() {
        return Ok(());
    }
    sh::step("installing rust-src");
    if sh::which("rustup").is_some()
        && sh::succeeds(&mut sh::cmd("rustup", ["component", "add", "rust-src"]))
        && place.join("core/Cargo.toml").exists()
    {
        return Ok(());
    }
    debian_rust_src(&place, release).with_context(|| {
        format!(
            "the source of Rust's core library is not at {} and could not be installed; `rustup component add rust-src` does it where rustup may download",
            place.display()
        )
    })
}

/// Takes the library's source out of Debian's package `rust-src` of the same release, from the
/// machine's own mirror, through a source list of its own: the machine's lists stay as they are.
fn debian_rust_src(place: &Path, release: &str) -> Result<()> {
    for tool in ["apt-get", "dpkg-deb"] {
        if sh::which(tool).is_none() {
            bail!("`{tool}` is not here either");
        }
    }
    let keyring = Path::new("/usr/share/keyrings/debian-archive-keyring.gpg");
    if !keyring.exists() {
        bail!("{} is missing", keyring.display());
    }
    let dir = workspace::target().join("tools/rust-src");
    for part in ["state/lists/partial", "cache/archives/partial", "out"] {
        std::fs::create_dir_all(dir.join(part))?;
    }
    let list = dir.join("sources.list");
    std::fs::write(&list, format!("deb [signed-by={}] {} trixie-backports main\n", keyring.display(), debian_mirror()?))?;
    let options = [
        format!("Dir::Etc::SourceList={}", list.display()),
        "Dir::Etc::SourceParts=/dev/null".into(),
        format!("Dir::State={}", dir.join("state").display()),
        format!("Dir::Cache={}", dir.join("cache").display()),
        "Dir::State::status=/dev/null".into(),
        "APT::Sandbox::User=root".into(),
    ];
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(dir.join("out")).arg("-q");
        for option in &options {
            command.args(["-o", option]);
        }
        command.args(args);
        sh::quiet(&mut command)
    };
    apt(&["update"])?;
    apt(&["download", &format!("rust-src={release}*")])?;
    let package = std::fs::read_dir(dir.join("out"))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get downloaded nothing")?;
    sh::quiet(sh::cmd("dpkg-deb", ["-x"]).arg(&package).arg(dir.join("unpacked")))?;
    let library = dir.join("unpacked/usr/src").join(format!("rustc-{release}")).join("library");
    std::fs::create_dir_all(place.parent().context("no parent directory")?)?;
    sh::quiet(sh::cmd("cp", ["-rL"]).arg(&library).arg(place))?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

/// The mirror that the machine itself uses.
fn debian_mirror() -> Result<String> {
    let text = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
        .iter()
        .filter_map(|file| std::fs::read_to_string(file).ok())
        .collect::<Vec<_>>()
        .join("\n");
    mirror_in(&text).context("apt's sources name no Debian mirror to look for rust-src on; install rust-src of this toolchain by hand")
}

fn mirror_in(text: &str) -> Option<String> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .find(|word| word.starts_with("http") && word.trim_end_matches('/').ends_with("/debian"))
        .map(str::to_owned)
}

/// The directory of a bpf-linker that fits: one on `PATH`, one built before, or one built now.
fn linker(sysroot: &Path, version: &RustcVersion) -> Result<PathBuf> {
    let tools = workspace::target().join("tools");
    let own = tools.join("bin");
    // One linked against an older LLVM cannot read what this rustc writes, and does not say which
    // it is linked against: only our own is known to fit.
    let stamp = tools.join("bpf-linker.llvm");
    let wanted = format!("{LINKER_VERSION} {}", sysroot.display());
    if own.join("bpf-linker").exists() && std::fs::read_to_string(&stamp).is_ok_and(|s| s == wanted) {
        return Ok(own);
    }
    let feature = linker_feature(version.llvm_major)?;
    let llvm = llvm_library(&sysroot.join("lib"))?;
    // bpf-linker looks for lib/libLLVM.so below LLVM_PREFIX; the toolchain's has a name of its own.
    let prefix = tools.join("llvm");
    std::fs::create_dir_all(prefix.join("lib"))?;
    let link = prefix.join("lib/libLLVM.so");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&llvm, &link)?;
    sh::step(format_args!("building bpf-linker {LINKER_VERSION} against {} (about two minutes)", llvm.display()));
    let mut cargo = workspace::cargo();
    cargo
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", feature, "--root"])
        .arg(&tools)
        .env("LLVM_PREFIX", &prefix)
        .env("CARGO_TARGET_DIR", tools.join("build"))
        .env("RUSTFLAGS", format!("-Clink-arg=-Wl,-rpath,{}", sysroot.join("lib").display()))
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    sh::run(&mut cargo)?;
    std::fs::write(&stamp, wanted)?;
    let _ = std::fs::remove_dir_all(tools.join("build"));
    Ok(own)
}

fn linker_feature(llvm_major: u32) -> Result<&'static str> {
    match llvm_major {
        21 => Ok("llvm-21"),
        22 => Ok("llvm-22"),
        23 => Ok("llvm-23"),
        other => bail!("bpf-linker {LINKER_VERSION} knows LLVM 21 to 23, this rustc has {other}: use Rust 1.95"),
    }
}

fn llvm_library(lib: &Path) -> Result<PathBuf> {
    std::fs::read_dir(lib)
        .with_context(|| format!("cannot list {}", lib.display()))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .find(|path| path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("libLLVM.so.")))
        .with_context(|| format!("no libLLVM.so.* in {}: this rustc has LLVM built in; use the one from rustup", lib.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_tells_release_and_llvm() {
        let text = "rustc 1.95.0 (x)\nbinary: rustc\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(parse_version(text).unwrap(), RustcVersion { release: "1.95.0".into(), llvm_major: 22 });
        assert!(parse_version("rustc 1.95.0\n").is_err());
        assert!(linker_feature(20).is_err());
    }

    #[test]
    fn the_mirror_is_read_from_both_formats() {
        assert_eq!(mirror_in("Types: deb\n# http://x/debian\nURIs: http://m/debian\n").unwrap(), "http://m/debian");
        assert_eq!(mirror_in("deb http://s/debian-security b main\ndeb https://n/debian/ b main\n").unwrap(), "https://n/debian/");
        assert_eq!(mirror_in("nothing"), None);
    }
}
