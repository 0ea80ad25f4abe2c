//! Lines to parcels. Synchronous; on a thread of its own.

use std::collections::HashMap;
use std::io::{BufRead, Read as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::sync::mpsc::Sender;

/// Longest line: a value of 64 MiB, the most that a node can be configured to take, in base64 with room for its key.
const LINE_BYTES_MAX: u64 = 96 << 20;

/// How large a batch may get. Smaller than what a node takes, so that several are on their way; shrinks when a node takes less.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) entries: AtomicUsize,
    pub(super) bytes: AtomicUsize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { entries: AtomicUsize::new(1_000), bytes: AtomicUsize::new(1 << 20) }
    }
}

/// A value with the line it stands on.
#[derive(Debug, Clone)]
pub(super) struct Text {
    pub(super) line: u64,
    pub(super) text: String,
}

/// What is sent in one call.
#[derive(Debug)]
pub(super) enum Parcel {
    Batch(Batch),
    /// Bytes, which batches cannot carry.
    Raw {
        line: u64,
        key: String,
        bytes: Bytes,
        ttl: Option<u32>,
    },
}

/// JSON values of different keys that live equally long.
#[derive(Debug, Clone, Default)]
pub(super) struct Batch {
    pub(super) entries: HashMap<String, Text>,
    pub(super) ttl: Option<u32>,
    /// Bytes of keys and values.
    pub(super) bytes: usize,
    /// Lines in it: more than entries where a key came again.
    pub(super) lines: u64,
}

/// Where and why reading ended early.
#[derive(Debug)]
pub(super) struct BadLine {
    pub(super) line: u64,
    pub(super) message: String,
}

/// Reads lines and packs parcels.
pub(super) struct Reader<R> {
    input: R,
    /// For lines without a ttl.
    ttl: Option<u32>,
    sizes: Arc<Sizes>,
    line: u64,
    batch: Batch,
}

impl<R: BufRead> Reader<R> {
    pub(super) fn new(input: R, ttl: Option<u32>, sizes: Arc<Sizes>) -> Self {
        Self { input, ttl, sizes, line: 0, batch: Batch::default() }
    }

    /// Reads to the end, to the first bad line, or until nobody takes parcels any more.
    pub(super) fn run(mut self, parcels: &Sender<Result<Parcel, BadLine>>) {
        let send = |parcel: Result<Parcel, BadLine>| parcels.blocking_send(parcel).is_ok();
        loop {
            let entry = match self.entry() {
                Ok(Some(entry)) => entry,
                ended => {
                    let rest = self.take();
                    let told = rest.is_none_or(|rest| send(Ok(rest)));
                    if let Err(message) = ended
                        && told
                    {
                        send(Err(BadLine { line: self.line, message }));
                    }
                    return;
                }
            };
            if !self.pack(entry).into_iter().all(|parcel| send(Ok(parcel))) {
                return;
            }
        }
    }

    /// Adds an entry to the batch; the parcels that are finished by it.
    fn pack(&mut self, entry: Entry) -> Vec<Parcel> {
        let mut finished = Vec::new();
        let ttl = entry.ttl.or(self.ttl);
        let text = match entry.content {
            Content::Json(text) => text,
            Content::Raw(bytes) => {
                finished.extend(self.take());
                finished.push(Parcel::Raw { line: self.line, key: entry.key, bytes, ttl });
                return finished;
            }
        };
        let bytes = entry.key.len() + text.len();
        let entries = self.sizes.entries.load(Ordering::Relaxed);
        let is_full = self.batch.lines >= entries as u64
            || self.batch.bytes + bytes > self.sizes.bytes.load(Ordering::Relaxed);
        if is_full || self.batch.ttl != ttl {
            finished.extend(self.take());
        }
        self.batch.ttl = ttl;
        // Bytes that a later line replaced stay counted: the bound is on what was read.
        self.batch.bytes += bytes;
        self.batch.lines += 1;
        self.batch.entries.insert(entry.key, Text { line: self.line, text });
        finished
    }

    fn take(&mut self) -> Option<Parcel> {
        let batch = std::mem::take(&mut self.batch);
        (batch.lines > 0).then_some(Parcel::Batch(batch))
    }

    /// The entry on the next line that is not empty.
    fn entry(&mut self) -> Result<Option<Entry>, String> {
        loop {
            self.line += 1;
            let mut line = Vec::new();
            let read = (&mut self.input).take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line);
            if read.map_err(|error| format!("cannot be read: {error}"))? == 0 {
                return Ok(None);
            }
            if line.len() as u64 > LINE_BYTES_MAX {
                return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"));
            }
            let line = std::str::from_utf8(&line).map_err(|error| {
                format!("column {}: the line is not UTF-8", error.valid_up_to() + 1)
            })?;
            // What some editors write before the first line.
            let line = if self.line == 1 { line.trim_start_matches('\u{feff}') } else { line };
            if !line.trim().is_empty() {
                return parse(line).map(Some);
            }
        }
    }
}

/// One line, understood.
#[derive(Debug, PartialEq)]
struct Entry {
    key: String,
    content: Content,
    ttl: Option<u32>,
}

#[derive(Debug, PartialEq)]
enum Content {
    Json(String),
    Raw(Bytes),
}

/// One line as it is written. Parts of it are borrowed so that a value keeps its bytes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    key: String,
    #[serde(default, borrow, deserialize_with = "given")]
    value: Option<&'a RawValue>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    raw: Option<String>,
    #[serde(default)]
    ttl: Option<u32>,
    #[serde(default, rename = "version")]
    _version: IgnoredAny,
}

