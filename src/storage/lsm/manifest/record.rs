//! The file: a header, then records. Pure: bytes in, bytes out. All numbers are little-endian.
//!
//! | header, bytes | what |
//! |---|---|
//! | 0..8 | magic, `kvs-lsmm` |
//! | 8..12 | version of the format, 1 |
//! | 12..14 | which engine it belongs to, the low 16 bits of its number; 0: not said |
//! | 14..16 | size of the file when it was made, in 64 KiB; 0: not said |
//! | 16..24 | number of the file |
//! | 24..32 | where the snapshot ends: records below were on stable storage before the file came into use |
//! | 32..40 | xxh3-64 of bytes 0..32 |
//!
//! A record begins at a multiple of 8:
//!
//! | record, bytes | what |
//! |---|---|
//! | 0..8 | xxh3-64 of the rest, seeded with the number of the file and the offset of the record |
//! | 8..12 | length of the body |
//! | 12.. | body (an edit), then zeros to the next multiple of 8 |
//!
//! A record without a body is a **mark**: everything before it is on stable storage. One follows every edit, is written
//! after the sync of that edit and not synced itself. So it costs little, and tells damage from a torn tail:
//!
//! * Below the end of the snapshot, or below a mark, a record that does not read is **damage**.
//! * Otherwise it is the edit, or the mark, that was being written when the power went: the **torn tail**.
//!
//! The file is never shorter than it was made, nor than what its records fill of the space that is reserved in steps of 64
//! KiB: a file that is was cut, and may have lost edits that nothing vouches for any more.
//!
//! The seed keeps bytes of other manifests, and of keys that look like a record, from passing for one. Zeros are no
//! record: space is reserved ahead, and reads as zeros.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::storage::lsm::files::FileNumber;
use crate::util::coding::Cursor;

/// Bytes of the header of a file.
pub(super) const HEADER_BYTES: usize = 40;

/// Bytes of a record in front of its body.
const RECORD_HEADER_BYTES: usize = 12;

/// Records begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Space is reserved in steps of this.
pub(super) const RESERVE_BYTES: u64 = 64 << 10;

/// Bytes of a mark.
pub(super) const MARK_BYTES: usize = record_bytes(0);

const MAGIC: [u8; 8] = *b"kvs-lsmm";
const FORMAT_VERSION: u32 = 1;

/// Damage: where, and what is wrong there.
pub(super) type Damage = (usize, String);

/// What a record with a body of this length takes.
const fn record_bytes(body: usize) -> usize {
    (RECORD_HEADER_BYTES + body).next_multiple_of(ALIGNMENT)
}

/// What a header says, beside the number of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The low bits of the engine's number.
    pub(super) engine: u16,
    /// Size when it was made, in steps of [`RESERVE_BYTES`].
    pub(super) made_steps: u16,
    /// Where the snapshot ends.
    pub(super) snapshot_end: u64,
}

