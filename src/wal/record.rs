//! The record: how one looks in a segment, and how one is told from damage. Pure: bytes in, bytes out.
//!
//! A record begins at an offset that is a multiple of 8. All numbers are little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | checksum, see below |
//! | 4..8 | length of the body |
//! | 8..12 | number of the segment it was written into |
//! | 12..16 | synced_upto: when this was written, every byte of this segment below that offset, and every earlier segment, was on stable storage; 0: nothing is said |
//! | 16..24 | owner |
//! | 24 | kind |
//! | 25.. | body, then zeros to the next multiple of 8 |
//!
//! The checksum is `crc32c(bytes 4..25)` continued from `crc32c(body) ^ salt`, with the salt of the segment: bytes of
//! another segment, of an older log, or of a user's value that imitates a record, do not pass. The body comes first, so
//! that its part can be computed before the place and the salt are known, outside the lock. Thirty-two zero bytes are
//! no record, because no segment has the number 0.
//!
//! Worked example: the body `ab cd` of owner 7, kind 16, in segment 1 with the salt 0, nothing said about syncs:
//! `crc crc crc crc | 02 00 00 00 | 01 00 00 00 | 00 00 00 00 | 07 00 00 00 00 00 00 00 | 10 | ab cd | 00 00 00 00 00`.
//!
//! Kinds 0 to 15 belong to the log: [`KIND_BEGIN`] is the first record of every segment and ties it to the one before,
//! [`KIND_NEXT`] is the last of every segment that is followed by another and names that one, [`KIND_MARK`] is the last
//! word of a log that was closed. All others are the callers'.

use super::{Kind, Owner};
use crate::util::coding::Cursor;

/// Bytes of a record in front of its body.
pub(super) const RECORD_HEADER_BYTES: u32 = 25;

/// Records begin at multiples of this.
pub(super) const ALIGNMENT: u32 = 8;

/// Longest body of a record, in bytes: the largest batch an engine takes (128 MiB) and what it puts around it.
pub const BODY_BYTES_MAX: usize = (128 << 20) + (64 << 10);

/// First record of a segment; the body is a [`Begin`].
pub(super) const KIND_BEGIN: Kind = Kind(0);

/// No body: stands for the promise in its `synced_upto`.
pub(super) const KIND_MARK: Kind = Kind(1);

/// The body is the number of the segment that the log goes on in, four bytes. That one had its name before this was written.
pub(super) const KIND_NEXT: Kind = Kind(2);

/// Whose the log's own records are. They are never handed out, so that callers may use the number as well.
pub(super) const OWNER_LOG: Owner = Owner(u64::MAX);

/// Bytes of a [`KIND_MARK`] record. Every segment keeps that many free for the last word.
pub(super) const MARK_RECORD_BYTES: u32 = record_bytes(0);

const _: () =
    assert!(record_bytes(4) == MARK_RECORD_BYTES, "the last word may also be the next segment");

/// Bytes of a [`KIND_BEGIN`] record.
pub(super) const BEGIN_RECORD_BYTES: u32 = record_bytes(Begin::BODY_BYTES);

/// What a record with a body of this length takes in a segment. Bodies are at most [`BODY_BYTES_MAX`].
pub(super) const fn record_bytes(body_bytes: u32) -> u32 {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(ALIGNMENT)
}

/// The fields in front of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) body_bytes: u32,
    pub(super) segment: u32,
    pub(super) synced_upto: u32,
    pub(super) owner: Owner,
    pub(super) kind: Kind,
}

/// Bytes 0..25 of a record.
pub(super) type EncodedHeader = [u8; RECORD_HEADER_BYTES as usize];

impl RecordHeader {
    /// The bytes in front of the body whose `crc32c` is `body_crc`.
    pub(super) fn encode(&self, body_crc: u32, salt: u32) -> EncodedHeader {
        let mut bytes = [0; RECORD_HEADER_BYTES as usize];
        bytes[4..8].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.segment.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.synced_upto.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.owner.0.to_le_bytes());
        bytes[24] = self.kind.0;
        let checksum = crc32c::crc32c_append(body_crc ^ salt, &bytes[4..]);
        bytes[..4].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The checksum that the bytes claim, and the fields. `None`: too short.
    fn decode(bytes: &[u8]) -> Option<(u32, Self)> {
        let mut cursor = Cursor::new(bytes);
        let checksum = cursor.u32()?;
        let body_bytes = cursor.u32()?;
        let segment = cursor.u32()?;
        let synced_upto = cursor.u32()?;
        let owner = Owner(cursor.u64()?);
        let kind = Kind(cursor.u8()?);
        Some((checksum, Self { body_bytes, segment, synced_upto, owner, kind }))
    }

