//! A session: operations pipelined over one stream, answered as they finish.
//!
//! The stream pulls: when tonic asks for an answer, the session first gives out what is finished, then reads operations. A Get that waits
//! for nothing is answered on the spot, without a task, a queue or a timer. Writes are handed to their shards in the order
//! they are read.
//!
//! * At most [`Limits::session_operations`](crate::types::Limits) and `session_bytes` are in flight; then nothing is read until answers are
//!   out, and HTTP/2 flow control holds the client back.
//! * Operations on one key keep their order: writes by the shard's queue; a read of a key that has a write in flight waits, and
//!   everything after it with it. Operations on many keys wait for all writes in flight.
//! * When the client half-closes, what is in flight is answered, then the stream ends. When the node stops, no more is read, what is
//!   in flight is answered, and the stream ends with UNAVAILABLE.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::call::Call;
use super::kv::GetNow;
use super::{Api, status};
use crate::error::{Error, Reason, Result};
use crate::proto::v1::session_request::Operation;
use crate::proto::v1::session_response;
use crate::proto::v1::{GetRequest, SessionRequest, SessionResponse};
use crate::telemetry::Op;

/// What an operation in flight costs beside its message: future, queue slot, answer.
const OPERATION_OVERHEAD_BYTES: usize = 512;

/// Answers given out before the task lets others run.
const ANSWERS_IN_A_ROW: u32 = 256;

type Answer = Result<session_response::Result>;

/// An operation in flight comes back with its id, its size and the keys that it has written.
struct Finished {
    id: u64,
    bytes: usize,
    written: Vec<u64>,
    answer: Answer,
}

/// The answers to one client's operations, as a stream.
pub struct Session {
    api: Api,
    requests: Streaming<SessionRequest>,
    /// Read but held back until writes in flight are done.
    held: Option<SessionRequest>,
    in_flight: FuturesUnordered<Pin<Box<dyn Future<Output = Finished> + Send>>>,
    bytes_in_flight: usize,
    /// Hashes of keys with writes in flight, with their number.
    writing: HashMap<u64, u32>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    end: Option<End>,
    in_a_row: u32,
}

/// Why no more operations are read.
enum End {
    HalfClosed,
    Failed(Status),
}

impl Session {
    pub(super) fn new(api: Api, requests: Streaming<SessionRequest>) -> Self {
        let stopping = Box::pin(api.0.stopping.clone().cancelled_owned());
        Self {
            api,
            requests,
            held: None,
            in_flight: FuturesUnordered::new(),
            bytes_in_flight: 0,
            writing: HashMap::new(),
            stopping,
            end: None,
            in_a_row: 0,
        }
    }

    fn window_is_open(&self) -> bool {
        let limits = self.api.limits();
        self.in_flight.len() < limits.session_operations
            && self.bytes_in_flight < limits.session_bytes
    }

    /// Whether the node stops from now on; asks to be woken when it does. Only before the session waits or lets others run, which
    /// it does at least once in [`ANSWERS_IN_A_ROW`]: it takes a lock.
    fn stops_now(&mut self, context: &mut Context<'_>) -> bool {
        if self.end.is_some() || self.stopping.as_mut().poll(context).is_pending() {
            return false;
        }
        let error = Error::new(
            Reason::NotServing,
            "the node is stopping; operations without an answer were not started",
        );
        self.end = Some(End::Failed(status::to_tonic(&error)));
        true
    }

