//! One lane of single calls: keeps its window full (closed loop) or its times (open loop), and records what comes of each call.
//!
//! What carries a call is behind [`Caller`]: gRPC (`unary`), HTTP (`rest`), and in tests a server that stalls on purpose.

use std::cell::RefCell;
use std::future::Future;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::schedule::Timer;
use super::tally::{Failure, Tally};
use super::wire::Ask;
use super::workload::{Job, Next, Source};

/// How long answers may come after the end of a round.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// Carries calls over a connection, many at a time.
pub(super) trait Caller {
    /// Makes one call and checks its answer; the version that it tells, 0 where it tells none.
    fn call(&self, ask: Ask) -> impl Future<Output = Result<u64, Failure>>;
}

/// Runs a lane to the end of its schedule and until everything is answered.
pub(super) async fn drive<C: Caller>(
    caller: &C,
    mut source: Source<'_>,
    window: usize,
    timer: &Timer,
    tally: &RefCell<Tally>,
) {
    let mut calls = FuturesUnordered::new();
    let mut over = false;
    loop {
        let mut wake = None;
        while !over && calls.len() < window {
            match source.next(Instant::now()) {
                Next::Job(job) => calls.push(operate(caller, job)),
                Next::At(at) => {
                    wake = Some(at);
                    break;
                }
                Next::Over => over = true,
            }
        }
        if over && calls.is_empty() {
            break;
        }
        let last = source.schedule.ends() + GRACE;
        let until = wake.unwrap_or(last);
        tokio::select! {
            biased;
            Some((job, outcome)) = calls.next(), if !calls.is_empty() => {
                source.ended(&job);
                over |= outcome.as_ref().is_err_and(Failure::is_final);
                tally.borrow_mut().record(job.kind, job.due.elapsed(), outcome);
            }
            () = timer.until(until), if wake.is_some() => {}
            () = tokio::time::sleep_until(last.into()), if over => {
                for _ in 0..calls.len() {
                    tally.borrow_mut().fail(&Failure::Unanswered);
                }
                break;
            }
        }
    }
    record_unsent(&source, tally);
}

/// Counts what the lane owes at the end of an open loop.
pub(super) fn record_unsent(source: &Source<'_>, tally: &RefCell<Tally>) {
    let kind = source.main_kind();
    let mut tally = tally.borrow_mut();
    for (wait, count) in source.schedule.overdue(Instant::now()) {
        tally.record_unsent(kind, wait, count);
    }
}

