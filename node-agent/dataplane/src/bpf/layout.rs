//! Versions of what maps hold, and what an agent takes over from one of another layout, newer or older.
//!
//! Each layout has a directory of maps. A map whose version is the same in both layouts is shared: the very same map is
//! pinned in both directories, so nothing is copied and connections that old and new programs see during the hand-over are
//! the same connections. A map of another version is made anew and filled from the API before any program that reads it is
//! attached. The programs of the other layout run until then.
//!
//! Maps that are given another size are a layout of their own too: what user space has written is copied into the new ones, so
//! that every number stays what it was and connections, which stay in their maps, know their backends again. Maps that have grown
//! by themselves (`growing.rs`) are what their layout has now: what is pinned is as large as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo};
use serde::{Deserialize, Serialize};
use xebec_ebpf_abi as abi;

use super::loader::{Pins, chain};
use super::{batch, links};
use crate::{Error, file};

/// Maps whose keys or values have changed since version 1: whoever changes one raises its number here, and
/// [`abi::Config::LAYOUT`] with it.
const VERSIONS: &[(&str, u32)] = &[(abi::map::ENDPOINTS, 2), (abi::map::FLOWS, 2), (abi::map::GIVEN, 2), (abi::map::NAT, 2)];

/// The layout of an agent's maps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Names the directory of the maps.
    pub number: u32,
    /// Version of each map's keys and values.
    pub versions: BTreeMap<String, u32>,
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

/// What a map may have: the kernel takes more, but no node's memory does.
const ENTRIES: std::ops::RangeInclusive<u32> = 64..=1 << 24;

/// Whether an operator may choose a map's size.
pub fn is_resizable(name: &str) -> bool {
    RESIZABLE.contains(&name)
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

    /// Whether a map of this name shall have another size than it has. One that has grown, or was given a size before, keeps it
    /// unless it is given another.
    fn resizes(&self, name: &str, entries: u32) -> bool {
        self.sizes.get(name).is_some_and(|size| *size != entries)
    }
}

impl Default for Layout {
    /// That of the object this agent has.
    fn default() -> Layout {
        let version = |name: &str| VERSIONS.iter().find(|(n, _)| *n == name).map_or(1, |(_, version)| *version);
        let versions = abi::map::ALL.iter().map(|name| ((*name).to_owned(), version(name))).collect();
        Layout { number: abi::Config::LAYOUT, versions, sizes: BTreeMap::new() }
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

    /// Fills the own maps that are those of the running layout but for their size with what these hold.
    pub fn copy_resized(&self, own: &Layout, pins: &Pins) -> Result<(), Error> {
        let record = self.read();
        let Some(other) = record.active.and_then(|active| record.layouts.get(&active)).filter(|other| other.number != own.number) else {
            return Ok(());
        };
        for name in RESIZABLE.iter().filter(|name| own.versions.get(**name) == other.versions.get(**name)) {
            let (from, to) = (pins.of(other.number).join(name), pins.maps().join(name));
            if !from.exists() || same(&from, &to) {
                continue;
            }
            let fail = |reason: String| Error::Map { what: format!("copy the map {name} into one of another size"), reason };
            let open = |path: &Path| MapData::from_pin(path).map_err(|e| fail(chain(&e)));
            let copied = batch::copy(&open(&from)?, &open(&to)?).map_err(|e| fail(chain(&e)))?;
            tracing::info!(map = name, entries = copied, "copied into a map of another size");
        }
        Ok(())
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
    for (name, version) in &own.versions {
        let (old, new) = (from.join(name), to.join(name));
        let resizes = || MapInfo::from_pin(&old).is_ok_and(|info| own.resizes(name, info.max_entries()));
        if other.versions.get(name) != Some(version) || !old.exists() || resizes() {
            continue;
        }
        // What an upgrade that was cut off left there is this map, or a new one that nobody reads.
        if !same(&old, &new) {
            file::remove(&new)?;
            links::pin_again(&old, &new).map_err(Error::io("share the map", &old))?;
        }
        shared.insert(name.as_str());
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
        assert!(VERSIONS.iter().all(|(name, version)| layout.versions.get(*name) == Some(version)), "only maps that exist have a version");
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
}
