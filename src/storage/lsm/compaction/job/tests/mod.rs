//! Merges of real tables on the simulated disk. One file for each property; here is what they share: an engine that
//! writes in memory, flushes, and compacts as the picker says, and the naive model of what readers must see.

mod cuts;
mod failures;
mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use std::sync::Arc;

use super::*;
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::compaction::picker::{
    Choice, Hints, Manual, ManualStep, PickerOptions, Reason, Running, Scope, choose, choose_manual,
};
use crate::storage::lsm::compaction::range_deletions;
use crate::storage::lsm::compaction::rules::Moment;
use crate::storage::lsm::files::FileNumber;
use crate::storage::lsm::key::{InternalEntry, Kind, SEQNO_MAX};
use crate::storage::lsm::manifest::Manifest;
use crate::storage::lsm::open_files::OpenFiles;
use crate::storage::lsm::table::{Access, Table, TableBuilder};
use crate::storage::lsm::version::{AddedTable, Flushed};
use crate::storage::{Error, Seqno};
use crate::util::fs::FileSystem;
use crate::util::fs::sim::SimFileSystem;
use crate::util::time::Timestamp;

const DIR: &str = "/engine";

/// One write.
#[derive(Debug, Clone)]
enum Write {
    Put { key: Vec<u8>, value: Vec<u8>, expires_at: Option<u64> },
    Delete(Vec<u8>),
    DeleteRange(Vec<u8>, Vec<u8>),
}

/// Value and expiry.
type Value = (Vec<u8>, Option<u64>);

/// An engine without a log, whose memtable is the tail of its history.
struct Engine {
    fs: SimFileSystem,
    directory: Arc<TableDirectory>,
    manifest: Manifest,
    options: PickerOptions,
    table_bytes_max: u64,
    /// All writes; the seqno of the first is 1.
    history: Vec<Write>,
    clock: u64,
    views: Vec<Moment>,
    reasons: BTreeSet<Reason>,
    running: Running,
    /// Those that run, the first one first, each with what it comes to.
    begun: Vec<(Choice, VersionEdit)>,
}

impl Engine {
    fn new(options: PickerOptions) -> Self {
        let fs = SimFileSystem::new(1);
        fs.create_dir_all(Path::new(DIR)).expect("made");
        fs.sync_dir(Path::new("/")).expect("synced");
        let disk = Arc::new(fs.clone());
        let directory =
            TableDirectory::new(OpenFiles::new(disk, 8), DIR.into(), BlockCache::new(1 << 20), 7);
        let manifest = Manifest::create(&directory, &Version::default()).expect("created");
        let table_bytes_max = options.table_bytes * 3 / 2;
        Self {
            fs,
            directory,
            manifest,
            options,
            table_bytes_max,
            history: Vec::new(),
            clock: 0,
            views: Vec::new(),
            reasons: BTreeSet::new(),
            running: Running::default(),
            begun: Vec::new(),
        }
    }

    fn version(&self) -> Arc<Version> {
        Arc::clone(self.manifest.version())
    }

    fn seqno(&self) -> Seqno {
        Seqno(self.history.len() as u64)
    }

    fn put(&mut self, key: &str, value: &[u8]) {
        let (key, value) = (key.as_bytes().to_vec(), value.to_vec());
        self.history.push(Write::Put { key, value, expires_at: None });
    }

    fn view(&mut self) {
        let clock = Timestamp::from_millis(self.clock);
        self.views.push(Moment { seqno: self.seqno(), clock });
    }

    fn readers(&self) -> Readers {
        Readers::new(&self.views, self.version().flushed().clock)
    }

    fn layout() -> TableOptions {
        TableOptions { block_bytes: 100, bundle_entries: 4, ..TableOptions::default() }
    }

