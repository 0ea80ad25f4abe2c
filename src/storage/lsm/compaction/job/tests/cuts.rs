//! Where outputs are cut.

use super::*;
use crate::storage::lsm::level::Span;

/// Sizes of the tables of a level.
fn sizes(engine: &Engine, level: usize) -> Vec<u64> {
    engine.version().level(level).tables().iter().map(|table| table.size_bytes()).collect()
}

/// Merges all of level 0 into `to`.
fn merge_all(engine: &mut Engine, to: usize) {
    let tables = engine.version().level(0).tables().to_vec();
    engine.run(&Choice::Merge { inputs: vec![Input { level: 0, tables }], to });
}

fn fill(engine: &mut Engine, keys: std::ops::Range<u32>) {
    keys.for_each(|key| engine.put(&format!("{key:04}"), &[7; 90]));
    engine.flush();
}

#[test]
fn tables_have_the_size_aimed_at() {
    let mut engine = Engine::new(PickerOptions { table_bytes: 20_000, ..tiny() });
    fill(&mut engine, 0..1000);
    merge_all(&mut engine, 6);
    let sizes = sizes(&engine, 6);
    assert_eq!(sizes.len(), 7, "{sizes:?}");
    // Filter, index and properties come on top of it.
    assert!(sizes[..6].iter().all(|size| (20_000..27_000).contains(size)), "{sizes:?}");
    engine.check("cut");
}

#[test]
fn no_table_is_larger_than_the_largest_because_of_one_more_entry() {
    let mut engine = Engine::new(PickerOptions { table_bytes: 20_000, ..tiny() });
    for key in 0..20 {
        engine.put(&format!("{key:04}"), &vec![7; 18_000]);
    }
    engine.flush();
    engine.table_bytes_max = 30_000;
    merge_all(&mut engine, 6);
    assert_eq!(engine.tables(6), 20, "two of 18 KB would be 36 KB");
}

#[test]
fn all_versions_of_a_key_are_in_one_table_however_large() {
    let mut engine = Engine::new(tiny());
    for version in 0..20u8 {
        engine.put("a", b"before");
        engine.put("key", &[version; 500]);
        engine.put("z", b"behind");
        engine.view();
    }
    engine.flush();
    merge_all(&mut engine, 6);
    let sizes = sizes(&engine, 6);
    assert!(sizes.len() >= 2 && sizes.iter().any(|&size| size > 10_000), "{sizes:?}");
    engine.check("cut");
}

#[test]
fn tables_end_where_those_of_the_level_below_do() {
    let mut engine = Engine::new(PickerOptions { table_bytes: 40_000, ..tiny() });
    // Grandparents of 30,000 bytes.
    engine.options.table_bytes = 30_000;
    fill(&mut engine, 0..1000);
    merge_all(&mut engine, 6);
    let borders: Vec<_> = {
        let version = engine.version();
        let tables = version.level(6).tables();
        tables.iter().map(|table| table.properties().largest.key.clone()).collect()
    };
    engine.options.table_bytes = 40_000;
    fill(&mut engine, 0..1000);
    merge_all(&mut engine, 5);
    let version = engine.version();
    let cut = version.level(5).tables();
    let aligned = cut.iter().filter(|table| borders.contains(&table.properties().largest.key));
    assert_eq!(aligned.count(), cut.len(), "of {} grandparents", borders.len());
    engine.check("cut");
}

#[test]
fn a_table_overlaps_no_more_than_ten_tables_worth_of_the_level_below() {
    let mut engine = Engine::new(PickerOptions { table_bytes: 3_000, ..tiny() });
    fill(&mut engine, 0..1000);
    merge_all(&mut engine, 6);
    // Few entries, far from each other: by their own size they would be one table.
    (0..1000).step_by(40).for_each(|key| engine.put(&format!("{key:04}"), b"x"));
    engine.flush();
    engine.table_bytes_max = 1 << 20;
    merge_all(&mut engine, 5);
    let version = engine.version();
    let below = version.level(6);
    for table in version.level(5).tables() {
        let overlapped = below.overlapping(Span::of(table)).iter().map(|t| t.size_bytes());
        let overlapped: u64 = overlapped.sum();
        // And the one it was found to be too many with.
        assert!(overlapped < 10 * 3_000 + 3 * 4_500, "{overlapped}");
    }
    assert!(engine.tables(5) >= 3);
}

#[test]
fn a_range_deletion_is_cut_where_the_tables_are() {
    let mut engine = Engine::new(tiny());
    fill(&mut engine, 0..100);
    merge_all(&mut engine, 6);
    let range = (b"0010".to_vec(), b"0090".to_vec());
    // Somebody still sees what it deletes.
    engine.view();
    engine.history.push(Write::DeleteRange(range.0, range.1));
    fill(&mut engine, 40..60);
    merge_all(&mut engine, 5);
    assert!(engine.tables(5) > 1);
    engine.check("cut");
    // The parts lie side by side, and cover all of it.
    let runs = range_deletions(&engine.version()).expect("read");
    let [run] = &runs[..] else { panic!("one level has some: {runs:?}") };
    assert!(run.len() > 1 && run.windows(2).all(|pair| pair[0].end == pair[1].start), "{run:?}");
    assert_eq!((&*run[0].start, &*run[run.len() - 1].end), (&b"0010"[..], &b"0090"[..]));
}

#[test]
fn nothing_is_written_when_nothing_is_left() {
    let mut engine = Engine::new(tiny());
    fill(&mut engine, 0..10);
    engine.history.push(Write::DeleteRange(b"0".to_vec(), b"1".to_vec()));
    engine.flush();
    merge_all(&mut engine, 6);
    assert_eq!(engine.version().tables().count(), 0);
    engine.check("deleted");
}
