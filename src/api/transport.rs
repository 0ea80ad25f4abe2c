//! The gRPC services as tonic routes them: limits on messages, compression, and this API's reasons on what tonic refuses by itself.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Response;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::CompressionEncoding;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use super::epoch::Announcing;
use super::{AdminApi, Api, status};
use crate::proto::DESCRIPTORS;
use crate::proto::admin::admin_service_server::AdminServiceServer;
use crate::proto::v1::kv_service_server::KvServiceServer;

/// Bytes that the encoding of a page may add to its keys and values: tags, lengths, versions of its items.
const RESPONSE_MARGIN_BYTES: usize = 4 << 20;

/// The name of the public service, for health checks.
pub const SERVICE_NAME: &str = KvServiceServer::<Api>::NAME;

/// Sets what `grpc.health.v1` answers.
pub type Reporter = tonic_health::server::HealthReporter;

/// All gRPC services, and the handle for their health, which says NOT_SERVING until told otherwise.
pub async fn grpc_routes(api: &Api, admin: AdminApi) -> (Routes, Reporter) {
    let max = api.limits().request_bytes;
    let kv = KvServiceServer::new(api.clone())
        .max_decoding_message_size(max)
        .max_encoding_message_size(api.limits().page_bytes + RESPONSE_MARGIN_BYTES)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let admin = AdminServiceServer::new(admin)
        .max_decoding_message_size(max)
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd);
    let (reporter, health) = tonic_health::server::health_reporter();
    for service in ["", SERVICE_NAME] {
        reporter.set_service_status(service, tonic_health::ServingStatus::NotServing).await;
    }
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let mut routes = Routes::builder();
    routes
        .add_service(Announcing { inner: Reasoned { inner: kv, max }, api: api.clone() })
        .add_service(Reasoned { inner: admin, max })
        .add_service(health);
    routes.add_service(reflection().build_v1().expect("the embedded descriptors are whole"));
    routes.add_service(reflection().build_v1alpha().expect("the embedded descriptors are whole"));
    (routes.routes(), reporter)
}

/// A gRPC service whose every refusal has a reason: tonic's own, before a handler runs, have none.
#[derive(Clone)]
struct Reasoned<S> {
    inner: S,
    /// Bytes of the largest message that is taken.
    max: usize,
}

impl<S: NamedService> NamedService for Reasoned<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, R> Service<R> for Reasoned<S>
where
    S: Service<R, Response = Response<Body>, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ReasonedFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        ReasonedFuture { inner: self.inner.call(request), max: self.max }
    }
}

/// See [`Reasoned`].
struct ReasonedFuture<F> {
    inner: F,
    max: usize,
}

impl<F> Future for ReasonedFuture<F>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Unpin,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(response) = ready!(Pin::new(&mut self.inner).poll(context));
        Poll::Ready(Ok(with_reason(response, self.max)))
    }
}

/// Only an answer that is refused at once has its status in the head; what the API refused has details there.
fn with_reason(response: Response<Body>, max: usize) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    match Status::from_header_map(response.headers()) {
        Some(status) if status.details().is_empty() => {
            status::of_transport(status, max).into_http()
        }
        _ => response,
    }
}
