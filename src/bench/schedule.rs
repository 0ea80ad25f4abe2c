//! When an operation is due, and the wait until then.
//!
//! Closed loop: at once, whenever a slot is free. Open loop: at fixed times that do not depend on how the server does. An operation's
//! latency counts from the time at which it was **due**, not from when it could be sent: else a server that stalls would also
//! stop the clock of everything that waits behind the stall (coordinated omission).

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A lane looks up at least this often, so that an interrupt ends it although nothing is due.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Operations that were never sent are counted in at most about so many groups.
const OVERDUE_GROUPS_MAX: u64 = 10_000;

/// What a lane shall do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// Start an operation, which was due then.
    Since(Instant),
    /// Nothing before that time.
    At(Instant),
    /// Start nothing more.
    Over,
}

/// The due times of one lane.
#[derive(Debug, Clone)]
pub(super) struct Schedule<'a> {
    began: Instant,
    ends: Instant,
    /// Seconds between operations and before the first; `None`: a closed loop.
    pace: Option<Pace>,
    issued: u64,
    stop: &'a AtomicBool,
}

/// The lane's part of the rate over all lanes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    /// Operations in a second, over all lanes.
    pub(super) rate: f64,
    /// Which lane, from 0.
    pub(super) lane: u64,
    /// How many lanes.
    pub(super) lanes: u64,
}

impl Pace {
    /// When operation `number` of the lane is due, after the beginning. The lanes take turns.
    #[expect(clippy::cast_precision_loss, reason = "a run has far less than 2^53 operations")]
    fn offset(&self, number: u64) -> Duration {
        Duration::from_secs_f64((self.lane + number * self.lanes) as f64 / self.rate)
    }
}

impl<'a> Schedule<'a> {
    pub(super) fn new(
        began: Instant,
        duration: Duration,
        pace: Option<Pace>,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { began, ends: began + duration, pace, issued: 0, stop }
    }

    /// When the lane starts nothing more.
    pub(super) fn ends(&self) -> Instant {
        self.ends
    }

    /// What to do at `now`. An operation that is due counts as issued.
    pub(super) fn next(&mut self, now: Instant) -> Due {
        if now >= self.ends || self.stop.load(Ordering::Relaxed) {
            return Due::Over;
        }
        let Some(pace) = self.pace else { return Due::Since(now) };
        let due = self.began + pace.offset(self.issued);
        if due > now {
            return Due::At(due.min(self.ends).min(now + LOOK_UP));
        }
        self.issued += 1;
        Due::Since(due)
    }

    /// How long the operations that were due before `now` and never issued have waited, and how many waited about that long. Neighbours
    /// are taken together where there are very many.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a run has far less than 2^53 operations, and not less than none"
    )]
    pub(super) fn overdue(&self, now: Instant) -> Vec<(Duration, u64)> {
        let Some(pace) = self.pace else { return Vec::new() };
        let until = now.min(self.ends);
        let passed = until.saturating_duration_since(self.began).as_secs_f64();
        let due = ((passed * pace.rate - pace.lane as f64) / pace.lanes as f64).ceil() as u64;
        let step = (due.saturating_sub(self.issued) / OVERDUE_GROUPS_MAX).max(1);
        let groups = (self.issued..due).step_by(usize::try_from(step).unwrap_or(usize::MAX));
        groups
            .map(|first| {
                let wait = until.saturating_duration_since(self.began + pace.offset(first));
                (wait, step.min(due - first))
            })
            .collect()
    }
}

