//! What the API shows of a cluster and asks of it, over each transport: a fake in place of the cluster, the memory engine below.

use std::sync::Arc;

use ::http::{HeaderMap, Method, Request, StatusCode};
use axum::body::Body;
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::Value;
use tonic::Code;
use tonic::service::Routes;
use tower::ServiceExt as _;

use super::cluster::{Asked, Operate, refused};
use super::epoch::EPOCH_HEADER;
use super::*;
use crate::cluster::NodeName;
use crate::proto::admin::admin_service_client::AdminServiceClient;
use crate::proto::admin::{
    self, AddNodeRequest, ClusterSettings, GetClusterSettingsRequest, ListNodesRequest,
    ListNodesResponse, ListShardsRequest, MoveLeaderRequest, RemoveNodeRequest, ReplaceNodeRequest,
    Shard as ShardPlace, UpdateClusterSettingsRequest,
};
use crate::proto::v1::kv_service_client::KvServiceClient;
use crate::proto::v1::{
    GetRequest, GetRingRequest, GetRingResponse, PutRequest, RingNode, RingShard, put_request,
};
use crate::shard::{Committer, Shard};
use crate::storage::memory::MemoryEnvironment;
use crate::storage::{Durability, Environment as _};
use crate::telemetry::Health;
use crate::types::ShardId;
use crate::util::time::{Clock, SystemClock};

const SHARDS: u32 = 4;

/// A cluster of two nodes that does nothing and notes what it was asked.
struct FakeCluster {
    ring: Mutex<Arc<GetRingResponse>>,
    asked: Mutex<Vec<String>>,
}

impl FakeCluster {
    fn new(shards: u32) -> Arc<Self> {
        let node = |number: u32| RingNode {
            id: format!("n{number}"),
            address: format!("10.0.0.{number}:9090"),
            up: number == 1,
        };
        let placement = |shard| RingShard {
            shard,
            leader: (shard != 1).then_some(shard % 2),
            replicas: vec![0, 1],
        };
        let ring = GetRingResponse {
            epoch: 7,
            shards,
            nodes: vec![node(1), node(2)],
            placements: (0..shards).map(placement).collect(),
        };
        Arc::new(Self { ring: Mutex::new(Arc::new(ring)), asked: Mutex::default() })
    }

    fn change(&self, change: impl FnOnce(&mut GetRingResponse)) {
        change(Arc::make_mut(&mut self.ring.lock()));
    }

    fn note<T: Send + 'static>(&self, what: String, answer: T) -> Asked<T> {
        self.asked.lock().push(what);
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock())
    }
}

impl Operate for FakeCluster {
    fn ring(&self) -> Arc<GetRingResponse> {
        Arc::clone(&self.ring.lock())
    }

    fn nodes(&self) -> ListNodesResponse {
        let moves = admin::Node { id: "n2".to_owned(), moving: 3, ..admin::Node::default() };
        ListNodesResponse { nodes: vec![moves], epoch: 5 }
    }

    fn shards(&self) -> Vec<ShardPlace> {
        let shard = |id| ShardPlace { id, leader: "n1".to_owned(), ..ShardPlace::default() };
        (0..2 * SHARDS).map(shard).collect()
    }

    fn move_leader(&self, shard: ShardId, node: NodeName) -> Asked<()> {
        if node.0 == "n9" {
            return refused("there is no node n9");
        }
        self.note(format!("{shard} to {node}"), ())
    }

    fn add(&self, node: NodeName, address: String) -> Asked<String> {
        self.note(format!("add {node} at {address}"), "kvstore serve".to_owned())
    }

    fn remove(&self, node: NodeName, force: bool) -> Asked<()> {
        self.note(format!("remove {node} {force}"), ())
    }

    fn drain(&self, node: NodeName) -> Asked<()> {
        self.note(format!("drain {node}"), ())
    }

    fn replace(&self, node: NodeName, by: NodeName) -> Asked<()> {
        self.note(format!("replace {node} {by}"), ())
    }

