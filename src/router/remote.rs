//! What nodes ask each other for their callers, and the answers, as bytes. Pure: values in, bytes out.
//!
//! # A question
//!
//! | bytes | what |
//! |---|---|
//! | 0 | version, `1` |
//! | 1 | kind: `1` documents, `2` page, `3` figures |
//! | 2 | freshness: `0` linearizable, `1` lease, `2` stale |
//! | varint | milliseconds that the answer may take |
//! | varint | how many shards it is about |
//! | each | the shard (varint); documents: also the number of its keys (varint), each a slice |
//! | documents | most bytes of keys and values (varint) |
//! | page | flags (1): bit 0 reverse, bit 1 keys only, bit 2 there is an end; start (slice), end (slice), most items (varint), most bytes (varint) |
//!
//! # An answer
//!
//! | bytes | what |
//! |---|---|
//! | 0 | version, `1` |
//! | 1 | kind: `0` error, `1` documents, `2` page, `3` figures |
//! | error | reason, message (slices), milliseconds after which to come back (varint, 0: does not say), number of facts (varint), each name and value (slices) |
//! | others | how many of the shards are not served there (varint), each: the shard (varint), the node that leads it (slice, empty: not known); then how many results (varint), each as below |
//! | document | the place of its key in the question (varint), version (varint), ttl in seconds (varint, 0: none), value |
//! | page | more (1), then its number of items (varint), each: key (slice), version (varint), ttl (varint), value |
//! | figures | shard, last version, writes, reads, keys, bytes (varints), leader (slice, empty: none), number of replicas (varint), each a node (slice) |
//! | a value | kind (1): `0` left out, `1` JSON text, `2` raw; bytes (slice), unless left out |
//!
//! Fixed-width numbers do not occur, varints are LEB128. Tags and versions are never used again for something else. Bytes are decoded or refused, never with a panic, and
//! nothing is reserved for more than what is there.

use std::time::Duration;

use bytes::Bytes;

use super::merge::{Item, Page};
use super::query::{PageLimits, Query};
use crate::cluster::NodeName;
use crate::error::{Error, Reason, Result};
use crate::shard::{Document, Freshness};
use crate::storage::Direction;
use crate::types::{Key, ShardId, Value, Version};
use crate::util::coding::{Cursor, put_slice, put_varint};

const VERSION: u8 = 1;

const ERROR: u8 = 0;
const DOCUMENTS: u8 = 1;
const PAGE: u8 = 2;
const FIGURES: u8 = 3;

const REVERSE: u8 = 1;
const KEYS_ONLY: u8 = 2;
const BOUNDED: u8 = 4;

const NO_VALUE: u8 = 0;
const JSON: u8 = 1;
const RAW: u8 = 2;

/// Names of the facts that an error may carry; others are not passed on.
const FACTS: [&str; 4] = ["limit", "max", "got", "unit"];

/// What is asked about shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// The documents under some keys.
    Documents(Wanted),
    /// A page of a range.
    Page {
        /// Which range.
        query: Query,
        /// How much of it.
        limits: PageLimits,
    },
    /// Their figures.
    Figures,
}

/// Keys, and in which shards they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The keys.
    pub(super) keys: Vec<Key>,
    /// The places in `keys` of each shard's.
    pub(super) places: Vec<(ShardId, Vec<usize>)>,
    /// Most bytes of all of them with their values.
    pub(super) bytes_max: usize,
}

impl Wanted {
    /// The places of the keys in these shards, in the order in which a question carries them.
    pub(super) fn places_in(&self, shards: &[ShardId]) -> Vec<usize> {
        let asked = self.places.iter().filter(|(shard, _)| shards.contains(shard));
        asked.flat_map(|(_, places)| places.iter().copied()).collect()
    }
}

/// A question to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question<W> {
    pub(super) what: W,
    /// Which shards it is about.
    pub(super) shards: Vec<ShardId>,
    pub(super) freshness: Freshness,
    /// How long the answer may take.
    pub(super) left: Duration,
}

