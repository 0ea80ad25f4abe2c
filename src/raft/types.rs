//! openraft's types as this project uses them: one configuration, and short names for what it makes of the generic ones.
//!
//! Values only. The bytes of these types are in `encoding.rs`; openraft's own serde forms are not stable and not used.

use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use openraft::async_runtime::Instant as _;
use openraft::type_config::{AsyncRuntime, alias};
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group that holds what the cluster has agreed on (`cluster/state.rs`).
    pub const META: Self = Self(u32::MAX);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::META => f.write_str("the meta group"),
            Self(number) => write!(f, "group {number}"),
        }
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

/// Tokio, with two differences.
///
/// * **Randomness**: [`seeded`] makes what it runs draw its random numbers from a seed. With a paused clock on one thread a whole cluster then
///   runs the same way every time. (For that, tests have another watch channel: tokio's wakes its receivers in a random order.)
/// * **Deadlines are joined**: a sleep until an instant ends up to [`JOIN_MAX`] later, together with others. openraft's only one of any length is
///   the tick of a group, 67 ms by default, begun at a random moment; without this a node of many groups wakes for each of them, which is most of what
///   it does when nobody asks it anything.
#[derive(Debug)]
pub struct Runtime(TokioRuntime);

/// How much later a deadline may be. A leader's silence is noticed by so much later; more would cost heartbeats, less would join few.
const JOIN_MAX: Duration = Duration::from_millis(16);

/// The instant not before `deadline` that others wake at, too: a multiple of [`JOIN_MAX`] after `origin`, or of a half, a quarter and so on of it,
/// so that no sleep takes twice as long as it was to.
fn joined(deadline: TokioInstant, now: TokioInstant, origin: TokioInstant) -> TokioInstant {
    let ahead = JOIN_MAX.min(deadline - now).as_millis();
    let Some(step) = ahead.checked_ilog2().map(|log| 1_000_000_u128 << log) else {
        return deadline;
    };
    let since = (deadline - origin).as_nanos(); // 0 before it
    deadline + Duration::from_nanos_u128(since.next_multiple_of(step) - since)
}

/// Sleeps until the next whole multiple of `interval` since [`origin`]: all who sleep so wake together, and what they send to one node travels together.
pub async fn next_beat(interval: Duration) {
    let origin = origin();
    let (since, step) = ((TokioInstant::now() - origin).as_nanos(), interval.as_nanos().max(1));
    let next = (since / step + 1) * step;
    TokioRuntime::sleep_until(origin + Duration::from_nanos_u128(next)).await;
}

/// What deadlines are counted from, the same for all groups of a process.
fn origin() -> TokioInstant {
    static ORIGIN: LazyLock<TokioInstant> = LazyLock::new(TokioInstant::now);
    SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => *seeded.origin.get_or_insert_with(TokioInstant::now),
        None => *ORIGIN,
    })
}

struct Seeded {
    random: StdRng,
    /// See [`origin`]; the first instant that was asked for.
    origin: Option<TokioInstant>,
}

thread_local! {
    static SEEDED: RefCell<Option<Seeded>> = const { RefCell::new(None) };
}

/// Runs `work`; what openraft draws on this thread meanwhile follows from `seed`.
pub fn seeded<T>(seed: u64, work: impl FnOnce() -> T) -> T {
    struct Unseed;
    impl Drop for Unseed {
        fn drop(&mut self) {
            SEEDED.set(None);
        }
    }
    SEEDED.set(Some(Seeded { random: StdRng::seed_from_u64(seed), origin: None }));
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

/// A name that nobody else gives: 128 random bits.
pub fn random_id() -> String {
    with_random(|random| format!("{:016x}{:016x}", random.next_u64(), random.next_u64()))
}

fn with_random<T>(draw: impl FnOnce(&mut dyn RngCore) -> T) -> T {
    SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(seeded) => draw(&mut seeded.random),
        None => draw(&mut rand::rng()),
    })
}

impl AsyncRuntime for Runtime {
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
        TokioRuntime::sleep_until(joined(deadline, TokioInstant::now(), origin()))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_deadline_is_joined_little_later_and_never_earlier() {
        let origin = TokioInstant::now();
        for begun in 0..200 {
            for ahead in 0..200 {
                let now = origin + MILLISECOND * begun;
                let deadline = now + MILLISECOND * ahead;
                let late = joined(deadline, now, origin) - deadline;
                assert_eq!(deadline + late, joined(deadline, now, origin), "it is not earlier");
                assert!(late < JOIN_MAX && late <= MILLISECOND * ahead, "{ahead} ms: {late:?}");
            }
        }
        let short = origin + Duration::from_micros(999);
        assert_eq!(joined(short, origin, origin), short, "what is short stays exact");
        let later = origin + Duration::from_hours(1);
        assert_eq!(joined(short, origin, later), short, "before the origin nothing is joined");
    }

    #[test]
    fn ticks_of_many_groups_share_few_moments() {
        let (origin, period) = (TokioInstant::now(), MILLISECOND * 67);
        let mut moments = BTreeSet::new();
        for begun in (0..64).map(|group| Duration::from_micros(group * 1_047)) {
            let mut now = origin + begun;
            for tick in 1..=15 {
                now = joined(origin + begun + period * tick, now, origin);
                moments.insert(now);
            }
        }
        assert!(moments.len() <= 70, "960 ticks in {} moments", moments.len());
    }

    #[tokio::test(start_paused = true)]
    async fn beats_of_all_groups_fall_on_the_same_moments() {
        let interval = MILLISECOND * 150;
        let beats = (0..64).map(|group| async move {
            tokio::time::sleep(MILLISECOND * group).await;
            next_beat(interval).await;
            let first = TokioInstant::now();
            next_beat(interval).await;
            (first, TokioInstant::now() - first)
        });
        let beats: BTreeSet<_> = futures::future::join_all(beats).await.into_iter().collect();
        assert!(beats.len() <= 2, "before and after one beat: {beats:?}");
        assert!(beats.iter().all(|(_, apart)| *apart == interval), "{beats:?}");
    }
}
