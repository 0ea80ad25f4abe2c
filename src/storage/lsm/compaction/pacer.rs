//! Slows writes down before the tree falls behind, so that nobody ever has to be stopped for long.
//!
//! The **pressure** is 0 where all is well and 1 where writes are as slow as they get: the largest of what level 0, the
//! debt and the sealed memtables say, each growing evenly from its soft to its hard limit. The rate at which bytes are
//! admitted falls with it from [`rate_max`](PacerOptions::rate_max) to [`rate_min`](PacerOptions::rate_min), by the
//! same factor for each step, so that there is no cliff on the way. The delay is spread: each write waits for its own
//! bytes.
//!
//! The engine reports the load whenever the tree or the memtables change, and asks before each write, outside of every
//! lock. Time comes from the caller.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

/// When writes are slowed down, and how much.
#[derive(Debug, Clone)]
pub(crate) struct PacerOptions {
    /// Tables in level 0 above which writes are slowed down. Default 8.
    pub(crate) l0_soft: usize,
    /// Where they are as slow as they get. Default 20.
    pub(crate) l0_hard: usize,
    /// Where they stop. Default 36.
    pub(crate) l0_stop: usize,
    /// Debt above which writes are slowed down. Default 16 GiB.
    pub(crate) debt_soft_bytes: u64,
    /// Where they are as slow as they get. Default 64 GiB.
    pub(crate) debt_hard_bytes: u64,
    /// Sealed memtables, above one, that slow writes down, and where they stop. Default 4.
    pub(crate) sealed_stop: usize,
    /// Bytes a second when slowing begins. Default 512 MiB.
    pub(crate) rate_max: u64,
    /// Bytes a second when writes are as slow as they get. Default 2 MiB.
    pub(crate) rate_min: u64,
}

impl Default for PacerOptions {
    fn default() -> Self {
        Self {
            l0_soft: 8,
            l0_hard: 20,
            l0_stop: 36,
            debt_soft_bytes: 16 << 30,
            debt_hard_bytes: 64 << 30,
            sealed_stop: 4,
            rate_max: 512 << 20,
            rate_min: 2 << 20,
        }
    }
}

/// What the pacer goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Tables in level 0.
    pub(crate) l0_tables: usize,
    /// What the picker's `debt_bytes` says.
    pub(crate) debt_bytes: u64,
    /// Sealed memtables that are not flushed.
    pub(crate) sealed: usize,
}

/// Why writes are held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Level 0 has too many tables.
    LevelZero,
    /// Too much is waiting for compaction.
    Debt,
    /// Too many memtables are waiting to be flushed.
    Memtables,
}

/// What a write has to do first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Go ahead.
    Now,
    /// Wait for so long, or until nothing is held up any more ([`Pacer::rate`]), then go ahead.
    After(Duration),
    /// Wait until the load has been reported again, then ask again.
    Stop,
}

/// What one cause has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stalls {
    /// Writes that had to wait.
    pub(crate) delays: u64,
    /// How long in all.
    pub(crate) delayed: Duration,
    /// Times a write was stopped.
    pub(crate) stops: u64,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Pacer {
    // Constant.
    options: PacerOptions,
    // Own synchronisation.
    /// Bytes a second; [`UNLIMITED`] and [`STOPPED`] are the ends. What a write asks when all is well.
    rate: AtomicU64,
    // Only while writes are held up.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cause: Option<Cause>,
    /// When the bytes admitted so far will have passed.
    passed_at: Duration,
    stalls: [Stalls; 3],
}

/// Shorter delays are put off until they add up to this, because nobody can sleep for less.
const DELAY_MIN: Duration = Duration::from_millis(1);

const UNLIMITED: u64 = u64::MAX;
const STOPPED: u64 = 0;

impl Pacer {
    /// Admits everything until a load is reported.
    pub(crate) fn new(options: PacerOptions) -> Self {
        assert!(
            options.l0_soft < options.l0_hard && options.l0_hard <= options.l0_stop,
            "writes are slowed down before they stop"
        );
        assert!(options.debt_soft_bytes < options.debt_hard_bytes && options.sealed_stop > 1);
        assert!(0 < options.rate_min && options.rate_min <= options.rate_max);
        Self { options, rate: AtomicU64::new(UNLIMITED), state: Mutex::default() }
    }

