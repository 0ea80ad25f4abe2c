//! Running compactions: what to do is chosen by `compaction::picker`, which also says what may run at the same time, and
//! done by `compaction::job`; here it is made the present tree.
//!
//! Views keep memtables and tables of their own ([`Tree`](super::tree::Tree)), so that a compaction has to spare nothing
//! for them: the present, at the clock of what is flushed, is the only moment that it must preserve.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compaction::job::Job;
use super::compaction::picker::{
    Choice, Hints, Manual, ManualStep, Reason, Running, Scope, choose, choose_manual,
};
use super::compaction::range_deletions;
use super::compaction::rules::Readers;
use super::engine::Engine;
use super::version::Version;
use crate::storage::{KeyRange, Result};

/// What was picked, with the tree it was picked from. It is one of those that run until it is dropped.
struct Picked<'a> {
    engine: &'a Engine,
    version: Arc<Version>,
    reason: Reason,
    choice: Choice,
}

impl Drop for Picked<'_> {
    fn drop(&mut self) {
        self.engine.running.lock().end(&self.choice);
        self.engine.note_progress();
    }
}

impl Engine {
    /// As a job in the background: one compaction, if there is anything to do. `urgent`: only what must not wait.
    pub(super) fn compact_in_background(&self, urgent: bool) {
        if !self.shared.options.compaction || !self.is_alive() || self.is_aborted() {
            return;
        }
        let space = self.wants_space.load(Ordering::Acquire);
        let scope = match () {
            () if urgent => Scope::LevelZero,
            () if space => Scope::Space,
            () => Scope::Size,
        };
        let picked = match self.pick(scope) {
            Ok(Some(picked)) => picked,
            Ok(None) => {
                // What readers have let go meanwhile.
                let _ = self.directory.remove_garbage();
                return;
            }
            Err(error) => return self.note_outcome(Err(self.judge(error))),
        };
        // Another thread may find something that can be done at the same time. Not after a failure: that would be tried
        // again without end; the next flush, or a writer that waits, does it.
        if self.shared.options.threads > 0 && self.trouble.lock().is_none() {
            self.shared.queue.compaction_due(self.id());
        }
        let outcome = self.carry_out(&picked);
        drop(picked);
        if outcome.is_ok() {
            self.shared.queue.compaction_due(self.id());
        }
        self.note_outcome(outcome);
    }

    /// Rewrites the entries of `range`, and returns when that is done.
    pub(super) fn compact(&self, range: KeyRange<'_>) -> Result<()> {
        self.flush()?;
        if range.is_empty() {
            return Ok(());
        }
        let (before, _) = self.directory.allocate();
        let manual = Manual {
            start: range.start.to_vec(),
            end: range.end.map(<[u8]>::to_vec),
            upto: self.tree().version.flushed().seqno,
            before,
        };
        while !self.is_aborted() {
            self.check_alive()?;
            match self.pick_manual(&manual)? {
                Step::Do(picked) => {
                    let outcome = self.carry_out(&picked);
                    drop(picked);
                    // What could not be done beside it.
                    self.shared.queue.compaction_due(self.id());
                    outcome?;
                }
                Step::Wait => self.wait_for_compaction(),
                Step::Done => break,
            }
        }
        self.directory.remove_garbage().map(drop)
    }

    fn pick(&self, scope: Scope) -> Result<Option<Picked<'_>>> {
        self.pick_by(scope, |version, hints, running| {
            let choice = choose(version, &self.shared.options.picker, hints);
            if choice.is_none() && scope == Scope::Space && running.is_empty() {
                self.wants_space.store(false, Ordering::Release);
            }
            choice
        })
    }

    fn pick_manual(&self, manual: &Manual) -> Result<Step<'_>> {
        let mut step = Step::Done;
        let picked = self.pick_by(Scope::Space, |version, hints, _| {
            match choose_manual(version, &self.shared.options.picker, hints, manual) {
                ManualStep::Do(choice) => return Some((Reason::Manual, choice)),
                ManualStep::Wait => step = Step::Wait,
                ManualStep::Done => step = Step::Done,
            }
            None
        });
        Ok(picked?.map_or(step, Step::Do))
    }

    /// What `choose` says is one of those that run from now on.
    fn pick_by(
        &self,
        scope: Scope,
        choose: impl FnOnce(&Version, &Hints<'_>, &Running) -> Option<(Reason, Choice)>,
    ) -> Result<Option<Picked<'_>>> {
        let mut running = self.running.lock();
        // Under the lock: what came of all that does not run any more is in it.
        let version = Arc::clone(&self.tree().version);
        let readers = present(&version);
        let deletions = range_deletions(&version)?;
        let hints = Hints { running: &running, readers: &readers, deletions: &deletions, scope };
        let Some((reason, choice)) = choose(&version, &hints, &running) else { return Ok(None) };
        running.begin(choice.clone());
        drop(running);
        Ok(Some(Picked { engine: self, version, reason, choice }))
    }

    /// Waits until a compaction of somebody else has ended.
    fn wait_for_compaction(&self) {
        let mut trouble = self.trouble.lock();
        if !self.running.lock().is_empty() && !self.is_aborted() && self.is_alive() {
            self.progress.wait(&mut trouble);
        }
    }

    fn carry_out(&self, picked: &Picked<'_>) -> Result<()> {
        let done = self.try_carry_out(picked);
        let _ = self.directory.remove_garbage();
        done.map_err(|error| self.judge(error))
    }

    fn try_carry_out(&self, picked: &Picked<'_>) -> Result<()> {
        let Picked { version, choice, reason, .. } = picked;
        let edit = match choice {
            Choice::Merge { inputs, to } => {
                let options = &self.shared.options;
                let job = Job {
                    directory: &self.directory,
                    version,
                    inputs,
                    to: *to,
                    readers: &present(version),
                    layout: options.table_options(*to),
                    table_bytes: options.picker.table_bytes.min(options.table_bytes_max),
                    table_bytes_max: options.table_bytes_max,
                    abort: self.aborted(),
                };
                job.run()?
            }
            Choice::Move { .. } | Choice::Delete(_) => Some(choice.edit()),
        };
        let Some(edit) = edit else { return Ok(()) };
        let written = edit.added.iter().filter(|_| matches!(choice, Choice::Merge { .. }));
        let written = written.map(|added| added.metadata.size_bytes).sum();
        let committed = self.commit_edit(&edit);
        if committed.is_err() && self.manifest_is_sound() && matches!(choice, Choice::Merge { .. })
        {
            for added in &edit.added {
                let _ = self.shared.fs.remove(&self.directory.table_path(added.number));
            }
        }
        committed?;
        self.figures.count_compaction(*reason, written);
        Ok(())
    }
}

/// What to do next for an operator.
enum Step<'a> {
    Do(Picked<'a>),
    Wait,
    Done,
}

fn present(version: &Version) -> Readers {
    Readers::new(&[], version.flushed().clock)
}
