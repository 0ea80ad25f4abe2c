//! Random commands on a shard and on the plainest thing that answers as a shard should.
//!
//! Rounds of commands go in one after the other or as one group; in between the clock is turned, in both directions, and the
//! shard is closed and opened.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::storage::testing::property;

const ROUNDS_MAX: usize = 20;
const COMMANDS_MAX: usize = 12;
/// Commands of one case, on average.
const COMMANDS_EACH: u32 = 60;

/// A condition of a command.
#[derive(Debug, Clone, Copy)]
enum Condition {
    None,
    Absent,
    /// The version that the key has.
    Holds,
    /// One more than that.
    Fails,
}

#[derive(Debug, Clone)]
enum Action {
    Put { key: u8, ttl: Option<u32>, condition: Condition },
    Delete { key: u8, condition: Condition },
    PutMany { keys: Vec<u8>, ttl: Option<u32> },
    Tick,
}

#[derive(Debug, Clone)]
struct Round {
    /// Milliseconds by which the clock is turned before.
    turn: i64,
    reopen: bool,
    grouped: bool,
    /// Each with the number of its request id, if it has one.
    actions: Vec<(Action, Option<u8>)>,
}

fn round() -> impl Strategy<Value = Round> {
    let condition = || {
        prop_oneof![
            4 => Just(Condition::None),
            1 => Just(Condition::Absent),
            2 => Just(Condition::Holds),
            1 => Just(Condition::Fails),
        ]
    };
    let ttl = || prop::option::weighted(0.4, 1..4u32);
    let action = prop_oneof![
        5 => (0..6u8, ttl(), condition())
            .prop_map(|(key, ttl, condition)| Action::Put { key, ttl, condition }),
        3 => (0..6u8, condition()).prop_map(|(key, condition)| Action::Delete { key, condition }),
        1 => (vec(0..6u8, 0..4), ttl()).prop_map(|(keys, ttl)| Action::PutMany { keys, ttl }),
        1 => Just(Action::Tick),
    ];
    let actions = vec((action, prop::option::weighted(0.4, 0..6u8)), 1..COMMANDS_MAX);
    let turn = prop_oneof![
        6 => 0..1_500i64,
        2 => -3_000..0i64,
        1 => 590_000..610_000i64,
    ];
    (turn, prop::bool::weighted(0.1), any::<bool>(), actions)
        .prop_map(|(turn, reopen, grouped, actions)| Round { turn, reopen, grouped, actions })
}

/// What a shard ought to hold.
#[derive(Default)]
struct Model {
    clock: u64,
    last: u64,
    /// Text, version and expiry of each key.
    documents: BTreeMap<u8, (String, u64, Option<u64>)>,
    /// Outcome and expiry of each request id.
    requests: BTreeMap<u8, (Outcome, u64)>,
}

impl Model {
    fn live(&self, key: u8) -> Option<&(String, u64, Option<u64>)> {
        self.documents
            .get(&key)
            .filter(|(.., expires_at)| expires_at.is_none_or(|at| at > self.clock))
    }

    fn version(&self, key: u8) -> u64 {
        self.live(key).map_or(0, |document| document.1)
    }

    fn put(&mut self, key: u8, text: String, ttl: Option<u32>) {
        self.last += 1;
        let expires_at = ttl.map(|seconds| self.clock + u64::from(seconds) * 1_000);
        self.documents.insert(key, (text, self.last, expires_at));
    }

    fn apply(&mut self, command: &Command, request: Option<u8>) -> Outcome {
        if let Some(id) = request
            && let Some((outcome, expires_at)) = self.requests.get(&id)
            && *expires_at > self.clock
        {
            return match (&command.change, outcome) {
                (Change::Put { .. }, Outcome::Put { .. })
                | (Change::Delete { .. }, Outcome::Delete { .. })
                | (Change::PutMany { .. }, Outcome::PutMany { .. })
                | (Change::Put { .. } | Change::Delete { .. }, Outcome::Mismatch { .. }) => {
                    *outcome
                }
                _ => Outcome::RequestIdReused,
            };
        }
        let outcome = self.change(&command.change);
        if let Some(id) = request
            && outcome != Outcome::Tick
        {
            self.requests.insert(id, (outcome, self.clock + 600_000));
        }
        outcome
    }

