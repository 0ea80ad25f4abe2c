//! What is durable when: answers, reads, full queues, callers who do not wait, disks that fail. Syncs are held where a test
//! looks at what happens before they end.

use std::task::{Context, Waker};

use super::*;

/// Whether the future has an answer already; it is not asked again.
fn is_ready<F: Future>(future: F) -> bool {
    let mut future = std::pin::pin!(future);
    future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

/// A value of a mebibyte; copies share it.
fn mebibyte() -> Value {
    static BYTES: LazyLock<Bytes> = LazyLock::new(|| vec![7; 1 << 20].into());
    Value::Raw(BYTES.clone())
}

fn put_mebibyte(name: &str) -> Change {
    Change::Put { key: key(name), value: mebibyte(), ttl: None, if_version: None }
}

#[test]
fn write_is_answered_after_its_sync_and_not_before() {
    let bench = Bench::new();
    bench.gate().hold();
    let mut ticket = bench.propose(put("k", "1"));
    bench.gate().wait_for_sync();
    assert_eq!(bench.text("k").as_deref(), Some("1"), "it is applied");
    assert!(!is_ready(&mut ticket), "but not durable");
    bench.gate().release();
    assert_eq!(wait(ticket).expect("is applied"), Outcome::Put { version: Version(1) });
    assert_eq!(bench.gate().syncs(), 1);
}

#[test]
fn writes_that_are_not_synced_are_handed_to_the_system() {
    let bench = Bench::with(Durability::Buffered);
    bench.put("k", "1");
    assert_eq!(bench.gate().batches().last().expect("one").1, Durability::Buffered);
    assert_eq!(bench.gate().syncs(), 0);
    assert!(bench.shard().is_settled());
}

#[test]
fn commands_that_wait_for_the_disk_become_one_group_in_order() {
    let bench = Bench::new();
    bench.gate().hold();
    let mut tickets = vec![bench.propose(put("first", "1"))];
    bench.gate().wait_for_sync();
    tickets.extend((0..1_000).map(|number| bench.propose(put("k", &number.to_string()))));
    bench.gate().release();
    for (number, ticket) in tickets.into_iter().enumerate() {
        let version = Version(number as u64 + 1);
        assert_eq!(wait(ticket).expect("is applied"), Outcome::Put { version });
    }
    assert_eq!(bench.text("k").as_deref(), Some("999"));
    let batches = bench.gate().batches();
    // Each put, and the row of the last version.
    assert_eq!(batches.iter().map(|batch| batch.0).collect::<Vec<_>>(), [2, 1_001]);
    assert_eq!(bench.gate().syncs(), 2, "one sync for each group");
}

#[test]
fn group_is_bounded_in_bytes() {
    let bench = Bench::new();
    bench.gate().hold();
    let mut tickets = vec![bench.propose(put("first", "1"))];
    bench.gate().wait_for_sync();
    let large = (0..5).map(|number| (key(&format!("many/{number}")), mebibyte())).collect();
    tickets.extend((0..5).map(|number| bench.propose(put_mebibyte(&number.to_string()))));
    tickets.push(bench.propose(Change::PutMany { entries: large, ttl: None }));
    tickets.push(bench.propose(put("last", "1")));
    bench.gate().release();
    for ticket in tickets {
        wait(ticket).expect("is applied");
    }
    let operations: Vec<_> = bench.gate().batches().iter().map(|batch| batch.0 - 1).collect();
    assert_eq!(operations, [1, 3, 2, 5, 1], "what is larger goes alone");
}

#[test]
fn full_queue_refuses_and_applies_nothing_of_what_it_refused() {
    let bench = Bench::new();
    bench.gate().hold();
    let parked = bench.propose(put("parked", "1"));
    bench.gate().wait_for_sync();
    let mut tickets = Vec::new();
    let refused = loop {
        let name = tickets.len().to_string();
        match bench.shard().propose(put_mebibyte(&name).into()) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
        assert!(tickets.len() <= QUEUE_BYTES_MAX >> 20, "it is bounded");
    };
    assert_eq!(refused.reason(), Reason::Overloaded);
    assert!(refused.retry_after().is_some());
    assert!(refused.message().contains(&QUEUE_BYTES_MAX.to_string()), "{refused}");
    assert_eq!(tickets.len(), 63, "mebibytes with their overhead");
    assert!(bench.shard().propose(delete("small").into()).is_ok(), "what is small has room still");
    bench.gate().release();
    wait(parked).expect("is applied");
    let accepted = tickets.len();
    for ticket in tickets {
        wait(ticket).expect("what was accepted is applied");
    }
    assert_eq!(bench.text(&accepted.to_string()), None, "what was refused is not");
    bench.run(put_mebibyte("again"));
}

#[test]
fn command_larger_than_the_queue_goes_when_nothing_else_waits() {
    let bench = Bench::new();
    let entries = (0..65).map(|number| (key(&number.to_string()), mebibyte())).collect();
    let outcome = bench.run(Change::PutMany { entries, ttl: None });
    assert_eq!(outcome, Outcome::PutMany { count: 65 });
}

#[test]
fn caller_who_gives_up_in_time_knows_that_nothing_was_applied() {
    let bench = Bench::new();
    bench.gate().hold();
    let running = bench.propose(put("running", "1"));
    bench.gate().wait_for_sync();
    let queued = bench.propose(put("queued", "1"));
    assert_eq!(queued.give_up().reason(), Reason::Overloaded);
    assert_eq!(queued.give_up().reason(), Reason::OutcomeUnknown, "a claim is made once");
    assert_eq!(running.give_up().reason(), Reason::OutcomeUnknown);
    bench.gate().release();
    assert_eq!(wait(running).expect("it was too late"), Outcome::Put { version: Version(1) });
    assert_eq!(bench.run(put("x", "1")), Outcome::Put { version: Version(2) });
    assert_eq!(bench.text("queued"), None);
}

#[test]
fn dropped_ticket_gives_up() {
    let bench = Bench::new();
    bench.gate().hold();
    let running = bench.propose(put("running", "1"));
    bench.gate().wait_for_sync();
    let queued = bench.propose(put("queued", "1"));
    drop(queued);
    drop(running);
    bench.gate().release();
    bench.put("x", "1");
    assert_eq!((bench.text("queued"), bench.text("running").as_deref()), (None, Some("1")));
}

#[test]
fn read_waits_for_what_it_may_have_seen() {
    let bench = Bench::new();
    bench.put("k", "durable");
    assert!(bench.shard().is_settled());
    wait(bench.shard().settled()).expect("nothing to wait for");
    bench.gate().hold();
    let ticket = bench.propose(put("k", "not yet"));
    bench.gate().wait_for_sync();
    assert_eq!(bench.text("k").as_deref(), Some("not yet"), "a read sees it");
    assert!(!bench.shard().is_settled());
    {
        let mut settled = std::pin::pin!(bench.shard().settled());
        assert!(!is_ready(settled.as_mut()), "and must not tell");
        // A write that comes later is no concern of this read.
        let _later = bench.propose(put("later", "1"));
        bench.gate().release();
        wait(settled).expect("it is durable");
    }
    wait(ticket).expect("is applied");
}

#[test]
fn read_does_not_wait_for_writes_that_are_only_queued() {
    let bench = Bench::new();
    let other = Gate::new(bench.environment.open("other").expect("opens"));
    let clock: Arc<dyn Clock> = Arc::new(bench.clock.clone());
    let committer = bench.committer.as_ref().expect("it runs");
    let neighbour = Shard::open(ShardId(4), other, committer, clock).expect("opens");
    bench.gate().hold();
    let parked = bench.propose(put("parked", "1"));
    bench.gate().wait_for_sync();
    let queued = neighbour.propose(put("k", "1").into()).expect("there is room");
    assert!(neighbour.is_settled(), "nothing of it can be seen");
    bench.gate().release();
    wait(parked).expect("is applied");
    wait(queued).expect("is applied");
    assert!(neighbour.is_settled() && bench.shard().is_settled());
}

#[test]
fn failed_sync_leaves_the_outcome_unknown_and_the_shard_read_only() {
    let mut bench = Bench::new();
    bench.put("safe", "1");
    bench.gate().hold();
    bench.gate().fail_sync(Gate::broken_disk());
    let lost = bench.propose(put("lost", "1"));
    bench.gate().wait_for_sync();
    let queued = bench.propose(put("queued", "1"));
    {
        let mut reading = std::pin::pin!(bench.shard().settled());
        assert!(!is_ready(reading.as_mut()));
        bench.gate().release();
        let error = wait(reading).expect_err("what it saw is not safe");
        assert_eq!(error.reason(), Reason::ReadOnly);
        assert!(error.message().contains("shard-3"), "{error}");
    }
    assert_eq!(wait(lost).expect_err("nobody knows").reason(), Reason::OutcomeUnknown);
    assert_eq!(wait(queued).expect_err("refused").reason(), Reason::ReadOnly);
    for _ in 0..2 {
        let refused = wait(bench.propose(put("later", "1"))).expect_err("refused");
        assert_eq!(refused.reason(), Reason::ReadOnly);
        assert!(!bench.shard().is_settled());
        let error = wait(bench.shard().settled()).expect_err("never again");
        assert_eq!(error.reason(), Reason::ReadOnly);
    }
    assert_eq!((bench.text("queued"), bench.text("later")), (None, None));
    assert_eq!(bench.text("safe").as_deref(), Some("1"), "reads that ask for no more go on");
    bench.reopen();
    assert!(bench.shard().is_settled());
    bench.put("later", "1");
}

#[test]
fn write_that_failed_in_the_engine_is_unknown_unless_the_engine_knows_better() {
    let refusals = [
        (storage::Error::DiskFull { path: "disk".into() }, Reason::DiskFull),
        (storage::Error::Invalid("too large".to_owned()), Reason::Internal),
        (storage::Error::Poisoned { cause: "earlier".to_owned() }, Reason::ReadOnly),
    ];
    for (refusal, reason) in refusals {
        let bench = Bench::new();
        bench.put("k", "1");
        bench.gate().refuse_write(refusal);
        assert_eq!(wait(bench.propose(put("k", "2"))).expect_err("refused").reason(), reason);
        assert_eq!(bench.text("k").as_deref(), Some("1"), "certainly not applied");
        assert!(bench.shard().is_settled(), "and nothing to worry about for readers");
        // The version was not given out.
        assert_eq!(bench.run(put("k", "3")), Outcome::Put { version: Version(2) });
    }
    for failure in [Gate::broken_disk(), storage::Error::corruption("disk", 0, "a panic")] {
        let bench = Bench::new();
        bench.put("k", "1");
        bench.gate().fail_write(failure);
        let error = wait(bench.propose(put("k", "2"))).expect_err("failed");
        assert_eq!(error.reason(), Reason::OutcomeUnknown, "{error}");
        assert!(!bench.shard().is_settled(), "a reader may have seen it");
        assert_eq!(wait(bench.shard().settled()).expect_err("unsafe").reason(), Reason::ReadOnly);
    }
}

#[test]
fn write_that_fails_on_damage_it_read_does_not_make_the_shard_read_only() {
    let bench = Bench::new();
    bench.put("k", "1");
    bench.gate().refuse_write(storage::Error::corruption("disk", 0, "a malformed row"));
    let error = wait(bench.propose(put("k", "2"))).expect_err("refused");
    assert_eq!(error.reason(), Reason::Corruption, "{error}");
    assert!(bench.shard().is_settled(), "nothing was written");
    bench.put("k", "3");
}

#[test]
fn full_disk_still_takes_the_deletes_of_a_group() {
    let bench = Bench::new();
    bench.put("k", "1");
    bench.put("l", "1");
    bench.gate().hold();
    let parked = bench.propose(put("parked", "1"));
    bench.gate().wait_for_sync();
    let commands = [
        put("a", "1"),
        delete("k"),
        put_many(&[("b", "1")]),
        delete("none"),
        delete_if("l", Version(2)),
    ];
    let tickets = commands.map(|change| bench.propose(change));
    bench.gate().refuse_write(storage::Error::DiskFull { path: "disk".into() });
    bench.gate().release();
    wait(parked).expect("is applied");
    let answers = tickets.map(|ticket| wait(ticket).map_err(|error| error.reason()));
    let deleted = |deleted| Ok(Outcome::Delete { deleted });
    let full = Err(Reason::DiskFull);
    assert_eq!(answers, [full, deleted(true), full, deleted(false), deleted(true)]);
    assert_eq!((bench.text("a"), bench.text("b"), bench.text("k")), (None, None, None));
    assert_eq!(bench.run(put("a", "1")), Outcome::Put { version: Version(6) });
}

#[test]
fn committer_that_stops_commits_what_is_queued_and_takes_no_more() {
    let mut bench = Bench::new();
    bench.gate().hold();
    let running = bench.propose(put("running", "1"));
    bench.gate().wait_for_sync();
    let queued = bench.propose(put("queued", "1"));
    let committer = bench.committer.take().expect("it runs");
    let stopping = std::thread::spawn(move || drop(committer));
    let deadline = std::time::Instant::now() + DEADLINE;
    let refused = loop {
        // It is closed before anything else happens; until then there is room.
        match bench.shard().propose(put("late", "1").into()) {
            Err(error) => break error,
            Ok(ticket) => drop(ticket),
        }
        assert!(std::time::Instant::now() < deadline, "it closes");
        std::thread::yield_now();
    };
    assert_eq!(refused.reason(), Reason::NotServing);
    bench.gate().release();
    stopping.join().expect("it stops");
    for ticket in [running, queued] {
        wait(ticket).expect("is applied");
    }
    assert_eq!((bench.text("queued").as_deref(), bench.text("late")), (Some("1"), None));
}

#[test]
fn shards_of_one_committer_fail_alone() {
    let bench = Bench::new();
    let other = Gate::new(bench.environment.open("other").expect("opens"));
    let clock: Arc<dyn Clock> = Arc::new(bench.clock.clone());
    let committer = bench.committer.as_ref().expect("it runs");
    let neighbour = Shard::open(ShardId(1), other.clone(), committer, clock).expect("opens");
    bench.gate().hold();
    let parked = bench.propose(put("parked", "1"));
    bench.gate().wait_for_sync();
    // One group of both.
    let mine = bench.propose(put("k", "1"));
    let theirs = neighbour.propose(put("k", "1").into()).expect("there is room");
    let mine_too = bench.propose(put("k", "2"));
    other.fail_sync(Gate::broken_disk());
    bench.gate().release();
    wait(parked).expect("is applied");
    assert_eq!(wait(mine).expect("is applied"), Outcome::Put { version: Version(2) });
    assert_eq!(wait(mine_too).expect("is applied"), Outcome::Put { version: Version(3) });
    assert_eq!(wait(theirs).expect_err("its disk failed").reason(), Reason::OutcomeUnknown);
    assert!(bench.shard().is_settled() && !neighbour.is_settled());
    bench.put("k", "3");
}
