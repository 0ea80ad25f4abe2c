//! What a range asks for, and the token that continues it.
//!
//! A token is base64 (URL alphabet, no padding) of:
//!
//! | field | bytes | |
//! |---|---|---|
//! | version | 1 | `1` |
//! | query | 8 | xxh64 of the query's fields, little-endian |
//! | last | 1 to 4096 | key of the last item given out |
//! | check | 4 | crc32c of all before, little-endian |
//!
//! It is bound to the query it came from, and holds nothing but a position: it stays valid over restarts and for ever.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::error::{Error, Reason, Result};
use crate::storage::{Direction, KeyRange};
use crate::types::KEY_BYTES_MAX;
use crate::util::coding::Cursor;

const TOKEN_VERSION: u8 = 1;

/// Longest token that can be one: more is not even decoded.
const TOKEN_TEXT_MAX: usize = (1 + 8 + KEY_BYTES_MAX + 4).div_ceil(3) * 4;

/// Bounds of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimits {
    /// Most items, at least 1.
    pub items: usize,
    /// Most bytes of keys and values; the first item is given out in any case.
    pub bytes: usize,
}

/// A range of keys, in one direction, from its beginning or from where a page ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
    direction: Direction,
    keys_only: bool,
    fingerprint: u64,
}

impl Query {
    /// The keys in `[start, end)` that begin with `prefix`; empty texts are no bound.
    ///
    /// # Errors
    ///
    /// INVALID_RANGE when `end` is below `start`.
    pub fn new(
        start: &str,
        end: &str,
        prefix: &str,
        direction: Direction,
        keys_only: bool,
    ) -> Result<Self> {
        if !end.is_empty() && end < start {
            let message = format!(
                "end_key {end:?} is below start_key {start:?}; a range goes upwards, reverse turns the order of the items"
            );
            return Err(Error::new(Reason::InvalidRange, message));
        }
        let mut hash = xxhash_rust::xxh64::Xxh64::new(u64::from(direction == Direction::Reverse));
        for text in [start, end, prefix] {
            hash.update(&(text.len() as u64).to_le_bytes());
            hash.update(text.as_bytes());
        }
        let mut bounds =
            (start.as_bytes().to_vec(), (!end.is_empty()).then(|| end.as_bytes().to_vec()));
        if !prefix.is_empty() {
            bounds.0 = bounds.0.max(prefix.as_bytes().to_vec());
            let beyond = successor(prefix.as_bytes());
            bounds.1 = match (bounds.1, beyond) {
                (Some(end), Some(beyond)) => Some(end.min(beyond)),
                (end, beyond) => end.or(beyond),
            };
        }
        Ok(Self {
            start: bounds.0,
            end: bounds.1,
            direction,
            keys_only,
            fingerprint: hash.digest(),
        })
    }

    /// The keys in `[start, end)`, for another node. Its tokens are worth nothing.
    pub(super) const fn of_bounds(
        start: Vec<u8>,
        end: Option<Vec<u8>>,
        direction: Direction,
        keys_only: bool,
    ) -> Self {
        Self { start, end, direction, keys_only, fingerprint: 0 }
    }

