//! What the agent has on a node that is not its own: CNI programs are put beside others' and taken away again.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

use crate::{Config, Error, host_root, proxy_health};

/// The programs' names: ours, and the one that containerd asks for by this name.
const PROGRAM: &str = "xebec-cni";
const LOOPBACK: &str = "loopback";

/// Puts `program` into the runtime's directory of CNI programs, each in one step, so that a call that comes meanwhile finds the
/// old or the new one. A `loopback` of somebody else's stays.
///
/// # Errors
/// If a file cannot be read or written.
pub fn install_cni(program: &Path, bin_dir: &Path) -> Result<(), Error> {
    let bytes = fs::read(program).map_err(Error::io("read", program))?;
    fs::create_dir_all(bin_dir).map_err(Error::io("create", bin_dir))?;
    let loopback_is_ours = is_ours(bin_dir, &bin_dir.join(LOOPBACK));
    let old = fs::read(bin_dir.join(PROGRAM)).is_ok_and(|old| old == bytes);
    let loopback = !bin_dir.join(LOOPBACK).exists() || (loopback_is_ours && !old);
    for name in [Some(PROGRAM).filter(|_| !old), Some(LOOPBACK).filter(|_| loopback)].into_iter().flatten() {
        let (file, new) = (bin_dir.join(name), bin_dir.join(format!(".{name}.new")));
        fs::write(&new, &bytes).map_err(Error::io("write", &new))?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(Error::io("make executable", &new))?;
        fs::rename(&new, &file).map_err(Error::io("write", &file))?;
    }
    Ok(())
}

/// Whether a file is a copy of the installed program.
fn is_ours(bin_dir: &Path, file: &Path) -> bool {
    match (fs::read(bin_dir.join(PROGRAM)), fs::read(file)) {
        (Ok(ours), Ok(other)) => ours == other,
        _ => false,
    }
}

/// Removes what [`install_cni`] put there.
fn remove_cni(bin_dir: &Path) -> Vec<Error> {
    let mut files = vec![bin_dir.join(PROGRAM)];
    // Judged before the program it is compared with is gone.
    files.extend(Some(bin_dir.join(LOOPBACK)).filter(|file| is_ours(bin_dir, file)));
    files.iter().filter_map(|file| remove(file).err()).collect()
}

/// Takes the dataplane off this node: links, programs, maps, devices, routes, changed settings, files. Needs no running agent;
/// what is gone already is no failure. Returns what could not be removed.
pub async fn take_down(config: &Config) -> Vec<Error> {
    let mut failures = Vec::new();
    let ended = proxy_health::end(&config.run_dir).await;
    failures.extend(ended.err().map(Error::io("end the health responder at", &config.run_dir)));
    match make_sysctls_writable().map_err(Error::ReadOnlySysctls).and_then(|()| config.dataplane()) {
        Ok(dataplane) => failures.extend(xebec_dataplane::teardown(&dataplane).await.into_iter().map(Error::from)),
        Err(error) => failures.push(error),
    }
    if let Some(bin_dir) = &config.cni_bin_dir {
        failures.extend(remove_cni(bin_dir));
    }
    for file in [config.data_dir.join("api-servers.json"), config.run_dir.join("health.sock")] {
        failures.extend(remove(&file).err());
    }
    for dir in [config.data_dir.join("dataplane"), config.data_dir.clone(), config.run_dir.clone()] {
        failures.extend(remove_empty(&dir).err());
    }
    failures
}

fn remove(file: &Path) -> Result<(), Error> {
    gone(fs::remove_file(file), "remove", file)
}

/// A directory that others use too, or that is mounted into a container, stays.
fn remove_empty(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir(dir) {
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => Ok(()),
        other => gone(other, "remove", dir),
    }
}

fn gone(result: io::Result<()>, what: &'static str, path: &Path) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(what, PathBuf::from(path))(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is mounted in a container ends with it, and so would everything that is pinned there.
pub(crate) fn pins_outlive_us(pin_dir: &Path) -> Result<(), Error> {
    const BPFFS: nix::sys::statfs::FsType = nix::sys::statfs::FsType(0xcafe_4a11);
    let existing = pin_dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let is_bpffs = nix::sys::statfs::statfs(existing).is_ok_and(|stat| stat.filesystem_type() == BPFFS);
    if host_root::find().is_some() && !is_bpffs {
        return Err(Error::Config(format!(
            "{} is on no BPF file system of the host's: mount one there (mount -t bpf bpf /sys/fs/bpf; systemd does at boot) and mount it into this container",
            pin_dir.display()
        )));
    }
    Ok(())
}

/// A container sees `/proc/sys` read-only unless it is privileged; with CAP_SYS_ADMIN its own view can be changed.
pub(crate) fn make_sysctls_writable() -> io::Result<()> {
    let probe = fs::OpenOptions::new().write(true).open("/proc/sys/net/ipv4/ip_forward");
    match probe {
        Err(error) if error.raw_os_error() == Some(libc::EROFS) => {
            let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            Ok(mount(None::<&str>, "/proc/sys", None::<&str>, flags, None::<&str>)?)
        }
        // Whatever else is wrong will be told where a setting is written.
        Ok(_) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_and_go_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (program, bin) = (dir.path().join("built"), dir.path().join("opt/cni/bin"));
        fs::write(&program, "one").unwrap();
        install_cni(&program, &bin).unwrap();
        let content = |name: &str| fs::read_to_string(bin.join(name)).ok();
        assert_eq!((content(PROGRAM), content(LOOPBACK)), (Some("one".to_owned()), Some("one".to_owned())));
        assert_eq!(fs::metadata(bin.join(PROGRAM)).unwrap().permissions().mode() & 0o777, 0o755);
        // An upgrade replaces both.
        fs::write(&program, "two").unwrap();
        install_cni(&program, &bin).unwrap();
        assert_eq!((content(PROGRAM), content(LOOPBACK)), (Some("two".to_owned()), Some("two".to_owned())));
        // Somebody else's loopback is left alone, also at the end.
        fs::write(bin.join(LOOPBACK), "theirs").unwrap();
        fs::write(bin.join("bridge"), "theirs").unwrap();
        fs::write(&program, "three").unwrap();
        install_cni(&program, &bin).unwrap();
        assert!(remove_cni(&bin).is_empty());
        assert!(remove_cni(&bin).is_empty(), "again");
        assert_eq!((content(PROGRAM), content(LOOPBACK), content("bridge")), (None, Some("theirs".to_owned()), Some("theirs".to_owned())));
        assert_eq!(fs::read_dir(&bin).unwrap().count(), 2, "no temporary file is left");
    }
}
