//! Which engines of an environment are in use, so that no engine is open twice and none is removed or replaced while it is
//! open.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Error, Result, check_name};

/// The names in use. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct NamesInUse(Arc<Mutex<BTreeSet<String>>>);

/// Keeps a name in use until it is dropped.
#[derive(Debug)]
pub(super) struct NameGuard {
    names: NamesInUse,
    name: String,
}

impl NamesInUse {
    /// Takes `name`; [`Error::Invalid`] when it is no name or already in use.
    pub(super) fn claim(&self, name: &str) -> Result<NameGuard> {
        check_name(name)?;
        if self.0.lock().insert(name.to_owned()) {
            return Ok(NameGuard { names: self.clone(), name: name.to_owned() });
        }
        Err(Error::Invalid(format!("engine {name:?} is already open")))
    }
}

impl NameGuard {
    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        self.names.0.lock().remove(&self.name);
    }
}
