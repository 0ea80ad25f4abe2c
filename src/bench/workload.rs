//! What is done next: the mixes, the choice of key, and the keys that are new.

use std::collections::VecDeque;
use std::time::Instant;

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};

use super::args::{Distribution, Plan, Workload};
use super::keys::Chooser;
use super::schedule::{Due, Pace, Schedule};
use super::wire::Ask;

/// Kinds of operations, which are told apart in the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Get,
    Put,
    Insert,
    Range,
    ReadModifyWrite,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub(super) const ALL: [Self; 5] =
        [Self::Get, Self::Put, Self::Insert, Self::Range, Self::ReadModifyWrite];

    /// As the report has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Insert => "insert",
            Self::Range => "range",
            Self::ReadModifyWrite => "read_modify_write",
        }
    }
}

/// Two kinds and the share of the first, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mix {
    first: Kind,
    percent: u32,
    second: Kind,
}

impl Mix {
    pub(super) const fn of(workload: Workload) -> Self {
        let (first, percent, second) = match workload {
            Workload::Get | Workload::YcsbC => (Kind::Get, 100, Kind::Get),
            Workload::Put => (Kind::Put, 100, Kind::Put),
            Workload::Range => (Kind::Range, 100, Kind::Range),
            Workload::YcsbA => (Kind::Get, 50, Kind::Put),
            Workload::YcsbB => (Kind::Get, 95, Kind::Put),
            Workload::YcsbD => (Kind::Get, 95, Kind::Insert),
            Workload::YcsbE => (Kind::Range, 95, Kind::Insert),
            Workload::YcsbF => (Kind::Get, 50, Kind::ReadModifyWrite),
        };
        Self { first, percent, second }
    }

    /// Which keys, when nobody says.
    pub(super) const fn distribution(workload: Workload) -> Distribution {
        match workload {
            Workload::Get | Workload::Put | Workload::Range => Distribution::Uniform,
            Workload::YcsbD => Distribution::Latest,
            _ => Distribution::Zipfian,
        }
    }

    fn draw(self, random: &mut SmallRng) -> Kind {
        let first = self.percent == 100 || random.random_range(0..100) < self.percent;
        if first { self.first } else { self.second }
    }
}

/// An operation to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub(super) kind: Kind,
    /// What it asks first.
    pub(super) ask: Ask,
    /// What a read-modify-write does with what it has read.
    pub(super) then: Option<Then>,
    /// When it was due; its latency counts from then.
    pub(super) due: Instant,
}

/// The write of a read-modify-write.
#[derive(Debug, Clone, Copy)]
pub(super) struct Then {
    key: u64,
    revision: u64,
    conditional: bool,
}

impl Then {
    /// The write, after `version` was read.
    pub(super) fn ask(self, version: u64) -> Ask {
        let if_version = self.conditional.then_some(version);
        Ask::Put { key: self.key, revision: self.revision, if_version }
    }
}

/// The keys that exist: those from the preload, and new ones up to the first that is not yet acknowledged, so that nobody looks for a
/// key that is on its way.
#[derive(Debug)]
pub(super) struct KnownKeys {
    inner: Mutex<Known>,
    max: u64,
}

#[derive(Debug)]
struct Known {
    /// All below exist.
    known: u64,
    /// From `known` on: whether it was stored. As long as the operations in flight at most.
    pending: VecDeque<bool>,
}

impl KnownKeys {
    pub(super) fn new(keys: u64, max: u64) -> Self {
        Self { inner: Mutex::new(Known { known: keys, pending: VecDeque::new() }), max }
    }

    fn count(&self) -> u64 {
        self.inner.lock().known
    }

    /// A key that nobody has; when there are no more, the last one again.
    fn begin(&self) -> u64 {
        let mut inner = self.inner.lock();
        let key = inner.known + inner.pending.len() as u64;
        if key >= self.max {
            return self.max - 1;
        }
        inner.pending.push_back(false);
        key
    }

    /// The operation that stored `key` has ended, in whatever way: a failure was counted as such.
    pub(super) fn end(&self, key: u64) {
        let mut inner = self.inner.lock();
        let place = key.checked_sub(inner.known).and_then(|place| usize::try_from(place).ok());
        if let Some(stored) = place.and_then(|place| inner.pending.get_mut(place)) {
            *stored = true;
        }
        while inner.pending.front() == Some(&true) {
            inner.pending.pop_front();
            inner.known += 1;
        }
    }
}

/// What one lane does.
pub(super) struct Source<'a> {
    mix: Mix,
    range_max: u32,
    conditional: bool,
    random: SmallRng,
    chooser: Chooser,
    pub(super) schedule: Schedule<'a>,
    known: &'a KnownKeys,
    /// Changes with inserts only; read once for each operation otherwise would cost a lock.
    fixed: Option<u64>,
    revision: u64,
}

/// The next operation of a lane.
pub(super) enum Next {
    Job(Job),
    /// Nothing before that time.
    At(Instant),
    Over,
}

impl<'a> Source<'a> {
    /// For lane `lane` of `lanes` in round `round`.
    pub(super) fn new(
        plan: &Plan,
        known: &'a KnownKeys,
        schedule: Schedule<'a>,
        round: u32,
        lane: u64,
        lanes: u64,
    ) -> Self {
        // Neighbouring numbers make unlike streams: the generator mixes its seed.
        let seed = plan.seed.wrapping_add(u64::from(round) << 32).wrapping_add(lane);
        let inserts = plan.mix.first == Kind::Insert || plan.mix.second == Kind::Insert;
        Self {
            mix: plan.mix,
            range_max: plan.range_max,
            conditional: plan.if_version,
            random: SmallRng::seed_from_u64(seed),
            chooser: Chooser::new(plan.distribution, plan.keys, lane, lanes),
            schedule,
            known,
            fixed: (!inserts).then(|| known.count()),
            revision: 0,
        }
    }

