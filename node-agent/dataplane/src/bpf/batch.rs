//! Many entries of a map in one call of the kernel (Linux 5.6). Maps and kernels that cannot are served entry by entry.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{HashMap, IterableMap, MapData, MapError, MapType};

/// Entries a call. More gains nothing, and the kernel copies keys and values in and out of buffers of ours.
const ENTRIES: usize = 4096;

const LOOKUP_ELEMENT: libc::c_int = 1;
const UPDATE_ELEMENT: libc::c_int = 2;
const LOOKUP: libc::c_int = 24;
const UPDATE: libc::c_int = 26;
const DELETE: libc::c_int = 27;
/// What the kernel says of map types that have no such call; `libc` does not know it.
const ENOTSUPP: i32 = 524;

/// `struct { ... } batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes (or, where there is no value, deletes) the entries at the front that are of the same kind as the first. Returns how
/// many are written: none where there is but one, which is no work for a batch.
pub fn write<K: Pod, V: Pod>(map: &MapData, entries: impl Iterator<Item = (K, Option<V>)>) -> usize {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut deletes = false;
    for (at, (key, value)) in entries.take(ENTRIES).enumerate() {
        if at == 0 {
            deletes = value.is_none();
        } else if deletes != value.is_none() {
            break;
        }
        keys.push(key);
        values.extend(value);
    }
    if keys.len() < 2 {
        return 0;
    }
    let mut attributes = Attributes { keys: keys.as_ptr() as u64, values: values.as_ptr() as u64, ..attributes(map, keys.len()) };
    let command = if deletes { DELETE } else { UPDATE };
    match call(command, &mut attributes) {
        Ok(()) => keys.len(),
        // It stops at the first entry that fails. Not understood at all, it leaves the count as it was.
        Err(error) if is_unknown(&error) => 0,
        Err(_) => (attributes.count as usize).min(keys.len() - 1),
    }
}

/// All entries of a hash map.
pub fn read<K: Pod + Ord, V: Pod>(map: &HashMap<MapData, K, V>) -> Result<BTreeMap<K, V>, MapError> {
    let mut found = BTreeMap::new();
    scan(map, |key, value| {
        found.insert(key, value);
    })?;
    Ok(found)
}

/// Shows all entries of a hash map.
pub fn scan<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, mut each: impl FnMut(K, V)) -> Result<(), MapError> {
    let (mut keys, mut values) = (Vec::<K>::with_capacity(ENTRIES), Vec::<V>::with_capacity(ENTRIES));
    // Where the next call goes on, as the kernel counts.
    let mut place: Option<u64> = None;
    loop {
        let mut next = 0u64;
        let before = place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64);
        let mut attributes = Attributes {
            in_batch: before,
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            ..attributes(map.map(), keys.capacity().min(values.capacity()))
        };
        let result = call(LOOKUP, &mut attributes);
        let is_last = match &result {
            Ok(()) => false,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => true,
                // More entries share a bucket than there is room for.
                Some(libc::ENOSPC) => {
                    let more = keys.capacity() * 2;
                    keys.reserve(more);
                    values.reserve(more);
                    continue;
                }
                _ if place.is_none() && is_unknown(error) => {
                    for entry in map.iter() {
                        let (key, value) = entry?;
                        each(key, value);
                    }
                    return Ok(());
                }
                _ => return result.map_err(MapError::IoError),
            },
        };
        let count = (attributes.count as usize).min(keys.capacity()).min(values.capacity());
        // SAFETY: the kernel has written as many keys and values as it says, each of the map's sizes, which are those of the
        // types (checked when the map was opened); any bytes are a value of them.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        keys.drain(..).zip(values.drain(..)).for_each(|(key, value)| each(key, value));
        if is_last {
            return Ok(());
        }
        place = Some(next);
    }
}

/// Puts all entries of a map into another of the same keys. A value that is longer there ends with zeros, one that is shorter
/// loses its end. Returns how many there are.
pub fn copy(from: &MapData, to: &MapData) -> Result<usize, MapError> {
    let mut copied = 0;
    let width = width(to)?;
    blocks(from, |block| {
        let values = fit(block.values, block.value, width);
        let mut write = Attributes { keys: block.keys.as_ptr() as u64, values: values.as_ptr() as u64, ..attributes(to, block.count) };
        copied += block.count;
        call(UPDATE, &mut write).map_err(MapError::IoError)
    })?;
    Ok(copied)
}

/// Bytes that user space reads and writes for one value: where each CPU has its own, all of them, from multiples of eight on.
pub fn width(map: &MapData) -> Result<usize, MapError> {
    let info = map.info()?;
    let value = info.value_size() as usize;
    match info.map_type()? {
        MapType::PerCpuHash => {
            let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::IoError(error))?;
            Ok(value.next_multiple_of(8) * cpus)
        }
        _ => Ok(value),
    }
}

