//! Writing: a batch gets its seqnos and its place in the log and is inserted under one short lock; whoever wants more
//! safety waits afterwards, for the log, together with others.

use std::time::{Duration, Instant};

use super::compaction::pacer::Admission;
use super::engine::Engine;
use super::key::SEQNO_MAX;
use super::shared::KIND_BATCH;
use crate::storage::limits::check_batch;
use crate::storage::{Durability, Error, Result, Seqno, WriteBatch};
use crate::wal::{Level, Position};

impl Engine {
    /// See [`StorageEngine::write`](crate::storage::StorageEngine::write).
    pub(super) fn write(&self, batch: &WriteBatch, durability: Durability) -> Result<Seqno> {
        check_batch(batch)?;
        if batch.is_empty() {
            return self.barrier(durability);
        }
        self.shared.room.check(&*self.shared.fs, &self.shared.directory, batch)?;
        self.admit(batch.size_bytes())?;
        let (seqno, position) = self.append(batch)?;
        self.commit(seqno, position, durability)?;
        Ok(seqno)
    }

    /// See [`StorageEngine::may_wait`](crate::storage::StorageEngine::may_wait).
    pub(super) fn may_wait(&self) -> bool {
        self.pacer.rate().is_some()
    }

    /// Everything written before becomes as safe as `durability` says.
    fn barrier(&self, durability: Durability) -> Result<Seqno> {
        self.check_alive()?;
        let (seqno, position) = {
            let writer = self.writer.lock();
            (writer.last, writer.position)
        };
        self.commit(seqno, position, durability)?;
        Ok(seqno)
    }

    /// Takes seqnos and a place in the log, inserts, publishes.
    fn append(&self, batch: &WriteBatch) -> Result<(Seqno, Option<Position>)> {
        let mut writer = self.writer.lock();
        self.check_alive()?;
        let first = Seqno(writer.last.0 + 1);
        if first.0 + batch.len() as u64 > SEQNO_MAX.0 {
            return Err(Error::Invalid("there are no more sequence numbers".to_owned()));
        }
        if self.tree().active.used_bytes() >= self.shared.options.memtable_bytes {
            let log_end = self.log_end();
            self.seal(&mut writer, log_end);
            self.shared.queue.flush_due(self.id());
        }
        let position = match self.shared.log() {
            None => None,
            Some(log) => {
                let parts = [&first.0.to_le_bytes()[..], batch.encoded()];
                let appended = log.append(self.owner(), KIND_BATCH, &parts);
                Some(appended.map_err(|error| self.shared.refused(error))?)
            }
        };
        // Under the lock of writers nobody seals it.
        let tree = self.tree();
        let memory_bytes = tree.active.memory_bytes();
        let last = tree.active.apply(first, batch).seqno;
        (writer.last, writer.position) = (last, position.or(writer.position));
        // Memory is taken in large pieces, so that this is rare.
        if tree.active.memory_bytes() > memory_bytes {
            self.keep_budgets();
        }
        Ok((last, position))
    }

    /// Waits until the write `seqno`, at `position` of the log, is as safe as `durability` says.
    fn commit(
        &self,
        seqno: Seqno,
        position: Option<Position>,
        durability: Durability,
    ) -> Result<()> {
        let level = match durability {
            Durability::None => return Ok(()),
            Durability::Buffered => Level::Buffered,
            Durability::Sync => Level::Sync,
        };
        let Some(log) = self.shared.log() else {
            // Only a flush makes it durable.
            return if self.known_durable() >= seqno { Ok(()) } else { self.flush() };
        };
        // Without a place it was replayed from the log, or flushed: durable since before the opening.
        if let Some(position) = position {
            log.commit(position, level).map_err(|error| self.shared.in_doubt(error))?;
        }
        if level == Level::Sync {
            self.note_durable(seqno);
        }
        Ok(())
    }

    /// The newest write that a power loss would not take.
    pub(super) fn durable(&self) -> Seqno {
        if let Some(log) = self.shared.log() {
            let (last, position) = {
                let writer = self.writer.lock();
                (writer.last, writer.position)
            };
            if position.is_none_or(|position| position < log.reached(Level::Sync)) {
                self.note_durable(last);
            }
        }
        self.known_durable()
    }

    /// Everything that this engine has in the log lies before it. Under the lock of writers.
    pub(super) fn log_end(&self) -> Position {
        self.shared.log().map_or(Position::BEGINNING, crate::wal::Wal::end)
    }

    /// Waits while flushes or compactions are behind: shortly when a little, until they have caught up when far.
    fn admit(&self, bytes: usize) -> Result<()> {
        loop {
            match self.pacer.admit(bytes as u64, || self.shared.started.elapsed()) {
                Admission::Now => return Ok(()),
                Admission::After(delay) => {
                    self.wait_shortly(delay);
                    return Ok(());
                }
                Admission::Stop => self.wait_for_progress()?,
            }
        }
    }

    fn wait_shortly(&self, delay: Duration) {
        if self.shared.options.threads == 0 {
            self.shared.queue.drive();
            return;
        }
        let end = Instant::now() + delay;
        let mut trouble = self.trouble.lock();
        while self.pacer.rate().is_some()
            && !self.progress.wait_until(&mut trouble, end).timed_out()
        {}
    }

    fn wait_for_progress(&self) -> Result<()> {
        self.check_alive()?;
        // Also what failed before: there may be room by now.
        self.shared.queue.flush_due(self.id());
        self.shared.queue.compaction_due(self.id());
        if self.shared.options.threads == 0 {
            while self.pacer.rate() == Some(0) && self.shared.queue.drive() {}
        }
        let mut trouble = self.trouble.lock();
        if self.shared.options.threads > 0 && self.pacer.rate() == Some(0) {
            self.progress.wait(&mut trouble);
        }
        trouble.as_ref().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Keeps the memory of all memtables, and the length of the log, within their limits: who takes most of it, or needs
    /// the oldest of the log, is flushed. Not while half of the memory is on its way out already.
    fn keep_budgets(&self) {
        let options = &self.shared.options;
        let engines = self.shared.queue.engines();
        let bytes_max = options.memtables_bytes_max;
        let active_bytes = |engine: &Engine| engine.tree().active.memory_bytes();
        let all_bytes = |engine: &Engine| engine.tree().memtable_bytes();
        if engines.iter().map(|engine| all_bytes(engine)).sum::<usize>() > bytes_max
            && engines.iter().map(|engine| active_bytes(engine)).sum::<usize>() > bytes_max / 2
            && let Some(largest) = engines.iter().max_by_key(|engine| active_bytes(engine))
        {
            largest.want_flush();
        }
        let Some(log) = self.shared.log() else { return };
        let status = log.status();
        if status.disk_bytes > options.log_bytes_max
            && let Some(pin) = status.oldest
            && let Some(engine) = engines.iter().find(|engine| engine.owner() == pin.owner)
        {
            engine.want_flush();
        }
    }
}