/// What a node answers, if it is no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) told: Told,
    /// The shards that it does not serve.
    pub(super) missing: Vec<Missing>,
}

/// The results for the shards that are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// The documents that are there, with the places of their keys.
    Documents(Vec<(usize, Document)>),
    /// A page over these shards.
    Page(Page),
    /// Figures of each.
    Figures(Vec<Figures>),
}

/// A shard that a node does not serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) shard: ShardId,
    /// The node that leads it, where known.
    pub(super) leader: Option<NodeName>,
}

/// Figures of one shard, by the node that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures {
    /// Which shard.
    pub shard: ShardId,
    /// The newest version given out.
    pub last_version: Version,
    /// Commands applied there since it was opened.
    pub writes: u64,
    /// Reads served there since it was opened; a page counts as one.
    pub reads: u64,
    /// Keys that reads can see.
    pub keys: u64,
    /// Bytes of these keys and their values.
    pub bytes: u64,
    /// The node that leads it; `None`: nobody now, or it is not replicated.
    pub leader: Option<NodeName>,
    /// The nodes that have a replica; empty when it is not replicated.
    pub replicas: Vec<NodeName>,
}

impl Question<&What> {
    /// The bytes that travel.
    pub(super) fn encode(&self) -> Bytes {
        let mut buffer = Vec::with_capacity(64);
        let kind = match self.what {
            What::Documents(_) => DOCUMENTS,
            What::Page { .. } => PAGE,
            What::Figures => FIGURES,
        };
        let freshness = match self.freshness {
            Freshness::Linearizable => 0,
            Freshness::Lease => 1,
            Freshness::Stale => 2,
        };
        buffer.extend_from_slice(&[VERSION, kind, freshness]);
        put_varint(&mut buffer, u64::try_from(self.left.as_millis()).unwrap_or(u64::MAX));
        match self.what {
            What::Documents(Wanted { keys, places, bytes_max }) => {
                let asked = || places.iter().filter(|(shard, _)| self.shards.contains(shard));
                put_count(&mut buffer, asked().count());
                for (shard, places) in asked() {
                    put_varint(&mut buffer, shard.0.into());
                    put_count(&mut buffer, places.len());
                    for place in places {
                        put_slice(&mut buffer, keys[*place].as_bytes());
                    }
                }
                put_count(&mut buffer, *bytes_max);
            }
            What::Page { query, limits } => {
                put_shards(&mut buffer, &self.shards);
                put_query(&mut buffer, query);
                put_count(&mut buffer, limits.items);
                put_count(&mut buffer, limits.bytes);
            }
            What::Figures => put_shards(&mut buffer, &self.shards),
        }
        buffer.into()
    }
}

impl Question<What> {
    /// Reads a question; `None` for bytes that are none of this version.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        if cursor.u8()? != VERSION {
            return None;
        }
        let kind = cursor.u8()?;
        let freshness = match cursor.u8()? {
            0 => Freshness::Linearizable,
            1 => Freshness::Lease,
            2 => Freshness::Stale,
            _ => return None,
        };
        let left = Duration::from_millis(cursor.varint()?);
        let (what, shards) = match kind {
            DOCUMENTS => {
                let wanted = read_wanted(&mut cursor)?;
                let shards = wanted.places.iter().map(|(shard, _)| *shard).collect();
                (What::Documents(wanted), shards)
            }
            PAGE => {
                let shards = read_shards(&mut cursor)?;
                let query = read_query(&mut cursor)?;
                let limits =
                    PageLimits { items: read_count(&mut cursor)?, bytes: read_count(&mut cursor)? };
                (What::Page { query, limits }, shards)
            }
            FIGURES => (What::Figures, read_shards(&mut cursor)?),
            _ => return None,
        };
        cursor.is_empty().then_some(Self { what, shards, freshness, left })
    }
}

