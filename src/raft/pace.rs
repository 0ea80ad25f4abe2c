//! The time that a leader stamps: the group's own clock, carried on.
//!
//! A node's wall clock may be wrong by any amount. A stamp far ahead would expire every key with a ttl and forget every request id at once, and a clock that has
//! been ahead and is right again would stand still until it is overtaken. So the wall clock does not decide what time it is in a group:
//!
//! * The group's clock is the largest stamp that was applied. Each replica carries it on by its monotonic clock from when it saw it, and a leader stamps that.
//! * A leader whose wall clock is ahead goes faster, but at most [`FASTEST`] times as fast, until it has caught up: so that time is made up for in which nobody
//!   was there to count. With a wall clock that is wrong, a key lives half of its time at least.
//! * It never goes back. A wall clock that is behind changes nothing.
//! * The first stamp of a group is the wall clock's.
//!
//! Called by the group: by a leader for each entry, by followers now and then, to have seen the clock.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::util::time::Timestamp;

/// How fast a group's time goes at most.
const FASTEST: u32 = 2;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Option<Seen>>);

#[derive(Debug, Clone, Copy)]
struct Seen {
    time: Timestamp,
    at: Instant,
}

impl Pace {
    /// The time of the group whose clock is `applied`; `ahead`: the wall clock of its leader, which may pull it.
    pub(super) fn now(&self, applied: Timestamp, ahead: Option<Timestamp>) -> Timestamp {
        if applied == Timestamp::BEGINNING {
            return ahead.unwrap_or(applied);
        }
        let mut seen = self.0.lock();
        let Seen { time, at } = seen.unwrap_or_else(|| Seen { time: applied, at: Instant::now() });
        // What is left of a millisecond counts the next time.
        let passed = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        let passed = Duration::from_millis(passed);
        let mut time = time.saturating_add(passed);
        if let Some(ahead) = ahead {
            let lacks = ahead.saturating_since(time);
            time = time.saturating_add(lacks.min(passed * (FASTEST - 1)));
        }
        let time = time.max(applied);
        *seen = Some(Seen { time, at: at + passed });
        time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_000_000_000;
    const HOUR: u64 = 3_600_000;

    /// Asks every few microseconds for `millis`, with a wall clock that goes on from `wall`; the last answer.
    async fn ask(pace: &Pace, applied: u64, wall: Option<u64>, millis: u64) -> u64 {
        let began = Instant::now();
        let mut last = 0;
        while began.elapsed() < Duration::from_millis(millis) {
            tokio::time::advance(Duration::from_micros(700)).await;
            let passed = u64::try_from(began.elapsed().as_millis()).expect("a short time");
            let wall = wall.map(|wall| Timestamp::from_millis(wall + passed));
            let now = pace.now(Timestamp::from_millis(applied), wall).as_millis();
            assert!(now >= last, "it goes back from {last} to {now}");
            last = now;
        }
        last
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_time_of_a_group_is_the_leaders() {
        let pace = Pace::default();
        let wall = Timestamp::from_millis(NOON);
        assert_eq!(pace.now(Timestamp::BEGINNING, Some(wall)), wall);
        assert_eq!(pace.now(Timestamp::BEGINNING, None), Timestamp::BEGINNING);
    }

    #[tokio::test(start_paused = true)]
    async fn time_goes_on_whatever_the_wall_clock_says() {
        for wall in [None, Some(NOON), Some(NOON - HOUR)] {
            let pace = Pace::default();
            pace.now(Timestamp::from_millis(NOON), None);
            let now = ask(&pace, NOON, wall, 1_000).await;
            assert!((NOON + 999..=NOON + 1_001).contains(&now), "{wall:?}: {}", now - NOON);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_that_is_ahead_pulls_but_does_not_jump() {
        let pace = Pace::default();
        pace.now(Timestamp::from_millis(NOON), None);
        let now = ask(&pace, NOON, Some(NOON + HOUR), 1_000).await;
        assert!((NOON + 1_998..=NOON + 2_002).contains(&now), "{}", now - NOON);
        let now = ask(&pace, NOON, Some(now + 100), 1_000).await;
        assert!((NOON + 3_098..=NOON + 3_103).contains(&now), "{}", now - NOON);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_applied_is_never_in_the_future() {
        let pace = Pace::default();
        pace.now(Timestamp::from_millis(NOON), None);
        let now = ask(&pace, NOON + HOUR, Some(NOON), 10).await;
        assert!((NOON + HOUR + 9..=NOON + HOUR + 11).contains(&now));
    }
}
