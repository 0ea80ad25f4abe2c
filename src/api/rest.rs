//! REST: collects a request's body, routes its path, answers in JSON.
//!
//! The paths and messages are generated from the annotations in `proto/` ([`Transcoder`]); what the generator leaves open is
//! decided here: bodies are limited before they are held and after they are decompressed, a wrong method is 405 with `Allow`, HEAD
//! is GET without its body, and every refusal carries a reason (`diagnose`).

use std::pin::Pin;
use std::sync::Arc;

pub(super) use axum::body::Body;
use axum::extract::Request;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use rest_over_grpc::handling::{Context, ResponseStream, Status};
use rest_over_grpc::transcoding::{Transcode as _, TranscodeResponse};

use super::call::Call;
use super::epoch::Announcement;
use super::paths::{self, Target};
use super::{Api, body, diagnose, status};
use crate::error::{Error, Kind, Reason, Result};
use crate::proto::rest::Transcoder;
use crate::proto::v1::{
    BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse, DeleteRequest,
    DeleteResponse, GetRequest, GetResponse, GetRingRequest, GetRingResponse, KvService,
    PutRequest, PutResponse, RangeRequest, RangeResponse, ScanRequest, ScanResponse, StatsRequest,
    StatsResponse,
};

/// The REST side of the API. Cheap to clone.
#[derive(Clone)]
pub(super) struct Rest {
    api: Api,
    transcoder: Arc<Transcoder<Handlers>>,
}

impl Rest {
    pub(super) fn new(api: Api) -> Self {
        let transcoder = Arc::new(Transcoder::new(Handlers(api.clone())));
        Self { api, transcoder }
    }

    /// Serves whatever path no other route took.
    pub(super) async fn serve(self, request: Request) -> Response<Body> {
        let head = request.method() == Method::HEAD;
        let announcement = Announcement::asked(&self.api, request.headers());
        let mut response = self.answer(request).await.unwrap_or_else(|error| error_answer(&error));
        if let Some(announcement) = announcement {
            announcement.tell(&mut response);
        }
        if head { without_body(response) } else { response }
    }

    async fn answer(&self, request: Request) -> Result<Response<Body>> {
        let (parts, content) = request.into_parts();
        let method = if parts.method == Method::HEAD { Method::GET } else { parts.method };
        let path = parts.uri.path();
        let query = parts.uri.query().unwrap_or_default();
        let target = match Target::parse(path) {
            Ok(Target::Unknown) => {
                let message = format!("there is no path {path:?}; /openapi.json lists all");
                Err(Error::new(Reason::UnknownPath, message))
            }
            parsed => parsed,
        };
        let target = match target {
            Ok(target) => target,
            Err(error) => {
                body::refuse(&parts.headers, content).await;
                return Err(error);
            }
        };
        let content =
            body::collect(&parts.headers, content, self.api.limits().request_bytes).await?;
        let served = match target {
            Target::Document(key) => {
                self.api.document(&method, key, query, &parts.headers, content).await.transpose()?
            }
            Target::Transcoded(path) => {
                self.transcode(&method, &path, query, parts.headers, &content).await?
            }
            Target::Unknown => None,
        };
        Ok(served.unwrap_or_else(|| not_allowed(path)))
    }

    /// Serves a path of the annotations; `None` when it does not take the method.
    async fn transcode(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        headers: HeaderMap,
        content: &[u8],
    ) -> Result<Option<Response<Body>>> {
        diagnose::before(method, path, content, self.api.limits())?;
        let target = if query.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", paths::full_consistency(query))
        };
        let response =
            self.transcoder.try_transcode(method.as_str(), &target, headers, content).await;
        Ok(match response {
            None => None,
            Some(TranscodeResponse::Unary(unary)) => {
                let status = unary.status();
                if status.is_success() {
                    return Ok(Some(json_answer(status, unary.into_body())));
                }
                match diagnose::after(unary.body(), path, query, content) {
                    Some(error) => return Err(error),
                    None => Some(json_answer(status, unary.into_body())),
                }
            }
            Some(TranscodeResponse::Streaming(streaming)) => {
                let (content_type, _, frames) = streaming.into_parts();
                // A failure in the middle cuts the connection, so that a broken answer never looks complete.
                let frames =
                    frames.map_err(|status| std::io::Error::other(status.message().to_owned()));
                let mut response = Response::new(Body::from_stream(frames));
                response.headers_mut().insert(header::CONTENT_TYPE, content_type);
                Some(response)
            }
        })
    }
}

