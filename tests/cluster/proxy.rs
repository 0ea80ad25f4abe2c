//! The network between nodes, as far as a test can break it: every connection of one node to another goes through here.
//!
//! Each node is reached by the others at its proxy. Who opened a connection is found out from the kernel's tables (Linux). A cut holds
//! the bytes of one direction back, in connections of both nodes, as a network that loses packets would; what was held goes on when the
//! cut is healed. Delays keep the order.
//!
//! Memory is bounded by what is under way: [`CHUNKS_MAX`] of [`CHUNK_BYTES`] for each direction of each connection.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::Rng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes that are passed on at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// Chunks that are under way in one direction of a connection.
const CHUNKS_MAX: usize = 256;

/// What one node's bytes meet on their way to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Nothing gets through.
    pub(crate) cut: bool,
    /// How long each byte is under way, at least.
    pub(crate) delay: Duration,
    /// And how much longer at most.
    pub(crate) jitter: Duration,
}

/// All links between the nodes of a cluster, and the proxies.
pub(crate) struct Network {
    shared: Arc<Shared>,
    /// Where each node is reached by the others.
    pub(crate) addresses: Vec<SocketAddr>,
    _proxies: JoinSet<()>,
}

struct Shared {
    /// Links by sender, then receiver.
    by_sender: Vec<Vec<watch::Sender<Link>>>,
    /// The processes, to tell who connects.
    pids: Mutex<Vec<Option<u32>>>,
    /// Changes when connections are to be closed.
    resets: watch::Sender<u64>,
    /// Chunks and connections that a cut held back.
    held: AtomicU64,
}

impl Network {
    /// Proxies to nodes that listen at `nodes`, or will.
    pub(crate) async fn start(nodes: &[SocketAddr]) -> Self {
        let row = || nodes.iter().map(|_| watch::Sender::new(Link::default())).collect();
        let shared = Arc::new(Shared {
            by_sender: nodes.iter().map(|_| row()).collect(),
            pids: Mutex::new(vec![None; nodes.len()]),
            resets: watch::Sender::new(0),
            held: AtomicU64::new(0),
        });
        let mut proxies = JoinSet::new();
        let mut addresses = Vec::new();
        for (to, node) in nodes.iter().copied().enumerate() {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            addresses.push(listener.local_addr().expect("it is bound"));
            proxies.spawn(serve(listener, to, node, Arc::clone(&shared)));
        }
        Self { shared, addresses, _proxies: proxies }
    }

    /// Tells which process is which node.
    pub(crate) fn set_pid(&self, node: usize, pid: Option<u32>) {
        self.shared.pids.lock().unwrap_or_else(PoisonError::into_inner)[node] = pid;
    }

    /// Changes one direction of one link.
    pub(crate) fn set(&self, from: usize, to: usize, link: Link) {
        self.shared.by_sender[from][to].send_replace(link);
    }

    /// Changes every link.
    pub(crate) fn set_all(&self, link: Link) {
        for sender in self.shared.by_sender.iter().flatten() {
            sender.send_replace(link);
        }
    }

