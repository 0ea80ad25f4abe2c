//! Torn tail or damage? The judgement on the place where replay finds no further record.
//!
//! After a power loss the unsynced end of a log may be torn, have holes, or be missing, and records beyond it may have
//! survived. None of that was acknowledged as durable, and all of it is cut. But when *anything* beyond the place was
//! written after a sync had covered it, the place was whole once, and something acknowledged is damaged. Every record
//! says how far the log was synced when it was written, so: look at everything beyond, in steps of 8 bytes, in this
//! segment and the later ones, for a sound record that vouches for more than what is left.
//!
//! What users wrote cannot imitate a sound record, because they do not know the salt. It could make the search slow,
//! with bytes that look like the headers of long records; the search is limited and refuses then.

use super::Position;
use super::error::{Error, Result};
use super::record::{ALIGNMENT, Begin, KIND_BEGIN, RECORD_HEADER_BYTES, RecordHeader};
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::window::Window;

/// Most bytes of candidates whose checksums are computed in one search: a second or so. Small in tests, to be reached.
const CHECKED_BYTES_MAX: u64 = if cfg!(test) { 1 << 20 } else { 4 << 30 };

/// Where replay ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) position: Position,
    /// Why there is no record.
    pub(super) reason: String,
}

/// `Ok` when nothing at or beyond `stop` was ever promised. `segments` are the one of `stop` and all later ones.
pub(super) fn judge(segments: &[&Segment], stop: &Stop) -> Result<()> {
    let mut search = Search { stop, checked_bytes: 0 };
    for &segment in segments {
        let from = if segment.number == stop.position.segment {
            stop.position.offset + ALIGNMENT
        } else {
            SEGMENT_HEADER_BYTES
        };
        let voucher = search.voucher(segment, from).map_err(|error| match error {
            Searched::Failed(error) => error,
            Searched::TooLong => search.refuse(
                segments,
                "whether it is a torn tail or damage cannot be told from what follows",
            ),
        })?;
        if let Some(voucher) = voucher {
            let file = segment.path.display();
            let detail = format!(
                "the record at offset {voucher} of {file} was written after this place had been synced"
            );
            return Err(search.refuse(segments, &detail));
        }
    }
    Ok(())
}

/// What a sound record says was on stable storage when it was written.
pub(super) fn promise(header: &RecordHeader, body: &[u8]) -> Position {
    let own = match header.synced_upto {
        0 => Position::BEGINNING,
        upto => Position::new(header.segment, upto),
    };
    let begin = (header.kind == KIND_BEGIN).then(|| Begin::decode(body)).flatten();
    let before = begin.filter(|begin| begin.previous_synced > 0);
    own.max(
        before.map_or(Position::BEGINNING, |begin| {
            Position::new(begin.previous, begin.previous_synced)
        }),
    )
}

struct Search<'a> {
    stop: &'a Stop,
    checked_bytes: u64,
}

enum Searched {
    Failed(Error),
    TooLong,
}

impl From<Error> for Searched {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Search<'_> {
    /// Where in `segment`, from `from` on, a record vouches for more than the stop.
    fn voucher(&mut self, segment: &Segment, from: u32) -> Result<Option<u32>, Searched> {
        let mut window = Window::new(segment);
        let mut offset = from;
        loop {
            let head = window.bytes(offset, RECORD_HEADER_BYTES)?;
            if head.len() < RECORD_HEADER_BYTES as usize {
                return Ok(None);
            }
            let mut step = ALIGNMENT;
            // Most places fail here already.
            if head[8..12] == segment.number.to_le_bytes()
                && let Ok((header, body)) = self.candidate(&mut window, segment, offset)?
            {
                if promise(&header, body) > self.stop.position {
                    return Ok(Some(offset));
                }
                step = header.record_bytes();
            }
            offset = offset.saturating_add(step);
        }
    }

    fn candidate<'w>(
        &mut self,
        window: &'w mut Window<'_>,
        segment: &Segment,
        offset: u32,
    ) -> Result<Result<(RecordHeader, &'w [u8]), String>, Searched> {
        let head = window.bytes(offset, RECORD_HEADER_BYTES)?;
        let header = RecordHeader::plausible(head, segment.number, offset, segment.bytes);
        self.checked_bytes += header.map_or(0, |header| u64::from(header.record_bytes()));
        if self.checked_bytes > CHECKED_BYTES_MAX {
            return Err(Searched::TooLong);
        }
        Ok(window.record(offset)?)
    }

    fn refuse(&self, segments: &[&Segment], detail: &str) -> Error {
        let Stop { position, reason } = self.stop;
        let here = segments.iter().find(|segment| segment.number == position.segment);
        let file = here.map_or(std::path::Path::new(""), |segment| segment.path.as_path());
        Error::corruption(file, position.offset, format!("{reason}; {detail}"))
    }
}
