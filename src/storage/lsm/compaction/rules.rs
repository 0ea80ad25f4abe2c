//! What a compaction may drop.

use crate::storage::Seqno;
use crate::util::time::Timestamp;

/// A place from which somebody reads: an open view, or the present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The newest write it sees.
    pub(crate) seqno: Seqno,
    /// Its clock.
    pub(crate) clock: Timestamp,
}

/// All moments that somebody reads from or will read from: those of the open views, and the present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readers {
    /// From the oldest to the newest; the last one is the present.
    moments: Vec<Moment>,
}

impl Readers {
    /// `views` in any order; `clock` is that of what is flushed (see `Flushed::clock`).
    pub(crate) fn new(_views: &[Moment], _clock: Timestamp) -> Self {
        Self { moments: Vec::new() }
    }
}