    /// Everything that was not flushed becomes a table of level 0.
    fn flush(&mut self) {
        let from = usize::try_from(self.version().flushed().seqno.0).expect("few");
        let flushed = Flushed {
            seqno: self.seqno(),
            clock: Timestamp::from_millis(self.clock),
            ..self.version().flushed()
        };
        let mut edit = VersionEdit { flushed: Some(flushed), ..VersionEdit::default() };
        if from < self.history.len() {
            let (number, uid) = self.directory.allocate();
            let path = self.directory.table_path(number);
            let mut builder =
                TableBuilder::create(&self.fs, &path, uid, Self::layout()).expect("created");
            let writes = self.history.iter().enumerate().skip(from);
            let mut entries = BTreeMap::new();
            for (index, write) in writes {
                let seqno = Seqno(index as u64 + 1);
                match write {
                    Write::DeleteRange(start, end) => {
                        builder.add_range_deletion(start, end, seqno).expect("added");
                    }
                    Write::Put { key, .. } | Write::Delete(key) => {
                        entries.insert((key, std::cmp::Reverse(seqno)), write);
                    }
                }
            }
            for ((key, seqno), write) in entries {
                let entry = match write {
                    Write::Put { value, expires_at, .. } => {
                        let expires_at = expires_at.map(Timestamp::from_millis);
                        InternalEntry::put(key, seqno.0, value, expires_at)
                    }
                    _ => InternalEntry::delete(key, seqno.0),
                };
                builder.add(&entry, KeyHash::of(key)).expect("added");
            }
            if builder.is_empty() {
                // Ranges without keys.
                self.directory.remove(&number.table_name()).expect("removed");
            } else {
                let metadata = builder.finish().expect("written");
                edit.added.push(AddedTable { level: 0, number, metadata });
            }
        }
        self.manifest.commit(&edit).expect("committed");
    }

    /// The most urgent compaction there is beside those that run.
    fn choose(&self, space: bool) -> Option<(Reason, Choice)> {
        let version = self.version();
        let deletions = range_deletions(&version).expect("read");
        let scope = if space { Scope::Space } else { Scope::Size };
        let (running, readers) = (&self.running, &self.readers());
        choose(&version, &self.options, &Hints { running, readers, deletions: &deletions, scope })
    }

