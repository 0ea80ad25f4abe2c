//! Writing, refusing, failing, opening: what surrounds the bytes.

use proptest::prelude::*;

use super::super::{Properties, UpperBound};
use super::*;
use crate::storage::lsm::key::SEQNO_MAX;
use crate::storage::lsm::options::Compression;
use crate::util::fs::sim::{Effect, Fault, Operation};
use crate::util::fs::{FileSystem, RealFileSystem, read_file};

fn row(key: &str, seqno: u64, value: Option<&str>) -> Row {
    Row { key: key.into(), seqno, value: value.map(Into::into), expires_at: None }
}

#[test]
fn properties_tell_what_was_added() {
    let fs = SimFileSystem::new(0);
    let mut rows = vec![row("b", 9, Some("x")), row("b", 3, None), row("c", 5, Some("yy"))];
    rows[2].expires_at = Some(77);
    let deletions: [(&[u8], &[u8], u64); 2] = [(b"a", b"b", 2), (b"a", b"cc", 12)];
    let metadata =
        build(&fs, &path(), 5, &rows, &deletions, &TableOptions::default()).expect("built");
    let properties = &metadata.properties;
    assert_eq!((properties.entries, properties.distinct_keys), (3, 2));
    assert_eq!((properties.deletions, properties.expiring), (1, 1));
    // a..b by 12 and 2, b..cc by 12.
    assert_eq!(properties.range_deletions, 3);
    assert_eq!((properties.seqno_min, properties.seqno_max), (Seqno(2), Seqno(12)));
    assert_eq!((properties.raw_key_bytes, properties.raw_value_bytes), (3, 3));
    assert_eq!(properties.earliest_expiry, Some(Timestamp::from_millis(77)));
    assert_eq!(properties.smallest, b"a");
    assert_eq!(properties.largest, UpperBound { key: b"cc".to_vec(), inclusive: false });
    assert_eq!(
        metadata.size_bytes,
        read_file(&fs, &path(), 1 << 20).expect("it is there").len() as u64
    );

    let table = open(&fs, &BlockCache::new(1 << 20)).expect("sound");
    table.verify().expect("sound");
    assert_eq!(*table.properties(), metadata.properties);
    assert_eq!(table.range_deletions().newest_covering(b"a", SEQNO_MAX), Some(Seqno(12)));
    assert_eq!(table.range_deletions().newest_covering(b"a", Seqno(11)), Some(Seqno(2)));
    // A lookup does not apply them.
    assert_eq!(get(&table, b"b", 9).expect("sound"), Some(rows[0].clone()));
}

#[test]
fn a_table_of_range_deletions_alone_has_no_entries() {
    let fs = SimFileSystem::new(0);
    let metadata =
        build(&fs, &path(), 5, &[], &[(b"m", b"p", 4)], &TableOptions::default()).expect("built");
    assert_eq!(metadata.properties.smallest, b"m");
    assert_eq!(metadata.properties.largest.key, b"p");
    let table = open(&fs, &BlockCache::new(1 << 20)).expect("sound");
    table.verify().expect("sound");
    assert_eq!(get(&table, b"n", 9).expect("sound"), None);
    assert_eq!(scan(&table, Access::Scan).expect("sound"), []);
    assert_eq!(scan_back(&table, Access::Scan).expect("sound"), []);
    assert_eq!(table.range_deletions().fragments().len(), 1);
}

#[test]
fn a_builder_refuses_what_a_table_cannot_hold_and_goes_on() {
    let fs = SimFileSystem::new(0);
    let mut builder =
        TableBuilder::create(&fs, &path(), TableUid(1), TableOptions::default()).expect("created");
    let long = vec![b'x'; crate::storage::KEY_BYTES_MAX + 1];
    let mut add = |entry: InternalEntry<'_>| builder.add(&entry, KeyHash::of(entry.key));
    add(InternalEntry::put(b"b", Seqno(5), b"1", None)).expect("in order");
    for (entry, why) in [
        (InternalEntry::put(b"b", Seqno(5), b"2", None), "order"),
        (InternalEntry::put(b"b", Seqno(6), b"2", None), "order"),
        (InternalEntry::put(b"a", Seqno(9), b"2", None), "order"),
        (InternalEntry::put(&long, Seqno(9), b"2", None), "at most 8192"),
        (InternalEntry::put(b"c", Seqno(SEQNO_MAX.0 + 1), b"2", None), "56 bits"),
        (
            InternalEntry { kind: Kind::RangeDelete, ..InternalEntry::delete(b"c", Seqno(1)) },
            "form",
        ),
        (InternalEntry { value: b"v", ..InternalEntry::delete(b"c", Seqno(1)) }, "form"),
        (InternalEntry { kind: Kind::PutTtl, ..InternalEntry::delete(b"c", Seqno(1)) }, "form"),
    ] {
        let error = add(entry).expect_err("refused").to_string();
        assert!(error.contains(why), "{error}");
    }
    add(InternalEntry::put(b"b", Seqno(4), b"0", None)).expect("in order");
    let metadata = builder.finish().expect("finished");
    assert_eq!(metadata.properties.entries, 2);
    open(&fs, &BlockCache::new(0)).expect("sound").verify().expect("sound");

    let empty = PathBuf::from("/000002.sst");
    let refused = build(&fs, &empty, 5, &[], &[], &TableOptions::default());
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    let taken = TableBuilder::create(&fs, &path(), TableUid(1), TableOptions::default());
    assert!(matches!(taken, Err(Error::Io { .. })), "a file is never overwritten");
}

