//! Segments come and go: the next one is made ahead of its use, full ones are synced where syncs are asked for, released
//! ones are removed.

use std::path::Path;
use std::sync::Arc;

use super::error::{Error, Result};
use super::segment::{SEGMENT_HEADER_BYTES, Segment};
use super::state::{Shared, State, segment_bytes_for};
use super::sync::MutexGuard;
use super::{Options, Position};
use crate::util::fs::{DirLock, FileSystem};

/// Full segments are synced ahead of the next commit when one was asked for within so many segments, the active one
/// included.
const SYNC_SEGMENTS: u32 = 2;

/// Takes the directory, after making it, durably.
pub(super) fn lock(fs: &dyn FileSystem, dir: &Path) -> Result<DirLock> {
    create_dir(fs, dir)?;
    fs.lock(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => Error::Locked { path: dir.to_owned() },
        _ => Error::io("lock", dir, error),
    })
}

fn create_dir(fs: &dyn FileSystem, dir: &Path) -> Result<()> {
    let failed = |error| Error::io("create", dir, error);
    if fs.exists(dir).map_err(failed)? {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir(fs, parent)?;
    }
    fs.create_dir_all(dir).map_err(failed)?;
    fs.sync_dir(parent.unwrap_or(Path::new("."))).map_err(failed)
}

/// The salt of segment `number`: unpredictable for who does not know the seed, another one for each number.
pub(super) fn salt(options: &Options, number: u32) -> u32 {
    // The finisher of SplitMix64.
    let mut mixed = options.salt_seed ^ (u64::from(number) << 32 | u64::from(number));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let [a, b, c, d, ..] = (mixed ^ (mixed >> 31)).to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

impl Shared {
    /// Sees to it that a segment is ready that takes a record of `bytes`; it may be taken by others before the lock is
    /// back.
    pub(super) fn make_segment<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        bytes: u32,
    ) -> Result<MutexGuard<'a, State>> {
        drop(state);
        let needed = segment_bytes_for(bytes).max(self.options.segment_bytes);
        let made = {
            let _files = self.files.lock();
            self.make_ready(needed)
        };
        made.map_err(|error| match error {
            Error::Io { .. } if !error.changed_nothing() => {
                self.poison(&mut self.state.lock(), error)
            }
            other => other,
        })?;
        Ok(self.state.lock())
    }

    /// Makes the next segment, or grows the one that is ready. `files` is held.
    fn make_ready(&self, needed: u32) -> Result<()> {
        let (ready, number) = {
            let state = self.state.lock();
            state.check_alive()?;
            (state.ready.clone(), state.next_number)
        };
        let segment = match &ready {
            Some(segment) if segment.bytes >= needed => return Ok(()),
            Some(segment) => grow(segment, needed)?,
            None => {
                let salt = salt(&self.options, number);
                Segment::create(&*self.fs, &self.dir, number, salt, needed, 0)?
            }
        };
        let next = number
            .checked_add(1)
            .ok_or_else(|| Error::Invalid("the numbers of the segments are used up".to_owned()))?;
        let mut state = self.state.lock();
        if ready.is_none() {
            state.next_number = next;
        }
        // A grown one may have been taken meanwhile, with the size it had; then there is none.
        if ready.is_none() || state.ready.is_some() {
            state.ready = Some(Arc::new(segment));
        }
        Ok(())
    }

    pub(super) fn maintain(&self) -> Result<()> {
        let made = self.prepare_next();
        if let Err(error @ Error::Poisoned { .. }) = made {
            return Err(error);
        }
        self.sync_full_segments()?;
        let removed = self.remove_released();
        let made = match made {
            // There may be room now, or a handle.
            Err(error) if error.changed_nothing() => self.prepare_next(),
            made => made,
        };
        let mut state = self.state.lock();
        state.removal = match &removed {
            Err(error @ Error::Io { .. }) => Some(error.clone()),
            _ => None,
        };
        drop(state);
        removed.and(made)
    }

    fn prepare_next(&self) -> Result<()> {
        let state = self.state.lock();
        if state.ready.is_some() {
            return Ok(());
        }
        drop(self.make_segment(state, 0)?);
        Ok(())
    }

    /// So that a commit finds nothing to sync but the active segment, and damage in the others is known as such. Not while
    /// nobody asks for syncs: most segments of such a log are released before the operating system writes them back, so
    /// that they never cost the disk anything.
    fn sync_full_segments(&self) -> Result<()> {
        let mut state = self.state.lock();
        let Some(active) = &state.active else { return Ok(()) };
        let target = Position::new(active.segment.number, SEGMENT_HEADER_BYTES);
        let since = |asked: u32| active.segment.number - asked;
        if state.sync_asked.is_none_or(|asked| since(asked) >= SYNC_SEGMENTS)
            || state.synced >= active.previous_end
        {
            return Ok(());
        }
        self.sync_segments_before(&mut state, target)
    }

    /// Oldest first, each one durably before the next: what a crash leaves has no gap.
    fn remove_released(&self) -> Result<()> {
        let _files = self.files.lock();
        loop {
            let segment = {
                let state = self.state.lock();
                state.check_alive()?;
                let Some(segment) = state.removable() else { return Ok(()) };
                segment
            };
            match self.fs.remove(&segment.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &segment.path, error));
                }
                _ => {}
            }
            let synced = self.fs.sync_dir(&self.dir);
            let mut state = self.state.lock();
            synced.map_err(|error| match Error::io("sync", &self.dir, error) {
                // The next time finds it removed, and syncs.
                error if error.changed_nothing() => error,
                error => self.poison(&mut state, error),
            })?;
            state.segments.remove(&segment.number);
            // There is nothing left of it to sync.
            state.dirty.retain(|dirty| dirty.number != segment.number);
            state.counts.segments_removed += 1;
        }
    }
}

/// The same segment with more room. Its new size becomes durable with its first sync.
fn grow(segment: &Segment, bytes: u32) -> Result<Segment> {
    let Segment { number, salt, made_bytes, follows, path, file, .. } = segment;
    file.allocate(u64::from(bytes)).map_err(|error| {
        if crate::util::fs::is_disk_full(&error) {
            return Error::DiskFull { path: path.clone() };
        }
        Error::io("allocate", path, error)
    })?;
    let (number, salt, made_bytes, follows) = (*number, *salt, *made_bytes, *follows);
    let (path, file) = (path.clone(), Arc::clone(file));
    Ok(Segment { number, salt, bytes, made_bytes, follows, path, file })
}
