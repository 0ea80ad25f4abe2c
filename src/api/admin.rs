//! What operators ask: status, configuration, maintenance, backups; and the no-op echo that the load generator measures the
//! transport with.
//!
//! Membership calls are part of the API and answer FAILED_PRECONDITION on a node that runs alone.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::cluster::ClusterView;
use super::{Api, status};
use crate::backup;
use crate::error::{Error, Reason, Result};
use crate::proto::admin::admin_service_server::AdminService;
use crate::proto::admin::{
    AddNodeRequest, AddNodeResponse, CompactRequest, CompactResponse, ConfigValue,
    CreateBackupRequest, CreateBackupResponse, DrainNodeRequest, DrainNodeResponse, EchoRequest,
    EchoResponse, EchoStreamRequest, EchoStreamResponse, FlushRequest, FlushResponse,
    GetConfigRequest, GetConfigResponse, ListNodesRequest, ListNodesResponse, ListShardsRequest,
    ListShardsResponse, MoveLeaderRequest, MoveLeaderResponse, Node, RemoveNodeRequest,
    RemoveNodeResponse, Shard, StatusRequest, StatusResponse,
};
use crate::telemetry::{self, Health};
use crate::types::ShardId;

/// What the operators' calls need beside the [`Api`].
pub struct Operations {
    /// `host:port` of the gRPC port, as told to others.
    pub address: String,
    /// Whether the node is ready.
    pub health: Arc<Health>,
    /// The effective configuration, secrets masked.
    pub config: Vec<ConfigValue>,
    /// Where backups go; `None` refuses them.
    pub backups: Option<PathBuf>,
    /// The cluster; `None` on a node that runs alone.
    pub cluster: Option<ClusterView>,
}

/// The operators' service. Cheap to clone.
#[derive(Clone)]
pub struct AdminApi {
    api: Api,
    operations: Arc<Operations>,
}

impl AdminApi {
    /// Operates the node of `api`.
    pub fn new(api: Api, operations: Operations) -> Self {
        Self { api, operations: Arc::new(operations) }
    }

    /// Why members are neither added nor removed.
    fn fixed_members<T>(&self) -> Result<Response<T>, Status> {
        if self.operations.cluster.is_none() {
            return alone();
        }
        let message = "the members of this cluster are those that founded it (kvstore.cluster.members); this version changes none";
        Err(status::to_tonic(&Error::new(Reason::FailedPrecondition, message)))
    }

    fn node_id(&self) -> &str {
        &self.api.0.node.id
    }

