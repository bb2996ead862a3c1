//! `cargo xtask vm --kernel DIR -- COMMAND`: runs a command under another kernel, in a virtual machine.
//!
//! The machine's root is this one's, read-only below a layer in memory, so that what is built here runs there; cgroup2 is
//! mounted alone. Nothing is kept when it ends. DIR is what `dpkg-deb -x linux-image-….deb DIR` makes of Debian's packages
//! (`linux-binary-…` and `linux-modules-…` where they are two).

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use flate2::{Compression, write::GzEncoder};

use crate::{packages, sh, workspace};

/// Which kernel, and what to run under it.
#[derive(clap::Args)]
pub struct Args {
    /// Where the package of a kernel is unpacked.
    #[arg(long)]
    kernel: PathBuf,
    /// How to run it: `kvm` is quick where the machine has it, `tcg` works everywhere.
    #[arg(long, default_value = "tcg")]
    accel: String,
    /// Memory in MiB; files that are written take of it too.
    #[arg(long, default_value_t = 6144)]
    memory: u32,
    /// The command, run as root in the current directory.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Lets a shared directory be the root, and written files be in memory.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Where the guest writes what the command exited with.
const EXIT_PORT: u16 = 0xf4;

/// Boots, runs the command, and exits as it does.
///
/// # Errors
/// Says what is missing, or that the machine ended before the command did.
pub fn run(args: &Args) -> Result<()> {
    if !sh::is_root() {
        return sh::again_as_root(&[]);
    }
    packages::ensure(&[packages::VM])?;
    let status = boot(args)?;
    // What the command said is its own matter: no error of ours is put after it.
    if status != 0 {
        std::process::exit(status);
    }
    Ok(())
}

fn boot(args: &Args) -> Result<i32> {
    let dir = args.kernel.canonicalize().with_context(|| format!("there is no {}", args.kernel.display()))?;
    let modules = only(&dir.join("usr/lib/modules"), "")?;
    let image = only(&dir.join("boot"), "vmlinuz").or_else(|_| only(&modules, "vmlinuz"))?;
    let version = modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !modules.join("modules.dep").exists() {
        let lib = dir.join("lib");
        if !lib.exists() {
            std::os::unix::fs::symlink("usr/lib", &lib).with_context(|| format!("cannot link {}", lib.display()))?;
        }
        sh::quiet(sh::cmd("depmod", [&version]).arg("-b").arg(&dir))?;
    }
    fs::create_dir_all(workspace::target())?;
    let work = tempfile::Builder::new().prefix("vm-").tempdir_in(workspace::target()).context("cannot make a directory")?;
    let (script, initrd) = (work.path().join("run"), work.path().join("initrd"));
    fs::write(&script, guest(&modules, &version, &args.command)?)?;
    fs::write(&initrd, initramfs(&modules, &script)?)?;
    let mut qemu = sh::cmd("qemu-system-x86_64", ["-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio", "-smp", "2"]);
    qemu.args(["-cpu", "max", "-accel", &args.accel, "-m", &args.memory.to_string()])
        .arg("-kernel")
        .arg(&image)
        .arg("-initrd")
        .arg(&initrd);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1", "-device", "virtio-rng-pci"]);
    qemu.args(["-device", &format!("isa-debug-exit,iobase={EXIT_PORT},iosize=1")]);
    qemu.args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"]);
    qemu.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    let status = qemu.stdin(Stdio::null()).status().context("cannot run qemu-system-x86_64")?;
    // The device makes 2n+1 of what is written to it; 0 and 1 are qemu's own, when the machine or itself has failed.
    match status.code() {
        Some(code) if code & 1 == 1 && code > 1 => Ok((code >> 1) - 1),
        _ => bail!("the machine of {version} ended before the command did ({status})"),
    }
}

/// The one entry of a directory whose name begins so.
fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}: unpack a kernel's package there", dir.display()))?;
    let mut found: Vec<PathBuf> =
        entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(|e| e.path()).collect();
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => bail!("{} has not exactly one {prefix}*: unpack one kernel's package there", dir.display()),
    }
}

/// What runs once the root is there: the mounts of a machine with cgroup2 alone, and the command.
fn guest(modules: &Path, version: &str, command: &[String]) -> Result<String> {
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let command: Vec<String> = command.iter().map(|word| quote(word)).collect();
    let [here, path, modules, target] =
        [here.to_string_lossy(), path.into(), modules.to_string_lossy(), workspace::target().to_string_lossy()].map(|text| quote(&text));
    // Containers' layers and clusters' states need a file system that is not itself made of layers: memory. Exit codes
    // begin at 1, so that a machine that only goes off is not taken for success; what fits in the device's byte is told apart.
    Ok(format!(
        "export PATH={path}:/usr/sbin:/sbin HOME=/root TERM=dumb CARGO_TARGET_DIR=/run/target
for dir in /tmp /run /var/lib /var/tmp /dev/shm; do mkdir -p $dir; mount -t tmpfs tmpfs $dir; done
mkdir -p /dev/pts /lib/modules/{version} /run/lock /run/target
mount -t devpts devpts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount --bind {modules} /lib/modules/{version}
for dir in debug release tools; do ln -s {target}/$dir /run/target/$dir; done
[ ! -d {target}/images ] || cp -r {target}/images /run/target/images
ip link set lo up
ulimit -n 524288
cd {here} && {} </dev/null
status=$?
[ $status -lt 126 ] || status=126
printf \"\\\\$(printf %03o $((status + 1)))\" | dd of=/dev/port bs=1 seek={EXIT_PORT} 2>/dev/null
",
        command.join(" ")
    ))
}

