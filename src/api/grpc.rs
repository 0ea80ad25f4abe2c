//! The public service on tonic: each method decodes nothing and decides nothing, it calls [`Api`].

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::call::Call;
use super::session::Session;
use super::{Api, status};
use crate::proto::v1::kv_service_server::KvService;
use crate::proto::v1::{
    BatchGetRequest, BatchGetResponse, BatchPutRequest, BatchPutResponse, DeleteRequest,
    DeleteResponse, GetRequest, GetResponse, GetRingRequest, GetRingResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, ScanRequest, ScanResponse, SessionRequest,
    StatsRequest, StatsResponse,
};

impl Api {
    fn call<T>(&self, request: Request<T>) -> (T, Call) {
        let (metadata, _, message) = request.into_parts();
        (message, Call::new(&metadata.into_headers(), &self.0.limits))
    }
}

fn answer<T>(result: crate::error::Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status::to_tonic(&error))
}

#[tonic::async_trait]
impl KvService for Api {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (message, call) = self.call(request);
        answer(Api::put(self, message, call).await)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        let (message, call) = self.call(request);
        answer(Api::get(self, message, call).await)
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteResponse>, Status> {
        let (message, call) = self.call(request);
        answer(Api::delete(self, message, call).await)
    }

    async fn batch_put(
        &self,
        request: Request<BatchPutRequest>,
    ) -> Result<Response<BatchPutResponse>, Status> {
        let (message, call) = self.call(request);
        answer(Api::batch_put(self, message, call).await)
    }

    async fn batch_get(
        &self,
        request: Request<BatchGetRequest>,
    ) -> Result<Response<BatchGetResponse>, Status> {
        let (message, call) = self.call(request);
        answer(Api::batch_get(self, message, call).await)
    }

    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let (message, call) = self.call(request);
        answer(Api::range(self, message, call).await)
    }

    type ScanStream = Pin<Box<dyn Stream<Item = Result<ScanResponse, Status>> + Send>>;

    async fn scan(
        &self,
        request: Request<ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let (message, call) = self.call(request);
        answer(Api::scan(self, message, call).map(|items| {
            let items = items.map(|item| item.map_err(|error| status::to_tonic(&error)));
            Box::pin(items) as Self::ScanStream
        }))
    }

    type SessionStream = Session;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Session>, Status> {
        answer(self.check_serving().map(|()| Session::new(self.clone(), request.into_inner())))
    }

    async fn stats(&self, _: Request<StatsRequest>) -> Result<Response<StatsResponse>, Status> {
        answer(Api::stats(self).await)
    }

    async fn get_ring(
        &self,
        _: Request<GetRingRequest>,
    ) -> Result<Response<GetRingResponse>, Status> {
        answer(self.ring())
    }
}
