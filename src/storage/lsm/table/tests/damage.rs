//! Damaged tables: an error that names the file and the offset, or the right data. Never other data, never a panic, never
//! memory without bound.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::format::{FOOTER_BYTES, Footer, PAYLOAD_BYTES_MAX, SEAL_BYTES, seal_raw, unseal};
use super::*;
use crate::storage::lsm::options::Compression;
use crate::storage::lsm::testing::allocations;
use crate::util::fs::{FileSystem, read_file};

const DELETIONS: [(&[u8], &[u8], u64); 2] = [(b"key02", b"key05", 33), (b"key04", b"zz", 7)];

/// Small blocks, so that there are several of each kind.
fn options(compression: Compression, cut: bool) -> TableOptions {
    TableOptions {
        block_bytes: 200,
        bundle_entries: 4,
        compression,
        index_bytes_max: if cut { 100 } else { 256 << 10 },
        ..TableOptions::default()
    }
}

fn table_bytes(uid: u64, options: &TableOptions) -> Vec<u8> {
    let fs = SimFileSystem::new(0);
    build(&fs, &path(), uid, &small_rows(), &DELETIONS, options).expect("built");
    read_file(&fs, &path(), 1 << 20).expect("it is there")
}

fn file_system_with(bytes: &[u8]) -> SimFileSystem {
    let fs = SimFileSystem::new(0);
    let file = fs.create(&path()).expect("created");
    file.write_at(bytes, 0).expect("written");
    fs
}

/// Reads the table in all ways there are. Every answer must be right or a corruption; some error there must be when asked
/// for by `verify`.
fn every_answer_is_right_or_an_error(bytes: &[u8], what: &str) {
    let rows = small_rows();
    let size = bytes.len() as u64;
    let check_error = |error: Error| assert!(is_corruption(&error, size), "{what}: {error:?}");
    let table = match open(&file_system_with(bytes), &BlockCache::new(1 << 20)) {
        Ok(table) => table,
        Err(error) => return check_error(error),
    };
    check_error(table.verify().expect_err(what));
    for key in 0..14 {
        let key = format!("key{key:02}").into_bytes();
        for at in [9, 35, 60, 1000] {
            match get(&table, &key, at) {
                Ok(row) => {
                    let expected = rows.iter().find(|row| row.key == key && row.seqno <= at);
                    assert_eq!(row.as_ref(), expected, "{what}");
                }
                Err(error) => check_error(error),
            }
        }
    }
    for access in [Access::Point, Access::Scan, Access::Sequential] {
        match scan(&table, access) {
            Ok(scanned) => assert_eq!(scanned, rows, "{what}"),
            Err(error) => check_error(error),
        }
        match scan_back(&table, access) {
            Ok(scanned) => assert!(scanned.iter().eq(rows.iter().rev()), "{what}"),
            Err(error) => check_error(error),
        }
    }
}

/// Reads the table in all ways there are, whatever comes.
fn exercise(bytes: &[u8]) {
    let fs = file_system_with(bytes);
    let Ok(table) = open(&fs, &BlockCache::new(1 << 20)) else { return };
    let _ = table.verify();
    for key in 0..14 {
        for at in [9, 35, 60, 1000] {
            let _ = get(&table, format!("key{key:02}").as_bytes(), at);
        }
    }
    for access in [Access::Point, Access::Scan, Access::Sequential] {
        let _ = scan(&table, access);
        let _ = scan_back(&table, access);
    }
    table.range_deletions().newest_covering(b"key03", Seqno(40));
}

#[test]
fn a_flipped_byte_is_an_error_or_makes_no_difference() {
    for cut in [false, true] {
        for compression in [Compression::None, Compression::Lz4] {
            let sound = table_bytes(5, &options(compression, cut));
            for at in 0..sound.len() {
                for mask in [1 << (at % 8), 0xff] {
                    let mut bytes = sound.clone();
                    bytes[at] ^= mask;
                    let what = format!("byte {at} of {} ^ {mask:#x}, cut {cut}", sound.len());
                    every_answer_is_right_or_an_error(&bytes, &what);
                }
            }
        }
    }
}

#[test]
fn a_table_cut_or_lengthened_anywhere_is_refused_when_opened() {
    let sound = table_bytes(5, &options(Compression::None, true));
    let longer = [&sound[..], b"x"].concat();
    let moved = [b"x", &sound[..]].concat();
    let cuts = (0..sound.len()).map(|length| &sound[..length]);
    for bytes in cuts.chain([&longer[..], &moved[..]]) {
        let opened = open(&file_system_with(bytes), &BlockCache::new(0));
        let error = opened.expect_err("not a whole table");
        assert!(is_corruption(&error, bytes.len() as u64), "{error:?}");
    }
}

#[test]
fn a_file_cut_while_it_is_open_is_told() {
    let fs = file_system_with(&table_bytes(5, &options(Compression::None, false)));
    let table = open(&fs, &BlockCache::new(0)).expect("sound");
    fs.open_write(&path()).expect("opened").truncate(300).expect("cut");
    let error = scan(&table, Access::Point).expect_err("blocks are missing");
    assert!(is_corruption(&error, 1 << 20), "{error:?}");
}

