//! Listening: accepts connections, at most so many over both ports, and serves them until told to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::Error;
use super::workers::Workers;
use crate::api::{AdmissionLayer, InFlight};
use crate::config::Http2;

/// Wait after the operating system refused a connection, which it does when files run out: trying at once would only burn time.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Connections on their way to one worker.
const ACCEPTED_MAX: usize = 64;

/// HTTP/2 resets that a client may cause before its connection is closed (CVE-2023-44487).
const RESETS_MAX: usize = 20;

/// Bytes of one request's headers.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// What both ports share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) http2: Http2,
    pub(super) connections: Arc<Semaphore>,
    pub(super) in_flight: Arc<InFlight>,
    pub(super) workers: Arc<Workers>,
    /// Cancelled when no more connections and calls are taken.
    pub(super) stopping: CancellationToken,
}

/// A port that is open but not served yet.
pub(super) struct Listener {
    listener: TcpListener,
    pub(super) address: SocketAddr,
}

impl Listener {
    /// Opens `address`.
    pub(super) async fn bind(name: &'static str, address: SocketAddr) -> Result<Self, Error> {
        let failed = |source| Error::Listen { name, address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Serves `routes` until stopped, then until every call that runs has ended.
    pub(super) fn serve(self, routes: Routes, http1: bool, shared: &Shared) -> JoinHandle<()> {
        let http2 = &shared.http2;
        let mut server = tonic::transport::Server::builder()
            .accept_http1(http1)
            .max_concurrent_streams(http2.max_concurrent_streams)
            .http2_keepalive_interval(http2.keep_alive_interval)
            .http2_keepalive_timeout(Some(http2.keep_alive_timeout))
            .http2_max_pending_accept_reset_streams(Some(RESETS_MAX))
            .http2_max_header_list_size(HEADERS_BYTES_MAX);
        if let Some(age) = http2.connection_age {
            server =
                server.max_connection_age(age).max_connection_age_grace(http2.connection_age_grace);
        }
        let port = server.layer(AdmissionLayer(Arc::clone(&shared.in_flight))).add_routes(routes);
        let address = self.address;
        let mut queues = Vec::new();
        let mut serving = Vec::new();
        for worker in shared.workers.handles() {
            let (queue, accepted) = mpsc::channel(ACCEPTED_MAX);
            queues.push(queue);
            let port = port.clone();
            let stopped = shared.stopping.clone().cancelled_owned();
            serving.push(worker.spawn(async move {
                let incoming = ReceiverStream::new(accepted).filter_map(Connection::adopt);
                if let Err(error) = port.serve_with_incoming_shutdown(incoming, stopped).await {
                    tracing::error!(%address, %error, "serving failed");
                }
            }));
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = accept(&self.listener, &shared, &queues) => {}
                () = shared.stopping.cancelled() => {}
            }
            // Nobody connects to a node that stops: closed now, not when the last call has ended.
            drop((self, queues));
            for port in serving {
                // A port that ended in a panic was reported by its hook.
                let _ = port.await;
            }
        })
    }
}

/// Gives the connections of `listener` to the workers in turn. One above the limit is closed at once: its client learns it now and not
/// by a timeout.
async fn accept(listener: &TcpListener, shared: &Shared, queues: &[mpsc::Sender<Accepted>]) {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&shared.connections).try_acquire_owned() else {
            tracing::warn!(%peer, "closed a connection: kvstore.http2.connections-max are open");
            continue;
        };
        let accepted = stream.set_nodelay(true).and_then(|()| stream.into_std());
        match accepted {
            Ok(stream) => {
                // A worker that takes no more has ended.
                let _ = queues[shared.workers.next()].send(Accepted { stream, permit }).await;
            }
            Err(error) => tracing::debug!(%peer, %error, "a connection ended while it began"),
        }
    }
}

/// A connection on its way to the worker that serves it.
struct Accepted {
    stream: std::net::TcpStream,
    permit: OwnedSemaphorePermit,
}

/// A connection that counts while it is open.
struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Takes a connection over into the runtime of this thread.
    fn adopt(accepted: Accepted) -> Option<io::Result<Self>> {
        let Accepted { stream, permit } = accepted;
        match TcpStream::from_std(stream) {
            Ok(stream) => Some(Ok(Self { stream, _permit: permit })),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be served");
                None
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
