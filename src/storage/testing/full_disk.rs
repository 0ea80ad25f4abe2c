//! A disk of which only the engines' reserve is left: what helps goes on, all else is refused before anything is written. How a disk gets there is
//! each engine's own: a simulated one is given a size, for a real one the reserve is said to be larger.

use std::path::Path;

use super::{put, rows, value};
use crate::storage::{Durability, Environment, Error};

/// `environment` in `directory` has the engine `main` with the one key `k`, and half of its reserve left on the disk.
pub(crate) fn takes_deletes_only(environment: &dyn Environment, directory: &Path) {
    let engine = environment.open("main").expect("what is there opens");
    let refused = engine.write(&put(b"l", b"1"), Durability::None).expect_err("there is no room");
    assert!(matches!(&refused, Error::DiskFull { path } if path == directory), "{refused}");
    assert!(matches!(environment.open("new").err(), Some(Error::DiskFull { .. })));
    assert_eq!(environment.list().expect("lists"), ["main"]);
    assert!(engine.status().writable, "nothing was written, so nothing is unknown");
    assert_eq!(rows(&*engine).len(), 1);

    // What helps goes on: deletes, with the caller's bookkeeping.
    let mut batch = put(b"\0v", b"2");
    batch.delete(&[b"k"]);
    engine.write(&batch, Durability::Sync).expect("a delete helps");
    assert_eq!(value(&*engine, b"k"), None);
    batch.put(&[b"m"], &[b"1"], None);
    assert!(matches!(engine.write(&batch, Durability::None), Err(Error::DiskFull { .. })));
}
