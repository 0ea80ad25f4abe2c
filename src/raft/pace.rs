//! The time that a leader stamps: the group's own clock, carried on.
//!
//! A node's wall clock may be wrong by any amount. A stamp far ahead would expire every key with a ttl and forget every request id at once, and a clock that has
//! been ahead and is right again would stand still until it is overtaken. So the wall clock does not decide what time it is in a group:
//!
//! * The group's clock is the largest stamp that was applied. Each replica carries it on by its monotonic clock from when it saw it, and a leader stamps that.
//! * A leader whose wall clock is ahead goes faster by a [`PULL`]th until it has caught up. So a key lives for its ttl, but for as small a part of it, whatever clocks say; and time
//!   in which no replica ran counts for nothing (leases of etcd are kept so, too).
//! * What a leader has added goes with its term, unless it was applied: one that was cut off and took itself for the leader brings nothing back.
//! * It never goes back. A wall clock that is behind changes nothing.
//! * The first stamp of a group is the wall clock's.
//!
//! Called by the group: by a leader for each entry, by followers now and then, to have seen the clock.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::util::time::Timestamp;

/// A wall clock that is ahead makes time go faster by one part in so many: enough for monotonic clocks that run at different rates.
const PULL: u32 = 1_000;

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The group's clock, and since when it is known here.
    group: Option<Seen>,
    own: Option<Own>,
}

/// What this replica stamped last, as leader.
#[derive(Debug, Clone, Copy)]
struct Own {
    term: u64,
    seen: Seen,
    /// By how much its wall clock may pull the time now.
    pull: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    time: Timestamp,
    at: Instant,
}

/// What a leader's time depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leads {
    pub(super) term: u64,
    pub(super) wall: Timestamp,
}

impl Pace {
    /// The time of the group whose clock is `applied`.
    pub(super) fn now(&self, applied: Timestamp, leads: Option<Leads>) -> Timestamp {
        if applied == Timestamp::BEGINNING {
            return leads.map_or(applied, |leads| leads.wall);
        }
        let at = Instant::now();
        let mut state = self.0.lock();
        let known = state.group.filter(|known| known.time == applied);
        let group = known.unwrap_or(Seen { time: applied, at });
        state.group = Some(group);
        let carried = group.time.saturating_add(group.at.elapsed());
        let Some(Leads { term, wall }) = leads else {
            state.own = None;
            return carried;
        };
        let begun = Own { term, seen: Seen { time: carried, at }, pull: Duration::ZERO };
        let Own { seen, pull, .. } = state.own.filter(|own| own.term == term).unwrap_or(begun);
        // What is left of a millisecond counts the next time.
        let passed = whole_millis(seen.at.elapsed());
        let time = seen.time.saturating_add(passed);
        let pull = (pull + passed / PULL).min(wall.saturating_since(time));
        let pulled = whole_millis(pull);
        let time = time.saturating_add(pulled).max(applied);
        let seen = Seen { time, at: seen.at + passed };
        state.own = Some(Own { term, seen, pull: pull.saturating_sub(pulled) });
        time
    }
}

fn whole_millis(duration: Duration) -> Duration {
    Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn leads(term: u64, wall: u64) -> Leads {
        Leads { term, wall: Timestamp::from_millis(wall) }
    }

    /// Asks every few microseconds for `millis`, with a wall clock that goes on from `wall`; the last answer.
    async fn ask(pace: &Pace, applied: u64, wall: Option<u64>, millis: u64) -> u64 {
        let began = Instant::now();
        let mut last = 0;
        while began.elapsed() < Duration::from_millis(millis) {
            tokio::time::advance(Duration::from_micros(700)).await;
            let passed = u64::try_from(began.elapsed().as_millis()).expect("a short time");
            let leads = wall.map(|wall| leads(1, wall + passed));
            let now = pace.now(Timestamp::from_millis(applied), leads).as_millis();
            assert!(now >= last, "it goes back from {last} to {now}");
            last = now;
        }
        last
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_time_of_a_group_is_the_leaders() {
        let pace = Pace::default();
        let noon = Timestamp::from_millis(NOON);
        assert_eq!(pace.now(Timestamp::BEGINNING, Some(leads(1, NOON))), noon);
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
        let now = ask(&pace, NOON, Some(NOON + HOUR), 10_000).await;
        assert!((NOON + 10_008..=NOON + 10_011).contains(&now), "{}", now - NOON);
        let now = ask(&pace, NOON, Some(now + 3), 10_000).await;
        assert!((NOON + 20_009..=NOON + 20_014).contains(&now), "{}", now - NOON);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_applied_is_never_in_the_future() {
        let pace = Pace::default();
        pace.now(Timestamp::from_millis(NOON), None);
        let now = ask(&pace, NOON + HOUR, Some(NOON), 10).await;
        assert!((NOON + HOUR + 9..=NOON + HOUR + 11).contains(&now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_cut_off_brings_nothing_of_its_time_back() {
        let pace = Pace::default();
        let (noon, later) = (Timestamp::from_millis(NOON), Timestamp::from_millis(NOON + 20_000));
        pace.now(noon, Some(leads(1, NOON)));
        let ahead = ask(&pace, NOON, Some(NOON + HOUR), 20_000).await;
        assert!(ahead > NOON + 20_010);
        // Meanwhile another one led, whose clock was right.
        assert_eq!(pace.now(later, Some(leads(3, NOON + HOUR))), later);
        let ahead = ask(&pace, NOON + 20_000, Some(NOON + HOUR), 20_000).await;
        assert!(ahead > NOON + 40_010);
        let now = pace.now(later.saturating_add(Duration::from_secs(20)), None).as_millis();
        assert_eq!(now, NOON + 40_000);
    }
}
