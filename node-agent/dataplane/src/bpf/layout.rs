//! Versions of what maps hold, and what an agent takes over from one of another layout, newer or older.
//!
//! Each layout has a directory of maps. A map whose version is the same in both layouts is shared: the very same map is
//! pinned in both directories, so nothing is copied and connections that old and new programs see during the hand-over are
//! the same connections. A map of another version is made anew, and filled before any program that reads it is attached: with the
//! entries of before, where those can be converted, and from the API. The programs of the other layout run until then, on the
//! maps they know; what they write of connections meanwhile is converted when links have changed.
//!
//! Maps that are given another size are a layout of their own too: what user space has written is copied into the new ones, so
//! that every number stays what it was and connections, which stay in their maps, know their backends again. Maps that have grown
//! by themselves (`growing.rs`) are what their layout has now: what is pinned is as large as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use serde::{Deserialize, Serialize};
use xebec_ebpf_abi as abi;

use super::growing::Unsettled;
use super::links;
use super::loader::Pins;
use crate::{Error, file};

/// Maps whose keys or values have changed since version 1: whoever changes one raises its number here, and
/// [`abi::Config::LAYOUT`] with it. The second number is the oldest version whose values are the beginning of what they are now,
/// with the same keys, and to which zeros in all that came later mean nothing: between those versions entries are converted, in
/// both directions. It is the version itself where more has changed than that: then the map begins empty, which for connections
/// means that those there are end, unless they need no entry.
const VERSIONS: &[(&str, u32, u32)] =
    &[(abi::map::ENDPOINTS, 2, 2), (abi::map::FLOWS, 2, 2), (abi::map::GIVEN, 2, 2), (abi::map::NAT, 2, 2)];

/// Maps whose values are longer in the object that plays the next version in tests of upgrades.
const LONGER: &[&str] = if cfg!(feature = "next") { &[abi::map::FLOWS, abi::map::BACKENDS] } else { &[] };

/// Maps that name each other's numbers: where one of them is another in two layouts, none is shared, so that programs of either
/// layout find what belongs together.
const GROUPS: &[&[&str]] = &[
    &[
        abi::map::FRONTENDS,
        abi::map::BACKEND_SETS,
        abi::map::BACKEND_SLOTS,
        abi::map::SET_MEMBERS,
        abi::map::BACKENDS,
        abi::map::SOURCE_RANGES,
        abi::map::RINGS,
        abi::map::RING_PLACES,
    ],
    &[abi::map::ENDPOINTS, abi::map::IPCACHE, abi::map::POLICY],
];

/// The layout of an agent's maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Names the directory of the maps.
    pub number: u32,
    /// Version of each map's keys and values.
    pub versions: BTreeMap<String, u32>,
    /// The oldest version of each map whose values are the beginning of this one's, where that is an older one.
    #[serde(default)]
    pub since: BTreeMap<String, u32>,
    /// Entries of maps that have another size than the object says.
    #[serde(default)]
    pub sizes: BTreeMap<String, u32>,
}

/// Maps whose size may be chosen: those user space alone writes, and can fill again.
const RESIZABLE: &[&str] = &[
    abi::map::FRONTENDS,
    abi::map::BACKEND_SETS,
    abi::map::BACKEND_SLOTS,
    abi::map::SET_MEMBERS,
    abi::map::BACKENDS,
    abi::map::SOURCE_RANGES,
    abi::map::ENDPOINTS,
    abi::map::IPCACHE,
    abi::map::POLICY,
];

/// Maps whose entries are brought from one layout to another beside those: rings, and what programs write of connections. All
/// others are written by the agent before it matters, or only count.
const CARRIED_TOO: &[&str] = &[
    abi::map::RINGS,
    abi::map::RING_PLACES,
    abi::map::FLOWS,
    abi::map::NAT,
    abi::map::AFFINITY,
    abi::map::SOCK_REVERSE,
    abi::map::GIVEN,
    abi::map::COUNTED,
    abi::map::FRAGMENTS,
];

/// What a map may have: the kernel takes more, but no node's memory does.
const ENTRIES: std::ops::RangeInclusive<u32> = 64..=1 << 24;

