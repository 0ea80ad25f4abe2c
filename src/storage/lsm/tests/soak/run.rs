//! One random history of an environment with two engines.

use std::collections::VecDeque;

use super::super::*;
use super::model::Model;
use crate::storage::{Direction, Reader};

/// An engine with what it ought to hold.
struct Subject {
    name: &'static str,
    /// `None` only while it is closed.
    engine: Option<Arc<dyn StorageEngine>>,
    model: Model,
    newest: Seqno,
    /// What survives a power loss, and a killed process, at least.
    synced: Seqno,
    buffered: Seqno,
    /// The models after each write since the synced one, which is the first.
    states: VecDeque<(Seqno, Model)>,
    views: Vec<(Box<dyn Reader>, Model)>,
}

impl Subject {
    fn new(name: &'static str) -> Self {
        let model = Model::default();
        Self {
            name,
            engine: None,
            states: VecDeque::from([(Seqno(0), model.clone())]),
            model,
            newest: Seqno(0),
            synced: Seqno(0),
            buffered: Seqno(0),
            views: Vec::new(),
        }
    }

    fn engine(&self) -> &dyn StorageEngine {
        self.engine.as_deref().expect("it is open")
    }

    fn write(&mut self, batch: &WriteBatch, durability: Durability) {
        let seqno = self.engine().write(batch, durability).expect("writes");
        assert!(seqno > self.newest, "numbers grow");
        self.newest = seqno;
        self.states.push_back((seqno, self.model.clone()));
        match durability {
            Durability::None => {}
            Durability::Buffered => self.buffered = seqno,
            Durability::Sync => self.all_synced(),
        }
    }

    fn all_synced(&mut self) {
        (self.synced, self.buffered) = (self.newest, self.newest);
        self.states.drain(..self.states.len() - 1);
    }

    fn close(&mut self) {
        self.views.clear();
        self.engine = None;
    }

    /// Opens the engine after a crash that `safe` must have survived, and goes on with what did.
    fn survive(&mut self, environment: &LsmEnvironment, safe: Seqno) {
        let engine = environment.open(self.name).expect("opens");
        let seqno = engine.write(&WriteBatch::new(), Durability::Sync).expect("syncs");
        assert!(seqno >= safe, "{}: {seqno:?} is left, {safe:?} was safe", self.name);
        let state = self.states.iter().find(|(number, _)| *number == seqno);
        let (_, model) = state.unwrap_or_else(|| panic!("{seqno:?} is the end of no batch"));
        self.model = model.clone();
        self.newest = seqno;
        self.engine = Some(engine);
        self.states = VecDeque::from([(seqno, self.model.clone())]);
        self.all_synced();
        self.model.check_all(self.engine());
    }
}

/// How keys look in one history.
#[derive(Debug, Clone, Copy)]
enum Keys {
    Short,
    /// With this in common.
    Long(usize),
}

pub(super) struct Run {
    fs: SimFileSystem,
    random: StdRng,
    keys: Keys,
    distinct: u32,
    subjects: Vec<Subject>,
    environment: Option<LsmEnvironment>,
    threads: bool,
    copies: u64,
    /// What the engines said of themselves whenever they were closed, added up.
    figures: Figures,
}

pub(super) type Figures = BTreeMap<&'static str, f64>;

