//! Reads of a tree at rest, from the engine's cache and from the page cache.

use super::{Run, Stage, expect, reads};
use crate::contestants::{Contestant, Outcome};
use crate::keys::{key, missing_key, touch};

const VALUE_BYTES: usize = 100;
const SMALL_CACHE_BYTES: usize = 8 << 20;

/// Everything fits into the cache and has been read before.
pub const CACHED: Stage = Stage {
    rows: &[
        reads("readrandom"),
        reads("readmissing"),
        reads("scan"),
        reads("scan-reverse"),
        reads("seek-10"),
        reads("seek-100"),
    ],
    run: cached,
};

/// A cache of 8 MiB: most reads find their block in the page cache, or on the disk where memory is short.
pub const SMALL_CACHE: Stage = Stage {
    rows: &[reads("readrandom-small-cache"), reads("seek-10-small-cache")],
    run: small_cache,
};

fn cached(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let keys = run.options.keys;
    let order = run.random.permutation(keys);
    run.prepare(&*db, &order, VALUE_BYTES)?;
    db.settle()?;
    expect("pairs", db.scan(&[], u64::MAX >> 1, &mut |_, value| _ = touch(value))?, keys)?;
    for index in order {
        db.get(&key(index), &mut |value| _ = touch(value))?;
    }
    read_random(run, &*db, "readrandom")?;
    if run.wants("readmissing") {
        run.measure("readmissing", keys, |run, _| {
            let key = missing_key(run.random.below(keys));
            expect("missing key", u64::from(db.get(&key, &mut |_| ())?), 0)
        })?;
    }
    if run.wants("scan") {
        scan(run, "scan", |touched| db.scan(&[], keys + 1, touched))?;
    }
    if run.wants("scan-reverse") {
        scan(run, "scan-reverse", |touched| db.scan_reverse(keys + 1, touched))?;
    }
    seek(run, &*db, "seek-10", 10)?;
    seek(run, &*db, "seek-100", 100)
}

fn small_cache(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open_with_cache(SMALL_CACHE_BYTES)?;
    let order = run.random.permutation(run.options.keys);
    run.prepare(&*db, &order, VALUE_BYTES)?;
    db.settle()?;
    read_random(run, &*db, "readrandom-small-cache")?;
    seek(run, &*db, "seek-10-small-cache", 10)
}

fn read_random(run: &mut Run<'_>, db: &dyn Contestant, row: &'static str) -> Outcome<()> {
    if !run.wants(row) {
        return Ok(());
    }
    let keys = run.options.keys;
    run.measure(row, keys, |run, _| {
        let index = run.random.below(keys);
        let mut found = u64::MAX;
        db.get(&key(index), &mut |value| found = touch(value))?;
        expect(row, found, index)
    })?;
    Ok(())
}

/// Three whole scans: pairs each second.
fn scan(
    run: &mut Run<'_>,
    row: &'static str,
    mut whole: impl FnMut(&mut dyn FnMut(&[u8], &[u8])) -> Outcome<u64>,
) -> Outcome<()> {
    let keys = run.options.keys;
    let start = std::time::Instant::now();
    for _ in 0..3 {
        expect(row, whole(&mut |_, value| _ = touch(value))?, keys)?;
    }
    run.note(row, super::per_second(3 * keys, start.elapsed()));
    Ok(())
}

fn seek(run: &mut Run<'_>, db: &dyn Contestant, row: &'static str, pairs: u64) -> Outcome<()> {
    if !run.wants(row) {
        return Ok(());
    }
    let keys = run.options.keys;
    run.measure(row, keys / pairs.min(20), |run, _| {
        let index = run.random.below(keys.saturating_sub(pairs) + 1);
        let mut expected = index;
        let count = db.scan(&key(index), pairs, &mut |_, value| {
            expected += u64::from(touch(value) == expected);
        })?;
        expect(row, count, pairs.min(keys))?;
        expect(row, expected, index + pairs.min(keys))
    })?;
    Ok(())
}
