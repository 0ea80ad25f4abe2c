//! The log in memory: what was appended, written and synced, the buffer between, and the segments there are. Appending,
//! reading, releasing; the way to the disk is in `commit.rs` and `files.rs`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::callbacks::Callbacks;
use super::commit::{Turn, Turnstile};
use super::error::{Error, Result};
use super::owners::Owners;
use super::record::{
    ALIGNMENT, BEGIN_RECORD_BYTES, BODY_BYTES_MAX, Begin, KIND_BEGIN, KIND_MARK, KIND_NEXT,
    MARK_RECORD_BYTES, OWNER_LOG, RECORD_HEADER_BYTES, RecordHeader, record_bytes,
};
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::status::{Counts, Status};
use super::sync::{Condvar, Mutex};
use super::{Kind, Level, Options, Owner, Position, Record};
use crate::util::fs::FileSystem;

/// Bodies from here on are copied outside the lock, into a chunk of their own.
const OWN_CHUNK_BYTES_MIN: usize = 256 << 10;

/// Buffers are kept for reuse up to this capacity, and so many of them.
const SPARE_BYTES_MAX: usize = 4 << 20;
const SPARES_MAX: usize = 2;

/// What all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    pub(super) options: Options,
    /// Held while segments are made or removed. Before `state`.
    pub(super) files: Mutex<()>,
    pub(super) state: Mutex<State>,
    /// Who waits for a write or for a sync of others.
    pub(super) writes: Turnstile,
    pub(super) syncs: Turnstile,
    /// For `wal-callbacks`: there may be something to do.
    pub(super) callbacks_due: Condvar,
    /// For those who wait to register one: some were called.
    pub(super) callbacks_called: Condvar,
    /// For `wal-files`: there may be something to do.
    pub(super) files_due: Condvar,
}

/// Guarded by [`Shared::state`].
///
/// Invariants: `synced <= written <= end`; the buffer holds `written..end`, or what of it is not being written right
/// now; the active segment and the one before it, while the log writes, are in `segments`.
#[derive(Debug)]
pub(super) struct State {
    /// `None`: no segment yet, or no room for one since the opening.
    pub(super) active: Option<Active>,
    /// The next segment, made but empty.
    pub(super) ready: Option<Arc<Segment>>,
    /// Number of the next segment that is made.
    pub(super) next_number: u32,
    /// What the first record of the next segment says, while there is no active one.
    pub(super) link: Begin,
    /// All with records.
    pub(super) segments: BTreeMap<u32, Arc<Segment>>,
    pub(super) owners: Owners,

    /// Where the next record goes.
    pub(super) end: Position,
    /// The last record; before all if there is none.
    pub(super) last: Position,
    pub(super) written: Position,
    pub(super) synced: Position,

    /// What waits to be written, in order.
    pub(super) chunks: Vec<Chunk>,
    /// Bytes of chunks that wait or are being written.
    pub(super) chunk_bytes: usize,
    pub(super) spares: Vec<Vec<u8>>,
    /// Written into since they were last synced, in order.
    pub(super) dirty: Vec<Arc<Segment>>,

    pub(super) writing: Turn,
    pub(super) syncing: Turn,
    /// Commits and callbacks that the next sync serves.
    pub(super) sync_requests: u64,
    /// The segment that took records when a sync was last asked for.
    pub(super) sync_asked: Option<u32>,
    /// How many were served by the last sync or waited at its end, and how long it took.
    pub(super) peers: u64,
    pub(super) last_sync: Duration,
    pub(super) callbacks: Callbacks,

    pub(super) poison: Option<Error>,
    pub(super) removal: Option<Error>,
    /// The log's threads shall end.
    pub(super) stopping: bool,
    /// There is something for `wal-files` to do.
    pub(super) files_work: bool,
    pub(super) counts: Counts,
}

/// The segment that takes records.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    /// Where the segment before ends.
    pub(super) previous_end: Position,
}

/// Records that follow each other in one segment.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) segment: Arc<Segment>,
    pub(super) start: u32,
    pub(super) bytes: Vec<u8>,
}

/// A body on its way into the buffer.
struct Body<'a> {
    parts: &'a [&'a [u8]],
    bytes: u32,
    crc: u32,
    /// The whole record with room for its header; for long ones.
    copy: Option<Vec<u8>>,
}

