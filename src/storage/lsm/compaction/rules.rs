//! What a compaction may drop: pure, one user key at a time.
//!
//! Everybody who reads stands at a [`Moment`]: an open view at its own, all others at the present, which sees every
//! write. The moments cut the history of a key into **stripes**: the writes that became visible between one moment and
//! the next. A stripe is named by the first moment that sees it. Of each stripe only the newest write can matter, because
//! whoever sees the others sees it as well.
//!
//! | what | what becomes of it |
//! |---|---|
//! | a version with a newer one, or a newer range deletion of its key, in its stripe | dropped |
//! | a version that has expired by the clock of the first moment that sees it | a tombstone: without one, the older value in a deeper level would come back |
//! | a tombstone, or a range deletion, that everybody sees, with nothing of its keys in deeper levels | dropped |
//! | a value that everybody sees, with nothing of its key below it in any way | gets seqno 0, which costs no bytes |
//! | a range deletion with a newer one of the same range in its stripe | dropped |
//! | anything else | kept |
//!
//! "Everybody sees it" means: it is in the oldest stripe. All that a tombstone there hides is in that stripe too, or in
//! a deeper level.
//!
//! Views that began after the compaction read what it left, and see the present; so the list may be taken once.

use crate::storage::Seqno;
use crate::storage::lsm::key::{InternalEntry, Kind, SEQNO_MAX};
use crate::util::time::Timestamp;

/// A place from which somebody reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The newest write it sees.
    pub(crate) seqno: Seqno,
    /// Its clock.
    pub(crate) clock: Timestamp,
}

/// All moments that somebody reads from or will read from: those of the open views, and the present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Readers {
    /// From the oldest to the newest; the last one is the present.
    moments: Vec<Moment>,
}

/// The writes that one moment sees and the moment before it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Stripe(usize);

impl Stripe {
    /// What everybody sees.
    const OLDEST: Self = Self(0);
}

impl Readers {
    /// Those of open views, in any order, and of the present, whose clock is `clock`: that of what is flushed, see
    /// [`Flushed::clock`](crate::storage::lsm::version::Flushed). An older view never has a later clock.
    pub(crate) fn new(views: &[Moment], clock: Timestamp) -> Self {
        // A view may be ahead of what is flushed; of the log after that a crash may leave less.
        let view = |view: &Moment| Moment { clock: view.clock.min(clock), ..*view };
        let mut moments: Vec<_> = views.iter().map(view).collect();
        moments.push(Moment { seqno: SEQNO_MAX, clock });
        // Of those that see the same writes, the one with the earliest clock sees most.
        moments.sort_unstable_by_key(|moment| (moment.seqno, moment.clock));
        moments.dedup_by_key(|moment| moment.seqno);
        Self { moments }
    }

    /// Who sees least.
    pub(crate) fn oldest(&self) -> Moment {
        self.moments[0]
    }

    /// Who sees everything.
    pub(crate) fn present(&self) -> Moment {
        self.moments[self.moments.len() - 1]
    }

    /// Whether somebody sees the write `from`, or one after it, without seeing `hiding`, which is newer.
    pub(crate) fn any_between(&self, from: Seqno, hiding: Seqno) -> bool {
        self.stripe(from) != self.stripe(hiding)
    }

    fn stripe(&self, seqno: Seqno) -> Stripe {
        Stripe(self.moments.partition_point(|moment| moment.seqno < seqno))
    }

    /// Whether everybody who sees this version finds it expired.
    fn is_expired(&self, stripe: Stripe, entry: &InternalEntry<'_>) -> bool {
        entry.expires_at.is_some_and(|expires_at| expires_at <= self.moments[stripe.0].clock)
    }

    /// Of the range deletions that cover one range, newest first, those that stay. `is_last`: no deeper level has
    /// anything in the range.
    pub(crate) fn keep_deletions(&self, seqnos: &[Seqno], is_last: bool) -> Vec<Seqno> {
        let mut newer = None;
        let mut kept = seqnos.to_vec();
        kept.retain(|&seqno| {
            let stripe = self.stripe(seqno);
            let hidden = newer.replace(stripe) == Some(stripe);
            let everybody = is_last && stripe == Stripe::OLDEST;
            !hidden && !everybody
        });
        kept
    }
}

