//! The state below openraft, above the log that it will have: a group of one replica.

use futures::future::join_all;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver as _;

use super::super::super::log::{LogOptions, LogStore};
use super::super::super::network::Network;
use super::super::super::progress::Progress;
use super::super::super::transport::{Failure, Lane, Transport};
use super::super::super::types::{NodeName, TypeConfig};
use super::*;

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nobody else is there.
struct Alone;

impl Transport for Alone {
    fn call(
        &self,
        _: &NodeName,
        _: Lane,
        _: bytes::Bytes,
        _: Duration,
    ) -> BoxFuture<'static, Result<bytes::Bytes, Failure>> {
        async { Err(Failure::Unreachable("alone".to_owned())) }.boxed()
    }

    fn send_files(
        &self,
        _: &NodeName,
        _: bytes::Bytes,
        _: PathBuf,
        _: Arc<Progress>,
    ) -> BoxFuture<'static, Result<bytes::Bytes, Failure>> {
        async { Err(Failure::Unreachable("alone".to_owned())) }.boxed()
    }
}

struct One {
    raft: Raft<TypeConfig, StateMachine>,
    state: Arc<ReplicaState>,
    log: LogStore,
}

impl One {
    async fn start(fs: &SimFileSystem) -> Self {
        let shared = Arc::new(fs.clone());
        let log = LogStore::open(shared.clone(), "/log".into(), LogOptions::new(1)).expect("opens");
        let environment: Arc<dyn Environment> = lsm(fs, 0, 1).expect("opens");
        let group_log = log.group(GROUP);
        let state = ReplicaState::open(environment, GROUP, Arc::new(group_log.clone()));
        let state = state.expect("opens");
        let network = Network {
            cluster: uuid::Uuid::nil(),
            group: GROUP,
            replica: 1,
            transport: Arc::new(Alone),
            outbox: PathBuf::from("/outbox"),
            append_timeout: Duration::from_secs(1),
            commit_wanted: Arc::default(),
            silent: Arc::default(),
            copies: Arc::default(),
            fs: shared,
        };
        let config = openraft::Config {
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            ..openraft::Config::default()
        };
        let machine = StateMachine::new(Arc::clone(&state));
        let raft = Raft::new(1, Arc::new(config), network, group_log, machine).await;
        let raft = raft.expect("starts");
        let nodes = BTreeMap::from([(1, NodeName("n1".to_owned()))]);
        // Refused when it is not new.
        let _ = raft.initialize(nodes).await;
        let one = Self { raft, state, log };
        one.wait_for("it leads", |metrics| metrics.current_leader == Some(1)).await;
        one
    }

    async fn wait_for(
        &self,
        what: &str,
        holds: impl Fn(&openraft::RaftMetrics<TypeConfig>) -> bool + Send,
    ) {
        let reached = self.raft.wait(Some(PATIENCE)).metrics(holds, what).await;
        reached.unwrap_or_else(|error| panic!("{what}: {error}"));
    }

    async fn write(&self, payload: Payload) -> Result<Outcomes, String> {
        let EntryPayload::Normal(proposal) = payload else { panic!("it is one") };
        let written = tokio::time::timeout(PATIENCE, self.raft.client_write(proposal)).await;
        let written = written.expect("is answered").map_err(|error| error.to_string())?;
        Ok(written.data)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_proposal_is_answered_and_what_was_answered_survives() {
    let mut fs = SimFileSystem::new(1);
    let mut last = 0;
    for round in 0..4u64 {
        let one = One::start(&fs).await;
        one.raft.ensure_linearizable(openraft::ReadPolicy::ReadIndex).await.expect("leads");
        let found = documents(&one.state);
        assert_eq!(found.len() as u64, round * 50, "round {round}");
        let writes = (0..50).map(|number| {
            let command = put(&format!("{round}/{number}"), "1", 0);
            one.write(proposal(NOON, command))
        });
        let mut versions = Vec::new();
        for outcome in join_all(writes).await {
            match outcome.expect("is applied").0[..] {
                [Outcome::Put { version }] => versions.push(version.0),
                ref other => panic!("{other:?}"),
            }
        }
        versions.sort_unstable();
        assert_eq!(versions, (last + 1..=last + 50).collect::<Vec<_>>(), "round {round}");
        last += 50;
        if round % 2 == 1 {
            let applied = one.state.applied();
            one.raft.trigger().snapshot().await.expect("runs");
            one.wait_for("it is built", |metrics| metrics.snapshot == applied).await;
            one.wait_for("it is cut", |metrics| metrics.purged == applied).await;
            assert_eq!(one.state.flushed(), applied);
        }
        fs = fs.restart(round);
        one.raft.shutdown().await.expect("stops");
        drop(one.log);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_proposed_what_cannot_be_applied_gets_an_error() {
    let fs = SimFileSystem::new(2);
    let one = One::start(&fs).await;
    let nonsense = EntryPayload::Normal(Proposal::from_bytes("nonsense".into()));
    one.write(nonsense).await.expect_err("the group has ended");
    one.wait_for("it says so", |metrics| metrics.running_state.is_err()).await;
    let failure = one.raft.metrics().borrow_watched().running_state.clone();
    let failure = failure.expect_err("it has ended").to_string();
    assert!(failure.contains("8 bytes that are no commands"), "{failure}");
    one.write(proposal(NOON, put("k", "1", 0))).await.expect_err("nothing goes on");
    assert!(documents(&one.state).is_empty());
}
