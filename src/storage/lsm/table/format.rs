//! The frame of a table file: the footer, and how a block is sealed.
//!
//! A file is a row of sections without gaps, so that every byte of it belongs to one checksum:
//!
//! | section | what |
//! |---|---|
//! | data | sealed data blocks, in key order |
//! | filter | sealed pieces of the filter; may be empty |
//! | range deletions | one sealed block; may be empty |
//! | index | sealed pieces of the index, in key order, then the top of it |
//! | properties | one sealed block |
//! | footer | 64 bytes |
//!
//! | footer | bytes | |
//! |---|---|---|
//! | filter, range deletions, index, properties | 4 x 4 | offset at which each section begins; data begins at 0 |
//! | size | 4 | of the whole file |
//! | version | 4 | [`VERSION`] |
//! | uid | 8 | random; part of every checksum, so that a block of another table is not taken for one of this |
//! | reserved | 16 | zero |
//! | checksum | 8 | xxh3-64 over the 48 bytes before |
//! | magic | 8 | [`MAGIC`] |
//!
//! | sealed block | bytes | |
//! |---|---|---|
//! | payload | * | kinds 1 and 2 begin with the size of what they unpack to, 4 bytes |
//! | kind | 1 | 0: as it is, 1: LZ4 block, 2: Zstandard frame |
//! | checksum | 8 | xxh3-64 over payload and kind, seeded with [`seed`] of uid and offset |
//!
//! Numbers are little-endian. A table is smaller than 4 GiB: offsets have 32 bits. The uid is not the number of the
//! file, so that a file can be linked or sent under another name.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::storage::lsm::options::Compression;
use crate::storage::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
use crate::util::coding::Cursor;

/// Last eight bytes of a table.
pub(crate) const MAGIC: [u8; 8] = *b"kvTABLE\n";

/// The version of the format that is written, and the only one that is read.
pub(crate) const VERSION: u32 = 1;

/// Bytes of the footer.
pub(crate) const FOOTER_BYTES: usize = 64;

/// Bytes that sealing adds to a payload.
pub(crate) const SEAL_BYTES: usize = 9;

/// The same, to count with offsets.
pub(crate) const SEAL_BYTES_U32: u32 = 9;

const _: () = assert!(SEAL_BYTES == SEAL_BYTES_U32 as usize, "one number");

/// Largest payload, in bytes, before compression: one entry of the largest size, and what its block adds.
pub(crate) const PAYLOAD_BYTES_MAX: usize = VALUE_BYTES_MAX + 2 * KEY_BYTES_MAX + (1 << 20);

/// A compressed block must save at least one part in this many (12 %), or the time to unpack it is not worth it.
const SAVING_PARTS: usize = 8;

const KIND_RAW: u8 = 0;
const KIND_LZ4: u8 = 1;
const KIND_ZSTD: u8 = 2;

/// What is wrong with bytes that were read; the caller knows file and offset.
pub(crate) type Damage = String;

/// Tells tables apart; random, given by whoever creates one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct TableUid(pub(crate) u64);

/// Where the sections of a table begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) filter: u32,
    pub(crate) range_deletions: u32,
    pub(crate) index: u32,
    pub(crate) properties: u32,
    /// Of the whole file, in bytes.
    pub(crate) size: u32,
    pub(crate) uid: TableUid,
}