impl<'a> Body<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Result<Self> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let bytes = u32::try_from(length).ok().filter(|_| length <= BODY_BYTES_MAX);
        let Some(bytes) = bytes else {
            return Err(Error::Invalid(format!(
                "a record of {length} bytes; at most {BODY_BYTES_MAX} are allowed"
            )));
        };
        let crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        let mut body = Self { parts, bytes, crc, copy: None };
        if length >= OWN_CHUNK_BYTES_MIN {
            let mut copy = Vec::with_capacity(record_bytes(bytes) as usize);
            copy.resize(RECORD_HEADER_BYTES as usize, 0);
            body.copy_to(&mut copy);
            body.copy = Some(copy);
        }
        Ok(body)
    }

    /// Appends body and padding.
    fn copy_to(&self, buffer: &mut Vec<u8>) {
        for part in self.parts {
            buffer.extend_from_slice(part);
        }
        let padding = record_bytes(self.bytes) - RECORD_HEADER_BYTES - self.bytes;
        buffer.resize(buffer.len() + padding as usize, 0);
    }
}

impl Shared {
    pub(super) fn append(&self, owner: Owner, kind: Kind, parts: &[&[u8]]) -> Result<Position> {
        if kind < Kind::FIRST {
            let (kind, first) = (kind.0, Kind::FIRST.0);
            return Err(Error::Invalid(format!(
                "kind {kind} of a record: those below {first} are the log's"
            )));
        }
        let body = Body::new(parts)?;
        let bytes = record_bytes(body.bytes);
        let mut state = self.state.lock();
        loop {
            state.check_alive()?;
            if !state.buffer_takes(bytes, self.options.buffer_bytes_max) {
                state.counts.buffer_full += 1;
                let last = state.last;
                self.write_through(&mut state, last)?;
            } else if state.active_takes(bytes) {
                break;
            } else if state.roll(bytes) {
                state.files_work = true;
                self.files_due.notify_one();
            } else {
                state = self.make_segment(state, bytes)?;
                state.counts.segments_late += 1;
            }
        }
        let position = state.push(owner, kind, body);
        state.owners.appended(owner, position);
        state.counts.records += 1;
        state.counts.record_bytes += u64::from(bytes);
        Ok(position)
    }

    pub(super) fn read(&self, position: Position) -> Result<Record> {
        let mut state = self.state.lock();
        let missing = |state: &State| {
            let oldest = state.segments.keys().next().copied().unwrap_or_default();
            let end = state.end;
            Error::Invalid(format!(
                "position {position} is not in the log, which has segment {oldest} to position {end}"
            ))
        };
        let aligned = position.offset.is_multiple_of(ALIGNMENT);
        if position >= state.end || !aligned || position.offset < SEGMENT_HEADER_BYTES {
            return Err(missing(&state));
        }
        self.write_through(&mut state, position)?;
        let segment = state.segments.get(&position.segment).cloned();
        let segment = segment.ok_or_else(|| missing(&state))?;
        drop(state);
        let (header, body) = segment.read(position.offset)?;
        Ok(Record { owner: header.owner, kind: header.kind, body })
    }

    pub(super) fn release(&self, owner: Owner, position: Position) {
        let mut state = self.state.lock();
        state.owners.release(owner, position);
        self.after_release(&mut state);
    }

    pub(super) fn release_all(&self, owner: Owner) {
        let mut state = self.state.lock();
        state.owners.release_all(owner);
        self.after_release(&mut state);
    }

    fn after_release(&self, state: &mut State) {
        if state.removable().is_some() {
            state.files_work = true;
            self.files_due.notify_one();
        }
    }

    pub(super) fn status(&self) -> Status {
        let state = self.state.lock();
        let segments = state.segments.values().chain(&state.ready);
        Status {
            segments: state.segments.len(),
            disk_bytes: segments.map(|segment| u64::from(segment.bytes)).sum(),
            buffer_bytes: state.chunk_bytes,
            callbacks: state.callbacks.len(),
            end: state.end,
            written: state.written,
            synced: state.synced,
            oldest: state.owners.oldest(),
            counts: state.counts,
            poison: state.poison.clone(),
            removal: state.removal.clone(),
        }
    }
}

impl State {
    pub(super) fn check_alive(&self) -> Result<()> {
        self.poison.clone().map_or(Ok(()), Err)
    }

    /// The first position that has not reached `level`.
    pub(super) fn reached(&self, level: Level) -> Position {
        match level {
            Level::Buffered => self.written,
            Level::Sync => self.synced,
        }
    }

    /// The oldest segment, if nobody needs it.
    pub(super) fn removable(&self) -> Option<Arc<Segment>> {
        let (&number, segment) = self.segments.first_key_value()?;
        // The last one stays: the next begins with where it ends.
        let newest = *self.segments.keys().next_back()?;
        let needed = self.owners.oldest().map_or(newest, |pin| pin.position.segment);
        (number < needed.min(newest)).then(|| Arc::clone(segment))
    }

    fn buffer_takes(&self, bytes: u32, bytes_max: usize) -> bool {
        self.chunk_bytes == 0 || self.chunk_bytes + bytes as usize <= bytes_max
    }