/// Does one operation, which may be two calls.
async fn operate<C: Caller>(caller: &C, job: Job) -> (Job, Result<(), Failure>) {
    let outcome = match caller.call(job.ask).await {
        Ok(version) => match job.then {
            None => Ok(()),
            Some(then) => caller.call(then.ask(version)).await.map(|_| ()),
        },
        Err(failure) => Err(failure),
    };
    (job, outcome)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicBool;

    use super::super::args::Plan;
    use super::super::schedule::Schedule;
    use super::super::workload::{Kind, KnownKeys};
    use super::*;

    fn plan(words: &[&str]) -> Plan {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            args: super::super::Args,
        }
        let words = ["bench", "--seed", "1", "--keys", "1000"].iter().chain(words);
        let program = <Program as clap::Parser>::try_parse_from(words).expect("legal");
        program.args.plan().expect("legal")
    }

    /// Answers at once, but for one stall.
    struct Server {
        stall_begins: Instant,
        stall_ends: Instant,
        most: Cell<usize>,
        now: Cell<usize>,
        fails: Option<Failure>,
    }

    impl Server {
        fn new(began: Instant, stall: std::ops::Range<u64>) -> Self {
            Self {
                stall_begins: began + Duration::from_millis(stall.start),
                stall_ends: began + Duration::from_millis(stall.end),
                most: Cell::new(0),
                now: Cell::new(0),
                fails: None,
            }
        }
    }

    impl Caller for Server {
        async fn call(&self, _: Ask) -> Result<u64, Failure> {
            self.now.set(self.now.get() + 1);
            self.most.set(self.most.get().max(self.now.get()));
            let now = Instant::now();
            if now >= self.stall_begins && now < self.stall_ends {
                tokio::time::sleep_until(self.stall_ends.into()).await;
            } else {
                tokio::task::yield_now().await;
            }
            self.now.set(self.now.get() - 1);
            self.fails.clone().map_or(Ok(1), Err)
        }
    }

    /// Runs one lane against a server; what was counted.
    async fn run(
        plan: &Plan,
        server: impl FnOnce(Instant) -> Server,
        stop: &AtomicBool,
    ) -> (Tally, Server) {
        let known = KnownKeys::new(plan.keys, plan.keys_max);
        let began = Instant::now();
        let server = server(began);
        let schedule = Schedule::new(began, plan.duration, Source::pace(plan, 0, 1), stop);
        let source = Source::new(plan, &known, schedule, 1, 0, 1);
        let tally = RefCell::new(Tally::default());
        let timer = Timer::new().expect("the system has timers");
        drive(&server, source, plan.in_flight, &timer, &tally).await;
        (tally.into_inner(), server)
    }

    fn quantile(tally: &Tally, quantile: f64) -> Duration {
        Duration::from_nanos(tally.all().value_at_quantile(quantile))
    }

    #[tokio::test]
    async fn a_stall_shows_in_every_operation_that_was_due_meanwhile() {
        // 1,000 a second for 600 ms, 300 ms of which the server stalls: half of the operations wait, 150 ms on average. One call at
        // a time: a generator that omits what it could not send would see one slow operation in 300.
        let plan =
            plan(&["--rate", "1000", "--duration", "600ms", "--in-flight", "1", "--warmup", "0s"]);
        let (tally, server) =
            run(&plan, |began| Server::new(began, 100..400), &AtomicBool::new(false)).await;
        assert_eq!(tally.operations() + tally.unsent, 600);
        assert!(
            quantile(&tally, 0.99) >= Duration::from_millis(280),
            "{:?}",
            quantile(&tally, 0.99)
        );
        assert!(
            quantile(&tally, 0.75) >= Duration::from_millis(100),
            "{:?}",
            quantile(&tally, 0.75)
        );
        assert_eq!(server.most.get(), 1);
    }

    #[tokio::test]
    async fn a_server_that_never_recovers_does_not_hide_what_was_due() {
        let plan = plan(&["--rate", "1000", "--duration", "200ms", "--in-flight", "1"]);
        let (tally, _) =
            run(&plan, |began| Server::new(began, 50..300), &AtomicBool::new(false)).await;
        assert!(tally.unsent >= 140, "{}", tally.unsent);
        assert_eq!(tally.operations() + tally.unsent, 200);
        assert!(quantile(&tally, 0.5) >= Duration::from_millis(40));
    }

    #[tokio::test]
    async fn a_closed_loop_keeps_its_window_full_and_never_more() {
        let plan = plan(&["--duration", "50ms", "--in-flight", "7"]);
        let (tally, server) =
            run(&plan, |began| Server::new(began, 0..0), &AtomicBool::new(false)).await;
        assert_eq!(server.most.get(), 7);
        assert!(tally.operations() > 7 && tally.errors() == 0);
    }

    #[tokio::test]
    async fn a_read_modify_write_is_two_calls_and_one_operation() {
        let plan = plan(&["--workload", "ycsb-f", "--duration", "20ms", "--in-flight", "1"]);
        let (tally, _) =
            run(&plan, |began| Server::new(began, 0..0), &AtomicBool::new(false)).await;
        let kinds: Vec<Kind> = tally.kinds().map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [Kind::Get, Kind::ReadModifyWrite]);
    }

    #[tokio::test]
    async fn failures_are_counted_and_a_broken_connection_ends_the_lane() {
        let plan = plan(&["--duration", "1h", "--in-flight", "3"]);
        let broken = |began| Server {
            fails: Some(Failure::Transport("reset".to_owned())),
            ..Server::new(began, 0..0)
        };
        let (tally, _) = run(&plan, broken, &AtomicBool::new(false)).await;
        assert_eq!((tally.operations(), tally.errors()), (0, 3));
        assert_eq!(tally.failures["transport"].count, 3);
    }

    #[tokio::test]
    async fn an_interrupt_ends_an_open_loop_that_waits_for_its_next_time() {
        let plan = plan(&["--duration", "1h", "--rate", "0.001"]);
        let stop = AtomicBool::new(false);
        let lane = run(&plan, |began| Server::new(began, 0..0), &stop);
        let interrupt = async {
            tokio::task::yield_now().await;
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        };
        let ((tally, _), ()) = tokio::join!(lane, interrupt);
        assert_eq!(tally.operations(), 1);
    }
}