/// A value that is there, `null` too.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

fn parse(line: &str) -> Result<Entry, String> {
    // The parser would take the members without their names, as an array, too.
    if !line.trim_start().starts_with('{') {
        return Err(r#"column 1: expected an object such as {"key": "k", "value": 1}"#.to_owned());
    }
    let Line { key, value, text, raw, ttl, .. } =
        serde_json::from_str(line).map_err(|error| placed(&error))?;
    if ttl == Some(0) {
        return Err("ttl is 0; it is at least 1 second, or absent".to_owned());
    }
    let content = match (value, text, raw) {
        (Some(value), None, None) => Content::Json(value.get().to_owned()),
        (None, Some(text), None) => {
            let checked = serde_json::from_str::<IgnoredAny>(&text);
            checked.map_err(|error| format!("\"text\" is not JSON: {error}"))?;
            Content::Json(text)
        }
        (None, None, Some(raw)) => {
            let bytes = BASE64.decode(raw);
            Content::Raw(bytes.map_err(|error| format!("\"raw\" is not base64: {error}"))?.into())
        }
        (None, None, None) => {
            return Err("there is no value: one of \"value\", \"text\" and \"raw\"".to_owned());
        }
        _ => return Err("only one of \"value\", \"text\" and \"raw\" may stand there".to_owned()),
    };
    Ok(Entry { key, content, ttl })
}

/// What the parser says, with the column but without its count of lines, which is always 1 here.
fn placed(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    format!("column {}: {text}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(key: &str, text: &str, ttl: Option<u32>) -> Entry {
        Entry { key: key.to_owned(), content: Content::Json(text.to_owned()), ttl }
    }

    #[test]
    fn a_value_keeps_its_bytes() {
        for (line, entry) in [
            (
                r#"{"key":"k","value": { "b":1.0,  "a":[1e2] } }"#,
                json("k", r#"{ "b":1.0,  "a":[1e2] }"#, None),
            ),
            (r#"{"value":null,"key":"\u00e9","ttl":5,"version":12}"#, json("é", "null", Some(5))),
            (r#"{"key":"k","text":"[1,\n2] "}"#, json("k", "[1,\n2] ", None)),
        ] {
            assert_eq!(parse(line), Ok(entry), "{line}");
        }
        let raw = parse(r#"{"key":"k","raw":"AP8="}"#).expect("legal");
        assert_eq!(raw.content, Content::Raw(Bytes::from_static(&[0, 255])));
    }

    #[test]
    fn a_bad_line_says_what_is_wrong_and_where() {
        for (line, why) in [
            ("nonsense", "column 1: expected an object"),
            (r#"{"key":"k","value":{"x":}}"#, "column 25: expected value"),
            (r#"{"key":"k","vlaue":1}"#, "unknown field `vlaue`"),
            (r#"{"value":1}"#, "missing field `key`"),
            (r#"{"key":"k"}"#, "there is no value"),
            (r#"{"key":"k","value":1,"text":"1"}"#, "only one of"),
            (r#"{"key":"k","text":"{"}"#, "\"text\" is not JSON"),
            (r#"{"key":"k","raw":"*"}"#, "\"raw\" is not base64"),
            (r#"{"key":"k","value":1,"ttl":0}"#, "ttl is 0"),
            (r#"{"key":"k","value":1,"ttl":-1}"#, "invalid value"),
            (r#"{"key":"k","value":1} x"#, "trailing characters"),
            (r#"["k", 1]"#, "column 1: expected an object"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(why), "{line}: {error}");
        }
    }

    /// All that is read from `text`: lines of each parcel, and the bad line.
    fn parcels(text: &str, sizes: Sizes) -> (Vec<u64>, Option<BadLine>) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1_000);
        Reader::new(text.as_bytes(), None, Arc::new(sizes)).run(&sender);
        drop(sender);
        let (mut lines, mut bad) = (Vec::new(), None);
        while let Some(parcel) = receiver.blocking_recv() {
            match parcel {
                Ok(Parcel::Batch(batch)) => lines.push(batch.lines),
                Ok(Parcel::Raw { .. }) => lines.push(1),
                Err(line) => bad = Some(line),
            }
        }
        (lines, bad)
    }

    #[test]
    fn batches_are_cut_by_entries_bytes_and_lifetime() {
        let line = |key: u32| format!("{{\"key\":\"{key}\",\"value\":{key}}}\n");
        let five: String = (0..5).map(line).collect();
        let sizes = |entries, bytes| Sizes {
            entries: AtomicUsize::new(entries),
            bytes: AtomicUsize::new(bytes),
        };
        assert_eq!(parcels(&five, sizes(2, 1_000)).0, [2, 2, 1]);
        assert_eq!(parcels(&five, sizes(1_000, 6)).0, [3, 2]);
        let mixed = "\u{feff}{\"key\":\"a\",\"value\":1}\n\n{\"key\":\"b\",\"value\":1,\"ttl\":9}\n{\"key\":\"c\",\"raw\":\"\"}";
        assert_eq!(parcels(mixed, Sizes::default()).0, [1, 1, 1]);
    }

    #[test]
    fn what_stands_before_a_bad_line_is_packed() {
        let (lines, bad) = parcels("{\"key\":\"a\",\"value\":1}\noops\n", Sizes::default());
        let bad = bad.expect("the second line");
        assert_eq!((lines, bad.line), (vec![1], 2));
    }
}