    fn settings(&self) -> Result<ClusterSettings> {
        Ok(ClusterSettings { replication_factor: 3, replace_after_seconds: 1_800, moves_max: 2 })
    }

    fn change_settings(&self, change: UpdateClusterSettingsRequest) -> Asked<ClusterSettings> {
        let moves_max = change.moves_max.unwrap_or(2);
        let settings = ClusterSettings { moves_max, ..self.settings().expect("it has some") };
        self.note(format!("{change:?}"), settings)
    }
}

/// A node of the fake, as it is called over gRPC and HTTP.
struct Bench {
    cluster: Arc<FakeCluster>,
    grpc: Routes,
    http: axum::Router,
    /// Dropped after what uses its shards.
    _committer: Committer,
}

impl Bench {
    async fn new(cluster: Arc<FakeCluster>) -> Self {
        let environment = Arc::new(MemoryEnvironment::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let committer = Committer::start("test".to_owned(), Durability::None, Arc::clone(&clock))
            .expect("starts");
        let shard = |id| {
            let engine = environment.open(&format!("shard-{id}")).expect("opens");
            Shard::open(ShardId(id), engine, &committer, Arc::clone(&clock)).expect("opens")
        };
        let router = Router::new((0..SHARDS).map(shard).collect());
        let node = Node { id: "n1".to_owned(), started: tokio::time::Instant::now(), environment };
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new());
        let info = actuator::Info {
            node: node.id.clone(),
            host: String::new(),
            engine: String::new(),
            shards: SHARDS,
            limits: Limits::default(),
        };
        let api = Api::new(
            router,
            Limits::default(),
            Arc::clone(&metrics),
            node,
            Arc::clone(&cluster) as _,
            CancellationToken::new(),
        );
        let operations =
            Operations { health: Arc::clone(&health), config: Vec::new(), backups: None };
        let (grpc, _) = grpc_routes(&api, AdminApi::new(api.clone(), operations)).await;
        let http = http_router(&api, grpc.clone(), actuator::router(metrics, health, info), &[]);
        Self { cluster, grpc, http, _committer: committer }
    }

    fn kv(&self) -> KvServiceClient<Routes> {
        KvServiceClient::new(self.grpc.clone())
    }

    fn admin(&self) -> AdminServiceClient<Routes> {
        AdminServiceClient::new(self.grpc.clone())
    }

    /// Status, headers and body of a request, with what the caller knows of the epoch.
    async fn rest(
        &self,
        method: Method,
        path: &str,
        epoch: Option<&str>,
    ) -> (StatusCode, HeaderMap, Vec<u8>) {
        let request = Request::builder().method(method).uri(path);
        let request = match epoch {
            Some(epoch) => request.header(EPOCH_HEADER, epoch),
            None => request,
        };
        let request = request.body(Body::empty()).expect("a request");
        let answer = self.http.clone().oneshot(request).await.expect("it always answers");
        let (parts, body) = answer.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        (parts.status, parts.headers, body.to_vec())
    }
}

/// `message` from a caller who knows the epoch.
fn knowing<T>(message: T, epoch: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(epoch) = epoch {
        let epoch = epoch.parse().expect("ASCII");
        request.metadata_mut().insert("kvstore-epoch", epoch);
    }
    request
}

fn put(key: &str) -> PutRequest {
    let content = Some(put_request::Content::Value("1".to_owned()));
    PutRequest { key: key.to_owned(), content, ..PutRequest::default() }
}

fn get(key: &str) -> GetRequest {
    GetRequest { key: key.to_owned(), ..GetRequest::default() }
}

