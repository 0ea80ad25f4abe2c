//! Nodes of a simulated cluster (`raft/sim`), each with a router and an ear on what other nodes ask it; what it answers can be bent.
//!
//! All of it runs on a virtual clock, in [`simulate`](crate::raft::sim::simulate). Callers: the tests of what concerns several nodes.

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::*;
use crate::cluster::NodeName;
use crate::raft::Answers;
use crate::raft::sim::{Cluster, NodeIndex, PATIENCE, Shape, shape, wait};
use crate::raft::types::GroupId;
use crate::router::remote::{Answer, Question, What, decode_answer};

/// A question that came to a node.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) at: Instant,
    pub(super) node: NodeIndex,
    pub(super) shards: Vec<ShardId>,
    /// How long the answer may take.
    pub(super) left: Duration,
    /// The shards that the node does not serve, once it has answered.
    pub(super) refused: Vec<ShardId>,
}

/// Makes another answer of what a node would answer.
type Bend = Arc<dyn Fn(NodeIndex, &Question<What>, Bytes) -> Bytes + Send + Sync>;

/// What all nodes have in common.
#[derive(Default)]
struct Board {
    heard: Mutex<Vec<Heard>>,
    bend: Mutex<Option<Bend>>,
    /// How long nodes think before they look.
    pause: Mutex<Duration>,
}

struct Ear {
    node: NodeIndex,
    answerer: Answerer,
    board: Arc<Board>,
}

impl Answers for Ear {
    fn answer(&self, from: &NodeName, bytes: Bytes) -> BoxFuture<'static, Bytes> {
        let question = Question::decode(&bytes).expect("nodes ask what they can read");
        let (node, board) = (self.node, Arc::clone(&self.board));
        let place = {
            let mut heard = board.heard.lock();
            heard.push(Heard {
                at: Instant::now(),
                node,
                shards: question.shards.clone(),
                left: question.left,
                refused: Vec::new(),
            });
            heard.len() - 1
        };
        let answer = self.answerer.answer(from, bytes);
        let (pause, bend) = (*board.pause.lock(), board.bend.lock().clone());
        Box::pin(async move {
            sleep(pause).await;
            let answer = answer.await;
            if let Some(Ok(Answer { missing, .. })) = decode_answer(&answer)
                && let Some(heard) = board.heard.lock().get_mut(place)
            {
                heard.refused = missing.iter().map(|missing| missing.shard).collect();
            }
            bend.map_or(answer.clone(), |bend| bend(node, &question, answer))
        })
    }
}

/// See the [module](self).
pub(super) struct Nodes {
    pub(super) cluster: Arc<Cluster>,
    board: Arc<Board>,
}

/// Five nodes and six shards, of which each is on three.
pub(super) fn wide() -> Shape {
    Shape { founders: 5, replication_factor: 3, groups: 6, large_memtables: true, ..shape() }
}

impl Nodes {
    /// All are up, every shard has a leader.
    pub(super) async fn start(shape: Shape, seed: u64) -> Self {
        let cluster = Cluster::new(shape, seed);
        cluster.start_all().await.expect("empty disks that work");
        let led = || cluster.groups().all(|group| cluster.leader(group).is_some());
        wait("every shard is led", led).await;
        let nodes = Self { cluster, board: Arc::default() };
        for node in 0..nodes.cluster.shape.founders {
            nodes.listen(node);
        }
        nodes
    }

    fn listen(&self, node: NodeIndex) {
        let answerer = Answerer::new(self.router(node));
        let ear = Ear { node, answerer, board: Arc::clone(&self.board) };
        self.cluster.running(node).expect("up").node.answer_with(Arc::new(ear));
    }

    /// The router of a node.
    pub(super) fn router(&self, node: NodeIndex) -> Router {
        let running = self.cluster.running(node).expect("up");
        let shard = |place: &Arc<crate::raft::Place>| {
            Shard::replicated(ShardId(place.id().0), Arc::clone(place))
        };
        Router::new(running.node.places().iter().map(shard).collect())
    }

    pub(super) fn all(&self) -> std::ops::Range<NodeIndex> {
        0..self.cluster.shape.founders
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (0..self.cluster.shape.groups).map(ShardId)
    }

    /// The first node that has no replica of `shard`.
    pub(super) fn stranger(&self, shard: ShardId) -> NodeIndex {
        let holders = self.cluster.holders(GroupId(shard.0));
        self.all().find(|node| !holders.contains(node)).expect("not all nodes hold a shard")
    }

