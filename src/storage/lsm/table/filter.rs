//! The filter: says of most keys that are not in a table that they are not, without reading a block.
//!
//! A blocked Bloom filter (Putze, Sanders, Singler, 2007): the hash of a key picks one **line** of 64 bytes, one
//! cache line, and `probes` bits in it. One line costs one cache miss where a plain Bloom filter costs one for each
//! probe, and a few more false answers: 10 bits for each key give about 1 %, 12 bits 0.5 %, 16 bits 0.1 %.
//!
//! Lines are kept in **pieces** of 512 (32 KiB), each a block of its own. The hash tells the piece, so that pieces
//! need no index, and of a filter that does not fit the cache those that are asked stay in it.
//!
//! | piece | bytes | |
//! |---|---|---|
//! | lines | 64 each | bit `i` is bit `i % 8` of byte `i / 8`; 512 lines, fewer in the last piece |
//!
//! How many lines and probes there are is kept in the properties of the table.

use super::format::Damage;
use crate::storage::lsm::key::KeyHash;

/// Bytes of a line.
const LINE_BYTES: usize = 64;

/// Lines of a piece: 32 KiB of them.
pub(crate) const PIECE_LINES: u32 = 512;

/// Most probes there can be; more than 16 make no sense in a line of 512 bits.
const PROBES_MAX: u8 = 16;

/// The shape of a filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FilterShape {
    /// Lines in all; 0: there is no filter.
    pub(crate) lines: u32,
    /// Bits tested for each key.
    pub(crate) probes: u8,
}

impl FilterShape {
    /// That of a filter for `keys` distinct keys.
    pub(crate) fn new(keys: usize, bits_per_key: usize) -> Self {
        if keys == 0 || bits_per_key == 0 {
            return Self::default();
        }
        let lines = keys.saturating_mul(bits_per_key).div_ceil(LINE_BYTES * 8);
        // The best number is 0.69 for each bit; a little fewer is as good in a line and quicker.
        let probes = (bits_per_key * 3 / 5).clamp(1, usize::from(PROBES_MAX));
        Self {
            lines: u32::try_from(lines).expect("a table of 4 GiB has fewer keys than that"),
            probes: u8::try_from(probes).expect("clamped"),
        }
    }

    /// Refuses what no filter has.
    pub(crate) fn check(self) -> Result<Self, Damage> {
        if self.lines == 0 || (1..=PROBES_MAX).contains(&self.probes) {
            return Ok(self);
        }
        Err(format!("a filter with {} probes, allowed are 1 to {PROBES_MAX}", self.probes))
    }

    /// Number of pieces.
    pub(crate) const fn pieces(self) -> u32 {
        self.lines.div_ceil(PIECE_LINES)
    }

    /// Bytes of the payload of piece `number`.
    pub(crate) const fn piece_bytes(self, number: u32) -> usize {
        let rest = self.lines - number * PIECE_LINES;
        let lines = if rest < PIECE_LINES { rest } else { PIECE_LINES };
        lines as usize * LINE_BYTES
    }

    /// The line of a key: its piece, and which one there.
    #[inline]
    pub(crate) fn place(self, hash: KeyHash) -> (u32, usize) {
        // The high half of the product spreads the hash evenly over any number of lines, without a division.
        let product = u128::from(hash.0) * u128::from(self.lines);
        let line = u32::try_from(product >> 64).expect("less than the number of lines");
        (line / PIECE_LINES, (line % PIECE_LINES) as usize)
    }
}

/// The bits of a key in its line. The line is chosen by the high bits of the hash; multiplied by odd numbers, the rest of
/// the hash moves into the high bits again.
#[inline]
fn bits(hash: KeyHash, probes: u8) -> impl Iterator<Item = usize> {
    let mut state = hash.0;
    (0..probes).map(move |_| {
        state = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Nine bits: one of 512. The lower ones would repeat what the fingerprints of blocks test.
        (state >> 55) as usize
    })
}

/// One piece of a filter, in memory.
#[derive(Debug)]
pub(crate) struct FilterPiece {
    lines: Vec<u8>,
}

impl FilterPiece {
    /// Takes the payload of piece `number`.
    pub(crate) fn parse(shape: FilterShape, number: u32, lines: Vec<u8>) -> Result<Self, Damage> {
        if lines.len() == shape.piece_bytes(number) {
            return Ok(Self { lines });
        }
        let expected = shape.piece_bytes(number);
        Err(format!("a filter piece of {} bytes, expected {expected}", lines.len()))
    }