    fn active_takes(&self, bytes: u32) -> bool {
        let room = |active: &Active| active.segment.bytes.saturating_sub(self.end.offset);
        self.active.as_ref().is_some_and(|active| room(active) >= bytes + MARK_RECORD_BYTES)
    }

    /// Goes on to the segment that is ready, if there is one that takes a record of `bytes`.
    pub(super) fn roll(&mut self, bytes: u32) -> bool {
        let takes = |segment: &mut Arc<Segment>| segment.bytes >= segment_bytes_for(bytes);
        let Some(segment) = self.ready.take_if(takes) else { return false };
        if self.active.is_some() {
            // In the room for the last word, so that it is noticed when what follows is missing.
            let next = segment.number.to_le_bytes();
            let body = Body::new(&[&next]).map(|body| self.push(OWNER_LOG, KIND_NEXT, body));
            body.expect("four bytes are no long record");
        }
        let begin = self.active.take().map_or(self.link, |active| Begin {
            previous: active.segment.number,
            previous_end: self.end.offset,
            previous_synced: self.synced_upto(&active),
        });
        self.segments.insert(segment.number, Arc::clone(&segment));
        self.end = Position::new(segment.number, SEGMENT_HEADER_BYTES);
        let previous_end = Position::new(begin.previous, begin.previous_end);
        self.active = Some(Active { segment, previous_end });
        let begin = begin.encode();
        let body = Body::new(&[&begin]).map(|body| self.push(OWNER_LOG, KIND_BEGIN, body));
        body.expect("twelve bytes are no long record");
        true
    }

    /// Takes the room that every segment keeps for the last word; the log is closed after it.
    pub(super) fn push_mark(&mut self) {
        if self.active.is_some() {
            let body = Body::new(&[]).map(|body| self.push(OWNER_LOG, KIND_MARK, body));
            body.expect("an empty body is no long record");
        }
    }

    /// What a record written now into `active` may promise.
    fn synced_upto(&self, active: &Active) -> u32 {
        if self.synced.segment == active.segment.number {
            self.synced.offset
        } else if self.synced >= active.previous_end {
            SEGMENT_HEADER_BYTES
        } else {
            0
        }
    }

    /// Puts a record into the buffer, at `end` of the active segment, which has room for it.
    fn push(&mut self, owner: Owner, kind: Kind, body: Body<'_>) -> Position {
        let active = self.active.as_ref().expect("whoever pushes has made sure of a segment");
        let segment = Arc::clone(&active.segment);
        let header = RecordHeader {
            body_bytes: body.bytes,
            segment: segment.number,
            synced_upto: self.synced_upto(active),
            owner,
            kind,
        };
        let bytes = header.record_bytes();
        let position = self.end;
        assert!(
            position.segment == segment.number && position.offset + bytes <= segment.bytes,
            "{bytes} bytes at {position} of segment {}, which has {}",
            segment.number,
            segment.bytes
        );
        let header = header.encode(body.crc, segment.salt);
        self.buffer(segment, &header, body);
        self.chunk_bytes += bytes as usize;
        self.end.offset += bytes;
        self.last = position;
        position
    }

    fn buffer(&mut self, segment: Arc<Segment>, header: &[u8], body: Body<'_>) {
        let start = self.end.offset;
        if let Some(mut bytes) = body.copy {
            bytes[..header.len()].copy_from_slice(header);
            self.chunks.push(Chunk { segment, start, bytes });
            return;
        }
        let open = |chunk: &Chunk| {
            chunk.segment.number == segment.number && chunk.bytes.len() < SPARE_BYTES_MAX
        };
        if !self.chunks.last().is_some_and(open) {
            let bytes = self.spares.pop().unwrap_or_default();
            self.chunks.push(Chunk { segment, start, bytes });
        }
        let bytes = &mut self.chunks.last_mut().expect("there is one now").bytes;
        bytes.extend_from_slice(header);
        body.copy_to(bytes);
    }

    /// Takes back what was written.
    pub(super) fn recycle(&mut self, chunks: Vec<Chunk>) {
        for Chunk { segment, mut bytes, .. } in chunks {
            self.chunk_bytes -= bytes.len();
            if self.dirty.last().is_none_or(|last| last.number != segment.number) {
                self.dirty.push(segment);
            }
            if self.spares.len() < SPARES_MAX && bytes.capacity() <= 2 * SPARE_BYTES_MAX {
                bytes.clear();
                self.spares.push(bytes);
            }
        }
    }
}

/// The smallest segment that takes a record of `bytes`.
pub(super) const fn segment_bytes_for(bytes: u32) -> u32 {
    SEGMENT_HEADER_BYTES + BEGIN_RECORD_BYTES + bytes + MARK_RECORD_BYTES
}
