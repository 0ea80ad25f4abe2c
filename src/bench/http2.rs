//! A connection that speaks HTTP/2, and what gRPC adds to it: paths, headers, the status in the trailers.

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};

use super::Error;
use super::tally::Failure;
use crate::net::{self, Endpoint};

/// Large enough that no answer of this load waits for a window.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

/// Calls that may be open before the server has said how many it takes.
const STREAMS_MAX: usize = 1 << 20;

/// An open connection. Clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    endpoint: Endpoint,
}

/// Sends requests to one method.
pub(super) struct Method {
    connection: Connection,
    uri: Uri,
    headers: HeaderMap,
}

impl Connection {
    /// Connects to `endpoint`. The connection lives on a task of this runtime.
    pub(super) async fn open(endpoint: &Endpoint) -> Result<Self, Error> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::Server(format!("cannot connect to {}: {error}", endpoint.url()))
        };
        let stream = net::connect(endpoint).await.map_err(|error| failed(&error))?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .initial_max_send_streams(STREAMS_MAX)
            .enable_push(false)
            .handshake(stream)
            .await
            .map_err(|error| failed(&error))?;
        // Its error is told to every call that it breaks.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self { sender, endpoint: endpoint.clone() })
    }

    /// The method at `path`.
    pub(super) fn method(&self, path: &'static str) -> Method {
        let uri = format!("{}{path}", self.endpoint.url());
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
        Method {
            connection: self.clone(),
            uri: uri.parse().expect("an endpoint and a fixed path are a URI"),
            headers,
        }
    }

    /// Checks that the server takes `streams` calls at a time; to be asked after the first call was answered.
    pub(super) fn check_streams(&self, streams: usize) -> Result<(), Error> {
        let max = self.sender.current_max_send_streams();
        if streams <= max {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "{streams} calls in flight on one connection; {} takes {max} (kvstore.http2.max-concurrent-streams): use more --connections",
            self.endpoint.url()
        )))
    }
}

impl Method {
    /// Opens a stream to the method.
    pub(super) fn open(
        &self,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), Failure> {
        let mut request = Request::new(());
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        Ok(self.connection.sender.clone().send_request(request, false)?)
    }

    /// Sends one frame and takes the frame that answers it. The common answer comes in one piece and is not copied.
    pub(super) async fn call(&self, frame: Bytes) -> Result<Bytes, Failure> {
        let (response, mut stream) = self.open()?;
        stream.send_data(frame, true)?;
        let mut body = accept(response.await?)?;
        let mut message = Bytes::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            body.flow_control().release_capacity(chunk.len())?;
            message = if message.is_empty() {
                chunk
            } else {
                let mut both = BytesMut::from(message);
                both.extend_from_slice(&chunk);
                both.freeze()
            };
        }
        finish(body.trailers().await?.as_ref())?;
        Ok(message)
    }
}

/// The body of an answer, unless its head refuses.
pub(super) fn accept(response: Response<h2::RecvStream>) -> Result<h2::RecvStream, Failure> {
    if response.status() != http::StatusCode::OK {
        return Err(Failure::Http(response.status().as_u16(), String::new()));
    }
    if response.headers().contains_key("grpc-status") {
        finish(Some(response.headers()))?;
    }
    Ok(response.into_body())
}

/// What the trailers say.
pub(super) fn finish(trailers: Option<&HeaderMap>) -> Result<(), Failure> {
    let Some(status) = trailers.and_then(|trailers| trailers.get("grpc-status")) else {
        return Err(Failure::Transport("an answer ended without its status".to_owned()));
    };
    if status == "0" {
        return Ok(());
    }
    let code = status.to_str().ok().and_then(|text| text.parse().ok());
    let message = trailers
        .and_then(|trailers| trailers.get("grpc-message"))
        .map(|text| {
            percent_encoding::percent_decode(text.as_bytes()).decode_utf8_lossy().into_owned()
        })
        .unwrap_or_default();
    Err(Failure::Status(code.unwrap_or(tonic::Code::Unknown as i32), message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailers_say_how_a_call_ended() {
        let trailers = |status: &'static str| {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(status));
            trailers.insert("grpc-message", HeaderValue::from_static("not%20there"));
            trailers
        };
        assert_eq!(finish(Some(&trailers("0"))), Ok(()));
        let missing = Failure::Status(5, "not there".to_owned());
        assert_eq!(finish(Some(&trailers("5"))), Err(missing));
        assert!(matches!(finish(Some(&trailers("x"))), Err(Failure::Status(2, _))));
        assert!(matches!(finish(None), Err(Failure::Transport(_))));
    }
}