    /// The pace of lane `lane` of `lanes`.
    pub(super) fn pace(plan: &Plan, lane: u64, lanes: u64) -> Option<Pace> {
        plan.rate.map(|rate| Pace { rate, lane, lanes })
    }

    pub(super) fn next(&mut self, now: Instant) -> Next {
        match self.schedule.next(now) {
            Due::Since(due) => Next::Job(self.job(due)),
            Due::At(at) => Next::At(at),
            Due::Over => Next::Over,
        }
    }

    fn job(&mut self, due: Instant) -> Job {
        let kind = self.mix.draw(&mut self.random);
        self.revision = self.revision.wrapping_add(1);
        let revision = self.revision;
        if kind == Kind::Insert {
            let key = self.known.begin();
            return Job {
                kind,
                ask: Ask::Put { key, revision, if_version: None },
                then: None,
                due,
            };
        }
        let known = self.fixed.unwrap_or_else(|| self.known.count());
        let key = self.chooser.next(&mut self.random, known);
        let (ask, then) = match kind {
            Kind::Get => (Ask::Get { key }, None),
            Kind::Put | Kind::Insert => (Ask::Put { key, revision, if_version: None }, None),
            Kind::Range => {
                let limit = self.random.random_range(1..=self.range_max);
                let least = u32::try_from(known - key).unwrap_or(u32::MAX).min(limit);
                (Ask::Range { first: key, limit, least }, None)
            }
            Kind::ReadModifyWrite => {
                let then = Then { key, revision, conditional: self.conditional };
                (Ask::Get { key }, Some(then))
            }
        };
        Job { kind, ask, then, due }
    }

    /// The kind of most operations.
    pub(super) const fn main_kind(&self) -> Kind {
        self.mix.first
    }

    /// To be called for each job that has ended.
    pub(super) fn ended(&self, job: &Job) {
        if let (Kind::Insert, Ask::Put { key, .. }) = (job.kind, job.ask) {
            self.known.end(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

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

    fn jobs(words: &[&str], round: u32, count: usize) -> Vec<Job> {
        let plan = plan(words);
        let known = KnownKeys::new(plan.keys, plan.keys_max);
        let stop = AtomicBool::new(false);
        let began = Instant::now();
        let schedule = Schedule::new(began, Duration::from_secs(1), None, &stop);
        let mut source = Source::new(&plan, &known, schedule, round, 0, 1);
        let mut jobs = Vec::new();
        for _ in 0..count {
            let Next::Job(job) = source.next(began) else { panic!("a closed loop is always due") };
            source.ended(&job);
            jobs.push(job);
        }
        jobs
    }

    fn share(jobs: &[Job], kind: Kind) -> usize {
        jobs.iter().filter(|job| job.kind == kind).count() * 100 / jobs.len()
    }

    #[test]
    fn the_mixes_are_those_of_ycsb() {
        for (workload, first, percent, second) in [
            ("ycsb-a", Kind::Get, 50, Kind::Put),
            ("ycsb-b", Kind::Get, 95, Kind::Put),
            ("ycsb-c", Kind::Get, 100, Kind::Put),
            ("ycsb-d", Kind::Get, 95, Kind::Insert),
            ("ycsb-e", Kind::Range, 95, Kind::Insert),
            ("ycsb-f", Kind::Get, 50, Kind::ReadModifyWrite),
        ] {
            let jobs = jobs(&["--workload", workload], 1, 20_000);
            let (one, other) = (share(&jobs, first), share(&jobs, second));
            assert!(one.abs_diff(percent) <= 2, "{workload}: {one} %");
            assert!(other.abs_diff(100 - percent) <= 2, "{workload}: {other} %");
        }
    }

    #[test]
    fn a_seed_repeats_the_operations_and_rounds_differ() {
        let of = |round| -> Vec<Ask> {
            jobs(&["--workload", "ycsb-a"], round, 500).iter().map(|job| job.ask).collect()
        };
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn the_write_of_a_read_modify_write_takes_the_version_when_asked_to() {
        let then = |words| jobs(words, 1, 100).iter().find_map(|job| job.then).expect("some");
        let plain = then(&["--workload", "ycsb-f"]).ask(7);
        assert!(matches!(plain, Ask::Put { if_version: None, .. }));
        let conditional = then(&["--workload", "ycsb-f", "--if-version"]).ask(7);
        assert!(matches!(conditional, Ask::Put { if_version: Some(7), .. }));
    }

    #[test]
    fn a_range_expects_what_must_be_there() {
        for job in jobs(&["--workload", "range", "--range-max", "50"], 1, 2_000) {
            let Ask::Range { first, limit, least } = job.ask else { panic!("a range") };
            assert!((1..=50).contains(&limit) && first < 1_000);
            assert_eq!(u64::from(least), u64::from(limit).min(1_000 - first));
        }
    }

    #[test]
    fn a_new_key_is_known_when_all_before_it_are_stored() {
        let known = KnownKeys::new(10, 13);
        let keys = [known.begin(), known.begin(), known.begin()];
        assert_eq!((keys, known.count()), ([10, 11, 12], 10));
        known.end(11);
        assert_eq!(known.count(), 10);
        known.end(10);
        assert_eq!(known.count(), 12);
        known.end(12);
        assert_eq!(known.count(), 13);
        assert_eq!(known.begin(), 12, "no more keys have a text: the last one again");
        known.end(12);
        assert_eq!(known.count(), 13);
    }
}
