//! A table answers as a sorted list of its entries does, however it is laid out.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::storage::lsm::options::Compression;

type Model = BTreeMap<(Vec<u8>, Reverse<u64>), Row>;

fn arbitrary_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::collection::vec(0..4u8, 0..5),
        4 => prop::collection::vec(any::<u8>(), 0..12),
        // Long keys that differ at their ends only, and keys as long as they may be.
        2 => (0..8u8).prop_map(|end| [vec![7; 300], vec![end]].concat()),
        1 => (0..4u8, 0..=KEY_BYTES_MAX).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

const KEY_BYTES_MAX: usize = crate::storage::KEY_BYTES_MAX;

fn arbitrary_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => Just(Vec::new()),
        8 => prop::collection::vec(any::<u8>(), 0..40),
        2 => (any::<u8>(), 0..2000usize).prop_map(|(byte, length)| vec![byte; length]),
        1 => (any::<u8>(), 0..200_000usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

prop_compose! {
    fn arbitrary_model()(
        rows in prop::collection::vec(
            (arbitrary_key(), 0..40u64, prop::option::weighted(0.8, arbitrary_value()), prop::option::weighted(0.2, 0..99u64)),
            1..150,
        ),
        // One key with many versions, which go over several blocks.
        versions in prop::collection::btree_set(0..1000u64, 0..60),
        busy in arbitrary_key(),
        spread in prop::sample::select(vec![1u64, 1 << 12, 1 << 30, 1 << 45]),
    ) -> Model {
        let mut model = Model::new();
        for (key, seqno, value, expiry) in rows {
            let (seqno, expires_at) = (seqno * spread, expiry.filter(|_| value.is_some()));
            let row = Row { key: key.clone(), seqno, value, expires_at };
            model.insert((key, Reverse(seqno)), row);
        }
        for seqno in versions {
            let seqno = seqno * spread;
            let value = Some(seqno.to_string().into_bytes());
            let row = Row { key: busy.clone(), seqno, value, expires_at: None };
            model.insert((busy.clone(), Reverse(seqno)), row);
        }
        model
    }
}

prop_compose! {
    fn arbitrary_options()(
        block_bytes in prop::sample::select(vec![1usize, 100, 300, 1000, 8 << 10, 64 << 10]),
        bundle_shift in 0..=7u32,
        filter_bits_per_key in prop::sample::select(vec![0usize, 1, 10, 16]),
        fingerprints: bool,
        compression in prop::sample::select(vec![Compression::None, Compression::Lz4, Compression::Zstd(1)]),
        index_bytes_max in prop::sample::select(vec![1usize, 100, 1000, 256 << 10]),
    ) -> TableOptions {
        TableOptions {
            block_bytes,
            bundle_entries: 1 << bundle_shift,
            filter_bits_per_key,
            fingerprints,
            compression,
            index_bytes_max,
        }
    }
}

#[derive(Debug, Clone)]
enum Move {
    Seek(Vec<u8>, u64),
    First,
    Last,
    Next(u8),
    Prev(u8),
}

fn arbitrary_moves(seqno_max: u64) -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        (arbitrary_key(), 0..=seqno_max).prop_map(|(key, at)| Move::Seek(key, at)),
        Just(Move::First),
        Just(Move::Last),
        (1..20u8).prop_map(Move::Next),
        (1..20u8).prop_map(Move::Prev),
    ];
    prop::collection::vec(one, 1..40)
}

fn arbitrary_access() -> impl Strategy<Value = Access> {
    prop::sample::select(vec![Access::Point, Access::Scan, Access::Sequential])
}

/// A table on disk, open, and its rows.
fn table_of(model: &Model, options: &TableOptions, cache_bytes: usize) -> (Table, Vec<Row>) {
    let fs = SimFileSystem::new(0);
    let rows: Vec<Row> = model.values().cloned().collect();
    let metadata = build(&fs, &path(), 5, &rows, &[], options).expect("rows in order");
    let table = open(&fs, &BlockCache::new(cache_bytes)).expect("a table just written");
    assert_eq!(*table.properties(), metadata.properties);
    (table, rows)
}

