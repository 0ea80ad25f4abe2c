//! The sending end of a lane to one node: calls in order, one stream that carries them, their replies by number.
//!
//! ```text
//! call -> waiting -> (a batch, when the stream takes one) -> in flight -> reply
//!            |                                                  |
//!            +- not written: Unreachable                        +- stream broke, or late: Lost
//! ```
//!
//! * A call has its place from the moment it is made. Its timeout runs from then on, too.
//! * Messages of at most [`IN_FLIGHT_BYTES_MAX`] are in flight; above that calls wait, but no more than [`WAITING_BYTES_MAX`] of them.
//! * The stream is made when something waits. While it cannot be made, calls fail at once, and tries are spaced out: nobody spins.
//! * A stream on which nothing came back for [`STALL`] although something is in flight, and a call is late, is given up.
//! * A stream older than the callee wants ends without a loss: no more is written, replies are awaited, then a new one is made.
//!
//! Lock: `state`, a leaf; never held across an await.

use std::collections::{HashMap, VecDeque};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use super::batch::{Batch, FRAME_OVERHEAD_BYTES};
use super::dial::{DialError, dial, within};
use super::local::Local;
use super::refusal::describe;
use super::transport::Sent;
use crate::cluster::NodeName;
use crate::net::Endpoint;
use crate::proto::raft::{ExchangeRequest, ExchangeResponse, Frame};
use crate::raft::transport::{Failure, IN_FLIGHT_BYTES_MAX, Lane};

/// Silence of a stream with calls in flight after which a late call ends it.
const STALL: Duration = Duration::from_secs(2);

/// Most bytes of calls that wait to be written; above that they fail at once. Calls in flight are not among them.
const WAITING_BYTES_MAX: usize = 2 * IN_FLIGHT_BYTES_MAX;

/// Wait after the first failure to make a stream; it doubles.
const WAIT_FIRST: Duration = Duration::from_millis(50);

/// Longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// A lane to one node. Dropped, it ends: calls in flight are lost.
pub(super) struct Link {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    local: Arc<Local>,
    node: NodeName,
    lane: Lane,
    sent: Arc<Sent>,
    state: Mutex<State>,
    /// Something waits.
    wanted: Notify,
    /// The open stream has stalled.
    stalled: Notify,
}

struct State {
    phase: Phase,
    /// Calls that were not written, in order.
    waiting: VecDeque<Call>,
    waiting_bytes: usize,
    /// Calls that were written, by number.
    in_flight: HashMap<u64, (Reply, usize)>,
    in_flight_bytes: usize,
    next_id: u64,
    /// Streams that were made, which is the number of the newest.
    streams: u64,
    /// Since when nothing came back although something is in flight.
    silent_since: Instant,
    /// Of the stream, when it waits for something to write.
    writer: Option<Waker>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// No stream, and none wanted.
    Idle,
    /// One is being made.
    Connecting,
    /// The newest is open.
    Open,
    /// The newest takes no more; replies are awaited.
    Draining,
    /// It could not be made: why. Soon it is tried again.
    Down(String),
    /// The end.
    Closed,
}

type Reply = oneshot::Sender<Result<Bytes, Failure>>;

struct Call {
    id: u64,
    message: Bytes,
    reply: Reply,
}

impl Call {
    fn bytes(&self) -> usize {
        self.message.len() + FRAME_OVERHEAD_BYTES
    }
}

impl Link {
    /// The lane `lane` to `node`; its task runs on `runtime`, what it writes is counted in `sent`.
    pub(super) fn new(
        local: Arc<Local>,
        node: NodeName,
        lane: Lane,
        sent: Arc<Sent>,
        runtime: &Handle,
    ) -> Self {
        let state = State {
            phase: Phase::Idle,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            next_id: 0,
            streams: 0,
            silent_since: Instant::now(),
            writer: None,
        };
        let shared = Arc::new(Shared {
            local,
            node,
            lane,
            sent,
            state: Mutex::new(state),
            wanted: Notify::new(),
            stalled: Notify::new(),
        });
        let task = runtime.spawn(run(Arc::clone(&shared))).abort_handle();
        Self { shared, task }
    }

    /// Whether its stream is open.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Open | Phase::Draining)
    }

    /// Whether the last attempt to open a stream has failed.
    pub(super) fn is_down(&self) -> bool {
        matches!(self.shared.state.lock().phase, Phase::Down(_))
    }

    /// See [`Transport::call`](crate::raft::transport::Transport::call).
    pub(super) fn call(
        &self,
        message: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, Failure>> {
        let deadline = Instant::now() + timeout;
        let (waiter, reply) = match self.shared.enqueue(message) {
            Ok(queued) => queued,
            Err(failure) => return Box::pin(std::future::ready(Err(failure))),
        };
        Box::pin(async move {
            match timeout_at(deadline, reply).await {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(Failure::Lost(waiter.shared.sentence("the lane was closed"))),
                Err(_) => Err(waiter.late(timeout)),
            }
        })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.end(Phase::Closed, &self.shared.sentence("the node stops"));
    }
}