/// Waits until points in time, to some microseconds: the runtime's own timers count in milliseconds.
pub(super) struct Timer {
    #[cfg(target_os = "linux")]
    timer: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Timer {
    pub(super) fn new() -> std::io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for the sake of types that may change their descriptor, which `OwnedFd` never does"
        )]
        let timer = tokio::io::unix::AsyncFd::new(timer)?;
        Ok(Self { timer })
    }

    /// Waits until `at`; may return early, when an earlier wait was given up.
    pub(super) fn until(&self, at: Instant) -> impl Future<Output = ()> + use<'_> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        // Zero would switch the timer off.
        let left = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec::try_from(left).unwrap_or_default(),
        };
        let armed = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
        async move {
            if armed.is_err() {
                tokio::time::sleep_until(at.into()).await;
                return;
            }
            if let Ok(mut ready) = self.timer.readable().await {
                let _ = rustix::io::read(&self.timer, &mut [0_u8; 8]);
                ready.clear_ready();
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Timer {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Waits until `at`, to a millisecond.
    pub(super) fn until(&self, at: Instant) -> impl Future<Output = ()> + use<'_> {
        tokio::time::sleep_until(at.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_closed_loop_is_due_at_once_until_its_end() {
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let mut schedule = Schedule::new(began, SECOND, None, &stop);
        assert_eq!(schedule.next(began), Due::Since(began));
        assert_eq!(schedule.next(began + SECOND / 2), Due::Since(began + SECOND / 2));
        assert_eq!(schedule.next(began + SECOND), Due::Over);
        assert_eq!(schedule.overdue(began + SECOND), []);
    }

    #[test]
    fn an_open_loop_keeps_its_times_however_late_it_is_asked() {
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let pace = |lane| Some(Pace { rate: 100.0, lane, lanes: 2 });
        let mut schedule = Schedule::new(began, SECOND, pace(0), &stop);
        let mut second = Schedule::new(began, SECOND, pace(1), &stop);
        assert_eq!(schedule.next(began), Due::Since(began));
        assert_eq!(schedule.next(began), Due::At(began + Duration::from_millis(20)));
        assert_eq!(second.next(began), Due::At(began + Duration::from_millis(10)));
        // The server stalls for 100 ms: what was due meanwhile comes with the times at which it was due.
        let now = began + Duration::from_millis(100);
        for millis in [20, 40, 60, 80, 100] {
            assert_eq!(schedule.next(now), Due::Since(began + Duration::from_millis(millis)));
        }
        assert_eq!(schedule.next(now), Due::At(began + Duration::from_millis(120)));
    }

    #[test]
    fn what_was_due_and_never_sent_is_told_with_its_wait() {
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let pace = Some(Pace { rate: 10.0, lane: 0, lanes: 1 });
        let mut schedule = Schedule::new(began, SECOND, pace, &stop);
        assert!(matches!(schedule.next(began), Due::Since(_)));
        let overdue = schedule.overdue(began + SECOND * 3);
        let waits: Vec<u128> = overdue.iter().map(|(wait, _)| wait.as_millis()).collect();
        assert_eq!(waits, [900, 800, 700, 600, 500, 400, 300, 200, 100]);
        assert!(overdue.iter().all(|&(_, count)| count == 1));
        // Very many are told in groups, and none is lost.
        let pace = Some(Pace { rate: 1e7, lane: 3, lanes: 7 });
        let overdue = Schedule::new(began, SECOND, pace, &stop).overdue(began + SECOND);
        let all: u64 = overdue.iter().map(|&(_, count)| count).sum();
        assert!(all.abs_diff(10_000_000 / 7) <= 1, "{all}");
        assert!(overdue.len() < 11_000);
    }

    #[test]
    fn an_interrupt_ends_a_lane() {
        let stop = AtomicBool::new(true);
        let mut schedule = Schedule::new(Instant::now(), SECOND, None, &stop);
        assert_eq!(schedule.next(Instant::now()), Due::Over);
    }

    #[tokio::test]
    async fn a_timer_waits_until_its_time_and_can_be_given_up() {
        let timer = Timer::new().expect("the system has timers");
        drop(timer.until(Instant::now() + Duration::from_hours(1)));
        let at = Instant::now() + Duration::from_millis(3);
        while Instant::now() < at {
            timer.until(at).await;
        }
        timer.until(at).await;
    }
}
