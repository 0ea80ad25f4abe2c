//! Random histories on an engine and on the plainest thing that behaves as the contract says: a map, and a clock.
//!
//! Keys come from a small set, so that histories meet the same keys again and again; views are kept over writes; engines are
//! closed and opened, copied and replaced in the middle.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Home, Row, Subject, on_each_engine, property};
use crate::storage::{Direction, Durability, KeyRange, Reader, Seqno, StorageEngine, WriteBatch};
use crate::util::time::Timestamp;

/// Operations of one history, on average.
const OPERATIONS_EACH: u32 = 100;

on_each_engine!(engine_behaves_as_a_map_with_a_clock);

fn engine_behaves_as_a_map_with_a_clock(subject: &'static Subject) {
    // Syncs cost time, so engines with files get fewer.
    let operations = if subject.keeps_files { 4_000 } else { 20_000 };
    let histories = vec(step(), 1..2 * OPERATIONS_EACH as usize);
    property::check(file!(), (operations, OPERATIONS_EACH), &histories, |history| {
        let mut run = Run::new(subject);
        for step in &history {
            run.take(step);
        }
        run.check_all();
    });
}

#[derive(Debug, Clone)]
enum Change {
    /// Expires so many milliseconds after the model's clock; not above zero: has expired already.
    Put(Vec<u8>, Vec<u8>, Option<i64>),
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

#[derive(Debug, Clone)]
enum Read {
    Get(Vec<u8>),
    GetMany(Vec<Vec<u8>>),
    Scan { start: Vec<u8>, end: Option<Vec<u8>>, reverse: bool, limit: usize },
}

#[derive(Debug, Clone)]
enum Step {
    /// Moves the clock by so much, in either direction, when given.
    Write {
        changes: Vec<Change>,
        clock: Option<i64>,
        durability: Durability,
    },
    Read(Read),
    TakeView,
    /// Reads from one of the views, if there are any.
    ReadView(usize, Read),
    DropView(usize),
    Barrier,
    Flush,
    Compact(Vec<u8>, Option<Vec<u8>>),
    /// Closes and opens: the engine, or all of the environment.
    Reopen {
        environment: bool,
    },
    /// Goes on with what a checkpoint holds, under a new name or the old one.
    Copy {
        over: bool,
    },
    CheckAll,
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(vec![0x00, b'a', b'b', b'c', 0xff]);
    prop_oneof![
        20 => vec(byte.clone(), 0..3),
        1 => byte.prop_map(|last| [vec![b'b'; 300], vec![last]].concat()),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        10 => vec(any::<u8>(), 0..4),
        1 => (any::<u8>(), 100..3000usize).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (key(), value(), prop::option::weighted(0.4, -2..20i64))
            .prop_map(|(key, value, expires_in)| Change::Put(key, value, expires_in)),
        3 => key().prop_map(Change::Delete),
        1 => (key(), key()).prop_map(|(start, end)| Change::DeleteRange(start, end)),
    ]
}

fn read() -> impl Strategy<Value = Read> {
    let limit = prop_oneof![Just(usize::MAX), 0..4usize];
    prop_oneof![
        2 => key().prop_map(Read::Get),
        1 => vec(key(), 0..6).prop_map(Read::GetMany),
        3 => (key(), prop::option::of(key()), any::<bool>(), limit)
            .prop_map(|(start, end, reverse, limit)| Read::Scan { start, end, reverse, limit }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let durability = prop_oneof![
        18 => Just(Durability::None),
        1 => Just(Durability::Buffered),
        1 => Just(Durability::Sync),
    ];
    let write = (vec(change(), 0..6), prop::option::weighted(0.4, -2..6i64), durability);
    prop_oneof![
        50 => write.prop_map(|(changes, clock, durability)| {
            Step::Write { changes, clock, durability }
        }),
        25 => read().prop_map(Step::Read),
        4 => Just(Step::TakeView),
        14 => (any::<usize>(), read()).prop_map(|(view, read)| Step::ReadView(view, read)),
        2 => any::<usize>().prop_map(Step::DropView),
        1 => Just(Step::Barrier),
        1 => Just(Step::Flush),
        1 => (key(), prop::option::of(key())).prop_map(|(start, end)| Step::Compact(start, end)),
        1 => any::<bool>().prop_map(|environment| Step::Reopen { environment }),
        1 => any::<bool>().prop_map(|over| Step::Copy { over }),
        2 => Just(Step::CheckAll),
    ]
}

/// What an engine ought to hold.
#[derive(Debug, Clone, Default)]
struct Model {
    entries: BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)>,
    clock: u64,
}

impl Model {
    fn apply(&mut self, changes: &[Change], now: Option<u64>) {
        let before = self.clock;
        self.clock = self.clock.max(now.unwrap_or(0));
        for change in changes {
            match change {
                Change::Put(key, value, expires_in) => {
                    let expires_at = expires_in.map(|by| before.saturating_add_signed(by));
                    self.entries.insert(key.clone(), (value.clone(), expires_at));
                }
                Change::Delete(key) => {
                    self.entries.remove(key);
                }
                Change::DeleteRange(start, end) => {
                    self.entries.retain(|key, _| !(start <= key && key < end));
                }
            }
        }
    }

    fn rows(&self, range: KeyRange<'_>) -> impl DoubleEndedIterator<Item = Row> {
        self.entries.iter().filter_map(move |(key, (value, expires_at))| {
            let visible = expires_at.is_none_or(|at| at > self.clock);
            (visible && range.contains(key)).then(|| (key.clone(), value.clone(), *expires_at))
        })
    }

    fn get(&self, key: &[u8]) -> Option<Row> {
        self.rows(KeyRange::ALL).find(|row| row.0 == key)
    }

    /// Compares one read.
    fn check(&self, reader: &dyn Reader, read: &Read) {
        match read {
            Read::Get(key) => {
                let found = reader.get(key).expect("reads");
                let found = found.map(|entry| {
                    (key.clone(), entry.value.to_vec(), entry.expires_at.map(Timestamp::as_millis))
                });
                assert_eq!(found, self.get(key), "get");
            }
            Read::GetMany(keys) => {
                let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                let mut found = vec![None; keys.len()];
                reader
                    .get_many(&keys, &mut |position, entry| {
                        assert_eq!(entry.key, keys[position], "get_many");
                        let expires_at = entry.expires_at.map(Timestamp::as_millis);
                        let row = (entry.key.to_vec(), entry.value.to_vec(), expires_at);
                        assert_eq!(found[position].replace(row), None, "visited twice");
                    })
                    .expect("reads");
                let wanted: Vec<_> = keys.iter().map(|key| self.get(key)).collect();
                assert_eq!(found, wanted, "get_many");
            }
            Read::Scan { start, end, reverse, limit } => {
                let range = KeyRange::new(start, end.as_deref());
                let direction = if *reverse { Direction::Reverse } else { Direction::Forward };
                let found = scan(reader, range, direction, *limit);
                let wanted: Vec<_> = if *reverse {
                    self.rows(range).rev().take(*limit).collect()
                } else {
                    self.rows(range).take(*limit).collect()
                };
                assert_eq!(found, wanted, "scan of {range:?} {direction:?}");
            }
        }
    }

    /// Compares all there is to read.
    fn check_all(&self, reader: &dyn Reader) {
        assert_eq!(reader.clock().as_millis(), self.clock, "clock");
        for reverse in [false, true] {
            self.check(
                reader,
                &Read::Scan { start: vec![], end: None, reverse, limit: usize::MAX },
            );
        }
        self.check(reader, &Read::GetMany(self.entries.keys().cloned().collect()));
    }

    /// Compares what an engine says of itself.
    fn check_figures(&self, engine: &dyn StorageEngine, exactly: bool) {
        let earliest = self.rows(KeyRange::ALL).filter_map(|row| row.2).min();
        let next = engine.next_expiry().map(Timestamp::as_millis);
        if let Some(earliest) = earliest {
            assert!(next.is_some_and(|next| next <= earliest), "{next:?} is after {earliest}");
        }
        assert!(next.is_none_or(|next| next > self.clock), "{next:?} is past at {}", self.clock);
        let status = engine.status();
        assert!(status.writable);
        if exactly {
            let counted: Vec<Row> = self
                .rows(KeyRange::new(&[], Some(&[0])))
                .chain(self.rows(KeyRange::new(&[1], None)))
                .collect();
            let bytes: usize = counted.iter().map(|(key, value, _)| key.len() + value.len()).sum();
            assert_eq!((status.keys, status.bytes), (counted.len() as u64, bytes as u64), "counts");
        }
    }
}

fn scan(reader: &dyn Reader, range: KeyRange<'_>, direction: Direction, limit: usize) -> Vec<Row> {
    let mut scan = reader.scan(range, direction).expect("scans");
    let mut rows = Vec::new();
    while rows.len() < limit {
        let Some(entry) = scan.next().expect("reads") else {
            assert_eq!(scan.next().expect("is over"), None, "over is over");
            break;
        };
        let expires_at = entry.expires_at.map(Timestamp::as_millis);
        rows.push((entry.key.to_vec(), entry.value.to_vec(), expires_at));
    }
    rows
}

/// An engine with its model.
struct Run {
    home: Home,
    name: String,
    views: Vec<(Box<dyn Reader>, Model)>,
    engine: Option<Arc<dyn StorageEngine>>,
    model: Model,
    newest: Seqno,
    copies: usize,
}

impl Run {
    fn new(subject: &'static Subject) -> Self {
        let home = Home::new(subject);
        let name = "main".to_owned();
        let engine = Some(home.open(&name));
        let model = Model::default();
        Self { home, name, views: Vec::new(), engine, model, newest: Seqno(0), copies: 0 }
    }

    fn engine(&self) -> &dyn StorageEngine {
        self.engine.as_deref().expect("it is open")
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Write { changes, clock, durability } => self.write(changes, *clock, *durability),
            Step::Read(read) => self.model.check(self.engine(), read),
            Step::TakeView => {
                let view = self.engine().view().expect("freezes");
                self.views.push((view, self.model.clone()));
            }
            Step::ReadView(index, read) if !self.views.is_empty() => {
                let (view, model) = &self.views[index % self.views.len()];
                model.check(&**view, read);
            }
            Step::DropView(index) if !self.views.is_empty() => {
                self.views.swap_remove(index % self.views.len());
            }
            Step::ReadView(..) | Step::DropView(_) => {}
            Step::Barrier => {
                let engine = self.engine();
                let seqno = engine.write(&WriteBatch::new(), Durability::Sync).expect("syncs");
                assert!(engine.durable() >= seqno && seqno >= self.newest, "barrier");
            }
            Step::Flush => self.engine().flush().expect("flushes"),
            Step::Compact(start, end) => {
                let range = KeyRange::new(start, end.as_deref());
                self.engine().compact(range).expect("compacts");
            }
            Step::Reopen { environment } => {
                self.close();
                if *environment {
                    self.home.reopen();
                }
                self.engine = Some(self.home.open(&self.name));
                self.check_all();
            }
            Step::Copy { over } => self.copy(*over),
            Step::CheckAll => self.check_all(),
        }
    }

    fn write(&mut self, changes: &[Change], clock: Option<i64>, durability: Durability) {
        let mut batch = WriteBatch::new();
        for change in changes {
            match change {
                Change::Put(key, value, expires_in) => {
                    let expires_at =
                        expires_in.map(|by| self.model.clock.saturating_add_signed(by));
                    batch.put(&[key], &[value], expires_at.map(Timestamp::from_millis));
                }
                Change::Delete(key) => batch.delete(&[key]),
                Change::DeleteRange(start, end) => batch.delete_range(start, end),
            }
        }
        let now = clock.map(|by| self.model.clock.saturating_add_signed(by));
        batch.advance_clock(now.map(Timestamp::from_millis).unwrap_or_default());
        let seqno = self.engine().write(&batch, durability).expect("writes");
        if batch.is_empty() {
            assert!(seqno >= self.newest, "numbers never fall");
        } else {
            assert!(seqno > self.newest, "numbers grow");
        }
        if durability == Durability::Sync {
            assert!(self.engine().durable() >= seqno, "a synced write is durable");
        }
        assert!(self.engine().durable() <= seqno, "nothing is durable before it is written");
        self.newest = seqno;
        self.model.apply(changes, now);
        self.model.check_figures(self.engine(), self.home.subject.counts_exactly);
    }

    fn copy(&mut self, over: bool) {
        self.copies += 1;
        let directory = self.home.beside(&format!("copy-{}", self.copies));
        self.engine().checkpoint(&directory).expect("is copied");
        self.close();
        let environment = self.home.environment();
        if !over {
            let old = std::mem::replace(&mut self.name, format!("engine-{}", self.copies));
            environment.remove(&old).expect("is removed");
        }
        environment.install(&self.name, &directory).expect("is installed");
        assert_eq!(environment.list().expect("lists"), std::slice::from_ref(&self.name));
        self.engine = Some(self.home.open(&self.name));
        self.newest = Seqno(0);
        self.check_all();
    }

    fn check_all(&self) {
        self.model.check_all(self.engine());
        for (view, model) in &self.views {
            model.check_all(&**view);
        }
        self.model.check_figures(self.engine(), self.home.subject.counts_exactly);
    }

    fn close(&mut self) {
        self.views.clear();
        self.engine = None;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.close();
    }
}