/// The bytes of an answer that travel.
pub(super) fn encode_answer(answer: &Result<Answer>) -> Bytes {
    let mut buffer = vec![VERSION];
    match answer {
        Err(error) => {
            buffer.push(ERROR);
            put_error(&mut buffer, error);
        }
        Ok(Answer { told, missing }) => {
            let kind = match told {
                Told::Documents(_) => DOCUMENTS,
                Told::Page(_) => PAGE,
                Told::Figures(_) => FIGURES,
            };
            buffer.push(kind);
            put_count(&mut buffer, missing.len());
            for Missing { shard, leader } in missing {
                put_varint(&mut buffer, shard.0.into());
                put_node(&mut buffer, leader.as_ref());
            }
            put_told(&mut buffer, told);
        }
    }
    buffer.into()
}

/// Reads an answer; values share its memory. `None` for bytes that are none of this version.
pub(super) fn decode_answer(bytes: &Bytes) -> Option<Result<Answer>> {
    let mut cursor = Cursor::new(bytes);
    if cursor.u8()? != VERSION {
        return None;
    }
    let answer = match cursor.u8()? {
        ERROR => Err(read_error(&mut cursor)?),
        kind @ (DOCUMENTS | PAGE | FIGURES) => {
            let missing = read_many(&mut cursor, |cursor| {
                Some(Missing { shard: read_shard(cursor)?, leader: node(read_text(cursor)?) })
            })?;
            Ok(Answer { told: read_told(kind, bytes, &mut cursor)?, missing })
        }
        _ => return None,
    };
    cursor.is_empty().then_some(answer)
}

fn put_told(buffer: &mut Vec<u8>, told: &Told) {
    match told {
        Told::Documents(documents) => {
            put_count(buffer, documents.len());
            for (place, Document { value, version, ttl_seconds }) in documents {
                put_count(buffer, *place);
                put_varint(buffer, version.0);
                put_varint(buffer, ttl_seconds.unwrap_or(0).into());
                put_value(buffer, Some(value));
            }
        }
        Told::Page(Page { items, more }) => {
            buffer.push((*more).into());
            put_count(buffer, items.len());
            for Item { key, value, version, ttl_seconds } in items {
                put_slice(buffer, key.as_bytes());
                put_varint(buffer, version.0);
                put_varint(buffer, ttl_seconds.unwrap_or(0).into());
                put_value(buffer, value.as_ref());
            }
        }
        Told::Figures(figures) => {
            put_count(buffer, figures.len());
            for figures in figures {
                put_varint(buffer, figures.shard.0.into());
                put_varint(buffer, figures.last_version.0);
                for figure in [figures.writes, figures.reads, figures.keys, figures.bytes] {
                    put_varint(buffer, figure);
                }
                put_node(buffer, figures.leader.as_ref());
                put_count(buffer, figures.replicas.len());
                for node in &figures.replicas {
                    put_node(buffer, Some(node));
                }
            }
        }
    }
}

fn read_told(kind: u8, bytes: &Bytes, cursor: &mut Cursor<'_>) -> Option<Told> {
    Some(match kind {
        DOCUMENTS => Told::Documents(read_many(cursor, |cursor| {
            let place = read_count(cursor)?;
            let (version, seconds) = read_version(cursor)?;
            let value = read_value(cursor.u8()?, bytes, cursor)?;
            Some((place, Document { value, version, ttl_seconds: ttl(seconds) }))
        })?),
        PAGE => {
            let more = read_bool(cursor)?;
            let items = read_many(cursor, |cursor| {
                let key = read_key(cursor)?;
                let (version, seconds) = read_version(cursor)?;
                let value = match cursor.u8()? {
                    NO_VALUE => None,
                    kind => Some(read_value(kind, bytes, cursor)?),
                };
                Some(Item { key, value, version, ttl_seconds: ttl(seconds) })
            })?;
            // After which key would it go on?
            if more && items.is_empty() {
                return None;
            }
            Told::Page(Page { items, more })
        }
        FIGURES => Told::Figures(read_many(cursor, |cursor| {
            Some(Figures {
                shard: read_shard(cursor)?,
                last_version: Version(cursor.varint()?),
                writes: cursor.varint()?,
                reads: cursor.varint()?,
                keys: cursor.varint()?,
                bytes: cursor.varint()?,
                leader: node(read_text(cursor)?),
                replicas: read_many(cursor, |cursor| node(read_text(cursor)?))?,
            })
        })?),
        _ => return None,
    })
}

