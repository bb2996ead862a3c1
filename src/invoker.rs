//! Who ran `sudo`: what they asked for is theirs, though root makes it.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use kube::config::Kubeconfig;
use nix::unistd::{Gid, Uid, geteuid, setfsgid, setfsuid};

/// The user behind `sudo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invoker {
    uid: Uid,
    gid: Gid,
    /// Unless nobody knows it.
    home: Option<PathBuf>,
}

impl Invoker {
    /// None: root itself runs this.
    pub fn of_sudo() -> Option<Invoker> {
        if !geteuid().is_root() {
            return None;
        }
        // Users of a directory are not in the file; newer versions of sudo say where they are at home.
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Invoker::from(&passwd, |name| std::env::var(name).ok())
    }

    fn from(passwd: &str, variable: impl Fn(&str) -> Option<String>) -> Option<Invoker> {
        let number = |name| variable(name)?.parse::<u32>().ok();
        let (uid, gid) = (number("SUDO_UID").filter(|uid| *uid != 0)?, number("SUDO_GID")?);
        let home = home_of(passwd, uid).or_else(|| variable("SUDO_HOME").map(PathBuf::from));
        Some(Invoker { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid), home: home.filter(|home| home.is_absolute()) })
    }

    /// Runs `f` with files made and reached as this user: what root writes below a directory of theirs must not come to lie
    /// where they may not write, whatever they have linked there. It holds for this thread alone.
    pub fn with_own_rights<T>(&self, f: impl FnOnce() -> T) -> T {
        struct Back(Uid, Gid);
        impl Drop for Back {
            fn drop(&mut self) {
                setfsuid(self.0);
                setfsgid(self.1);
            }
        }
        let gid = setfsgid(self.gid);
        let _back = Back(setfsuid(self.uid), gid);
        f()
    }

    /// Copies a kubeconfig to where kubectl looks for it, or beside it if there is one of other clusters. Returns where it is.
    pub fn give(&self, kubeconfig: &Path) -> io::Result<PathBuf> {
        let text = fs::read_to_string(kubeconfig)?;
        self.with_own_rights(|| {
            let dir = self.kube_dir()?;
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
            let place = place_in(&dir)?;
            xebec_apiserver::pki::write_private(&place, text.as_bytes()).map_err(io::Error::other)?;
            Ok(place)
        })
    }

    /// Removes the copies of a kubeconfig; what the user has changed stays.
    pub fn take_back(&self, kubeconfig: &Path) -> io::Result<()> {
        let text = match fs::read_to_string(kubeconfig) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            text => text?,
        };
        self.with_own_rights(|| {
            let dir = self.kube_dir()?;
            for place in [dir.join(USUAL), dir.join(OWN)] {
                if fs::read_to_string(&place).is_ok_and(|copy| copy == text) {
                    fs::remove_file(&place)?;
                }
            }
            Ok(())
        })
    }

    fn kube_dir(&self) -> io::Result<PathBuf> {
        let unknown = || io::Error::new(ErrorKind::NotFound, format!("no home directory of user {} is known", self.uid));
        Ok(self.home.as_ref().ok_or_else(unknown)?.join(".kube"))
    }
}

/// What kubectl reads if nothing else is said.
pub const USUAL: &str = "config";
const OWN: &str = "xebec.kubeconfig";

/// The usual file, if there is none or one of xebec's alone; what names other clusters is left alone.
fn place_in(dir: &Path) -> io::Result<PathBuf> {
    let usual = dir.join(USUAL);
    match fs::read_to_string(&usual) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(usual),
        Ok(text) if is_ours_alone(&text) => Ok(usual),
        Ok(_) | Err(_) => Ok(dir.join(OWN)),
    }
}

/// Written by xebec, and nothing was added.
fn is_ours_alone(text: &str) -> bool {
    let ours = |config: &Kubeconfig| {
        let clusters: Vec<&str> = config.clusters.iter().map(|c| c.name.as_str()).collect();
        let contexts: Vec<&str> = config.contexts.iter().map(|c| c.name.as_str()).collect();
        let users: Vec<&str> = config.auth_infos.iter().map(|u| u.name.as_str()).collect();
        [clusters, contexts, users].iter().all(|names| names == &["xebec"])
    };
    Kubeconfig::from_yaml(text).is_ok_and(|config| ours(&config))
}

/// The home directory of a user in the format of passwd(5).
fn home_of(passwd: &str, uid: u32) -> Option<PathBuf> {
    let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let home = fields.filter(|f| f.get(2).is_some_and(|n| n.parse() == Ok(uid))).find_map(|f| f.get(5).copied().map(PathBuf::from));
    home.filter(|home| !home.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\ndev:x:1000:1000:Dev,,,:/home/dev:/bin/sh\nnobody:x:65534:65534::/:\n";

    fn of(variables: &[(&str, &str)]) -> Option<Invoker> {
        Invoker::from(PASSWD, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_invoker_is_whom_sudo_names_and_never_root() {
        let dev = of(&[("SUDO_UID", "1000"), ("SUDO_GID", "100"), ("SUDO_HOME", "/elsewhere")]).expect("a user");
        assert_eq!((dev.uid.as_raw(), dev.gid.as_raw(), dev.home.as_deref()), (1000, 100, Some(Path::new("/home/dev"))));
        let of_directory = of(&[("SUDO_UID", "5000"), ("SUDO_GID", "5000"), ("SUDO_HOME", "/users/o")]).expect("a user");
        assert_eq!(of_directory.home.as_deref(), Some(Path::new("/users/o")));
        let unknown = of(&[("SUDO_UID", "5000"), ("SUDO_GID", "5000"), ("SUDO_HOME", "relative")]).expect("a user");
        assert!(unknown.give(Path::new("/dev/null")).is_err_and(|e| e.to_string().contains("5000")));
        for none in [&[][..], &[("SUDO_UID", "0"), ("SUDO_GID", "0")], &[("SUDO_UID", "1000")], &[("SUDO_UID", "x"), ("SUDO_GID", "1")]] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }

    #[test]
    fn other_clusters_kubeconfigs_are_left_alone() {
        let ours = xebec_apiserver::kubeconfig::render("https://192.0.2.1:6443", "ca", "cert", "key");
        assert!(is_ours_alone(&ours));
        let other = ours.replace("xebec", "kind");
        let merged = ours.replace("users:\n", "users:\n- name: other\n  user: {}\n");
        assert_ne!(merged, ours);
        for text in ["", "not: [a", &other, &merged] {
            assert!(!is_ours_alone(text), "{text}");
        }
        let dir = std::env::temp_dir().join(format!("xebec-invoker-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let place = || place_in(&dir).expect("a place").file_name().expect("a name").to_owned();
        let mut seen = vec![place()];
        for text in [&ours, &other] {
            fs::write(dir.join(USUAL), text).expect("written");
            seen.push(place());
        }
        fs::remove_dir_all(&dir).expect("removed");
        assert_eq!(seen, [USUAL, USUAL, OWN]);
    }
}
