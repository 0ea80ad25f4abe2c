//! How commands and their outcomes look in the log and between nodes. Pure: values in, bytes out.
//!
//! # A proposal: the commands that one entry of the log carries
//!
//! | bytes | what |
//! |---|---|
//! | 0 | version, `1` |
//! | 1..9 | stamp: the leader's time when it proposed, in milliseconds since 1970 |
//! | varint | number of commands, at least 1 |
//! | rest | the commands, one after the other |
//!
//! # A command
//!
//! | bytes | what |
//! |---|---|
//! | 0 | tag: `1` put, `2` delete, `3` put many, `4` tick |
//! | 1 | flags: bit 0 a request id follows, bit 1 a ttl, bit 2 a condition |
//! | slice | request id |
//! | varint | ttl in seconds, at least 1 |
//! | varint | the version that the key must have |
//! | put | key (slice), kind of value (1), value (slice) |
//! | delete | key (slice) |
//! | put many | number of entries (varint), then each as of a put |
//!
//! Kinds of value: `1` JSON text, `2` raw bytes. A slice is its length as a varint, then the bytes.
//!
//! # Outcomes
//!
//! | bytes | what |
//! |---|---|
//! | 0 | version, `1` |
//! | varint | number of outcomes |
//! | each | tag (1): `1` put, version (varint); `2` delete, deleted (1); `3` put many, count (varint); `4` tick; `5` mismatch, expected and actual version (varints); `6` request id used for another kind of write |
//!
//! Fixed-width numbers are little-endian, varints LEB128. Tags and versions are never used again for something else. Bytes are decoded or refused,
//! never with a panic, and nothing is reserved for more than what is there.

use std::fmt;

use bytes::Bytes;

use super::{Change, Command, Outcome, TtlSeconds};
use crate::types::{Key, RequestId, Value, Version};
use crate::util::coding::{Cursor, put_slice, put_varint};
use crate::util::time::Timestamp;

const VERSION: u8 = 1;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const PUT_MANY: u8 = 3;
const TICK: u8 = 4;

const WITH_REQUEST_ID: u8 = 1;
const WITH_TTL: u8 = 2;
const WITH_CONDITION: u8 = 4;

const JSON: u8 = 1;
const RAW: u8 = 2;

const OUTCOME_PUT: u8 = 1;
const OUTCOME_DELETE: u8 = 2;
const OUTCOME_PUT_MANY: u8 = 3;
const OUTCOME_TICK: u8 = 4;
const OUTCOME_MISMATCH: u8 = 5;
const OUTCOME_REQUEST_ID_REUSED: u8 = 6;

/// Bytes that encode no proposal or outcomes of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes that are no commands of a version that this program reads")]
pub struct Malformed(usize);

/// The commands of one entry of the log, encoded. Cheap to clone. What is in it was not checked: [`Self::decode`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(Bytes);

