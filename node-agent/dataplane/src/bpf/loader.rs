//! Loads the embedded object on top of what is pinned, and attaches its programs.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::programs::links::LinkOrder;
use aya::programs::tc::{SchedClassifier, TcAttachType};
use aya::programs::{CgroupSock, CgroupSockAddr, Program, Xdp};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use xebec_ebpf_abi::{global, prog};

use super::connections::Connections;
use super::events::Events;
use super::links::{self, SocketHook};
use super::maps::Maps;
use crate::device::blocks::Blocks;
use crate::{Error, ProgramSize};

mod pods;

#[cfg(not(feature = "next"))]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/prebuilt/xebec.bpf.o");
#[cfg(feature = "next")]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../../ebpf/prebuilt/next.bpf.o");

/// Name of directories of larger maps, before the number of the layout.
const GROWING: &str = "growing-v";

/// Places of the pins of a node.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    layout: u32,
}

impl Pins {
    /// Below `pin_dir`, of a layout.
    pub fn new(pin_dir: &Path, layout: u32) -> Pins {
        Pins { root: pin_dir.to_owned(), layout }
    }

    /// Maps have a directory for each layout: programs of another layout never meet them.
    pub fn maps(&self) -> PathBuf {
        self.of(self.layout)
    }

    /// The maps of any layout.
    pub fn of(&self, layout: u32) -> PathBuf {
        self.root.join(format!("maps-v{layout}"))
    }

    /// Links are of no layout: an upgrade hands them to the new programs.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn link(&self, name: &str) -> PathBuf {
        self.links().join(name)
    }

    /// A place for pins that are gone at once.
    pub fn scratch(&self) -> PathBuf {
        self.root.join(format!("question-{}", std::process::id()))
    }

    /// Where larger maps are until they take the place of those of this layout.
    pub fn growing(&self) -> PathBuf {
        self.root.join(format!("{GROWING}{}", self.layout))
    }

    /// Such places of any layout that are not empty, and that layout's maps.
    pub fn all_growing(&self) -> Vec<(PathBuf, PathBuf)> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten().map(|e| e.path());
        let layout = |path: &PathBuf| path.file_name()?.to_string_lossy().strip_prefix(GROWING)?.parse::<u32>().ok();
        entries.filter_map(|path| layout(&path).map(|layout| (path, self.of(layout)))).collect()
    }

    /// Map directories of other layouts, to be removed once nothing runs on them.
    pub fn other_maps(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| *p != self.maps() && p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("maps-v"))).collect()
    }
}

/// The loaded programs. Dropping it detaches nothing: links are pinned.
pub struct Programs {
    ebpf: Ebpf,
    pins: Pins,
    /// Of the namespace they were loaded in.
    blocks: Blocks,
}

/// Programs, and the handles of their maps.
pub type Loaded = (Programs, Maps, Connections, Events);

/// The side of a device a classifier sits on, and its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets leaving a pod.
    FromPod,
    /// Packets to a pod.
    ToPod,
    /// Packets from other machines, before [`Hook::FromUplink`].
    TakeDirect,
    /// Packets from other machines.
    FromUplink,
    /// Packets to other machines.
    ToUplink,
}

impl Hook {
    /// Both of a pod's device.
    pub const POD: [Hook; 2] = [Hook::FromPod, Hook::ToPod];
    /// Those of an uplink.
    pub const UPLINK: [Hook; 3] = [Hook::TakeDirect, Hook::FromUplink, Hook::ToUplink];

    fn program(self) -> &'static str {
        match self {
            Hook::FromPod => prog::FROM_POD,
            Hook::ToPod => prog::TO_POD,
            Hook::TakeDirect => prog::TAKE_DIRECT,
            Hook::FromUplink => prog::FROM_UPLINK,
            Hook::ToUplink => prog::TO_UPLINK,
        }
    }

    fn side(self) -> TcAttachType {
        match self {
            Hook::FromPod | Hook::TakeDirect | Hook::FromUplink => TcAttachType::Ingress,
            Hook::ToPod | Hook::ToUplink => TcAttachType::Egress,
        }
    }

    fn order(self) -> LinkOrder {
        match self {
            Hook::TakeDirect => LinkOrder::first(),
            Hook::FromPod | Hook::ToPod | Hook::FromUplink | Hook::ToUplink => LinkOrder::default(),
        }
    }

    fn pin(self, device: &str) -> String {
        // bpffs refuses names with dots.
        format!("{}-{}", device.replace('.', "_"), self.program())
    }
}

impl Programs {
    /// Loads the object: maps that are pinned are used again with all they hold, others are made, of these sizes where one is
    /// given, and pinned.
    pub fn load(pins: Pins, sizes: &BTreeMap<String, u32>) -> Result<Loaded, Error> {
        Programs::load_with(pins, sizes, None)
    }

