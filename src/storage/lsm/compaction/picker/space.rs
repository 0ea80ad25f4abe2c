//! Work that only saves space: tables that nobody sees anything of, tombstones, expired entries, and what an operator
//! asks for.
//!
//! Each of these ends: rewriting a table leaves nothing in it for which it would be picked again. That is why tombstones
//! are left alone as long as some view keeps them from being dropped.

use std::sync::Arc;

use super::{Choice, Hints, Input, Picker, PickerOptions};
use crate::storage::lsm::files::{FileNumber, TableFile};
use crate::storage::lsm::level::Span;
use crate::storage::lsm::table::{Fragment, Properties};
use crate::storage::lsm::version::{LAST_LEVEL, LEVELS, Version};
use crate::storage::{KeyRange, Seqno};
use crate::util::time::Timestamp;

impl Picker<'_> {
    /// All tables that nobody sees anything of.
    pub(super) fn dead(self) -> Option<Choice> {
        let mut inputs = Vec::new();
        for level in 0..LEVELS {
            let dead = |table: &&Arc<TableFile>| self.is_dead(level, table);
            let tables: Vec<_> =
                self.version.level(level).tables().iter().filter(dead).cloned().collect();
            if !tables.is_empty() {
                inputs.push(Input { level, tables });
            }
        }
        (!inputs.is_empty()).then_some(Choice::Delete(inputs))
    }

    fn is_dead(self, level: usize, table: &Arc<TableFile>) -> bool {
        if self.hints.running.takes(table) {
            return false;
        }
        self.hints.deletions.iter().any(|run| self.is_deleted(table, run))
            || self.is_empty_for_all(table) && self.hides_nothing(level, table)
    }

    /// Whether there is nothing older of its keys.
    fn hides_nothing(self, level: usize, table: &TableFile) -> bool {
        let older = |other: &Arc<TableFile>| {
            other.properties().seqno_max < table.properties().seqno_min
                && Span::of(other).overlaps(Span::of(table))
        };
        let among_level_zero = level == 0 && self.version.level(0).tables().iter().any(older);
        !among_level_zero && self.is_last(level, Span::of(table))
    }

    /// Whether newer range deletions hide all of the table from all who see some of it. What its own tombstones hide in
    /// deeper levels, those hide as well.
    fn is_deleted(self, table: &TableFile, run: &[Fragment]) -> bool {
        let (span, properties) = (Span::of(table), table.properties());
        let readers = self.hints.readers;
        let hides = |&deletion: &Seqno| {
            deletion > properties.seqno_max && !readers.any_between(properties.seqno_min, deletion)
        };
        let mut from = span.start;
        for fragment in &run[run.partition_point(|fragment| *fragment.end <= *from)..] {
            if *fragment.start > *from || !fragment.seqnos.iter().any(hides) {
                return false;
            }
            if span.is_before(&fragment.end) {
                return true;
            }
            from = &fragment.end;
        }
        false
    }

    /// Whether everything in the table is a tombstone or has expired, and everybody sees it so.
    fn is_empty_for_all(self, table: &TableFile) -> bool {
        let (properties, oldest) = (table.properties(), self.hints.readers.oldest());
        let expired = properties.latest_expiry.is_none_or(|latest| latest <= oldest.clock);
        properties.seqno_max <= oldest.seqno
            && expired
            && properties.deletions + properties.expiring == properties.entries
    }

    /// Takes the table with most tombstones nearer to where they can be dropped.
    pub(super) fn tombstones(self) -> Option<Choice> {
        let oldest = self.hints.readers.oldest().seqno;
        self.clean_worst(|properties| {
            if properties.seqno_max > oldest {
                return None;
            }
            // One range deletion may free more than any count says.
            if properties.range_deletions > 0 {
                return Some(100);
            }
            let dense = u64::from(properties.dense_blocks) * 100;
            let percent = dense.checked_div(u64::from(properties.data_blocks))?;
            (dense > 0 && percent >= self.options.dense_percent).then_some(percent)
        })
    }

    /// Rewrites the table with the largest share of expired entries.
    pub(super) fn expired(self) -> Option<Choice> {
        let clock = self.hints.readers.oldest().clock;
        self.clean_worst(|properties| {
            let earliest = properties.earliest_expiry.filter(|&earliest| earliest <= clock)?;
            let percent = expired_percent(properties, clock);
            let overdue = clock.saturating_since(earliest) >= self.options.expired_for;
            (overdue || percent >= self.options.expired_percent).then_some(percent)
        })
    }

    /// Cleans the table that has most of what is dead by `badness`; `None` is a table to be left alone.
    fn clean_worst(self, badness: impl Fn(&Properties) -> Option<u64>) -> Option<Choice> {
        let mut worst = Vec::new();
        for level in 0..LEVELS {
            for (index, table) in self.version.level(level).tables().iter().enumerate() {
                worst.extend(badness(table.properties()).map(|badness| (badness, level, index)));
            }
        }
        worst.sort_by_key(|&(badness, level, index)| (std::cmp::Reverse(badness), level, index));
        worst.into_iter().find_map(|(_, level, index)| self.clean(level, index))
    }
}