impl Proposal {
    /// Encodes `commands`, stamped `stamp`.
    pub fn encode<'a>(
        stamp: Timestamp,
        commands: impl Iterator<Item = &'a Command> + Clone,
    ) -> Self {
        let size: usize = commands.clone().map(|command| command.change.size_bytes() + 32).sum();
        let count = commands.clone().count();
        let mut buffer = Vec::with_capacity(16 + size);
        buffer.push(VERSION);
        buffer.extend_from_slice(&stamp.as_millis().to_le_bytes());
        put_varint(&mut buffer, count as u64);
        for command in commands {
            put_command(&mut buffer, command);
        }
        Self(buffer.into())
    }

    /// What was encoded elsewhere.
    pub const fn from_bytes(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The encoding.
    pub const fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The stamp and the commands; their values share the memory of the encoding.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn decode(&self) -> Result<(Timestamp, Vec<Command>), Malformed> {
        self.read().ok_or(Malformed(self.0.len()))
    }

    fn read(&self) -> Option<(Timestamp, Vec<Command>)> {
        let mut cursor = Cursor::new(&self.0);
        if cursor.u8()? != VERSION {
            return None;
        }
        let stamp = Timestamp::from_millis(cursor.u64()?);
        let count = cursor.varint()?;
        let mut commands = Vec::new();
        for _ in 0..count {
            commands.push(self.command(&mut cursor)?);
        }
        (cursor.is_empty() && !commands.is_empty()).then_some((stamp, commands))
    }

    fn command(&self, cursor: &mut Cursor<'_>) -> Option<Command> {
        let (tag, flags) = (cursor.u8()?, cursor.u8()?);
        if flags > (WITH_REQUEST_ID | WITH_TTL | WITH_CONDITION) {
            return None;
        }
        let has = |flag: u8| flags & flag != 0;
        let request_id =
            if has(WITH_REQUEST_ID) { Some(RequestId::new(text(cursor)?)?) } else { None };
        let ttl = if has(WITH_TTL) { Some(ttl(cursor)?) } else { None };
        let if_version = if has(WITH_CONDITION) { Some(Version(cursor.varint()?)) } else { None };
        let change = match tag {
            PUT => {
                let (key, value) = self.entry(cursor)?;
                Change::Put { key, value, ttl, if_version }
            }
            DELETE if ttl.is_none() => Change::Delete { key: key(cursor)?, if_version },
            PUT_MANY if if_version.is_none() => {
                let mut entries = Vec::new();
                for _ in 0..cursor.varint()? {
                    entries.push(self.entry(cursor)?);
                }
                Change::PutMany { entries, ttl }
            }
            TICK if flags == 0 => Change::Tick,
            _ => return None,
        };
        Some(Command { change, request_id })
    }

    fn entry(&self, cursor: &mut Cursor<'_>) -> Option<(Key, Value)> {
        let key = key(cursor)?;
        let kind = cursor.u8()?;
        let content = self.0.slice_ref(cursor.slice()?);
        let value = match kind {
            JSON => Value::Json(content),
            RAW => Value::Raw(content),
            _ => return None,
        };
        Some((key, value))
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Keys and values are not for logs.
        write!(f, "Proposal({} bytes)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

fn put_command(buffer: &mut Vec<u8>, command: &Command) {
    let (tag, ttl, if_version) = match &command.change {
        Change::Put { ttl, if_version, .. } => (PUT, *ttl, *if_version),
        Change::Delete { if_version, .. } => (DELETE, None, *if_version),
        Change::PutMany { ttl, .. } => (PUT_MANY, *ttl, None),
        Change::Tick => (TICK, None, None),
    };
    let flag = |present: bool, flag: u8| if present { flag } else { 0 };
    let flags = flag(command.request_id.is_some(), WITH_REQUEST_ID)
        | flag(ttl.is_some(), WITH_TTL)
        | flag(if_version.is_some(), WITH_CONDITION);
    buffer.extend_from_slice(&[tag, flags]);
    if let Some(id) = &command.request_id {
        put_slice(buffer, id.as_bytes());
    }
    if let Some(seconds) = ttl {
        put_varint(buffer, seconds.get().into());
    }
    if let Some(version) = if_version {
        put_varint(buffer, version.0);
    }
    match &command.change {
        Change::Put { key, value, .. } => put_entry(buffer, key, value),
        Change::Delete { key, .. } => put_slice(buffer, key.as_bytes()),
        Change::PutMany { entries, .. } => {
            put_varint(buffer, entries.len() as u64);
            for (key, value) in entries {
                put_entry(buffer, key, value);
            }
        }
        Change::Tick => {}
    }
}

fn put_entry(buffer: &mut Vec<u8>, key: &Key, value: &Value) {
    put_slice(buffer, key.as_bytes());
    buffer.push(match value {
        Value::Json(_) => JSON,
        Value::Raw(_) => RAW,
    });
    put_slice(buffer, value.bytes());
}

fn text<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    std::str::from_utf8(cursor.slice()?).ok()
}

fn key(cursor: &mut Cursor<'_>) -> Option<Key> {
    Key::new(text(cursor)?.to_owned()).ok()
}

fn ttl(cursor: &mut Cursor<'_>) -> Option<TtlSeconds> {
    TtlSeconds::new(u32::try_from(cursor.varint()?).ok()?)
}

/// Encodes outcomes, in the order of their commands.
pub fn encode_outcomes(outcomes: &[Outcome]) -> Bytes {
    let mut buffer = Vec::with_capacity(4 + outcomes.len() * 6);
    buffer.push(VERSION);
    put_varint(&mut buffer, outcomes.len() as u64);
    for outcome in outcomes {
        match *outcome {
            Outcome::Put { version } => {
                buffer.push(OUTCOME_PUT);
                put_varint(&mut buffer, version.0);
            }
            Outcome::Delete { deleted } => {
                buffer.extend_from_slice(&[OUTCOME_DELETE, deleted.into()]);
            }
            Outcome::PutMany { count } => {
                buffer.push(OUTCOME_PUT_MANY);
                put_varint(&mut buffer, count.into());
            }
            Outcome::Tick => buffer.push(OUTCOME_TICK),
            Outcome::Mismatch { expected, actual } => {
                buffer.push(OUTCOME_MISMATCH);
                put_varint(&mut buffer, expected.0);
                put_varint(&mut buffer, actual.0);
            }
            Outcome::RequestIdReused => buffer.push(OUTCOME_REQUEST_ID_REUSED),
        }
    }
    buffer.into()
}

/// Reads what [`encode_outcomes`] wrote.
///
/// # Errors
///
/// [`Malformed`].
pub fn decode_outcomes(bytes: &[u8]) -> Result<Vec<Outcome>, Malformed> {
    let read = || {
        let mut cursor = Cursor::new(bytes);
        if cursor.u8()? != VERSION {
            return None;
        }
        let mut outcomes = Vec::new();
        for _ in 0..cursor.varint()? {
            outcomes.push(outcome(&mut cursor)?);
        }
        cursor.is_empty().then_some(outcomes)
    };
    read().ok_or(Malformed(bytes.len()))
}

fn outcome(cursor: &mut Cursor<'_>) -> Option<Outcome> {
    Some(match cursor.u8()? {
        OUTCOME_PUT => Outcome::Put { version: Version(cursor.varint()?) },
        OUTCOME_DELETE => Outcome::Delete { deleted: cursor.u8()? != 0 },
        OUTCOME_PUT_MANY => Outcome::PutMany { count: u32::try_from(cursor.varint()?).ok()? },
        OUTCOME_TICK => Outcome::Tick,
        OUTCOME_MISMATCH => Outcome::Mismatch {
            expected: Version(cursor.varint()?),
            actual: Version(cursor.varint()?),
        },
        OUTCOME_REQUEST_ID_REUSED => Outcome::RequestIdReused,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Key> {
        "\\PC{1,20}".prop_map(|text| Key::new(text).expect("1 to 80 bytes"))
    }

    fn values() -> impl Strategy<Value = Value> {
        (any::<bool>(), any::<Vec<u8>>()).prop_map(|(json, bytes)| {
            if json { Value::Json("{}".into()) } else { Value::Raw(bytes.into()) }
        })
    }

    fn commands() -> impl Strategy<Value = Command> {
        let ttl = || proptest::option::of(any::<TtlSeconds>());
        let version = || proptest::option::of(any::<u64>().prop_map(Version));
        let change = prop_oneof![
            (keys(), values(), ttl(), version()).prop_map(|(key, value, ttl, if_version)| {
                Change::Put { key, value, ttl, if_version }
            }),
            (keys(), version()).prop_map(|(key, if_version)| Change::Delete { key, if_version }),
            (proptest::collection::vec((keys(), values()), 0..4), ttl())
                .prop_map(|(entries, ttl)| Change::PutMany { entries, ttl }),
        ];
        let id = proptest::option::of("[a-z]{1,64}");
        prop_oneof![
            (change, id).prop_map(|(change, id)| {
                let request_id = id.map(|id| RequestId::new(&id).expect("1 to 64 bytes"));
                Command { change, request_id }
            }),
            Just(Command { change: Change::Tick, request_id: None }),
        ]
    }

    proptest! {
        #[test]
        fn every_proposal_reads_back(
            stamp: u64, commands in proptest::collection::vec(commands(), 1..5), cut: prop::sample::Index,
        ) {
            let stamp = Timestamp::from_millis(stamp);
            let proposal = Proposal::encode(stamp, commands.iter());
            prop_assert_eq!(proposal.decode(), Ok((stamp, commands)));
            let cut = proposal.bytes().slice(..cut.index(proposal.bytes().len()));
            prop_assert!(Proposal::from_bytes(cut).decode().is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes: Vec<u8>) {
            let _ = decode_outcomes(&bytes);
            if let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let _ = decode_outcomes(&bytes);
            let _ = Proposal::from_bytes(bytes.into()).decode();
        }
    }

    #[test]
    fn outcomes_read_back() {
        let outcomes = [
            Outcome::Put { version: Version(300) },
            Outcome::Delete { deleted: true },
            Outcome::PutMany { count: 10_000 },
            Outcome::Tick,
            Outcome::Mismatch { expected: Version(1), actual: Version::ABSENT },
            Outcome::RequestIdReused,
        ];
        let bytes = encode_outcomes(&outcomes);
        assert_eq!(decode_outcomes(&bytes), Ok(outcomes.to_vec()));
        assert!((0..bytes.len()).all(|end| decode_outcomes(&bytes[..end]).is_err()));
    }

    #[test]
    fn a_proposal_without_commands_is_refused() {
        let empty = Proposal::encode(Timestamp::BEGINNING, [].iter());
        assert!(empty.decode().is_err());
    }
}
