//! The public surface: decodes, validates, sets the deadline, calls the router, encodes. The only place that knows gRPC and
//! HTTP status.
//!
//! Every operation is one function of [`Api`] (`kv`), over the protobuf messages. What carries it is thin: `grpc` and `session` (tonic),
//! `rest` (paths generated from the annotations), `documents` (JSON as it is), `admin`. So gRPC, gRPC-Web and REST
//! cannot differ in what they allow or answer.
//!
//! Deadlines: `grpc-timeout` on either transport, cut to `kvstore.limits.deadline-max`. tonic drops a handler whose deadline has
//! passed or whose client has left; nothing half done lives in a handler, so nothing is lost by that: a write is owned by
//! its shard.

pub mod actuator;
mod admin;
mod admission;
mod alone;
mod body;
mod call;
mod cluster;
mod diagnose;
mod documents;
mod epoch;
mod grpc;
mod http;
mod kv;
mod member;
mod paths;
mod rest;
mod scan;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod transport;
mod validate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use self::admin::{AdminApi, Operations};
pub use self::admission::{AdmissionLayer, InFlight};
pub use self::alone::Alone;
pub use self::cluster::{Asked, Operate};
pub use self::http::http_router;
pub use self::member::Member;
pub use self::transport::{Reporter, SERVICE_NAME, grpc_routes};
use crate::error::{Error, Reason, Result};
use crate::router::Router;
use crate::telemetry::Metrics;
use crate::types::Limits;

/// Where documents are stored as they are; error messages point there.
pub(crate) const DOCUMENT_PATH: &str = "/api/v1/json/{key}";

/// What the public API needs to know of its node.
pub struct Node {
    /// The node's id.
    pub id: String,
    /// Tells how long the node has been up.
    pub started: tokio::time::Instant,
    /// Sizes of what all shards share.
    pub environment: Arc<dyn crate::storage::Environment>,
}

/// The operations of the public API. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    node: Node,
    cluster: Arc<dyn Operate>,
    serving: AtomicBool,
    stopping: CancellationToken,
}

impl Api {
    /// An API over `router`, of a node of `cluster`. It serves until `stopping` is cancelled: sessions then end, other calls finish.
    pub fn new(
        router: Router,
        limits: Limits,
        metrics: Arc<Metrics>,
        node: Node,
        cluster: Arc<dyn Operate>,
        stopping: CancellationToken,
    ) -> Self {
        let serving = AtomicBool::new(true);
        Self(Arc::new(Inner { router, limits, metrics, node, cluster, serving, stopping }))
    }

    /// Refuses all further calls: for the last moment, when storage closes.
    pub fn close(&self) {
        self.0.serving.store(false, Ordering::Release);
    }

    /// What requests may carry.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// Since the start of the node.
    pub fn uptime(&self) -> Duration {
        self.0.node.started.elapsed()
    }

    fn check_serving(&self) -> Result<()> {
        if self.0.serving.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::new(
            Reason::NotServing,
            "the node is stopping, or has left its cluster; it was not applied; ask another one",
        ))
    }
}
