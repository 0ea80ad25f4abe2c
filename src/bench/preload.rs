//! Stores the keys that the load expects, in batches whose answers are checked.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::args::{Plan, Transport};
use super::http2::{Connection, Method};
use super::tally::Failure;
use super::wire::{self, Frames, Messages, Wrong};
use super::{Error, system};

/// Entries and bytes of a batch: well below the server's defaults of 10,000 and 8 MiB.
const BATCH_ENTRIES_MAX: u64 = 1_000;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// Batches in flight, so that a server that syncs has something to group.
const BATCHES_IN_FLIGHT: usize = 4;

/// How often the progress is told to somebody who waits.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Stores keys 0 to `plan.keys`.
pub(super) fn run(plan: &Plan, messages: &Messages, stop: &AtomicBool) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("an event loop"))?;
    runtime.block_on(store(plan, messages, stop))
}

async fn store(plan: &Plan, messages: &Messages, stop: &AtomicBool) -> Result<(), Error> {
    // The HTTP port takes gRPC too.
    let places =
        if plan.transport == Transport::Rest { &plan.place.http } else { &plan.place.grpc };
    let connection = Connection::open(&places[0]).await?;
    let method = connection.method("/kvstore.v1.KvService/BatchPut");
    let entry_bytes = messages.key_bytes() + messages.value_bytes();
    let by_bytes = (BATCH_BYTES_MAX / entry_bytes).max(1) as u64;
    let batch = BATCH_ENTRIES_MAX.min(by_bytes);
    let (mut next, mut stored) = (0, 0);
    let mut calls = FuturesUnordered::new();
    let mut told = Instant::now();
    while stored < plan.keys {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Server("interrupted before anything was measured".to_owned()));
        }
        while calls.len() < BATCHES_IN_FLIGHT && next < plan.keys {
            let end = plan.keys.min(next + batch);
            calls.push(put(&method, messages, next..end));
            next = end;
        }
        let Some(done) = calls.next().await else { break };
        stored += done.map_err(|failure| {
            Error::Server(format!("the preload failed after {stored} keys: {failure:?}"))
        })?;
        if told.elapsed() > TELL_EVERY && std::io::stderr().is_terminal() {
            told = Instant::now();
            eprint!("\rpreload: {stored} of {} keys", plan.keys);
        }
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    Ok(())
}

/// Stores the keys of `range` in one call; how many.
async fn put(
    method: &Method,
    messages: &Messages,
    range: std::ops::Range<u64>,
) -> Result<u64, Failure> {
    let expected = range.end - range.start;
    let mut entries = BytesMut::new();
    for key in range {
        wire::write_entry(messages, key, &mut entries);
    }
    let mut frame = BytesMut::new();
    wire::write_frame_head(entries.len(), &mut frame);
    frame.unsplit(entries);
    let mut count = Err(Wrong("the answer to a batch has no message"));
    Frames::default().feed(&method.call(Bytes::from(frame)).await?, |message| {
        count = wire::read_count(message);
        Ok(())
    })?;
    match count? {
        count if count == expected => Ok(count),
        _ => Err(Failure::Wrong(Wrong("a batch stored another number of entries"))),
    }
}
