//! What the router promises. On one node, with the reference engine: operations on keys and batches (`keys`), pages (`pages`), what it answers other nodes (`answering`). On several
//! nodes (`nodes`): reads of what is elsewhere (`elsewhere`), all reads against a model while shards move (`gathered`), batches of which a part fails (`torn`), nodes that tell what
//! was not asked (`unfit`).

mod answering;
mod elsewhere;
mod gathered;
mod keys;
mod nodes;
mod pages;
mod torn;
mod unfit;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::shard::Committer;
use crate::storage::memory::MemoryEnvironment;
use crate::storage::testing::gate::{DEADLINE, Gate};
use crate::storage::{self, Durability, Environment as _};
use crate::util::time::{Clock, ManualClock, Timestamp};

const NOON: Timestamp = Timestamp::from_millis(1_000_000_000);

/// A router over some shards, each with a committer of its own.
struct Bench {
    router: Router,
    clock: ManualClock,
    gates: Vec<Arc<Gate>>,
    /// Dropped after the shards.
    _committers: Vec<Committer>,
}

impl Drop for Bench {
    /// A test that failed must not leave its committers waiting for a sync.
    fn drop(&mut self) {
        for gate in &self.gates {
            gate.release();
        }
    }
}

impl Bench {
    fn new(shards: u32) -> Self {
        let clock = ManualClock::new(NOON);
        let environment = MemoryEnvironment::new();
        let (mut gates, mut committers, mut open) = (Vec::new(), Vec::new(), Vec::new());
        for id in 0..shards {
            let shared: Arc<dyn Clock> = Arc::new(clock.clone());
            let committer =
                Committer::start(format!("test-{id}"), Durability::Sync, Arc::clone(&shared))
                    .expect("a thread starts");
            let gate = Gate::new(environment.open(&format!("shard-{id}")).expect("opens"));
            open.push(Shard::open(ShardId(id), gate.clone(), &committer, shared).expect("opens"));
            gates.push(gate);
            committers.push(committer);
        }
        Self { router: Router::new(open), clock, gates, _committers: committers }
    }

    async fn put(&self, name: &str, value: &str) -> Version {
        self.router.put(put(name, value), deadline()).expect("there is room").await.expect("stored")
    }

    /// What is stored under `name`, as text.
    async fn text(&self, name: &str) -> Option<String> {
        let found = self.router.get(name.as_bytes(), Freshness::Linearizable, deadline()).await;
        found.expect("reads").map(|document| text(&document.value))
    }

    async fn batch_put(&self, entries: Vec<(Key, Value)>) -> Result<u32> {
        self.router.batch_put(entries, None, None, deadline())?.await
    }

    /// The first key of the form `name/number` that falls into `shard`.
    fn key_in(&self, shard: u32, name: &str) -> Key {
        let count = self.router.shard_count();
        let mut keys = (0..).map(|number| key(&format!("{name}/{number}")));
        keys.find(|key| shard_of(key.as_bytes(), count) == ShardId(shard)).expect("there is one")
    }
}

/// A test that fails lets everybody go.
fn deadline() -> Instant {
    Instant::now() + DEADLINE
}

fn key(text: &str) -> Key {
    Key::new(text.to_owned()).expect("a key")
}

fn json(text: &str) -> Value {
    Value::Json(text.to_owned().into())
}

fn text(value: &Value) -> String {
    String::from_utf8(value.bytes().to_vec()).expect("tests store text")
}

fn put(name: &str, value: &str) -> Put {
    Put { key: key(name), value: json(value), ttl: None, if_version: None, request_id: None }
}
