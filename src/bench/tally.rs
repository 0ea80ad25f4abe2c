//! What the operations of a round came to: latencies by kind, failures by what failed.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::wire::Wrong;
use super::workload::Kind;

/// Latencies are told apart from here; in nanoseconds.
const LATENCY_MIN: u64 = 64;

/// Longer ones count as this long; no call may last longer (`kvstore.limits.deadline-max`).
const LATENCY_MAX: u64 = 120_000_000_000;

/// Digits that a latency is exact to.
const DIGITS: u8 = 3;

/// An example is cut after so many characters.
const EXAMPLE_CHARS: usize = 200;

/// Different failures that are told apart; servers cannot make more names than there are codes.
const NAMES_MAX: usize = 64;

/// Why an operation is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server refused, with a code of gRPC.
    Status(i32, String),
    /// The server answered with another HTTP status than 200.
    Http(u16, String),
    /// What came back is not the answer.
    Wrong(Wrong),
    /// The connection broke, or could not be opened.
    Transport(String),
    /// No answer came in time.
    Unanswered,
}

impl From<Wrong> for Failure {
    fn from(wrong: Wrong) -> Self {
        Self::Wrong(wrong)
    }
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Self {
        Self::Transport(error.to_string())
    }
}

impl Failure {
    /// The code of a condition that did not hold.
    const ABORTED: i32 = tonic::Code::Aborted as i32;

    /// Whether a condition on a version did not hold.
    pub(super) const fn is_conflict(&self) -> bool {
        matches!(self, Self::Status(Self::ABORTED, _) | Self::Http(409, _))
    }

    /// Whether nothing more will come over this connection.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::Transport(_))
    }

    fn name(&self) -> String {
        match self {
            Self::Status(code, _) => code_name(*code),
            Self::Http(status, _) => format!("HTTP {status}"),
            Self::Wrong(_) => "wrong answer".to_owned(),
            Self::Transport(_) => "transport".to_owned(),
            Self::Unanswered => "unanswered".to_owned(),
        }
    }

    fn example(&self) -> String {
        let text = match self {
            Self::Status(_, text) | Self::Http(_, text) | Self::Transport(text) => text,
            Self::Wrong(Wrong(text)) => *text,
            Self::Unanswered => "no answer after the end of the round",
        };
        text.chars().take(EXAMPLE_CHARS).collect()
    }
}

/// A code of gRPC in its usual form: `NOT_FOUND`.
fn code_name(code: i32) -> String {
    let words = format!("{:?}", tonic::Code::from_i32(code));
    let mut name = String::new();
    for letter in words.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// How often something failed, and the first example.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Failed {
    pub(super) count: u64,
    pub(super) example: String,
}

/// Everything that is counted. Merges.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    latencies: [Option<Histogram<u64>>; Kind::ALL.len()],
    pub(super) failures: BTreeMap<String, Failed>,
    /// Conditions that did not hold; the operation counts.
    pub(super) conflicts: u64,
    /// Operations that were due and never sent; their wait until the end counts as latency, not as an operation.
    pub(super) unsent: u64,
}

