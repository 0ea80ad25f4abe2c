//! Larger values, as many as make the same bytes.

use super::{Run, Stage, expect, rate, reads};
use crate::contestants::Outcome;
use crate::keys::{key, touch};

/// Values of 1 KiB.
pub const LARGE: Stage = Stage {
    rows: &[rate("fillrandom-1k"), reads("readrandom-1k")],
    run: |run| sized(run, "fillrandom-1k", "readrandom-1k", 1 << 10),
};

/// Values of 16 KiB.
pub const HUGE: Stage = Stage {
    rows: &[rate("fillrandom-16k"), reads("readrandom-16k")],
    run: |run| sized(run, "fillrandom-16k", "readrandom-16k", 16 << 10),
};

fn sized(
    run: &mut Run<'_>,
    fill: &'static str,
    read: &'static str,
    value_bytes: usize,
) -> Outcome<()> {
    let db = run.open()?;
    let keys = (run.options.keys * 116 / (value_bytes as u64 + 16)).max(1);
    let order = run.random.permutation(keys);
    run.fill(&*db, fill, &order, value_bytes)?;
    if !run.wants(read) {
        return Ok(());
    }
    db.settle()?;
    for index in order {
        db.get(&key(index), &mut |value| _ = touch(value))?;
    }
    run.measure(read, run.options.keys / 4, |run, _| {
        let index = run.random.below(keys);
        let mut found = u64::MAX;
        db.get(&key(index), &mut |value| found = touch(value))?;
        expect(read, found, index)
    })?;
    Ok(())
}
