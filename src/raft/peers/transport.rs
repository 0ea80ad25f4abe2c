//! [`Transport`] over gRPC: one [`Link`] for each node and lane, each with a connection of its own, so that no lane can hold up another.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::link::Link;
use super::local::Local;
use crate::cluster::NodeName;
use crate::raft::transport::{Failure, Lane, Transport};

/// Sends to the other nodes of the cluster.
pub struct GrpcTransport {
    local: Arc<Local>,
    runtime: Handle,
    links: Mutex<HashMap<(NodeName, Lane), Link>>,
}

impl GrpcTransport {
    /// Sends as the node that `local` is. Connections live on the runtime of this thread and end when this is dropped.
    pub fn new(local: Arc<Local>) -> Self {
        Self { local, runtime: Handle::current(), links: Mutex::default() }
    }

    /// Whether a stream to `node` is open on some lane.
    pub fn reaches(&self, node: &NodeName) -> bool {
        self.links.lock().iter().any(|((other, _), link)| other == node && link.is_open())
    }
}

impl Transport for GrpcTransport {
    fn call(
        &self,
        node: &NodeName,
        lane: Lane,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let mut links = self.links.lock();
        let key = (node.clone(), lane);
        if !links.contains_key(&key) {
            let addresses = self.local.addresses();
            if !addresses.contains_key(node) {
                let why = format!("node {node}: its address is not known");
                return Box::pin(std::future::ready(Err(Failure::Unreachable(why))));
            }
            // Nodes that have gone keep no lanes, so that there are never more than nodes.
            links.retain(|(node, _), _| addresses.contains_key(node));
        }
        let link = links.entry(key).or_insert_with(|| {
            Link::new(Arc::clone(&self.local), node.clone(), lane, &self.runtime)
        });
        link.call(message, timeout)
    }

    fn send_files(
        &self,
        node: &NodeName,
        _header: Bytes,
        _directory: PathBuf,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let why = format!("node {node}: files are not sent yet");
        Box::pin(std::future::ready(Err(Failure::Unreachable(why))))
    }
}
