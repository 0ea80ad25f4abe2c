//! What is written: keys, values, and the random order of both. All of it follows from one seed and is the same for both systems.

use bytes::Bytes;

/// Length of a value in bytes.
pub const VALUE_BYTES: usize = 100;

/// Length of a key in bytes.
pub const KEY_BYTES: usize = 20;

/// A key that looks random: `user` and 16 hexadecimal digits.
pub fn key(index: u64) -> String {
    format!("user{:016x}", scramble(index))
}

/// One number for another (the finaliser of SplitMix64), different for different numbers.
const fn scramble(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Numbers good enough to choose keys with.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        scramble(self.0)
    }

    /// A number from 0 to before `end`.
    pub const fn below(&mut self, end: u64) -> u64 {
        ((self.next() as u128 * end as u128) >> 64) as u64
    }
}

/// A value for the key with this index: JSON text of [`VALUE_BYTES`] that names the index, the rest random letters.
pub fn value(index: u64, random: &mut Random) -> Bytes {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = head(index).into_bytes();
    let mut bits = 0;
    for at in text.len()..VALUE_BYTES - 2 {
        if at % 8 == 0 || bits == 0 {
            bits = random.next();
        }
        text.push(LETTERS[usize::from(bits.to_le_bytes()[0]) % LETTERS.len()]);
        bits >>= 6;
    }
    text.extend_from_slice(b"\"}");
    text.into()
}

/// How a value for the key with this index begins.
fn head(index: u64) -> String {
    format!("{{\"index\":{index},\"text\":\"")
}

/// Whether a value that was read was written under the key with this index.
pub fn is_value(index: u64, value: &[u8]) -> bool {
    value.len() == VALUE_BYTES && value.starts_with(head(index).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_have_their_lengths_and_values_name_their_key() {
        let mut random = Random::new(7);
        for index in [0, 9, 99_999, 1_000_000_000] {
            assert_eq!(key(index).len(), KEY_BYTES);
            let value = value(index, &mut random);
            assert!(is_value(index, &value), "{value:?}");
            assert!(!is_value(index + 1, &value), "{value:?}");
            assert!(value.is_ascii() && value.starts_with(b"{") && value.ends_with(b"\"}"));
        }
    }
}