#[tokio::test]
async fn the_epoch_is_told_to_those_who_know_another_one_and_to_nobody_else() {
    let bench = Bench::new(FakeCluster::new(SHARDS)).await;
    for (known, told) in
        [(None, None), (Some("7"), None), (Some("6"), Some("7")), (Some("x"), Some("7"))]
    {
        let text =
            |value: &tonic::metadata::AsciiMetadataValue| value.to_str().expect("ASCII").to_owned();
        let stored = bench.kv().put(knowing(put("k"), known)).await.expect("stored");
        assert_eq!(stored.metadata().get("kvstore-epoch").map(text).as_deref(), told, "{known:?}");
        let missing = bench.kv().get(knowing(get("none"), known)).await.expect_err("missing");
        assert_eq!(missing.code(), Code::NotFound);
        assert_eq!(missing.metadata().get("kvstore-epoch").map(text).as_deref(), told, "{known:?}");
        for path in
            ["/api/v1/kv/k", "/api/v1/kv/none", "/api/v1/json/k", "/api/v1/kv/", "/api/v1/ring"]
        {
            let (_, headers, _) = bench.rest(Method::GET, path, known).await;
            let epoch = headers.get(EPOCH_HEADER).map(|epoch| epoch.to_str().expect("ASCII"));
            assert_eq!(epoch, told, "{path} {known:?}");
        }
        // It is for those who read and write keys.
        let nodes = bench.admin().list_nodes(knowing(ListNodesRequest {}, known)).await;
        assert!(nodes.expect("an answer").metadata().get("kvstore-epoch").is_none());
    }
    bench.cluster.change(|ring| ring.epoch = 8);
    let (_, headers, _) = bench.rest(Method::GET, "/api/v1/kv/k", Some("7")).await;
    assert_eq!(headers[EPOCH_HEADER], "8");
}

#[tokio::test]
async fn the_ring_is_the_same_over_grpc_and_rest() {
    let bench = Bench::new(FakeCluster::new(SHARDS)).await;
    let ring = bench.kv().get_ring(GetRingRequest {}).await.expect("an answer").into_inner();
    assert_eq!(&ring, &*bench.cluster.ring());
    let (status, _, body) = bench.rest(Method::GET, "/api/v1/ring", None).await;
    assert_eq!(status, StatusCode::OK);
    let ring: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((&ring["epoch"], &ring["shards"]), (&"7".into(), &SHARDS.into()));
    assert_eq!(ring["nodes"][1]["address"], "10.0.0.2:9090");
    assert_eq!(ring["nodes"][1]["up"], false);
    assert_eq!(ring["placements"][0]["leader"], 0, "an index of 0 is not left out");
    assert!(ring["placements"][1]["leader"].is_null(), "none is known");
    assert_eq!(ring["placements"][3]["replicas"], serde_json::json!([0, 1]));
    let (status, headers, _) = bench.rest(Method::POST, "/api/v1/ring", None).await;
    assert_eq!(
        (status, &headers["allow"]),
        (StatusCode::METHOD_NOT_ALLOWED, &"GET, HEAD".parse().expect("ASCII"))
    );
    let (status, ..) = bench.rest(Method::GET, "/api/v1/ring?shard=1", None).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_ring_of_the_largest_cluster_fits_into_an_answer() {
    let bench = Bench::new(FakeCluster::new(16_384)).await;
    let ring = bench.kv().get_ring(GetRingRequest {}).await.expect("an answer").into_inner();
    assert_eq!(ring.placements.len(), 16_384);
    assert!(ring.encoded_len() < 256 << 10, "{} bytes", ring.encoded_len());
}

#[tokio::test]
async fn what_operators_ask_reaches_the_cluster_once_it_has_been_checked() {
    let bench = Bench::new(FakeCluster::new(SHARDS)).await;
    let (mut admin, n) = (bench.admin(), |name: &str| name.to_owned());
    let add = |id: &str, address: &str| AddNodeRequest { id: n(id), address: n(address) };
    let command = admin.add_node(add("n3", "10.0.0.3:9090")).await.expect("expected").into_inner();
    assert_eq!(command.start_command, "kvstore serve");
    let remove = RemoveNodeRequest { id: n("n3"), force: true };
    admin.remove_node(remove).await.expect("leaves");
    admin.drain_node(admin::DrainNodeRequest { id: n("n2") }).await.expect("drains");
    let replace = |id: &str, by: &str| ReplaceNodeRequest { id: n(id), by: n(by) };
    admin.replace_node(replace("n1", "n3")).await.expect("is replaced");
    admin.move_leader(MoveLeaderRequest { shard: 2, node: n("n2") }).await.expect("moves");
    let asked =
        ["add n3 at 10.0.0.3:9090", "remove n3 true", "drain n2", "replace n1 n3", "shard-2 to n2"];
    assert_eq!(bench.cluster.asked(), asked);

    let mut refusals = Vec::new();
    for (id, address) in [("", "h:1"), ("a b", "h:1"), ("n3", ""), ("n3", "h"), ("n3", "h:0")] {
        refusals.push(admin.add_node(add(id, address)).await.expect_err(id));
    }
    refusals.push(admin.remove_node(RemoveNodeRequest::default()).await.expect_err("no name"));
    refusals.push(admin.replace_node(replace("n1", "n1")).await.expect_err("itself"));
    refusals.push(admin.replace_node(replace("n1", "")).await.expect_err("nobody"));
    assert!(refusals.iter().all(|it| it.code() == Code::InvalidArgument), "{refusals:?}");
    assert!(bench.cluster.asked().is_empty());
    let unknown = MoveLeaderRequest { shard: 2, node: n("n9") };
    let refused = admin.move_leader(unknown).await.expect_err("unknown");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "there is no node n9")
    );
}

