//! Parcels to the node: some on their way at a time, in an order that keeps the last line of a key the last.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use indicatif::ProgressBar;
use tokio::sync::mpsc::Receiver;
use xxhash_rust::xxh64::xxh64;

use super::read::{BadLine, Batch, Parcel, Sizes};
use crate::cli::error::{Error, Result};
use crate::cli::output::count;
use crate::net::{Client, Failure};
use crate::proto::v1::{BatchPutRequest, PutRequest, put_request};

/// Most parcels on their way. Parcels of one entry are what needs many: they share the node's syncs.
const PARCELS_MAX: usize = 64;

/// Most entries on their way: what a slow disk takes in well before the deadline of a call.
const ENTRIES_MAX: usize = 8_000;

/// Most bytes on their way.
const BYTES_MAX: usize = 16 << 20;

impl Parcel {
    /// Bytes of keys and values.
    fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.bytes,
            Self::Raw { key, bytes, .. } => key.len() + bytes.len(),
        }
    }

    fn first_line(&self) -> u64 {
        match self {
            Self::Batch(batch) => batch.entries.values().map(|text| text.line).min().unwrap_or(0),
            Self::Raw { line, .. } => *line,
        }
    }

    /// Hashes of the keys. Two keys with one hash only make a parcel wait for another.
    fn keys(&self) -> Vec<u64> {
        let hash = |key: &String| xxh64(key.as_bytes(), 0);
        match self {
            Self::Batch(batch) => batch.entries.keys().map(hash).collect(),
            Self::Raw { key, .. } => vec![hash(key)],
        }
    }
}

/// What became of a parcel.
struct Sent {
    keys: Vec<u64>,
    bytes: usize,
    first_line: u64,
    /// Lines that are stored, and what failed of the rest: the line, where it is known, and why.
    stored: u64,
    failure: Option<(Option<u64>, Failure)>,
}

/// What was stored so far, and the first failure.
#[derive(Default)]
struct Tally {
    stored: u64,
    bytes: usize,
    keys: HashSet<u64>,
    /// First lines of the parcels on their way.
    under_way: BTreeSet<u64>,
    /// First lines of the parcels that failed.
    failed: BTreeSet<u64>,
    failure: Option<(Option<u64>, Failure)>,
}

impl Tally {
    fn count(&mut self, sent: Sent, bar: &ProgressBar) {
        self.stored += sent.stored;
        self.bytes -= sent.bytes;
        for key in &sent.keys {
            self.keys.remove(key);
        }
        self.under_way.remove(&sent.first_line);
        if let Some(failure) = sent.failure {
            self.failed.insert(sent.first_line);
            self.failure.get_or_insert(failure);
        }
        bar.set_message(format!("{} stored", self.stored));
    }

    fn has_room(&self, entries: usize, bytes: usize) -> bool {
        self.under_way.is_empty()
            || (self.under_way.len() < PARCELS_MAX
                && self.keys.len() + entries <= ENTRIES_MAX
                && self.bytes + bytes <= BYTES_MAX)
    }
}

/// Sends everything; how many lines were stored. After a failure nothing more is sent, and what is on its way is awaited, so
/// that what is said about the outcome is true.
pub(super) async fn all(
    client: &Client,
    mut parcels: Receiver<Result<Parcel, BadLine>>,
    sizes: &Sizes,
    name: &str,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut tally = Tally::default();
    let mut under_way = FuturesUnordered::new();
    let mut bad_line = None;
    while tally.failure.is_none() {
        let parcel = tokio::select! {
            biased;
            Some(sent) = under_way.next() => {
                tally.count(sent, bar);
                continue;
            }
            parcel = parcels.recv() => parcel,
        };
        let parcel = match parcel {
            Some(Ok(parcel)) => parcel,
            Some(Err(bad)) => {
                bad_line = Some(bad);
                break;
            }
            None => break,
        };
        let (keys, bytes) = (parcel.keys(), parcel.bytes());
        // A later line of a key that is on its way waits until the earlier one has arrived.
        let comes_again = keys.iter().any(|key| tally.keys.contains(key));
        while (comes_again && !under_way.is_empty()) || !tally.has_room(keys.len(), bytes) {
            match under_way.next().await {
                Some(sent) => tally.count(sent, bar),
                None => break,
            }
        }
        if tally.failure.is_some() {
            tally.failed.insert(parcel.first_line());
            break;
        }
        tally.keys.extend(&keys);
        tally.bytes += bytes;
        tally.under_way.insert(parcel.first_line());
        under_way.push(send(client, sizes, parcel, keys));
    }
    while let Some(sent) = under_way.next().await {
        tally.count(sent, bar);
    }
    match (tally.failure, bad_line) {
        (None, None) => Ok(tally.stored),
        (None, Some(BadLine { line, message })) => Err(Error::Failed(format!(
            "{name}:{line}: {message}; {} stored before it",
            count(tally.stored, "entry", "entries")
        ))),
        (Some((line, mut failure)), _) => {
            let first = tally.failed.first().copied().unwrap_or(0);
            let place = line.map_or_else(|| format!("{name}: "), |line| format!("{name}:{line}: "));
            failure.message = format!(
                "{place}{}; {} stored, all before line {first} among them",
                failure.message,
                count(tally.stored, "entry", "entries")
            );
            Err(failure.into())
        }
    }
}

