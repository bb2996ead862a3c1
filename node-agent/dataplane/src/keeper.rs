//! Keeps the node's stack as pods need it: devices, programs on them, settings, routes, the tunnel. Whatever changes is read
//! again and put right, whoever changed it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::config::Routing;
use crate::device::netlink::{Link, Netlink};
use crate::device::news::{News, Resettled};
use crate::device::sysctl::Sysctls;
use crate::device::{settings, uplink, vxlan};
use crate::engine::Watch;
use crate::{Dataplane, Error, fabric};

/// How long further news are gathered after the first.
const GATHER: Duration = Duration::from_millis(20);
/// How often everything is looked at without news: programs taken off a device are told to nobody.
const LOOK: Duration = Duration::from_secs(10);
/// How often as long as the last look took news are gathered, at most [`REST`]: on a node with many pods each pod that comes is
/// news about all of them, and looking takes the locks that its ADD waits for.
const SHARE: u32 = 4;
/// The longest that news wait.
const REST: Duration = Duration::from_secs(1);

/// Pods' devices that had their programs when they were last looked at, and their indices.
type Judged = HashMap<String, u32>;

/// Runs until `cancel`.
pub async fn keep(dataplane: Arc<Dataplane>, cancel: CancellationToken) {
    let mut news = match News::open() {
        Ok(news) => Some(news),
        Err(error) => {
            tracing::warn!(%error, "changes of the network cannot be watched; they are seen every {LOOK:?}");
            None
        }
    };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut judged, mut rest) = (Judged::new(), GATHER);
    // What was there before news could be heard has been seen by nobody.
    let mut resettled = Resettled { all: true, ..Resettled::default() };
    loop {
        let tunnel = dataplane.engine.lock().devices.tunnel();
        let told = async {
            match &mut news {
                Some(news) => news.changed(tunnel, &mut resettled).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = look.tick() => {
                judged.clear();
                resettled.all = true;
            }
            () = dataplane.nodes_changed.notified() => {}
            told = told => match told {
                Ok(()) => tokio::time::sleep(rest).await,
                Err(error) => {
                    tracing::warn!(%error, "changes of the network can no longer be watched; they are seen every {LOOK:?}");
                    news = None;
                }
            },
        }
        if let Some(news) = &mut news {
            news.gather(&mut resettled);
        }
        let begin = Instant::now();
        let problems = dataplane.put_right(&mut judged, std::mem::take(&mut resettled)).await;
        rest = (begin.elapsed() * SHARE).clamp(GATHER, REST);
        let mut engine = dataplane.engine.lock();
        if engine.problems != problems {
            for problem in &problems {
                tracing::error!(%problem, "the node's network is not as it shall be; it will be tried again");
            }
            engine.problems = problems;
        }
    }
}

impl Dataplane {
    /// Reads and puts right everything. Returns what could not be.
    async fn put_right(&self, judged: &mut Judged, resettled: Resettled) -> Vec<String> {
        let mut problems: Vec<String> = Vec::new();
        let mut note = |result: Result<(), Error>| problems.extend(result.err().map(|e| e.to_string()));
        note(self.keep_tunnel().await);
        note(self.read_devices().await);
        let before = judged.clone();
        note(self.keep_pods(judged).await);
        problems.extend(self.keep_settings(&before, &resettled).await.iter().map(ToString::to_string));
        match self.keep_routes().await {
            Ok(more) => problems.extend(more),
            Err(error) => problems.push(error.to_string()),
        }
        problems
    }

    /// The tunnel's device, before devices are read: it is one of them.
    async fn keep_tunnel(&self) -> Result<(), Error> {
        let wanted = self.tunnel();
        let failed = || Error::netlink(format!("make or remove the tunnel {}", vxlan::NAME));
        match wanted {
            Some(tunnel) => self.netlink.put_tunnel(&tunnel).await.map(drop).map_err(failed()),
            None if self.config.routing == Routing::Native => self.netlink.remove_tunnel().await.map_err(failed()),
            // The node has no address at the moment.
            None => Ok(()),
        }
    }

    fn tunnel(&self) -> Option<vxlan::Tunnel> {
        let engine = self.engine.lock();
        fabric::tunnel(&self.config.routing, &engine.devices, &self.config.node_ips, engine.devices.mtu().unwrap_or(1500))
    }

