//! Larger maps in the place of some, while packets pass: the programs are loaded once more, on new maps of another size and on the
//! very same others; what the old maps hold is copied; every link changes to the new programs in one step; the new maps' pins take
//! the place of the old ones'.
//!
//! What user space writes cannot change meanwhile: the caller holds whatever it takes to write. What programs write can, and goes
//! to the old maps for as long as programs of before run. So those maps are looked through again after the links have changed, and
//! once more when no program of before can still be running. Until then a flow that begins may be judged on both sides; one that
//! there was before is on both.
//!
//! New maps are pinned in a directory of their own until the end. An agent that is killed before leaves them there, and links
//! on both sides; the next one goes on from there ([`recover`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::Pod;
use aya::maps::{Array, Map, MapData, MapError};
use xebec_ebpf_abi::{Flow, Nat, map};

use super::batch;
use super::connections::Connections;
use super::layout;
use super::loader::{Pins, Programs, chain};
use super::maps::Maps;
use crate::Error;

/// How the entries of a map come into a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// User space writes it.
    Still,
    /// Programs write it: flows.
    Flows,
    /// Translations.
    Nat,
    /// Programs write it: what clients and sockets were given.
    Sockets,
    /// Programs add to its numbers.
    Counts,
    /// The same, each CPU to its own.
    Sums,
}

fn kind(name: &str) -> Kind {
    match name {
        map::FLOWS => Kind::Flows,
        map::NAT => Kind::Nat,
        map::AFFINITY | map::SOCK_REVERSE | map::GIVEN | map::COUNTED | map::FRAGMENTS => Kind::Sockets,
        map::CONNECTIONS => Kind::Counts,
        map::SERVICE_COUNTS => Kind::Sums,
        _ => Kind::Still,
    }
}