#[test]
fn the_size_a_builder_tells_is_that_of_its_data() {
    let fs = SimFileSystem::new(0);
    let mut builder =
        TableBuilder::create(&fs, &path(), TableUid(1), TableOptions::default()).expect("created");
    for key in 0..5000u32 {
        let key = key.to_be_bytes();
        builder
            .add(&InternalEntry::put(&key, Seqno(1), &[7; 90], None), KeyHash::of(&key))
            .expect("in order");
    }
    let size = builder.size_bytes();
    builder.finish().expect("finished");
    let table = open(&fs, &BlockCache::new(0)).expect("sound");
    assert_eq!(size, u64::from(table.source().footer().filter));
}

#[test]
fn blocks_have_the_size_asked_for() {
    let fs = SimFileSystem::new(0);
    let rows: Vec<Row> =
        (0..4000).map(|key| row(&format!("key{key:08}"), 1, Some(&"v".repeat(100)))).collect();
    build(&fs, &path(), 1, &rows, &[], &TableOptions::default()).expect("built");
    let table = open(&fs, &BlockCache::new(0)).expect("sound");
    let data = f64::from(table.source().footer().filter);
    let blocks = f64::from(table.properties().data_blocks);
    let average = data / blocks;
    assert!(average > 3900.0 && average <= 4096.0 + 9.0, "{average} bytes in a block of 4 KiB");
}

#[test]
fn the_largest_key_and_value_fit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("1.sst");
    let key = vec![b'k'; crate::storage::KEY_BYTES_MAX];
    let value = vec![7; crate::storage::VALUE_BYTES_MAX];
    let expires_at = Some(Timestamp::from_millis(1));
    let large = InternalEntry::put(&key, SEQNO_MAX, &value, expires_at);
    let small = InternalEntry::put(b"a", Seqno(1), b"1", None);
    for compression in [Compression::None, Compression::Lz4] {
        let options = TableOptions { compression, ..TableOptions::default() };
        let mut builder =
            TableBuilder::create(&RealFileSystem, &path, TableUid(1), options).expect("a new file");
        for entry in [&small, &large] {
            builder.add(entry, KeyHash::of(entry.key)).expect("within the limits");
        }
        builder.finish().expect("finished");
        let cache = BlockCache::new(1 << 20);
        let table = Table::open(&RealFileSystem, &path, &cache, None).expect("sound");
        let mut same = false;
        table
            .get(&key, KeyHash::of(&key), SEQNO_MAX, |entry| same = entry == large)
            .expect("sound");
        assert!(same);
        assert!(cache.status().block_bytes < 1 << 20, "too large to be kept");
        std::fs::remove_file(&path).expect("removed");
    }
}

#[test]
fn dense_blocks_are_counted() {
    let fs = SimFileSystem::new(0);
    let rows: Vec<Row> = (0..2000)
        // A few deletions among many values, then deletions alone.
        .map(|key| {
            let live = key < 1000 && key % 40 > 0;
            row(&format!("{key:08}"), 1, live.then_some("a value of some length"))
        })
        .collect();
    let metadata = build(&fs, &path(), 1, &rows, &[], &TableOptions::default()).expect("built");
    let Properties { data_blocks, dense_blocks, .. } = metadata.properties;
    assert!(dense_blocks > 0 && dense_blocks < data_blocks, "{dense_blocks} of {data_blocks}");
}

#[test]
fn a_table_with_another_uid_than_named_is_refused() {
    let fs = SimFileSystem::new(0);
    build(&fs, &path(), 5, &small_rows(), &[], &TableOptions::default()).expect("built");
    let cache = BlockCache::new(0);
    Table::open(&fs, &path(), &cache, Some(TableUid(5))).expect("the right one");
    let refused = Table::open(&fs, &path(), &cache, Some(TableUid(6)));
    assert!(matches!(refused, Err(Error::Corruption { .. })), "{refused:?}");
}