impl Tally {
    /// Counts what an operation came to, `latency` after it was due.
    pub(super) fn record(&mut self, kind: Kind, latency: Duration, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => self.record_latency(kind, latency),
            Err(failure) if failure.is_conflict() && kind == Kind::ReadModifyWrite => {
                self.conflicts += 1;
                self.record_latency(kind, latency);
            }
            Err(failure) => self.fail(&failure),
        }
    }

    fn record_latency(&mut self, kind: Kind, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let histogram = self.latencies[kind as usize].get_or_insert_with(histogram);
        histogram.saturating_record(nanos);
    }

    /// Counts operations that were due and never sent, with their wait so far: their latency would have been longer.
    pub(super) fn record_unsent(&mut self, kind: Kind, wait: Duration, count: u64) {
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        self.unsent += count;
        let histogram = self.latencies[kind as usize].get_or_insert_with(histogram);
        histogram.saturating_record_n(nanos, count);
    }

    /// Counts a failure.
    pub(super) fn fail(&mut self, failure: &Failure) {
        let name = failure.name();
        if let Some(failed) = self.failures.get_mut(&name) {
            failed.count += 1;
            return;
        }
        let name = if self.failures.len() < NAMES_MAX { name } else { "others".to_owned() };
        let failed = self
            .failures
            .entry(name)
            .or_insert_with(|| Failed { count: 0, example: failure.example() });
        failed.count += 1;
    }

    /// Adds what another has counted.
    pub(super) fn merge(&mut self, other: Self) {
        for (mine, theirs) in self.latencies.iter_mut().zip(other.latencies) {
            match (mine.as_mut(), theirs) {
                (Some(mine), Some(theirs)) => {
                    mine.add(theirs).expect("all histograms have the same bounds");
                }
                (None, theirs) => *mine = theirs,
                (Some(_), None) => {}
            }
        }
        for (name, failed) in other.failures {
            let mine = self
                .failures
                .entry(name)
                .or_insert_with(|| Failed { count: 0, example: failed.example });
            mine.count += failed.count;
        }
        self.conflicts += other.conflicts;
        self.unsent += other.unsent;
    }

    /// Operations that were answered rightly.
    pub(super) fn operations(&self) -> u64 {
        let recorded: u64 = self.latencies.iter().flatten().map(Histogram::len).sum();
        recorded - self.unsent
    }

    /// Operations that failed.
    pub(super) fn errors(&self) -> u64 {
        self.failures.values().map(|failed| failed.count).sum()
    }

    /// The latencies of each kind that occurred.
    pub(super) fn kinds(&self) -> impl Iterator<Item = (Kind, &Histogram<u64>)> {
        Kind::ALL
            .into_iter()
            .filter_map(|kind| Some((kind, self.latencies[kind as usize].as_ref()?)))
    }

    /// The latencies of all kinds together.
    pub(super) fn all(&self) -> Histogram<u64> {
        let mut all = histogram();
        for (_, latencies) in self.kinds() {
            all.add(latencies).expect("all histograms have the same bounds");
        }
        all
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(LATENCY_MIN, LATENCY_MAX, DIGITS).expect("the bounds are legal")
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn merged_tallies_are_as_one_that_saw_all() {
        let (mut one, mut other, mut both) = (Tally::default(), Tally::default(), Tally::default());
        for number in 1..=1_000_u32 {
            let kind = if number % 3 == 0 { Kind::Put } else { Kind::Get };
            let part = if number % 2 == 0 { &mut one } else { &mut other };
            part.record(kind, MILLI * number, Ok(()));
            both.record(kind, MILLI * number, Ok(()));
        }
        let failure = Failure::Status(14, "away".to_owned());
        other.fail(&failure);
        both.fail(&failure);
        other.record_unsent(Kind::Get, MILLI, 1);
        both.record_unsent(Kind::Get, MILLI, 1);
        one.merge(other);
        assert_eq!(one.all(), both.all());
        assert_eq!(one.failures, both.failures);
        assert_eq!((one.operations(), one.errors(), one.unsent), (1_000, 1, 1));
        let median = one.all().value_at_quantile(0.5);
        assert!(median.abs_diff(500_000_000) < 2_000_000, "{median}");
        let kinds: Vec<_> = one.kinds().map(|(kind, latencies)| (kind, latencies.len())).collect();
        assert_eq!(kinds, [(Kind::Get, 668), (Kind::Put, 333)]);
    }

    #[test]
    fn failures_are_no_operations_and_stand_under_their_code() {
        let mut tally = Tally::default();
        for failure in [
            Failure::Status(5, "the key does not exist".to_owned()),
            Failure::Status(5, "another".to_owned()),
            Failure::Status(4, "x".repeat(1_000)),
            Failure::Http(429, String::new()),
            Failure::Wrong(Wrong("the answer has another key")),
            Failure::Unanswered,
        ] {
            tally.record(Kind::Get, MILLI, Err(failure));
        }
        assert_eq!((tally.operations(), tally.errors()), (0, 6));
        let names: Vec<_> = tally.failures.keys().map(String::as_str).collect();
        let expected = ["DEADLINE_EXCEEDED", "HTTP 429", "NOT_FOUND", "unanswered", "wrong answer"];
        assert_eq!(names, expected);
        assert_eq!(tally.failures["NOT_FOUND"].count, 2);
        assert_eq!(tally.failures["NOT_FOUND"].example, "the key does not exist");
        assert_eq!(tally.failures["DEADLINE_EXCEEDED"].example.len(), 200);
    }

    #[test]
    fn a_conflict_is_an_error_only_where_nobody_asked_for_a_condition() {
        let mut tally = Tally::default();
        let conflict = || Err(Failure::Status(10, String::new()));
        tally.record(Kind::ReadModifyWrite, MILLI, conflict());
        assert_eq!((tally.operations(), tally.conflicts, tally.errors()), (1, 1, 0));
        tally.record(Kind::Put, MILLI, conflict());
        assert_eq!((tally.operations(), tally.conflicts, tally.errors()), (1, 1, 1));
    }

    #[test]
    fn names_of_failures_are_bounded() {
        let mut tally = Tally::default();
        for status in 0..1_000 {
            tally.fail(&Failure::Http(status, String::new()));
        }
        assert!(tally.failures.len() <= NAMES_MAX + 1);
        assert_eq!(tally.errors(), 1_000);
    }

    #[test]
    fn a_latency_beyond_the_bounds_counts_as_the_bound() {
        let mut tally = Tally::default();
        tally.record(Kind::Get, Duration::from_hours(1), Ok(()));
        tally.record(Kind::Get, Duration::ZERO, Ok(()));
        assert_eq!(tally.operations(), 2);
        assert!(tally.all().max() >= LATENCY_MAX);
    }
}