/// Goes through the versions of one user key, from the newest to the oldest.
#[derive(Debug)]
pub(crate) struct KeyRules<'a> {
    readers: &'a Readers,
    /// Seqnos of the range deletions that cover the key, newest first.
    covering: &'a [Seqno],
    /// No deeper level has anything about the key.
    is_last: bool,
    /// That of the version before.
    newer: Option<Stripe>,
}

impl<'a> KeyRules<'a> {
    /// For a key that the range deletions with the seqnos `covering`, newest first, cover; `is_last`: no deeper level
    /// has anything about it.
    pub(crate) const fn new(readers: &'a Readers, covering: &'a [Seqno], is_last: bool) -> Self {
        Self { readers, covering, is_last, newer: None }
    }

    /// What becomes of the next version; `None`: it is dropped.
    pub(crate) fn next<'e>(&mut self, entry: &InternalEntry<'e>) -> Option<InternalEntry<'e>> {
        let stripe = self.readers.stripe(entry.seqno);
        let has_newer = self.newer.replace(stripe) == Some(stripe);
        let newer_deletions = self.covering.partition_point(|&deletion| deletion > entry.seqno);
        let (newer, older) = self.covering.split_at(newer_deletions);
        // The oldest of the newer ones is the one that hides it from most.
        if has_newer || newer.last().is_some_and(|&seqno| self.readers.stripe(seqno) == stripe) {
            return None;
        }
        let everybody = self.is_last && stripe == Stripe::OLDEST;
        if entry.kind == Kind::Delete || self.readers.is_expired(stripe, entry) {
            let tombstone = InternalEntry::delete(entry.key, entry.seqno);
            return (!everybody).then_some(tombstone);
        }
        // With the seqno 0, it would fall to a range deletion that it is newer than.
        let seqno = if everybody && older.is_empty() { Seqno(0) } else { entry.seqno };
        Some(InternalEntry { seqno, ..*entry })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn moment(seqno: u64, clock: u64) -> Moment {
        Moment { seqno: Seqno(seqno), clock: Timestamp::from_millis(clock) }
    }

    fn readers(views: &[(u64, u64)], clock: u64) -> Readers {
        let views: Vec<_> = views.iter().map(|&(seqno, clock)| moment(seqno, clock)).collect();
        Readers::new(&views, Timestamp::from_millis(clock))
    }

    /// A version as a table of tests has it: `7=`, a value; `7=@50`, one that expires at 50; `7-`, a tombstone.
    fn parse(text: &str) -> InternalEntry<'static> {
        let at = text.find(['=', '-']).expect("= or -");
        let (seqno, rest) = (text[..at].parse().expect("a seqno"), &text[at..]);
        let expiry = rest.strip_prefix("=@").map(|expiry| expiry.parse().expect("a time"));
        if rest == "-" { delete(seqno) } else { put(seqno, expiry) }
    }

    fn delete(seqno: u64) -> InternalEntry<'static> {
        InternalEntry::delete(b"k", Seqno(seqno))
    }

    fn put(seqno: u64, expires_at: Option<u64>) -> InternalEntry<'static> {
        InternalEntry::put(b"k", Seqno(seqno), b"v", expires_at.map(Timestamp::from_millis))
    }

    fn show(entry: &InternalEntry<'_>) -> String {
        let seqno = entry.seqno.0;
        match (entry.kind, entry.expires_at) {
            (Kind::Delete, _) => format!("{seqno}-"),
            (_, None) => format!("{seqno}="),
            (_, Some(at)) => format!("{seqno}=@{}", at.as_millis()),
        }
    }

    fn apply(
        readers: &Readers,
        versions: &[InternalEntry<'static>],
        covering: &[Seqno],
        is_last: bool,
    ) -> Vec<InternalEntry<'static>> {
        let mut rules = KeyRules::new(readers, covering, is_last);
        versions.iter().filter_map(|entry| rules.next(entry)).collect()
    }

    #[test]
    fn versions_of_a_key_become_what_the_rules_say() {
        // Views (seqno, clock), clock, versions, range deletions, deeper levels: what is left.
        type Row = (&'static [(u64, u64)], u64, &'static str, &'static [u64], bool, &'static str);
        const DEEPER: bool = false;
        const LAST: bool = true;
        let table: &[Row] = &[
            // Newer versions hide older ones, unless a view stands between.
            (&[], 0, "9= 7= 5=", &[], DEEPER, "9="),
            (&[(8, 0)], 0, "9= 7= 5=", &[], DEEPER, "9= 7="),
            (&[(9, 0)], 0, "9= 7= 5=", &[], DEEPER, "9="),
            (&[(4, 0)], 0, "9= 7= 5=", &[], DEEPER, "9="),
            (&[(5, 0), (7, 0)], 0, "9= 7= 5=", &[], DEEPER, "9= 7= 5="),
            // Seqno zero: only in the last level, only what everybody sees.
            (&[], 0, "9= 7=", &[], LAST, "0="),
            (&[(8, 0)], 0, "9= 7=", &[], LAST, "9= 0="),
            // Tombstones go in the last level, when everybody sees them.
            (&[], 0, "9- 7=", &[], DEEPER, "9-"),
            (&[], 0, "9- 7=", &[], LAST, ""),
            (&[(8, 0)], 0, "9- 7=", &[], LAST, "9- 0="),
            (&[(8, 0)], 0, "9- 7-", &[], LAST, "9-"),
            (&[(6, 0)], 0, "9- 7=", &[], LAST, "9-"),
            // Expired values become tombstones, and go where those go.
            (&[], 50, "9=@50 7=", &[], DEEPER, "9-"),
            (&[], 49, "9=@50 7=", &[], DEEPER, "9=@50"),
            (&[], 50, "9=@50 7=", &[], LAST, ""),
            (&[], 49, "9=@50 7=", &[], LAST, "0=@50"),
            // What has expired by now has not for a view with an older clock.
            (&[(9, 40)], 60, "9=@50 7=", &[], LAST, "0=@50"),
            (&[(9, 50)], 60, "9=@50 7=", &[], LAST, ""),
            (&[(8, 40)], 60, "9=@50 7=@50", &[], LAST, "9- 0=@50"),
            // Of two views of the same writes, the one with the older clock counts.
            (&[(9, 55), (9, 40)], 60, "9=@50", &[], LAST, "0=@50"),
            // A view whose clock is ahead of what is flushed.
            (&[(9, 70)], 40, "9=@50", &[], DEEPER, "9=@50"),
            // Range deletions hide what is older, unless a view stands between.
            (&[], 0, "9= 7=", &[8], DEEPER, "9="),
            (&[], 0, "7= 5=", &[8], DEEPER, ""),
            (&[(7, 0)], 0, "7= 5=", &[8], DEEPER, "7="),
            (&[(8, 0)], 0, "7= 5=", &[8], DEEPER, ""),
            (&[(7, 0)], 0, "6= 5=", &[9, 6], DEEPER, "6="),
            (&[(6, 0)], 0, "5= 4=", &[9, 6], DEEPER, ""),
            // With seqno zero, the older range deletion would hide what is newer than it.
            (&[], 0, "9=", &[8], LAST, "9="),
            (&[(7, 0)], 0, "7=", &[9], LAST, "0="),
        ];
        for (views, clock, versions, covering, is_last, expected) in table {
            let readers = readers(views, *clock);
            let covering: Vec<_> = covering.iter().map(|&seqno| Seqno(seqno)).collect();
            let before: Vec<_> = versions.split_whitespace().map(parse).collect();
            let after = apply(&readers, &before, &covering, *is_last);
            let shown: Vec<_> = after.iter().map(show).collect();
            let what =
                format!("views {views:?}, clock {clock}, {versions}, deletions {covering:?}");
            assert_eq!(shown.join(" "), *expected, "{what}, last {is_last}");
        }
    }

    #[test]
    fn of_range_deletions_the_newest_of_each_stripe_stays_and_in_the_last_level_none_that_all_see()
    {
        let kept = |views: &[(u64, u64)], is_last| {
            let seqnos = [9, 7, 5, 3].map(Seqno);
            readers(views, 0)
                .keep_deletions(&seqnos, is_last)
                .iter()
                .map(|s| s.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(&[], false), [9]);
        assert!(kept(&[], true).is_empty());
        assert_eq!(kept(&[(6, 0)], false), [9, 5]);
        assert_eq!(kept(&[(6, 0)], true), [9]);
        assert_eq!(kept(&[(2, 0)], true), [9]);
    }

    /// One write to the key.
    #[derive(Debug, Clone, Copy)]
    enum Write {
        Put(Option<u64>),
        Delete,
        DeleteRange,
    }

    /// What a read at `moment` sees of writes by seqno: whether there is a value, and when it expires.
    fn read(history: &BTreeMap<u64, Write>, moment: Moment) -> Option<u64> {
        match history.range(..=moment.seqno.0).next_back()?.1 {
            Write::Put(Some(at)) if *at <= moment.clock.as_millis() => None,
            Write::Put(at) => Some(at.unwrap_or(u64::MAX)),
            Write::Delete | Write::DeleteRange => None,
        }
    }

    fn write() -> impl Strategy<Value = Write> {
        prop_oneof![
            3 => proptest::option::of(0..100u64).prop_map(Write::Put),
            1 => Just(Write::Delete),
            1 => Just(Write::DeleteRange),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        /// Every view, and every later read at the present, with any clock from now on, sees what it saw: also of an
        /// older write in a deeper level, when there may be one.
        #[test]
        fn every_reader_sees_what_it_saw(
            writes in proptest::collection::vec((write(), 1..3u64), 0..12),
            mut views in proptest::collection::vec((0..30u64, 0..100u64), 0..5),
            clock in 50..100u64,
            deeper in proptest::option::of(proptest::option::of(0..100u64)),
        ) {
            // Later views have later clocks.
            let mut clocks: Vec<_> = views.iter().map(|view| view.1.min(clock)).collect();
            clocks.sort_unstable();
            views.sort_unstable();
            views.iter_mut().zip(clocks).for_each(|(view, clock)| view.1 = clock);
            let mut history = BTreeMap::new();
            let mut seqno = 1;
            if let Some(value) = deeper {
                history.insert(seqno, Write::Put(value));
            }
            for (write, step) in writes {
                seqno += step;
                history.insert(seqno, write);
            }
            let here = || history.iter().rev().filter(|(seqno, _)| **seqno > 1);
            let versions: Vec<_> = here().filter_map(|(&seqno, write)| match write {
                Write::Put(at) => Some(put(seqno, *at)),
                Write::Delete => Some(delete(seqno)),
                Write::DeleteRange => None,
            }).collect();
            let deletions: Vec<_> = here()
                .filter(|(_, write)| matches!(write, Write::DeleteRange))
                .map(|(&seqno, _)| Seqno(seqno))
                .collect();
            views.reverse();
            let readers = readers(&views, clock);
            let is_last = deeper.is_none();
            let after = apply(&readers, &versions, &deletions, is_last);
            let deletions_after = readers.keep_deletions(&deletions, is_last);

            let mut left = BTreeMap::new();
            if let Some(value) = deeper {
                left.insert(1, Write::Put(value));
            }
            for entry in &after {
                let write = match entry.kind {
                    Kind::Delete => Write::Delete,
                    _ => Write::Put(entry.expires_at.map(Timestamp::as_millis)),
                };
                prop_assert!(left.insert(entry.seqno.0, write).is_none(), "two of one seqno");
            }
            for seqno in &deletions_after {
                prop_assert!(left.insert(seqno.0, Write::DeleteRange).is_none());
            }
            let moments = views.iter().map(|&(seqno, clock)| moment(seqno, clock));
            let present = [0, 1, 7, 50, 100].map(|later| moment(SEQNO_MAX.0, clock + later));
            for moment in moments.chain(present) {
                prop_assert_eq!(read(&left, moment), read(&history, moment), "{:?}, {:?}", moment, left);
            }
            // Nothing stays that no rule keeps: at most one thing for each reader.
            prop_assert!(after.len() <= views.len() + 1);
            if views.is_empty() && is_last {
                let live = read(&history, moment(SEQNO_MAX.0, clock)).is_some();
                prop_assert_eq!(after.len() + deletions_after.len(), usize::from(live));
            }
        }
    }
}