#[test]
fn a_finished_table_survives_a_power_loss_and_an_unfinished_one_is_no_table() {
    let rows = small_rows();
    for seed in 0..50 {
        let fs = SimFileSystem::new(seed);
        build(&fs, &path(), 5, &rows, &[], &TableOptions::default()).expect("built");
        fs.sync_dir(Path::new("/")).expect("synced");
        let after = fs.restart(seed);
        let table = open(&after, &BlockCache::new(0)).expect("durable");
        table.verify().expect("durable");
        assert_eq!(scan(&table, Access::Scan).expect("durable"), rows);

        let fs = SimFileSystem::new(seed);
        let mut builder = TableBuilder::create(&fs, &path(), TableUid(5), TableOptions::default())
            .expect("created");
        let entry = rows[0].entry();
        builder.add(&entry, KeyHash::of(entry.key)).expect("in order");
        drop(builder);
        let error = open(&fs, &BlockCache::new(0)).expect_err("no footer");
        assert!(is_corruption(&error, 0), "{error}");
    }
}

#[test]
fn a_failed_write_or_sync_is_told_with_the_path() {
    let rows = small_rows();
    for (operation, effect) in [
        (Operation::Write, Effect::Io),
        (Operation::Write, Effect::DiskFull),
        (Operation::Sync, Effect::Io),
    ] {
        let fs = SimFileSystem::new(0);
        fs.inject(Fault::next(operation, "000001.sst", effect));
        let error = build(&fs, &path(), 5, &rows, &[], &TableOptions::default())
            .expect_err("the fault strikes");
        assert_eq!(fs.faults_struck(), 1);
        let full = matches!(error, Error::DiskFull { .. });
        assert_eq!(full, effect == Effect::DiskFull, "{error}");
        assert!(error.to_string().contains("/000001.sst"), "{error}");
    }
}

#[test]
fn compression_makes_repetitive_tables_smaller() {
    let rows: Vec<Row> =
        (0..2000).map(|key| row(&format!("{key:08}"), 1, Some(&"json ".repeat(20)))).collect();
    let size = |compression| {
        let fs = SimFileSystem::new(0);
        let options = TableOptions { compression, ..TableOptions::default() };
        build(&fs, &path(), 5, &rows, &[], &options).expect("built").size_bytes
    };
    let (raw, lz4, zstd) =
        (size(Compression::None), size(Compression::Lz4), size(Compression::Zstd(3)));
    assert!(zstd < lz4 && lz4 * 3 < raw, "{raw} {lz4} {zstd}");
}

#[test]
fn a_scan_reads_ahead_and_a_point_read_does_not() {
    let rows: Vec<Row> =
        (0..40_000).map(|key| row(&format!("{key:08}"), 1, Some(&"v".repeat(100)))).collect();
    let reads = |access: Access, forward: bool| {
        let fs = SimFileSystem::new(0);
        build(&fs, &path(), 5, &rows, &[], &TableOptions::default()).expect("built");
        let cache = BlockCache::new(64 << 20);
        let table = open(&fs, &cache).expect("sound");
        let before = fs.count(Operation::Read);
        let scanned = if forward { scan(&table, access) } else { scan_back(&table, access) };
        assert_eq!(scanned.expect("sound").len(), rows.len());
        let cached = cache.status().blocks as u32;
        assert_eq!(
            cached,
            if access == Access::Sequential { 0 } else { table.properties().data_blocks }
        );
        (fs.count(Operation::Read) - before, u64::from(table.properties().data_blocks))
    };
    for forward in [true, false] {
        let (point, blocks) = reads(Access::Point, forward);
        assert_eq!(point, blocks);
        let (scan, _) = reads(Access::Scan, forward);
        assert!(scan <= 12, "{scan} reads for {blocks} blocks");
        let (sequential, _) = reads(Access::Sequential, forward);
        assert!(sequential <= 6, "{sequential} reads for {blocks} blocks");
    }
}

proptest! {
    #[test]
    fn range_deletions_of_a_table_cover_what_was_deleted(
        deletions in prop::collection::vec((0..20u8, 0..20u8, 0..8u64), 1..20), at in 0..9u64,
    ) {
        prop_assume!(deletions.iter().any(|(start, end, _)| start < end));
        let owned: Vec<_> = deletions.iter().map(|&(s, e, n)| ([s], [e], n)).collect();
        let borrowed: Vec<(&[u8], &[u8], u64)> =
            owned.iter().map(|(s, e, n)| (&s[..], &e[..], *n)).collect();
        let fs = SimFileSystem::new(0);
        build(&fs, &path(), 5, &small_rows(), &borrowed, &TableOptions::default()).expect("built");
        let table = open(&fs, &BlockCache::new(0)).expect("sound");
        table.verify().expect("sound");
        for key in 0..21u8 {
            let covering = deletions.iter().filter(|&&(s, e, n)| (s..e).contains(&key) && n <= at);
            let expected = covering.map(|&(_, _, n)| Seqno(n)).max();
            prop_assert_eq!(table.range_deletions().newest_covering(&[key], Seqno(at)), expected);
        }
    }
}
