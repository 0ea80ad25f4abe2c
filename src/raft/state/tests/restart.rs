//! Restarts: what was flushed is there, and belongs together, wherever the power was lost; the log has the rest.

use super::*;

const ENTRIES: usize = 70;

/// Snapshots of other replicas that come while this one is applied up to some entry: when, and which entry is the first that they do not cover.
const RECEIVED: [(usize, usize); 2] = [(12, 25), (40, 52)];

/// A disk with what was received of other replicas, and of which history.
struct Base {
    fs: SimFileSystem,
    seed: u64,
    history: History,
}

impl Base {
    async fn new(seed: u64) -> Self {
        let history = History::new(seed, ENTRIES).await;
        let fs = SimFileSystem::new(seed);
        let environment: Arc<dyn Environment> = lsm(&fs, 1, seed).expect("opens");
        let other = open(&environment, &LogStub::new());
        for (_, covers) in RECEIVED {
            apply(&other, &history.entries[next(&other)..covers]).await.expect("applies");
            other.engine().checkpoint(&received(covers)).expect("copies");
        }
        Self { fs, seed, history }
    }

    /// Applies, builds and installs on node 0 of `fs` until all is applied or the power is lost; the last entry that the log may be purged up to.
    async fn run(&self, fs: &SimFileSystem) -> Option<LogId> {
        let mut flushed = None;
        let outcome = self.try_run(fs, &mut flushed).await;
        assert!(outcome.is_ok() || fs.crashed(), "seed {}: {outcome:?}", self.seed);
        flushed
    }

    async fn try_run(&self, fs: &SimFileSystem, flushed: &mut Option<LogId>) -> io::Result<()> {
        let failed = |error: crate::storage::Error| to_io(error.into());
        let lsm = lsm(fs, 0, self.seed).map_err(failed)?;
        let environment: Arc<dyn Environment> = lsm.clone();
        let log = LogStub::on(fs, "/log")?;
        let state = ReplicaState::open(environment, GROUP, log).map_err(to_io)?;
        let mut received_next = RECEIVED.iter().peekable();
        let mut round = self.seed;
        while next(&state) < ENTRIES {
            round += 1;
            let from = next(&state);
            let to = ENTRIES.min(from + [1, 3, 8][usize::try_from(round % 3).expect("small")]);
            apply(&state, &self.history.entries[from..to]).await?;
            if !fs.crashed() {
                assert_eq!(hash(&state), self.history.hashes[next(&state)]);
            }
            if round.is_multiple_of(4) {
                *flushed = (*flushed).max(build(&state).await?.last_log_id);
            }
            while lsm.drive() {}
            if let Some((_, covers)) = received_next.next_if(|(when, _)| next(&state) >= *when) {
                let (meta, data) = state.stage(&received(*covers)).map_err(to_io)?;
                StateMachine::new(Arc::clone(&state)).install_snapshot(&meta, data).await?;
                *flushed = state.flushed();
            }
        }
        Ok(())
    }

    /// Opens what `fs` holds and checks it.
    fn open(&self, fs: &SimFileSystem, flushed: Option<LogId>, what: &str) -> Arc<ReplicaState> {
        let environment: Arc<dyn Environment> =
            lsm(fs, 0, self.seed).unwrap_or_else(|error| panic!("{what}: {error}"));
        let log = LogStub::on(fs, "/log").expect("opens");
        let state = ReplicaState::open(Arc::clone(&environment), GROUP, log)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(state.applied() >= flushed, "{what}: {:?} of {flushed:?}", state.applied());
        assert_eq!(hash(&state), self.history.hashes[next(&state)], "{what}: mixed up");
        assert_eq!(environment.list().expect("lists").len(), 1, "{what}: leftovers");
        state
    }

    async fn go_on(&self, state: Arc<ReplicaState>, what: &str) {
        apply(&state, &self.history.entries[next(&state)..]).await.expect("applies");
        assert_eq!(hash(&state), self.history.hashes[ENTRIES], "{what}");
        let meta = build(&state).await.expect("builds");
        assert_eq!(meta.last_log_id, state.applied(), "{what}");
    }
}

fn received(covers: usize) -> PathBuf {
    PathBuf::from(format!("/received-{covers}"))
}

