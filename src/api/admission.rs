//! Admission: at most so many requests, and so many bytes of them, are worked on at a time; more are refused with OVERLOADED before
//! anything is read of them.
//!
//! One layer in front of everything on both ports, so that gRPC, gRPC-Web and REST count alike. Streams that live long (`Session`) are
//! bounded by their own window and do not count; neither do peers, whom callers must not crowd out (`raft/peers` bounds them), nor paths outside the API, so
//! that health is told in any case.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{rest, status};
use crate::error::Error;

/// When to come back: about the time in which a full server has answered what it works on.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Requests that are worked on, and their bytes.
#[derive(Debug, Default)]
pub struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    requests_max: usize,
    bytes_max: usize,
}

impl InFlight {
    /// Lets `requests_max` requests with together `bytes_max` bytes in.
    pub fn new(requests_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { requests_max, bytes_max, ..Self::default() })
    }

    /// Requests that are worked on.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// Bytes of the requests that are worked on, as they came over the wire.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn admit(self: &Arc<Self>) -> Result<Arc<Admitted>, Error> {
        let before = self.requests.fetch_add(1, Ordering::Relaxed);
        let admitted =
            Arc::new(Admitted { in_flight: Arc::clone(self), bytes: AtomicUsize::new(0) });
        if before < self.requests_max {
            return Ok(admitted);
        }
        let max = self.requests_max;
        Err(overloaded(
            "kvstore.limits.in-flight-requests",
            format!("{max} requests are being worked on"),
            max,
            "requests",
        ))
    }
}

fn overloaded(limit: &str, what: String, max: usize, unit: &str) -> Error {
    Error::overloaded(format!("{what}; it was not applied ({limit})"), RETRY_AFTER)
        .with("limit", limit)
        .with("max", max)
        .with("unit", unit)
}

/// One request that was let in; leaves when dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    in_flight: Arc<InFlight>,
    bytes: AtomicUsize,
}

impl Admitted {
    fn received(&self, bytes: usize) -> Result<(), Error> {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let before = self.in_flight.bytes.fetch_add(bytes, Ordering::Relaxed);
        let max = self.in_flight.bytes_max;
        if before + bytes <= max {
            return Ok(());
        }
        let what =
            format!("requests of {before} bytes are being worked on, at most {max} are allowed");
        Err(overloaded("kvstore.limits.in-flight-size", what, max, "bytes"))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.in_flight.requests.fetch_sub(1, Ordering::Relaxed);
        self.in_flight.bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Puts admission in front of a service.
#[derive(Clone)]
pub struct AdmissionLayer(pub Arc<InFlight>);

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;

    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, in_flight: Arc::clone(&self.0) }
    }
}

/// See [`AdmissionLayer`].
#[derive(Clone)]
pub struct Admission<S> {
    inner: S,
    in_flight: Arc<InFlight>,
}

impl<S, B> Service<Request<B>> for Admission<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !is_counted(request.uri().path()) {
            return Answer {
                inner: Some(self.inner.call(request.map(Body::new))),
                refused: None,
                admitted: None,
            };
        }
        match self.in_flight.admit() {
            Ok(admitted) => {
                let counted = Arc::clone(&admitted);
                let request = request.map(|inner| Body::new(Counted { inner, admitted: counted }));
                Answer {
                    inner: Some(self.inner.call(request)),
                    refused: None,
                    admitted: Some(admitted),
                }
            }
            Err(error) => {
                let refused = Some(refused(&error, request.headers()));
                Answer { inner: None, refused, admitted: None }
            }
        }
    }
}

fn is_counted(path: &str) -> bool {
    (path.starts_with("/kvstore.v1.KvService/") && path != "/kvstore.v1.KvService/Session")
        || path.starts_with("/api/")
}

/// The refusal in the language of the request.
fn refused(error: &Error, headers: &HeaderMap) -> Response<Body> {
    let content_type = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if content_type.starts_with(b"application/grpc") {
        status::to_tonic(error).into_http()
    } else {
        rest::error_answer(error).map(Body::new)
    }
}

pin_project! {
    /// The answer to a request, which leaves when its head is there: what follows is bounded by flow control.
    #[derive(Debug)]
    pub struct Answer<F> {
        #[pin]
        inner: Option<F>,
        refused: Option<Response<Body>>,
        admitted: Option<Arc<Admitted>>,
    }
}

impl<F, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = match this.inner.as_pin_mut() {
            Some(inner) => ready!(inner.poll(context)),
            None => Ok(this.refused.take().expect("a future is not polled after its end")),
        };
        *this.admitted = None;
        Poll::Ready(answer)
    }
}

/// A body whose bytes are counted as they arrive.
struct Counted<B> {
    inner: B,
    admitted: Arc<Admitted>,
}

impl<B> HttpBody for Counted<B>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: Into<tonic::codegen::StdError>,
{
    type Data = Bytes;
    type Error = tonic::codegen::StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Some(frame) = ready!(Pin::new(&mut self.inner).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame.map_err(Into::into)?;
        if let Some(data) = frame.data_ref()
            && let Err(error) = self.admitted.received(data.len())
        {
            return Poll::Ready(Some(Err(
                Refusal { status: status::to_tonic(&error), error }.into()
            )));
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Ends a body; tonic finds its status, REST its error.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
struct Refusal {
    error: Error,
    #[source]
    status: tonic::Status,
}

/// Why a body ended with `error`, if it did so here.
pub(super) fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(refusal) = error.downcast_ref::<Refusal>() {
            return Some(refusal.error.clone());
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    fn in_flight() -> Arc<InFlight> {
        InFlight::new(1, 4)
    }

    #[test]
    fn more_requests_than_allowed_are_refused_until_one_leaves() {
        let in_flight = in_flight();
        let first = in_flight.admit().expect("nobody is there");
        let error = in_flight.admit().expect_err("full");
        assert_eq!(error.reason(), crate::error::Reason::Overloaded);
        assert_eq!(in_flight.requests(), 1);
        drop(first);
        assert!(in_flight.admit().is_ok());
    }

    #[tokio::test]
    async fn more_bytes_than_allowed_end_the_body_with_the_reason() {
        let in_flight = in_flight();
        let admitted = in_flight.admit().expect("nobody is there");
        let body = Counted { inner: Full::new(Bytes::from_static(b"12345")), admitted };
        let error = axum::Error::new(body.collect().await.expect_err("too many bytes"));
        let refusal = refusal(&error).expect("it was refused here");
        assert!(
            refusal.metadata().contains(&("limit", "kvstore.limits.in-flight-size".to_owned()))
        );
        assert_eq!((in_flight.requests(), in_flight.bytes()), (0, 0));
    }

    #[test]
    fn streams_with_a_window_peers_and_paths_outside_the_api_do_not_count() {
        assert!(is_counted("/kvstore.v1.KvService/Get") && is_counted("/api/v1/kv/a"));
        assert!(!is_counted("/kvstore.v1.KvService/Session") && !is_counted("/actuator/health"));
        assert!(!is_counted("/kvstore.raft.v1.RaftService/Exchange"));
    }
}
