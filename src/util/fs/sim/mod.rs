//! A file system in memory that loses power, fails and fills up when a test says so.
//!
//! It does what the contract in [`util::fs`](super) allows a disk to do, and no less:
//!
//! * **Power loss** ([`SimFileSystem::restart`]): every sector of 512 bytes that was written and not synced is kept, lost
//!   or torn (a run of new bytes in old ones or the reverse); an unsynced size is kept, lost or caught between; unsynced
//!   changes of names survive as a prefix of their order (as with a journal) or as any subset, each one whole.
//! * **Kill** ([`SimFileSystem::restart_killed`]): nothing is lost but the handles and locks.
//! * **Steps**: each call that changes something has a number, from zero. [`SimFileSystem::crash_at`] makes that call and
//!   every later one fail, so a workload with N steps can be cut in N places.
//! * **Faults** ([`Fault`]): `EIO`, `ENOSPC` or a short write at a step or at the n-th call of a kind on a path. After a
//!   failed sync the content reads back fine, but no later sync makes it durable. A capacity limit
//!   ([`SimFileSystem::set_capacity`]) gives `ENOSPC` until something is removed.
//! * **Damage**: [`SimFileSystem::corrupt`] flips bits.
//!
//! Everything random comes from the seed given to `restart` (or [`SimFileSystem::new`]); on one thread a run repeats
//! exactly. A restart copies: the file system it is called on stays as it was, so that one crash can be survived in many
//! ways. Callers: tests of whatever writes files.

mod fault;
mod image;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

pub use self::fault::{Effect, Fault, LogEntry, Operation, Trigger};
pub use self::image::SECTOR_BYTES;
use self::tree::{NodeId, Tree};
use super::{DirLock, File, FileSystem, LOCK_FILE, Space};

/// Calls kept for failure messages; older ones are forgotten.
const LOG_ENTRIES_MAX: usize = 2_000;

/// A simulated file system. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct SimFileSystem {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when held syncs may go on, and when another one waits.
    syncs: Condvar,
}

#[derive(Debug)]
struct State {
    tree: Tree,
    random: Random,
    step: u64,
    crash_at: Option<u64>,
    crashed: bool,
    faults: Vec<Fault>,
    faults_struck: u64,
    capacity: u64,
    no_handles: bool,
    locked: BTreeSet<NodeId>,
    counts: BTreeMap<Operation, u64>,
    log: VecDeque<LogEntry>,
    held: Held,
    syncs_waiting: u64,
}

/// Which calls of `sync_data` wait before they do anything.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Held {
    None,
    All,
    /// The next one of a file with this in its path.
    Next(String),
    /// One that waits already, no further ones.
    One,
}

impl SimFileSystem {
    /// An empty file system of unlimited capacity.
    pub fn new(seed: u64) -> Self {
        Self::with_tree(Tree::new(), seed)
    }