/// How many of 100 entries have expired, were they spread evenly from the first to the last.
fn expired_percent(properties: &Properties, clock: Timestamp) -> u64 {
    let (Some(earliest), Some(latest)) = (properties.earliest_expiry, properties.latest_expiry)
    else {
        return 0;
    };
    let passed = clock.min(latest).saturating_since(earliest).as_millis() + 1;
    let whole = latest.saturating_since(earliest).as_millis() + 1;
    let expired = u128::from(properties.expiring) * passed / whole;
    let percent = (expired * 100).checked_div(u128::from(properties.entries)).unwrap_or(0);
    u64::try_from(percent).unwrap_or(100)
}

/// A range that an operator wants rewritten: all of it comes down to the last level, and what lies there already is rewritten.
#[derive(Debug, Clone)]
pub(crate) struct Manual {
    /// First key.
    pub(crate) start: Vec<u8>,
    /// First key beyond.
    pub(crate) end: Option<Vec<u8>>,
    /// What was flushed when it began: later writes are not waited for.
    pub(crate) upto: Seqno,
    /// Tables from this number on were written after it began.
    pub(crate) before: FileNumber,
}

/// What to do next for a [`Manual`].
#[derive(Debug, Clone)]
pub(crate) enum ManualStep {
    /// This.
    Do(Choice),
    /// Ask again when a running compaction has ended.
    Wait,
    /// It is done.
    Done,
}

/// The next step of a manual compaction.
pub(crate) fn choose_manual(
    version: &Version,
    options: &PickerOptions,
    hints: &Hints<'_>,
    manual: &Manual,
) -> ManualStep {
    let picker = Picker { version, options, hints };
    let wait_or = |choice: Option<Choice>| choice.map_or(ManualStep::Wait, ManualStep::Do);
    let span = Span::from(KeyRange::new(&manual.start, manual.end.as_deref()));
    let concerned = |table: &Arc<TableFile>| {
        Span::of(table).overlaps(span) && table.properties().seqno_min <= manual.upto
    };
    if version.level(0).tables().iter().any(concerned) {
        return wait_or(picker.level_zero());
    }
    for level in 1..LAST_LEVEL {
        let tables = version.level(level).tables().iter().enumerate();
        let concerned: Vec<_> = tables.filter(|(_, t)| concerned(t)).map(|(at, _)| at).collect();
        if !concerned.is_empty() {
            return wait_or(concerned.into_iter().find_map(|at| picker.push_down(level, at)));
        }
    }
    let clock = hints.readers.oldest().clock;
    let last = version.level(LAST_LEVEL);
    let unclean = |&at: &usize| {
        let table = &last.tables()[at];
        table.number() < manual.before && has_garbage(table.properties(), clock)
    };
    let unclean: Vec<_> = last.range(span).filter(unclean).collect();
    if unclean.is_empty() {
        return ManualStep::Done;
    }
    wait_or(unclean.into_iter().find_map(|at| picker.clean(LAST_LEVEL, at)))
}

/// Whether rewriting a table of the last level may make it smaller.
fn has_garbage(properties: &Properties, clock: Timestamp) -> bool {
    properties.entries > properties.distinct_keys
        || properties.deletions > 0
        || properties.range_deletions > 0
        || properties.earliest_expiry.is_some_and(|earliest| earliest <= clock)
}
