//! The checkpoint file of the engines that have no files of their own to share: all visible entries in key order, every byte
//! under a checksum.
//!
//! The file is called `dump`. It is written beside its name, synced, and renamed: a file of that name is whole. Numbers are
//! little-endian; checksums are CRC-32C.
//!
//! | header | bytes | |
//! |---|---|---|
//! | magic | 8 | `kvdump\r\n` (the line end shows a file that was mangled as text) |
//! | version | 4 | 1 |
//! | kind | 4 | engine that wrote it: 1 memory, 2 sled |
//! | clock | 8 | the engine's clock, milliseconds |
//! | seqno | 8 | its newest batch |
//! | checksum | 4 | of the fields above |
//!
//! | block | bytes | |
//! |---|---|---|
//! | length | 4 | of the payload, never 0 |
//! | checksum | 4 | of length and payload |
//! | payload | length | whole entries |
//!
//! | entry | bytes | |
//! |---|---|---|
//! | flags | 1 | bit 0: an expiry follows |
//! | expiry | 8 | only if so, milliseconds |
//! | key | * | varint length, bytes |
//! | value | * | varint length, bytes |
//!
//! | end | bytes | |
//! |---|---|---|
//! | zero | 4 | where a block would have its length |
//! | entries | 8 | how many there are |
//! | checksum | 4 | of the two fields above |
//!
//! Nothing follows. Keys ascend strictly. Versions, kinds and flags are never renumbered.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::{EntryRef, Error, KEY_BYTES_MAX, Result, Scan, Seqno, VALUE_BYTES_MAX};
use crate::util::coding::{Cursor, VARINT_BYTES_MAX, put_slice};
use crate::util::time::Timestamp;

const FILE_NAME: &str = "dump";
const UNFINISHED_NAME: &str = "dump.unfinished";
const MAGIC: &[u8; 8] = b"kvdump\r\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 36;
const END_BYTES: usize = 16;
const FLAG_EXPIRES: u8 = 1;

/// A block ends with the first entry that reaches this size.
const BLOCK_BYTES: usize = 64 * 1024;
const BLOCK_BYTES_MAX: usize =
    BLOCK_BYTES + 1 + 8 + 2 * VARINT_BYTES_MAX + KEY_BYTES_MAX + VALUE_BYTES_MAX;

/// The engine that wrote a dump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Memory,
    Sled,
}

impl Kind {
    const fn tag(self) -> u32 {
        match self {
            Self::Memory => 1,
            Self::Sled => 2,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Sled => "sled",
        }
    }
}

/// What a dump says of the engine besides its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// The engine that wrote it.
    pub(super) kind: Kind,
    /// Its clock.
    pub(super) clock: Timestamp,
    /// Its newest batch.
    pub(super) seqno: Seqno,
}

/// Writes the entries of `scan` into `directory`, which must be empty or not exist, durably.
pub(super) fn write(directory: &Path, header: Header, scan: &mut dyn Scan) -> Result<()> {
    prepare_directory(directory)?;
    let unfinished = directory.join(UNFINISHED_NAME);
    let written = write_file(&unfinished, header, scan).and_then(|()| {
        let path = directory.join(FILE_NAME);
        fs::rename(&unfinished, &path).map_err(|error| failed("rename", &path, error))
    });
    if let Err(error) = written {
        // Best effort: the name says that it is worth nothing, and the first error is the one to tell.
        let _ = fs::remove_file(&unfinished);
        return Err(error);
    }
    sync_directory(directory)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Makes the names in `directory` durable.
pub(super) fn sync_directory(directory: &Path) -> Result<()> {
    // The parent of a relative path of one component is empty.
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    File::open(directory)
        .and_then(|file| file.sync_all())
        .map_err(|error| failed("sync", directory, error))
}

fn prepare_directory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| failed("create", directory, error))?;
    let mut entries = fs::read_dir(directory).map_err(|error| failed("list", directory, error))?;
    if entries.next().is_none() {
        return Ok(());
    }
    Err(Error::Invalid(format!("checkpoint directory {} is not empty", directory.display())))
}