/// A word as a shell reads it back.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The first file system: the modules that reach the root, and the way there.
fn initramfs(modules: &Path, script: &Path) -> Result<Vec<u8>> {
    let listed = fs::read_to_string(modules.join("modules.dep")).context("cannot read modules.dep")?;
    let mut archive = GzEncoder::new(Vec::new(), Compression::fast());
    for dir in ["bin", "proc", "sys", "dev", "lower", "upper", "new"] {
        entry(&mut archive, dir, 0o040_755, &[])?;
    }
    let busybox = sh::which("busybox").context("there is no busybox")?;
    entry(&mut archive, "bin/busybox", 0o100_755, &fs::read(busybox)?)?;
    let mut load = String::new();
    for (number, file) in needed(&listed, &MODULES).iter().enumerate() {
        let file = modules.join(file);
        let content = match file.extension().and_then(|e| e.to_str()) {
            Some("xz") => sh::cmd("xz", ["-dc"]).arg(&file).output().context("cannot run xz")?.stdout,
            _ => fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?,
        };
        entry(&mut archive, &format!("{number}.ko"), 0o100_644, &content)?;
        load.push_str(&format!("$b insmod /{number}.ko\n"));
    }
    let init = format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
{load}$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower
$b mount -t tmpfs tmpfs /upper; $b mkdir /upper/files /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /new
for dir in proc sys dev; do $b mount --move /$dir /new/$dir; done
exec $b switch_root /new /bin/sh {}
",
        quote(&script.to_string_lossy())
    );
    entry(&mut archive, "init", 0o100_755, init.as_bytes())?;
    entry(&mut archive, "TRAILER!!!", 0, &[])?;
    archive.finish().context("cannot compress the first file system")
}

/// A file of an archive in the format that kernels unpack.
fn entry(archive: &mut impl Write, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).context("too large a file")?;
    // Number, mode, owner, group, links, time, size, two devices of two numbers, length of the name, sum.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    let head: String = fields.iter().map(|field| format!("{field:08X}")).collect();
    let mut file = format!("070701{head}{name}\0").into_bytes();
    file.resize(file.len().next_multiple_of(4), 0);
    file.extend_from_slice(content);
    file.resize(file.len().next_multiple_of(4), 0);
    Ok(archive.write_all(&file)?)
}

/// The files of these modules and of what they need, each once and after what it needs. One that is not listed is built in.
fn needed<'a>(listed: &'a str, names: &[&str]) -> Vec<&'a str> {
    let mut files: Vec<&str> = Vec::new();
    for name in names {
        let is_it = |file: &str| file.rsplit('/').next().and_then(|f| f.split(".ko").next()) == Some(*name);
        let Some((file, needs)) = listed.lines().filter_map(|line| line.split_once(':')).find(|(file, _)| is_it(file)) else {
            continue;
        };
        for file in needs.split_whitespace().rev().chain([file]) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need_and_once() {
        let listed =
            "fs/9p/9p.ko.xz: net/9pnet.ko.xz fs/netfs.ko.xz\nnet/9pnet.ko.xz:\nfs/netfs.ko.xz:\nnet/9pnet_virtio.ko.xz: net/9pnet.ko.xz\n";
        let files = needed(listed, &["virtio_pci", "9pnet_virtio", "9p"]);
        assert_eq!(files, ["net/9pnet.ko.xz", "net/9pnet_virtio.ko.xz", "fs/netfs.ko.xz", "fs/9p/9p.ko.xz"]);
    }

    #[test]
    fn a_shell_reads_words_back_as_they_were() {
        for word in ["plain", "two words", "it's", "$HOME", ""] {
            assert_eq!(sh::quiet(&mut sh::cmd("sh", ["-c", &format!("printf %s {}", quote(word))])).unwrap(), word);
        }
    }

    #[test]
    fn entries_begin_at_multiples_of_four() {
        let mut archive = Vec::new();
        entry(&mut archive, "a", 0o100_644, b"12345").unwrap();
        assert_eq!(archive.len(), 112 + 8);
        assert!(archive.starts_with(b"07070100000000000081A4"));
    }
}
