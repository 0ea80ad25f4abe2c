//! A table (an SSTable): a file of entries in the order of internal keys, written once, never changed, read by anyone.
//!
//! | file | what |
//! |---|---|
//! | [`mod@format`] | the sections of the file, the footer, how a block is sealed |
//! | [`block`], [`block_builder`] | entries in a data block |
//! | [`index`] | from a key to its block |
//! | [`filter`] | whether a key may be in the table at all |
//! | [`range_deletions`], [`properties`] | the two small blocks |
//! | [`builder`] | writes a table |
//! | [`source`] | reads blocks from the file, ahead of a cursor |
//! | [`reader`] | opens a table, looks up one key |
//! | [`cursor`] | walks the entries |
//! | [`verify`] | reads and checks all of it |
//!
//! # What a point lookup touches
//!
//! The filter line (one cache line); the array of heads of the index (a binary search over 8 bytes for each block);
//! the slot of the block in the cache; the fingerprints of the block, the offsets and the key they name; the value.
//!
//! # Damage
//!
//! Every byte is under a checksum that also covers the uid of the table and the offset of the block, so that neither
//! flipped bits nor a block in the wrong place are taken for data. What passes its checksum is still parsed with
//! suspicion: no bytes whatever make these modules panic, read outside a block or reserve memory without bound. The
//! fuzz targets hold each decoder to that, and [`Table::open`] on a file of any bytes.

pub(crate) mod block;
pub(crate) mod block_builder;
pub(crate) mod builder;
pub(crate) mod cursor;
pub(crate) mod filter;
pub(crate) mod format;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
pub(crate) mod index;
mod lookups;
pub(crate) mod properties;
pub(crate) mod range_deletions;
pub(crate) mod reader;
pub(crate) mod source;
mod verify;

#[cfg(test)]
mod tests;

pub(crate) use self::builder::{TableBuilder, TableMetadata};
pub(crate) use self::cursor::TableCursor;
pub(crate) use self::format::TableUid;
pub(crate) use self::lookups::{LookupCounts, Lookups};
pub(crate) use self::properties::{Properties, UpperBound};
pub(crate) use self::range_deletions::{Fragment, RangeDeletions};
pub(crate) use self::reader::Table;
pub(crate) use self::source::Access;