fn write_file(path: &Path, header: Header, scan: &mut dyn Scan) -> Result<()> {
    let io = |error| failed("write", path, error);
    let file = File::create_new(path).map_err(|error| failed("create", path, error))?;
    let mut output = BufWriter::new(file);
    output.write_all(&encode_header(header)).map_err(io)?;
    let mut entries = 0u64;
    let mut payload = Vec::with_capacity(2 * BLOCK_BYTES);
    while let Some(entry) = scan.next()? {
        put_entry(&mut payload, entry);
        entries += 1;
        if payload.len() >= BLOCK_BYTES {
            write_block(&mut output, &payload).map_err(io)?;
            payload.clear();
        }
    }
    if !payload.is_empty() {
        write_block(&mut output, &payload).map_err(io)?;
    }
    output.write_all(&encode_end(entries)).map_err(io)?;
    let file = output.into_inner().map_err(|error| io(error.into_error()))?;
    file.sync_all().map_err(|error| failed("sync", path, error))
}

fn encode_header(header: Header) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&header.kind.tag().to_le_bytes());
    bytes.extend_from_slice(&header.clock.as_millis().to_le_bytes());
    bytes.extend_from_slice(&header.seqno.0.to_le_bytes());
    seal(bytes)
}

fn encode_end(entries: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&entries.to_le_bytes());
    seal(bytes)
}

fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

fn put_entry(payload: &mut Vec<u8>, entry: EntryRef<'_>) {
    if let Some(expires_at) = entry.expires_at {
        payload.push(FLAG_EXPIRES);
        payload.extend_from_slice(&expires_at.as_millis().to_le_bytes());
    } else {
        payload.push(0);
    }
    put_slice(payload, entry.key);
    put_slice(payload, entry.value);
}

fn write_block(output: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).expect("a block is bounded far below 4 GiB");
    output.write_all(&length.to_le_bytes())?;
    output.write_all(&block_checksum(length, payload).to_le_bytes())?;
    output.write_all(payload)
}

fn block_checksum(length: u32, payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), payload)
}

fn failed(operation: &'static str, path: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::DiskFull { path: path.to_owned() };
    }
    Error::io(operation, path, error)
}

/// Reads a dump entry by entry and checks all of it on the way: only after the `None` of [`Self::next`] it is known to be
/// whole.
pub(super) struct DumpReader {
    path: PathBuf,
    input: BufReader<File>,
    header: Header,
    /// Where in the file the next read happens.
    offset: u64,
    block: Vec<u8>,
    /// Where in `block` the next entry begins.
    position: usize,
    last_key: Option<Vec<u8>>,
    entries: u64,
    ended: bool,
}

