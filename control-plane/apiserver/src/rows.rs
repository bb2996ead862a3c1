//! The rows the server serves now: the built-in table plus what CustomResourceDefinitions added.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, RwLock};
use xebec_api::resource::Resource;

use crate::crd::Custom;

/// An immutable view of all rows, exchanged as a whole when one is added or removed.
pub struct Table {
    rows: Vec<Arc<Resource>>,
    by_path: HashMap<(String, String, String), usize>,
    /// What stands behind the rows that are not built in.
    customs: HashMap<(String, String, String), Arc<Custom>>,
    /// Counts exchanges; documents derived from the table are cached by it.
    pub generation: u64,
}

impl Table {
    fn new(rows: Vec<Arc<Resource>>, generation: u64) -> Table {
        let by_path = rows.iter().enumerate().map(|(i, r)| ((r.group.clone(), r.version.clone(), r.plural.clone()), i)).collect();
        Table { rows, by_path, customs: HashMap::new(), generation }
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

    /// The schema behind a custom resource's row.
    pub fn custom(&self, resource: &Resource) -> Option<Arc<Custom>> {
        self.customs.get(&(resource.group.clone(), resource.version.clone(), resource.plural.clone())).cloned()
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
    /// Of the definitions the custom rows were made from.
    fingerprint: Mutex<Vec<String>>,
}

impl Rows {
    pub fn built_in() -> Rows {
        let rows: Vec<_> = xebec_api::builtin::resources().iter().cloned().map(Arc::new).collect();
        Rows { built_in: rows.len(), current: RwLock::new(Arc::new(Table::new(rows, 0))), fingerprint: Mutex::default() }
    }

    pub fn table(&self) -> Arc<Table> {
        self.current.read().clone()
    }

    /// Replaces everything behind the built-in rows; the same `fingerprint` as last time changes nothing.
    pub(crate) fn set_custom(&self, custom: Vec<(Arc<Resource>, Arc<Custom>)>, fingerprint: Vec<String>) {
        let mut current = self.current.write();
        let mut last = self.fingerprint.lock();
        if *last == fingerprint {
            return;
        }
        *last = fingerprint;
        let mut rows = current.rows[..self.built_in].to_vec();
        rows.extend(custom.iter().map(|(row, _)| row.clone()));
        let mut table = Table::new(rows, current.generation + 1);
        table.customs = custom.into_iter().map(|(r, custom)| ((r.group.clone(), r.version.clone(), r.plural.clone()), custom)).collect();
        *current = Arc::new(table);
    }
}
