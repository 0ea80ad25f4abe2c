//! Frames that travel in one message: what waited together shares one write, whichever group it is of.

use crate::proto::raft::Frame;

/// Most frames of a batch.
const FRAMES_MAX: usize = 1_024;

/// Size from which on a batch is full. One frame is never split.
const BATCH_BYTES_FULL: usize = 1 << 20;

/// What a frame costs beside its message, on the wire and in memory.
pub(super) const FRAME_OVERHEAD_BYTES: usize = 64;

/// Frames that go together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    frames: Vec<Frame>,
    bytes: usize,
}

impl Batch {
    /// Whether another frame may be added.
    pub(super) const fn has_room(&self) -> bool {
        self.frames.len() < FRAMES_MAX && self.bytes < BATCH_BYTES_FULL
    }

    /// Whether a message of `bytes` may be added: a large one goes by itself.
    pub(super) const fn has_room_for(&self, bytes: usize) -> bool {
        self.frames.is_empty() || (self.has_room() && self.bytes + bytes <= BATCH_BYTES_FULL)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Bytes of the messages and what is around them.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn into_frames(self) -> Vec<Frame> {
        self.frames
    }
}

impl Extend<Frame> for Batch {
    fn extend<I: IntoIterator<Item = Frame>>(&mut self, frames: I) {
        for frame in frames {
            self.bytes += frame.message.len() + FRAME_OVERHEAD_BYTES;
            self.frames.push(frame);
        }
    }
}