    /// The next operation that may start; pending while there is none, or the window is full.
    fn poll_operation(&mut self, context: &mut Context<'_>) -> Poll<Option<SessionRequest>> {
        if self.end.is_some() {
            return Poll::Ready(None);
        }
        if !self.window_is_open() {
            return Poll::Pending;
        }
        if let Some(held) = self.held.take() {
            return self.release(held);
        }
        match self.requests.poll_next_unpin(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(request))) => self.release(request),
            Poll::Ready(Some(Err(error))) => {
                let limit = self.api.limits().request_bytes;
                self.end = Some(End::Failed(status::of_transport(error, limit)));
                Poll::Ready(None)
            }
            Poll::Ready(None) => {
                self.end = Some(End::HalfClosed);
                Poll::Ready(None)
            }
        }
    }

    /// Lets `request` start unless it would overtake a write in flight.
    fn release(&mut self, request: SessionRequest) -> Poll<Option<SessionRequest>> {
        if self.must_wait(&request) {
            self.held = Some(request);
            return Poll::Pending;
        }
        Poll::Ready(Some(request))
    }

    fn must_wait(&self, request: &SessionRequest) -> bool {
        if self.writing.is_empty() {
            return false;
        }
        match &request.operation {
            Some(Operation::Get(get)) => self.writing.contains_key(&hash(&get.key)),
            Some(Operation::BatchGet(_) | Operation::Range(_)) => true,
            Some(Operation::Put(_) | Operation::Delete(_) | Operation::BatchPut(_)) | None => false,
        }
    }

    /// Starts an operation; its answer, where that needs no waiting.
    fn start(&mut self, request: SessionRequest) -> Option<SessionResponse> {
        let SessionRequest { id, operation } = request;
        let operation = match operation {
            // The fast way: nothing is measured, counted or copied for an answer that is at hand.
            Some(Operation::Get(get)) => return self.start_get(id, get),
            Some(operation) => operation,
            None => {
                let error = Error::new(
                    Reason::InvalidRequest,
                    "the operation is missing; set one of get, put, delete, batch_put, batch_get, range",
                );
                return Some(respond(id, Err(error)));
            }
        };
        let bytes = operation.encoded_len() + OPERATION_OVERHEAD_BYTES;
        let api = self.api.clone();
        let call = Call::within(None, api.limits());
        match operation {
            Operation::Get(get) => return self.start_get(id, get),
            Operation::Put(put) => {
                let written = vec![hash(&put.key)];
                let answer = api.put(put, call);
                self.wait_for(id, bytes, written, async {
                    answer.await.map(session_response::Result::Put)
                });
            }
            Operation::Delete(delete) => {
                let written = vec![hash(&delete.key)];
                let answer = api.delete(delete, call);
                self.wait_for(id, bytes, written, async {
                    answer.await.map(session_response::Result::Delete)
                });
            }
            Operation::BatchPut(batch) => {
                let written = batch.entries.keys().map(|key| hash(key)).collect();
                let answer = api.batch_put(batch, call);
                self.wait_for(id, bytes, written, async {
                    answer.await.map(session_response::Result::BatchPut)
                });
            }
            Operation::BatchGet(batch) => self.wait_for(id, bytes, Vec::new(), async move {
                api.batch_get(batch, call).await.map(session_response::Result::BatchGet)
            }),
            Operation::Range(range) => self.wait_for(id, bytes, Vec::new(), async move {
                api.range(range, call).await.map(session_response::Result::Range)
            }),
        }
        None
    }

    /// Reads one key; its answer, unless the read has to wait.
    fn start_get(&mut self, id: u64, get: GetRequest) -> Option<SessionResponse> {
        let started = Instant::now();
        let answer = match self.api.get_now(get) {
            Ok(GetNow::Done(response)) => Ok(session_response::Result::Get(response)),
            Err(error) => Err(error),
            Ok(GetNow::Wait(key, freshness)) => {
                let api = self.api.clone();
                let call = Call::within(None, api.limits());
                let bytes = key.as_bytes().len() + OPERATION_OVERHEAD_BYTES;
                self.wait_for(id, bytes, Vec::new(), async move {
                    let answer = api.get_fresh(key, freshness, call.deadline).await;
                    api.record(Op::Get, started, answer.as_ref().err());
                    answer.map(session_response::Result::Get)
                });
                return None;
            }
        };
        self.api.record(Op::Get, started, answer.as_ref().err());
        Some(respond(id, answer))
    }

    fn wait_for(
        &mut self,
        id: u64,
        bytes: usize,
        written: Vec<u64>,
        answer: impl Future<Output = Answer> + Send + 'static,
    ) {
        self.bytes_in_flight += bytes;
        for &key in &written {
            *self.writing.entry(key).or_default() += 1;
        }
        self.in_flight
            .push(Box::pin(async move { Finished { id, bytes, written, answer: answer.await } }));
    }

    fn finish(&mut self, finished: Finished) -> SessionResponse {
        self.bytes_in_flight -= finished.bytes;
        for key in finished.written {
            if let Some(count) = self.writing.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.writing.remove(&key);
                }
            }
        }
        respond(finished.id, finished.answer)
    }
}

impl Stream for Session {
    type Item = Result<SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let session = &mut *self;
        session.in_a_row += 1;
        if session.in_a_row > ANSWERS_IN_A_ROW {
            session.stops_now(context);
            session.in_a_row = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if !session.in_flight.is_empty()
                && let Poll::Ready(Some(finished)) = session.in_flight.poll_next_unpin(context)
            {
                return Poll::Ready(Some(Ok(session.finish(finished))));
            }
            match session.poll_operation(context) {
                Poll::Ready(Some(request)) => {
                    if let Some(answer) = session.start(request) {
                        return Poll::Ready(Some(Ok(answer)));
                    }
                }
                Poll::Ready(None) if session.in_flight.is_empty() => {
                    return Poll::Ready(match session.end.replace(End::HalfClosed) {
                        Some(End::Failed(status)) => Some(Err(status)),
                        Some(End::HalfClosed) | None => None,
                    });
                }
                Poll::Ready(None) | Poll::Pending => {
                    if session.stops_now(context) {
                        continue;
                    }
                    session.in_a_row = 0;
                    return Poll::Pending;
                }
            }
        }
    }
}

fn respond(id: u64, answer: Answer) -> SessionResponse {
    let result =
        answer.unwrap_or_else(|error| session_response::Result::Status(status::to_rpc(&error)));
    SessionResponse { id, result: Some(result) }
}

fn hash(key: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key.as_bytes())
}
