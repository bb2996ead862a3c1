//! Starting the node's parts in order: each needs a file of the one before.

use std::{
    fs,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use xebec_host::parts::Ensured;

use super::{
    Place, UpArgs, must_be_root,
    systemd::{self, CommandLines},
};
use crate::{
    address, agent, check, containerd, image,
    invoker::{self, Invoker},
    kubeconfig, status,
};

/// How long the first start may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Brings the node up and waits until it is Ready.
pub async fn run(args: UpArgs) -> Result<()> {
    must_be_root("up")?;
    let place = &args.place;
    let node_ip = match args.node_ip {
        Some(address) => address,
        None => address::of_default_route()?,
    };
    let node_name = match args.node_name {
        Some(name) => name,
        None => agent::host_name()?,
    };
    let cni = containerd::own_cni()?;
    let admin = place.admin_kubeconfig();
    // Ports in use are no lack when it is us who use them.
    let lacks = if admin.exists() { 0 } else { check::lacks() };
    if lacks > 0 && !args.force {
        bail!("this host lacks {lacks} thing{}: see `xebec check`; --force goes on all the same", if lacks == 1 { "" } else { "s" });
    }
    for (dir, mode) in [(&place.data_dir, 0o755), (&place.logs(), 0o755), (&place.run_dir, 0o700), (&place.agent_dir(), 0o700)] {
        fs::DirBuilder::new().recursive(true).mode(mode).create(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let lines = command_lines(place, &node_name, &node_ip.to_string(), args.lb_mode, &cni);
    let starter = Starter::new(place, &lines)?;
    starter.start("containerd", &lines.containerd)?;
    starter.start("server", &lines.server)?;
    wait_for("the server", &admin)?;
    if !place.node_kubeconfig().exists() {
        let url = format!("https://{}", std::net::SocketAddr::new(node_ip, 6443));
        kubeconfig::node(&place.server_dir(), &url, &place.node_kubeconfig(), &node_name, &[node_ip])?;
    }
    let begun = chrono::Utc::now().timestamp_micros();
    let since = starter.start("agent", &lines.agent)?.then_some(begun);
    if starter.parts.is_some() {
        image::import_pause(&place.containerd(&cni).socket())?;
    }
    status::wait_ready(&status::Cluster { kubeconfig: admin.clone() }, 1, since, PATIENCE).await?;
    println!("node {node_name} is Ready\nkubeconfig  {}", admin.display());
    if let Some(invoker) = Invoker::of_sudo() {
        match invoker.give(&admin) {
            Ok(place) if place.ends_with(invoker::USUAL) => println!("a copy of yours is where kubectl looks for it: {}", place.display()),
            Ok(place) => println!("a copy of yours, beside that of other clusters:\n    export KUBECONFIG={}", place.display()),
            Err(error) => eprintln!("you get no copy of the kubeconfig ({error}): `sudo xebec kubeconfig` makes one wherever you like"),
        }
    }
    Ok(())
}

/// How parts are started here.
struct Starter {
    /// `None`: systemd does it.
    parts: Option<xebec_host::parts::Parts>,
    program: PathBuf,
}

impl Starter {
    fn new(place: &Place, lines: &CommandLines) -> Result<Starter> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        if place.uses_systemd() {
            systemd::install(&program, lines)?;
            return Ok(Starter { parts: None, program });
        }
        let parts = place.parts()?;
        parts.cgroup.create()?;
        Ok(Starter { parts: Some(parts), program })
    }

    /// Whether the part runs anew.
    fn start(&self, part: &str, line: &[String]) -> Result<bool> {
        match &self.parts {
            None => systemd::enable(part).map(|()| true),
            Some(parts) => {
                let shown = if part == "containerd" { "containerd" } else { "xebec" };
                let ensured = parts.ensure(part, shown, &self.program, line.iter().map(Into::into).collect())?;
                Ok(ensured == Ensured::Started)
            }
        }
    }
}

fn command_lines(place: &Place, node_name: &str, node_ip: &str, lb_mode: agent::LbMode, cni: &Path) -> CommandLines {
    let line = |words: &[&str], flags: &[(&str, &Path)]| {
        let words = words.iter().map(|word| (*word).to_owned());
        words.chain(flags.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()])).collect::<Vec<_>>()
    };
    let runtime = place.containerd(cni);
    let modes = ["--cgroup-parent", place.cgroup_parent.as_str(), "--lb-mode", lb_mode.name()];
    CommandLines {
        server: line(&["server", "--advertise-address", node_ip], &[("--data-dir", &place.server_dir())]),
        containerd: line(&["containerd"], &[("--root", &runtime.root), ("--run-dir", &place.run_dir), ("--cni-program", cni)]),
        import: line(&["image", "import-pause"], &[("--containerd", &runtime.socket())]),
        agent: line(
            &[&["agent", "--node-name", node_name, "--node-ip", node_ip][..], &modes].concat(),
            &[("--data-dir", &place.agent_dir()), ("--run-dir", &place.run_dir), ("--pin-dir", &place.pin_dir)],
        ),
    }
}

fn wait_for(what: &str, file: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !file.exists() {
        if Instant::now() > deadline {
            bail!("{what} did not make {}; see its log", file.display());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
