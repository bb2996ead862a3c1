//! Names that many objects repeat, kept once.

use std::collections::BTreeSet;
use std::sync::Arc;

/// The names in use.
#[derive(Default)]
pub struct Pool {
    names: BTreeSet<Arc<str>>,
    /// How many there may be before those that nobody uses any more are looked for.
    limit: usize,
}

impl Pool {
    /// Puts the one copy in the place of another.
    pub fn share(&mut self, name: &mut Arc<str>) {
        if let Some(known) = self.names.get(name) {
            *name = known.clone();
            return;
        }
        if self.names.len() >= self.limit {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.limit = (2 * self.names.len()).max(1024);
        }
        self.names.insert(name.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once_and_as_long_as_it_is_used() {
        let mut pool = Pool::default();
        let mut shared = |name: &str| {
            let mut name = Arc::from(name);
            pool.share(&mut name);
            name
        };
        let (a, b) = (shared("node-1"), shared("node-1"));
        assert!(Arc::ptr_eq(&a, &b) && *shared("node-2") == *"node-2");
        for n in 0..5000 {
            shared(&format!("gone-{n}"));
        }
        assert!(Arc::ptr_eq(&a, &shared("node-1")));
        assert!(pool.names.len() <= 1025, "names of nodes that are gone are forgotten: {}", pool.names.len());
    }
}
