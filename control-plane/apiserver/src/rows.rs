//! The rows the server serves now: the built-in table plus what CustomResourceDefinitions added.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use xebec_api::resource::Resource;

/// An immutable view of all rows, exchanged as a whole when one is added or removed.
pub struct Table {
    rows: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), usize>,
    /// Counts exchanges; documents derived from the table are cached by it.
    pub generation: u64,
}

impl Table {
    fn new(rows: Vec<Arc<Resource>>, generation: u64) -> Table {
        let by_path = rows.iter().enumerate().map(|(i, r)| ((r.group.clone(), r.version.clone(), r.plural.clone()), i)).collect();
        Table { rows, by_path, generation }
    }

    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    /// All rows as discovery wants them.
    pub fn refs(&self) -> Vec<&Resource> {
        self.rows.iter().map(AsRef::as_ref).collect()
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        self.by_path.get(&(group.to_string(), version.to_string(), plural.to_string())).map(|i| self.rows[*i].clone())
    }

    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<Arc<Resource>> {
        self.rows.iter().find(|r| r.kind == kind && r.api_version() == api_version).cloned()
    }

    /// Any row of the group's resource, whatever version.
    pub fn any_version(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        self.rows.iter().find(|r| r.group == group && r.plural == plural).cloned()
    }
}

/// The present [`Table`].
pub struct Rows {
    built_in: usize,
    current: RwLock<Arc<Table>>,
}

impl Rows {
    pub fn built_in() -> Rows {
        let rows: Vec<_> = xebec_api::builtin::resources().iter().cloned().map(Arc::new).collect();
        Rows { built_in: rows.len(), current: RwLock::new(Arc::new(Table::new(rows, 0))) }
    }

    pub fn table(&self) -> Arc<Table> {
        self.current.read().clone()
    }

    /// Replaces everything behind the built-in rows.
    pub fn set_custom(&self, custom: Vec<Arc<Resource>>) {
        let mut current = self.current.write();
        let mut rows = current.rows[..self.built_in].to_vec();
        rows.extend(custom);
        *current = Arc::new(Table::new(rows, current.generation + 1));
    }
}
