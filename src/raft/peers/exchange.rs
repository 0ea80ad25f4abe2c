//! The receiving end of a lane: takes messages in order, works on them at the same time, answers as they finish.
//!
//! The stream pulls, as a session of the public API does: when tonic asks for replies, new messages are begun, then what is finished is given out.
//!
//! * The future of a message is polled once before the next message's is made: so order is kept up to where work on a message first waits.
//! * Messages of at most [`IN_FLIGHT_BYTES_MAX`] are worked on; then none is read, and HTTP/2 flow control holds the sender back.
//! * When the sender ends its side, what was begun is answered, then the stream ends. When this node stops, or the sender is no member any more, no
//!   more is read, what was begun is answered, and the stream ends with the reason.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::vec;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

use super::batch::{Batch, FRAME_OVERHEAD_BYTES};
use super::refusal::Refusal;
use crate::cluster::NodeName;
use crate::proto::raft::{ExchangeRequest, ExchangeResponse, Frame};
use crate::raft::transport::{IN_FLIGHT_BYTES_MAX, Receiver};

/// The replies to one peer's messages, as a stream.
pub struct Exchange {
    from: NodeName,
    receiver: Arc<dyn Receiver>,
    messages: Streaming<ExchangeRequest>,
    /// What came with the last message from the wire and was not begun yet.
    arrived: vec::IntoIter<Frame>,
    working: FuturesUnordered<Working>,
    working_bytes: usize,
    /// Ends when the peer is to be served no longer.
    over: BoxFuture<'static, Refusal>,
    end: Option<Result<(), Status>>,
}

/// A message that is worked on.
struct Working {
    id: u64,
    bytes: usize,
    reply: BoxFuture<'static, Bytes>,
}

struct Finished {
    bytes: usize,
    frame: Frame,
}

impl Future for Working {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Finished> {
        let (id, bytes) = (self.id, self.bytes);
        self.reply
            .as_mut()
            .poll(context)
            .map(|message| Finished { bytes, frame: Frame { id, message } })
    }
}

impl Exchange {
    pub(super) fn new(
        from: NodeName,
        receiver: Arc<dyn Receiver>,
        messages: Streaming<ExchangeRequest>,
        over: BoxFuture<'static, Refusal>,
    ) -> Self {
        Self {
            from,
            receiver,
            messages,
            arrived: Vec::new().into_iter(),
            working: FuturesUnordered::new(),
            working_bytes: 0,
            over,
            end: None,
        }
    }

    /// The next message that may begin; pending while there is none, or too much is worked on.
    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Option<Frame>> {
        loop {
            if self.working_bytes >= IN_FLIGHT_BYTES_MAX {
                return Poll::Pending;
            }
            if let Some(frame) = self.arrived.next() {
                return Poll::Ready(Some(frame));
            }
            if self.end.is_some() {
                return Poll::Ready(None);
            }
            match self.messages.poll_next_unpin(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(request))) => self.arrived = request.frames.into_iter(),
                Poll::Ready(Some(Err(status))) => self.end = Some(Err(status)),
                Poll::Ready(None) => self.end = Some(Ok(())),
            }
        }
    }

    /// Begins with a message; the reply, if there is no waiting for it.
    fn begin(&mut self, frame: Frame, context: &mut Context<'_>) -> Option<Frame> {
        let bytes = frame.message.len() + FRAME_OVERHEAD_BYTES;
        let reply = self.receiver.receive(&self.from, frame.message);
        let mut working = Working { id: frame.id, bytes, reply };
        match Pin::new(&mut working).poll(context) {
            Poll::Ready(finished) => Some(finished.frame),
            Poll::Pending => {
                self.working_bytes += bytes;
                self.working.push(working);
                None
            }
        }
    }
}

impl Stream for Exchange {
    type Item = Result<ExchangeResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.end.is_none()
            && let Poll::Ready(refusal) = this.over.as_mut().poll(context)
        {
            this.end = Some(Err(refusal.into()));
            this.arrived = Vec::new().into_iter();
        }
        let mut replies = Batch::default();
        while replies.has_room()
            && let Poll::Ready(Some(frame)) = this.poll_message(context)
        {
            replies.extend(this.begin(frame, context));
        }
        while replies.has_room()
            && let Poll::Ready(Some(finished)) = this.working.poll_next_unpin(context)
        {
            this.working_bytes -= finished.bytes;
            replies.extend([finished.frame]);
        }
        if !replies.is_empty() {
            return Poll::Ready(Some(Ok(ExchangeResponse { frames: replies.into_frames() })));
        }
        if !this.working.is_empty() {
            return Poll::Pending;
        }
        match &mut this.end {
            None => Poll::Pending,
            Some(end) => Poll::Ready(std::mem::replace(end, Ok(())).err().map(Err)),
        }
    }
}
