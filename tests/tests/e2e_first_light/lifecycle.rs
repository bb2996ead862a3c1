//! Up, up again, down, up with what was there, and down after everything was killed.

use std::{collections::BTreeMap, fs, net::TcpStream, time::Duration};

use xtask::up::{self, Layout, Store};

use xebec_tests::{
    cluster::{Cluster, args, down, until},
    traces::{Traces, nothing_is_left, pinned_maps, still_loaded},
};

fn pids(layout: &Layout) -> BTreeMap<String, String> {
    let names = ["server", "containerd", "agent", "etcd"].into_iter();
    names.filter_map(|part| Some((part.to_owned(), fs::read_to_string(layout.run_dir.join(format!("{part}.pid"))).ok()?))).collect()
}

#[test]
fn up_can_be_repeated_and_down_leaves_nothing_but_the_state() {
    let args = args("lifecycle", Store::Embedded);
    let layout = Layout::new(&args.name).unwrap();
    down(&args.name, true);
    let before = Traces::of(&layout);

    let cluster = Cluster { up: up::bring_up(&args).unwrap(), args: args.clone() };
    up::demo(&cluster.up).unwrap();
    let first = pids(&layout);
    assert_eq!(first.len(), 3);
    up::bring_up(&args).unwrap();
    assert_eq!(pids(&layout), first, "a second up must restart nothing");
    let loaded = pinned_maps(&layout);
    assert!(loaded.len() > 5, "nothing is pinned in {}: {loaded:?}", layout.first().pin_dir().display());
    let seen = Traces::of(&layout).difference(&before);
    for trace in ["namespace", "network", "mount", "process", "cgroup", "file"] {
        assert!(seen.iter().any(|item| item.starts_with(&format!("new: {trace} "))), "a {trace} would not be noticed: {seen:?}");
    }

    down(&args.name, false);
    nothing_is_left(&layout, &before);
    until("every program and map is unloaded", || still_loaded(&loaded).is_empty());

    up::bring_up(&args).unwrap();
    let kept = cluster.kubectl(&["get", "deployment", "-n", "demo", "web", "-o", "name"]);
    assert_eq!(kept.trim(), "deployment.apps/web", "state must survive down");
    up::demo(&cluster.up).unwrap();

    drop(cluster);
    assert!(!layout.dir.exists(), "--purge must remove the state");
    nothing_is_left(&layout, &before);
}

#[test]
fn down_after_sigkill_of_everything_leaves_nothing() {
    let args = args("killed", Store::Embedded);
    let layout = Layout::new(&args.name).unwrap();
    down(&args.name, true);
    let before = Traces::of(&layout);

    let cluster = Cluster { up: up::bring_up(&args).unwrap(), args };
    cluster.sleeper("sleeper", "default");
    let loaded = pinned_maps(&layout);
    layout.first().cgroup().unwrap().kill().unwrap();
    assert!(layout.first().netns().exists(), "the namespace outlives its processes");

    drop(cluster);
    nothing_is_left(&layout, &before);
    until("every program and map is unloaded", || still_loaded(&loaded).is_empty());
}

#[test]
fn the_same_on_etcd() {
    let args = args("etcd", Store::Etcd);
    let layout = Layout::new(&args.name).unwrap();
    down(&args.name, true);
    let before = Traces::of(&layout);
    let cluster = Cluster { up: up::bring_up(&args).unwrap(), args };
    assert_eq!(pids(&layout).len(), 4);
    up::demo(&cluster.up).unwrap();
    drop(cluster);
    nothing_is_left(&layout, &before);
}

#[test]
fn a_node_port_answers_from_the_machine_itself() {
    let cluster = Cluster::up("nodeport");
    up::demo(&cluster.up).unwrap();
    let address = std::net::SocketAddr::from((cluster.up.node_ip(), 30080));
    assert!(TcpStream::connect_timeout(&address, Duration::from_secs(10)).is_ok());
    let closed = std::net::SocketAddr::from((cluster.up.node_ip(), 30081));
    assert!(TcpStream::connect_timeout(&closed, Duration::from_secs(10)).is_err());
}