/// Somebody who waits for a reply. Dropped, the call is taken back, if it was not written.
struct Waiter {
    shared: Arc<Shared>,
    id: u64,
}

impl Waiter {
    /// The time of the call is over: what that means.
    fn late(&self, timeout: Duration) -> Failure {
        let mut state = self.shared.state.lock();
        if state.take_back(self.id) {
            let why = format!("it took no message within {timeout:?}");
            return Failure::Unreachable(self.shared.sentence(&why));
        }
        if !state.in_flight.is_empty() && state.silent_since.elapsed() >= STALL {
            self.shared.stalled.notify_one();
        }
        Failure::Lost(self.shared.sentence(&format!("no reply within {timeout:?}")))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.shared.state.lock().take_back(self.id);
    }
}

impl Shared {
    fn sentence(&self, why: &str) -> String {
        format!("node {}: {why}", self.node)
    }

    fn enqueue(
        self: &Arc<Self>,
        message: Bytes,
    ) -> Result<(Waiter, oneshot::Receiver<Result<Bytes, Failure>>), Failure> {
        if message.len() > IN_FLIGHT_BYTES_MAX {
            let why = format!(
                "a message has {} bytes, at most {IN_FLIGHT_BYTES_MAX} are taken",
                message.len()
            );
            return Err(Failure::Unreachable(self.sentence(&why)));
        }
        let mut state = self.state.lock();
        match &state.phase {
            Phase::Down(why) => return Err(Failure::Unreachable(why.clone())),
            Phase::Closed => {
                return Err(Failure::Unreachable(self.sentence("the lane is closed")));
            }
            Phase::Idle | Phase::Connecting | Phase::Open | Phase::Draining => {}
        }
        if state.waiting_bytes >= WAITING_BYTES_MAX {
            let why = format!("{} bytes wait for it already", state.waiting_bytes);
            return Err(Failure::Unreachable(self.sentence(&why)));
        }
        let id = state.next_id;
        state.next_id += 1;
        let (sender, receiver) = oneshot::channel();
        let call = Call { id, message, reply: sender };
        state.waiting_bytes += call.bytes();
        state.waiting.push_back(call);
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
        drop(state);
        self.wanted.notify_one();
        Ok((Waiter { shared: Arc::clone(self), id }, receiver))
    }

    /// Whether a stream has to be made now.
    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        let wanted = !state.waiting.is_empty();
        state.phase = if wanted { Phase::Connecting } else { Phase::Idle };
        wanted
    }

    /// The stream is there: what waits may be written.
    fn open(&self) {
        let mut state = self.state.lock();
        state.phase = Phase::Open;
        if let Some(writer) = state.writer.take() {
            writer.wake();
        }
    }

    /// Replies came.
    fn complete(&self, frames: Vec<Frame>) {
        let mut state = self.state.lock();
        state.silent_since = Instant::now();
        for frame in frames {
            if let Some((reply, bytes)) = state.in_flight.remove(&frame.id) {
                state.in_flight_bytes -= bytes;
                // A caller that has gone does not care.
                let _ = reply.send(Ok(frame.message));
            }
        }
        if !state.waiting.is_empty()
            && let Some(writer) = state.writer.take()
        {
            writer.wake();
        }
    }

    /// There is no stream any more: nobody knows about what was written, what was not written was not delivered.
    fn end(&self, phase: Phase, why: &str) {
        let mut state = self.state.lock();
        state.phase = phase;
        state.streams += 1;
        (state.in_flight_bytes, state.waiting_bytes) = (0, 0);
        state.writer = None;
        let (waiting, in_flight) =
            (std::mem::take(&mut state.waiting), std::mem::take(&mut state.in_flight));
        drop(state);
        for (reply, _) in in_flight.into_values() {
            let _ = reply.send(Err(Failure::Lost(why.to_owned())));
        }
        for call in waiting {
            let _ = call.reply.send(Err(Failure::Unreachable(why.to_owned())));
        }
    }

    /// Ends the stream without a loss, if that is what it came to: all replies are there.
    fn drained(&self) -> bool {
        let mut state = self.state.lock();
        let drained = state.phase == Phase::Draining && state.in_flight.is_empty();
        if drained {
            state.streams += 1;
        }
        drained
    }
}

impl State {
    /// Takes a call back that was not written; whether it was not.
    fn take_back(&mut self, id: u64) -> bool {
        let found = self.waiting.binary_search_by_key(&id, |call| call.id);
        let Some(call) = found.ok().and_then(|position| self.waiting.remove(position)) else {
            return false;
        };
        self.waiting_bytes -= call.bytes();
        true
    }

    /// What is to be written next; empty when nothing waits, or too much is in flight.
    fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        while let Some(call) = self.waiting.front() {
            let bytes = call.bytes();
            let fits =
                self.in_flight_bytes == 0 || self.in_flight_bytes + bytes <= IN_FLIGHT_BYTES_MAX;
            if !fits || !batch.has_room_for(bytes) {
                break;
            }
            let Some(Call { id, message, reply }) = self.waiting.pop_front() else { break };
            if self.in_flight.is_empty() {
                self.silent_since = Instant::now();
            }
            self.waiting_bytes -= bytes;
            self.in_flight_bytes += bytes;
            self.in_flight.insert(id, (reply, bytes));
            batch.extend([Frame { id, message }]);
        }
        batch
    }
}