    /// The keys that are left to give out.
    pub fn range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.start, self.end.as_deref())
    }

    /// The order of the items.
    pub const fn direction(&self) -> Direction {
        self.direction
    }

    /// Whether values are left out.
    pub const fn keys_only(&self) -> bool {
        self.keys_only
    }

    /// The token that continues after `last`.
    pub fn token(&self, last: &[u8]) -> String {
        let mut bytes = Vec::with_capacity(13 + last.len());
        bytes.push(TOKEN_VERSION);
        bytes.extend_from_slice(&self.fingerprint.to_le_bytes());
        bytes.extend_from_slice(last);
        let check = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// This query, continued where the page that gave out `token` ended.
    ///
    /// # Errors
    ///
    /// INVALID_PAGE_TOKEN when it is no token, or one of another query.
    pub fn resume(self, token: &str) -> Result<Self> {
        let invalid = |why: &str| {
            Error::new(
                Reason::InvalidPageToken,
                format!("page_token {why}; use next_page_token of the page before, as it was"),
            )
        };
        if token.len() > TOKEN_TEXT_MAX {
            return Err(invalid("is too long"));
        }
        let bytes =
            URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid("is not one of this server's"))?;
        let (fingerprint, last) =
            decode(&bytes).ok_or_else(|| invalid("is not one of this server's"))?;
        if fingerprint != self.fingerprint {
            return Err(invalid("belongs to a query with other bounds or another order"));
        }
        Ok(self.after(last))
    }

    /// This query without what comes before and at `last`, in its order.
    #[must_use]
    pub fn after(mut self, last: &[u8]) -> Self {
        match self.direction {
            Direction::Forward => {
                let mut next = last.to_vec();
                next.push(0);
                self.start = self.start.max(next);
            }
            Direction::Reverse => {
                let last = last.to_vec();
                self.end = Some(self.end.map_or(last.clone(), |end| end.min(last)));
            }
        }
        self
    }
}

fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (body, check) = bytes.split_last_chunk::<4>()?;
    if crc32c::crc32c(body) != u32::from_le_bytes(*check) {
        return None;
    }
    let mut cursor = Cursor::new(body);
    if cursor.u8()? != TOKEN_VERSION {
        return None;
    }
    let fingerprint = cursor.u64()?;
    (1..=KEY_BYTES_MAX).contains(&cursor.rest().len()).then(|| (fingerprint, cursor.rest()))
}

/// The first byte string beyond all that begin with `prefix`; `None` when there is none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != 0xff)?;
    let mut beyond = prefix[..=last].to_vec();
    beyond[last] += 1;
    Some(beyond)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(start: &str, end: &str, prefix: &str, direction: Direction) -> Query {
        Query::new(start, end, prefix, direction, false).expect("the range goes upwards")
    }

    #[test]
    fn a_prefix_narrows_the_bounds() {
        let forward = Direction::Forward;
        assert_eq!(
            query("", "", "user/", forward).range(),
            KeyRange::new(b"user/", Some(b"user0"))
        );
        assert_eq!(
            query("user/b", "", "user/", forward).range(),
            KeyRange::new(b"user/b", Some(b"user0"))
        );
        assert_eq!(
            query("a", "user/c", "user/", forward).range(),
            KeyRange::new(b"user/", Some(b"user/c"))
        );
        assert!(query("v", "", "user/", forward).range().is_empty());
    }

    #[test]
    fn a_range_that_goes_down_is_refused() {
        let error = Query::new("b", "a", "", Direction::Forward, false).expect_err("goes down");
        assert_eq!(error.reason(), Reason::InvalidRange);
    }

    #[test]
    fn a_token_continues_its_query_and_no_other() {
        let forward = query("a", "z", "", Direction::Forward);
        let token = forward.token(b"m");
        let resumed = forward.clone().resume(&token).expect("its own token");
        assert_eq!(resumed.range(), KeyRange::new(b"m\0", Some(b"z")));
        let reverse = query("a", "z", "", Direction::Reverse);
        let resumed = reverse.clone().resume(&reverse.token(b"m")).expect("its own token");
        assert_eq!(resumed.range(), KeyRange::new(b"a", Some(b"m")));
        for other in [query("a", "y", "", Direction::Forward), reverse] {
            assert_eq!(
                other.resume(&token).expect_err("foreign").reason(),
                Reason::InvalidPageToken
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_passes_for_a_token(text in "\\PC{0,40}") {
            prop_assert!(query("", "", "", Direction::Forward).resume(&text).is_err());
        }

        #[test]
        fn a_changed_token_is_refused(at in 0usize..20, flip in 1u8..) {
            let query = query("", "", "", Direction::Forward);
            let mut bytes = URL_SAFE_NO_PAD.decode(query.token(b"seven77")).expect("own encoding");
            bytes[at] ^= flip;
            prop_assert!(query.resume(&URL_SAFE_NO_PAD.encode(bytes)).is_err());
        }
    }
}