async fn send(client: &Client, sizes: &Sizes, parcel: Parcel, keys: Vec<u64>) -> Sent {
    let (bytes, first_line) = (parcel.bytes(), parcel.first_line());
    let (stored, failure) = match parcel {
        Parcel::Batch(batch) => send_batch(client, sizes, batch).await,
        Parcel::Raw { line, key, bytes, ttl } => {
            let content = Some(put_request::Content::Raw(bytes));
            let request = PutRequest { key, content, ttl, ..PutRequest::default() };
            match client.put(request).await {
                Ok(_) => (1, None),
                Err(failure) => (0, Some((Some(line), failure))),
            }
        }
    };
    Sent { keys, bytes, first_line, stored, failure }
}

/// Sends a batch, in halves where the node says that it is too large.
async fn send_batch(
    client: &Client,
    sizes: &Sizes,
    batch: Batch,
) -> (u64, Option<(Option<u64>, Failure)>) {
    let (mut stored, mut parts) = (0, vec![batch]);
    while let Some(batch) = parts.pop() {
        let entries = batch.entries.iter().map(|(key, text)| (key.clone(), text.text.clone()));
        let request =
            BatchPutRequest { entries: entries.collect(), ttl: batch.ttl, request_id: None };
        match client.batch_put(request).await {
            Ok(_) => stored += batch.lines,
            Err(failure) if batch.entries.len() > 1 && is_too_large(&failure, sizes) => {
                parts.extend(halves(batch));
            }
            Err(failure) => return (stored, Some((line_of(&batch, &failure), failure))),
        }
    }
    (stored, None)
}

/// Whether the batch as a whole is over a limit; the next ones will keep to it.
fn is_too_large(failure: &Failure, sizes: &Sizes) -> bool {
    let fact = |name: &str| failure.metadata.get(name).map(String::as_str);
    if failure.reason != "LIMIT_EXCEEDED" || fact("key").is_some() {
        return false;
    }
    let keep = |size: &AtomicUsize, share: usize| {
        let max = fact("max").and_then(|max| max.parse::<usize>().ok());
        size.fetch_min(max.map_or(1, |max| (max / share).max(1)), Ordering::Relaxed);
        true
    };
    match fact("limit") {
        Some("kvstore.limits.batch-entries") => keep(&sizes.entries, 1),
        Some("kvstore.limits.batch-size") => keep(&sizes.bytes, 1),
        // Counts the frame of each entry too.
        Some("kvstore.limits.request-size") => keep(&sizes.bytes, 2),
        _ => false,
    }
}

fn halves(batch: Batch) -> [Batch; 2] {
    let middle = batch.entries.len() / 2;
    let mut halves = [(); 2].map(|()| Batch { ttl: batch.ttl, ..Batch::default() });
    for (index, (key, text)) in batch.entries.into_iter().enumerate() {
        let half = &mut halves[usize::from(index >= middle)];
        half.bytes += key.len() + text.text.len();
        half.lines += 1;
        half.entries.insert(key, text);
    }
    // Lines that a later one replaced have no entry; they count with the first half.
    let lines: u64 = halves.iter().map(|half| half.lines).sum();
    halves[0].lines += batch.lines - lines;
    halves
}

/// The line of the entry that the node refused: its answer names the beginning of the key.
fn line_of(batch: &Batch, failure: &Failure) -> Option<u64> {
    let start = failure.metadata.get("key")?;
    let named = batch.entries.iter().filter(|(key, _)| key.starts_with(start.as_str()));
    named.map(|(_, text)| text.line).min()
}
