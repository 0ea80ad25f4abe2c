//! gRPC frames: one byte of flags (0: not compressed), four bytes of length, big endian, and the message.

use bytes::{BufMut as _, BytesMut};

use super::{Read, Wrong};

/// Bytes of a frame before its message.
const FRAME_HEAD_BYTES: usize = 5;

/// Longer frames are taken for garbage: no answer is that long.
const FRAME_BYTES_MAX: usize = 64 << 20;

/// Writes a frame's head for a message of `bytes`.
pub(in crate::bench) fn write_frame_head(bytes: usize, out: &mut BytesMut) {
    out.reserve(FRAME_HEAD_BYTES + bytes);
    out.put_u8(0);
    out.put_u32(u32::try_from(bytes).expect("messages are bounded by the sizes of the arguments"));
}

/// Takes frames apart, however the network cuts them.
#[derive(Debug, Default)]
pub(in crate::bench) struct Frames {
    /// The beginning of a frame whose rest has not come.
    begun: BytesMut,
}

impl Frames {
    /// Hands every message that is whole with `chunk` to `each`, in order.
    pub(in crate::bench) fn feed(
        &mut self,
        chunk: &[u8],
        mut each: impl FnMut(&[u8]) -> Read<()>,
    ) -> Read<()> {
        if self.begun.is_empty() {
            let taken = take_frames(chunk, &mut each)?;
            if taken < chunk.len() {
                self.begun.extend_from_slice(&chunk[taken..]);
            }
            return Ok(());
        }
        self.begun.extend_from_slice(chunk);
        let taken = take_frames(&self.begun, &mut each)?;
        let _ = self.begun.split_to(taken);
        Ok(())
    }

    /// Whether all that came was whole.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.begun.is_empty()
    }
}

/// How many bytes of `bytes` are whole frames.
fn take_frames(bytes: &[u8], each: &mut impl FnMut(&[u8]) -> Read<()>) -> Read<usize> {
    let mut taken = 0;
    while let Some((head, rest)) = bytes[taken..].split_first_chunk::<FRAME_HEAD_BYTES>() {
        let [flags, length @ ..] = *head;
        if flags != 0 {
            return Err(Wrong("an answer is compressed although nobody asked for it"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(Wrong("an answer of more than 64 MiB"));
        }
        let Some(message) = rest.get(..length) else { break };
        each(message)?;
        taken += FRAME_HEAD_BYTES + length;
    }
    Ok(taken)
}