fn put_error(buffer: &mut Vec<u8>, error: &Error) {
    put_slice(buffer, error.reason().as_str().as_bytes());
    put_slice(buffer, error.message().as_bytes());
    let millis = error.retry_after().map_or(0, |after| after.as_millis());
    put_varint(buffer, u64::try_from(millis).unwrap_or(u64::MAX));
    put_count(buffer, error.metadata().len());
    for (name, value) in error.metadata() {
        put_slice(buffer, name.as_bytes());
        put_slice(buffer, value.as_bytes());
    }
}

fn read_error(cursor: &mut Cursor<'_>) -> Option<Error> {
    // One of a later version is a defect as far as this one can tell.
    let reason = Reason::from_name(read_text(cursor)?).unwrap_or(Reason::Internal);
    let message = read_text(cursor)?;
    let retry_after = cursor.varint()?;
    let mut error = if reason == Reason::Overloaded && retry_after > 0 {
        Error::overloaded(message, Duration::from_millis(retry_after))
    } else {
        Error::new(reason, message)
    };
    for _ in 0..cursor.varint()? {
        let (name, value) = (read_text(cursor)?, read_text(cursor)?);
        if let Some(name) = FACTS.iter().find(|known| **known == name) {
            error = error.with(name, value);
        }
    }
    Some(error)
}

fn put_query(buffer: &mut Vec<u8>, query: &Query) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let range = query.range();
    buffer.push(
        flag(query.direction() == Direction::Reverse, REVERSE)
            | flag(query.keys_only(), KEYS_ONLY)
            | flag(range.end.is_some(), BOUNDED),
    );
    put_slice(buffer, range.start);
    put_slice(buffer, range.end.unwrap_or_default());
}

fn read_query(cursor: &mut Cursor<'_>) -> Option<Query> {
    let flags = cursor.u8()?;
    if flags > (REVERSE | KEYS_ONLY | BOUNDED) {
        return None;
    }
    let has = |flag: u8| flags & flag != 0;
    let direction = if has(REVERSE) { Direction::Reverse } else { Direction::Forward };
    let (start, end) = (cursor.slice()?.to_vec(), cursor.slice()?.to_vec());
    let end = if has(BOUNDED) { Some(end) } else { end.is_empty().then_some(None)? };
    Some(Query::of_bounds(start, end, direction, has(KEYS_ONLY)))
}

fn read_wanted(cursor: &mut Cursor<'_>) -> Option<Wanted> {
    let mut keys = Vec::new();
    let places = read_many(cursor, |cursor| {
        let shard = read_shard(cursor)?;
        let first = keys.len();
        for _ in 0..cursor.varint()? {
            keys.push(read_key(cursor)?);
        }
        Some((shard, (first..keys.len()).collect()))
    })?;
    Some(Wanted { keys, places, bytes_max: read_count(cursor)? })
}

fn put_value(buffer: &mut Vec<u8>, value: Option<&Value>) {
    let Some(value) = value else { return buffer.push(NO_VALUE) };
    buffer.push(match value {
        Value::Json(_) => JSON,
        Value::Raw(_) => RAW,
    });
    put_slice(buffer, value.bytes());
}

fn read_value(kind: u8, bytes: &Bytes, cursor: &mut Cursor<'_>) -> Option<Value> {
    let content = bytes.slice_ref(cursor.slice()?);
    match kind {
        JSON => Some(Value::Json(content)),
        RAW => Some(Value::Raw(content)),
        _ => None,
    }
}