    /// The fields at the front of `bytes`, the record at `offset` of a segment with this number and size, if they can
    /// be those of a record at all. What they say is not proven before [`verify`].
    pub(super) fn plausible(
        bytes: &[u8],
        number: u32,
        offset: u32,
        segment_bytes: u32,
    ) -> Result<Self, String> {
        let Some((_, header)) = Self::decode(bytes) else {
            return Err("the file ends inside a record".to_owned());
        };
        if header.segment != number {
            return Err(format!("a record of segment {} in segment {number}", header.segment));
        }
        let room = u64::from(segment_bytes.saturating_sub(offset));
        let length = u64::from(header.body_bytes);
        let in_whole = (u64::from(RECORD_HEADER_BYTES) + length).next_multiple_of(8);
        if length > BODY_BYTES_MAX as u64 || in_whole > room {
            return Err(format!("a record of {length} bytes where {room} are left"));
        }
        if header.synced_upto > offset || !header.synced_upto.is_multiple_of(ALIGNMENT) {
            let upto = header.synced_upto;
            return Err(format!("a record that says it was synced up to offset {upto}"));
        }
        Ok(header)
    }

    /// Bytes of the whole record.
    pub(super) const fn record_bytes(&self) -> u32 {
        record_bytes(self.body_bytes)
    }
}

/// The body of a whole record, `bytes`, whose plausible header is `header`: `None` when checksum or padding are wrong.
pub(super) fn verify<'a>(bytes: &'a [u8], header: &RecordHeader, salt: u32) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES as usize)?;
    let (body, padding) = rest.split_at_checked(usize::try_from(header.body_bytes).ok()?)?;
    let sound = header.encode(crc32c::crc32c(body), salt) == head;
    (sound && padding.iter().all(|&byte| byte == 0)).then_some(body)
}

/// How a segment is tied to the one before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Begin {
    /// The segment before; 0: there was none.
    pub(super) previous: u32,
    /// Where its last record ends.
    pub(super) previous_end: u32,
    /// How much of it was on stable storage when this was written, as `synced_upto` has it.
    pub(super) previous_synced: u32,
}

impl Begin {
    const BODY_BYTES: u32 = 12;

    pub(super) fn encode(&self) -> [u8; Self::BODY_BYTES as usize] {
        let mut bytes = [0; Self::BODY_BYTES as usize];
        bytes[..4].copy_from_slice(&self.previous.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.previous_end.to_le_bytes());
        bytes[8..].copy_from_slice(&self.previous_synced.to_le_bytes());
        bytes
    }

    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(body);
        let (previous, previous_end) = (cursor.u32()?, cursor.u32()?);
        let previous_synced = cursor.u32()?;
        let sound = previous_synced <= previous_end && cursor.is_empty();
        sound.then_some(Self { previous, previous_end, previous_synced })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(header: &RecordHeader, body: &[u8], salt: u32) -> Vec<u8> {
        let mut bytes = header.encode(crc32c::crc32c(body), salt).to_vec();
        bytes.extend_from_slice(body);
        bytes.resize(header.record_bytes() as usize, 0);
        bytes
    }

    fn header_of(body: &[u8], segment: u32) -> RecordHeader {
        let body_bytes = u32::try_from(body.len()).expect("a short body");
        let (owner, kind) = (Owner(7), Kind(16));
        RecordHeader { body_bytes, segment, synced_upto: 0, owner, kind }
    }

    #[test]
    fn the_worked_example_of_the_format_is_what_is_written() {
        let body = [0xab, 0xcd];
        let bytes = encoded(&header_of(&body, 1), &body, 0);
        let mut expected = vec![2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 16];
        expected.extend([0xab, 0xcd, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[4..], expected);
        assert_eq!(bytes.len(), 32);
    }

    #[test]
    fn zeros_are_no_record() {
        assert!(RecordHeader::plausible(&[0; 32], 1, 32, 4096).is_err());
    }

    proptest! {
        #[test]
        fn every_record_reads_back(
            body in proptest::collection::vec(any::<u8>(), 0..200),
            segment in 1..u32::MAX, words in 0u32..100, owner: u64, kind: u8, salt: u32,
        ) {
            let mut header = header_of(&body, segment);
            header.synced_upto = words * ALIGNMENT;
            (header.owner, header.kind) = (Owner(owner), Kind(kind));
            let bytes = encoded(&header, &body, salt);
            let read = RecordHeader::plausible(&bytes, segment, 4096, 8192).expect("plausible");
            prop_assert_eq!(read, header);
            prop_assert_eq!(verify(&bytes, &read, salt), Some(body.as_slice()));
            prop_assert_eq!(verify(&bytes, &read, salt ^ 1), None);
        }

        #[test]
        fn every_flipped_bit_is_found(
            body in proptest::collection::vec(any::<u8>(), 0..40), salt: u32, at: prop::sample::Index, bit in 0u8..8,
        ) {
            let mut bytes = encoded(&header_of(&body, 3), &body, salt);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let found = RecordHeader::plausible(&bytes, 3, 64, 4096)
                .is_ok_and(|header| verify(&bytes, &header, salt).is_some());
            prop_assert!(!found);
        }

        #[test]
        fn any_bytes_are_judged_without_panic(bytes: Vec<u8>, offset: u32, size: u32) {
            if let Ok(header) = RecordHeader::plausible(&bytes, 1, offset, size) {
                let _ = verify(&bytes, &header, 0);
            }
            let _ = Begin::decode(&bytes);
        }
    }
}
