//! Random entries of a log, with what ought to come of them: by the plainest thing that answers as a replica should, and by a replica that applied
//! them one at a time in memory.

use std::collections::BTreeSet;

use openraft::entry::RaftEntry as _;
use openraft::vote::RaftLeaderId as _;
use openraft::{EntryPayload, Membership};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::super::super::types::{LeaderId, NodeName, Payload};
use super::*;

const KEYS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
const IDS: [&str; 6] = ["p", "q", "r", "s", "t", "u"];

/// Entries, and what is right after each.
pub(super) struct History {
    pub(super) entries: Vec<Entry>,
    pub(super) outcomes: Vec<Outcomes>,
    /// The hash of the state; the first before any entry.
    pub(super) hashes: Vec<u64>,
}

impl History {
    pub(super) async fn new(seed: u64, count: usize) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut model = Model::default();
        let mut now = i64::try_from(NOON).expect("fits");
        let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
        let state = open(&environment, &LogStub::new());
        let mut history =
            Self { entries: Vec::new(), outcomes: Vec::new(), hashes: vec![hash(&state)] };
        for index in 0..count {
            now += match random.random_range(0..10) {
                0 => random.random_range(-3_600_000..0),
                1 => random.random_range(590_000..610_000),
                _ => random.random_range(0..1_500),
            };
            let stamp = Timestamp::from_millis(u64::try_from(now.max(0)).expect("not negative"));
            let mut outcomes = Vec::new();
            let payload = match random.random_range(0..20) {
                _ if index == 0 => members(1),
                0 => members(random.random_range(1..5)),
                1 => EntryPayload::Blank,
                _ => {
                    model.clock = model.clock.max(stamp.as_millis());
                    let mut commands = Vec::new();
                    for _ in 0..random.random_range(1..5) {
                        let command = random_command(&mut random, &model);
                        outcomes.push(model.apply(&command));
                        commands.push(command);
                    }
                    EntryPayload::Normal(Proposal::encode(stamp, commands.iter()))
                }
            };
            let entry = entry(index, payload);
            let applied = apply(&state, std::slice::from_ref(&entry)).await.expect("applies");
            let what = format!("seed {seed}, entry {index}");
            assert_eq!(applied, [Outcomes(outcomes)], "{what}");
            assert_eq!(documents(&state), model.documents(), "{what}");
            assert_eq!(state.last_version(), Version(model.last), "{what}");
            history.outcomes.extend(applied);
            history.entries.push(entry);
            history.hashes.push(hash(&state));
        }
        history
    }
}

/// An entry at `index`.
pub(super) fn entry(index: usize, payload: Payload) -> Entry {
    let leader_id = LeaderId::new(1, 1);
    Entry::new(LogId { leader_id, index: index as u64 }, payload)
}

fn members(count: u64) -> Payload {
    let voters: BTreeSet<_> = (1..=count).collect();
    let nodes: BTreeMap<_, _> =
        voters.iter().map(|&replica| (replica, NodeName(format!("n{replica}")))).collect();
    EntryPayload::Membership(Membership::new(vec![voters], nodes).expect("all have a node"))
}

fn random_command(random: &mut StdRng, model: &Model) -> Command {
    let key = *KEYS.choose(random).expect("there are some");
    let ttl = random.random_ratio(2, 5).then(|| random.random_range(1..4u32));
    let ttl = ttl.and_then(TtlSeconds::new);
    let if_version = match random.random_range(0..8) {
        0 => Some(Version::ABSENT),
        1 | 2 => Some(model.version(key)),
        3 => Some(model.version(key).next()),
        _ => None,
    };
    let value = |random: &mut StdRng| Value::Raw(random.random::<u16>().to_string().into());
    let named = |key: &str| Key::new(key.to_owned()).expect("a key");
    let change = match random.random_range(0..10) {
        0..5 => Change::Put { key: named(key), value: value(random), ttl, if_version },
        5..8 => Change::Delete { key: named(key), if_version },
        8 => {
            let keys = (0..random.random_range(0..4)).map(|_| KEYS.choose(random).expect("some"));
            let keys: Vec<_> = keys.collect();
            let entries = keys.into_iter().map(|key| (named(key), value(random))).collect();
            Change::PutMany { entries, ttl }
        }
        _ => return Command { change: Change::Tick, request_id: None },
    };
    let id = random.random_ratio(2, 5).then(|| *IDS.choose(random).expect("there are some"));
    Command { change, request_id: id.and_then(RequestId::new) }
}

/// What a replica ought to hold.
#[derive(Default)]
struct Model {
    clock: u64,
    last: u64,
    documents: BTreeMap<String, Document>,
    /// Outcome and expiry of each request id.
    requests: BTreeMap<Vec<u8>, (Outcome, u64)>,
}

impl Model {
    fn version(&self, key: &str) -> Version {
        self.documents().get(key).map_or(Version::ABSENT, |document| document.1)
    }

    /// Those that have not expired.
    fn documents(&self) -> BTreeMap<String, Document> {
        let mut live = self.documents.clone();
        live.retain(|_, (.., expires_at)| expires_at.is_none_or(|at| at.as_millis() > self.clock));
        live
    }

    fn put(&mut self, key: &Key, value: &Value, ttl: Option<TtlSeconds>) -> Version {
        self.last += 1;
        let text = String::from_utf8(value.bytes().to_vec()).expect("text");
        let expires_at = ttl.map(|seconds| self.clock + u64::from(seconds.get()) * 1_000);
        let expires_at = expires_at.map(Timestamp::from_millis);
        self.documents.insert(key.as_str().to_owned(), (text, Version(self.last), expires_at));
        Version(self.last)
    }

    fn apply(&mut self, command: &Command) -> Outcome {
        let Some(id) = &command.request_id else { return self.change(&command.change) };
        if let Some((earlier, expires_at)) = self.requests.get(id.as_bytes())
            && *expires_at > self.clock
        {
            return match (&command.change, earlier) {
                (Change::Put { .. }, Outcome::Put { .. })
                | (Change::Delete { .. }, Outcome::Delete { .. })
                | (Change::PutMany { .. }, Outcome::PutMany { .. })
                | (Change::Put { .. } | Change::Delete { .. }, Outcome::Mismatch { .. }) => {
                    *earlier
                }
                _ => Outcome::RequestIdReused,
            };
        }
        let outcome = self.change(&command.change);
        self.requests.insert(id.as_bytes().to_vec(), (outcome, self.clock + 600_000));
        outcome
    }

    fn change(&mut self, change: &Change) -> Outcome {
        match change {
            Change::Put { key, if_version: Some(expected), .. }
            | Change::Delete { key, if_version: Some(expected) }
                if *expected != self.version(key.as_str()) =>
            {
                Outcome::Mismatch { expected: *expected, actual: self.version(key.as_str()) }
            }
            Change::Put { key, value, ttl, .. } => {
                Outcome::Put { version: self.put(key, value, *ttl) }
            }
            Change::Delete { key, .. } => {
                let deleted = self.version(key.as_str()) != Version::ABSENT;
                self.last += u64::from(deleted);
                self.documents.remove(key.as_str());
                Outcome::Delete { deleted }
            }
            Change::PutMany { entries, ttl } => {
                for (key, value) in entries {
                    self.put(key, value, *ttl);
                }
                Outcome::PutMany { count: u32::try_from(entries.len()).expect("few") }
            }
            Change::Tick => Outcome::Tick,
        }
    }
}
