//! An HTTP/2 connection for gRPC.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{self, Channel};
use tower::service_fn;

use super::endpoint::{Endpoint, connect};

/// When a connection is probed, and given up.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// Silence after which it is probed.
    pub interval: Duration,
    /// Wait for the answer to the probe.
    pub timeout: Duration,
    /// Whether it is probed also while nothing is asked over it.
    pub while_idle: bool,
}

/// Opens a connection to `endpoint`; why not, in the words of the operating system.
pub async fn open(endpoint: &Endpoint, keep_alive: KeepAlive) -> Result<Channel, String> {
    let address = transport::Endpoint::from_shared(endpoint.url())
        .map_err(|error| root(&error))?
        .http2_keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout)
        .keep_alive_while_idle(keep_alive.while_idle);
    let endpoint = endpoint.clone();
    let connector = service_fn(move |_| {
        let endpoint = endpoint.clone();
        async move { connect(&endpoint).await.map(TokioIo::new) }
    });
    address.connect_with_connector(connector).await.map_err(|error| root(&error))
}

/// The deepest cause: what the operating system said.
fn root(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root)
}