    /// The load from now on.
    pub(crate) fn report(&self, load: Load) {
        let (cause, pressure) = self.options.pressure(load);
        let rate = match cause {
            None => UNLIMITED,
            Some(_) if self.options.must_stop(load) => STOPPED,
            Some(_) => self.options.rate(pressure),
        };
        let mut state = self.state.lock();
        state.cause = cause;
        if cause.is_none() {
            state.passed_at = Duration::ZERO;
        }
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Asks for a write of so many bytes. `now` tells the time since any fixed moment, and never goes back; it is asked
    /// only while writes are slowed down.
    #[inline]
    pub(crate) fn admit(&self, bytes: u64, now: impl FnOnce() -> Duration) -> Admission {
        match self.rate.load(Ordering::Relaxed) {
            UNLIMITED => Admission::Now,
            _ => self.hold_up(bytes, now()),
        }
    }

    #[cold]
    fn hold_up(&self, bytes: u64, now: Duration) -> Admission {
        let mut state = self.state.lock();
        // It may have changed meanwhile.
        let rate = self.rate.load(Ordering::Relaxed);
        let Some(cause) = state.cause else { return Admission::Now };
        if rate == STOPPED {
            state.stalls[cause as usize].stops += 1;
            return Admission::Stop;
        }
        let start = state.passed_at.max(now);
        state.passed_at = start + duration_of(bytes, rate);
        // Its own bytes may pass while it is written.
        let delay = start.saturating_sub(now);
        if delay < DELAY_MIN {
            return Admission::Now;
        }
        let stalls = &mut state.stalls[cause as usize];
        stalls.delays += 1;
        stalls.delayed += delay;
        Admission::After(delay)
    }

    /// What a cause has done so far.
    pub(crate) fn stalls(&self, cause: Cause) -> Stalls {
        self.state.lock().stalls[cause as usize]
    }

    /// Bytes a second that are admitted now; `None`: all.
    pub(crate) fn rate(&self) -> Option<u64> {
        Some(self.rate.load(Ordering::Relaxed)).filter(|&rate| rate != UNLIMITED)
    }
}

impl PacerOptions {
    /// The largest pressure, from above 0 to 1, and what it comes from; no cause where all is well.
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    fn pressure(&self, load: Load) -> (Option<Cause>, f64) {
        let grows = |value: u64, soft: u64, hard: u64| {
            let over = value.saturating_sub(soft) as f64;
            (over / (hard - soft) as f64).min(1.0)
        };
        let count = |number: usize| number as u64;
        let all = [
            (Cause::Memtables, grows(count(load.sealed), 1, count(self.sealed_stop))),
            (
                Cause::LevelZero,
                grows(count(load.l0_tables), count(self.l0_soft), count(self.l0_hard)),
            ),
            (Cause::Debt, grows(load.debt_bytes, self.debt_soft_bytes, self.debt_hard_bytes)),
        ];
        let most = all.into_iter().reduce(|a, b| if b.1 > a.1 { b } else { a });
        most.filter(|&(_, pressure)| pressure > 0.0)
            .map_or((None, 0.0), |(cause, pressure)| (Some(cause), pressure))
    }

    fn must_stop(&self, load: Load) -> bool {
        load.l0_tables >= self.l0_stop || load.sealed >= self.sealed_stop
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between two rates"
    )]
    fn rate(&self, pressure: f64) -> u64 {
        let (max, min) = (self.rate_max as f64, self.rate_min as f64);
        (max * (min / max).powf(pressure)) as u64
    }
}

