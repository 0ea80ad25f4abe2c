//! [`Transport`] over gRPC: one [`Link`] for each node and lane, each with a connection of its own, so that no lane can hold up another;
//! one more for each transfer of files.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::files::Sending;
use super::link::Link;
use super::local::Local;
use crate::cluster::NodeName;
use crate::raft::Progress;
use crate::raft::transport::{Failure, Lane, Transport};
use crate::util::fs::FileSystem;

/// How long a node may take to answer that nothing was sent to before.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends to the other nodes of the cluster.
pub struct GrpcTransport {
    local: Arc<Local>,
    runtime: Handle,
    links: Mutex<HashMap<(NodeName, Lane), Link>>,
    sending: Arc<Sending>,
    sent: Arc<Sent>,
}

/// Bytes that were sent to other nodes since this one started, those that never arrived included. May be read and counted by any thread.
#[derive(Debug, Default)]
pub struct Sent {
    messages: AtomicU64,
    files: AtomicU64,
}

impl Sent {
    /// Of messages, and what is around them: entries, signs of life, requests that are passed on.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Of the files of snapshots.
    pub fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    pub(super) fn count_messages(&self, bytes: usize) {
        self.messages.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn count_files(&self, bytes: usize) {
        self.files.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl GrpcTransport {
    /// Sends as the node that `local` is, files of `fs` with at most `files_rate` bytes a second for each transfer. Connections live on the runtime of this thread
    /// and end when this is dropped.
    pub fn new(local: Arc<Local>, fs: Arc<dyn FileSystem>, files_rate: Option<NonZeroU64>) -> Self {
        let sent = Arc::<Sent>::default();
        let sending = Sending::new(fs, files_rate, Arc::clone(&sent));
        Self { local, runtime: Handle::current(), links: Mutex::default(), sending, sent }
    }

    /// What was sent so far.
    pub fn sent(&self) -> &Sent {
        &self.sent
    }

    /// Whether `node` is reached, as far as is known: true until an attempt has failed. Where nothing was ever sent there, this makes one.
    pub fn reaches(&self, node: &NodeName) -> bool {
        let (known, open, down) = {
            let links = self.links.lock();
            let lanes = links.iter().filter(|((other, _), _)| other == node);
            lanes.fold((false, false, false), |(_, open, down), (_, link)| {
                (true, open || link.is_open(), down || link.is_down())
            })
        };
        if !known {
            // Whatever comes back, the stream is open then.
            self.runtime.spawn(self.call(node, Lane::Control, Bytes::new(), PROBE_TIMEOUT));
        }
        open || !down
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
            let (local, sent) = (Arc::clone(&self.local), Arc::clone(&self.sent));
            Link::new(local, node.clone(), lane, sent, &self.runtime)
        });
        link.call(message, timeout)
    }

    fn send_files(
        &self,
        node: &NodeName,
        header: Bytes,
        directory: PathBuf,
        progress: Arc<Progress>,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let sending = Arc::clone(&self.sending);
        let local = Arc::clone(&self.local);
        Box::pin(sending.send(local, node.clone(), header, directory, progress))
    }
}
