//! Listening: accepts connections, at most so many over both ports, and serves them until told to stop.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::stream::unfold;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpConnectInfo};

use super::Error;
use crate::api::{AdmissionLayer, InFlight};
use crate::config::Http2;

/// Wait after the operating system refused a connection, which it does when files run out: trying at once would only burn time.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

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
        let incoming = incoming(self.listener, Arc::clone(&shared.connections));
        let router = server.layer(AdmissionLayer(Arc::clone(&shared.in_flight))).add_routes(routes);
        let stopped = shared.stopping.clone().cancelled_owned();
        let address = self.address;
        tokio::spawn(async move {
            if let Err(error) = router.serve_with_incoming_shutdown(incoming, stopped).await {
                tracing::error!(%address, %error, "serving failed");
            }
        })
    }
}

/// The connections of `listener`. One above the limit is closed at once: its client learns it now and not by a timeout.
fn incoming(
    listener: TcpListener,
    free: Arc<Semaphore>,
) -> impl Stream<Item = io::Result<Connection>> {
    unfold((listener, free), |(listener, free)| async {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                tracing::warn!(%peer, "closed a connection: kvstore.http2.connections-max are open");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "a connection ended while it began");
                continue;
            }
            return Some((Ok(Connection { stream, _permit: permit }), (listener, free)));
        }
    })
}

/// A connection that counts while it is open.
struct Connection {
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
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
