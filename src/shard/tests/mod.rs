//! What a shard promises, on the reference engine: what commands do (`commands`), what is durable when (`durability`), random
//! commands against a plain model (`model`); and the bytes that ARCHITECTURE.md shows (`encoding`).

mod commands;
mod durability;
mod encoding;
mod model;

use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::*;
use crate::command::{Outcome, TtlSeconds};
use crate::storage::memory::MemoryEnvironment;
use crate::storage::testing::gate::{DEADLINE, Gate};
use crate::storage::{Durability, Environment as _};
use crate::types::{REQUEST_ID_KEPT, RequestId};
use crate::util::time::ManualClock;

/// When tests begin: late enough to turn the clock back.
const NOON: Timestamp = Timestamp::from_millis(1_000_000_000);

/// A shard with its engine, its committer and its clock.
struct Bench {
    clock: ManualClock,
    environment: MemoryEnvironment,
    durability: Durability,
    shard: Option<Shard>,
    gate: Option<Arc<Gate>>,
    /// Dropped after the shard.
    committer: Option<Committer>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Durability::Sync)
    }

    fn with(durability: Durability) -> Self {
        let mut bench = Self {
            clock: ManualClock::new(NOON),
            environment: MemoryEnvironment::new(),
            durability,
            shard: None,
            gate: None,
            committer: None,
        };
        bench.reopen();
        bench
    }

    /// Closes the shard and all below it, and opens it again.
    fn reopen(&mut self) {
        self.shard = None;
        self.committer = None;
        self.gate = None;
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let committer = Committer::start("test".to_owned(), self.durability, Arc::clone(&clock))
            .expect("a thread starts");
        let gate = Gate::new(self.environment.open("shard").expect("opens"));
        let shard = Shard::open(ShardId(3), gate.clone(), &committer, clock).expect("opens");
        (self.shard, self.gate, self.committer) = (Some(shard), Some(gate), Some(committer));
    }

    fn shard(&self) -> &Shard {
        self.shard.as_ref().expect("it is open")
    }

    fn gate(&self) -> &Gate {
        self.gate.as_ref().expect("it is open")
    }

    fn propose(&self, command: impl Into<Command>) -> Ticket {
        self.shard().propose(command.into()).expect("there is room")
    }

    /// Proposes and waits for the answer.
    fn run(&self, command: impl Into<Command>) -> Outcome {
        wait(self.propose(command)).expect("is applied")
    }

    /// Puts, for tests that need something to be there; its version.
    fn put(&self, key: &str, value: &str) -> Version {
        match self.run(put(key, value)) {
            Outcome::Put { version } => version,
            other => panic!("{other:?}"),
        }
    }

    fn seat(&self) -> Seat {
        self.shard().seat(Freshness::Stale).expect("it is here")
    }

    /// What is stored under `key`, as text.
    fn text(&self, key: &str) -> Option<String> {
        let document = self.shard().get(&self.seat(), key.as_bytes()).expect("reads")?;
        Some(String::from_utf8(document.value.bytes().to_vec()).expect("tests store text"))
    }

    fn version(&self, key: &str) -> Option<Version> {
        self.shard()
            .get(&self.seat(), key.as_bytes())
            .expect("reads")
            .map(|document| document.version)
    }
}

/// A test that fails lets everybody go.
impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.release();
        }
    }
}

/// Waits for a future, but not for ever.
fn wait<F: Future>(future: F) -> F::Output {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_current_thread().enable_time().build().expect("a runtime starts")
    });
    RUNTIME
        .block_on(async { timeout(DEADLINE, future).await.expect("an answer within the deadline") })
}

impl From<Change> for Command {
    fn from(change: Change) -> Self {
        Self { change, request_id: None }
    }
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).expect("a key")
}

fn json(text: &str) -> Value {
    Value::Json(text.to_owned().into())
}

fn seconds(count: u32) -> TtlSeconds {
    TtlSeconds::new(count).expect("not zero")
}

fn put(key_text: &str, value: &str) -> Change {
    Change::Put { key: key(key_text), value: json(value), ttl: None, if_version: None }
}

fn put_for(key_text: &str, value: &str, ttl: u32) -> Change {
    Change::Put {
        key: key(key_text),
        value: json(value),
        ttl: Some(seconds(ttl)),
        if_version: None,
    }
}

fn put_if(key_text: &str, value: &str, version: Version) -> Change {
    Change::Put { key: key(key_text), value: json(value), ttl: None, if_version: Some(version) }
}

fn delete(key_text: &str) -> Change {
    Change::Delete { key: key(key_text), if_version: None }
}

fn delete_if(key_text: &str, version: Version) -> Change {
    Change::Delete { key: key(key_text), if_version: Some(version) }
}

fn put_many(entries: &[(&str, &str)]) -> Change {
    let entries = entries.iter().map(|(name, value)| (key(name), json(value))).collect();
    Change::PutMany { entries, ttl: None }
}

/// `change` under the caller's id.
fn with_id(id: &str, change: Change) -> Command {
    Command { change, request_id: Some(RequestId::new(id).expect("an id")) }
}
