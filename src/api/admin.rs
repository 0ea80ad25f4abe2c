//! What operators ask: status, configuration, maintenance, backups; and the no-op echo that the load generator measures the
//! transport with.
//!
//! What concerns the cluster is checked here and asked of [`Operate`]; on a node that runs alone that refuses it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::cluster::Operate;
use super::{Api, status, validate};
use crate::backup;
use crate::error::{Error, Reason, Result};
use crate::proto::admin::admin_service_server::AdminService;
use crate::proto::admin::{
    AddNodeRequest, AddNodeResponse, CompactRequest, CompactResponse, ConfigValue,
    CreateBackupRequest, CreateBackupResponse, DrainNodeRequest, DrainNodeResponse, EchoRequest,
    EchoResponse, EchoStreamRequest, EchoStreamResponse, FlushRequest, FlushResponse,
    GetClusterSettingsRequest, GetClusterSettingsResponse, GetConfigRequest, GetConfigResponse,
    ListNodesRequest, ListNodesResponse, ListShardsRequest, ListShardsResponse, MoveLeaderRequest,
    MoveLeaderResponse, RemoveNodeRequest, RemoveNodeResponse, ReplaceNodeRequest,
    ReplaceNodeResponse, StatusRequest, StatusResponse, UpdateClusterSettingsRequest,
    UpdateClusterSettingsResponse,
};
use crate::telemetry::{self, Health};
use crate::types::ShardId;

/// What the operators' calls need beside the [`Api`].
pub struct Operations {
    /// Whether the node is ready.
    pub health: Arc<Health>,
    /// The effective configuration, secrets masked.
    pub config: Vec<ConfigValue>,
    /// Where backups go; `None` refuses them.
    pub backups: Option<PathBuf>,
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

    fn cluster(&self) -> &dyn Operate {
        &*self.api.0.cluster
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
        let mut shards = self.cluster().shards();
        let figures = self.api.0.router.figures().await?;
        let figures: HashMap<u32, _> = figures.into_iter().map(|it| (it.shard.0, it)).collect();
        for shard in &mut shards {
            if let Some(figures) = figures.get(&shard.id) {
                (shard.keys, shard.bytes) = (figures.keys as f64, figures.bytes as f64);
                if let Some(leader) = &figures.leader {
                    shard.leader.clone_from(&leader.0);
                }
            }
        }
        Ok(ListShardsResponse { shards })
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

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status::to_tonic(&error))
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
        Ok(Response::new(self.cluster().nodes()))
    }

    async fn add_node(
        &self,
        request: Request<AddNodeRequest>,
    ) -> Result<Response<AddNodeResponse>, Status> {
        let AddNodeRequest { id, address } = request.into_inner();
        let added = async {
            let node = validate::node("id", id)?;
            let start_command = self.cluster().add(node, validate::address(address)?).await?;
            Ok(AddNodeResponse { start_command })
        };
        answer(added.await)
    }

    async fn remove_node(
        &self,
        request: Request<RemoveNodeRequest>,
    ) -> Result<Response<RemoveNodeResponse>, Status> {
        let RemoveNodeRequest { id, force } = request.into_inner();
        let removed = async {
            self.cluster().remove(validate::node("id", id)?, force).await?;
            Ok(RemoveNodeResponse {})
        };
        answer(removed.await)
    }

    async fn drain_node(
        &self,
        request: Request<DrainNodeRequest>,
    ) -> Result<Response<DrainNodeResponse>, Status> {
        let DrainNodeRequest { id } = request.into_inner();
        let drained = async {
            self.cluster().drain(validate::node("id", id)?).await?;
            Ok(DrainNodeResponse {})
        };
        answer(drained.await)
    }

    async fn replace_node(
        &self,
        request: Request<ReplaceNodeRequest>,
    ) -> Result<Response<ReplaceNodeResponse>, Status> {
        let replaced = async {
            let (node, by) = validate::exchange(request.into_inner())?;
            self.cluster().replace(node, by).await?;
            Ok(ReplaceNodeResponse {})
        };
        answer(replaced.await)
    }

    async fn get_cluster_settings(
        &self,
        _: Request<GetClusterSettingsRequest>,
    ) -> Result<Response<GetClusterSettingsResponse>, Status> {
        let settings = self.cluster().settings();
        answer(settings.map(|it| GetClusterSettingsResponse { settings: Some(it) }))
    }

    async fn update_cluster_settings(
        &self,
        request: Request<UpdateClusterSettingsRequest>,
    ) -> Result<Response<UpdateClusterSettingsResponse>, Status> {
        let changed = async {
            let change = validate::settings_change(request.into_inner())?;
            let settings = self.cluster().change_settings(change).await?;
            Ok(UpdateClusterSettingsResponse { settings: Some(settings) })
        };
        answer(changed.await)
    }

    async fn move_leader(
        &self,
        request: Request<MoveLeaderRequest>,
    ) -> Result<Response<MoveLeaderResponse>, Status> {
        let MoveLeaderRequest { shard, node } = request.into_inner();
        let moved = async {
            self.cluster().move_leader(ShardId(shard), validate::node("node", node)?).await?;
            Ok(MoveLeaderResponse {})
        };
        answer(moved.await)
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
