//! Writes, one by one and in batches, and what they cost in bytes.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Instant;

use super::{Run, Stage, Unit, cost, per_second, rate};
use crate::contestants::Outcome;

const VALUE_BYTES: usize = 100;
const PAIR_BYTES: u64 = 16 + VALUE_BYTES as u64;
const BATCH_PAIRS: usize = 100;

/// Keys in their order.
pub const SEQUENTIAL: Stage = Stage { rows: &[rate("fillseq")], run: sequential };

/// Each key once in random order, then three times again.
pub const RANDOM: Stage = Stage {
    rows: &[
        rate("fillrandom"),
        rate("overwrite"),
        rate("fill-to-settled"),
        cost("write-amplification", Unit::Times),
        cost("space-amplification", Unit::Times),
    ],
    run: random,
};

/// Each key once in random order, 100 to a batch.

pub const BATCH: Stage = Stage { rows: &[rate("fillbatch")], run: batch };

fn sequential(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let order: Vec<u64> = (0..run.options.keys).collect();
    run.fill(&*db, "fillseq", &order, VALUE_BYTES)
}

fn random(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let keys = run.options.keys;
    let (start, written) = (Instant::now(), written_bytes()?);
    for row in ["fillrandom", "overwrite", "overwrite", "overwrite"] {
        if row == "overwrite" && !RANDOM.rows[1..].iter().any(|row| run.wants(row.name)) {
            return Ok(());
        }
        let order = run.random.permutation(keys);
        run.fill(&*db, row, &order, VALUE_BYTES)?;
    }
    db.settle()?;
    run.note("fill-to-settled", per_second(4 * keys, start.elapsed()));
    let user_bytes = (keys * PAIR_BYTES) as f64;
    let written = written_bytes()? - written;
    run.note("write-amplification", written as f64 / (4.0 * user_bytes));
    run.note("space-amplification", disk_bytes(run.directory())? as f64 / user_bytes);
    Ok(())
}

fn batch(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let order = run.random.permutation(run.options.keys);
    let start = Instant::now();
    let mut done = 0;
    for indexes in order.chunks(BATCH_PAIRS) {
        run.prepare(&*db, indexes, VALUE_BYTES)?;
        done += indexes.len() as u64;
        if start.elapsed() > run.options.row_seconds {
            break;
        }
    }
    run.note("fillbatch", per_second(done, start.elapsed()));
    Ok(())
}

/// Bytes that this process has handed to `write` and its like (`wchar`; none of the engines writes through a mapping).
fn written_bytes() -> Outcome<u64> {
    let counters = std::fs::read_to_string("/proc/self/io")?;
    let line = counters.lines().find_map(|line| line.strip_prefix("wchar: "));
    Ok(line.ok_or("/proc/self/io has no wchar")?.parse()?)
}

/// Bytes that the files of a directory take on the disk, preallocated ones included.
fn disk_bytes(directory: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes +=
            if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