/// Whether an operator may choose a map's size.
pub fn is_resizable(name: &str) -> bool {
    RESIZABLE.contains(&name)
}

/// All whose entries are brought.
fn carried() -> impl Iterator<Item = &'static str> {
    RESIZABLE.iter().chain(CARRIED_TOO).copied()
}

impl Layout {
    /// The same with maps of these sizes.
    pub fn sized(self, sizes: BTreeMap<String, u32>) -> Result<Layout, Error> {
        for (name, entries) in &sizes {
            if !is_resizable(name) {
                return Err(Error::Config(format!(
                    "the size of a map {name} cannot be chosen; those that can be: {}",
                    RESIZABLE.join(", ")
                )));
            }
            if !ENTRIES.contains(entries) {
                return Err(Error::Config(format!("a map {name} of {entries} entries is not possible; choose {ENTRIES:?}")));
            }
        }
        if sizes.is_empty() {
            return Ok(self);
        }
        // Other sizes, another directory. FNV-1a, which is the same in every version.
        let text = sizes.iter().map(|(name, entries)| format!("{name}={entries} ")).collect::<String>();
        let hash = text.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        Ok(Layout { number: self.number + 1000 * (1 + hash % 1_000_000), sizes, ..self })
    }

    /// Whether entries of the map are the same in both layouts, or can be made from each other's.
    fn converts(&self, other: &Layout, name: &str) -> bool {
        let (Some(one), Some(two)) = (self.versions.get(name), other.versions.get(name)) else {
            return false;
        };
        let newer = if one > two { self } else { other };
        one == two || newer.since.get(name).is_some_and(|since| since <= one.min(two))
    }

    /// Maps of this layout that are the very same in another, but for their size.
    fn same_in(&self, other: &Layout) -> BTreeSet<&str> {
        let is_same = |name: &str| self.versions.get(name) == other.versions.get(name);
        let is_whole = |name: &str| GROUPS.iter().filter(|group| group.contains(&name)).all(|group| group.iter().all(|n| is_same(n)));
        self.versions.keys().map(String::as_str).filter(|name| is_same(name) && is_whole(name)).collect()
    }

    /// Whether a map of this name shall have another size than it has. One that has grown, or was given a size before, keeps it
    /// unless it is given another.
    fn resizes(&self, name: &str, entries: u32) -> bool {
        self.sizes.get(name).is_some_and(|size| *size != entries)
    }
}

impl Default for Layout {
    /// That of the object this agent has.
    fn default() -> Layout {
        let of = |name: &str| VERSIONS.iter().find(|(n, _, _)| *n == name).map_or((1, 1), |(_, version, since)| (*version, *since));
        let version = |name: &str| of(name).0 + u32::from(LONGER.contains(&name));
        let versions = abi::map::ALL.iter().map(|name| ((*name).to_owned(), version(name))).collect();
        let older = abi::map::ALL.iter().filter(|name| of(name).1 < version(name));
        let since = older.map(|name| ((*name).to_owned(), of(name).1)).collect();
        Layout { number: abi::Config::LAYOUT, versions, since, sizes: BTreeMap::new() }
    }
}

/// What is known of the layouts on this node; bpffs takes no ordinary files, so it is kept with the other state.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The layout that every attached program is of.
    active: Option<u32>,
    layouts: BTreeMap<u32, Layout>,
}

/// Where layouts are noted.
#[derive(Clone, Debug)]
pub struct Layouts {
    file: PathBuf,
}

impl Layouts {
    /// Below the state directory.
    pub fn new(state_dir: &Path) -> Layouts {
        Layouts { file: state_dir.join("layouts.json") }
    }