    /// Whether the key may be in the table: false is certain.
    #[inline]
    pub(crate) fn may_contain(&self, line: usize, hash: KeyHash, probes: u8) -> bool {
        let line = &self.lines[line * LINE_BYTES..(line + 1) * LINE_BYTES];
        let line: &[u8; LINE_BYTES] = line.try_into().expect("a slice of that length");
        // All probes, without a branch for each: the line is in the cache after the first.
        bits(hash, probes).fold(1, |all, bit| all & (line[bit / 8] >> (bit % 8))) == 1
    }

    /// Bytes of memory it takes.
    pub(crate) const fn memory_bytes(&self) -> usize {
        self.lines.capacity() + size_of::<Self>()
    }
}

/// Collects the hashes of the keys of a table: 8 bytes for each until the table is finished.
#[derive(Debug, Default)]
pub(crate) struct FilterBuilder {
    hashes: Vec<KeyHash>,
}

impl FilterBuilder {
    /// Adds a key; the caller leaves out repetitions.
    pub(crate) fn add(&mut self, hash: KeyHash) {
        self.hashes.push(hash);
    }

    /// The shape and the pieces' payloads.
    pub(crate) fn finish(self, bits_per_key: usize) -> (FilterShape, Vec<u8>) {
        let shape = FilterShape::new(self.hashes.len(), bits_per_key);
        let mut lines = vec![0u8; shape.lines as usize * LINE_BYTES];
        if shape.lines > 0 {
            for hash in self.hashes {
                let (piece, line) = shape.place(hash);
                let start = ((piece * PIECE_LINES) as usize + line) * LINE_BYTES;
                for bit in bits(hash, shape.probes) {
                    lines[start + bit / 8] |= 1 << (bit % 8);
                }
            }
        }
        (shape, lines)
    }
}

/// Bytes of the payload of a full piece.
pub(crate) const PIECE_BYTES: usize = PIECE_LINES as usize * LINE_BYTES;

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "numbers of tests are small")]
#[expect(clippy::cast_precision_loss, reason = "a rate of some per cent")]
mod tests {
    use super::*;

    struct Filter {
        shape: FilterShape,
        pieces: Vec<FilterPiece>,
    }

    impl Filter {
        fn of(keys: impl Iterator<Item = u64>, bits_per_key: usize) -> Self {
            let mut builder = FilterBuilder::default();
            keys.for_each(|key| builder.add(KeyHash::of(&key.to_be_bytes())));
            let (shape, lines) = builder.finish(bits_per_key);
            let pieces = lines
                .chunks(PIECE_BYTES)
                .zip(0..)
                .map(|(piece, number)| FilterPiece::parse(shape, number, piece.to_vec()))
                .collect::<Result<Vec<_>, _>>()
                .expect("pieces of the right size");
            assert_eq!(pieces.len(), shape.pieces() as usize);
            Self { shape, pieces }
        }

        fn may_contain(&self, key: u64) -> bool {
            let hash = KeyHash::of(&key.to_be_bytes());
            let (piece, line) = self.shape.place(hash);
            self.pieces[piece as usize].may_contain(line, hash, self.shape.probes)
        }
    }

    #[test]
    fn every_key_of_the_table_may_be_there() {
        for keys in [1, 2, 51, 52, 1000, 30_000] {
            for bits_per_key in [1, 8, 10, 40] {
                let filter = Filter::of(0..keys, bits_per_key);
                assert!((0..keys).all(|key| filter.may_contain(key)), "{keys} {bits_per_key}");
            }
        }
    }

    #[test]
    fn false_answers_stay_near_the_published_rates() {
        // RocksDB's cache-local Bloom filter, util/bloom_impl.h and its pull request #6007.
        for (bits_per_key, published) in [(10, 0.0114), (12, 0.006), (16, 0.00245)] {
            let filter = Filter::of(0..200_000, bits_per_key);
            let asked = 400_000;
            let wrong = (1 << 40..(1 << 40) + asked).filter(|&key| filter.may_contain(key)).count();
            let rate = wrong as f64 / f64::from(asked as u32);
            assert!(
                rate < published * 1.3,
                "{bits_per_key} bits: {rate:.5}, published {published}"
            );
            assert!(wrong > 0, "too good to be true");
        }
    }

    #[test]
    fn shapes_that_no_filter_has_are_refused() {
        assert!(FilterShape { lines: 0, probes: 0 }.check().is_ok());
        assert!(FilterShape { lines: 1, probes: 0 }.check().is_err());
        assert!(FilterShape { lines: 1, probes: 17 }.check().is_err());
        let shape = FilterShape { lines: 513, probes: 6 };
        assert!(FilterPiece::parse(shape, 0, vec![0; PIECE_BYTES]).is_ok());
        assert!(FilterPiece::parse(shape, 1, vec![0; 64]).is_ok());
        assert!(FilterPiece::parse(shape, 1, vec![0; 63]).is_err());
    }
}