    pub(super) fn leader(&self, shard: ShardId) -> NodeIndex {
        self.cluster.leader(GroupId(shard.0)).expect("somebody leads")
    }

    /// The nodes that hold `shard`, in the order in which `node` asks them.
    pub(super) fn asked_by(&self, node: NodeIndex, shard: ShardId) -> Vec<NodeIndex> {
        let running = self.cluster.running(node).expect("up");
        let holders = running.place(GroupId(shard.0)).holders().expect("it has met its cluster");
        let order: Vec<_> = holders.iter().map(|name| self.index(name)).collect();
        let each: std::collections::BTreeSet<_> = order.iter().collect();
        assert_eq!(each.len(), order.len(), "nobody is in it twice: {order:?}");
        order
    }

    pub(super) fn index(&self, name: &NodeName) -> NodeIndex {
        self.all().find(|node| self.cluster.name(*node) == name).expect("one of the nodes")
    }

    pub(super) fn unseat(&self, node: NodeIndex, shard: ShardId) {
        self.cluster.unseat(node, GroupId(shard.0));
    }

    pub(super) fn seat(&self, node: NodeIndex, shard: ShardId) {
        self.cluster.seat(node, GroupId(shard.0));
    }

    /// The first key of the form `name/number` that falls into `shard`.
    pub(super) fn key_in(&self, shard: ShardId, name: &str) -> Key {
        let mut keys = (0..).map(|number| key(&format!("{name}/{number}")));
        let count = self.cluster.shape.groups;
        keys.find(|key| shard_of(key.as_bytes(), count) == shard).expect("there is one")
    }

    /// Stores one document in each shard; their keys.
    pub(super) async fn one_each(&self, name: &str) -> Vec<Key> {
        let keys: Vec<_> = self.shards().map(|shard| self.key_in(shard, name)).collect();
        let entries: Vec<_> = keys.iter().map(|key| (key.clone(), json(key.as_str()))).collect();
        self.store(0, entries).await;
        keys
    }

    /// Stores documents through a node.
    pub(super) async fn store(&self, node: NodeIndex, entries: Vec<(Key, Value)>) {
        let count = entries.len();
        let stored = self.router(node).batch_put(entries, None, None, within(PATIENCE));
        let stored = stored.expect("there is room").await.expect("stored");
        assert_eq!(stored as usize, count);
    }

    /// What a linearizable read at a node finds, as text.
    pub(super) async fn get(&self, node: NodeIndex, key: &Key) -> Result<Option<String>> {
        self.get_within(node, key, Freshness::Linearizable, PATIENCE).await
    }

    pub(super) async fn get_within(
        &self,
        node: NodeIndex,
        key: &Key,
        freshness: Freshness,
        limit: Duration,
    ) -> Result<Option<String>> {
        let found = self.router(node).get(key.as_bytes(), freshness, within(limit)).await;
        Ok(found?.map(|document| text(&document.value)))
    }

    /// What a linearizable read of many keys at a node finds, however much it is.
    pub(super) async fn get_all(&self, node: NodeIndex, keys: &[Key]) -> Result<Vec<Item>> {
        let (freshness, deadline) = (Freshness::Linearizable, within(PATIENCE));
        self.router(node).batch_get(keys.to_vec(), usize::MAX, freshness, deadline).await
    }

    /// What nodes have been asked since this was called last.
    pub(super) fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.board.heard.lock())
    }

    /// The same, only which nodes, in the order in which it came to them.
    pub(super) fn heard_by(&self) -> Vec<NodeIndex> {
        self.heard().iter().map(|heard| heard.node).collect()
    }

    /// From now on nodes answer what `bend` makes of it.
    pub(super) fn bend(
        &self,
        bend: impl Fn(NodeIndex, &Question<What>, Bytes) -> Bytes + Send + Sync + 'static,
    ) {
        *self.board.bend.lock() = Some(Arc::new(bend));
    }

    /// From now on nodes think for so long before they answer.
    pub(super) fn slow_down(&self, pause: Duration) {
        *self.board.pause.lock() = pause;
    }

    /// Has the leader of `shard` hand it over to `node`.
    pub(super) async fn move_leader(&self, shard: ShardId, node: NodeIndex) {
        let group = GroupId(shard.0);
        let leader = self.cluster.running(self.leader(shard)).expect("up");
        leader.place(group).move_leader(self.cluster.name(node)).await.expect("it takes over");
        wait("it leads", || self.cluster.leader(group) == Some(node)).await;
    }

    pub(super) async fn end(self) {
        self.cluster.end().await;
    }
}

pub(super) fn within(limit: Duration) -> Instant {
    Instant::now() + limit
}
