//! A hot read allocates nothing.

use super::*;
use crate::storage::lsm::testing::{Allocations, allocations};
use crate::util::fs::sim::Operation;

fn numbered(count: u64) -> Vec<Row> {
    let row = |key: u64| Row {
        key: format!("user{key:012}").into_bytes(),
        seqno: key + 1,
        value: Some(vec![7; 100]),
        expires_at: None,
    };
    (0..count).map(row).collect()
}

#[test]
fn a_hot_get_allocates_and_reads_nothing() {
    for index_bytes_max in [256 << 10, 1000] {
        let rows = numbered(20_000);
        let fs = SimFileSystem::new(0);
        let options = TableOptions { index_bytes_max, ..TableOptions::default() };
        build(&fs, &path(), 5, &rows, &[(b"a", b"b", 1)], &options).expect("built");
        let table = open(&fs, &BlockCache::new(64 << 20)).expect("sound");
        let missing: Vec<Vec<u8>> = rows.iter().map(|row| [&row.key[..], b"x"].concat()).collect();
        let read_all = || {
            for (row, missing) in rows.iter().zip(&missing) {
                let mut bytes = 0;
                let hash = KeyHash::of(&row.key);
                let found = table.get(&row.key, hash, Seqno(1 << 50), |e| bytes = e.value.len());
                assert_eq!((found.expect("sound"), bytes), (true, 100));
                let hash = KeyHash::of(missing);
                let found = table.get(missing, hash, Seqno(1 << 50), |_| ());
                assert!(!found.expect("sound"));
                table.range_deletions().newest_covering(&row.key, Seqno(9));
            }
        };
        let ((), cold) = allocations(read_all);
        assert!(cold.count > 0, "the count counts");
        let reads = fs.count(Operation::Read);
        let ((), hot) = allocations(read_all);
        assert_eq!(hot, Allocations::default());
        assert_eq!(fs.count(Operation::Read), reads);
    }
}

#[test]
fn a_hot_cursor_allocates_for_its_key_once() {
    let rows = numbered(20_000);
    let fs = SimFileSystem::new(0);
    build(&fs, &path(), 5, &rows, &[], &TableOptions::default()).expect("built");
    let table = open(&fs, &BlockCache::new(64 << 20)).expect("sound");
    assert_eq!(scan(&table, Access::Scan).expect("sound").len(), rows.len());
    let (count, allocated) = allocations(|| {
        let mut cursor = Table::cursor(&table, Access::Scan, KeyRange::ALL);
        let mut count = 0;
        let mut found = cursor.seek_to_first().expect("sound");
        while found {
            count += usize::from(cursor.entry().is_some());
            found = cursor.next().expect("sound");
        }
        count
    });
    assert_eq!(count, rows.len());
    assert!(allocated.count <= 4, "{allocated:?}");
}