fn put_count(buffer: &mut Vec<u8>, count: usize) {
    put_varint(buffer, count as u64);
}

fn read_count(cursor: &mut Cursor<'_>) -> Option<usize> {
    usize::try_from(cursor.varint()?).ok()
}

/// As many as a count says that comes first.
fn read_many<T>(
    cursor: &mut Cursor<'_>,
    mut read: impl FnMut(&mut Cursor<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    let mut all = Vec::new();
    for _ in 0..cursor.varint()? {
        all.push(read(cursor)?);
    }
    Some(all)
}

fn put_shards(buffer: &mut Vec<u8>, shards: &[ShardId]) {
    put_count(buffer, shards.len());
    for shard in shards {
        put_varint(buffer, shard.0.into());
    }
}

fn read_shards(cursor: &mut Cursor<'_>) -> Option<Vec<ShardId>> {
    read_many(cursor, read_shard)
}

fn read_shard(cursor: &mut Cursor<'_>) -> Option<ShardId> {
    Some(ShardId(u32::try_from(cursor.varint()?).ok()?))
}

fn read_text<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    std::str::from_utf8(cursor.slice()?).ok()
}

fn read_key(cursor: &mut Cursor<'_>) -> Option<Key> {
    Key::new(read_text(cursor)?.to_owned()).ok()
}

/// A version, and a ttl in seconds.
fn read_version(cursor: &mut Cursor<'_>) -> Option<(Version, u32)> {
    Some((Version(cursor.varint()?), u32::try_from(cursor.varint()?).ok()?))
}

fn ttl(seconds: u32) -> Option<u32> {
    (seconds > 0).then_some(seconds)
}

