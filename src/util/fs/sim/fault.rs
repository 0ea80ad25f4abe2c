//! What a test can make go wrong, and the record of what was done: [`Fault`], [`Operation`], [`LogEntry`].

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The calls of the file system, as faults and the log name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// `FileSystem::create`.
    Create,
    /// `FileSystem::open` and `open_write`.
    Open,
    /// `FileSystem::remove`.
    Remove,
    /// `FileSystem::rename`, under the name it gives.
    Rename,
    /// `FileSystem::hard_link`, under the name it gives.
    HardLink,
    /// `FileSystem::list`.
    List,
    /// `FileSystem::create_dir_all`, once for each directory that was missing.
    CreateDir,
    /// `FileSystem::remove_dir`.
    RemoveDir,
    /// `FileSystem::sync_dir`.
    SyncDir,
    /// `File::read_at`.
    Read,
    /// `File::write_at`.
    Write,
    /// `File::sync_data`.
    Sync,
    /// `File::allocate`.
    Allocate,
    /// `File::truncate`.
    Truncate,
}

impl Operation {
    /// Whether it changes something and therefore counts as a step.
    pub const fn is_step(self) -> bool {
        !matches!(self, Self::Open | Self::List | Self::Read)
    }

    /// Whether it needs a handle of its own.
    pub const fn opens(self) -> bool {
        matches!(self, Self::Create | Self::Open | Self::List | Self::SyncDir)
    }
}

/// When a fault strikes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trigger {
    /// At the mutating call with this number, counted from zero.
    Step(u64),
    /// At the calls of this kind on paths that contain `path`, after `skip` of them went well, `times` times.
    Calls {
        /// The kind of call.
        operation: Operation,
        /// A part of the path; empty: any.
        path: String,
        /// How many matching calls go well first.
        skip: u64,
        /// How many fail after that.
        times: u64,
    },
}

/// How the call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// `EIO`. A sync that fails so leaves what it should have written in doubt for ever, as Linux does.
    Io,
    /// `ENOSPC`, nothing changed.
    DiskFull,
    /// A write puts down a part of its bytes, drawn from the seed, then fails with `EIO`. Other calls: as [`Effect::Io`].
    ShortWrite,
    /// As [`Effect::ShortWrite`], but the error is `ENOSPC`. Other calls: as [`Effect::DiskFull`].
    ShortWriteDiskFull,
    /// `EMFILE`, nothing changed and nothing tried. Calls that open nothing do not fail with it: as [`Effect::Io`].
    NoHandles,
}

impl Effect {
    /// What becomes of it at a call of this kind.
    pub(super) fn at(self, operation: Operation) -> Self {
        if self == Self::NoHandles && !operation.opens() { Self::Io } else { self }
    }

    /// The error the caller sees.
    pub(super) fn error(self) -> io::Error {
        match self {
            Self::Io | Self::ShortWrite => io::Error::from(rustix::io::Errno::IO),
            Self::DiskFull | Self::ShortWriteDiskFull => io::Error::from(rustix::io::Errno::NOSPC),
            Self::NoHandles => io::Error::from(rustix::io::Errno::MFILE),
        }
    }

    /// Whether a write gets some of its bytes down first.
    pub(super) fn is_short(self) -> bool {
        matches!(self, Self::ShortWrite | Self::ShortWriteDiskFull)
    }
}

/// A failure to inject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// When it strikes.
    pub trigger: Trigger,
    /// What happens then.
    pub effect: Effect,
}

impl Fault {
    /// The mutating call number `step` fails.
    pub fn at_step(step: u64, effect: Effect) -> Self {
        Self { trigger: Trigger::Step(step), effect }
    }

    /// The next call of this kind on a path that contains `path` fails.
    pub fn next(operation: Operation, path: &str, effect: Effect) -> Self {
        Self::after(operation, path, 0, effect)
    }

    /// One call of this kind on a path that contains `path` fails, after `skip` of them went well.
    pub fn after(operation: Operation, path: &str, skip: u64, effect: Effect) -> Self {
        let trigger = Trigger::Calls { operation, path: path.to_owned(), skip, times: 1 };
        Self { trigger, effect }
    }

    /// Whether it strikes at this call; counts the call.
    pub(super) fn strikes(&mut self, operation: Operation, path: &Path, step: u64) -> bool {
        match &mut self.trigger {
            Trigger::Step(at) => operation.is_step() && *at == step,
            Trigger::Calls { operation: wanted, path: part, skip, times } => {
                if *wanted != operation || !path.to_string_lossy().contains(part.as_str()) {
                    return false;
                }
                if *skip > 0 {
                    *skip -= 1;
                    return false;
                }
                let strikes = *times > 0;
                *times = times.saturating_sub(1);
                strikes
            }
        }
    }
}

/// One call, for failure messages.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Steps that were done before it.
    pub step: u64,
    /// The call.
    pub operation: Operation,
    /// On what.
    pub path: Arc<Path>,
    /// Position in the file, in bytes; zero where the call has none.
    pub offset: u64,
    /// Length or size in bytes; zero where the call has none.
    pub length: u64,
    /// The fault that was injected.
    pub fault: Option<Effect>,
}

impl fmt::Display for LogEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, operation, path, offset, length, fault } = self;
        write!(f, "{step:>5} {operation:?} {} [{offset}, +{length}]", path.display())?;
        fault.map_or(Ok(()), |effect| write!(f, " -> {effect:?}"))
    }
}