/// Where each sealed block of a table is, by the footer and both kinds of index.
fn block_places(bytes: &[u8]) -> Vec<(usize, usize)> {
    let fs = file_system_with(bytes);
    let (table, footer) = {
        let table = open(&fs, &BlockCache::new(0)).expect("sound");
        let footer = *table.source().footer();
        (table, footer)
    };
    let mut borders = BTreeSet::from(
        [
            0,
            footer.filter,
            footer.range_deletions,
            footer.index,
            footer.properties,
            footer.size - 64,
        ]
        .map(|offset| offset as usize),
    );
    borders.insert(table.properties().index_top as usize);
    // What lies between is found by its checksum: a block is what unseals.
    let mut places = Vec::new();
    let mut start = 0;
    let end = bytes.len() - FOOTER_BYTES;
    while start < end {
        let next = (start + SEAL_BYTES..=end)
            .find(|&next| unseal(bytes[start..next].to_vec(), footer.uid, start as u32).is_ok())
            .expect("the file is a row of sealed blocks");
        places.push((start, next));
        start = next;
    }
    let starts: BTreeSet<usize> = places.iter().map(|place| place.0).chain([end]).collect();
    assert!(borders.is_subset(&starts), "{borders:?} {starts:?}");
    places
}

#[test]
fn a_block_or_footer_of_another_table_is_refused() {
    let options = options(Compression::None, true);
    let (ours, theirs) = (table_bytes(5, &options), table_bytes(6, &options));
    assert_eq!(ours.len(), theirs.len());
    let footer = (ours.len() - FOOTER_BYTES, ours.len());
    let places = block_places(&ours);
    assert!(places.len() > 8, "{places:?}");
    for &(start, end) in places.iter().chain([&footer]) {
        let mut bytes = ours.clone();
        bytes[start..end].copy_from_slice(&theirs[start..end]);
        every_answer_is_right_or_an_error(&bytes, &format!("theirs at {start}"));
    }
}

#[test]
fn a_block_in_the_place_of_another_is_refused() {
    let sound = table_bytes(5, &options(Compression::None, true));
    let places = block_places(&sound);
    for &(start, end) in &places {
        for &(other_start, other_end) in &places {
            if start == other_start {
                continue;
            }
            let length = (end - start).min(other_end - other_start);
            let mut bytes = sound.clone();
            bytes.copy_within(other_start..other_start + length, start);
            if bytes != sound {
                every_answer_is_right_or_an_error(&bytes, &format!("{other_start} at {start}"));
            }
        }
    }
}

#[test]
fn a_later_version_is_refused_by_name() {
    let mut bytes = table_bytes(5, &options(Compression::None, false));
    let at = bytes.len() - FOOTER_BYTES + 20;
    bytes[at] = 2;
    let error = open(&file_system_with(&bytes), &BlockCache::new(0)).expect_err("refused");
    assert!(error.to_string().contains("version 2, this program reads 1"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn bytes_that_pass_their_checksum_are_still_parsed_with_suspicion(
        cut: bool, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6),
        kind in prop_oneof![9 => Just(0u8), 1 => 0..4u8],
    ) {
        let mut bytes = table_bytes(5, &options(Compression::None, cut));
        let places = block_places(&bytes);
        for (place, at, byte, near_end) in damage {
            let (start, end) = places[place.index(places.len())];
            let mut payload = bytes[start..end - SEAL_BYTES].to_vec();
            let length = payload.len();
            let at = if near_end { length - 1 - at.index(length.min(40)) } else { at.index(length) };
            payload[at] = byte;
            let mut sealed = Vec::new();
            seal_raw(&payload, TableUid(5), start as u32, &mut sealed);
            if kind != 0 {
                sealed = resealed(sealed, kind, start);
            }
            bytes[start..end].copy_from_slice(&sealed);
        }
        let ((), allocated) = allocations(|| exercise(&bytes));
        prop_assert!(allocated.largest_bytes <= PAYLOAD_BYTES_MAX, "{:?}", allocated);
    }

    #[test]
    fn any_bytes_are_no_table(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let fs = file_system_with(&bytes);
        let (opened, allocated) = allocations(|| open(&fs, &BlockCache::new(0)));
        prop_assert!(opened.is_err());
        prop_assert!(allocated.largest_bytes <= 64 << 10, "{:?}", allocated);
    }

    #[test]
    fn a_sound_footer_on_any_bytes_is_no_table(
        bytes in prop::collection::vec(any::<u8>(), 100..2000),
        borders in prop::array::uniform4(any::<prop::sample::Index>()),
    ) {
        let mut borders = borders.map(|border| border.index(bytes.len()) as u32);
        borders.sort_unstable();
        let [filter, range_deletions, index, properties] = borders;
        let size = (bytes.len() + FOOTER_BYTES) as u32;
        let footer = Footer { filter, range_deletions, index, properties, size, uid: TableUid(5) };
        let bytes = [&bytes[..], &footer.encode()].concat();
        let fs = file_system_with(&bytes);
        let (opened, allocated) = allocations(|| open(&fs, &BlockCache::new(0)));
        prop_assert!(is_corruption(&opened.expect_err("no checksum holds"), bytes.len() as u64));
        prop_assert!(allocated.largest_bytes <= 64 << 10, "{:?}", allocated);
    }
}

/// The sealed block with another kind, and the checksum that goes with it.
fn resealed(mut sealed: Vec<u8>, kind: u8, offset: usize) -> Vec<u8> {
    use super::super::format::seed;
    let body = sealed.len() - SEAL_BYTES + 1;
    sealed[body - 1] = kind;
    sealed.truncate(body);
    let checksum = xxhash_rust::xxh3::xxh3_64_with_seed(&sealed, seed(TableUid(5), offset as u32));
    sealed.extend_from_slice(&checksum.to_le_bytes());
    sealed
}
