//! A range of which nine tenths were deleted just now: what its tombstones cost those who read across them.

use std::time::Instant;

use super::{Run, Stage, expect, per_second, rate, reads};
use crate::contestants::{Class, Outcome};
use crate::keys::{key, touch};

pub const STAGE: Stage = Stage {
    rows: &[
        rate("delete"),
        reads("scan-deleted"),
        reads("seek-deleted"),
        reads("scan-deleted-settled"),
    ],
    run: deletes,
};

/// At a tree at rest with all keys: those from 5 to 95 % are deleted one by one.
fn deletes(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let keys = run.options.keys;
    let order = run.random.permutation(keys);
    run.prepare(&*db, &order, 100)?;
    db.settle()?;
    let (from, to) = (keys / 20, keys - keys / 20);
    let start = Instant::now();
    for index in from..to {
        db.delete(&key(index), Class::PageCache)?;
    }
    run.note("delete", per_second(to - from, start.elapsed()));
    let left = keys - (to - from);
    let scan = |run: &mut Run<'_>, row: &'static str| -> Outcome<()> {
        let start = Instant::now();
        for _ in 0..3 {
            expect(row, db.scan(&[], keys, &mut |_, value| _ = touch(value))?, left)?;
        }
        run.note(row, per_second(3 * left, start.elapsed()));
        Ok(())
    };
    scan(run, "scan-deleted")?;
    run.measure("seek-deleted", 2_000, |run, _| {
        let index = from + run.random.below(to - from);
        let mut found = 0;
        db.scan(&key(index), 1, &mut |_, value| found = touch(value))?;
        expect("seek-deleted", found, to)
    })?;
    if run.wants("scan-deleted-settled") {
        db.settle()?;
        scan(run, "scan-deleted-settled")?;
    }
    Ok(())
}