    /// What cannot be read counts as nothing known: maps are then made anew.
    fn read(&self) -> Record {
        std::fs::read(&self.file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Notes the own layout and pins in its directory what it shares with the one whose programs run. Returns whether programs
    /// of another layout run: then maps must be filled before links are handed over.
    pub fn prepare(&self, own: &Layout, pins: &Pins) -> Result<bool, Error> {
        let mut record = self.read();
        // Without a note, links without maps of this layout are of another one.
        let attached = std::fs::read_dir(pins.links()).is_ok_and(|mut entries| entries.next().is_some());
        let others_run = attached && record.active.map_or(!pins.maps().exists(), |active| active != own.number);
        if let Some(other) = record.active.filter(|_| others_run).and_then(|active| record.layouts.get(&active)) {
            share(own, pins, other)?;
        }
        record.layouts.insert(own.number, own.clone());
        file::write_json(&self.file, &record)?;
        Ok(others_run)
    }

    /// Sizes of maps that are made anew where the running layout has them: no smaller than there.
    pub fn sizes(&self, own: &Layout, pins: &Pins) -> BTreeMap<String, u32> {
        let Some(other) = self.other(own) else { return BTreeMap::new() };
        let size = |name: &str| {
            let (old, new) = (pins.of(other.number).join(name), pins.maps().join(name));
            let info = MapInfo::from_pin(old).ok().filter(|_| own.converts(&other, name) && !new.exists())?;
            Some((name.to_owned(), info.max_entries()))
        };
        carried().filter_map(size).collect()
    }

    /// Fills the own maps that are not the running layout's, but of which those are other versions or sizes. Returns what programs
    /// may go on writing to until links change.
    pub fn convert(&self, own: &Layout, pins: &Pins) -> Result<Unsettled, Error> {
        let mut unsettled = Unsettled::default();
        let Some(other) = self.other(own) else { return Ok(unsettled) };
        for name in carried().filter(|name| own.converts(&other, name)) {
            let (from, to) = (pins.of(other.number).join(name), pins.maps().join(name));
            if from.exists() && !same(&from, &to) {
                unsettled.convert(name, &from, &to)?;
                tracing::info!(map = name, from = other.number, "entries are taken over into a map of another size or version");
            }
        }
        Ok(unsettled)
    }

    /// The layout whose programs run, if that is another one.
    fn other(&self, own: &Layout) -> Option<Layout> {
        let record = self.read();
        record.active.and_then(|active| record.layouts.get(&active)).filter(|other| other.number != own.number).cloned()
    }

    /// Every attached program is of this layout now.
    pub fn activate(&self, own: &Layout) -> Result<(), Error> {
        let mut record = self.read();
        record.active = Some(own.number);
        record.layouts.retain(|number, _| *number == own.number);
        record.layouts.insert(own.number, own.clone());
        file::write_json(&self.file, &record)
    }

    /// Forgets all.
    pub fn remove(&self) -> Result<(), Error> {
        file::remove(&self.file)
    }
}

/// Pins the other layout's maps of the same version in the own directory, where they are not yet.
fn share(own: &Layout, pins: &Pins, other: &Layout) -> Result<(), Error> {
    let (from, to) = (pins.of(other.number), pins.maps());
    std::fs::create_dir_all(&to).map_err(Error::io("create", &to))?;
    let mut shared = BTreeSet::new();
    for name in own.same_in(other) {
        let (old, new) = (from.join(name), to.join(name));
        if MapInfo::from_pin(&old).map_or(true, |info| own.resizes(name, info.max_entries())) {
            continue;
        }
        // What an upgrade that was cut off left there is this map, or a new one that nobody reads.
        if !same(&old, &new) {
            file::remove(&new)?;
            links::pin_again(&old, &new).map_err(Error::io("share the map", &old))?;
        }
        shared.insert(name);
    }
    let made_anew: Vec<&String> = own.versions.keys().filter(|name| !shared.contains(name.as_str())).collect();
    tracing::info!(from = other.number, to = own.number, shared = shared.len(), ?made_anew, "maps of another layout are taken over");
    Ok(())
}

fn same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| MapInfo::from_pin(path).map(|info| info.id());
    matches!((id(one), id(other)), (Ok(one), Ok(other)) if one == other)
}

/// Removes a directory of maps that nothing runs on any more.
pub fn collect(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)?.flatten() {
        std::fs::remove_file(entry.path())?;
    }
    std::fs::remove_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_has_a_version() {
        let layout = Layout::default();
        assert_eq!(layout.number, abi::Config::LAYOUT);
        assert!(abi::map::ALL.iter().all(|name| layout.versions.contains_key(*name)));
        let is_known = |(name, version, since): &(&str, u32, u32)| layout.versions.get(*name) == Some(version) && since <= version;
        assert!(VERSIONS.iter().all(is_known), "only maps that exist have a version");
    }