    /// Runs `work` where it may block for long.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let admin = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            admin.api.check_serving()?;
            work(&admin)
        });
        let result =
            done.await.unwrap_or_else(|error| Err(Error::new(Reason::Internal, error.to_string())));
        result.map(Response::new).map_err(|error| status::to_tonic(&error))
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are exact to 2^53, as the API says")]
    fn describe(&self) -> StatusResponse {
        let environment = &self.api.0.node.environment;
        let figures = environment.status();
        let ready = self.operations.health.readiness() == telemetry::Status::Up;
        let not_ready_reason = match (ready, figures.writable) {
            (true, _) => "",
            (false, true) => "the node is starting or stopping",
            (false, false) => {
                "the disk failed and writes are refused; restart the node when it is mended"
            }
        };
        StatusResponse {
            node: self.node_id().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            engine: environment.kind().to_owned(),
            ready,
            not_ready_reason: not_ready_reason.to_owned(),
            writable: figures.writable,
            shards: self.api.0.router.shard_count(),
            uptime_seconds: self.api.uptime().as_secs_f64(),
            disk_bytes: figures.disk_bytes as f64,
            memory_bytes: figures.memory_bytes as f64,
            engine_figures: figures
                .figures
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are exact to 2^53, as the API says")]
    async fn shards(&self) -> Result<ListShardsResponse> {
        let own = || self.node_id().to_owned();
        let shards = self.api.0.router.figures().await?.into_iter().map(|figures| {
            let (leader, replicas) = if figures.replicas.is_empty() {
                (own(), vec![own()])
            } else {
                (
                    figures.leader.map(|node| node.0).unwrap_or_default(),
                    figures.replicas.into_iter().map(|node| node.0).collect(),
                )
            };
            Shard {
                id: figures.shard.0,
                leader,
                replicas,
                keys: figures.keys as f64,
                bytes: figures.bytes as f64,
            }
        });
        Ok(ListShardsResponse { shards: shards.collect() })
    }

    #[expect(clippy::cast_precision_loss, reason = "figures are exact to 2^53, as the API says")]
    fn create_backup_now(&self, name: Option<String>) -> Result<CreateBackupResponse> {
        let Some(directory) = &self.operations.backups else {
            let message = "backups are switched off; set kvstore.backup.dir to the directory that they go into";
            return Err(Error::new(Reason::FailedPrecondition, message));
        };
        let made = backup::create(
            directory,
            name,
            self.node_id(),
            self.api.0.node.environment.kind(),
            self.api.0.router.shards(),
        )?;
        Ok(CreateBackupResponse {
            path: made.path.display().to_string(),
            bytes: made.bytes as f64,
            files: made.files,
            keys: made.keys as f64,
        })
    }
}

fn alone<T>() -> Result<Response<T>, Status> {
    let message = "this node runs alone; membership exists in a cluster (kvstore.cluster.members)";
    Err(status::to_tonic(&Error::new(Reason::FailedPrecondition, message)))
}

#[tonic::async_trait]
impl AdminService for AdminApi {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.blocking(|admin| Ok(admin.describe())).await
    }

    async fn list_nodes(
        &self,
        _: Request<ListNodesRequest>,
    ) -> Result<Response<ListNodesResponse>, Status> {
        if let Some(cluster) = &self.operations.cluster {
            return Ok(Response::new(ListNodesResponse { nodes: cluster.nodes(), epoch: 0 }));
        }
        let shards = self.api.0.router.shard_count();
        let node = Node {
            id: self.node_id().to_owned(),
            address: self.operations.address.clone(),
            state: "up".to_owned(),
            replicas: shards,
            leaders: shards,
        };
        Ok(Response::new(ListNodesResponse { nodes: vec![node], epoch: 0 }))
    }

    async fn add_node(
        &self,
        _: Request<AddNodeRequest>,
    ) -> Result<Response<AddNodeResponse>, Status> {
        self.fixed_members()
    }

    async fn remove_node(
        &self,
        _: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        self.fixed_members()
    }

    async fn drain_node(
        &self,
        _: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        self.fixed_members()
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let Some(cluster) = &self.operations.cluster else { return alone() };
        let MoveLeaderRequest { shard, node } = request.into_inner();
        let moved = cluster.move_leader(ShardId(shard), node).await;
        moved
            .map(|()| Response::new(MoveLeaderResponse {}))
            .map_err(|error| status::to_tonic(&error))
    }

    async fn list_shards(
        &self,
        _: Request<ListShardsRequest>,
    ) -> Result<Response<ListShardsResponse>, Status> {
        self.shards().await.map(Response::new).map_err(|error| status::to_tonic(&error))
    }

    async fn compact(
        &self,
        request: Request<CompactRequest>,
    ) -> Result<Response<CompactResponse>, Status> {
        let only = request.into_inner().shard.map(ShardId);
        self.blocking(move |admin| {
            Ok(CompactResponse { shards: admin.api.0.router.compact(only)? })
        })
        .await
    }

    async fn flush(&self, _: Request<FlushRequest>) -> Result<Response<FlushResponse>, Status> {
        self.blocking(|admin| admin.api.0.router.flush().map(|()| FlushResponse {})).await
    }

    async fn get_config(
        &self,
        _: Request<GetConfigRequest>,
    ) -> Result<Response<GetConfigResponse>, Status> {
        Ok(Response::new(GetConfigResponse { values: self.operations.config.clone() }))
    }

    async fn create_backup(
        &self,
        request: Request<CreateBackupRequest>,
    ) -> Result<Response<CreateBackupResponse>, Status> {
        let name = request.into_inner().name;
        self.blocking(|admin| admin.create_backup_now(name)).await
    }

    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        Ok(Response::new(EchoResponse { payload: request.into_inner().payload }))
    }

    type EchoStreamStream = Pin<Box<dyn Stream<Item = Result<EchoStreamResponse, Status>> + Send>>;

    async fn echo_stream(
        &self,
        request: Request<Streaming<EchoStreamRequest>>,
    ) -> Result<Response<Self::EchoStreamStream>, Status> {
        let stopping = self.api.0.stopping.clone().cancelled_owned();
        let answers = request
            .into_inner()
            .map(|message| {
                message.map(|EchoStreamRequest { id, payload }| EchoStreamResponse { id, payload })
            })
            .take_until(stopping);
        Ok(Response::new(Box::pin(answers)))
    }
}