    /// How often a cut held something back so far.
    pub(crate) fn held(&self) -> u64 {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Closes every connection that there is, whatever is under way.
    pub(crate) fn reset_connections(&self) {
        self.shared.resets.send_modify(|count| *count += 1);
    }
}

async fn serve(listener: TcpListener, to: usize, node: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let pids = shared.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(from) = pids.iter().position(|pid| pid.is_some_and(|pid| owns(pid, peer.port())))
        else {
            // The process is gone already.
            continue;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(carry(stream, from, to, node, Arc::clone(&shared)));
    }
}

/// Carries one connection, until one side ends it or it is reset.
async fn carry(stream: TcpStream, from: usize, to: usize, node: SocketAddr, shared: Arc<Shared>) {
    let there = shared.by_sender[from][to].subscribe();
    let back = shared.by_sender[to][from].subscribe();
    let mut resets = shared.resets.subscribe();
    // A connection is made by packets of both directions.
    let connect = async {
        shared.open(&mut there.clone()).await;
        shared.open(&mut back.clone()).await;
        TcpStream::connect(node).await
    };
    let upstream = tokio::select! {
        upstream = connect => upstream,
        _ = resets.changed() => return,
    };
    let Ok(upstream) = upstream else { return };
    let _ = (stream.set_nodelay(true), upstream.set_nodelay(true));
    let (near_read, near_write) = stream.into_split();
    let (far_read, far_write) = upstream.into_split();
    let both = async {
        tokio::join!(
            pump(near_read, far_write, there, &shared),
            pump(far_read, near_write, back, &shared),
        );
    };
    tokio::select! {
        () = both => {}
        _ = resets.changed() => {}
    }
}

impl Shared {
    /// Waits until the link is not cut.
    async fn open(&self, link: &mut watch::Receiver<Link>) {
        if link.borrow().cut {
            self.held.fetch_add(1, Ordering::SeqCst);
        }
        // The sender lives as long as the proxies.
        let _ = link.wait_for(|link| !link.cut).await;
    }
}

/// One direction of one connection.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    link: watch::Receiver<Link>,
    shared: &Shared,
) {
    let (sender, mut chunks) = mpsc::channel::<(Instant, Vec<u8>)>(CHUNKS_MAX);
    let reading = link.clone();
    let read = async move {
        loop {
            let mut chunk = vec![0; CHUNK_BYTES];
            let Ok(length @ 1..) = from.read(&mut chunk).await else { return };
            chunk.truncate(length);
            let Link { delay, jitter, .. } = *reading.borrow();
            let due = Instant::now() + delay + jitter.mul_f64(rand::rng().random::<f64>());
            if sender.send((due, chunk)).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        let mut link = link;
        while let Some((due, chunk)) = chunks.recv().await {
            tokio::time::sleep_until(due).await;
            shared.open(&mut link).await;
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        shared.open(&mut link).await;
        let _ = to.shutdown().await;
    };
    tokio::join!(read, write);
}

/// Whether a process holds the socket that is bound to a port of 127.0.0.1 and connected.
fn owns(pid: u32, port: u16) -> bool {
    let Some(inode) = connected_inode(port) else { return false };
    let wanted = format!("socket:[{inode}]");
    let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    files.flatten().any(|file| {
        std::fs::read_link(file.path()).is_ok_and(|target| target == Path::new(&wanted))
    })
}

/// The inode of the connected socket with this local port.
fn connected_inode(port: u16) -> Option<u64> {
    // sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode; addresses as hex, 0100007F:PORT.
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let found = fields.get(1) == Some(&local.as_str()) && fields.get(3) != Some(&"0A");
        fields.get(9).filter(|_| found)?.parse().ok().filter(|inode| *inode != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo behind a proxy; this process is node 0, the echo node 1.
    async fn echo() -> (Network, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let node = listener.local_addr().expect("it is bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("the proxy connects");
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let network = Network::start(&[node, node]).await;
        network.set_pid(0, Some(std::process::id()));
        let stream = TcpStream::connect(network.addresses[1]).await.expect("it listens");
        (network, stream)
    }

    async fn comes_back(stream: &mut TcpStream, within: Duration) -> bool {
        tokio::time::timeout(within, stream.read_u8()).await.is_ok_and(|byte| byte.is_ok())
    }

    const SOON: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_cut_holds_bytes_back_until_it_is_healed() {
        let (network, mut stream) = echo().await;
        for (from, to) in [(0, 1), (1, 0)] {
            stream.write_u8(1).await.expect("sent");
            assert!(comes_back(&mut stream, SOON).await);
            let held = network.held();
            network.set(from, to, Link { cut: true, ..Link::default() });
            stream.write_u8(2).await.expect("sent");
            assert!(!comes_back(&mut stream, SHORT).await, "{from} to {to} is cut");
            assert!(network.held() > held);
            network.set(from, to, Link::default());
            assert!(comes_back(&mut stream, SOON).await, "{from} to {to} is healed");
        }
    }

    #[tokio::test]
    async fn delays_add_up_in_both_directions_and_a_reset_closes() {
        let (network, mut stream) = echo().await;
        network.set_all(Link { delay: SHORT, ..Link::default() });
        let start = Instant::now();
        stream.write_u8(1).await.expect("sent");
        assert!(comes_back(&mut stream, SOON).await);
        assert!(start.elapsed() >= SHORT * 2);
        network.reset_connections();
        assert!(!comes_back(&mut stream, SOON).await);
    }
}
