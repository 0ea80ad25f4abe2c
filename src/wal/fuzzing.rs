//! The decoders of the log, for fuzzers: see [`crate::fuzzing`].

use std::path::Path;
use std::sync::Arc;

use super::record::{
    ALIGNMENT, Begin, KIND_BEGIN, RECORD_HEADER_BYTES, RecordHeader, record_bytes, verify,
};
use super::segment::{SEGMENT_HEADER_BYTES, encode_header, segment_name};
use super::{Background, Error, Kind, Level, Options, Owner, Record, Wal};
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::SimFileSystem;

const DIRECTORY: &str = "/wal";
const HEADER: usize = RECORD_HEADER_BYTES as usize;

/// A segment has room for whatever a fuzzer makes.
const SEGMENT_BYTES: u32 = 1 << 20;

/// One record at the beginning of the bytes.
pub fn wal_record(data: &[u8]) {
    judge_record(data);
    let mut sealed = data.to_vec();
    if seal_record(&mut sealed, 0, 1, 0).is_some() {
        judge_record(&sealed);
    }
}

fn judge_record(bytes: &[u8]) {
    let Ok(header) = RecordHeader::plausible(bytes, 1, SEGMENT_HEADER_BYTES, SEGMENT_BYTES) else {
        return;
    };
    let Some(whole) = bytes.get(..header.record_bytes() as usize) else { return };
    let Some(body) = verify(whole, &header, 0) else { return };
    let mut again = header.encode(crc32c::crc32c(body), 0).to_vec();
    again.extend_from_slice(body);
    again.resize(whole.len(), 0);
    assert_eq!(again, whole, "a record is written as it was read");
    if header.kind == KIND_BEGIN
        && let Some(begin) = Begin::decode(body)
    {
        assert_eq!(begin.encode(), body, "so is the first of a segment");
    }
}

/// Makes a sound record of segment `number` of the bytes at `offset`; returns where it ends. `None` when they are cut.
fn seal_record(bytes: &mut [u8], offset: usize, number: u32, salt: u32) -> Option<usize> {
    let record = bytes.get_mut(offset..)?;
    let word = |at: usize| Some(u32::from_le_bytes(*record.get(at..)?.first_chunk()?));
    let (body_bytes, synced_upto) = (word(4)?, word(12)?);
    let owner = Owner(u64::from_le_bytes(*record.get(16..)?.first_chunk()?));
    let kind = Kind(*record.get(24)?);
    let whole = usize::try_from(body_bytes.checked_add(64)?).ok()?;
    // Also when it is far too long: that is for the decoder to say.
    if whole > record.len() + 64 {
        return None;
    }
    let end = record_bytes(body_bytes) as usize;
    let body_end = HEADER + body_bytes as usize;
    record.get_mut(body_end..end)?.fill(0);
    let synced_upto = synced_upto / ALIGNMENT * ALIGNMENT;
    let header = RecordHeader { body_bytes, segment: number, synced_upto, owner, kind };
    let encoded = header.encode(crc32c::crc32c(&record[HEADER..body_end]), salt);
    record[..HEADER].copy_from_slice(&encoded);
    Some(offset + end)
}

/// A log of two segments: two bytes say where the first one ends.
pub fn wal_segment(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first_chunk() else { return };
    let cut = usize::from(u16::from_le_bytes(*cut)).min(bytes.len());
    let segments = [&bytes[..cut], &bytes[cut..]].map(<[u8]>::to_vec);
    judge_log(&segments);
    let mut sealed = segments;
    for (segment, number) in sealed.iter_mut().zip(1u32..) {
        let Ok(size) = u32::try_from(segment.len()) else { return };
        if let Some(header) = segment.first_chunk_mut() {
            *header = encode_header(number, number, size, 0);
        }
        let mut offset = SEGMENT_HEADER_BYTES as usize;
        while let Some(end) = seal_record(segment, offset, number, number) {
            offset = end;
        }
    }
    judge_log(&sealed);
}

fn judge_log(segments: &[Vec<u8>]) {
    let fs = SimFileSystem::new(0);
    let made = fs.create_dir_all(Path::new(DIRECTORY));
    made.and_then(|()| fs.sync_dir(Path::new("/"))).expect("a directory");
    for (bytes, number) in segments.iter().zip(1u32..).filter(|(bytes, _)| !bytes.is_empty()) {
        let path = Path::new(DIRECTORY).join(segment_name(number));
        let file = fs.create(&path).expect("a file");
        // What a record vouches for was synced once.
        file.write_at(bytes, 0).and_then(|()| file.sync_data()).expect("written");
    }
    fs.sync_dir(Path::new(DIRECTORY)).expect("synced");
    let (wal, seen) = match open(&fs) {
        Ok(opened) => opened,
        Err(Error::Corruption { .. } | Error::Invalid(_)) => return,
        Err(error) => panic!("neither opened nor refused: {error}"),
    };
    let added = Record { owner: Owner(1), kind: Kind::FIRST, body: b"added".to_vec() };
    let position = wal.append(added.owner, added.kind, &[&added.body]).expect("appended");
    wal.commit(position, Level::Sync).expect("synced");
    drop(wal);
    let (_, again) = open(&fs.restart(0)).expect("what was opened once opens again");
    let expected: Vec<Record> = seen.into_iter().chain([added]).collect();
    assert_eq!(again, expected, "what was seen once is there");
}

fn open(fs: &SimFileSystem) -> Result<(Wal, Vec<Record>), Error> {
    let options =
        Options { background: Background::Caller, segment_bytes: 4096, ..Options::new(7) };
    let mut seen = Vec::new();
    let (wal, _) = Wal::open::<Error>(Arc::new(fs.clone()), DIRECTORY, options, |record| {
        let body = record.body.to_vec();
        seen.push(Record { owner: record.owner, kind: record.kind, body });
        Ok(())
    })?;
    Ok((wal, seen))
}