/// Values of one width as values of another.
fn fit(values: &[u8], from: usize, to: usize) -> Cow<'_, [u8]> {
    if from == to {
        return Cow::Borrowed(values);
    }
    let mut fitted = Vec::with_capacity(values.len() / from.max(1) * to);
    for value in values.chunks(from) {
        fitted.extend(&value[..from.min(to)]);
        fitted.resize(fitted.len() + to.saturating_sub(from), 0);
    }
    Cow::Owned(fitted)
}

/// Shows all entries of a map, as bytes; the values as wide as those of another map.
pub fn scan_bytes(from: &MapData, to: &MapData, mut each: impl FnMut(&[u8], &[u8]) -> Result<(), MapError>) -> Result<(), MapError> {
    let width = width(to)?;
    blocks(from, |block| {
        let values = fit(block.values, block.value, width);
        block.keys.chunks(block.key).zip(values.chunks(width)).try_for_each(|(key, value)| each(key, value))
    })
}

/// The bytes at a key, into a buffer of a value's size. Whether there are any.
pub fn get_bytes(map: &MapData, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = Element { value: value.as_mut_ptr() as u64, ..Element::new(map, key) };
    match element(LOOKUP_ELEMENT, &mut attributes) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes bytes to a key; with `only_new` not where there are some. Whether they are written.
pub fn put_bytes(map: &MapData, key: &[u8], value: &[u8], only_new: bool) -> io::Result<bool> {
    let mut attributes = Element { value: value.as_ptr() as u64, flags: u64::from(only_new), ..Element::new(map, key) };
    match element(UPDATE_ELEMENT, &mut attributes) {
        Ok(()) => Ok(true),
        Err(error) if only_new && error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Many entries of a map.
struct Block<'a> {
    keys: &'a [u8],
    values: &'a [u8],
    count: usize,
    /// Bytes of one.
    key: usize,
    value: usize,
}

/// Shows all entries of a map, many at a time.
fn blocks(from: &MapData, mut each: impl FnMut(Block<'_>) -> Result<(), MapError>) -> Result<(), MapError> {
    let info = from.info()?;
    let (key, value) = (info.key_size() as usize, width(from)?);
    let mut room = ENTRIES;
    // Places that the kernel notes: a number, or a key.
    let (mut place, mut next) = (vec![0u8; key.max(8)], vec![0u8; key.max(8)]);
    let mut is_first = true;
    loop {
        let (mut keys, mut values) = (vec![0u8; room * key], vec![0u8; room * value]);
        let mut read = Attributes {
            in_batch: if is_first { 0 } else { place.as_ptr() as u64 },
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            ..attributes(from, room)
        };
        let is_last = match call(LOOKUP, &mut read) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(MapError::IoError(error)),
        };
        let count = (read.count as usize).min(room);
        if count > 0 {
            each(Block { keys: &keys[..count * key], values: &values[..count * value], count, key, value })?;
        }
        if is_last {
            return Ok(());
        }
        std::mem::swap(&mut place, &mut next);
        is_first = false;
    }
}

/// `union bpf_attr` for one entry.
#[repr(C)]
struct Element {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    fn new(map: &MapData, key: &[u8]) -> Element {
        Element { map_fd: map.fd().as_fd().as_raw_fd() as u32, pad: 0, key: key.as_ptr() as u64, value: 0, flags: 0 }
    }
}

fn element(command: libc::c_int, attributes: &mut Element) -> io::Result<()> {
    // SAFETY: the kernel reads the attributes and a key, and reads or writes a value where they say; both are slices of the
    // caller's, as long as the map's keys and values.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<Element>()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn attributes(map: &MapData, count: usize) -> Attributes {
    Attributes { map_fd: map.fd().as_fd().as_raw_fd() as u32, count: count as u32, ..Attributes::default() }
}

fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | ENOTSUPP))
}

fn call(command: libc::c_int, attributes: &mut Attributes) -> io::Result<()> {
    // SAFETY: the kernel reads the attributes, reads or writes `count` keys and values where they say, which callers have room
    // for, and writes the count.
    let code = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<Attributes>()) };
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_cut_or_end_with_zeros() {
        let values = [1, 2, 3, 4, 5, 6];
        assert_eq!(*fit(&values, 3, 3), values);
        assert_eq!(*fit(&values, 3, 2), [1, 2, 4, 5]);
        assert_eq!(*fit(&values, 3, 5), [1, 2, 3, 0, 0, 4, 5, 6, 0, 0]);
        assert!(fit(&[], 3, 5).is_empty());
    }
}
