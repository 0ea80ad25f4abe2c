//! How a table is laid out. Nothing here is needed to read one: a table says itself how it is made.

/// How blocks are compressed. A block that would save less than 12 % is stored as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not at all: levels that are rewritten soon.
    None,
    /// LZ4: cheap to read.
    Lz4,
    /// Zstandard at this level: smaller, dearer to read.
    Zstd(i32),
}

/// The layout of a table to be written.
#[derive(Debug, Clone)]
pub(crate) struct TableOptions {
    /// Size of a data block before compression, in bytes; an entry larger than that has a block of its own. Default 4
    /// KiB: most blocks that no cache of ours has are in the page cache, and then a read is paid by the bytes that are
    /// checked and decompressed for it. With 8 and 16 KiB such a read took 1.3 and 2 times as long, a table was 4 and 6 %
    /// smaller, and scans and reads of blocks in the cache took the same.
    pub(crate) block_bytes: usize,
    /// Keys that share one stored prefix; a power of two up to 128. Default 16.
    pub(crate) bundle_entries: usize,
    /// Filter bits for each distinct key; 0: no filter. Default 10: 1.2 % of the lookups for a missing key read a block.
    pub(crate) filter_bits_per_key: usize,
    /// One byte for each entry, by which a point read finds it without comparing keys. Default on.
    pub(crate) fingerprints: bool,
    /// Default none.
    pub(crate) compression: Compression,
    /// From this size on the index is cut into pieces that come and go like data blocks; default 256 KiB.
    pub(crate) index_bytes_max: usize,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            block_bytes: 4 << 10,
            bundle_entries: 16,
            filter_bits_per_key: 10,
            fingerprints: true,
            compression: Compression::None,
            index_bytes_max: 256 << 10,
        }
    }
}

/// The first level that is compressed: the ones above are rewritten soon.
const COMPRESSED_LEVEL: usize = 2;

impl TableOptions {
    /// What suits a table of `level`; `last` when nothing lies below it. Filter bits go down with the level (Dayan et
    /// al., SIGMOD '17: a bit spent on a small level saves more reads), to 8 on the last, where most lookups hit.
    pub(crate) fn for_level(level: usize, last: bool) -> Self {
        let filter_bits_per_key = match level {
            _ if last && level > 0 => 8,
            0 => 14,
            1 => 12,
            _ => 10,
        };
        Self {
            filter_bits_per_key,
            compression: if level >= COMPRESSED_LEVEL {
                Compression::Lz4
            } else {
                Compression::None
            },
            ..Self::default()
        }
    }
}
