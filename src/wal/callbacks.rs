//! Callbacks when a position has reached a level, and the log's two threads.
//!
//! Callbacks wait in one map ordered by position. One driver at a time commits for the first of them, then calls all at
//! the front that have been reached. So they are called in order, and a follower's commit never runs the callbacks of
//! others.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::thread::{self, JoinHandle, ThreadId};

use super::commit::PoisonOnPanic;
use super::error::{Error, Result};
use super::state::{Shared, State};
use super::{Background, Level, Position};

/// What is called.
pub(super) type Callback = Box<dyn FnOnce(Result<()>) + Send>;

/// Callbacks that wait. Guarded by `state`.
#[derive(Default)]
pub(super) struct Callbacks {
    waiting: BTreeMap<(Position, u64), (Level, Callback)>,
    registered: u64,
    /// Who calls them right now.
    driver: Option<ThreadId>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { waiting, driver, .. } = self;
        f.debug_struct("Callbacks")
            .field("waiting", &waiting.len())
            .field("driver", driver)
            .finish()
    }
}

impl Callbacks {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    fn add(&mut self, position: Position, level: Level, callback: Callback) {
        self.registered += 1;
        self.waiting.insert((position, self.registered), (level, callback));
    }

    fn first(&self) -> Option<(Position, Level)> {
        let ((position, _), (level, _)) = self.waiting.first_key_value()?;
        Some((*position, *level))
    }
}

impl State {
    /// The first callback, if its time has come: reached, or never to be.
    fn take_due(&mut self) -> Option<(Callback, Result<()>)> {
        let (position, level) = self.callbacks.first()?;
        let outcome = if position < self.reached(level) { Ok(()) } else { self.check_alive() };
        if position >= self.reached(level) && outcome.is_ok() {
            return None;
        }
        let (_, (_, callback)) = self.callbacks.waiting.pop_first()?;
        Some((callback, outcome))
    }
}

impl Shared {
    pub(super) fn on_level(
        &self,
        position: Position,
        level: Level,
        callback: Callback,
    ) -> Result<()> {
        let mut state = self.state.lock();
        if position >= state.end {
            return Err(Error::Invalid(format!("position {position} was not given out")));
        }
        while state.callbacks.len() >= self.options.callbacks_max
            && state.callbacks.driver != Some(thread::current().id())
            && state.poison.is_none()
        {
            if self.options.background == Background::Caller || state.stopping {
                drop(state);
                self.drive();
                state = self.state.lock();
            } else {
                self.callbacks_called.wait(&mut state);
            }
        }
        state.count_request(position, level);
        state.callbacks.add(position, level, callback);
        self.callbacks_due.notify_one();
        Ok(())
    }

    /// Something was reached.
    pub(super) fn wake_callbacks(&self, state: &State) {
        if state.callbacks.len() > 0 {
            self.callbacks_due.notify_one();
        }
    }

    pub(super) fn drive(&self) -> bool {
        let mut state = self.state.lock();
        if state.callbacks.driver.is_some() {
            return false;
        }
        let Some((position, level)) = state.callbacks.first() else { return false };
        state.callbacks.driver = Some(thread::current().id());
        let panicked = PoisonOnPanic(self);
        // An error is what the callbacks get.
        let _ = self.reach(&mut state, position, level);
        while let Some((callback, outcome)) = state.take_due() {
            drop(state);
            callback(outcome);
            self.callbacks_called.notify_all();
            state = self.state.lock();
        }
        state.callbacks.driver = None;
        drop(state);
        std::mem::forget(panicked);
        true
    }

    /// Makes everything durable, calls all callbacks, leaves a voucher.
    pub(super) fn close(&self) -> Result<()> {
        self.barrier(Level::Sync)?;
        while self.drive() {}
        let mut state = self.state.lock();
        state.check_alive()?;
        state.push_mark();
        let last = state.last;
        self.reach(&mut state, last, Level::Sync)
    }

    /// Tells the threads to end.
    pub(super) fn stop(&self) {
        let mut state = self.state.lock();
        state.stopping = true;
        self.callbacks_due.notify_all();
        self.callbacks_called.notify_all();
        self.files_due.notify_all();
    }

    /// Calls the callbacks that nobody will drive any more: nothing is written for them.
    pub(super) fn dismiss_callbacks(&self) {
        let mut state = self.state.lock();
        while let Some((position, level)) = state.callbacks.first() {
            let closed = || Error::Invalid("the log was closed".to_owned());
            let reached = position < state.reached(level);
            let outcome = if reached { Ok(()) } else { state.check_alive().and(Err(closed())) };
            let Some((_, (_, callback))) = state.callbacks.waiting.pop_first() else { return };
            drop(state);
            callback(outcome);
            state = self.state.lock();
        }
    }

    pub(super) fn run_callbacks(&self) {
        loop {
            let mut state = self.state.lock();
            while state.callbacks.len() == 0 && !state.stopping {
                self.callbacks_due.wait(&mut state);
            }
            if state.stopping {
                return;
            }
            drop(state);
            self.drive();
        }
    }

    fn run_files(&self) {
        loop {
            let mut state = self.state.lock();
            while !state.files_work && !state.stopping {
                self.files_due.wait(&mut state);
            }
            if state.stopping || state.poison.is_some() {
                return;
            }
            state.files_work = false;
            drop(state);
            // Who needs the outcome finds it: in the next append, in the status, or as poison.
            let _ = self.maintain();
        }
    }
}

/// Starts the log's threads.
pub(super) fn spawn(shared: &Arc<Shared>) -> std::io::Result<Vec<JoinHandle<()>>> {
    let start = |name: &str, run: fn(&Shared)| {
        let shared = Arc::clone(shared);
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            let panicked = PoisonOnPanic(&shared);
            run(&shared);
            std::mem::forget(panicked);
        })
    };
    Ok(vec![start("wal-callbacks", Shared::run_callbacks)?, start("wal-files", Shared::run_files)?])
}