    #[test]
    fn a_broken_note_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let layouts = Layouts::new(dir.path());
        assert_eq!(layouts.read().active, None);
        layouts.activate(&Layout::default()).unwrap();
        assert_eq!(layouts.read().active, Some(abi::Config::LAYOUT));
        std::fs::write(dir.path().join("layouts.json"), "{").unwrap();
        assert_eq!(layouts.read().active, None);
        layouts.remove().unwrap();
    }

    #[test]
    fn other_sizes_are_another_layout_of_the_same_maps() {
        let sized = |sizes: &[(&str, u32)]| Layout::default().sized(sizes.iter().map(|(n, e)| ((*n).to_owned(), *e)).collect());
        let large = sized(&[("BACKENDS", 1 << 20)]).unwrap();
        assert_ne!(large.number, Layout::default().number);
        assert_eq!(large, sized(&[("BACKENDS", 1 << 20)]).unwrap(), "the same directory after a restart");
        assert_ne!(large.number, sized(&[("BACKENDS", 1 << 21)]).unwrap().number);
        assert_eq!(sized(&[]).unwrap(), Layout::default());
        assert!(large.resizes("BACKENDS", 1 << 18) && !large.resizes("BACKENDS", 1 << 20));
        assert!(!Layout::default().resizes("BACKENDS", 1 << 20), "what has grown stays");
        for (name, entries, word) in
            [("FLOWS", 4096, "cannot be chosen"), ("NONE", 4096, "cannot be chosen"), ("POLICY", 1, "not possible")]
        {
            assert!(sized(&[(name, entries)]).unwrap_err().to_string().contains(word));
        }
        // What an agent has noted that knew of no sizes.
        let old: Layout = serde_json::from_str(r#"{"number":3,"versions":{"BACKENDS":1}}"#).unwrap();
        assert!(old.sizes.is_empty());
    }
    #[test]
    fn entries_are_converted_as_far_back_as_values_only_became_longer() {
        let layout = |flows: u32, since: Option<u32>| {
            let mut layout = Layout { number: 10 + flows, ..Layout::default() };
            layout.versions.insert("FLOWS".into(), flows);
            layout.since = since.into_iter().map(|since| ("FLOWS".to_owned(), since)).collect();
            layout
        };
        let (old, longer, other) = (layout(2, None), layout(4, Some(2)), layout(5, None));
        for (one, two, converts) in
            [(&old, &longer, true), (&longer, &other, false), (&old, &other, false), (&layout(1, None), &longer, false)]
        {
            assert_eq!((one.converts(two, "FLOWS"), two.converts(one, "FLOWS")), (converts, converts), "{} and {}", one.number, two.number);
            assert!(one.converts(two, "NAT"));
        }
        assert!(!old.same_in(&longer).contains("FLOWS") && old.same_in(&longer).contains("NAT"));
    }

    #[test]
    fn maps_that_name_each_others_numbers_are_shared_together_or_not_at_all() {
        let mut other = Layout { number: 11, ..Layout::default() };
        other.versions.insert("BACKENDS".into(), 9);
        let same = other.same_in(&Layout::default()).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
        assert!(["BACKENDS", "BACKEND_SLOTS", "FRONTENDS", "RING_PLACES"].iter().all(|name| !same.contains(*name)));
        assert!(["FLOWS", "NAT", "IPCACHE", "POLICY", "CONFIG"].iter().all(|name| same.contains(*name)));
        let grouped = GROUPS.iter().copied().flatten().collect::<BTreeSet<_>>();
        let carried = carried().collect::<BTreeSet<_>>();
        assert!(grouped.iter().all(|name| carried.contains(**name)), "what is not shared is copied");
        assert!(RESIZABLE.iter().all(|name| carried.contains(name)));
    }
}
