//! `xebec up` by an ordinary user of the machine, through `sudo`.

use crate::{XEBEC, machine::Machine};

const USER: &str = "dev";
const HOME: &str = "/home/dev";

/// Runs a line as the user does.
#[track_caller]
fn as_user(machine: &Machine, line: &str) -> String {
    machine.ok(&[
        "setpriv",
        "--reuid",
        USER,
        "--regid",
        USER,
        "--init-groups",
        "env",
        "-i",
        &format!("HOME={HOME}"),
        PATH,
        "sh",
        "-ec",
        line,
    ])
}

/// And as root on the user's behalf, with what `sudo` says of them.
#[track_caller]
pub fn ok(machine: &Machine, line: &str) -> String {
    let variables = format!("SUDO_UID=$(id -u {USER}) SUDO_GID=$(id -g {USER}) SUDO_USER={USER}");
    machine.ok(&["sh", "-ec", &format!("{variables} {line}")])
}

const PATH: &str = "PATH=/usr/local/bin:/usr/bin:/bin";

/// Mode, owner and group of a file.
#[track_caller]
fn owner(machine: &Machine, file: &str) -> String {
    machine.ok(&["stat", "-c", "%a %U %G", file]).trim().to_owned()
}

pub fn gives_the_user_a_kubeconfig_of_their_own(machine: &Machine) {
    machine.ok(&["useradd", "--create-home", "--home-dir", HOME, USER]);
    let up = format!("{XEBEC} up --node-name box");
    let said = ok(machine, &up);
    let usual = format!("{HOME}/.kube/config");
    assert!(said.contains(&usual), "{said}");
    assert_eq!([&usual, &format!("{HOME}/.kube")].map(|file| owner(machine, file)), ["600 dev dev", "700 dev dev"]);
    assert_eq!(owner(machine, "/var/lib/xebec/server/admin.kubeconfig"), "600 root root", "the cluster's own stays root's");
    assert!(as_user(machine, "kubectl get nodes").contains("box"));
    // A second time it is the same file; one of other clusters is left alone.
    ok(machine, &up);
    as_user(machine, "kubectl config set-context other --cluster=elsewhere >&2; cp ~/.kube/config ~/mine");
    let said = ok(machine, &up);
    let beside = format!("{HOME}/.kube/xebec.kubeconfig");
    assert!(said.contains(&format!("export KUBECONFIG={beside}")), "{said}");
    as_user(machine, "cmp ~/.kube/config ~/mine");
    assert_eq!(owner(machine, &beside), "600 dev dev");
    assert!(as_user(machine, &format!("KUBECONFIG={beside} kubectl get nodes")).contains("box"));

    // What a user has linked leads root nowhere that the user may not write.
    as_user(machine, "mv ~/.kube ~/kube; ln -s /etc ~/.kube");
    ok(machine, &up);
    machine.ok(&["sh", "-c", "! ls /etc/config /etc/xebec.kubeconfig"]);
    as_user(machine, "rm ~/.kube; mv ~/kube ~/.kube");

    // Credentials that are asked for are the user's too, and where only root may write, root's.
    let make = |out: &str| {
        let server = format!("https://{}:6443", crate::machine::ADDRESS);
        ok(machine, &format!("{XEBEC} kubeconfig --data-dir /var/lib/xebec/server --server {server} --user viewer --out {out}"));
    };
    make(&format!("{HOME}/viewer"));
    make("/root/viewer");
    assert_eq!(owner(machine, &format!("{HOME}/viewer")), "600 dev dev");
    assert_eq!(owner(machine, "/root/viewer"), "600 root root");
    let asked = as_user(machine, "kubectl --kubeconfig ~/viewer auth whoami");
    assert!(asked.contains("viewer"), "{asked}");
}

/// After `down --purge` by the same user: what was theirs alone is gone, what they have changed is not.
pub fn has_no_copies(machine: &Machine) {
    machine.ok(&["sh", "-c", &format!("! ls {HOME}/.kube/xebec.kubeconfig && ls {HOME}/.kube/config")]);
}
