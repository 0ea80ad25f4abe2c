//! The range deletions of a memtable: added one by one, asked by readers without a lock.
//!
//! They are kept in **runs**, each cut into fragments like those of a table, each at least twice as long as the next.
//! A new one is a run of one, which swallows the runs that are not longer: so a reader asks a few runs, and each
//! deletion is cut into fragments a few times, whatever their number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use crate::storage::Seqno;
use crate::storage::lsm::table::RangeDeletions;

/// One deletion: start, end, seqno.
pub(in crate::storage::lsm) type Deletion = (Vec<u8>, Vec<u8>, Seqno);

/// Some deletions, and what they cover.
#[derive(Debug)]
pub(in crate::storage::lsm) struct Run {
    pub(in crate::storage::lsm) deletions: Vec<Deletion>,
    pub(in crate::storage::lsm) fragments: RangeDeletions,
}

/// The runs at one moment.
pub(in crate::storage::lsm) type Runs = Arc<Vec<Arc<Run>>>;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Deletions {
    /// Spares readers the runs as long as there are none.
    any: AtomicBool,
    runs: ArcSwap<Vec<Arc<Run>>>,
}

impl Deletions {
    pub(super) fn new() -> Self {
        Self { any: AtomicBool::new(false), runs: ArcSwap::default() }
    }

    /// Adds the deletion of all keys from `start` to before `end`. One writer at a time.
    pub(super) fn add(&self, start: &[u8], end: &[u8], seqno: Seqno) {
        let mut runs = Vec::clone(&self.runs.load());
        let mut deletions = vec![(start.to_vec(), end.to_vec(), seqno)];
        while let Some(run) = runs.pop_if(|run| run.deletions.len() <= deletions.len()) {
            deletions.extend(run.deletions.iter().cloned());
        }
        let fragments = RangeDeletions::fragment(&deletions);
        runs.push(Arc::new(Run { deletions, fragments }));
        self.runs.store(Arc::new(runs));
        // Published with the batch.
        self.any.store(true, Ordering::Relaxed);
    }

    /// The newest deletion that covers `key` and that a read at `at` sees.
    #[inline]
    pub(super) fn newest_covering(&self, key: &[u8], at: Seqno) -> Option<Seqno> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let runs = self.runs.load();
        runs.iter().filter_map(|run| run.fragments.newest_covering(key, at)).max()
    }

    /// The runs now.
    pub(super) fn runs(&self) -> Runs {
        self.runs.load_full()
    }

    /// Memory that they take.
    pub(super) fn bytes(&self) -> usize {
        let run = |run: &Arc<Run>| {
            let deletions =
                run.deletions.iter().map(|(start, end, _)| start.len() + end.len() + 64);
            deletions.sum::<usize>() + run.fragments.memory_bytes()
        };
        self.runs.load().iter().map(run).sum()
    }
}