#[tokio::test]
async fn settings_are_told_and_changed_within_their_bounds() {
    let bench = Bench::new(FakeCluster::new(SHARDS)).await;
    let mut admin = bench.admin();
    let told = admin.get_cluster_settings(GetClusterSettingsRequest {}).await.expect("told");
    assert_eq!(told.into_inner().settings.expect("set").replace_after_seconds, 1_800);
    let none = UpdateClusterSettingsRequest::default();
    let moves = UpdateClusterSettingsRequest { moves_max: Some(4), ..none };
    let changed = admin.update_cluster_settings(moves).await.expect("changed").into_inner();
    assert_eq!(changed.settings.expect("set").moves_max, 4);
    assert_eq!(bench.cluster.asked().len(), 1);
    for (wrong, named) in [
        (none, "replication_factor"),
        (UpdateClusterSettingsRequest { replication_factor: Some(0), ..none }, "1 to 9"),
        (UpdateClusterSettingsRequest { replication_factor: Some(10), ..none }, "1 to 9"),
        (UpdateClusterSettingsRequest { moves_max: Some(0), ..none }, "1 to 1000"),
        (UpdateClusterSettingsRequest { moves_max: Some(1_001), ..none }, "1 to 1000"),
    ] {
        let refused = admin.update_cluster_settings(wrong).await.expect_err("out of bounds");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(named), "{}", refused.message());
    }
    let never = UpdateClusterSettingsRequest { replace_after_seconds: Some(0), ..none };
    admin.update_cluster_settings(never).await.expect("never is allowed");
    assert_eq!(bench.cluster.asked().len(), 1);
}

#[tokio::test]
async fn shards_are_listed_with_what_this_node_stores_of_them() {
    let bench = Bench::new(FakeCluster::new(SHARDS)).await;
    bench.kv().put(put("k")).await.expect("stored");
    let shards =
        bench.admin().list_shards(ListShardsRequest {}).await.expect("listed").into_inner();
    let keys: Vec<f64> = shards.shards.iter().map(|shard| shard.keys).collect();
    assert_eq!(keys.len(), 2 * SHARDS as usize, "also those that are not here");
    let own = crate::router::shard_of(b"k", SHARDS).0 as usize;
    assert!((keys[own] - 1.0).abs() < 0.1 && (keys.iter().sum::<f64>() - 1.0).abs() < 0.1);
    let nodes = bench.admin().list_nodes(ListNodesRequest {}).await.expect("listed").into_inner();
    assert_eq!((nodes.epoch, nodes.nodes[0].moving), (5, 3));
}