    fn with_tree(tree: Tree, seed: u64) -> Self {
        let state = State {
            tree,
            random: Random(seed),
            step: 0,
            crash_at: None,
            crashed: false,
            faults: Vec::new(),
            faults_struck: 0,
            capacity: u64::MAX,
            no_handles: false,
            locked: BTreeSet::new(),
            counts: BTreeMap::new(),
            log: VecDeque::new(),
            held: Held::None,
            syncs_waiting: 0,
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), syncs: Condvar::new() }) }
    }

    /// What the next process finds after a power loss now, one of many possibilities chosen by `seed`. No faults are
    /// planned in it, its steps count from zero, and all that survived is durable.
    #[must_use]
    pub fn restart(&self, seed: u64) -> Self {
        let state = self.shared.state.lock();
        let mut random = Random(seed);
        let tree = state.tree.after_power_loss(&mut random);
        let next = Self::with_tree(tree, random.next());
        next.shared.state.lock().capacity = state.capacity;
        next
    }

    /// What the next process finds after this one was killed now: everything, synced or not.
    #[must_use]
    pub fn restart_killed(&self) -> Self {
        let state = self.shared.state.lock();
        let mut random = state.random.clone();
        let next = Self::with_tree(state.tree.after_kill(), random.next());
        next.shared.state.lock().capacity = state.capacity;
        next
    }

    /// The mutating call number `step` (from zero) and every call after it fails.
    pub fn crash_at(&self, step: u64) {
        self.shared.state.lock().crash_at = Some(step);
    }

    /// Every call from now on fails, held syncs included.
    pub fn crash_now(&self) {
        self.shared.state.lock().crashed = true;
        self.shared.syncs.notify_all();
    }

    /// Whether the crash has come.
    pub fn crashed(&self) -> bool {
        self.shared.state.lock().crashed
    }

    /// Mutating calls so far.
    pub fn steps(&self) -> u64 {
        self.shared.state.lock().step
    }

    /// Calls of one kind so far.
    pub fn count(&self, operation: Operation) -> u64 {
        self.shared.state.lock().counts.get(&operation).copied().unwrap_or(0)
    }

    /// Plans a fault. Of several that strike at one call, the first planned decides.
    pub fn inject(&self, fault: Fault) {
        self.shared.state.lock().faults.push(fault);
    }

    /// Forgets planned faults.
    pub fn clear_faults(&self) {
        self.shared.state.lock().faults.clear();
    }

    /// How many faults took effect. A test whose fault never struck has shown nothing.
    pub fn faults_struck(&self) -> u64 {
        self.shared.state.lock().faults_struck
    }

    /// Limits the disk to `bytes`, counted in whole sectors.
    pub fn set_capacity(&self, bytes: u64) {
        self.shared.state.lock().capacity = bytes;
    }

    /// From now on there are no more handles, as if others had them all, or there are again.
    pub fn set_handles(&self, are_there: bool) {
        self.shared.state.lock().no_handles = !are_there;
    }

    /// Bytes in use, in whole sectors.
    pub fn used(&self) -> u64 {
        self.shared.state.lock().tree.sectors_used() * SECTOR_BYTES as u64
    }

    /// Flips the bits of `mask` in the byte at `offset` of a file, on the disk and in memory.
    pub fn corrupt(&self, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let node = state.tree.find(path)?;
        let image = state.tree.file_mut(node)?;
        if offset >= image.size() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        image.corrupt(offset, mask);
        Ok(())
    }

    /// While `held`, each `sync_data` waits before it does anything. For tests of what happens meanwhile.
    pub fn hold_syncs(&self, held: bool) {
        self.shared.state.lock().held = if held { Held::All } else { Held::None };
        self.shared.syncs.notify_all();
    }

    /// The next `sync_data` of a file with `part` in its path waits until [`hold_syncs(false)`](Self::hold_syncs); no others
    /// do.
    pub fn hold_next_sync(&self, part: &str) {
        self.shared.state.lock().held = Held::Next(part.to_owned());
    }

    /// Blocks until a held `sync_data` waits.
    pub fn wait_for_held_sync(&self) {
        let mut state = self.shared.state.lock();
        while state.syncs_waiting == 0 {
            self.shared.syncs.wait(&mut state);
        }
    }

    /// The last calls, oldest first.
    pub fn log(&self) -> Vec<LogEntry> {
        self.shared.state.lock().log.iter().cloned().collect()
    }

    /// The last calls as lines, for failure messages.
    pub fn log_text(&self) -> String {
        let mut text = String::new();
        for entry in &self.shared.state.lock().log {
            let _ = writeln!(text, "{entry}");
        }
        text
    }

    fn opened(
        &self,
        state: &mut State,
        node: NodeId,
        path: &Path,
        writable: bool,
    ) -> Arc<dyn File> {
        state.tree.handle(node, true);
        Arc::new(SimFile { fs: self.clone(), node, path: path.into(), writable })
    }

    fn open_existing(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        let mut state = self.shared.state.lock();
        state.call(Operation::Open, path, 0, 0)?;
        let node = state.tree.find(path)?;
        state.tree.file(node)?;
        Ok(self.opened(&mut state, node, path, writable))
    }
}

impl State {
    /// Every call passes here first: crash, step, fault, log.
    fn call(
        &mut self,
        operation: Operation,
        path: &Path,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        match self.call_with_effect(operation, path, offset, length)? {
            Some(effect) => Err(effect.error()),
            None => Ok(()),
        }
    }

