//! A client of a node's APIs: endpoints with failover, one deadline over all tries, retries that never apply a write twice.
//!
//! The rules are those of all clients (`clients/README.md`): a call goes to the endpoint that answered last; what may pass is tried
//! again, at the next endpoint, after a random wait that grows; a write carries one `request_id` over its tries, so
//! that also an unknown outcome may be tried again. Calls that have no such id are repeated only when nothing was sent
//! or the node said that nothing happened.

mod call;
mod failure;
mod scan;

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tonic::transport::Channel;
use uuid::Uuid;

use self::call::{Calling, Peer};
pub use self::failure::Failure;
pub use self::scan::Scan;
use super::Endpoint;
use crate::proto::admin::admin_service_client::AdminServiceClient;
use crate::proto::admin::{
    AddNodeRequest, AddNodeResponse, CompactRequest, CompactResponse, CreateBackupRequest,
    CreateBackupResponse, DrainNodeRequest, DrainNodeResponse, FlushRequest, FlushResponse,
    GetClusterSettingsRequest, GetClusterSettingsResponse, GetConfigRequest, GetConfigResponse,
    ListNodesRequest, ListNodesResponse, ListShardsRequest, ListShardsResponse, MoveLeaderRequest,
    MoveLeaderResponse, RemoveNodeRequest, RemoveNodeResponse, ReplaceNodeRequest,
    ReplaceNodeResponse, StatusRequest, StatusResponse, UpdateClusterSettingsRequest,
    UpdateClusterSettingsResponse,
};
use crate::proto::v1::kv_service_client::KvServiceClient;
use crate::proto::v1::{
    BatchPutRequest, BatchPutResponse, DeleteRequest, DeleteResponse, GetRequest, GetResponse,
    PutRequest, PutResponse, RangeRequest, RangeResponse, ScanRequest, StatsRequest, StatsResponse,
};

/// Largest answer that is taken: a page may be configured to 256 MiB, the rest is room for its frame.
const ANSWER_BYTES_MAX: usize = 300 << 20;

/// A client of one cluster. Shared by reference; calls may run at the same time.
pub struct Client {
    peers: Vec<Peer>,
    /// Counts up when calls move on to the next endpoint.
    turn: AtomicUsize,
    timeout: Duration,
}

/// Defines methods that send one message and await one.
macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident: $service:ident($request:ty) -> $response:ty, $calling:ident;)+) => {
        $(
            $(#[$doc])*
            pub async fn $name(&self, request: $request) -> Result<$response, Failure> {
                let calling = Calling::$calling(self.timeout);
                self.call(calling, &request, |channel, request| async move {
                    $service(channel).$name(request).await
                })
                .await
            }
        )+
    };
}

impl Client {
    /// How long a call may take, with all its tries, when nobody says otherwise.
    pub const TIMEOUT: Duration = Duration::from_secs(5);

    /// A client of the nodes at `endpoints`, of which there has to be one. Connects at the first call.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>, timeout: Duration) -> Self {
        let peers: Vec<Peer> = endpoints.into_iter().map(Peer::new).collect();
        assert!(!peers.is_empty(), "a client has an endpoint");
        Self { peers, turn: AtomicUsize::new(0), timeout }
    }

    /// Stores one value. Without a `request_id` it is given one.
    pub async fn put(&self, mut request: PutRequest) -> Result<PutResponse, Failure> {
        request.request_id.get_or_insert_with(request_id);
        self.call(Calling::write(self.timeout), &request, |channel, request| async move {
            kv(channel).put(request).await
        })
        .await
    }

    /// Reads one key; `None` when it is not there.
    pub async fn get(&self, request: GetRequest) -> Result<Option<GetResponse>, Failure> {
        let answer = self
            .call(Calling::read(self.timeout), &request, |channel, request| async move {
                kv(channel).get(request).await
            })
            .await;
        match answer {
            Err(failure) if failure.reason == "KEY_NOT_FOUND" => Ok(None),
            other => other.map(Some),
        }
    }

    /// Removes one key. Without a `request_id` it is given one.
    pub async fn delete(&self, mut request: DeleteRequest) -> Result<DeleteResponse, Failure> {
        request.request_id.get_or_insert_with(request_id);
        self.call(Calling::write(self.timeout), &request, |channel, request| async move {
            kv(channel).delete(request).await
        })
        .await
    }

    /// Stores many values. Without a `request_id` the batch is given one.
    pub async fn batch_put(
        &self,
        mut request: BatchPutRequest,
    ) -> Result<BatchPutResponse, Failure> {
        request.request_id.get_or_insert_with(request_id);
        self.call(Calling::write(self.timeout), &request, |channel, request| async move {
            kv(channel).batch_put(request).await
        })
        .await
    }

    /// Streams a range; a stream that breaks is taken up after its last item.
    pub fn scan(&self, request: ScanRequest) -> Scan<'_> {
        Scan::new(self, request)
    }

    unary! {
        /// Reads one page of a range.
        range: kv(RangeRequest) -> RangeResponse, read;
        /// Counts of the node that answers.
        stats: kv(StatsRequest) -> StatsResponse, read;
        /// The state of the node that answers. Tried once: the state is that of now.
        status: admin(StatusRequest) -> StatusResponse, once;
        /// The nodes of the cluster.
        list_nodes: admin(ListNodesRequest) -> ListNodesResponse, read;
        /// The shards of the cluster.
        list_shards: admin(ListShardsRequest) -> ListShardsResponse, read;
        /// The configuration of the node that answers.
        get_config: admin(GetConfigRequest) -> GetConfigResponse, read;
        /// What all nodes of the cluster share.
        get_cluster_settings: admin(GetClusterSettingsRequest) -> GetClusterSettingsResponse, read;
        /// Adds a node to the cluster.
        add_node: admin(AddNodeRequest) -> AddNodeResponse, order;
        /// Takes a node out of the cluster.
        remove_node: admin(RemoveNodeRequest) -> RemoveNodeResponse, order;
        /// Moves all replicas away from a node.
        drain_node: admin(DrainNodeRequest) -> DrainNodeResponse, order;
        /// Puts a node in the place of another one.
        replace_node: admin(ReplaceNodeRequest) -> ReplaceNodeResponse, order;
        /// Changes what all nodes of the cluster share.
        update_cluster_settings: admin(UpdateClusterSettingsRequest) -> UpdateClusterSettingsResponse, order;
        /// Hands a shard's leadership over.
        move_leader: admin(MoveLeaderRequest) -> MoveLeaderResponse, order;
        /// Gives the space of what was deleted back. Takes as long as it takes.
        compact: admin(CompactRequest) -> CompactResponse, work;
        /// Makes what was written durable in tables. Takes as long as it takes.
        flush: admin(FlushRequest) -> FlushResponse, work;
        /// Makes a backup on the node. Takes as long as it takes.
        create_backup: admin(CreateBackupRequest) -> CreateBackupResponse, work;
    }
}

fn kv(channel: Channel) -> KvServiceClient<Channel> {
    KvServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

fn admin(channel: Channel) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// 128 random bits.
fn request_id() -> String {
    Uuid::new_v4().simple().to_string()
}