/// What goes out over one stream.
struct Outgoing {
    shared: Arc<Shared>,
    stream: u64,
    /// When no more is written, so that a new stream is made.
    until: Option<Instant>,
    /// It has let the other tasks go first, which may have more to send.
    gathered: bool,
}

impl Stream for Outgoing {
    type Item = ExchangeRequest;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ExchangeRequest>> {
        let this = self.get_mut();
        let mut state = this.shared.state.lock();
        if state.streams != this.stream {
            return Poll::Ready(None);
        }
        match state.phase {
            Phase::Connecting => {}
            Phase::Open if this.until.is_some_and(|until| Instant::now() >= until) => {
                state.phase = Phase::Draining;
                return Poll::Ready(None);
            }
            Phase::Open if !state.waiting.is_empty() && !this.gathered => {
                this.gathered = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Phase::Open => {
                this.gathered = false;
                let batch = state.take_batch();
                if !batch.is_empty() {
                    this.shared.sent.count_messages(batch.bytes());
                    return Poll::Ready(Some(ExchangeRequest { frames: batch.into_frames() }));
                }
            }
            Phase::Idle | Phase::Draining | Phase::Down(_) | Phase::Closed => {
                return Poll::Ready(None);
            }
        }
        state.writer = Some(context.waker().clone());
        Poll::Pending
    }
}

/// How a stream ended.
enum Ended {
    /// It was drained: a new one may follow at once.
    Drained,
    /// It broke: why, and whether it had ever brought a reply.
    Broken(String, bool),
}

/// Makes one stream after the other, for as long as the lane is there.
async fn run(shared: Arc<Shared>) {
    let mut wait = WAIT_FIRST;
    let mut last = None;
    loop {
        while !shared.begin() {
            shared.wanted.notified().await;
        }
        let Some(endpoint) = shared.local.address(&shared.node) else {
            let why = shared.sentence("its address is not known");
            shared.end(Phase::Down(why.clone()), &why);
            sleep(WAIT_MAX).await;
            continue;
        };
        let why = match connect(&shared, &endpoint).await {
            Ok(replies) => {
                if last.take().is_some() {
                    tracing::info!(node = %shared.node, lane = ?shared.lane, "reached again");
                }
                match serve(&shared, &endpoint, replies).await {
                    Ended::Drained => continue,
                    Ended::Broken(why, replied) => {
                        if replied {
                            wait = WAIT_FIRST;
                            shared.end(Phase::Idle, &shared.sentence(&why));
                            continue;
                        }
                        why
                    }
                }
            }
            Err(error) => error.to_string(),
        };
        let why = format!("node {} at {endpoint}: {why}", shared.node);
        if last.as_ref() != Some(&why) {
            tracing::warn!(lane = ?shared.lane, "no connection to {why}");
            last = Some(why.clone());
        }
        shared.end(Phase::Down(why.clone()), &why);
        tokio::select! {
            () = sleep(wait.mul_f64(rand::random_range(0.5..=1.0))) => {}
            () = shared.local.moved(&shared.node, &endpoint) => {}
        }
        wait = WAIT_MAX.min(wait * 2);
    }
}

/// Makes a stream; its replies.
async fn connect(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
) -> Result<Streaming<ExchangeResponse>, DialError> {
    let dialled = dial(&shared.local, Some(&shared.node), endpoint).await?;
    let outgoing = Outgoing {
        shared: Arc::clone(shared),
        stream: shared.state.lock().streams,
        until: dialled.peer.stream_age.map(|age| Instant::now() + age),
        gathered: false,
    };
    let request = dialled.request(outgoing);
    let mut client = dialled.client;
    within(async { Ok(client.exchange(request).await?.into_inner()) }).await
}

/// Hands out replies until the stream ends.
async fn serve(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    mut replies: Streaming<ExchangeResponse>,
) -> Ended {
    shared.open();
    let mut moved = pin!(shared.local.moved(&shared.node, endpoint));
    let mut replied = false;
    let why = loop {
        tokio::select! {
            reply = replies.message() => match reply {
                Ok(Some(response)) => {
                    replied = true;
                    shared.complete(response.frames);
                }
                Ok(None) if shared.drained() => return Ended::Drained,
                Ok(None) => break "it ended the stream".to_owned(),
                Err(status) => break describe(&status),
            },
            () = shared.stalled.notified() => {
                let state = shared.state.lock();
                if !state.in_flight.is_empty() && state.silent_since.elapsed() >= STALL {
                    break format!("no sign of life for {STALL:?}");
                }
            }
            () = &mut moved => break "its address has changed".to_owned(),
        }
    };
    Ended::Broken(why, replied)
}

#[cfg(test)]
impl Link {
    /// Bytes of messages that wait for their reply, and number of those that were not written.
    pub(super) fn load(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.in_flight_bytes, state.waiting.len())
    }
}