/// The header of the file `number`.
pub(super) fn encode_header(number: FileNumber, header: Header) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[12..14].copy_from_slice(&header.engine.to_le_bytes());
    bytes[14..16].copy_from_slice(&header.made_steps.to_le_bytes());
    bytes[16..24].copy_from_slice(&number.0.to_le_bytes());
    bytes[24..32].copy_from_slice(&header.snapshot_end.to_le_bytes());
    let checksum = xxh3_64(&bytes[..32]);
    bytes[32..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Checks the header of the file `number`.
fn decode_header(bytes: &[u8], number: FileNumber) -> Result<Header, Damage> {
    let cut = || (bytes.len(), "the header is cut".to_owned());
    let bytes = bytes.first_chunk::<HEADER_BYTES>().ok_or_else(cut)?;
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.bytes(8);
    let version = cursor.u32().ok_or_else(cut)?;
    if magic != Some(&MAGIC) {
        return Err((0, "this is not a manifest".to_owned()));
    }
    // Before the checksum: a later version may compute it in another way.
    if version != FORMAT_VERSION {
        let read = FORMAT_VERSION;
        return Err((8, format!("manifest format version {version}, this program reads {read}")));
    }
    let made = cursor.u32().ok_or_else(cut)?.to_le_bytes();
    cursor.u64().ok_or_else(cut)?;
    let header = Header {
        engine: u16::from_le_bytes([made[0], made[1]]),
        made_steps: u16::from_le_bytes([made[2], made[3]]),
        snapshot_end: cursor.u64().ok_or_else(cut)?,
    };
    if encode_header(number, header) == *bytes {
        return Ok(header);
    }
    Err((0, format!("the header is damaged, or not that of manifest {}", number.0)))
}

/// Appends a record to the file that is in `bytes` from `start` on. An empty body makes a mark.
pub(super) fn put(bytes: &mut Vec<u8>, number: FileNumber, start: u64, body: &[u8]) {
    let at = bytes.len();
    let length = u32::try_from(body.len()).expect("an edit is smaller than 4 GiB");
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes.resize(at + record_bytes(body.len()), 0);
    let checksum = checksum(&bytes[at + 8..], number, start + at as u64);
    bytes[at..at + 8].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(rest: &[u8], number: FileNumber, offset: u64) -> u64 {
    xxh3_64_with_seed(rest, number.0.rotate_left(32) ^ offset)
}

/// Puts the checksum of the record at `offset` right; returns where it ends. `None` when it is cut.
#[cfg(any(test, fuzzing))]
pub(super) fn seal(bytes: &mut [u8], number: FileNumber, offset: usize) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.get(offset + 8..)?.first_chunk()?);
    let end = offset.checked_add(record_bytes(usize::try_from(length).ok()?))?;
    let (stated, rest) = bytes.get_mut(offset..end)?.split_first_chunk_mut()?;
    *stated = checksum(rest, number, offset as u64).to_le_bytes();
    Some(end)
}

/// The body of the record at `offset`.
fn record_at(bytes: &[u8], number: FileNumber, offset: usize) -> Option<&[u8]> {
    let mut cursor = Cursor::new(bytes.get(offset..)?);
    let stated = cursor.u64()?;
    let rest = cursor.rest();
    let length = usize::try_from(cursor.u32()?).ok()?;
    let body = cursor.bytes(length)?;
    let rest = rest.get(..record_bytes(length) - 8)?;
    (checksum(rest, number, offset as u64) == stated).then_some(body)
}

/// The records of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Records<'a> {
    /// Offset and body of every edit.
    pub(super) edits: Vec<(usize, &'a [u8])>,
    /// Where the snapshot ends.
    pub(super) snapshot_end: usize,
    /// Where the last whole record ends.
    pub(super) end: usize,
    /// So many bytes behind it are something else than reserved space.
    pub(super) torn: usize,
}

