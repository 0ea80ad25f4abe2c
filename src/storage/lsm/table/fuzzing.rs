//! The decoders of tables, for fuzzers: see [`crate::fuzzing`].

use std::collections::BTreeSet;
use std::path::Path;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::block::DataBlock;
use super::block_builder::BlockBuilder;
use super::filter::{FilterBuilder, FilterPiece, FilterShape, PIECE_BYTES};
use super::format::{
    FOOTER_BYTES, Footer, MAGIC, SEAL_BYTES, Sealer, TableUid, VERSION, seed, unseal,
};
use super::index::{BlockPlace, IndexBlock, IndexBuilder};
use super::properties::Properties;
use super::range_deletions::RangeDeletions;
use super::{Access, Table};
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::key::{InternalEntry, KeyHash, Ordinal, SEQNO_MAX};
use crate::storage::lsm::options::Compression;
use crate::storage::{Error, KeyRange};
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::SimFileSystem;

const UID: TableUid = TableUid(77);

/// Entries that are walked; a table of small bytes may unpack to very many.
const ENTRIES_MAX: usize = 20_000;

/// One sealed block.
pub fn sealed_block(data: &[u8]) {
    let mut sealed = data.to_vec();
    let _ = unseal(sealed.clone(), UID, 8);
    put_seal_right(&mut sealed, UID, 8);
    let Ok(payload) = unseal(sealed, UID, 8) else { return };
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd(1)] {
        let mut again = Vec::new();
        Sealer::new(compression).seal(&payload, UID, 9, &mut again);
        assert_eq!(unseal(again, UID, 9).as_ref(), Ok(&payload), "{compression:?}");
    }
}

/// The payload of a data block.
pub fn data_block(data: &[u8]) {
    let Ok(block) = DataBlock::parse(data.to_vec()) else { return };
    let keys: Vec<Vec<u8>> = (0..block.len())
        .map(|index| {
            let (prefix, suffix) = block.key(index);
            [prefix, suffix].concat()
        })
        .collect();
    let entries: Vec<InternalEntry<'_>> =
        keys.iter().enumerate().map(|(index, key)| block.entry(index, key)).collect();
    for entry in entries.iter().take(ENTRIES_MAX) {
        block.lower_bound(entry.key, entry.ordinal());
        block.find(entry.key, KeyHash::of(entry.key), entry.ordinal());
        block.find(entry.key, KeyHash(!0), Ordinal::FIRST);
    }
    let place = |entry: &InternalEntry<'_>| (entry.key.to_vec(), entry.ordinal());
    if !entries.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])) {
        return;
    }
    let mut builder = BlockBuilder::new(16, true);
    entries.iter().for_each(|entry| builder.add(entry, KeyHash::of(entry.key)));
    let mut payload = Vec::new();
    builder.finish(&mut payload);
    let again = DataBlock::parse(payload).expect("what is written is sound");
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(again.entry(index, entry.key), *entry, "an entry reads as it was written");
        assert_eq!(again.lower_bound(entry.key, entry.ordinal()), index);
    }
}

/// The payload of an index.
pub fn index_block(data: &[u8]) {
    let Ok(index) = IndexBlock::parse(data.to_vec()) else { return };
    let mut builder = IndexBuilder::default();
    for number in 0..index.len() {
        let (key, ordinal) = index.separator(number);
        assert_eq!(index.find(&key, ordinal), number, "a separator finds its block");
        builder.add(&key, ordinal, index.place(number).offset);
    }
    index.find(&[], Ordinal::FIRST);
    index.find(&[0xff; 20], Ordinal::FIRST);
    let mut payload = Vec::new();
    builder.encode(0..builder.len(), index.end(), &mut payload);
    let again = IndexBlock::parse(payload).expect("what is written is sound");
    for number in 0..index.len() {
        assert_eq!(again.separator(number), index.separator(number));
        let BlockPlace { offset, bytes, .. } = index.place(number);
        let found = again.place(number);
        assert_eq!((found.offset, found.bytes), (offset, bytes));
    }
}

