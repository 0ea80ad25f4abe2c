//! A node for one test: in this process, on ports of its own, with a directory of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvstore::config::{self, Loaded, Sources};
use kvstore::proto::admin::admin_service_client::AdminServiceClient;
use kvstore::proto::v1::kv_service_client::KvServiceClient;
use kvstore::proto::v1::{GetRequest, PutRequest, get_response, put_request};
use kvstore::server::Server;
use kvstore::telemetry::Metrics;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct TestNode {
    server: Option<Server>,
    directory: TempDir,
    settings: Vec<String>,
}

pub(crate) fn load(directory: &TempDir, settings: &[String]) -> Loaded {
    let set = ["server.port=0", "kvstore.grpc.port=0", "logging.file.name="].map(str::to_owned);
    let sources = Sources {
        working_dir: directory.path().to_owned(),
        set: set.into_iter().chain(settings.iter().cloned()).collect(),
        ..Sources::default()
    };
    let mut loaded = config::load(&sources).expect("the settings of the test are legal");
    loaded.config.storage.data_dir = directory.path().join("data");
    loaded
}

impl TestNode {
    /// A node as it comes.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A node with `settings`.
    pub(crate) async fn with(settings: &[&str]) -> Self {
        let all = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut node = Self { server: None, directory, settings: all };
        node.open().await;
        node
    }

    pub(crate) async fn open(&mut self) {
        let loaded = load(&self.directory, &self.settings);
        let server = Server::start(&loaded, Arc::new(Metrics::new())).await;
        self.server = Some(server.expect("the node starts"));
    }

    pub(crate) async fn stop(&mut self) {
        let server = self.server.take().expect("it runs");
        server.stop().await.expect("it stops cleanly");
    }

    /// Its data directory.
    pub(crate) fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("data")
    }

    fn server(&self) -> &Server {
        self.server.as_ref().expect("it runs")
    }

    pub(crate) fn grpc_url(&self) -> String {
        format!("http://{}", self.server().grpc_address.expect("it is switched on"))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server().http_address)
    }

    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(self.grpc_url())
            .expect("an address")
            .connect()
            .await
            .expect("it listens")
    }

    pub(crate) async fn client(&self) -> KvServiceClient<Channel> {
        KvServiceClient::new(self.channel().await)
    }

    pub(crate) async fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel().await)
    }
}

pub(crate) fn put(key: impl Into<String>, value: impl Into<String>) -> PutRequest {
    PutRequest {
        key: key.into(),
        content: Some(put_request::Content::Value(value.into())),
        ..PutRequest::default()
    }
}

pub(crate) fn get(key: impl Into<String>) -> GetRequest {
    GetRequest { key: key.into(), ..GetRequest::default() }
}

pub(crate) fn text(content: Option<get_response::Content>) -> String {
    match content {
        Some(get_response::Content::Value(text)) => text,
        other => panic!("{other:?} is not a text"),
    }
}

/// The reason of a refusal.
pub(crate) fn reason(status: &tonic::Status) -> String {
    let details = status.get_error_details();
    details.error_info().map_or_else(|| format!("none: {status:?}"), |info| info.reason.clone())
}

/// Waits until `condition` holds.
pub(crate) async fn eventually<F: Future<Output = bool>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