/// Takes the file `number` of `engine` apart.
pub(super) fn parse(bytes: &[u8], number: FileNumber, engine: u16) -> Result<Records<'_>, Damage> {
    let header = decode_header(bytes, number)?;
    if header.engine != 0 && engine != 0 && header.engine != engine {
        return Err((12, format!("this is a manifest of engine {}", header.engine)));
    }
    let snapshot_end = usize::try_from(header.snapshot_end).unwrap_or(usize::MAX);
    let mut edits = Vec::new();
    let mut end = HEADER_BYTES;
    while let Some(body) = record_at(bytes, number, end) {
        if !body.is_empty() {
            edits.push((end, body));
        }
        end += record_bytes(body.len());
    }
    let is_mark = |&at: &usize| record_at(bytes, number, at).is_some_and(<[u8]>::is_empty);
    let vouched = (end..bytes.len()).step_by(ALIGNMENT).any(|at| is_mark(&at));
    if end < snapshot_end || vouched {
        return Err((end, "a record is damaged, and later ones are not".to_owned()));
    }
    let made = u64::from(header.made_steps) * RESERVE_BYTES;
    let least = (end as u64).next_multiple_of(RESERVE_BYTES).max(made);
    if header.made_steps > 0 && (bytes.len() as u64) < least {
        return Err((bytes.len(), format!("the file ends here; it had at least {least} bytes")));
    }
    let torn = bytes[end..].iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    Ok(Records { edits, snapshot_end, end, torn })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NUMBER: FileNumber = FileNumber(3);

    const ENGINE: u16 = 7;

    fn header(snapshot_end: usize) -> Header {
        Header { engine: ENGINE, made_steps: 0, snapshot_end: snapshot_end as u64 }
    }

    /// A file whose snapshot is the first body, each other body followed by a mark.
    fn file(bodies: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        for (index, body) in bodies.iter().enumerate() {
            put(&mut bytes, NUMBER, 0, body);
            if index == 0 {
                let header = encode_header(NUMBER, header(bytes.len()));
                bytes[..HEADER_BYTES].copy_from_slice(&header);
            } else {
                put(&mut bytes, NUMBER, 0, &[]);
            }
        }
        bytes
    }

    fn bodies<'a>(records: &Records<'a>) -> Vec<&'a [u8]> {
        records.edits.iter().map(|&(_, body)| body).collect()
    }

    #[test]
    fn a_file_reads_back_with_reserved_space_behind_it() {
        let mut bytes = file(&[b"snapshot", b"one", b"two"]);
        let end = bytes.len();
        bytes.resize(end + 100, 0);
        let records = parse(&bytes, NUMBER, ENGINE).expect("sound");
        assert_eq!(bodies(&records), [&b"snapshot"[..], b"one", b"two"]);
        assert_eq!((records.end, records.torn), (end, 0));
    }

    #[test]
    fn a_torn_edit_is_cut_and_a_torn_edit_with_a_mark_behind_it_is_damage() {
        let bytes = file(&[b"snapshot", b"one", b"two"]);
        let (mark, edit) = (bytes.len() - MARK_BYTES, bytes.len() - MARK_BYTES - record_bytes(3));
        let mut torn = bytes[..mark].to_vec();
        torn[edit] ^= 1;
        let records = parse(&torn, NUMBER, ENGINE).expect("sound before");
        assert_eq!((records.end, records.torn), (edit, record_bytes(3) - 1));
        assert_eq!(bodies(&records), [&b"snapshot"[..], b"one"]);
        torn.extend_from_slice(&bytes[mark..]);
        assert_eq!(parse(&torn, NUMBER, ENGINE).expect_err("vouched for").0, edit);
    }

    #[test]
    fn the_bytes_of_another_manifest_are_no_records() {
        let mut bytes = file(&[b"snapshot"]);
        let end = bytes.len();
        put(&mut bytes, FileNumber(4), 0, b"other");
        let records = parse(&bytes, NUMBER, ENGINE).expect("a torn tail");
        assert_eq!((records.end, records.torn > 0), (end, true));
        assert_eq!(parse(&bytes, FileNumber(4), ENGINE).expect_err("another number").0, 0);
    }

    #[test]
    fn a_manifest_of_another_engine_and_one_that_was_cut_are_refused() {
        let bytes = file(&[b"snapshot", b"one"]);
        assert_eq!(parse(&bytes, NUMBER, ENGINE + 1).expect_err("another engine").0, 12);
        assert!(parse(&bytes, NUMBER, 0).is_ok(), "who does not know takes it");
        let mut made = bytes;
        let snapshot_end = u64::from_le_bytes(*made[24..].first_chunk().expect("a header"));
        let header = Header { engine: ENGINE, made_steps: 1, snapshot_end };
        made[..HEADER_BYTES].copy_from_slice(&encode_header(NUMBER, header));
        made.resize(64 << 10, 0);
        assert!(parse(&made, NUMBER, ENGINE).is_ok());
        for size in (HEADER_BYTES..made.len()).step_by(499).chain([made.len() - 1]) {
            let (at, why) = parse(&made[..size], NUMBER, ENGINE).expect_err("cut");
            assert!(at <= size, "{why}");
        }
    }

    #[test]
    fn the_worked_bytes_of_a_record_stay_what_they_are() {
        let mut bytes = Vec::new();
        put(&mut bytes, NUMBER, 40, &[0xab, 0xcd]);
        assert_eq!(bytes[8..], [2, 0, 0, 0, 0xab, 0xcd, 0, 0]);
        let sum = xxh3_64_with_seed(&bytes[8..], 0x3_0000_0028);
        assert_eq!(bytes[..8], sum.to_le_bytes());
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(tail: Vec<u8>) {
            let _ = parse(&tail, NUMBER, ENGINE);
            let mut bytes = file(&[b"snapshot"]);
            bytes.extend_from_slice(&tail);
            let records = parse(&bytes, NUMBER, ENGINE).expect("a torn tail");
            prop_assert_eq!(bodies(&records), [&b"snapshot"[..]]);
        }
    }
}