impl DumpReader {
    /// Opens the dump in `directory`. [`Error::Invalid`] when there is none or another kind of engine wrote it.
    pub(super) fn open(directory: &Path, kind: Kind) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Invalid(format!(
                    "{} holds no {} checkpoint",
                    directory.display(),
                    kind.name()
                )));
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let mut reader = Self {
            path,
            input: BufReader::new(file),
            header: Header { kind, clock: Timestamp::BEGINNING, seqno: Seqno(0) },
            offset: 0,
            block: Vec::new(),
            position: 0,
            last_key: None,
            entries: 0,
            ended: false,
        };
        reader.header = reader.read_header(kind)?;
        Ok(reader)
    }

    /// What it says of the engine.
    pub(super) const fn header(&self) -> Header {
        self.header
    }

    /// The next entry; `None`: that was all, and the file is whole.
    pub(super) fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
        if self.position == self.block.len() && !self.read_block()? {
            return Ok(None);
        }
        let mut cursor = Cursor::new(&self.block[self.position..]);
        let Some(entry) = read_entry(&mut cursor) else {
            return Err(self.damaged("malformed entry"));
        };
        if self.last_key.as_deref().is_some_and(|last| entry.key <= last) {
            return Err(self.damaged("keys do not ascend"));
        }
        self.position = self.block.len() - cursor.rest().len();
        self.entries += 1;
        let last = self.last_key.get_or_insert_default();
        last.clear();
        last.extend_from_slice(entry.key);
        Ok(Some(entry))
    }

    fn read_header(&mut self, kind: Kind) -> Result<Header> {
        let bytes: [u8; HEADER_BYTES] = self.read_array()?;
        if bytes[..8] != *MAGIC {
            return Err(self.damaged("not a dump: wrong magic"));
        }
        let mut cursor = Cursor::new(&bytes[8..]);
        let mut u32_field = || cursor.u32().expect("the header is read whole");
        let (version, tag) = (u32_field(), u32_field());
        self.check_seal(&bytes)?;
        if version != VERSION {
            return Err(Error::Invalid(format!(
                "{} has version {version}; this program reads version {VERSION}",
                self.path.display()
            )));
        }
        if tag != kind.tag() {
            return Err(Error::Invalid(format!(
                "{} was not written by a {} engine",
                self.path.display(),
                kind.name()
            )));
        }
        let mut u64_field = || cursor.u64().expect("the header is read whole");
        let (clock, seqno) = (Timestamp::from_millis(u64_field()), Seqno(u64_field()));
        Ok(Header { kind, clock, seqno })
    }

    /// Reads the next block; false at the end of the dump.
    fn read_block(&mut self) -> Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let length = u32::from_le_bytes(self.read_array()?);
        if length == 0 {
            self.read_end()?;
            self.ended = true;
            return Ok(false);
        }
        if length as usize > BLOCK_BYTES_MAX {
            return Err(self.damaged("block length over the limit"));
        }
        let checksum = u32::from_le_bytes(self.read_array()?);
        self.block.resize(length as usize, 0);
        self.position = 0;
        self.input
            .read_exact(&mut self.block)
            .map_err(|error| cut_or_failed(&self.path, self.offset, error))?;
        if block_checksum(length, &self.block) != checksum {
            return Err(self.damaged("block checksum does not match"));
        }
        self.offset += u64::from(length);
        Ok(true)
    }

    fn read_end(&mut self) -> Result<()> {
        let mut bytes = [0; END_BYTES];
        let rest: [u8; END_BYTES - 4] = self.read_array()?;
        bytes[4..].copy_from_slice(&rest);
        self.check_seal(&bytes)?;
        let entries = Cursor::new(&rest).u64().expect("the end is read whole");
        if entries != self.entries {
            return Err(self.damaged("number of entries does not match"));
        }
        let mut beyond = [0];
        match self.input.read(&mut beyond) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.damaged("bytes beyond the end")),
            Err(error) => Err(Error::io("read", &self.path, error)),
        }
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input
            .read_exact(&mut bytes)
            .map_err(|error| cut_or_failed(&self.path, self.offset, error))?;
        self.offset += N as u64;
        Ok(bytes)
    }

    fn check_seal(&self, bytes: &[u8]) -> Result<()> {
        let (fields, checksum) = bytes.split_at(bytes.len() - 4);
        if crc32c::crc32c(fields).to_le_bytes() == checksum {
            return Ok(());
        }
        Err(self.damaged("checksum does not match"))
    }

    fn damaged(&self, detail: &str) -> Error {
        Error::corruption(&self.path, self.offset, detail)
    }
}

fn cut_or_failed(path: &Path, offset: u64, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Error::corruption(path, offset, "the file is cut off");
    }
    Error::io("read", path, error)
}