fn read_bool(cursor: &mut Cursor<'_>) -> Option<bool> {
    match cursor.u8()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn put_node(buffer: &mut Vec<u8>, node: Option<&NodeName>) {
    put_slice(buffer, node.map_or("", |node| node.0.as_str()).as_bytes());
}

/// The node with this name, which is empty for none.
fn node(name: &str) -> Option<NodeName> {
    (!name.is_empty()).then(|| NodeName(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys() -> impl Strategy<Value = Key> {
        "\\PC{1,20}".prop_map(|text| Key::new(text).expect("one to eighty bytes"))
    }

    fn values() -> impl Strategy<Value = Value> {
        (any::<bool>(), any::<Vec<u8>>()).prop_map(|(json, bytes)| {
            if json { Value::Json(bytes.into()) } else { Value::Raw(bytes.into()) }
        })
    }

    fn nodes() -> impl Strategy<Value = NodeName> {
        "[a-z]{1,5}".prop_map(NodeName)
    }

    fn told() -> impl Strategy<Value = Told> {
        let ttl = || proptest::option::of(1u32..);
        let document = (any::<usize>(), values(), any::<u64>(), ttl());
        let document = document.prop_map(|(place, value, version, ttl_seconds)| {
            (place, Document { value, version: Version(version), ttl_seconds })
        });
        let item = (keys(), proptest::option::of(values()), any::<u64>(), ttl());
        let item = item.prop_map(|(key, value, version, ttl_seconds)| Item {
            key,
            value,
            version: Version(version),
            ttl_seconds,
        });
        let figures = (any::<[u64; 5]>(), proptest::option::of(nodes()), any::<u32>());
        let figures = (figures, proptest::collection::vec(nodes(), 0..3));
        let figures = figures.prop_map(|((numbers, leader, shard), replicas)| Figures {
            shard: ShardId(shard),
            last_version: Version(numbers[0]),
            writes: numbers[1],
            reads: numbers[2],
            keys: numbers[3],
            bytes: numbers[4],
            leader,
            replicas,
        });
        prop_oneof![
            proptest::collection::vec(document, 0..4).prop_map(Told::Documents),
            (proptest::collection::vec(item, 1..4), any::<bool>())
                .prop_map(|(items, more)| Told::Page(Page { items, more })),
            proptest::collection::vec(figures, 0..4).prop_map(Told::Figures),
        ]
    }

    fn freshness() -> impl Strategy<Value = Freshness> {
        prop_oneof![Just(Freshness::Linearizable), Just(Freshness::Lease), Just(Freshness::Stale)]
    }

    proptest! {
        #[test]
        fn every_answer_reads_back_and_no_part_of_one_does(
            told in told(), missing in proptest::collection::vec((any::<u32>(), proptest::option::of(nodes())), 0..3),
        ) {
            let missing = missing
                .into_iter()
                .map(|(shard, leader)| Missing { shard: ShardId(shard), leader })
                .collect();
            let answer = Answer { told, missing };
            let bytes = encode_answer(&Ok(answer.clone()));
            let read = decode_answer(&bytes).and_then(Result::ok);
            prop_assert_eq!(read.as_ref(), Some(&answer));
            for end in 0..bytes.len() {
                prop_assert!(decode_answer(&bytes.slice(..end)).is_none(), "cut at {}", end);
            }
        }

        #[test]
        fn every_question_reads_back_and_no_part_of_one_does(
            keys in proptest::collection::vec(keys(), 1..5), bytes_max in 0usize..1 << 30,
            freshness in freshness(), millis in 0u64..1 << 40, shards in proptest::collection::vec(any::<u32>(), 1..4),
            reverse: bool, keys_only: bool, bounds in ("[a-m]{0,3}", "[n-z]{0,3}"), limits in (1usize..1000, 1usize..1 << 20),
        ) {
            let direction = if reverse { Direction::Reverse } else { Direction::Forward };
            let query = Query::new(&bounds.0, &bounds.1, "", direction, keys_only).expect("it goes up");
            let shards: Vec<_> = shards.into_iter().map(ShardId).collect();
            let places = vec![(shards[0], (0..keys.len()).collect())];
            let questions = [
                (What::Documents(Wanted { keys, places, bytes_max }), shards[..1].to_vec()),
                (What::Page { query, limits: PageLimits { items: limits.0, bytes: limits.1 } }, shards.clone()),
                (What::Figures, shards),
            ];
            for (what, shards) in questions {
                let left = Duration::from_millis(millis);
                let bytes = Question { what: &what, shards: shards.clone(), freshness, left }.encode();
                let read = Question::decode(&bytes).expect("just encoded");
                prop_assert_eq!((&read.shards, read.freshness, read.left), (&shards, freshness, left));
                let again = Question { what: &read.what, shards, freshness, left }.encode();
                prop_assert_eq!(again, bytes.clone());
                for end in 0..bytes.len() {
                    prop_assert!(Question::decode(&bytes[..end]).is_none(), "cut at {}", end);
                }
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(kind in 0u8..4, bytes: Vec<u8>) {
            let with = |head: &[u8]| Bytes::from([head, &bytes].concat());
            let _ = Question::decode(&with(&[VERSION, kind, 0]));
            let _ = decode_answer(&with(&[VERSION, kind]));
            let _ = (Question::decode(&bytes), decode_answer(&Bytes::from(bytes.clone())));
        }
    }

    #[test]
    fn an_error_arrives_as_it_was() {
        let sent = Error::limit("kvstore.limits.page-size", "the answer", 10, 11, "bytes");
        let read = decode_answer(&encode_answer(&Err(sent.clone())));
        let read = read.expect("just encoded").expect_err("it is an error");
        assert_eq!((read.reason(), read.message()), (sent.reason(), sent.message()));
        let reasons = [Reason::NoLeader, Reason::NoQuorum, Reason::Corruption, Reason::ReadOnly];
        for reason in reasons {
            let bytes = encode_answer(&Err(Error::new(reason, "why")));
            let read = decode_answer(&bytes).expect("just encoded").expect_err("an error");
            assert_eq!((read.reason(), read.message()), (reason, "why"));
        }
    }
}