impl Footer {
    /// The bytes of the module's table.
    pub(crate) fn encode(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = Vec::with_capacity(FOOTER_BYTES);
        let offsets = [self.filter, self.range_deletions, self.index, self.properties];
        for number in offsets.into_iter().chain([self.size, VERSION]) {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.uid.0.to_le_bytes());
        bytes.extend_from_slice(&[0; 16]);
        let checksum = xxh3_64(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes.extend_from_slice(&MAGIC);
        bytes.try_into().expect("the parts add up to the size of a footer")
    }

    /// Reads the last bytes of a file that has `size` bytes.
    pub(crate) fn decode(bytes: &[u8; FOOTER_BYTES], size: u64) -> Result<Self, Damage> {
        let cut = || "the footer is cut".to_owned();
        let (body, seal) = bytes.split_at(FOOTER_BYTES - 16);
        let mut seal = Cursor::new(seal);
        let checksum = seal.u64().ok_or_else(cut)?;
        if seal.rest() != MAGIC {
            return Err("not a table: the last 8 bytes are not its magic".to_owned());
        }
        let mut cursor = Cursor::new(body);
        let mut number = || cursor.u32().ok_or_else(cut);
        let footer = Self {
            filter: number()?,
            range_deletions: number()?,
            index: number()?,
            properties: number()?,
            size: number()?,
            uid: TableUid(0),
        };
        let version = number()?;
        let footer = Self { uid: TableUid(cursor.u64().ok_or_else(cut)?), ..footer };
        // Before the checksum: a later version may compute it in another way.
        if version != VERSION {
            return Err(format!("table format version {version}, this program reads {VERSION}"));
        }
        if checksum != xxh3_64(body) {
            return Err("the checksum of the footer does not match".to_owned());
        }
        if u64::from(footer.size) != size {
            let stated = footer.size;
            return Err(format!("the file has {size} bytes, its footer says {stated}"));
        }
        footer.check_order()?;
        Ok(footer)
    }

    fn check_order(&self) -> Result<(), Damage> {
        let end = self.size.checked_sub(64).ok_or("the file is smaller than a footer")?;
        let borders = [self.filter, self.range_deletions, self.index, self.properties, end];
        if borders.is_sorted() {
            return Ok(());
        }
        Err(format!("the sections of the table overlap: {borders:?}"))
    }
}

/// Mixes the place of a block into its checksum, so that a block written to or read from the wrong place is noticed.
pub(crate) fn seed(uid: TableUid, offset: u32) -> u64 {
    let place = uid.0 ^ u64::from(offset).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // Another odd multiplication, so that neighbouring offsets differ in many bits.
    (place ^ place >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Seals blocks; holds what compression needs, so that nothing is allocated for each block.
pub(crate) struct Sealer {
    compression: Compression,
    buffer: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Sealer {
    /// Compresses blocks as told.
    pub(crate) fn new(compression: Compression) -> Self {
        let zstd = match compression {
            Compression::Zstd(level) => zstd::bulk::Compressor::new(level).ok(),
            Compression::None | Compression::Lz4 => None,
        };
        Self { compression, buffer: Vec::new(), zstd }
    }

    /// Appends the sealed `payload`, compressed where that is worth it, to `out`; `offset` is where it will lie in
    /// the file.
    pub(crate) fn seal(&mut self, payload: &[u8], uid: TableUid, offset: u32, out: &mut Vec<u8>) {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "a payload is bounded by its builder");
        match self.compress(payload) {
            Some(kind) => seal_kind(&self.buffer, kind, uid, offset, out),
            None => seal_raw(payload, uid, offset, out),
        }
    }

    /// Leaves the compressed payload in the buffer; `None` when it is to be stored as it is.
    fn compress(&mut self, payload: &[u8]) -> Option<u8> {
        let size = u32::try_from(payload.len()).ok()?;
        let bound = match self.compression {
            Compression::None => return None,
            Compression::Lz4 => lz4_flex::block::get_maximum_output_size(payload.len()),
            Compression::Zstd(_) => zstd::zstd_safe::compress_bound(payload.len()),
        };
        self.buffer.resize(4 + bound, 0);
        let (head, body) = self.buffer.split_at_mut(4);
        head.copy_from_slice(&size.to_le_bytes());
        let (kind, packed) = match self.compression {
            Compression::None => return None,
            Compression::Lz4 => (KIND_LZ4, lz4_flex::block::compress_into(payload, body).ok()?),
            Compression::Zstd(_) => {
                (KIND_ZSTD, self.zstd.as_mut()?.compress_to_buffer(payload, body).ok()?)
            }
        };
        self.buffer.truncate(4 + packed);
        (self.buffer.len() + payload.len() / SAVING_PARTS <= payload.len()).then_some(kind)
    }
}

/// Appends the sealed `payload`, as it is, to `out`.
pub(crate) fn seal_raw(payload: &[u8], uid: TableUid, offset: u32, out: &mut Vec<u8>) {
    seal_kind(payload, KIND_RAW, uid, offset, out);
}

fn seal_kind(payload: &[u8], kind: u8, uid: TableUid, offset: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(payload);
    out.push(kind);
    let checksum = xxh3_64_with_seed(&out[start..], seed(uid, offset));
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// Checks a sealed block and takes the payload out, unpacked. Allocates nothing for a block stored as it is, and at most
/// [`PAYLOAD_BYTES_MAX`] otherwise, and that only when the checksum holds.
pub(crate) fn unseal(mut sealed: Vec<u8>, uid: TableUid, offset: u32) -> Result<Vec<u8>, Damage> {
    let (kind, payload_bytes) = check_seal(&sealed, uid, offset)?;
    if kind == KIND_RAW {
        sealed.truncate(payload_bytes);
        return Ok(sealed);
    }
    unpack(kind, &sealed[..payload_bytes])
}

/// As [`unseal`], from bytes that belong to somebody else.
pub(crate) fn unseal_slice(sealed: &[u8], uid: TableUid, offset: u32) -> Result<Vec<u8>, Damage> {
    let (kind, payload_bytes) = check_seal(sealed, uid, offset)?;
    let payload = &sealed[..payload_bytes];
    if kind == KIND_RAW { Ok(payload.to_vec()) } else { unpack(kind, payload) }
}

fn check_seal(sealed: &[u8], uid: TableUid, offset: u32) -> Result<(u8, usize), Damage> {
    let Some((body, checksum)) = sealed.split_last_chunk() else {
        return Err(format!("a block of {} bytes, the least is {SEAL_BYTES}", sealed.len()));
    };
    if u64::from_le_bytes(*checksum) != xxh3_64_with_seed(body, seed(uid, offset)) {
        return Err("the checksum of the block does not match".to_owned());
    }
    let Some((&kind, payload)) = body.split_last() else {
        return Err("the block has no kind".to_owned());
    };
    Ok((kind, payload.len()))
}

fn unpack(kind: u8, packed: &[u8]) -> Result<Vec<u8>, Damage> {
    let mut cursor = Cursor::new(packed);
    let size = cursor.u32().ok_or("a compressed block without its size")? as usize;
    if size > PAYLOAD_BYTES_MAX {
        return Err(format!("a block of {size} bytes, the most is {PAYLOAD_BYTES_MAX}"));
    }
    // LZ4 cannot do better than this: a larger size is a lie, and must not make us reserve memory.
    if kind == KIND_LZ4 && size / 255 > packed.len() {
        return Err(format!("{} bytes of LZ4 do not unpack to {size}", packed.len()));
    }
    let mut payload = vec![0; size];
    let unpacked = match kind {
        KIND_LZ4 => lz4_flex::block::decompress_into(cursor.rest(), &mut payload)
            .map_err(|error| format!("LZ4: {error}"))?,
        KIND_ZSTD => zstd::bulk::decompress_to_buffer(cursor.rest(), &mut payload)
            .map_err(|error| format!("Zstandard: {error}"))?,
        _ => return Err(format!("a block of kind {kind}, known are 0, 1 and 2")),
    };
    if unpacked != size {
        return Err(format!("a block unpacked to {unpacked} bytes, it says {size}"));
    }
    Ok(payload)
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests are small")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: TableUid = TableUid(77);

    fn sealed(payload: &[u8], compression: Compression, offset: u32) -> Vec<u8> {
        let mut out = Vec::new();
        Sealer::new(compression).seal(payload, UID, offset, &mut out);
        out
    }

    #[test]
    fn a_block_is_only_accepted_at_its_place_in_its_table() {
        let block = sealed(b"payload", Compression::None, 100);
        assert_eq!(unseal(block.clone(), UID, 100), Ok(b"payload".to_vec()));
        assert!(unseal(block.clone(), UID, 101).is_err());
        assert!(unseal(block, TableUid(78), 100).is_err());
    }

    #[test]
    fn what_saves_little_is_stored_as_it_is() {
        let random: Vec<u8> = (0..100u64).flat_map(|i| xxh3_64(&[i as u8]).to_le_bytes()).collect();
        for compression in [Compression::Lz4, Compression::Zstd(1)] {
            assert_eq!(sealed(&random, compression, 0).len(), random.len() + SEAL_BYTES);
            assert!(sealed(&[7; 1000], compression, 0).len() < 100);
        }
    }

    #[test]
    fn a_footer_reads_back_and_notices_every_flipped_bit() {
        let footer = Footer {
            filter: 1000,
            range_deletions: 1500,
            index: 1500,
            properties: 1600,
            size: 2000,
            uid: UID,
        };
        let bytes = footer.encode();
        assert_eq!(Footer::decode(&bytes, 2000), Ok(footer));
        assert!(Footer::decode(&bytes, 2001).is_err());
        for bit in 0..FOOTER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::decode(&flipped, 2000).is_err(), "bit {bit}");
        }
        let overlapping = Footer { index: 1400, ..footer }.encode();
        assert!(Footer::decode(&overlapping, 2000).expect_err("overlap").contains("overlap"));
    }

    proptest! {
        #[test]
        fn every_payload_reads_back(payload: Vec<u8>, repeat in 1..50usize, offset: u32) {
            let payload = payload.repeat(repeat);
            for compression in [Compression::None, Compression::Lz4, Compression::Zstd(3)] {
                let block = sealed(&payload, compression, offset);
                prop_assert_eq!(unseal_slice(&block, UID, offset), Ok(payload.clone()));
                prop_assert_eq!(unseal(block, UID, offset), Ok(payload.clone()));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_unpacked(bytes: Vec<u8>, kind: u8) {
            let _ = unseal(bytes.clone(), UID, 0);
            let mut out = Vec::new();
            seal_kind(&bytes, kind, UID, 0, &mut out);
            let _ = unseal(out, UID, 0);
        }
    }
}