fn read_entry<'a>(cursor: &mut Cursor<'a>) -> Option<EntryRef<'a>> {
    let expires_at = match cursor.u8()? {
        0 => None,
        FLAG_EXPIRES => Some(Timestamp::from_millis(cursor.u64()?)),
        _ => return None,
    };
    let key = cursor.slice()?;
    let value = cursor.slice()?;
    Some(EntryRef { key, value, expires_at })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Listed(Vec<(Vec<u8>, Vec<u8>)>, usize);

    impl Scan for Listed {
        fn next(&mut self) -> Result<Option<EntryRef<'_>>> {
            self.1 += 1;
            Ok(self.0.get(self.1 - 1).map(|(key, value)| EntryRef {
                key,
                value,
                expires_at: (key.len() % 2 == 0).then_some(Timestamp::from_millis(77)),
            }))
        }
    }

    fn sample(directory: &Path, count: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries: Vec<_> =
            (0..count).map(|n| (format!("{n:06}").into_bytes(), vec![7; n % 900])).collect();
        let header = Header { kind: Kind::Sled, clock: Timestamp::from_millis(5), seqno: Seqno(9) };
        write(directory, header, &mut Listed(entries.clone(), 0)).expect("writes");
        entries
    }

    fn read_all(directory: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut reader = DumpReader::open(directory, Kind::Sled)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            entries.push((entry.key.to_vec(), entry.value.to_vec()));
        }
        Ok(entries)
    }

    #[test]
    fn dump_of_many_blocks_reads_back() {
        let directory = tempfile::tempdir().expect("tempdir");
        let entries = sample(directory.path(), 1000);
        assert_eq!(read_all(directory.path()).expect("reads"), entries);
        let header = DumpReader::open(directory.path(), Kind::Sled).expect("opens").header();
        assert_eq!((header.clock, header.seqno), (Timestamp::from_millis(5), Seqno(9)));
        let other = DumpReader::open(directory.path(), Kind::Memory).err();
        assert!(matches!(other, Some(Error::Invalid(_))), "{other:?}");
    }

    #[test]
    fn dump_into_a_filled_directory_is_refused() {
        let directory = tempfile::tempdir().expect("tempdir");
        sample(directory.path(), 1);
        let header = Header { kind: Kind::Sled, clock: Timestamp::BEGINNING, seqno: Seqno(0) };
        let again = write(directory.path(), header, &mut Listed(Vec::new(), 0));
        assert!(matches!(again, Err(Error::Invalid(_))), "{again:?}");
    }

    #[test]
    fn any_changed_bit_and_any_cut_is_found() {
        let directory = tempfile::tempdir().expect("tempdir");
        sample(directory.path(), 8);
        let path = directory.path().join(FILE_NAME);
        let whole = fs::read(&path).expect("reads");
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] ^= 1 << (at % 8);
            fs::write(&path, &bent).expect("writes");
            let error = read_all(directory.path()).expect_err("a changed bit must not be read");
            assert!(names(&error, &path), "byte {at}: {error}");
            fs::write(&path, &whole[..at]).expect("writes");
            let error = read_all(directory.path()).expect_err("a cut file must not be read");
            assert!(names(&error, &path), "cut at {at}: {error}");
        }
        let longer = [whole.as_slice(), b"x"].concat();
        fs::write(&path, longer).expect("writes");
        assert!(read_all(directory.path()).is_err());
    }

    fn names(error: &Error, path: &Path) -> bool {
        matches!(error, Error::Corruption { file, .. } if file == path)
    }

    /// Where each part of a dump begins, its end included.
    fn parts(bytes: &[u8]) -> Vec<usize> {
        let mut parts = vec![0, HEADER_BYTES];
        let mut at = HEADER_BYTES;
        loop {
            let length = Cursor::new(&bytes[at..]).u32().expect("a length") as usize;
            if length == 0 {
                parts.push(at + END_BYTES);
                return parts;
            }
            at += 8 + length;
            parts.push(at);
        }
    }

    #[test]
    fn damage_is_found_at_the_borders_of_every_block() {
        let directory = tempfile::tempdir().expect("tempdir");
        sample(directory.path(), 700);
        let path = directory.path().join(FILE_NAME);
        let whole = fs::read(&path).expect("reads");
        let parts = parts(&whole);
        assert!(parts.len() > 5, "there are many blocks");
        for border in parts {
            for at in border.saturating_sub(5)..(border + 12).min(whole.len()) {
                let mut bent = whole.clone();
                bent[at] ^= 0x80 >> (at % 8);
                for content in [&bent[..], &whole[..at]] {
                    fs::write(&path, content).expect("writes");
                    let error = read_all(directory.path()).expect_err("is damaged");
                    assert!(names(&error, &path), "at {at}: {error}");
                }
            }
        }
    }

    #[test]
    fn blocks_that_are_missing_repeated_or_swapped_are_found() {
        let directory = tempfile::tempdir().expect("tempdir");
        sample(directory.path(), 700);
        let path = directory.path().join(FILE_NAME);
        let whole = fs::read(&path).expect("reads");
        let at = parts(&whole);
        let part = |number: usize| &whole[at[number]..at[number + 1]];
        let rest = &whole[at[3]..];
        let bent = [
            [part(0), part(2), rest].concat(),
            [part(0), part(1), part(1), part(2), rest].concat(),
            [part(0), part(2), part(1), rest].concat(),
            [part(1), rest].concat(),
            [part(0), &whole[at[at.len() - 2]..]].concat(),
        ];
        for (number, content) in bent.iter().enumerate() {
            fs::write(&path, content).expect("writes");
            let error =
                read_all(directory.path()).expect_err("every checksum fits, the whole does not");
            assert!(names(&error, &path), "{number}: {error}");
        }
    }

    /// A dump that is wrong although every checksum is right.
    fn forged(blocks: &[&[u8]], entries: u64) -> Vec<u8> {
        let header = Header { kind: Kind::Sled, clock: Timestamp::BEGINNING, seqno: Seqno(1) };
        let mut bytes = encode_header(header);
        for block in blocks {
            write_block(&mut bytes, block).expect("a vector takes all");
        }
        bytes.extend_from_slice(&encode_end(entries));
        bytes
    }

    #[test]
    fn malformed_blocks_are_found_behind_their_checksums() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join(FILE_NAME);
        let entry = |key: &[u8]| {
            [&[0, u8::try_from(key.len()).expect("short")][..], key, &[1, b'v']].concat()
        };
        let (a, b) = (entry(b"a"), entry(b"b"));
        fs::write(&path, forged(&[&a, &b], 2)).expect("writes");
        assert_eq!(read_all(directory.path()).expect("is well formed").len(), 2);
        fs::write(&path, forged(&[], 0)).expect("writes");
        assert_eq!(read_all(directory.path()).expect("is well formed").len(), 0);
        for (content, what) in [
            (forged(&[&a, &b], 3), "an entry too few"),
            (forged(&[&a, &b], 1), "an entry too many"),
            (forged(&[&b, &a], 2), "descending"),
            (forged(&[&[&a[..], &a].concat()], 2), "twice the same key"),
            (forged(&[&[2, 1, b'a', 0]], 1), "a flag that does not exist"),
            (forged(&[&a[..4]], 1), "an entry that ends early"),
            (forged(&[&[&a[..], &[0]].concat()], 1), "more than its entries"),
            (forged(&[&[0, 0xff, 0xff, 0xff, 0xff, 0x0f]], 1), "a key longer than the file"),
            (forged(&[&[0; 2][..], &a[..2]], 1), "entries across blocks"),
        ] {
            fs::write(&path, content).expect("writes");
            let error = read_all(directory.path()).expect_err(what);
            assert!(names(&error, &path), "{what}: {error}");
        }
    }

    #[test]
    fn dump_of_a_later_version_is_no_damage() {
        let directory = tempfile::tempdir().expect("tempdir");
        sample(directory.path(), 1);
        let path = directory.path().join(FILE_NAME);
        let mut bytes = fs::read(&path).expect("reads");
        bytes[8] = 2;
        let header = seal(bytes[..HEADER_BYTES - 4].to_vec());
        bytes[..HEADER_BYTES].copy_from_slice(&header);
        fs::write(&path, bytes).expect("writes");
        let error = read_all(directory.path()).expect_err("of another version");
        assert!(matches!(&error, Error::Invalid(text) if text.contains("version 2")), "{error}");
    }
}
