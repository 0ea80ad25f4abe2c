//! `kvstore bench`: a load generator that measures honestly, and the distance to what the transport itself can do.
//!
//! * **Closed loop** (the default): a fixed number of operations is always in flight. **Open loop** (`--rate`): operations are due at
//!   fixed times whatever the server does, and latency counts from the due time, so a stall shows in every operation that it
//!   delays (`schedule`).
//! * The client is lean (`wire`, `unary`, `session`, `rest`): else it, and not the server, would be measured. It checks every
//!   answer all the same; what is not the right answer is an error and no operation.
//! * `--echo` runs the same load against a no-op on the same stack, in rounds that alternate with the product's, so that both
//!   meet the same noise; what is printed is the ratio of medians and how far the pairs of rounds lie apart.
//! * CPU time for an operation, of this process and of the server, stands beside the rate: it is the steadier figure.
//!
//! Each client thread has a single-threaded runtime and a few lanes (`lanes`): a lane is a connection, or the pool of them, with its own keys,
//! schedule and window. Memory is bounded by the window, the histograms and one batch of the preload.
//!
//! Keys are `bench` and a number, and stay in the store afterwards.
//!
//! Callers: the command line.

mod args;
mod http2;
mod keys;
mod lanes;
mod preload;
mod process;
mod report;
mod rest;
mod round;
mod schedule;
mod session;
mod tally;
mod unary;
mod wire;
mod workload;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::signal::unix::{SignalKind, signal};

pub use self::args::{Args, Distribution, Output, Transport, Workload};
use self::args::{Plan, Where};
use self::process::{OwnServer, ServerCpu};
use self::report::Report;
use self::round::{Bench, Measured};
use self::wire::Target;

/// Why there are no figures, or why they do not count.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments contradict each other or ask for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// The server cannot be reached, or did not do what the preparation needs.
    #[error("{0}")]
    Server(String),
    /// The operating system gives no threads, timers or sockets.
    #[error("the operating system refused {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// More operations failed than `--errors-max` allows. The report was printed.
    #[error("{errors} operations failed, --errors-max allows {max}")]
    TooManyErrors {
        /// How many failed.
        errors: u64,
        /// How many may.
        max: u64,
    },
}

impl Error {
    /// Whether another command line would have helped.
    pub const fn is_usage(&self) -> bool {
        matches!(self, Self::Usage(_))
    }
}

fn system(what: &'static str) -> impl Fn(std::io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Runs the load and writes what was measured to `out`, in one piece at the end.
///
/// # Errors
///
/// See [`enum@Error`].
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Error> {
    let mut plan = args.plan()?;
    let interrupt = Interrupt::watch()?;
    let own = plan.own_server.take().map(|settings| OwnServer::start(&settings)).transpose()?;
    if let Some(own) = &own {
        interrupt.owned.store(own.pid(), Ordering::Relaxed);
        plan.place = Where { grpc: vec![own.grpc.clone()], http: vec![own.http.clone()] };
    }
    let pid = own.as_ref().map(OwnServer::pid).or(args.server_pid);
    let report = measure(&plan, pid.map(ServerCpu::new).transpose()?, &interrupt.stop)?;
    drop(own);
    let text = match args.output {
        Output::Text => report.to_text(),
        Output::Json => report.to_json(),
    };
    // A reader that has gone, as `head` does, is no failure.
    let _ = writeln!(out, "{text}");
    let errors = report.errors();
    if errors > args.errors_max {
        return Err(Error::TooManyErrors { errors, max: args.errors_max });
    }
    Ok(())
}

fn measure(plan: &Plan, server: Option<ServerCpu>, stop: &AtomicBool) -> Result<Report, Error> {
    let bench = Bench::new(plan, stop, server);
    if plan.preload {
        preload::run(plan, bench.messages(), stop)?;
    }
    let targets: &[Target] =
        if plan.echo { &[Target::Product, Target::Echo] } else { &[Target::Product] };
    if !plan.warmup.is_zero() {
        for &target in targets {
            bench.round(target, plan.warmup, 0)?;
        }
    }
    let mut report = Report::new(plan);
    for round in 1..=plan.rounds {
        // Each goes first in every other round, so that a drift of the machine favours neither.
        let mut measured: Vec<(Target, Measured)> = Vec::new();
        let order = targets.iter().copied();
        let order: Vec<Target> =
            if round % 2 == 0 { order.rev().collect() } else { order.collect() };
        for target in order {
            if !stop.load(Ordering::Relaxed) {
                measured.push((target, bench.round(target, plan.duration, round)?));
            }
        }
        report.add(measured);
        if stop.load(Ordering::Relaxed) {
            report.interrupted();
            break;
        }
    }
    Ok(report)
}

/// What the first Ctrl-C or SIGTERM sets: what was measured until then is printed. The second ends the program at once.
#[derive(Clone, Default)]
struct Interrupt {
    stop: Arc<AtomicBool>,
    /// Process of a server that must not outlive this one; 0: none.
    owned: Arc<AtomicU32>,
}

impl Interrupt {
    fn watch() -> Result<Self, Error> {
        let interrupt = Self::default();
        let seen = interrupt.clone();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(system("an event loop"))?;
        let watch = move || {
            // A system that gives no signal handlers leaves its own: the program ends.
            let _ = runtime.block_on(seen.signals());
        };
        let named = std::thread::Builder::new().name("interrupt".to_owned());
        named.spawn(watch).map_err(system("a thread"))?;
        Ok(interrupt)
    }

    async fn signals(&self) -> std::io::Result<()> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if self.stop.swap(true, Ordering::Relaxed) {
                process::signal(self.owned.load(Ordering::Relaxed), rustix::process::Signal::KILL);
                std::process::exit(130);
            }
        }
    }
}