/// A filter: its shape in five bytes, then a piece of it; and a filter of the keys that are in the bytes.
pub fn filter(data: &[u8]) {
    let Some((lines, rest)) = data.split_first_chunk() else { return };
    let Some((&probes, piece)) = rest.split_first() else { return };
    let shape = FilterShape { lines: u32::from_le_bytes(*lines), probes };
    if let Ok(shape) = shape.check()
        && shape.lines > 0
        && let Ok(piece) = FilterPiece::parse(shape, shape.pieces() - 1, piece.to_vec())
    {
        for hash in [0, 1, u64::MAX, xxh3_64(data)].map(KeyHash) {
            let (number, line) = shape.place(hash);
            if number == shape.pieces() - 1 {
                piece.may_contain(line, hash, shape.probes);
            }
        }
    }
    let hashes: BTreeSet<u64> = rest.chunks(3).map(xxh3_64).collect();
    let mut builder = FilterBuilder::default();
    hashes.iter().for_each(|&hash| builder.add(KeyHash(hash)));
    let (shape, lines) = builder.finish(usize::from(probes % 20));
    let pieces = lines.chunks(PIECE_BYTES).zip(0..);
    let pieces = pieces.map(|(lines, number)| FilterPiece::parse(shape, number, lines.to_vec()));
    let pieces: Vec<_> = pieces.map(|piece| piece.expect("it was cut so")).collect();
    for hash in hashes.into_iter().map(KeyHash).filter(|_| shape.lines > 0) {
        let (piece, line) = shape.place(hash);
        assert!(pieces[piece as usize].may_contain(line, hash, shape.probes));
    }
}

/// The payload of the properties.
pub fn properties(data: &[u8]) {
    let Ok(properties) = Properties::decode(data) else { return };
    let mut again = Vec::new();
    properties.encode(&mut again);
    assert_eq!(Properties::decode(&again), Ok(properties), "properties read as they were written");
}

/// The payload of the range deletions.
pub fn range_deletions(data: &[u8]) {
    let Ok(deletions) = RangeDeletions::decode(data) else { return };
    let mut again = Vec::new();
    deletions.encode(&mut again);
    assert_eq!(RangeDeletions::decode(&again).as_ref(), Ok(&deletions));
    for fragment in deletions.fragments() {
        let newest = fragment.seqnos.first().copied();
        assert_eq!(deletions.newest_covering(&fragment.start, SEQNO_MAX), newest);
    }
    deletions.newest_covering(&[], SEQNO_MAX);
}

/// The last bytes of a table of 64 KiB.
pub fn table_footer(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<FOOTER_BYTES>() else { return };
    let _ = Footer::decode(bytes, 1 << 16);
    let mut bytes = *bytes;
    put_footer_right(&mut bytes, 1 << 16);
    if let Ok(footer) = Footer::decode(&bytes, 1 << 16) {
        assert_eq!(Footer::decode(&footer.encode(), 1 << 16), Ok(footer));
    }
}

/// A whole table.
pub fn table(data: &[u8]) {
    judge(data);
    let mut sealed = data.to_vec();
    if put_right(&mut sealed).is_some() {
        judge(&sealed);
    }
}

fn judge(bytes: &[u8]) {
    let fs = SimFileSystem::new(0);
    let path = Path::new("/000001.sst");
    fs.create(path).and_then(|file| file.write_at(bytes, 0)).expect("written");
    let refused = |error: &Error| matches!(error, Error::Corruption { file, .. } if file == path);
    let table = match Table::open(&fs, path, &BlockCache::new(1 << 16), None) {
        Ok(table) => table,
        Err(error) => return assert!(refused(&error), "{error}"),
    };
    let forward = walk(&table, true);
    let back = walk(&table, false);
    let (forward, back) = match (forward, back) {
        (Ok(forward), Ok(back)) => (forward, back),
        (forward, back) => {
            return assert!(
                [forward, back].iter().filter_map(|rows| rows.as_ref().err()).all(refused)
            );
        }
    };
    for (key, ordinal) in forward.iter().take(200) {
        let found =
            table.get(key, KeyHash::of(key), ordinal.seqno(), |entry| _ = entry.value.len());
        assert!(found.as_ref().err().is_none_or(refused), "{found:?}");
    }
    if let Err(error) = table.verify() {
        return assert!(refused(&error), "{error}");
    }
    // Sound by all that can be checked: now it must be right as well.
    if forward.len() < ENTRIES_MAX {
        assert!(forward.iter().eq(back.iter().rev()), "both ways show the same");
        assert_eq!(forward.len() as u64, table.properties().entries);
    }
    for (key, ordinal) in forward.iter().take(200) {
        let mut seen = None;
        let found = table.get(key, KeyHash::of(key), ordinal.seqno(), |entry| {
            seen = Some(entry.ordinal());
        });
        assert!(found.expect("it was read before"), "an entry of the walk is found");
        assert!(seen.is_some_and(|seen| seen.seqno() == ordinal.seqno()), "and it is that one");
    }
}

