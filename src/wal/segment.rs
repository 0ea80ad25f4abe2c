//! The segment file: its name, its header, how one is made ready, how records are read from it.
//!
//! Names are ten digits and `.wal`, compared as numbers. Numbers grow and are never used twice, so a position names one
//! place for ever. The header, 32 bytes, little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `KVSTWAL\n` |
//! | 8..12 | version of the format: 1 |
//! | 12..16 | number of the segment |
//! | 16..20 | salt of the checksums of its records, random |
//! | 20..24 | size of the file when it was made |
//! | 24..28 | made by an opening: the segment that it follows, those between are given up; 0: made ahead of its use |
//! | 28..32 | crc32c of bytes 0..28 |
//!
//! Records follow, then zeros: the file is allocated in full when it is made. It gets its name only after header and
//! size are on stable storage, so a segment whose header is not sound was damaged; no crash does that. Nor is it ever
//! shorter than it was made, until the next one has begun and says where this one ends. What ties it to the segment
//! before is not known so early, and is therefore its first record ([`super::record::Begin`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{Error, Result};
use super::record::{RECORD_HEADER_BYTES, RecordHeader, verify};
use crate::util::coding::Cursor;
use crate::util::fs::{File, FileSystem, is_disk_full};

/// Where the first record begins.
pub(super) const SEGMENT_HEADER_BYTES: u32 = 32;

const MAGIC: &[u8; 8] = b"KVSTWAL\n";
const VERSION: u32 = 1;
const NAME_DIGITS: usize = 10;
const NAME_SUFFIX: &str = ".wal";

/// Ends the names of files that were not finished.
pub(super) const TEMPORARY_SUFFIX: &str = ".tmp";

/// Read at once for a record of unknown length: most are shorter.
const FIRST_READ_BYTES: u32 = 4096;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) salt: u32,
    /// Size of the file.
    pub(super) bytes: u32,
    /// Its size when it was made.
    pub(super) made_bytes: u32,
    /// The one that it follows, when an opening made it.
    pub(super) follows: u32,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
}

/// The name of segment `number`.
pub(super) fn segment_name(number: u32) -> String {
    format!("{number:0NAME_DIGITS$}{NAME_SUFFIX}")
}

/// The number in a name; `None`: no name of a segment.
pub(super) fn segment_number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(NAME_SUFFIX)?;
    let legal = digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&number| legal && number > 0)
}

impl Segment {
    /// Makes a segment, durably, name included. On [`Error::DiskFull`] nothing is left behind, and what has
    /// [changed nothing](Error::changed_nothing) may be done again; any other error leaves the state of the directory
    /// unknown.
    pub(super) fn create(
        fs: &dyn FileSystem,
        dir: &Path,
        number: u32,
        salt: u32,
        bytes: u32,
        follows: u32,
    ) -> Result<Self> {
        let path = dir.join(segment_name(number));
        let temporary = dir.join(format!("{}{TEMPORARY_SUFFIX}", segment_name(number)));
        let header = encode_header(number, salt, bytes, follows);
        let file = fill(fs, &temporary, &path, &header, bytes).inspect_err(|_| {
            // Best effort: what stays is removed by the next attempt or the next start.
            let _ = fs.remove(&temporary);
        })?;
        fs.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
        Ok(Self { number, salt, bytes, made_bytes: bytes, follows, path, file })
    }

    /// Opens an existing segment and checks its header.
    pub(super) fn open(fs: &dyn FileSystem, path: &Path, number: u32) -> Result<Self> {
        let file = fs.open(path).map_err(|error| Error::io("open", path, error))?;
        let bytes = file.size().map_err(|error| Error::io("size", path, error))?;
        let bytes = u32::try_from(bytes)
            .map_err(|_| Error::corruption(path, u32::MAX, "the file is longer than 4 GiB"))?;
        let mut header = [0; SEGMENT_HEADER_BYTES as usize];
        let read = file.read_at(&mut header, 0).map_err(|error| Error::io("read", path, error))?;
        let (salt, made_bytes, follows) = check_header(&header[..read], path, number)?;
        Ok(Self { number, salt, bytes, made_bytes, follows, path: path.to_owned(), file })
    }

    /// The record at `offset`, checked: header and body.
    pub(super) fn read(&self, offset: u32) -> Result<(RecordHeader, Vec<u8>)> {
        let damaged = |detail: String| Error::corruption(&self.path, offset, detail);
        let left = self.bytes.saturating_sub(offset);
        let mut bytes = self.read_bytes(offset, left.min(FIRST_READ_BYTES))?;
        let header =
            RecordHeader::plausible(&bytes, self.number, offset, self.bytes).map_err(damaged)?;
        if header.record_bytes() as usize > bytes.len() {
            bytes = self.read_bytes(offset, header.record_bytes())?;
        }
        bytes.truncate(header.record_bytes() as usize);
        let body = verify(&bytes, &header, self.salt).map(<[u8]>::len);
        let length = body.ok_or_else(|| damaged("the checksum does not match".to_owned()))?;
        bytes.drain(..RECORD_HEADER_BYTES as usize);
        bytes.truncate(length);
        Ok((header, bytes))
    }

