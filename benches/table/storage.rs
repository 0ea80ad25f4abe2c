//! What the engine needs of the storage module, without the other engines.

#[path = "../../src/storage/error.rs"]
mod error;
#[path = "../../src/storage/lsm/mod.rs"]
pub(crate) mod lsm;

pub use self::error::{Error, Result};

pub const KEY_BYTES_MAX: usize = 8 * 1024;
pub const VALUE_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seqno(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRange<'a> {
    pub start: &'a [u8],
    pub end: Option<&'a [u8]>,
}

impl KeyRange<'_> {
    pub const ALL: KeyRange<'static> = KeyRange { start: &[], end: None };
}
