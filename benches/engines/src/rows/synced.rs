//! Writes that are on stable storage when they return, with ever more callers.

use std::time::Instant;

use super::{Row, Run, Stage, Unit, per_second};
use crate::contestants::{Class, Outcome};
use crate::keys::{Random, key};

const fn synced(name: &'static str) -> Row {
    Row { name, class: Some(Class::Synced), unit: Unit::Rate }
}

pub const STAGE: Stage = Stage {
    rows: &[synced("synced-1"), synced("synced-4"), synced("synced-16"), synced("synced-64")],
    run: writers,
};

fn writers(run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    for (row, writers) in [("synced-1", 1), ("synced-4", 4), ("synced-16", 16), ("synced-64", 64)] {
        if !run.wants(row) {
            continue;
        }
        let (start, seconds) = (Instant::now(), run.options.synced_seconds);
        let written = std::thread::scope(|scope| -> Outcome<u64> {
            let threads: Vec<_> = (0..writers)
                .map(|_| {
                    let mut random = Random::new(run.random.next());
                    let mut values = run.values.clone();
                    let (db, keys) = (&*db, run.options.keys);
                    scope.spawn(move || -> Outcome<u64> {
                        let mut written = 0;
                        while start.elapsed() < seconds {
                            let index = random.below(keys);
                            db.put(&key(index), values.next(index, 100), Class::Synced)?;
                            written += 1;
                        }
                        Ok(written)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| "a writer panicked")?).sum()
        })?;
        run.note(row, per_second(written, start.elapsed()));
    }
    Ok(())
}
