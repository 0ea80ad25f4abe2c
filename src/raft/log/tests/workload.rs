//! A drawn workload of several groups, and what its caller may rely on at each moment.
//!
//! Every record that is written makes a new [`World`]. The wal keeps a prefix of its records, so what is found after a crash
//! must be one of them, as a whole, over all groups, and none older than the newest that anybody was told is durable.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::StreamExt as _;
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt as _;
use openraft::vote::RaftLeaderId as _;

use super::super::record::encode_entries;
use super::*;
use crate::command::Proposal;
use crate::raft::types::{Entry, LeaderId, LogId, TypeConfig, Vote};

pub(super) const GROUPS: u32 = 3;

/// What a future of the log says when it is asked.
pub(super) fn poll<T>(future: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Option<T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    }
}

/// For calls that wait for nothing.
pub(in crate::raft::log) fn now<T>(future: impl Future<Output = T>) -> T {
    poll(&mut (Box::pin(future) as Pin<Box<dyn Future<Output = T> + '_>>)).expect("no waiting")
}

pub(in crate::raft::log) fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId::new(term, term % 3 + 1), index }
}

/// An entry with a value of `length` bytes.
pub(in crate::raft) fn entry(term: u64, index: u64, length: usize) -> Entry {
    let byte = (index.wrapping_mul(7) ^ term).to_le_bytes()[0];
    let proposal = Proposal::from_bytes(Bytes::from(vec![byte; length]));
    Entry::new(id(term, index), EntryPayload::Normal(proposal))
}

/// Appends, and returns what the callback will say.
pub(in crate::raft::log) fn append(
    log: &GroupLog,
    entries: Vec<Entry>,
) -> io::Result<impl Future<Output = io::Result<()>> + Send + 'static> {
    let (sender, outcome) = TypeConfig::oneshot();
    now(log.clone().append(entries, IOFlushed::signal(sender)))?;
    Ok(async move { outcome.await.unwrap_or_else(|_| Err(io::Error::other("never called"))) })
}

/// What the log of a group holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Model {
    pub(super) entries: BTreeMap<u64, Entry>,
    pub(super) vote: Option<Vote>,
    pub(super) purged: Option<LogId>,
    committed: Option<LogId>,
    generation: u64,
}

impl Model {
    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }

    fn committed(&self) -> Option<LogId> {
        let (committed, last) = (self.committed?, self.last()?);
        Some(if committed.index > last.index { last } else { committed })
    }

    /// The last entry of each leader.
    fn key_log_ids(&self) -> Vec<LogId> {
        let ids: Vec<_> = self.entries.values().map(|entry| entry.log_id).collect();
        let mut keys = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            if ids.get(at + 1).is_none_or(|next| next.leader_id != id.leader_id) {
                keys.push(*id);
            }
        }
        keys
    }

    /// Whether `log` answers every question of openraft as it should.
    pub(super) fn check(&self, log: &mut GroupLog) -> Result<(), String> {
        let state = now(log.get_log_state()).map_err(|error| error.to_string())?;
        equal("purged", &state.last_purged_log_id, &self.purged)?;
        equal("last", &state.last_log_id, &self.last())?;
        equal("vote", &now(log.read_vote()).expect("in memory"), &self.vote)?;
        equal("committed", &now(log.read_committed()).expect("in memory"), &self.committed())?;
        equal("generation", &log.generation(), &self.generation)?;
        let pristine = self.vote.is_none() && self.purged.is_none() && self.entries.is_empty();
        equal("pristine", &log.is_pristine(), &pristine)?;
        let expected: Vec<_> = self.entries.values().cloned().collect();
        let entries = now(log.try_get_log_entries(0..)).map_err(|error| error.to_string())?;
        equal("entries", &entries, &expected)?;
        let stream = now(async { log.entries_stream(..).await.collect::<Vec<_>>().await });
        let stream: io::Result<Vec<_>> = stream.into_iter().collect();
        equal("streamed", &stream.map_err(|error| error.to_string())?, &expected)?;
        let (Some(first), Some(last)) = (expected.first(), expected.last()) else { return Ok(()) };
        let keys = now(log.get_key_log_ids(first.log_id..=last.log_id)).expect("in memory");
        equal("leaders", &keys, &self.key_log_ids())?;
        // From the middle: part of a record, and maybe part of what is in memory.
        let middle = u64::midpoint(first.log_id.index, last.log_id.index);
        let read = now(log.limited_get_log_entries(middle, u64::MAX)).expect("readable");
        let expected: Vec<_> =
            self.entries.range(middle..).map(|(_, entry)| entry.clone()).collect();
        equal("from the middle", &read, &expected)
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(
    what: &str,
    found: &T,
    expected: &T,
) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: found {found:?} instead of {expected:?}"))
}