/// An answer in JSON.
pub(super) fn json_answer(status: StatusCode, body: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error as the body of an answer.
pub(super) fn error_answer(error: &Error) -> Response<Body> {
    let (_, status) = status::codes(error.kind());
    let mut response = json_answer(status, status::to_json(error).into_bytes());
    let retry =
        error.retry_after().map(|delay| delay.as_secs() + u64::from(delay.subsec_nanos() > 0));
    if let Some(seconds) = retry.or((error.kind() == Kind::Unavailable).then_some(1)) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

fn not_allowed(path: &str) -> Response<Body> {
    let allowed = paths::allowed_methods(path);
    let error = Error::new(
        Reason::MethodNotAllowed,
        format!("this path does not take this method; it takes {allowed}"),
    );
    let mut response = error_answer(&error);
    if let Ok(allowed) = HeaderValue::from_str(&allowed) {
        response.headers_mut().insert(header::ALLOW, allowed);
    }
    response
}

/// What HEAD answers: all of it but the body, with the body's length.
fn without_body(response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = http_body::Body::size_hint(&body).exact() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Response::from_parts(parts, Body::empty())
}

/// The operations as the generated router calls them.
struct Handlers(Api);

impl Handlers {
    fn call(&self, context: &mut Context) -> Call {
        Call::new(&context.take_request_headers(), self.0.limits())
    }
}

fn refuse(error: Error) -> Status {
    status::to_rest(&error)
}

impl KvService for Handlers {
    async fn put(&self, request: PutRequest, context: &mut Context) -> Result<PutResponse, Status> {
        let call = self.call(context);
        self.0.put(request, call).await.map_err(refuse)
    }

    async fn get(&self, request: GetRequest, context: &mut Context) -> Result<GetResponse, Status> {
        let call = self.call(context);
        self.0.get(request, call).await.map_err(refuse)
    }

    async fn delete(
        &self,
        request: DeleteRequest,
        context: &mut Context,
    ) -> Result<DeleteResponse, Status> {
        let call = self.call(context);
        self.0.delete(request, call).await.map_err(refuse)
    }

    async fn batch_put(
        &self,
        request: BatchPutRequest,
        context: &mut Context,
    ) -> Result<BatchPutResponse, Status> {
        let call = self.call(context);
        self.0.batch_put(request, call).await.map_err(refuse)
    }

    async fn batch_get(
        &self,
        request: BatchGetRequest,
        context: &mut Context,
    ) -> Result<BatchGetResponse, Status> {
        let call = self.call(context);
        self.0.batch_get(request, call).await.map_err(refuse)
    }

    async fn range(
        &self,
        request: RangeRequest,
        context: &mut Context,
    ) -> Result<RangeResponse, Status> {
        let call = self.call(context);
        self.0.range(request, call).await.map_err(refuse)
    }

    async fn scan(
        &self,
        request: ScanRequest,
        context: &mut Context,
    ) -> Result<ResponseStream<ScanResponse>, Status> {
        let call = self.call(context);
        let items = self.0.scan(request, call).map_err(refuse)?;
        let items: Pin<Box<dyn Stream<Item = Result<ScanResponse, Status>> + Send>> =
            Box::pin(items.map(|item| item.map_err(refuse)));
        Ok(items)
    }

    async fn stats(&self, _: StatsRequest, _: &mut Context) -> Result<StatsResponse, Status> {
        self.0.stats().await.map_err(refuse)
    }

    async fn get_ring(
        &self,
        _: GetRingRequest,
        _: &mut Context,
    ) -> Result<GetRingResponse, Status> {
        self.0.ring().map_err(refuse)
    }
}