    /// Devices towards other machines as they are now, with their programs.
    async fn read_devices(&self) -> Result<(), Error> {
        let (named, told) = {
            let engine = self.engine.lock();
            let told = engine.told(&self.config.node_ips);
            match self.config.uplinks.is_empty() && told.is_empty() {
                // The Node object will tell; until then the uplinks are those that were found at the start.
                true => (engine.devices.uplinks.values().filter(|u| !u.tunnel).map(|u| u.name.clone()).collect(), told),
                false => (self.config.uplinks.clone(), told),
            }
        };
        let devices = uplink::detect(&self.netlink, &named, &told).await;
        let devices = devices.map_err(Error::netlink("read devices"))?;
        let errors = {
            let mut engine = self.engine.lock();
            let changed = engine.devices != devices;
            if changed {
                engine.devices = devices;
                self.changed.notify_one();
            }
            if changed || !engine.uplinks_attached() || engine.is_driver_due() { engine.attach_uplinks() } else { Vec::new() }
        };
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    /// Pods' devices: their size, and the programs of those that are not judged yet.
    async fn keep_pods(&self, judged: &mut Judged) -> Result<(), Error> {
        let links = self.netlink.links().await.map_err(Error::netlink("read devices"))?;
        let mtu = self.mtu();
        let sandboxes: Vec<(String, String)> = self.sandboxes.lock().iter().map(|(o, s)| (o.clone(), s.host_name.clone())).collect();
        let links: HashMap<&str, &Link> = links.iter().map(|link| (link.name.as_str(), link)).collect();
        let before = std::mem::take(judged);
        for (owner, host_name) in sandboxes {
            let Some(link) = links.get(host_name.as_str()) else { continue };
            let attached = before.get(&host_name) == Some(&link.index) || self.engine.lock().runs_at_pod((&link.name, link.index));
            if attached && link.mtu == mtu {
                judged.insert(host_name, link.index);
                // Calls about pods need not wait until all have been looked at.
                tokio::task::yield_now().await;
                continue;
            }
            // A call about it may be under way, whose end decides what there is to keep.
            let _one_at_a_time = self.sandbox_lock(&owner).await;
            let Some(sandbox) = self.sandboxes.lock().get(&owner).cloned() else { continue };
            let Some(link) = self.netlink.link(&host_name).await.map_err(Error::netlink("read devices"))? else { continue };
            if link.mtu != mtu {
                resize(&self.netlink, &sandbox.netns, &sandbox.ifname, &link, mtu).await?;
            }
            let mut engine = self.engine.lock();
            if !engine.runs_at_pod((&link.name, link.index)) {
                tracing::warn!(device = %link.name, "the programs of a pod's device were gone");
                engine.attach_pod((&link.name, link.index))?;
            }
        }
        Ok(())
    }

    /// Of pods' devices those are read that are new, or of which something was told.
    async fn keep_settings(&self, judged: &Judged, resettled: &Resettled) -> Vec<Error> {
        let mut sandboxes: Vec<String> = self.sandboxes.lock().values().map(|s| s.host_name.clone()).collect();
        sandboxes.retain(|name| judged.get(name).is_none_or(|index| resettled.has(*index)));
        let (uplinks, v6) = {
            let engine = self.engine.lock();
            let uplinks: Vec<(String, bool)> = engine.devices.uplinks.values().map(|u| (u.name.clone(), u.tunnel)).collect();
            (uplinks, engine.ipam.ranges().iter().any(|range| range.addr().is_ipv6()))
        };
        let sysctls = Sysctls::new(&self.config.state_dir);
        // Thousands of files on a node with many pods: off the threads that serve calls.
        let put = move || {
            let of_kind = |tunnel: bool| uplinks.iter().filter(move |(_, t)| *t == tunnel).map(|(name, _)| name.as_str());
            let devices = settings::Devices {
                pods: sandboxes.iter().map(String::as_str).collect(),
                uplinks: of_kind(false).collect(),
                tunnel: of_kind(true).next(),
                v6,
            };
            settings::put(&settings::wanted(&devices, settings::read), &sysctls).1
        };
        tokio::task::spawn_blocking(put).await.unwrap_or_else(|e| vec![Error::netlink("read settings")(std::io::Error::other(e))])
    }

    /// Routes, rules and the tunnel's ends, once it is known which nodes there are: until then those of before stay.
    async fn keep_routes(&self) -> Result<Vec<String>, Error> {
        let fabric = {
            let engine = self.engine.lock();
            if engine.unsynced().contains(&Watch::Nodes) {
                return Ok(Vec::new());
            }
            let ranges: Vec<IpNet> = match engine.ipam.ranges() {
                none if none.is_empty() => engine.node.pod_cidrs.clone(),
                ranges => ranges,
            };
            let index = engine.devices.tunnel();
            let settings = fabric::tunnel(&self.config.routing, &engine.devices, &self.config.node_ips, 0);
            fabric::plan(&self.config.routing, &engine.devices, &ranges, &engine.peers, settings.zip(index))
        };
        let mut problems = fabric.problems.clone();
        let tunnel = self.engine.lock().devices.tunnel();
        if let Some(index) = tunnel {
            self.netlink.put_ends(index, &fabric.ends).await.map_err(Error::netlink("write the tunnel's neighbours"))?;
        }
        let failed = self.netlink.put_routes(&fabric.routes).await.map_err(Error::netlink("read routes"))?;
        problems.extend(failed.iter().map(|(route, error)| format!("route to {} via {}: {error}", route.to, route.via)));
        self.netlink.put_rules(&fabric.rules).await.map_err(Error::netlink("write routing rules"))?;
        Ok(problems)
    }
}

/// Both sides: a packet too large for one of them is lost without a word.
async fn resize(host: &Netlink, netns: &std::path::Path, ifname: &str, link: &Link, mtu: u32) -> Result<(), Error> {
    tracing::info!(device = %link.name, from = link.mtu, to = mtu, "largest packet of a pod's device");
    let what = || Error::netlink(format!("set the largest packet of {} and its other side", link.name));
    let path = netns.to_owned();
    let inside =
        tokio::task::spawn_blocking(move || Netlink::at(&path)).await.map_err(std::io::Error::other).and_then(|n| n).map_err(what())?;
    if let Some(pod_side) = inside.link(ifname).await.map_err(what())? {
        inside.set_mtu(pod_side.index, mtu).await.map_err(what())?;
    }
    host.set_mtu(link.index, mtu).await.map_err(what())
}

/// What was made here is removed at teardown.
pub(crate) async fn remove(netlink: &Netlink) -> Vec<Error> {
    let mut errors = Vec::new();
    match netlink.put_routes(&Default::default()).await {
        Ok(failed) => errors.extend(failed.into_iter().map(|(route, e)| Error::netlink(format!("remove the route to {}", route.to))(e))),
        Err(e) => errors.push(Error::netlink("read routes")(e)),
    }
    if let Err(e) = netlink.put_rules(&Default::default()).await {
        errors.push(Error::netlink("remove routing rules")(e));
    }
    if let Err(e) = netlink.remove_tunnel().await {
        errors.push(Error::netlink(format!("remove the tunnel {}", vxlan::NAME))(e));
    }
    errors
}