impl Run {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let keys = match random.random_range(0..4) {
            0 => Keys::Long(random.random_range(1..300)),
            _ => Keys::Short,
        };
        let distinct = 1 << random.random_range(3..12);
        let threads = random.random();
        let subjects = NAMES.map(Subject::new).into_iter().collect();
        let fs = SimFileSystem::new(seed);
        let mut run = Self {
            fs,
            random,
            keys,
            distinct,
            subjects,
            environment: None,
            threads,
            copies: 0,
            figures: Figures::new(),
        };
        run.start();
        run.open_all();
        run
    }

    /// Opens the environment with settings that were never used before.
    fn start(&mut self) {
        let mut options = LsmOptions::tiny(self.random.random());
        if !self.threads {
            options.threads = 0;
        }
        options.compaction = self.random.random_ratio(9, 10);
        let fs = Arc::new(self.fs.clone());
        let environment = LsmEnvironment::open(fs, DIRECTORY, options).expect("opens");
        self.environment = Some(environment);
    }

    fn environment(&self) -> &LsmEnvironment {
        self.environment.as_ref().expect("it is open")
    }

    fn key(&mut self) -> Vec<u8> {
        let number = self.random.random_range(0..self.distinct);
        let end = number.to_be_bytes();
        // Zeros, ends and beginnings of others.
        let end = &end[2..2 + self.random.random_range(1..=2)];
        match self.keys {
            Keys::Short => end.to_vec(),
            Keys::Long(length) => [&vec![b'k'; length], end].concat(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let length = match self.random.random_range(0..100) {
            0 => self.random.random_range(0..5_000),
            1..20 => self.random.random_range(0..200),
            _ => self.random.random_range(0..16),
        };
        let mut value = self.random.random::<u64>().to_le_bytes().to_vec();
        value.resize(length, 7);
        value
    }

    fn subject(&mut self) -> usize {
        usize::from(self.random.random_ratio(1, 3))
    }

    pub(super) fn step(&mut self) {
        let which = self.subject();
        match self.random.random_range(0..20_000) {
            0..8_000 => self.write(which, 1),
            8_000..8_400 => {
                let count = self.random.random_range(0..20);
                self.write(which, count);
            }
            8_400..13_000 => {
                let key = self.key();
                self.read(which, |model, reader| model.check_get(reader, &key));
            }
            13_000..13_500 => {
                let count = self.random.random_range(0..20);
                let keys: Vec<_> = (0..count).map(|_| self.key()).collect();
                self.read(which, |model, reader| model.check_get_many(reader, &keys));
            }
            13_500..15_000 => self.scan(which),
            15_000..15_100 => self.take_view(which),
            15_100..15_170 => {
                let at = self.random.random_range(0..8);
                let views = &mut self.subjects[which].views;
                if at < views.len() {
                    views.swap_remove(at);
                }
            }
            15_170..15_180 => self.check_all(which),
            15_180..15_230 => {
                self.subjects[which].engine().flush().expect("flushes");
                self.subjects[which].all_synced();
            }
            15_230..15_250 => {
                let (start, end) = (self.key(), self.key());
                let end = self.random.random::<bool>().then_some(&end[..]);
                let range = KeyRange::new(&start, end);
                self.subjects[which].engine().compact(range).expect("compacts");
                self.subjects[which].all_synced();
            }
            15_250..15_256 => self.copy(which),
            15_256..15_262 => self.restart(),
            15_262..15_268 => self.kill(),
            15_268..15_274 => self.lose_power(),
            15_274..15_300 => {
                let subject = &mut self.subjects[which];
                subject.engine().write(&WriteBatch::new(), Durability::Sync).expect("syncs");
                subject.all_synced();
            }
            15_300..15_340 => self.environment().save_space(),
            _ => {
                self.environment().drive();
            }
        }
    }

    /// At the end everything is looked at, also after a last kill. Says what has happened.
    pub(super) fn finish(mut self) -> Figures {
        (0..NAMES.len()).for_each(|which| self.check_all(which));
        // It looks at everything as well.
        self.kill();
        self.figures
    }

    fn open_all(&mut self) {
        (0..NAMES.len()).for_each(|which| self.open(which));
    }

    fn open(&mut self, which: usize) {
        let engine = self.environment().open(NAMES[which]).expect("opens");
        self.subjects[which].engine = Some(engine);
    }

    fn write(&mut self, which: usize, count: usize) {
        let mut batch = WriteBatch::new();
        let mut model = self.subjects[which].model.clone();
        let before = model.clock;
        if self.random.random_ratio(1, 10) {
            model.clock += self.random.random_range(0..20);
            batch.advance_clock(Timestamp::from_millis(model.clock));
        }
        for _ in 0..count {
            let key = self.key();
            match self.random.random_range(0..100) {
                0..25 => {
                    batch.delete(&[&key]);
                    model.delete(&key);
                }
                25..28 => {
                    let end = self.key();
                    batch.delete_range(&key, &end);
                    model.delete_range(&key, &end);
                }
                at => {
                    let value = self.value();
                    let expires_at = (at < 45).then(|| before + self.random.random_range(0..200));
                    batch.put(&[&key], &[&value], expires_at.map(Timestamp::from_millis));
                    model.put(key, value, expires_at);
                }
            }
        }
        if batch.is_empty() {
            return;
        }
        let durability = match self.random.random_range(0..200) {
            0 => Durability::Sync,
            1..4 => Durability::Buffered,
            _ => Durability::None,
        };
        let subject = &mut self.subjects[which];
        subject.model = model;
        subject.write(&batch, durability);
    }

    /// By the engine, or by one of its views.
    fn read(&mut self, which: usize, check: impl Fn(&Model, &dyn Reader)) {
        let at = self.random.random_range(0..16);
        let subject = &self.subjects[which];
        match subject.views.get(at) {
            Some((view, model)) => check(model, &**view),
            None => check(&subject.model, subject.engine()),
        }
    }

    fn scan(&mut self, which: usize) {
        let (start, end) = (self.key(), self.key());
        let start = if self.random.random_ratio(1, 8) { Vec::new() } else { start };
        let end = self.random.random::<bool>().then_some(end);
        let direction = if self.random.random() { Direction::Forward } else { Direction::Reverse };
        let limit = self.random.random_range(0..12);
        self.read(which, |model, reader| {
            let range = KeyRange::new(&start, end.as_deref());
            model.check_scan(reader, range, direction, limit);
        });
    }

    fn take_view(&mut self, which: usize) {
        let at = self.random.random_range(0..8);
        let subject = &mut self.subjects[which];
        let view = (subject.engine().view().expect("freezes"), subject.model.clone());
        match subject.views.get_mut(at) {
            Some(old) => *old = view,
            None => subject.views.push(view),
        }
    }

    fn check_all(&self, which: usize) {
        let subject = &self.subjects[which];
        subject.model.check_all(subject.engine());
        for (view, model) in &subject.views {
            model.check_all(&**view);
        }
    }

    /// Replaces an engine by a copy of itself, or of the other one.
    fn copy(&mut self, which: usize) {
        let from = self.subject();
        self.copies += 1;
        let directory = format!("/node/copy-{}", self.copies);
        let directory = Path::new(&directory);
        self.subjects[from].engine().checkpoint(directory).expect("is copied");
        self.subjects[from].all_synced();
        let model = self.subjects[from].model.clone();
        self.subjects[which].close();
        self.environment().install(NAMES[which], directory).expect("is installed");
        self.open(which);
        let subject = &mut self.subjects[which];
        let newest = subject.engine().write(&WriteBatch::new(), Durability::Sync);
        (subject.model, subject.newest) = (model, newest.expect("syncs"));
        subject.states = VecDeque::from([(subject.newest, subject.model.clone())]);
        subject.all_synced();
        self.check_all(which);
    }

    fn close(&mut self) {
        for subject in &mut self.subjects {
            for (name, figure) in subject.engine().status().figures {
                *self.figures.entry(name).or_default() += figure;
            }
            subject.close();
        }
        self.environment = None;
    }

    fn restart(&mut self) {
        self.close();
        self.start();
        self.open_all();
        (0..NAMES.len()).for_each(|which| self.check_all(which));
    }

    fn kill(&mut self) {
        let fs = self.fs.restart_killed();
        self.crash(fs, |subject| subject.buffered);
    }

    fn lose_power(&mut self) {
        let fs = self.fs.restart(self.random.random());
        self.crash(fs, |subject| subject.synced);
    }

    /// Goes on with what `fs` holds.
    fn crash(&mut self, fs: SimFileSystem, safe: impl Fn(&Subject) -> Seqno) {
        // What was opened goes on with the old disk until it has noticed.
        self.close();
        self.fs = fs;
        self.start();
        let environment = self.environment.as_ref().expect("it is open");
        for subject in &mut self.subjects {
            let safe = safe(subject);
            subject.survive(environment, safe);
        }
    }
}
