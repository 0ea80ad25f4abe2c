//! openraft's types as this project uses them: one configuration, and short names for what it makes of the generic ones.
//!
//! Values only. The bytes of these types are in `encoding.rs`; openraft's own serde forms are not stable and not used.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use openraft::type_config::alias;
use openraft::{OptionalSend, RaftTypeConfig};
#[cfg(test)]
use openraft_rt_sim::SimWatch as Watch;
#[cfg(not(test))]
use openraft_rt_tokio::TokioWatch as Watch;
use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng as _};
use rand_core::TryRng;

use crate::command::{Outcome, Proposal};

/// A Raft group. Groups of shards have the shard's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group {}", self.0)
    }
}

/// A replica's number in its group: openraft's node id. Never used twice in a group, not even after the replica is gone.
pub type ReplicaId = u64;

/// The node that a replica is on. Where it is reached is known elsewhere: an address in the log could not be corrected.
pub use crate::cluster::NodeName;

/// What came of the commands of a proposal, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes(pub Vec<Outcome>);

openraft::declare_raft_types!(
    /// Which types openraft is built of.
    pub TypeConfig:
        D = Proposal,
        R = Outcomes,
        NodeId = ReplicaId,
        Node = NodeName,
        AsyncRuntime = Runtime,
);

/// Position of an entry, with the leader that proposed it.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A term's leader or candidate.
pub type LeaderId = alias::LeaderIdOf<TypeConfig>;
/// A vote.
pub type Vote = alias::VoteOf<TypeConfig>;
/// An entry of the log.
pub type Entry = alias::EntryOf<TypeConfig>;
/// What an entry carries.
pub type Payload = alias::PayloadOf<TypeConfig>;
/// Voters and learners of a group.
pub type Membership = openraft::Membership<ReplicaId, NodeName>;
/// A membership with the entry that set it.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot: what it covers, and a handle on it.
pub type Snapshot<D> = alias::SnapshotOf<TypeConfig, D>;
/// Log entries from a leader, or a sign of life.
pub type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
/// The answer to it.
pub type AppendReply = openraft::raft::AppendEntriesResponse<TypeConfig>;
/// A candidate's question.
pub type VoteRequest = openraft::raft::VoteRequest<TypeConfig>;
/// The answer to it.
pub type VoteReply = openraft::raft::VoteResponse<TypeConfig>;
/// A leader asks another replica to take over.
pub type TransferRequest = openraft::raft::TransferLeaderRequest<TypeConfig>;

/// Tokio, but for randomness: [`seeded`] makes what it runs draw its random numbers from a seed. With a paused clock on one thread a whole
/// cluster then runs the same way every time. (For that, tests have another watch channel: tokio's wakes its receivers in a random order.)
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

thread_local! {
    static RANDOM: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// Runs `work`; what openraft draws on this thread meanwhile follows from `seed`.
pub fn seeded<T>(seed: u64, work: impl FnOnce() -> T) -> T {
    struct Unseed;
    impl Drop for Unseed {
        fn drop(&mut self) {
            RANDOM.set(None);
        }
    }
    RANDOM.set(Some(StdRng::seed_from_u64(seed)));
    let _unseed = Unseed;
    work()
}

/// Random numbers of the running thread: from the seed, or from the operating system.
#[derive(Debug)]
pub struct Random(());

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(with_random(|random| random.next_u32()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(with_random(|random| random.next_u64()))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        with_random(|random| random.fill_bytes(bytes));
        Ok(())
    }
}

fn with_random<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    RANDOM.with_borrow_mut(|seeded| match seeded {
        Some(random) => draw(random),
        None => draw(&mut rand::rng()),
    })
}

impl openraft::type_config::AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = Random;
    type Mpsc = TokioMpsc;
    type Watch = Watch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Random(())
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

/// Whether openraft's generic names and ours mean the same; never called.
const _: fn() = || {
    fn is<C: RaftTypeConfig<NodeId = ReplicaId, Node = NodeName>>() {}
    is::<TypeConfig>();
};