    /// Up to `count` bytes from `offset` on.
    fn read_bytes(&self, offset: u32, count: u32) -> Result<Vec<u8>> {
        let mut bytes = vec![0; count as usize];
        let read = self.read_at(&mut bytes, offset)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Fills `buffer` from `offset` on, as far as the file goes.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u32) -> Result<usize> {
        let read = self.file.read_at(buffer, u64::from(offset));
        read.map_err(|error| Error::io("read", &self.path, error))
    }
}

/// Makes the file under its temporary name, whole and synced, then gives it its own.
fn fill(
    fs: &dyn FileSystem,
    temporary: &Path,
    path: &Path,
    header: &[u8],
    bytes: u32,
) -> Result<Arc<dyn File>> {
    let failed = |operation| {
        move |error: io::Error| {
            if is_disk_full(&error) {
                return Error::DiskFull { path: path.to_owned() };
            }
            Error::io(operation, path, error)
        }
    };
    if fs.exists(temporary).map_err(failed("create"))? {
        fs.remove(temporary).map_err(failed("create"))?;
    }
    let file = fs.create(temporary).map_err(failed("create"))?;
    file.allocate(u64::from(bytes)).map_err(failed("allocate"))?;
    file.write_at(header, 0).map_err(failed("write"))?;
    file.sync_data().map_err(failed("sync"))?;
    fs.rename(temporary, path).map_err(failed("rename"))?;
    Ok(file)
}

pub(super) fn encode_header(
    number: u32,
    salt: u32,
    made_bytes: u32,
    follows: u32,
) -> [u8; SEGMENT_HEADER_BYTES as usize] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES as usize];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..20].copy_from_slice(&salt.to_le_bytes());
    bytes[20..24].copy_from_slice(&made_bytes.to_le_bytes());
    bytes[24..28].copy_from_slice(&follows.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Salt, first size and the segment before in a sound header of segment `number`.
fn check_header(bytes: &[u8], path: &Path, number: u32) -> Result<(u32, u32, u32)> {
    let damaged = |offset, detail: String| Error::corruption(path, offset, detail);
    let mut cursor = Cursor::new(bytes);
    let fields = (|| {
        let magic = cursor.bytes(MAGIC.len())?;
        let (version, stated, salt) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let (made_bytes, follows) = (cursor.u32()?, cursor.u32()?);
        Some((magic, version, stated, (salt, made_bytes, follows), cursor.u32()?))
    })();
    let Some((magic, version, stated, sound, checksum)) = fields else {
        return Err(damaged(0, "the file ends inside the header of the segment".to_owned()));
    };
    if magic != MAGIC {
        return Err(damaged(0, "the file is no segment of a log".to_owned()));
    }
    if checksum != crc32c::crc32c(&bytes[..28]) {
        return Err(damaged(0, "the checksum of the header does not match".to_owned()));
    }
    if version != VERSION {
        let file = path.display();
        return Err(Error::Invalid(format!(
            "{file} has version {version} of the log format; this program reads version {VERSION}"
        )));
    }
    if stated != number {
        return Err(damaged(12, format!("this is segment {stated} under the name of {number}")));
    }
    Ok(sound)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::util::fs::sim::SimFileSystem;

    #[test]
    fn names_are_ten_digits_and_nothing_else() {
        assert_eq!(segment_name(42), "0000000042.wal");
        assert_eq!(segment_number("0000000042.wal"), Some(42));
        assert_eq!(segment_number("4294967295.wal"), Some(u32::MAX));
        for name in ["0000000000.wal", "42.wal", "4294967296.wal", "+000000042.wal", "LOCK"] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }

    #[test]
    fn a_header_is_refused_under_another_number_and_in_another_version() {
        let path = Path::new("f");
        assert_eq!(check_header(&encode_header(5, 9, 64, 3), path, 5).expect("sound"), (9, 64, 3));
        let error = check_header(&encode_header(5, 9, 64, 3), path, 6).expect_err("swapped");
        assert!(matches!(error, Error::Corruption { offset: 12, .. }), "{error}");
        let mut newer = encode_header(5, 9, 64, 3);
        newer[8] = 2;
        let checksum = crc32c::crc32c(&newer[..28]);
        newer[28..].copy_from_slice(&checksum.to_le_bytes());
        let error = check_header(&newer, path, 5).expect_err("newer");
        assert!(error.to_string().contains("version 2"), "{error}");
    }

    #[test]
    fn a_segment_that_finds_no_room_leaves_nothing_behind() {
        let fs = SimFileSystem::new(0);
        fs.set_capacity(4096);
        let error = Segment::create(&fs, Path::new("/"), 1, 0, 8192, 0).expect_err("too large");
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert_eq!(fs.used(), 0);
        Segment::create(&fs, Path::new("/"), 1, 0, 4096, 0).expect("fits");
    }

    proptest! {
        #[test]
        fn any_header_is_judged_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = check_header(&bytes, Path::new("f"), 1);
        }

        #[test]
        fn every_flipped_bit_of_a_header_is_found(at in 0usize..32, bit in 0u8..8) {
            let mut bytes = encode_header(5, 9, 64, 3);
            bytes[at] ^= 1 << bit;
            prop_assert!(check_header(&bytes, Path::new("f"), 5).is_err());
        }
    }
}
