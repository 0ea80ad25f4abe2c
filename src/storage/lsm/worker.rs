//! Flushes and compactions in the background: one queue for all engines of an environment.
//!
//! | thread | does |
//! |---|---|
//! | `lsm-flush` | flushes: writers wait for them |
//! | `lsm-level-0` | compactions of level 0: writers wait for those next |
//! | `lsm-work-N` | whatever is most urgent |
//! | `lsm-space` | each interval: tells all engines to look for what only saves space, and for what failed before |
//!
//! So neither a flush nor level 0 ever waits until a merge of deeper levels has ended, which may take minutes (Balmau et al.,
//! ATC '19). An engine is in a queue at most once. In an environment without threads the same jobs are done one by one
//! by whoever calls [`Queue::drive`].
//!
//! The queue holds the engines, the threads hold the queue's owner only while they work; [`Queue::stop`] ends both.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use super::catalogue::EngineId;
use super::engine::Engine;
use super::shared::Shared;

/// What can be done for an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Job {
    Flush,
    CompactLevelZero,
    Compact,
}

/// What a thread takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Flushes,
    LevelZero,
    All,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Something is due, something ended, or all shall end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    engines: BTreeMap<EngineId, Arc<Engine>>,
    flushes: VecDeque<EngineId>,
    /// For the thread that does nothing but level 0.
    level_zero: VecDeque<EngineId>,
    compactions: VecDeque<EngineId>,
    /// One item for each thread that works.
    running: Vec<EngineId>,
    stopping: bool,
}

impl State {
    fn take(&mut self, duty: Duty) -> Option<(Job, Arc<Engine>)> {
        let mut flush = || Some((Job::Flush, self.flushes.pop_front()?));
        let (job, id) = match duty {
            Duty::Flushes => flush()?,
            Duty::LevelZero => (Job::CompactLevelZero, self.level_zero.pop_front()?),
            Duty::All => flush().or_else(|| Some((Job::Compact, self.compactions.pop_front()?)))?,
        };
        let engine = Arc::clone(self.engines.get(&id)?);
        self.running.push(id);
        Some((job, engine))
    }
}

impl Queue {
    /// From now on there is work for `engine`.
    pub(super) fn add(&self, engine: &Arc<Engine>) {
        self.state.lock().engines.insert(engine.id(), Arc::clone(engine));
    }

    /// No more work for this engine; returns when none is done any more.
    pub(super) fn retire(&self, id: EngineId) {
        let engine = self.state.lock().engines.remove(&id);
        if let Some(engine) = engine {
            engine.abort();
        }
        let mut state = self.state.lock();
        state.flushes.retain(|other| *other != id);
        state.level_zero.retain(|other| *other != id);
        state.compactions.retain(|other| *other != id);
        while state.running.contains(&id) {
            self.changed.wait(&mut state);
        }
    }

    /// The engines that there are.
    pub(super) fn engines(&self) -> Vec<Arc<Engine>> {
        self.state.lock().engines.values().cloned().collect()
    }

    /// One engine.
    pub(super) fn engine(&self, id: EngineId) -> Option<Arc<Engine>> {
        self.state.lock().engines.get(&id).cloned()
    }

    /// The engine has a sealed memtable.
    pub(super) fn flush_due(&self, id: EngineId) {
        let mut state = self.state.lock();
        if state.engines.contains_key(&id) && !state.flushes.contains(&id) {
            state.flushes.push_back(id);
            self.changed.notify_all();
        }
    }

    /// The engine may have something to compact.
    pub(super) fn compaction_due(&self, id: EngineId) {
        let mut state = self.state.lock();
        if !state.engines.contains_key(&id) {
            return;
        }
        let State { level_zero, compactions, .. } = &mut *state;
        for queue in [level_zero, compactions] {
            if !queue.contains(&id) {
                queue.push_back(id);
            }
        }
        self.changed.notify_all();
    }

    /// All engines shall look for what only saves space, and for what is sealed still: its flush has failed.
    pub(super) fn space_due(&self) {
        for engine in self.engines() {
            engine.want_space();
            if engine.has_sealed() {
                self.flush_due(engine.id());
            }
            self.compaction_due(engine.id());
        }
    }

    /// Does one job on this thread; false when there was none.
    pub(super) fn drive(&self) -> bool {
        let job = self.state.lock().take(Duty::All);
        let Some((job, engine)) = job else { return false };
        self.run(job, engine);
        true
    }

    /// Ends the threads and forgets the engines.
    pub(super) fn stop(&self, threads: Vec<JoinHandle<()>>) {
        self.state.lock().stopping = true;
        self.changed.notify_all();
        for engine in self.engines() {
            engine.abort();
        }
        for thread in threads {
            // A panic was reported by the hook, and its engine is poisoned.
            let _ = thread.join();
        }
        // Outside of the lock: an engine that goes may be the last owner of much.
        let engines = std::mem::take(&mut self.state.lock().engines);
        drop(engines);
    }

    fn run(&self, job: Job, engine: Arc<Engine>) {
        let id = engine.id();
        let done = catch_unwind(AssertUnwindSafe(|| match job {
            Job::Flush => engine.flush_in_background(),
            Job::CompactLevelZero => engine.compact_in_background(true),
            Job::Compact => engine.compact_in_background(false),
        }));
        if done.is_err() {
            engine.poison("a thread in the background panicked");
        }
        drop(engine);
        let mut state = self.state.lock();
        if let Some(at) = state.running.iter().position(|other| *other == id) {
            state.running.swap_remove(at);
        }
        self.changed.notify_all();
    }

    fn work(&self, duty: Duty) {
        let mut state = self.state.lock();
        while !state.stopping {
            if let Some((job, engine)) = state.take(duty) {
                drop(state);
                self.run(job, engine);
                state = self.state.lock();
            } else {
                self.changed.wait(&mut state);
            }
        }
    }

    /// Each interval: work that only saves space is due everywhere.
    fn work_by_the_hour(&self, interval: std::time::Duration) {
        let mut state = self.state.lock();
        let mut next = Instant::now() + interval;
        while !state.stopping {
            if !self.changed.wait_until(&mut state, next).timed_out() {
                continue;
            }
            next = Instant::now() + interval;
            drop(state);
            self.space_due();
            state = self.state.lock();
        }
    }
}

/// Starts the threads of an environment.
pub(super) fn spawn(shared: &Arc<Shared>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let mut threads = Vec::new();
    let count = shared.options.threads;
    let mut start = |name: String, run: Box<dyn FnOnce(&Queue) + Send>| {
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new().name(name);
        threads.push(thread.spawn(move || run(&shared.queue))?);
        std::io::Result::Ok(())
    };
    if count == 0 {
        return Ok(threads);
    }
    start("lsm-flush".to_owned(), Box::new(|queue| queue.work(Duty::Flushes)))?;
    for number in 1..=count {
        start(format!("lsm-work-{number}"), Box::new(|queue| queue.work(Duty::All)))?;
    }
    if shared.options.compaction {
        start("lsm-level-0".to_owned(), Box::new(|queue| queue.work(Duty::LevelZero)))?;
        let interval = shared.options.compaction_interval;
        start("lsm-space".to_owned(), Box::new(move |queue| queue.work_by_the_hour(interval)))?;
    }
    Ok(threads)
}