    /// As [`Programs::load`]; the `other` maps are made anew, of these sizes, and pinned in that directory.
    pub(super) fn load_with(
        pins: Pins,
        sizes: &BTreeMap<String, u32>,
        other: Option<(&Path, &BTreeMap<&'static str, u32>)>,
    ) -> Result<Loaded, Error> {
        for dir in [pins.maps(), pins.links()] {
            std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
        }
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(pins.maps());
        for (name, entries) in sizes {
            loader.map_max_entries(name, *entries);
        }
        if let Some((dir, maps)) = other {
            for (name, entries) in maps {
                loader.map_pin_path(name, dir.join(name));
                loader.map_max_entries(name, *entries);
            }
        }
        // bpf_set_retval came with 5.18.
        if KernelVersion::current().is_ok_and(|v| v < KernelVersion::new(5, 18, 0)) {
            loader.override_global(global::SET_RETVAL, &0u32, false);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|e| Error::Load { what: "the BPF object".into(), reason: chain(&e) })?;
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                Program::CgroupSockAddr(p) => p.load(),
                Program::CgroupSock(p) => p.load(),
                Program::SchedClassifier(p) => p.load(),
                Program::Xdp(p) => p.load(),
                _ => continue,
            };
            loaded.map_err(|e| Error::Load { what: format!("program {name}"), reason: chain(&e) })?;
        }
        let maps = Maps::take(&mut ebpf)?;
        let connections = Connections::take(&mut ebpf)?;
        let events = Events::take(&mut ebpf)?;
        let blocks = Blocks::here().map_err(Error::netlink("open a socket"))?;
        Ok((Programs { ebpf, pins, blocks }, maps, connections, events))
    }

    /// Where its maps and links are pinned.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Has every link that is there, and pods' blocks, run these programs, each in one step, whatever it is attached to.
    pub(super) fn hand_over(&self) -> Result<(), Error> {
        for entry in std::fs::read_dir(self.pins.links()).map_err(Error::io("read", self.pins.links()))?.flatten() {
            let pin = entry.file_name().to_string_lossy().into_owned();
            // Those of devices have the program's name behind the device's.
            let name = pin.rsplit('-').next().unwrap_or(&pin);
            let Some(program) = self.ebpf.program(name) else { continue };
            let fail = |reason| Error::Attach { program: name.to_owned(), to: pin.clone(), reason };
            let program = program.fd().map_err(|e| fail(chain(&e)))?;
            links::hand_over(&entry.path(), program.as_fd()).map_err(|e| fail(chain(&e)))?;
        }
        self.hand_over_blocks()
    }

    /// Whether the hooks for the node's own processes are attached at the root of the hierarchy, all of them.
    pub fn is_at_root(&self, root: &Path) -> bool {
        prog::ROOT_SOCKET.iter().chain([&prog::ROOT_SOCK_RELEASE]).all(|name| links::is_attached_to(&self.pins.link(name), root))
    }

    /// Attaches every socket hook to the node's cgroup directory.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<(), Error> {
        self.attach_hooks(prog::SOCKET, prog::SOCK_RELEASE, cgroup)
    }

    /// Attaches those for the node's own processes to the root of the hierarchy: they may be in any cgroup.
    pub fn attach_root_sockets(&mut self, root: &Path) -> Result<(), Error> {
        self.attach_hooks(prog::ROOT_SOCKET, prog::ROOT_SOCK_RELEASE, root)
    }

    /// The end of sockets is seen first: what the others count is counted off by it.
    fn attach_hooks(&mut self, names: &[&str], release: &str, cgroup: &Path) -> Result<(), Error> {
        self.attach_hook::<CgroupSock>(release, cgroup)?;
        names.iter().try_for_each(|name| self.attach_hook::<CgroupSockAddr>(name, cgroup))
    }

    fn attach_hook<P>(&mut self, name: &str, cgroup: &Path) -> Result<(), Error>
    where
        P: SocketHook,
        for<'a> &'a mut P: TryFrom<&'a mut Program>,
    {
        let pin = self.pins.link(name);
        let program: &mut P = self.program(name)?;
        links::attach_cgroup(program, cgroup, &pin).map_err(|e| Error::Attach {
            program: name.into(),
            to: cgroup.display().to_string(),
            reason: chain(&e),
        })
    }

    /// Attaches the programs of these hooks to a device, by links.
    pub fn attach_device<const N: usize>(&mut self, device: (&str, u32), hooks: [Hook; N]) -> Result<(), Error> {
        for hook in hooks {
            let pin = self.pins.link(&hook.pin(device.0));
            let program: &mut SchedClassifier = self.program(hook.program())?;
            links::attach_tc(program, device, (hook.side(), hook.order()), &pin).map_err(|e| Error::Attach {
                program: hook.program().into(),
                to: device.0.into(),
                reason: chain(&e),
            })?;
        }
        Ok(())
    }

    /// Attaches the XDP program to a device's driver.
    pub fn attach_xdp(&mut self, device: (&str, u32)) -> Result<(), Error> {
        let pin = self.xdp_pin(device.0);
        let program: &mut Xdp = self.program(prog::XDP_UPLINK)?;
        links::attach_xdp(program, device.1, &pin).map_err(|e| Error::Attach {
            program: prog::XDP_UPLINK.into(),
            to: device.0.into(),
            reason: chain(&e),
        })
    }

    /// Whether a device's driver runs the XDP program.
    pub fn is_xdp_attached(&self, device: (&str, u32)) -> bool {
        links::is_attached(&self.xdp_pin(device.0), links::Target::Device(device.1))
    }

    /// Detaches the XDP program from all devices but these.
    pub fn retain_xdp(&self, devices: &BTreeSet<String>) -> Result<(), Error> {
        let suffix = format!("-{}", prog::XDP_UPLINK);
        let keep: BTreeSet<PathBuf> = devices.iter().map(|d| self.xdp_pin(d)).collect();
        let pins = std::fs::read_dir(self.pins.links()).into_iter().flatten().flatten().map(|e| e.path());
        let of_xdp = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().ends_with(&suffix));
        pins.filter(|p| of_xdp(p) && !keep.contains(p)).try_for_each(|p| crate::file::remove(&p))
    }

    fn xdp_pin(&self, device: &str) -> PathBuf {
        self.pins.link(&format!("{}-{}", device.replace('.', "_"), prog::XDP_UPLINK))
    }

    /// Whether both hooks are attached to the device, by links.
    pub fn is_attached<const N: usize>(&self, device: (&str, u32), hooks: [Hook; N]) -> bool {
        hooks.iter().all(|h| links::is_attached(&self.pins.link(&h.pin(device.0)), links::Target::Device(device.1)))
    }

    /// Removes the pins of a device's links, which detaches the programs.
    pub fn detach_device<const N: usize>(&self, device: &str, hooks: [Hook; N]) -> Result<(), Error> {
        hooks.iter().try_for_each(|hook| crate::file::remove(&self.pins.link(&hook.pin(device))))
    }

    /// Devices that have a pinned link of one of these hooks.
    pub fn attached_devices<const N: usize>(&self, hooks: [Hook; N]) -> Vec<String> {
        let names = std::fs::read_dir(self.pins.links()).into_iter().flatten().flatten();
        let names: Vec<String> = names.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        let of = |hook: Hook| names.iter().filter_map(move |n| n.strip_suffix(&format!("-{}", hook.program())).map(str::to_owned));
        let mut found: Vec<String> = hooks.into_iter().flat_map(of).collect();
        found.sort();
        found.dedup();
        found
    }

    /// How large each loaded program is.
    pub fn sizes(&self) -> Vec<ProgramSize> {
        let size = |(name, program): (&str, &Program)| {
            let info = match program {
                Program::CgroupSockAddr(p) => p.info(),
                Program::CgroupSock(p) => p.info(),
                Program::SchedClassifier(p) => p.info(),
                Program::Xdp(p) => p.info(),
                _ => return None,
            };
            let info = info.ok()?;
            Some(ProgramSize {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count().unwrap_or(0),
                jitted_bytes: info.size_jitted(),
            })
        };
        let mut sizes: Vec<ProgramSize> = self.ebpf.programs().filter_map(size).collect();
        sizes.sort_by(|a, b| a.name.cmp(&b.name));
        sizes
    }

    fn program<'a, P>(&'a mut self, name: &str) -> Result<&'a mut P, Error>
    where
        &'a mut P: TryFrom<&'a mut Program>,
    {
        let missing =
            || Error::Load { what: format!("program {name}"), reason: "the embedded object has none of that name and type".into() };
        self.ebpf.program_mut(name).and_then(|p| p.try_into().ok()).ok_or_else(missing)
    }
}

/// An error with its causes: aya keeps the kernel's word in the source.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}

/// `SO_NETNS_COOKIE` of the calling thread's network namespace.
pub fn netns_cookie() -> std::io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // Not bound to anything: loopback may be down.
    // SAFETY: no memory is passed.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just opened and that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `len` bytes to a live u64; the descriptor is open.
    let code = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, std::ptr::from_mut(&mut cookie).cast(), &mut len)
    };
    if code < 0 { Err(std::io::Error::last_os_error()) } else { Ok(cookie) }
}