fn walk(table: &Table, forward: bool) -> Result<Vec<(Vec<u8>, Ordinal)>, Error> {
    let mut cursor = Table::cursor(table, Access::Scan, KeyRange::ALL);
    let mut there = if forward { cursor.seek_to_first()? } else { cursor.seek_to_last()? };
    let mut rows = Vec::new();
    while there && rows.len() < ENTRIES_MAX {
        if let Some(entry) = cursor.entry() {
            rows.push((entry.key.to_vec(), entry.ordinal()));
        }
        there = if forward { cursor.next()? } else { cursor.prev()? };
    }
    Ok(rows)
}

/// Puts size, version, checksum and magic of a footer right.
fn put_footer_right(bytes: &mut [u8; FOOTER_BYTES], size: u32) {
    bytes[16..20].copy_from_slice(&size.to_le_bytes());
    bytes[20..24].copy_from_slice(&VERSION.to_le_bytes());
    let checksum = xxh3_64(&bytes[..FOOTER_BYTES - 16]);
    bytes[FOOTER_BYTES - 16..FOOTER_BYTES - 8].copy_from_slice(&checksum.to_le_bytes());
    bytes[FOOTER_BYTES - 8..].copy_from_slice(&MAGIC);
}

fn put_seal_right(sealed: &mut [u8], uid: TableUid, offset: u32) {
    if let Some((body, checksum)) = sealed.split_last_chunk_mut() {
        *checksum = xxh3_64_with_seed(body, seed(uid, offset)).to_le_bytes();
    }
}

/// Puts every checksum of a table right that can be found; `None` when not even a footer can be made.
fn put_right(file: &mut [u8]) -> Option<()> {
    let size = u32::try_from(file.len()).ok()?;
    put_footer_right(file.last_chunk_mut()?, size);
    let footer = Footer::decode(file.last_chunk()?, u64::from(size)).ok()?;
    let mut seal = |start: u32, end: u32| {
        let block = file.get_mut(start as usize..end as usize)?;
        put_seal_right(block, footer.uid, start);
        unseal(block.to_vec(), footer.uid, start).ok()
    };
    let properties = seal(footer.properties, size - 64);
    seal(footer.range_deletions, footer.index);
    let properties = properties.and_then(|payload| Properties::decode(&payload).ok());
    let Some(properties) = properties else { return Some(()) };
    let mut start = footer.filter;
    for number in 0..properties.filter.pieces() {
        let bytes = u32::try_from(properties.filter.piece_bytes(number) + SEAL_BYTES).ok()?;
        let Some(end) = start.checked_add(bytes).filter(|&end| end <= size) else { break };
        seal(start, end);
        start = end;
    }
    let top = seal(properties.index_top, footer.properties);
    let top = top.and_then(|payload| IndexBlock::parse(payload).ok());
    let Some(top) = top else { return Some(()) };
    let mut places = vec![top];
    if properties.index_pieces > 0 {
        let top = places.remove(0);
        for number in 0..top.len() {
            let BlockPlace { offset, bytes, .. } = top.place(number);
            let piece = seal(offset, offset.saturating_add(bytes));
            places.extend(piece.and_then(|payload| IndexBlock::parse(payload).ok()));
        }
    }
    for index in &places {
        for number in 0..index.len() {
            let BlockPlace { offset, bytes, .. } = index.place(number);
            seal(offset, offset.saturating_add(bytes));
        }
    }
    Some(())
}

/// The parts of a sound table, by the names of their targets.
#[cfg(test)]
pub(crate) fn parts(file: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let size = file.len() as u64;
    let end = file.last_chunk::<FOOTER_BYTES>().expect("a table has a footer");
    let footer = Footer::decode(end, size).expect("a sound one");
    let payload = |start: u32, end: u32| {
        let sealed = file[start as usize..end as usize].to_vec();
        unseal(sealed, footer.uid, start).expect("a sound block")
    };
    let properties = payload(footer.properties, footer.size - 64);
    let top = payload(Properties::decode(&properties).expect("sound").index_top, footer.properties);
    let index = IndexBlock::parse(top.clone()).expect("sound");
    let BlockPlace { offset, bytes, .. } = index.place(0);
    let first = &file[offset as usize..(offset + bytes) as usize];
    let mut parts = vec![
        ("table", file.to_vec()),
        ("table_footer", end.to_vec()),
        ("properties", properties),
        ("index_block", top),
        ("data_block", payload(offset, offset + bytes)),
        ("sealed_block", first.to_vec()),
    ];
    if footer.range_deletions < footer.index {
        parts.push(("range_deletions", payload(footer.range_deletions, footer.index)));
    }
    parts
}