    /// As [`Self::call`], for calls that do something of their own when a fault strikes.
    fn call_with_effect(
        &mut self,
        operation: Operation,
        path: &Path,
        offset: u64,
        length: u64,
    ) -> io::Result<Option<Effect>> {
        if operation.is_step() && self.crash_at.is_some_and(|at| self.step >= at) {
            self.crashed = true;
        }
        self.check_alive()?;
        let mut effect = None;
        for fault in &mut self.faults {
            if fault.strikes(operation, path, self.step) && effect.is_none() {
                effect = Some(fault.effect.at(operation));
            }
        }
        if self.no_handles && operation.opens() {
            effect = Some(Effect::NoHandles);
        }
        self.faults_struck += u64::from(effect.is_some());
        *self.counts.entry(operation).or_insert(0) += 1;
        if self.log.len() == LOG_ENTRIES_MAX {
            self.log.pop_front();
        }
        let step = self.step;
        let path = path.into();
        self.log.push_back(LogEntry { step, operation, path, offset, length, fault: effect });
        self.step += u64::from(operation.is_step());
        Ok(effect)
    }

    fn check_alive(&self) -> io::Result<()> {
        if self.crashed { Err(io::Error::other("simulated power loss")) } else { Ok(()) }
    }

    fn check_room(&self, sectors: u64) -> io::Result<()> {
        let free =
            || (self.capacity / SECTOR_BYTES as u64).saturating_sub(self.tree.sectors_used());
        if sectors == 0 || self.capacity == u64::MAX || sectors <= free() {
            return Ok(());
        }
        Err(Effect::DiskFull.error())
    }
}

impl FileSystem for SimFileSystem {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.shared.state.lock();
        state.call(Operation::Create, path, 0, 0)?;
        let place = state.tree.place(path)?;
        if state.tree.get(&place).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let node = state.tree.create_file(place);
        Ok(self.opened(&mut state, node, path, true))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open_existing(path, false)
    }

    fn open_write(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open_existing(path, true)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.call(Operation::Remove, path, 0, 0)?;
        let node = state.tree.find(path)?;
        state.tree.file(node)?;
        let place = state.tree.place(path)?;
        state.tree.unlink(place);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.call(Operation::Rename, to, 0, 0)?;
        let source = state.tree.find(from)?;
        let (from, to) = (state.tree.place(from)?, state.tree.place(to)?);
        if let Some(target) = state.tree.get(&to) {
            if target == source {
                return Ok(());
            }
            match (state.tree.is_dir(source), state.tree.is_dir(target)) {
                (true, false) => return Err(io::ErrorKind::NotADirectory.into()),
                (false, true) => return Err(io::ErrorKind::IsADirectory.into()),
                (true, true) if !state.tree.names(target)?.is_empty() => {
                    return Err(io::ErrorKind::DirectoryNotEmpty.into());
                }
                _ => {}
            }
        }
        state.tree.rename(from, to);
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.call(Operation::HardLink, to, 0, 0)?;
        let node = state.tree.find(from)?;
        state.tree.file(node)?;
        let to = state.tree.place(to)?;
        if state.tree.get(&to).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.tree.link(node, to);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut state = self.shared.state.lock();
        state.call(Operation::List, dir, 0, 0)?;
        state.tree.names(state.tree.find(dir)?)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = self.shared.state.lock();
        state.check_alive()?;
        match state.tree.find(path) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let mut missing = Vec::new();
        let mut ancestor = Some(dir);
        while let Some(path) = ancestor.filter(|path| state.tree.find(path).is_err()) {
            missing.push(path);
            ancestor = path.parent();
        }
        state.check_alive()?;
        for path in missing.into_iter().rev() {
            state.call(Operation::CreateDir, path, 0, 0)?;
            let place = state.tree.place(path)?;
            state.tree.create_dir(place);
        }
        let node = state.tree.find(dir)?;
        if state.tree.is_dir(node) { Ok(()) } else { Err(io::ErrorKind::AlreadyExists.into()) }
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.call(Operation::RemoveDir, dir, 0, 0)?;
        let node = state.tree.find(dir)?;
        if !state.tree.names(node)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let place = state.tree.place(dir)?;
        state.tree.unlink(place);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        let effect = state.call_with_effect(Operation::SyncDir, dir, 0, 0)?;
        let node = state.tree.find(dir)?;
        match effect {
            Some(Effect::NoHandles) => Err(Effect::NoHandles.error()),
            Some(effect) => {
                state.tree.fail_sync_dir(node);
                Err(effect.error())
            }
            None => state.tree.sync_dir(node),
        }
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let state = self.shared.state.lock();
        state.check_alive()?;
        let used = state.tree.sectors_used() * SECTOR_BYTES as u64;
        Ok(Space { total: state.capacity, available: state.capacity.saturating_sub(used) })
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let path = dir.join(LOCK_FILE);
        if !self.exists(&path)? {
            self.create(&path)?;
        }
        let mut state = self.shared.state.lock();
        let node = state.tree.find(dir)?;
        if !state.locked.insert(node) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(DirLock::new(SimLock { fs: self.clone(), node }))
    }

    fn lock_to_read(&self, dir: &Path) -> io::Result<Option<DirLock>> {
        // One reader at a time, which is enough for tests.
        if self.exists(&dir.join(LOCK_FILE))? { self.lock(dir).map(Some) } else { Ok(None) }
    }
}

