//! What is written: keys, values, and the random order of both. All of it follows from one seed.

use std::sync::Arc;

/// A key of most rows, as `db_bench` makes them: a big-endian number, padded to 16 bytes.
pub type Key = [u8; 16];

/// The key with this index. Only even numbers are used, so that a missing key lies between two others.
pub fn key(index: u64) -> Key {
    padded(index * 2)
}

/// A key that nothing is ever written under, next to the one with this index.
pub fn missing_key(index: u64) -> Key {
    padded(index * 2 + 1)
}

fn padded(number: u64) -> Key {
    let mut key = [b'0'; 16];
    key[..8].copy_from_slice(&number.to_be_bytes());
    key
}

/// A key of YCSB: `user` and 20 digits that look random.
pub fn user_key(index: u64) -> [u8; 24] {
    let mut key = *b"user00000000000000000000";
    let mut number = scramble(index);
    for digit in key[4..].iter_mut().rev() {
        *digit += u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
    key
}

/// One number for another (FNV-1a over its bytes), the same each time.
pub fn scramble(number: u64) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    number.to_le_bytes().into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// SplitMix64: small, quick and good enough to choose keys with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to before `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        ((self.next() as u128 * end as u128) >> 64) as u64
    }

    /// A number from 0 to before 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// All numbers from 0 to before `end`, shuffled.
    pub fn permutation(&mut self, end: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = (0..end).collect();
        for last in (1..numbers.len()).rev() {
            numbers.swap(last, self.below(last as u64 + 1) as usize);
        }
        numbers
    }
}

/// Ranks from 0 to before `ranks`, the lower the more often, as YCSB draws them (Gray et al., SIGMOD '94; exponent 0.99).
#[derive(Debug, Clone)]
pub struct Zipfian {
    ranks: f64,
    zeta: f64,
    eta: f64,
}

impl Zipfian {
    const EXPONENT: f64 = 0.99;

    pub fn new(ranks: u64) -> Self {
        let term = |rank: u64| (rank as f64).powf(-Self::EXPONENT);
        let zeta: f64 = (1..=ranks).map(term).sum();
        let ranks = ranks as f64;
        let head = 1.0 - (2.0 / ranks).powf(1.0 - Self::EXPONENT);
        Self { ranks, zeta, eta: head / (1.0 - (1.0 + term(2)) / zeta) }
    }

    pub fn next(&self, random: &mut Random) -> u64 {
        let unit = random.unit();
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(Self::EXPONENT) {
            return 1;
        }
        let base = self.eta.mul_add(unit, 1.0 - self.eta);
        let rank = self.ranks * base.powf(1.0 / (1.0 - Self::EXPONENT));
        (rank as u64).min(self.ranks as u64 - 1)
    }
}

/// Longest value there is, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 10;

const POOL_BYTES: usize = 1 << 20;
const PIECE_BYTES: usize = 100;

/// Values that compress to about a half, as those of `db_bench`: pieces of 100 bytes that say the same 50 twice.
/// A value begins with the index of its key, so that a read can tell whether it got the right one.
#[derive(Debug, Clone)]
pub struct Values {
    pool: Arc<[u8]>,
    position: usize,
    value: Vec<u8>,
}

impl Values {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut pool = Vec::with_capacity(POOL_BYTES + VALUE_BYTES_MAX + PIECE_BYTES);
        while pool.len() < POOL_BYTES + VALUE_BYTES_MAX {
            let half: [u8; PIECE_BYTES / 2] =
                std::array::from_fn(|_| b' ' + random.below(95) as u8);
            pool.extend_from_slice(&half);
            pool.extend_from_slice(&half);
        }
        Self { pool: pool.into(), position: 0, value: Vec::with_capacity(VALUE_BYTES_MAX) }
    }

    /// The next value of so many bytes, at least 8 and at most [`VALUE_BYTES_MAX`], for the key with this index.
    pub fn next(&mut self, index: u64, bytes: usize) -> &[u8] {
        self.value.clear();
        self.value.extend_from_slice(&self.pool[self.position..self.position + bytes]);
        self.value[..8].copy_from_slice(&index.to_be_bytes());
        self.position = (self.position + bytes) % POOL_BYTES;
        &self.value
    }
}

/// Looks at all of a value; returns the index of its key.
pub fn touch(value: &[u8]) -> u64 {
    std::hint::black_box(value.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    value.first_chunk().map_or(u64::MAX, |index| u64::from_be_bytes(*index))
}