    fn change(&mut self, change: &Change) -> Outcome {
        let number = |key: &Key| key.as_bytes()[0] - b'a';
        let text = |value: &Value| String::from_utf8(value.bytes().to_vec()).expect("text");
        match change {
            Change::Put { key, if_version: Some(expected), .. }
            | Change::Delete { key, if_version: Some(expected) }
                if expected.0 != self.version(number(key)) =>
            {
                Outcome::Mismatch {
                    expected: *expected,
                    actual: Version(self.version(number(key))),
                }
            }
            Change::Put { key, value, ttl, .. } => {
                self.put(number(key), text(value), ttl.map(TtlSeconds::get));
                Outcome::Put { version: Version(self.last) }
            }
            Change::Delete { key, .. } => {
                let deleted = self.version(number(key)) != 0;
                self.last += u64::from(deleted);
                self.documents.remove(&number(key));
                Outcome::Delete { deleted }
            }
            Change::PutMany { entries, ttl } => {
                for (key, value) in entries {
                    self.put(number(key), text(value), ttl.map(TtlSeconds::get));
                }
                Outcome::PutMany { count: u32::try_from(entries.len()).expect("few") }
            }
            Change::Tick => Outcome::Tick,
        }
    }

    fn check(&self, shard: &Shard) {
        let mut wanted = Vec::new();
        for key in self.documents.keys() {
            if let Some((text, version, expires_at)) = self.live(*key) {
                wanted.push((
                    vec![b'a' + key],
                    text.clone(),
                    Version(*version),
                    expires_at.is_some(),
                ));
            }
        }
        let mut found = Vec::new();
        let reader =
            shard.reader(&shard.seat(Freshness::Stale).expect("it is here")).expect("is open");
        let mut scan = reader.scan(KeyRange::ALL, Direction::Forward).expect("scans");
        while let Some(document) = scan.next().expect("reads") {
            let text = String::from_utf8(document.value().bytes().to_vec()).expect("text");
            let expires = document.ttl_seconds.is_some();
            found.push((document.key.to_vec(), text, document.version(), expires));
        }
        assert_eq!(found, wanted);
        assert_eq!(shard.status().expect("is open").last_version, Version(self.last));
        assert_eq!(shard.status().expect("is open").engine.keys, wanted.len() as u64);
    }
}

fn command(action: &Action, request: Option<u8>, serial: usize, model: &Model) -> Command {
    let name = |key: u8| key_of(key);
    let condition = |key: u8, condition: &Condition| match condition {
        Condition::None => None,
        Condition::Absent => Some(Version::ABSENT),
        Condition::Holds => Some(Version(model.version(key))),
        Condition::Fails => Some(Version(model.version(key) + 1)),
    };
    // No two values are alike.
    let value = |part: usize| json(&format!("{serial}.{part}"));
    let change = match action {
        Action::Put { key, ttl, condition: holds } => Change::Put {
            key: name(*key),
            value: value(0),
            ttl: ttl.and_then(TtlSeconds::new),
            if_version: condition(*key, holds),
        },
        Action::Delete { key, condition: holds } => {
            Change::Delete { key: name(*key), if_version: condition(*key, holds) }
        }
        Action::PutMany { keys, ttl } => Change::PutMany {
            entries: keys.iter().enumerate().map(|(part, key)| (name(*key), value(part))).collect(),
            ttl: ttl.and_then(TtlSeconds::new),
        },
        Action::Tick => Change::Tick,
    };
    match (request, &change) {
        // Ticks are the shard's own and have no id.
        (Some(id), Change::Put { .. } | Change::Delete { .. } | Change::PutMany { .. }) => {
            with_id(&id.to_string(), change)
        }
        _ => change.into(),
    }
}

fn key_of(number: u8) -> Key {
    key(&char::from(b'a' + number).to_string())
}

fn play(rounds: &[Round]) {
    let mut bench = Bench::new();
    let mut model = Model::default();
    let mut serial = 0;
    for round in rounds {
        if round.reopen {
            bench.reopen();
        }
        let now = bench.clock.now().as_millis().saturating_add_signed(round.turn);
        bench.clock.set(Timestamp::from_millis(now));
        model.clock = model.clock.max(now);
        let parked = round.grouped.then(|| {
            bench.gate().hold();
            let ticket = bench.propose(Change::Tick);
            bench.gate().wait_for_sync();
            ticket
        });
        let mut tickets = Vec::new();
        for (action, request) in &round.actions {
            serial += 1;
            let command = command(action, *request, serial, &model);
            // The model is ahead of the shard here; conditions that hold are told from it.
            let request = request.filter(|_| command.request_id.is_some());
            let wanted = model.apply(&command, request);
            let ticket = bench.propose(command.clone());
            if round.grouped {
                tickets.push((ticket, wanted, command));
            } else {
                assert_eq!(wait(ticket).expect("is applied"), wanted, "{command:?}");
            }
        }
        bench.gate().release();
        if let Some(ticket) = parked {
            wait(ticket).expect("is applied");
        }
        for (ticket, wanted, command) in tickets {
            assert_eq!(wait(ticket).expect("is applied"), wanted, "{command:?}");
        }
        model.check(bench.shard());
    }
    bench.reopen();
    model.check(bench.shard());
}

#[test]
fn shard_answers_as_a_plain_model() {
    property::check(file!(), (20_000, COMMANDS_EACH), &vec(round(), 1..ROUNDS_MAX), |rounds| {
        play(&rounds);
    });
}