    fn job<'a>(
        &'a self,
        version: &'a Version,
        readers: &'a Readers,
        (inputs, to): (&'a [Input], usize),
        abort: &'a AtomicBool,
    ) -> Job<'a> {
        Job {
            directory: &self.directory,
            version,
            inputs,
            to,
            readers,
            layout: Self::layout(),
            table_bytes: self.options.table_bytes,
            table_bytes_max: self.table_bytes_max,
            abort,
        }
    }

    /// What `choice` comes to, not committed yet.
    fn edit(&self, choice: &Choice) -> VersionEdit {
        let Choice::Merge { inputs, to } = choice else { return choice.edit() };
        let (version, readers, abort) = (self.version(), self.readers(), AtomicBool::new(false));
        let job = self.job(&version, &readers, (inputs, *to), &abort);
        job.run().expect("merged").expect("not aborted")
    }

    fn commit(&mut self, edit: &VersionEdit) {
        self.manifest.commit(edit).expect("committed");
    }

    fn run(&mut self, choice: &Choice) {
        let edit = self.edit(choice);
        self.commit(&edit);
    }

    /// Begins a compaction, if there is one: what it comes to is that of the present tree.
    fn begin(&mut self, space: bool) -> bool {
        let Some((reason, choice)) = self.choose(space) else { return false };
        self.reasons.insert(reason);
        let edit = self.edit(&choice);
        self.running.begin(choice.clone());
        self.begun.push((choice, edit));
        true
    }

    /// Ends one of those that run.
    fn end(&mut self, at: usize) {
        let (choice, edit) = self.begun.remove(at);
        self.commit(&edit);
        self.running.end(&choice);
    }

    /// Begins all compactions that may run at the same time, and ends them in that order or the other way round; how many.
    fn run_together(&mut self, space: bool, reversed: bool) -> usize {
        while self.begin(space) {}
        let count = self.begun.len();
        while !self.begun.is_empty() {
            self.end(if reversed { self.begun.len() - 1 } else { 0 });
        }
        count
    }

    /// Compacts until there is nothing left to do.
    fn settle(&mut self, space: bool) {
        for _ in 0..1000 {
            let Some((reason, choice)) = self.choose(space) else { return };
            self.reasons.insert(reason);
            self.run(&choice);
        }
        panic!("compaction does not come to an end");
    }

    fn compact(&mut self, start: &[u8], end: Option<&[u8]>) {
        let manual = Manual {
            start: start.to_vec(),
            end: end.map(<[u8]>::to_vec),
            upto: self.version().flushed().seqno,
            before: self.directory.allocate().0,
        };
        for _ in 0..1000 {
            let (running, readers) = (&self.running, &self.readers());
            let hints = Hints { running, readers, deletions: &[], scope: Scope::Size };
            match choose_manual(&self.version(), &self.options, &hints, &manual) {
                ManualStep::Do(choice) => self.run(&choice),
                ManualStep::Wait => {
                    assert!(!self.begun.is_empty(), "nothing runs that could be waited for");
                    self.end(0);
                }
                ManualStep::Done => return,
            }
        }
        panic!("a manual compaction does not come to an end");
    }

    /// What is flushed, as the model has it at `moment`.
    fn expected(&self, moment: Moment) -> BTreeMap<Vec<u8>, Value> {
        let flushed = self.version().flushed().seqno.min(moment.seqno);
        let mut model = BTreeMap::new();
        for write in &self.history[..usize::try_from(flushed.0).expect("few")] {
            match write {
                Write::Put { key, value, expires_at } => {
                    model.insert(key.clone(), (value.clone(), *expires_at));
                }
                Write::Delete(key) => {
                    model.remove(key);
                }
                Write::DeleteRange(start, end) => {
                    model.retain(|key, _| !(start <= key && key < end));
                }
            }
        }
        let clock = moment.clock.as_millis();
        model.retain(|_, (_, expires_at)| expires_at.is_none_or(|at| at > clock));
        model
    }

    /// What the tables say at `moment`, as a read goes: level by level, the first answer counts.
    fn found(&self, moment: Moment) -> BTreeMap<Vec<u8>, Value> {
        let version = self.version();
        let mut answers: BTreeMap<Vec<u8>, Option<Value>> = BTreeMap::new();
        let mut deletions: Vec<Fragment> = Vec::new();
        for (_, table) in version.tables() {
            let table = table.table().expect("opened");
            // Those of a table hide what is in it, too. In a level they do not reach over into other tables.
            deletions.extend_from_slice(table.range_deletions().fragments());
            let mut cursor = Table::cursor(&**table, Access::Scan, KeyRange::ALL);
            let mut found = cursor.seek_to_first().expect("read");
            while found {
                let entry = cursor.entry().expect("stands on one");
                if entry.seqno <= moment.seqno && !answers.contains_key(entry.key) {
                    let answer = answer(&entry, &deletions, moment);
                    answers.insert(entry.key.to_vec(), answer);
                }
                found = cursor.next().expect("read");
            }
        }
        answers.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// Every view, and the present with this and later clocks, sees what it must.
    fn check(&self, what: &str) {
        let clock = self.version().flushed().clock.as_millis();
        let present = [0, 1, 10, 1000]
            .map(|later| Moment { seqno: SEQNO_MAX, clock: Timestamp::from_millis(clock + later) });
        for &moment in self.views.iter().chain(&present) {
            assert_eq!(self.found(moment), self.expected(moment), "{what}: at {moment:?}");
        }
        for (_, table) in self.version().tables() {
            table.table().expect("opened").verify().expect("sound");
            assert_eq!(table.table().expect("opened").properties(), table.properties());
        }
    }

    fn files(&self) -> Vec<String> {
        self.fs.list(Path::new(DIR)).expect("listed")
    }

    fn tables(&self, level: usize) -> usize {
        self.version().level(level).tables().len()
    }

    /// All entries and range deletions there are.
    fn entries(&self) -> u64 {
        let version = self.version();
        let count = |table: &Arc<crate::storage::lsm::files::TableFile>| {
            table.properties().entries + table.properties().range_deletions
        };
        version.tables().map(|(_, table)| count(table)).sum()
    }
}

fn answer(entry: &InternalEntry<'_>, deletions: &[Fragment], moment: Moment) -> Option<Value> {
    let deleted = deletions.iter().any(|fragment| {
        *fragment.start <= *entry.key
            && *entry.key < *fragment.end
            && fragment.seqnos.iter().any(|&at| at > entry.seqno && at <= moment.seqno)
    });
    let expired = entry.expires_at.is_some_and(|at| at <= moment.clock);
    let value = || (entry.value.to_vec(), entry.expires_at.map(Timestamp::as_millis));
    (!deleted && !expired && entry.kind != Kind::Delete).then(value)
}

/// A tree that is out of shape after a few hundred bytes.
fn tiny() -> PickerOptions {
    PickerOptions {
        l0_tables: 2,
        base_bytes: 1_500,
        growth: 2,
        table_bytes: 700,
        ..PickerOptions::default()
    }
}