/// A held directory.
struct SimLock {
    fs: SimFileSystem,
    node: NodeId,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.fs.shared.state.lock().locked.remove(&self.node);
    }
}

/// An open simulated file.
#[derive(Debug)]
struct SimFile {
    fs: SimFileSystem,
    node: NodeId,
    path: Arc<Path>,
    writable: bool,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.fs.shared.state.lock();
        state.call(Operation::Read, &self.path, offset, buffer.len() as u64)?;
        Ok(state.tree.file(self.node)?.read(buffer, offset))
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.fs.shared.state.lock();
        let length = bytes.len() as u64;
        let effect = state.call_with_effect(Operation::Write, &self.path, offset, length)?;
        if let Some(effect) = effect {
            if effect.is_short() {
                let written = state.random.index(bytes.len());
                state.tree.file_mut(self.node)?.write(&bytes[..written], offset);
            }
            return Err(effect.error());
        }
        state.check_room(state.tree.file(self.node)?.sectors_needed(offset, length))?;
        state.tree.file_mut(self.node)?.write(bytes, offset);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.fs.shared.state.lock();
        let is_next = |part: &str| self.path.to_string_lossy().contains(part);
        let waits = match &state.held {
            Held::None | Held::One => false,
            Held::All => true,
            Held::Next(part) => is_next(part),
        };
        if waits && state.held != Held::All {
            state.held = Held::One;
        }
        if waits {
            state.syncs_waiting += 1;
            self.fs.shared.syncs.notify_all();
            while state.held != Held::None && !state.crashed {
                self.fs.shared.syncs.wait(&mut state);
            }
            state.syncs_waiting -= 1;
        }
        let effect = state.call_with_effect(Operation::Sync, &self.path, 0, 0)?;
        let image = state.tree.file_mut(self.node)?;
        if let Some(effect) = effect {
            image.fail_sync();
            return Err(effect.error());
        }
        image.sync();
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.fs.shared.state.lock();
        state.call(Operation::Allocate, &self.path, 0, len)?;
        state.check_room(state.tree.file(self.node)?.sectors_needed(0, len))?;
        state.tree.file_mut(self.node)?.allocate(len);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let mut state = self.fs.shared.state.lock();
        state.call(Operation::Truncate, &self.path, 0, len)?;
        state.tree.file_mut(self.node)?.truncate(len);
        Ok(())
    }

    fn size(&self) -> io::Result<u64> {
        let state = self.fs.shared.state.lock();
        state.check_alive()?;
        Ok(state.tree.file(self.node)?.size())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.fs.shared.state.lock().tree.handle(self.node, false);
    }
}

/// Numbers from a seed (SplitMix64): the same on every machine and in every version, unlike a library's generator.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`; zero when the bound is zero.
    fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
    /// As [`Self::below`], for positions in memory.
    fn index(&mut self, bound: usize) -> usize {
        usize::try_from(self.below(bound as u64)).expect("below a usize")
    }
}