/// One map and the one that takes its place.
struct Pair {
    name: String,
    kind: Kind,
    old: MapData,
    new: MapData,
    /// Where the new one is pinned, and where it shall be.
    pin: PathBuf,
    place: PathBuf,
    /// Counts when they were last read.
    counts: Vec<u64>,
    sums: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Pair {
    fn open(name: &str, pin: PathBuf, place: PathBuf) -> Result<Pair, Error> {
        let open =
            |path: &Path| MapData::from_pin(path).map_err(|e| Error::Map { what: format!("open {}", path.display()), reason: chain(&e) });
        Ok(Pair {
            name: name.to_owned(),
            kind: kind(name),
            old: open(&place)?,
            new: open(&pin)?,
            pin,
            place,
            counts: Vec::new(),
            sums: BTreeMap::new(),
        })
    }

    fn fail(&self, error: &MapError) -> Error {
        Error::Map { what: format!("copy the map {} into another", self.name), reason: chain(error) }
    }

    /// All there is; the old map has the last word.
    fn copy(&mut self) -> Result<(), MapError> {
        match self.kind {
            Kind::Still | Kind::Flows | Kind::Nat | Kind::Sockets => batch::copy(&self.old, &self.new).map(drop),
            Kind::Sums => {
                let Pair { sums, old, new, .. } = self;
                batch::scan_bytes(old, new, |key, value| {
                    sums.insert(key.to_vec(), value.to_vec());
                    batch::put_bytes(new, key, value, false).map(drop).map_err(MapError::IoError)
                })
            }
            Kind::Counts => {
                self.counts = numbers(&self.old)?;
                let mut new: Array<MapData, u64> = Array::try_from(Map::Array(again(&self.new)?))?;
                let counts = (0..new.len()).zip(&self.counts).filter(|(_, count)| **count != 0);
                counts.collect::<Vec<_>>().into_iter().try_for_each(|(place, count)| new.set(place, count, 0))
            }
        }
    }

    /// What programs have written to the old map since. Returns how much that is.
    fn carry(&mut self) -> Result<usize, MapError> {
        match self.kind {
            Kind::Still => Ok(0),
            Kind::Flows => carry(&self.old, &self.new, merge_flows),
            Kind::Nat => carry(&self.old, &self.new, merge_nat),
            Kind::Sockets => carry(&self.old, &self.new, |_, _| false),
            Kind::Sums => carry_sums(&self.old, &self.new, &mut self.sums),
            Kind::Counts => {
                let now = numbers(&self.old)?;
                let mut new: Array<MapData, u64> = Array::try_from(Map::Array(again(&self.new)?))?;
                let mut carried = 0;
                for (place, (now, then)) in (0..new.len()).zip(now.iter().zip(&self.counts)).filter(|(_, (now, then))| now != then) {
                    // A program that counts at this very moment may be missed, by one.
                    new.set(place, new.get(&place, 0)?.wrapping_add(now.wrapping_sub(*then)), 0)?;
                    carried += 1;
                }
                self.counts = now;
                Ok(carried)
            }
        }
    }

    /// All there is, into a map that programs may have written to already.
    fn bring(&mut self) -> Result<(), Error> {
        let done = match self.kind {
            Kind::Still | Kind::Counts | Kind::Sums => self.copy(),
            Kind::Flows | Kind::Nat | Kind::Sockets => self.carry().map(drop),
        };
        done.map_err(|e| self.fail(&e))
    }

    /// The new map's pin takes the place of the old one's, in one step.
    fn install(&self) -> Result<(), Error> {
        std::fs::rename(&self.pin, &self.place).map_err(Error::io("put a larger map in the place of", &self.place))
    }

    /// The other way round.
    fn back(&self) -> Result<Pair, MapError> {
        let (old, new, name) = (again(&self.new)?, again(&self.old)?, self.name.clone());
        Ok(Pair {
            name,
            kind: self.kind,
            old,
            new,
            pin: self.place.clone(),
            place: self.pin.clone(),
            counts: Vec::new(),
            sums: BTreeMap::new(),
        })
    }
}

/// The same map once more.
fn again(map: &MapData) -> Result<MapData, MapError> {
    MapData::from_fd(map.fd().as_fd().try_clone_to_owned().map_err(MapError::IoError)?)
}

/// Takes over the later of two ends; whether it was the old one.
fn later(old: u64, new: &mut u64) -> bool {
    let is_later = old > *new;
    *new = old.max(*new);
    is_later
}

/// Whether what is written to an entry of the new map is to be changed to this, given the old one's.
type Merge = fn(&[u8], &mut [u8]) -> bool;

/// Reads both as what they are.
fn merge<V: Pod>(old: &[u8], new: &mut [u8], merge: impl FnOnce(&V, &mut V) -> bool) -> bool {
    if old.len() != size_of::<V>() || new.len() != size_of::<V>() {
        return false;
    }
    // SAFETY: both are as long as a value, and any bytes are one.
    let (before, mut now) = unsafe { (old.as_ptr().cast::<V>().read_unaligned(), new.as_ptr().cast::<V>().read_unaligned()) };
    let is_other = merge(&before, &mut now);
    if is_other {
        // SAFETY: as above.
        unsafe { new.as_mut_ptr().cast::<V>().write_unaligned(now) };
    }
    is_other
}

fn merge_flows(old: &[u8], new: &mut [u8]) -> bool {
    merge::<Flow>(old, new, |old, new| {
        new.state |= old.state;
        later(old.expires, &mut new.expires)
    })
}

fn merge_nat(old: &[u8], new: &mut [u8]) -> bool {
    merge::<Nat>(old, new, |old, new| {
        // Translated in another way meanwhile: that is what counts.
        if old.to != new.to {
            return false;
        }
        new.state |= old.state;
        later(old.expires, &mut new.expires)
    })
}

/// Entries of the old map that the new one has not, and those that `merge` finds newer there.
fn carry(old: &MapData, new: &MapData, merge: Merge) -> Result<usize, MapError> {
    let mut carried = 0;
    let mut there = vec![0; batch::width(new)?];
    batch::scan_bytes(old, new, |key, value| {
        let written = if batch::get_bytes(new, key, &mut there).map_err(MapError::IoError)? {
            merge(value, &mut there) && batch::put_bytes(new, key, &there, false).map_err(MapError::IoError)?
        } else {
            // A program may be quicker: then its entry stands.
            batch::put_bytes(new, key, value, true).map_err(MapError::IoError)?
        };
        carried += usize::from(written);
        Ok(())
    })?;
    Ok(carried)
}

/// Adds what programs have added to the old map's numbers since they were last read. One that they add to at this very moment may
/// be missed, by one.
fn carry_sums(old: &MapData, new: &MapData, before: &mut BTreeMap<Vec<u8>, Vec<u8>>) -> Result<usize, MapError> {
    let mut carried = 0;
    let mut there = vec![0; batch::width(new)?];
    batch::scan_bytes(old, new, |key, now| {
        let before = before.entry(key.to_vec()).or_insert_with(|| vec![0; now.len()]);
        if *before == now {
            return Ok(());
        }
        if !batch::get_bytes(new, key, &mut there).map_err(MapError::IoError)? {
            there.fill(0);
        }
        add_difference(&mut there, now, before);
        batch::put_bytes(new, key, &there, false).map_err(MapError::IoError)?;
        before.copy_from_slice(now);
        carried += 1;
        Ok(())
    })?;
    Ok(carried)
}

/// Adds to each number what it has become more elsewhere.
fn add_difference(there: &mut [u8], now: &[u8], before: &[u8]) {
    let number = |bytes: &[u8; 8]| u64::from_ne_bytes(*bytes);
    let (numbers, _) = there.as_chunks_mut::<8>();
    for (there, (now, before)) in numbers.iter_mut().zip(now.as_chunks::<8>().0.iter().zip(before.as_chunks::<8>().0)) {
        *there = number(there).wrapping_add(number(now).wrapping_sub(number(before))).to_ne_bytes();
    }
}

fn numbers(map: &MapData) -> Result<Vec<u64>, MapError> {
    let map: Array<MapData, u64> = Array::try_from(Map::Array(again(map)?))?;
    map.iter().collect()
}

/// Programs on larger maps.
pub struct Grown {
    /// All of them, loaded once more.
    pub programs: Programs,
    /// Handles of the maps, of old ones and new ones.
    pub maps: Maps,
    /// Those of connections.
    pub connections: Connections,
}

/// Puts maps of these sizes in the place of those of the same names. With `attached`, links run the programs, and the new ones
/// afterwards. If it fails, all is as before.
pub fn grow(programs: &Programs, sizes: &BTreeMap<&'static str, u32>, attached: bool) -> Result<Grown, Error> {
    let dir = programs.pins().growing();
    discard(&dir)?;
    std::fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    let grown = replace(programs, sizes, attached, &dir);
    // A map that has come into nobody's place lives no longer than who uses it.
    let discarded = discard(&dir);
    let grown = grown?;
    discarded?;
    Ok(grown)
}

fn replace(programs: &Programs, sizes: &BTreeMap<&'static str, u32>, attached: bool, dir: &Path) -> Result<Grown, Error> {
    let pins = programs.pins();
    let (new, maps, connections, _) = Programs::load_with(pins.clone(), &BTreeMap::new(), Some((dir, sizes)))?;
    let pair = |name: &&str| Pair::open(name, dir.join(name), pins.maps().join(name));
    let mut pairs: Vec<Pair> = sizes.keys().map(pair).collect::<Result<_, _>>()?;
    pairs.iter_mut().try_for_each(|pair| pair.copy().map_err(|e| pair.fail(&e)))?;
    if attached && let Err(error) = new.hand_over().and_then(|()| settle(&mut pairs)) {
        // Back: what programs have written since must be where they look again. Counts are not worth it.
        let flows = pairs.iter().filter(|pair| !matches!(pair.kind, Kind::Counts | Kind::Sums));
        let mut back: Vec<Pair> = flows.flat_map(|pair| pair.back()).collect();
        if let Err(more) = programs.hand_over().and_then(|()| settle(&mut back)) {
            tracing::error!(error = %more, "the programs of before cannot be put back in force everywhere");
        }
        return Err(error);
    }
    pairs.iter().try_for_each(Pair::install)?;
    Ok(Grown { programs: new, maps, connections })
}

/// After the links have changed: what came into the old maps meanwhile, and then what programs wrote that were still running.
fn settle(pairs: &mut [Pair]) -> Result<(), Error> {
    if pairs.iter().all(|pair| pair.kind == Kind::Still) {
        return Ok(());
    }
    for is_last in [false, true] {
        for pair in pairs.iter_mut() {
            let carried = pair.carry().map_err(|e| pair.fail(&e))?;
            tracing::debug!(map = pair.name, carried, "entries that programs wrote while links changed");
        }
        if !is_last {
            wait_for_programs();
        }
    }
    Ok(())
}

/// Returns when every program that runs now has ended.
fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: no memory is passed. In the kernel it is `synchronize_rcu`, and programs run in sections of that.
    let code = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if code != 0 {
        // Kernels with CPUs free of ticks have none; a program runs for microseconds.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Removes maps that take nobody's place, and their directory.
fn discard(dir: &Path) -> Result<(), Error> {
    match layout::collect(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Maps that programs of before may still write to, and those in their place.
#[derive(Default)]
pub struct Unsettled(Vec<Pair>);

/// Finishes what an agent began that was killed: links may run programs on both sides, so the larger maps get what the others
/// hold. To be called before programs are loaded.
pub fn recover(pins: &Pins) -> Result<Unsettled, Error> {
    let mut recovered = Unsettled::default();
    for (dir, maps) in pins.all_growing() {
        for entry in std::fs::read_dir(&dir).map_err(Error::io("read", &dir))?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let mut pair = match maps.join(&name) {
                place if place.exists() => Pair::open(&name, entry.path(), place)?,
                _ => continue,
            };
            pair.bring()?;
            pair.install()?;
            tracing::warn!(map = name, "an agent was ended while it made this map larger; it is larger now");
            recovered.0.push(pair);
        }
        discard(&dir)?;
    }
    Ok(recovered)
}

impl Unsettled {
    /// Copies a map of another layout into the one pinned at `new`. What programs of that layout write to it until links change
    /// comes with [`Unsettled::settle`].
    pub fn convert(&mut self, name: &str, old: &Path, new: &Path) -> Result<(), Error> {
        let mut pair = Pair::open(name, new.to_owned(), old.to_owned())?;
        pair.bring()?;
        self.0.push(pair);
        Ok(())
    }

    /// These too.
    pub fn extend(&mut self, more: Unsettled) {
        self.0.extend(more.0);
    }

    /// To be called when every link runs programs on the new maps.
    pub fn settle(mut self) -> Result<(), Error> {
        settle(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_on_both_sides_are_added() {
        let bytes = |numbers: [u64; 2]| numbers.map(u64::to_ne_bytes).concat();
        let mut there = bytes([10, 0]);
        add_difference(&mut there, &bytes([7, 3]), &bytes([4, 3]));
        assert_eq!(there, bytes([13, 0]));
    }

    #[test]
    fn what_programs_write_is_looked_for_again() {
        let is_theirs = |name: &&&str| xebec_ebpf_abi::inserts::MAPS.contains(*name) || **name == map::SERVICE_COUNTS;
        assert!(map::ALL.iter().filter(is_theirs).all(|name| kind(name) != Kind::Still));
    }
}
