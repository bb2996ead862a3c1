//! The table of field numbers.

use std::{collections::HashMap, sync::LazyLock};

use crate::schema::Struct;

/// Where a numbered field stands in the JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    Field {
        name: &'static str,
        /// A pointer in Go: what is there is meant, even if it is zero.
        pointer: bool,
    },
    /// A message whose fields stand in the same JSON object.
    Inline(&'static Message),
}

/// The fields of one message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// In order of number.
    slots: Vec<(u32, Slot)>,
}

impl Message {
    pub fn slot(&self, number: u32) -> Option<Slot> {
        self.slots.binary_search_by_key(&number, |(n, _)| *n).ok().map(|at| self.slots[at].1)
    }

    pub fn slots(&self) -> impl Iterator<Item = (u32, Slot)> {
        self.slots.iter().copied()
    }
}

static TABLE: LazyLock<HashMap<&'static str, &'static Message>> = LazyLock::new(|| parse(include_str!("numbers.txt")));

static EMPTY: Message = Message { slots: Vec::new() };

/// The message of a struct; `None` if it has fields but no protobuf form.
pub(super) fn message(structure: &Struct) -> Option<&'static Message> {
    let known = structure.name.strip_prefix("io.k8s.").and_then(|name| TABLE.get(name).copied());
    known.or_else(|| structure.fields.is_empty().then_some(&EMPTY))
}

fn parse(text: &'static str) -> HashMap<&'static str, &'static Message> {
    let rows: HashMap<&str, Vec<(u32, &str)>> = text.lines().filter(|line| !line.starts_with('#')).filter_map(row).collect();
    let mut made = HashMap::with_capacity(rows.len());
    for name in rows.keys() {
        make(name, &rows, &mut made);
    }
    made
}

fn row(line: &'static str) -> Option<(&'static str, Vec<(u32, &'static str)>)> {
    let mut words = line.split(' ');
    let name = words.next()?;
    let mut fields = Vec::new();
    while let (Some(number), Some(field)) = (words.next(), words.next()) {
        fields.push((number.parse().ok()?, field));
    }
    Some((name, fields))
}

/// The table lives as long as the process: so do its messages.
fn make(
    name: &'static str,
    rows: &HashMap<&'static str, Vec<(u32, &'static str)>>,
    made: &mut HashMap<&'static str, &'static Message>,
) -> Option<&'static Message> {
    if let Some(done) = made.get(name) {
        return Some(done);
    }
    let package = name.rsplit_once('.').map_or("", |(package, _)| package);
    let mut slots = Vec::new();
    for (number, field) in rows.get(name)? {
        let slot = match field.strip_prefix('*') {
            Some(inner) => {
                let (inner, _) = rows.get_key_value(format!("{package}.{inner}").as_str())?;
                Slot::Inline(make(inner, rows, made)?)
            }
            None => Slot::Field { name: field.trim_end_matches('!'), pointer: field.ends_with('!') },
        };
        slots.push((*number, slot));
    }
    let message: &'static Message = Box::leak(Box::new(Message { slots }));
    made.insert(name, message);
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::schemas;

    #[test]
    fn every_row_is_read_and_sorted() {
        let rows = include_str!("numbers.txt").lines().filter(|l| !l.starts_with('#')).count();
        assert_eq!(TABLE.len(), rows);
        for (name, message) in TABLE.iter() {
            assert!(message.slots.is_sorted_by_key(|(n, _)| *n), "{name}");
        }
    }

    #[test]
    fn inline_messages_are_found() {
        let volume = message(schemas().named("io.k8s.api.core.v1.Volume").unwrap()).unwrap();
        let Some(Slot::Inline(source)) = volume.slot(2) else { panic!("{:?}", volume.slot(2)) };
        assert_eq!(source.slot(1), Some(Slot::Field { name: "hostPath", pointer: false }));
    }

    /// Fields newer than the table are the only ones a client could lose: they are named here, so that none is forgotten.
    #[test]
    fn every_field_of_every_kind_has_a_number() {
        fn covered(message: &Message, name: &str) -> bool {
            message.slots().any(|(_, slot)| match slot {
                Slot::Field { name: field, .. } => field == name,
                Slot::Inline(inner) => covered(inner, name),
            })
        }
        let mut without = Vec::new();
        for structure in schemas().structs() {
            for field in structure.fields.keys() {
                let kind_or_version = matches!(&**field, "apiVersion" | "kind");
                match message(structure) {
                    Some(message) if covered(message, field) || kind_or_version => {}
                    _ => without.push(format!("{}.{field}", structure.short_name())),
                }
            }
        }
        without.sort();
        assert_eq!(
            without,
            [
                "CSIDriverSpec.preventPodSchedulingIfMissing",
                "Device.nodeAllocatableResourceMappings",
                "DeviceAttribute.bools",
                "DeviceAttribute.ints",
                "DeviceAttribute.strings",
                "DeviceAttribute.versions",
                "ImageVolumeStatus.imageRef",
                "ListMeta.shardInfo",
                "NodeAllocatableResourceClaimStatus.containers",
                "NodeAllocatableResourceClaimStatus.resourceClaimName",
                "NodeAllocatableResourceClaimStatus.resources",
                "NodeAllocatableResourceMapping.allocationMultiplier",
                "NodeAllocatableResourceMapping.capacityKey",
                "PodSchedulingGroup.podGroupName",
                "PodSpec.schedulingGroup",
                "PodStatus.nodeAllocatableResourceClaimStatuses",
                "ResourceHealth.message",
                "ShardInfo.selector",
                "VolumeMountStatus.volumeStatus",
                "VolumeStatus.image",
            ]
        );
    }
}
