//! The header `kvstore-epoch`: tells a client that routes by itself that its ring is old.
//!
//! A request may carry the epoch that the client knows. Where the ring has another one when the answer begins, the answer carries that,
//! in gRPC and REST alike, errors included; otherwise nothing is added. A header that is no number is none of this cluster's epochs.
//! Requests without the header cost one look into their headers.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tonic::server::NamedService;
use tower::Service;

use super::Api;

/// In requests: the epoch of the client's ring. In answers: that of the node's.
pub(super) const EPOCH_HEADER: HeaderName = HeaderName::from_static("kvstore-epoch");

/// What no ring has as its epoch.
const NO_EPOCH: u64 = 0;

/// Tells the epoch in an answer, to a client that has sent another one.
pub(super) struct Announcement {
    api: Api,
    known: u64,
}

impl Announcement {
    /// For a request with these headers; `None` when nothing is to be told.
    pub(super) fn asked(api: &Api, headers: &HeaderMap) -> Option<Self> {
        let known = headers.get(EPOCH_HEADER)?;
        let known = known.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(NO_EPOCH);
        Some(Self { api: api.clone(), known })
    }

    /// Adds the epoch where it is another one than the client's.
    pub(super) fn tell<B>(self, response: &mut Response<B>) {
        let epoch = self.api.0.cluster.epoch();
        if epoch != self.known {
            response.headers_mut().insert(EPOCH_HEADER, HeaderValue::from(epoch));
        }
    }
}

/// A gRPC service whose answers tell the epoch.
#[derive(Clone)]
pub(super) struct Announcing<S> {
    pub(super) inner: S,
    pub(super) api: Api,
}

impl<S: NamedService> NamedService for Announcing<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, Q, A> Service<Request<Q>> for Announcing<S>
where
    S: Service<Request<Q>, Response = Response<A>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<A>;
    type Error = Infallible;
    type Future = AnnouncingFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let announcement = Announcement::asked(&self.api, request.headers());
        AnnouncingFuture { inner: self.inner.call(request), announcement }
    }
}

/// See [`Announcing`].
pub(super) struct AnnouncingFuture<F> {
    inner: F,
    announcement: Option<Announcement>,
}

impl<F, A> Future for AnnouncingFuture<F>
where
    F: Future<Output = Result<Response<A>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(mut response) = ready!(Pin::new(&mut self.inner).poll(context));
        if let Some(announcement) = self.announcement.take() {
            announcement.tell(&mut response);
        }
        Poll::Ready(Ok(response))
    }
}
