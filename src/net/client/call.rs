//! One call: its tries, the waits between them, its deadline.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{Client, Failure};
use crate::net::{Endpoint, KeepAlive, open};

/// Most tries after the first one.
const RETRIES_MAX: u32 = 10;

/// The wait before the first retry is at most this long; it doubles.
const WAIT_FIRST: Duration = Duration::from_millis(50);

/// Longest wait between two tries.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// Wait for a connection, so that an endpoint that swallows packets leaves time for the next one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// When a connection is probed. One that is idle costs a node nothing.
const KEEP_ALIVE: KeepAlive = KeepAlive {
    interval: Duration::from_secs(20),
    timeout: Duration::from_secs(20),
    while_idle: false,
};

/// How a call is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Calling {
    repeat: Repeat,
    /// Over all tries.
    timeout: Option<Duration>,
    /// Whether the node is told the deadline. A stream would be cut off at it.
    announce: bool,
}

/// When a failed call is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    /// Whenever it may help: it changes nothing.
    Read,
    /// Whenever it may help: its request id keeps it from being applied twice.
    Write,
    /// Only when it was certainly not carried out.
    Unsent,
    Never,
}

impl Calling {
    pub(super) const fn read(timeout: Duration) -> Self {
        Self { repeat: Repeat::Read, timeout: Some(timeout), announce: true }
    }

    pub(super) const fn write(timeout: Duration) -> Self {
        Self { repeat: Repeat::Write, timeout: Some(timeout), announce: true }
    }

    /// A change without a request id.
    pub(super) const fn order(timeout: Duration) -> Self {
        Self { repeat: Repeat::Unsent, timeout: Some(timeout), announce: true }
    }

    /// An [`order`](Self::order) that may take hours.
    pub(super) const fn work(_: Duration) -> Self {
        Self { repeat: Repeat::Unsent, timeout: None, announce: false }
    }

    pub(super) const fn once(timeout: Duration) -> Self {
        Self { repeat: Repeat::Never, timeout: Some(timeout), announce: true }
    }

    /// The opening of a stream.
    pub(super) const fn stream(timeout: Duration) -> Self {
        Self { repeat: Repeat::Read, timeout: Some(timeout), announce: false }
    }

    const fn is_change(self) -> bool {
        matches!(self.repeat, Repeat::Write | Repeat::Unsent)
    }

    fn allows_repeat(self, failure: &Failure) -> bool {
        let again = match self.repeat {
            Repeat::Read | Repeat::Write => true,
            Repeat::Unsent => !failure.maybe_applied,
            Repeat::Never => false,
        };
        again && failure.is_passing()
    }
}

/// The waits between tries: full jitter, so that clients that failed together do not come back together.
#[derive(Debug, Default)]
pub(super) struct Waits {
    retries: u32,
}

impl Waits {
    /// The wait before the next try, at least as long as the node asked for; `None` when it was enough.
    pub(super) fn next(&mut self, failure: &Failure) -> Option<Duration> {
        if self.retries == RETRIES_MAX {
            return None;
        }
        let most = WAIT_MAX.min(WAIT_FIRST * (1 << self.retries));
        self.retries += 1;
        let random = most.mul_f64(rand::random_range(0.0..=1.0));
        Some(random.max(failure.retry_after.unwrap_or_default()))
    }
}

/// One endpoint and the connection to it.
pub(super) struct Peer {
    pub(super) endpoint: Endpoint,
    channel: Mutex<Option<Channel>>,
}

impl Peer {
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, channel: Mutex::new(None) }
    }

    /// The open connection, or a new one.
    async fn channel(&self) -> Result<Channel, Failure> {
        let mut channel = self.channel.lock().await;
        if let Some(channel) = &*channel {
            return Ok(channel.clone());
        }
        let opened = timeout(CONNECT_TIMEOUT, open(&self.endpoint, KEEP_ALIVE))
            .await
            .map_err(|_| format!("not within {CONNECT_TIMEOUT:?}"))
            .flatten()
            .map_err(|why| Failure::unconnected(&self.endpoint, why))?;
        Ok(channel.insert(opened).clone())
    }

    async fn forget(&self) {
        self.channel.lock().await.take();
    }
}

impl Client {
    /// The endpoint whose turn it is, with the number of the turn.
    fn peer(&self) -> (usize, &Peer) {
        let turn = self.turn.load(Ordering::Relaxed);
        (turn, &self.peers[turn % self.peers.len()])
    }

    /// Ends a turn, if no other call did so already.
    fn leave(&self, turn: usize) {
        let (next, order) = (turn.wrapping_add(1), Ordering::Relaxed);
        let _ = self.turn.compare_exchange(turn, next, order, order);
    }

    /// The endpoint that calls go to.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.peer().1.endpoint
    }

    /// Gives the connection in use up and turns to the next endpoint.
    pub(super) async fn move_on(&self) {
        let (turn, peer) = self.peer();
        peer.forget().await;
        self.leave(turn);
    }

    /// Sends `message` until it is answered, must not be sent again, or the time is over.
    pub(super) async fn call<M, A, C, F>(
        &self,
        calling: Calling,
        message: &M,
        method: C,
    ) -> Result<A, Failure>
    where
        M: Clone,
        C: Fn(Channel, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let deadline = calling.timeout.map(|timeout| Instant::now() + timeout);
        let (mut waits, mut maybe_applied) = (Waits::default(), false);
        loop {
            let (turn, peer) = self.peer();
            let mut failure = match self.attempt(peer, calling, deadline, message, &method).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if failure.is_transport() {
                peer.forget().await;
            }
            maybe_applied |= failure.maybe_applied;
            if calling.is_change() {
                failure = failure.of_change(maybe_applied);
            }
            if !calling.allows_repeat(&failure) {
                return Err(failure);
            }
            self.leave(turn);
            let Some(wait) = waits.next(&failure) else { return Err(failure) };
            if deadline.is_some_and(|deadline| Instant::now() + wait >= deadline) {
                return Err(failure);
            }
            sleep(wait).await;
        }
    }

    async fn attempt<M, A, C, F>(
        &self,
        peer: &Peer,
        calling: Calling,
        deadline: Option<Instant>,
        message: &M,
        method: &C,
    ) -> Result<A, Failure>
    where
        M: Clone,
        C: Fn(Channel, Request<M>) -> F,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let channel = match by(deadline, peer.channel()).await {
            Some(channel) => channel?,
            None => return Err(Failure::unconnected(&peer.endpoint, "the time is over")),
        };
        let late = || {
            let timeout = calling.timeout.unwrap_or_default();
            Failure::late(&peer.endpoint, timeout, calling.is_change())
        };
        let mut request = Request::new(message.clone());
        if let Some(deadline) = deadline.filter(|_| calling.announce) {
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        match by(deadline, method(channel, request)).await {
            Some(Ok(answer)) => Ok(answer.into_inner()),
            Some(Err(status)) if Failure::is_own_deadline(&status) => Err(late()),
            Some(Err(status)) => Err(Failure::of_status(&status, &peer.endpoint)),
            None => Err(late()),
        }
    }
}

/// Awaits `work` until `deadline`; `None` when it passed.
async fn by<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}