fn arbitrary_cache_bytes() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![0usize, 3_000, 100_000, 1 << 30])
}

proptest! {
    #[test]
    fn point_reads_see_the_newest_entry_not_after_their_seqno(
        model in arbitrary_model(), options in arbitrary_options(), cache_bytes in arbitrary_cache_bytes(),
        probes in prop::collection::vec((arbitrary_key(), any::<prop::sample::Index>(), any::<bool>()), 60),
    ) {
        let (table, rows) = table_of(&model, &options, cache_bytes);
        table.verify().expect("a table just written");
        let seqnos: Vec<u64> = rows.iter().flat_map(|row| [row.seqno, row.seqno.saturating_sub(1)]).collect();
        let keys = probes.into_iter().map(|(key, at, own)| {
            (if own { rows[at.index(rows.len())].key.clone() } else { key }, seqnos[at.index(seqnos.len())])
        });
        for (key, at) in keys {
            let newest = model.range((key.clone(), Reverse(at))..).next();
            let expected = newest.map(|(_, row)| row).filter(|row| row.key == key);
            let found = get(&table, &key, at).expect("sound");
            prop_assert_eq!(found.as_ref(), expected);
        }
        for row in &rows {
            let found = get(&table, &row.key, row.seqno).expect("sound");
            prop_assert_eq!(found.as_ref(), Some(row));
        }
    }

    #[test]
    fn cursors_walk_the_rows_within_their_bounds(
        model in arbitrary_model(), options in arbitrary_options(), cache_bytes in arbitrary_cache_bytes(),
        access in arbitrary_access(), lower in arbitrary_key(), upper in prop::option::of(arbitrary_key()),
        unbounded: bool, moves in arbitrary_moves(1 << 50),
    ) {
        let (table, rows) = table_of(&model, &options, cache_bytes);
        let range = if unbounded { KeyRange::ALL } else { KeyRange::new(&lower, upper.as_deref()) };
        let within: Vec<&Row> = rows.iter().filter(|row| range.contains(&row.key)).collect();
        let mut cursor = Table::cursor(&table, access, range);
        // Position in `within`; `None`: on nothing.
        let mut expected: Option<usize> = None;
        for step in moves {
            let some = |index: usize| (index < within.len()).then_some(index);
            let (found, steps) = match &step {
                Move::First => { expected = some(0); (cursor.seek_to_first(), 0) }
                Move::Last => { expected = within.len().checked_sub(1); (cursor.seek_to_last(), 0) }
                Move::Seek(key, at) => {
                    expected = some(within.partition_point(|row| (&row.key, Reverse(row.seqno)) < (key, Reverse(*at))));
                    (cursor.seek(key, Seqno(*at)), 0)
                }
                Move::Next(steps) => (Ok(expected.is_some()), i32::from(*steps)),
                Move::Prev(steps) => (Ok(expected.is_some()), -i32::from(*steps)),
            };
            prop_assert_eq!(found.expect("sound"), expected.is_some(), "{:?}", step);
            for _ in 0..steps.abs() {
                let found = if steps > 0 { cursor.next() } else { cursor.prev() }.expect("sound");
                expected = match expected {
                    Some(index) if steps > 0 => some(index + 1),
                    Some(index) => index.checked_sub(1),
                    None => None,
                };
                prop_assert_eq!(found, expected.is_some());
            }
            let row = cursor.entry().map(|entry| Row::of(&entry));
            prop_assert_eq!(row.as_ref(), expected.map(|index| within[index]), "after {:?}", step);
            prop_assert_eq!(cursor.key(), expected.map(|index| &within[index].key[..]));
        }
    }

    #[test]
    fn whole_scans_give_all_rows_both_ways(
        model in arbitrary_model(), options in arbitrary_options(), cache_bytes in arbitrary_cache_bytes(),
        access in arbitrary_access(),
    ) {
        let (table, mut rows) = table_of(&model, &options, cache_bytes);
        prop_assert_eq!(&scan(&table, access).expect("sound"), &rows);
        rows.reverse();
        prop_assert_eq!(&scan_back(&table, access).expect("sound"), &rows);
    }
}