/// All groups that have anything.
pub(super) type World = BTreeMap<GroupId, Model>;

/// Whether `store` holds `world` and no more.
pub(super) fn check(store: &LogStore, world: &World) -> Result<(), String> {
    let listed = store.groups();
    for group in (0..GROUPS).map(GroupId) {
        let model = world.get(&group).cloned().unwrap_or_default();
        model.check(&mut store.group(group)).map_err(|what| format!("{group}: {what}"))?;
        // One that has written, and nothing is left of it, may be listed or not.
        if model != Model::default() || !world.contains_key(&group) {
            equal("listed", &listed.contains(&group), &world.contains_key(&group))?;
        }
    }
    Ok(())
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// A store under a workload.
pub(super) struct Run {
    pub(super) store: LogStore,
    random: Random,
    /// What there was after each record, from the one that was found at the opening on.
    pub(super) worlds: Vec<World>,
    /// The newest of them that is durable for sure.
    pub(super) sure: usize,
    /// Who waits to be told that a world is durable, by group.
    waiting: Vec<(GroupId, usize, Waiting)>,
    /// The world that first had an entry as it is now.
    appended: HashMap<(GroupId, u64), usize>,
    /// Calls that the full disk refused.
    pub(super) refused: u64,
}

/// Numbers from a seed (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

impl Run {
    pub(super) fn new(store: LogStore, world: World, seed: u64) -> Self {
        Self {
            store,
            random: Random(seed),
            worlds: vec![world],
            sure: 0,
            waiting: Vec::new(),
            appended: HashMap::new(),
            refused: 0,
        }
    }

    pub(super) fn world(&self) -> &World {
        self.worlds.last().expect("there is always one")
    }

    /// Takes `steps` steps, until one fails for another reason than a full disk.
    pub(super) fn steps(&mut self, steps: u32) -> io::Result<()> {
        for _ in 0..steps {
            match self.step() {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => self.refused += 1,
                outcome => outcome?,
            }
            self.ask()?;
        }
        Ok(())
    }

    fn step(&mut self) -> io::Result<()> {
        let group = GroupId(u32::try_from(self.random.below(GROUPS.into())).expect("small"));
        let kind = self.random.below(24);
        if kind < 18 {
            // openraft asks a group for one thing at a time.
            self.settle(group)?;
        }
        let model = self.world().get(&group).cloned().unwrap_or_default();
        match kind {
            0..=7 => self.append(group, model),
            8 | 9 => {
                let term = model.vote.map_or(1, |vote| vote.leader_id.term) + self.random.below(2);
                let vote = Vote::new(term, term % 3 + 1);
                let changed = Model { vote: Some(vote), ..model };
                let mut log = self.store.group(group);
                self.wait(group, changed, Box::pin(async move { log.save_vote(&vote).await }))
            }
            10 | 11 => self.truncate(group, model),
            12 | 13 => self.purge(group, model),
            14 | 15 => {
                let committed = self.draw(&model);
                let written = now(self.store.group(group).save_committed(committed));
                self.wrote(group, Model { committed, ..model }, written)
            }
            16 => {
                let generation = model.generation + 1;
                let log = self.store.group(group);
                let changed = Model { generation, ..model };
                let set = Box::pin(async move { log.set_generation(generation).await });
                self.wait(group, changed, set)
            }
            17 if self.random.below(4) == 0 => self.forget(group),
            18 | 19 => {
                self.ask_durable(group, &model);
                Ok(())
            }
            20 | 21 => self.store.maintain(),
            _ => {
                self.store.drive();
                Ok(())
            }
        }
    }

    /// One of the entries, or of those before and behind.
    fn draw(&mut self, model: &Model) -> Option<LogId> {
        let first = model.entries.keys().next().copied().unwrap_or_default();
        let index = first + self.random.below(model.entries.len() as u64 + 2);
        model.entries.get(&index).map(|entry| entry.log_id).or(model.purged)
    }

    fn append(&mut self, group: GroupId, mut model: Model) -> io::Result<()> {
        let term = model.vote.map_or(1, |vote| vote.leader_id.term);
        let term = term.max(model.last().map_or(0, |last| last.leader_id.term));
        let (count, length) = match self.random.below(40) {
            // Several records at once, one of them larger than a segment.
            0 => (300, 40),
            1 => (3, 5000),
            _ => (1 + self.random.below(4), self.random.below(300)),
        };
        let length = usize::try_from(length).expect("small");
        let next = model.next();
        let entries: Vec<_> = (next..next + count).map(|at| entry(term, at, length)).collect();
        let log = self.store.group(group);
        let outcome = append(&log, entries.clone());
        let taken = now(log.clone().get_log_state()).expect("in memory").last_log_id;
        for (part, _) in encode_entries(&entries) {
            if taken.is_none_or(|taken| taken.index < part[0].log_id.index) {
                break;
            }
            model.entries.extend(part.iter().map(|entry| (entry.log_id.index, entry.clone())));
            self.push(group, Some(model.clone()));
            let world = self.worlds.len() - 1;
            self.appended.extend(part.iter().map(|entry| ((group, entry.log_id.index), world)));
        }
        assert_eq!(model.last(), taken, "a part of a record was taken");
        let flushed = outcome?;
        self.waiting.push((group, self.worlds.len() - 1, Box::pin(flushed)));
        Ok(())
    }

    fn truncate(&mut self, group: GroupId, mut model: Model) -> io::Result<()> {
        let last = self.draw(&model);
        let from = last.map_or(0, |last| last.index + 1);
        if from >= model.next() {
            return Ok(());
        }
        model.entries.retain(|&index, _| index < from);
        let mut log = self.store.group(group);
        self.wait(group, model, Box::pin(async move { log.truncate_after(last).await }))
    }

    fn purge(&mut self, group: GroupId, mut model: Model) -> io::Result<()> {
        let upto = match self.random.below(6) {
            // A snapshot from elsewhere.
            0 => id(model.last().map_or(1, |last| last.leader_id.term), model.next() + 3),
            _ => match self.draw(&model) {
                Some(upto) if Some(upto) != model.purged => upto,
                _ => return Ok(()),
            },
        };
        model.entries.retain(|&index, _| index > upto.index);
        model.purged = Some(upto);
        let written = now(self.store.group(group).purge(upto));
        self.wrote(group, model, written)
    }

    fn forget(&mut self, group: GroupId) -> io::Result<()> {
        // Its world comes with the record, but the store is asked at once.
        let store = LogStore { shared: Arc::clone(&self.store.shared) };
        let mut forgotten: Waiting = Box::pin(async move { store.forget(group).await });
        match poll(&mut forgotten) {
            // There was nothing.
            Some(outcome) => return outcome,
            None => self.push(group, None),
        }
        self.waiting.push((group, self.worlds.len() - 1, forgotten));
        // Nobody uses a group while it is forgotten.
        self.settle(group)
    }

    fn ask_durable(&mut self, group: GroupId, model: &Model) {
        let Some(upto) = self.draw(model).filter(|upto| model.entries.contains_key(&upto.index))
        else {
            return;
        };
        let log = self.store.group(group);
        // Not known: from before the opening, and durable.
        let world = self.appended.get(&(group, upto.index)).copied().unwrap_or(0);
        let durable = Box::pin(async move { log.durable(upto.index).await });
        self.waiting.push((group, world, durable));
    }

    fn push(&mut self, group: GroupId, model: Option<Model>) {
        let mut world = self.world().clone();
        match model {
            Some(model) => world.insert(group, model),
            None => world.remove(&group),
        };
        self.worlds.push(world);
    }

    /// A call that writes a record and does not wait.
    fn wrote(&mut self, group: GroupId, model: Model, outcome: io::Result<()>) -> io::Result<()> {
        outcome?;
        self.push(group, Some(model));
        Ok(())
    }

    /// A call that writes a record and waits until it is durable.
    fn wait(&mut self, group: GroupId, model: Model, mut call: Waiting) -> io::Result<()> {
        let begun = poll(&mut call);
        if let Some(Err(error)) = begun {
            return Err(error);
        }
        self.push(group, Some(model));
        match begun {
            Some(_) => self.sure = self.worlds.len() - 1,
            None => self.waiting.push((group, self.worlds.len() - 1, call)),
        }
        Ok(())
    }

    /// Asks all who wait.
    pub(super) fn ask(&mut self) -> io::Result<()> {
        let mut failed = None;
        let sure = &mut self.sure;
        self.waiting.retain_mut(|(_, world, waiting)| match poll(waiting) {
            None => true,
            Some(Ok(())) => {
                *sure = (*sure).max(*world);
                false
            }
            Some(Err(error)) => {
                failed = Some(error);
                false
            }
        });
        failed.map_or(Ok(()), Err)
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Waits until `group` waits for nothing.
    fn settle(&mut self, group: GroupId) -> io::Result<()> {
        while self.waiting.iter().any(|(waits, _, _)| *waits == group) {
            self.store.drive();
            self.ask()?;
        }
        Ok(())
    }

    /// Which world `store` holds: one that this run may leave behind.
    pub(super) fn found(&self, store: &LogStore) -> Result<World, String> {
        let groups = store.groups();
        let mut differs = String::new();
        for world in self.worlds[self.sure..].iter().rev() {
            match check(store, world) {
                Ok(()) => return Ok(world.clone()),
                Err(what) => differs = what,
            }
        }
        let worlds = self.worlds.len() - self.sure;
        Err(format!(
            "{groups:?} are in none of {worlds} states; in the one that is sure, {differs}"
        ))
    }
}
