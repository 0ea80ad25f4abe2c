//! One round: opens the connections, lets all lanes begin at once, and measures time and CPU from there to the last answer.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::runtime::{Builder, Runtime};

use super::args::{Plan, Transport};
use super::http2::Connection;
use super::process::{self, ServerCpu};
use super::rest::Rest;
use super::schedule::{Schedule, Timer};
use super::session::Session;
use super::tally::Tally;
use super::unary::Unary;
use super::wire::{Messages, Target};
use super::workload::{KnownKeys, Source};
use super::{Error, lanes, system};

/// What the rounds of a run share.
pub(super) struct Bench<'a> {
    plan: &'a Plan,
    stop: &'a AtomicBool,
    server: Option<ServerCpu>,
    messages: Messages,
    known: KnownKeys,
}

/// What a round came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    pub(super) tally: Tally,
    /// From the beginning to the last answer.
    pub(super) time: Duration,
    pub(super) client_cpu: Duration,
    pub(super) server_cpu: Option<Duration>,
}

/// Where the threads of a round wait for each other.
struct Meeting {
    /// Everybody is connected, or has failed.
    ready: Barrier,
    /// The clocks have been read.
    go: Barrier,
    began: OnceLock<Instant>,
    failed: AtomicBool,
}

/// A round as its threads see it.
#[derive(Clone, Copy)]
struct Round<'a> {
    target: Target,
    duration: Duration,
    number: u32,
    meeting: &'a Meeting,
}

/// An open lane.
struct Lane<'a> {
    carrier: Carrier<'a>,
    number: usize,
    window: usize,
    timer: Timer,
}

enum Carrier<'a> {
    Unary(Box<Unary<'a>>),
    Session(Session<'a>),
    Rest(Rest<'a>),
}

impl<'a> Bench<'a> {
    pub(super) fn new(plan: &'a Plan, stop: &'a AtomicBool, server: Option<ServerCpu>) -> Self {
        Self {
            plan,
            stop,
            server,
            messages: Messages::new(plan.key_bytes, plan.value_bytes),
            known: KnownKeys::new(plan.keys, plan.keys_max),
        }
    }

    pub(super) fn messages(&self) -> &Messages {
        &self.messages
    }

    /// Runs one round of `duration` against `target`.
    pub(super) fn round(
        &self,
        target: Target,
        duration: Duration,
        number: u32,
    ) -> Result<Measured, Error> {
        let threads = self.plan.threads;
        let meeting = Meeting {
            ready: Barrier::new(threads + 1),
            go: Barrier::new(threads + 1),
            began: OnceLock::new(),
            failed: AtomicBool::new(false),
        };
        let round = Round { target, duration, number, meeting: &meeting };
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads)
                .map(|thread| scope.spawn(move || self.run_thread(thread, round)))
                .collect();
            meeting.ready.wait();
            let server_before = self.server.as_ref().map(ServerCpu::used).transpose();
            let client_before = process::own_cpu();
            let began = *meeting.began.get_or_init(Instant::now);
            meeting.go.wait();
            let mut measured = Measured::default();
            for thread in running {
                let (tally, ended) =
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                measured.tally.merge(tally);
                measured.time = measured.time.max(ended - began);
            }
            measured.client_cpu = process::own_cpu().saturating_sub(client_before);
            let server_after = self.server.as_ref().map(ServerCpu::used).transpose()?;
            measured.server_cpu = server_after
                .zip(server_before?)
                .map(|(after, before)| after.saturating_sub(before));
            Ok(measured)
        })
    }

    /// A thread with its part of the connections; what they counted and when the last one ended.
    fn run_thread(&self, thread: usize, round: Round<'_>) -> Result<(Tally, Instant), Error> {
        let opened = self.open(thread, round.target);
        if opened.is_err() {
            round.meeting.failed.store(true, Ordering::Relaxed);
        }
        round.meeting.ready.wait();
        round.meeting.go.wait();
        let (runtime, opened) = opened?;
        let tally = RefCell::new(Tally::default());
        if !round.meeting.failed.load(Ordering::Relaxed) {
            let lanes: FuturesUnordered<_> =
                opened.into_iter().map(|lane| self.drive(lane, round, &tally)).collect();
            runtime.block_on(lanes.collect::<()>());
        }
        Ok((tally.into_inner(), Instant::now()))
    }

    /// A runtime with the lanes of thread `thread`.
    fn open(&self, thread: usize, target: Target) -> Result<(Runtime, Vec<Lane<'_>>), Error> {
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(system("an event loop"))?;
        let mine = (thread..self.plan.connections).step_by(self.plan.threads);
        let opened = runtime.block_on(async {
            let mut opened = Vec::new();
            if self.plan.transport == Transport::Rest {
                let places = &self.plan.place.http;
                let endpoints: Vec<_> =
                    mine.map(|number| places[number % places.len()].clone()).collect();
                let carrier = Carrier::Rest(Rest::new(&endpoints, &self.messages).await?);
                opened.push(Lane::new(carrier, thread, endpoints.len())?);
            } else {
                for number in mine {
                    opened.push(self.open_lane(number, target).await?);
                }
            }
            Ok(opened)
        });
        opened.map(|opened| (runtime, opened))
    }

    async fn open_lane(&self, number: usize, target: Target) -> Result<Lane<'_>, Error> {
        let (plan, messages) = (self.plan, &self.messages);
        let places = &plan.place.grpc;
        let connection = Connection::open(&places[number % places.len()]).await?;
        let window = plan.in_flight / plan.connections
            + usize::from(number < plan.in_flight % plan.connections);
        let carrier = if plan.transport == Transport::Session {
            Carrier::Session(Session::new(&connection, target, messages).await?)
        } else {
            Carrier::Unary(Box::new(Unary::new(&connection, target, messages, window).await?))
        };
        Lane::new(carrier, number, window)
    }

    async fn drive(&self, lane: Lane<'_>, round: Round<'_>, tally: &RefCell<Tally>) {
        let plan = self.plan;
        let rest = plan.transport == Transport::Rest;
        let lanes = if rest { plan.threads } else { plan.connections } as u64;
        let number = lane.number as u64;
        let began = *round.meeting.began.get().expect("set before the threads go");
        let pace = Source::pace(plan, number, lanes);
        let schedule = Schedule::new(began, round.duration, pace, self.stop);
        let source = Source::new(plan, &self.known, schedule, round.number, number, lanes);
        match lane.carrier {
            Carrier::Unary(unary) => {
                lanes::drive(&*unary, source, lane.window, &lane.timer, tally).await;
            }
            Carrier::Rest(rest) => {
                lanes::drive(&rest, source, lane.window, &lane.timer, tally).await;
            }
            Carrier::Session(session) => {
                session.drive(source, lane.window, &lane.timer, tally).await;
            }
        }
    }
}

impl<'a> Lane<'a> {
    fn new(carrier: Carrier<'a>, number: usize, window: usize) -> Result<Self, Error> {
        let timer = Timer::new().map_err(system("a timer"))?;
        Ok(Self { carrier, number, window, timer })
    }
}
