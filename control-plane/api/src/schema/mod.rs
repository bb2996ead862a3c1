//! What the fields of every built-in kind are: types, and how lists and maps merge.
//!
//! Types come from k8s-openapi's schemas, read once into a compact form without descriptions; merge behaviour, which
//! those schemas leave out, from the table in `merge`.

mod build;
mod decode;
mod merge;
mod parse;

use std::{collections::HashMap, sync::LazyLock};

pub use build::definitions;
pub use decode::{FieldValidation, decode, decode_kind, decode_patched};
pub use merge::{is_atomic_struct, of as merge_of};

use crate::resource::Resource;

/// Index of a struct in the table of types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StructId(pub(crate) u16);

/// The type of a value.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Any JSON: raw extensions, schemas' defaults, managed fields.
    Any,
    Bool,
    Int32,
    Int64,
    Float,
    String,
    /// Base64.
    Bytes,
    Time,
    MicroTime,
    IntOrString,
    Quantity,
    List(Box<Type>),
    Map(Box<Type>),
    Struct(StructId),
    /// One of two, told apart by their JSON form.
    Either(Box<Type>, Box<Type>),
}

/// How a list (or map) behaves when merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Merge {
    /// Server-side apply: keys that identify an item of a `map` list.
    pub list_keys: &'static [&'static str],
    /// Server-side apply: a list of unique scalars.
    pub set: bool,
    /// Server-side apply: a map owned as a whole.
    pub atomic_map: bool,
    /// Strategic merge patch: merge items rather than replace the list; by this key, or as scalars when empty.
    pub patch_key: Option<&'static str>,
    /// Strategic merge patch: `retainKeys` is among the strategies.
    pub retain_keys: bool,
    /// Strategic merge patch: the map is replaced, not merged.
    pub replace: bool,
}

/// A field of a struct.
#[derive(Debug, Clone)]
pub struct Field {
    pub ty: Type,
    pub merge: Merge,
}

/// A struct: `io.k8s.api.core.v1.PodSpec` and its fields.
#[derive(Debug)]
pub struct Struct {
    /// The definition's name in OpenAPI.
    pub name: Box<str>,
    pub fields: HashMap<Box<str>, Field>,
}

impl Struct {
    /// `PodSpec`
    pub fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// `v1.PodSpec`, as Go prints the type.
    pub fn go_name(&self) -> String {
        let mut parts: Vec<&str> = self.name.rsplit('.').take(2).collect();
        parts.reverse();
        parts.join(".")
    }
}

/// Every struct, and which one each kind is.
pub struct Schemas {
    structs: Vec<Struct>,
    kinds: HashMap<(&'static str, &'static str), StructId>,
}

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(build::build);

/// The types of all built-in kinds; computed at first use.
pub fn schemas() -> &'static Schemas {
    &SCHEMAS
}

impl Schemas {
    pub fn get(&self, id: StructId) -> &Struct {
        &self.structs[usize::from(id.0)]
    }

    /// The struct of a kind, if it is built in.
    pub fn kind(&self, api_version: &str, kind: &str) -> Option<StructId> {
        self.kinds.get(&(api_version, kind)).copied()
    }

    /// The struct of a row, `None` for custom resources.
    pub fn of(&self, resource: &Resource) -> Option<StructId> {
        self.kind(&resource.api_version(), &resource.kind)
    }

    /// The struct of this OpenAPI name.
    pub fn named(&self, name: &str) -> Option<&Struct> {
        self.structs.iter().find(|s| &*s.name == name)
    }

    pub fn structs(&self) -> &[Struct] {
        &self.structs
    }
}