/// How long so many bytes take.
fn duration_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn pacer(load: Load) -> Pacer {
        let pacer = Pacer::new(PacerOptions::default());
        pacer.report(load);
        pacer
    }

    fn l0(l0_tables: usize) -> Load {
        Load { l0_tables, ..Load::default() }
    }

    #[test]
    fn a_tree_in_shape_costs_nothing_and_asks_for_no_time() {
        let pacer = pacer(Load { l0_tables: 8, debt_bytes: 16 << 30, sealed: 1 });
        assert_eq!(pacer.rate(), None);
        assert_eq!(pacer.admit(1 << 40, || panic!("asked")), Admission::Now);
    }

    #[test]
    fn the_rate_falls_by_the_same_factor_with_each_table_and_stays_at_the_least_until_the_stop() {
        let rates: Vec<_> =
            (9..36).map(|tables| pacer(l0(tables)).rate().expect("slowed")).collect();
        let factor = 256f64.powf(1.0 / 12.0);
        for (index, pair) in rates.windows(2).take(11).enumerate() {
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let fell = pair[0] as f64 / pair[1] as f64;
            assert!((fell / factor - 1.0).abs() < 0.001, "at {}: by {fell}", index + 9);
        }
        assert!(rates[11..].iter().all(|&rate| rate == 2 * MIB), "{rates:?}");
        assert_eq!(pacer(l0(36)).admit(1, || Duration::ZERO), Admission::Stop);
    }

    #[test]
    fn writes_wait_for_the_bytes_before_them_whoever_wrote_those() {
        let pacer = pacer(l0(20));
        let at = |millis| move || Duration::from_millis(millis);
        assert_eq!(pacer.admit(MIB, at(1000)), Admission::Now);
        assert_eq!(pacer.admit(MIB, at(1000)), Admission::After(Duration::from_millis(500)));
        assert_eq!(pacer.admit(MIB, at(1200)), Admission::After(Duration::from_millis(800)));
        // A pause is not saved up.
        assert_eq!(pacer.admit(MIB, at(9000)), Admission::Now);
        let stalls = pacer.stalls(Cause::LevelZero);
        assert_eq!((stalls.delays, stalls.delayed.as_millis(), stalls.stops), (2, 1300, 0));
        // What is over is over.
        pacer.report(Load::default());
        pacer.report(l0(20));
        assert_eq!(pacer.admit(MIB, at(9000)), Admission::Now);
    }

    #[test]
    fn small_writes_wait_together() {
        let pacer = pacer(l0(20));
        // 2 MiB a second: 20 bytes take some 10 us.
        let admitted = (0..300).map(|_| pacer.admit(20, || Duration::ZERO));
        let at_once = admitted.take_while(|admission| *admission == Admission::Now).count();
        assert!((100..110).contains(&at_once), "{at_once}");
    }

    #[test]
    fn every_cause_slows_down_by_itself_and_is_counted_by_itself() {
        let loads = [
            (Cause::LevelZero, l0(30)),
            (Cause::Debt, Load { debt_bytes: 20 << 30, ..Load::default() }),
            (Cause::Memtables, Load { sealed: 2, ..Load::default() }),
        ];
        let pacer = pacer(Load::default());
        for (cause, load) in loads {
            pacer.report(load);
            // One whose bytes are waited for.
            pacer.admit(1000 * MIB, || Duration::ZERO);
            let before = pacer.stalls(cause).delays;
            assert!(matches!(pacer.admit(1, || Duration::ZERO), Admission::After(_)), "{cause:?}");
            assert_eq!(pacer.stalls(cause).delays, before + 1, "{cause:?}");
        }
        pacer.report(Load { sealed: 4, l0_tables: 30, ..Load::default() });
        assert_eq!(pacer.admit(1, || Duration::ZERO), Admission::Stop);
        assert_eq!(pacer.stalls(Cause::Memtables).stops, 1);
        pacer.report(Load::default());
        assert_eq!(pacer.admit(1, || Duration::ZERO), Admission::Now);
    }

    proptest! {
        #[test]
        fn more_load_never_admits_more(
            l0_tables in 0..50usize, sealed in 0..6usize, debt in 0..100u64, which in 0..3u8,
        ) {
            let load = Load { l0_tables, sealed, debt_bytes: debt << 30 };
            let more = match which {
                0 => Load { l0_tables: l0_tables + 1, ..load },
                1 => Load { sealed: sealed + 1, ..load },
                _ => Load { debt_bytes: load.debt_bytes + (1 << 30), ..load },
            };
            let rate = |load| pacer(load).rate().unwrap_or(u64::MAX);
            prop_assert!(rate(more) <= rate(load));
        }
    }
}