#[tokio::test]
async fn after_a_power_loss_at_any_step_rows_and_applied_log_id_belong_together() {
    for seed in 0..3 {
        let base = Base::new(seed).await;
        let undisturbed = base.fs.restart(seed);
        base.run(&undisturbed).await;
        let steps = undisturbed.steps();
        assert!(steps > 200, "seed {seed} takes only {steps} steps");
        for step in 0..steps {
            let fs = base.fs.restart(seed);
            fs.crash_at(step);
            let flushed = base.run(&fs).await;
            let killed = [("killed".to_owned(), fs.restart_killed())];
            let lost = (0..2).map(|survival| {
                (format!("survival {survival}"), fs.restart(survival * 7919 + step))
            });
            for (end, fs) in lost.chain(killed) {
                let what = format!("seed {seed}, step {step} of {steps}, {end}");
                let state = base.open(&fs, flushed, &what);
                base.go_on(state, &what).await;
                let last = base.history.entries.last().map(|entry| entry.log_id);
                base.open(&fs.restart(step), last, &what);
            }
        }
    }
}

#[tokio::test]
async fn a_second_power_loss_while_it_is_opened_takes_nothing_more() {
    let base = Base::new(5).await;
    let undisturbed = base.fs.restart(1);
    base.run(&undisturbed).await;
    let steps = undisturbed.steps();
    for step in (0..steps).step_by(5) {
        let fs = base.fs.restart(1);
        fs.crash_at(step);
        let flushed = base.run(&fs).await;
        let first = fs.restart(step);
        let recovering = first.restart(1);
        let found = base.open(&recovering, flushed, "undisturbed").applied();
        for second in 0..recovering.steps() {
            let what = format!("step {step}, then step {second} of the opening");
            let disturbed = first.restart(1);
            disturbed.crash_at(second);
            base.run(&disturbed).await;
            assert!(disturbed.crashed());
            let state = base.open(&disturbed.restart(second), flushed, &what);
            assert_eq!(state.applied(), found, "{what}");
        }
    }
}

#[tokio::test]
async fn a_restart_answers_a_repeated_request_as_the_first() {
    for kind in KINDS {
        let disks = Disks::new(kind, 1);
        let log = LogStub::new();
        let put = |text: &str| proposal(NOON, put_once("id", "k", text));
        let first = [entry(0, put("1"))];
        let environment = disks.open(0);
        let state = open(&environment, &log);
        let stored = [Outcomes(vec![Outcome::Put { version: Version(1) }])];
        assert_eq!(apply(&state, &first).await.expect("applies"), stored, "{kind:?}");
        build(&state).await.expect("builds");
        drop((state, environment));
        let environment = disks.open(0);
        let state = open(&environment, &log);
        if kind == Kind::Memory {
            assert_eq!(apply(&state, &first).await.expect("applies"), stored);
        }
        let again = apply(&state, &[entry(1, put("2"))]).await.expect("applies");
        assert_eq!(again, stored, "{kind:?}");
        assert_eq!(documents(&state)["k"].0, "1", "{kind:?}");
    }
}

#[test]
fn a_state_that_is_gone_is_not_taken_for_an_empty_one() {
    let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
    environment.open("shard-3").expect("is of an older generation");
    let log = LogStub::new();
    log.generation.store(2, Ordering::SeqCst);
    let error = ReplicaState::open(Arc::clone(&environment), GROUP, log.clone()).err();
    let error = error.expect("nothing was there");
    assert_eq!(error.reason(), Reason::Corruption);
    assert!(error.message().contains("shard-3-2"), "{error}");
    assert_eq!(environment.list().expect("lists"), ["shard-3"], "nothing is removed then");
}

#[test]
fn only_engines_of_this_group_are_removed() {
    let environment: Arc<dyn Environment> = Arc::new(MemoryEnvironment::new());
    let names = ["shard-3", "shard-3-1", "shard-3-2", "shard-3-x", "shard-30", "shard-30-1", "sh"];
    for name in names {
        environment.open(name).expect("opens");
    }
    let log = LogStub::new();
    log.generation.store(1, Ordering::SeqCst);
    drop(open(&environment, &log));
    let others = ["sh", "shard-3-x", "shard-30", "shard-30-1"];
    let mut left = environment.list().expect("lists");
    left.retain(|name| name != "shard-3-1");
    assert_eq!(left, others);
    ReplicaState::remove(&*environment, GROUP).expect("removes");
    assert_eq!(environment.list().expect("lists"), others);
}
