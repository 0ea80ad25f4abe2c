//! What commands do, one at a time and in groups.

use super::*;

fn stored(version: u64) -> Outcome {
    Outcome::Put { version: Version(version) }
}

#[test]
fn versions_grow_with_every_write_of_the_shard() {
    let bench = Bench::new();
    assert_eq!(bench.run(put("a", "1")), stored(1));
    assert_eq!(bench.run(put("b", "1")), stored(2));
    assert_eq!(bench.run(put("a", "2")), stored(3));
    assert_eq!(bench.run(put_many(&[("c", "1"), ("d", "1")])), Outcome::PutMany { count: 2 });
    assert_eq!((bench.version("c"), bench.version("d")), (Some(Version(4)), Some(Version(5))));
    // A delete is a write; one that finds nothing, and one that is refused, are none.
    assert_eq!(bench.run(delete("b")), Outcome::Delete { deleted: true });
    assert_eq!(bench.run(delete("b")), Outcome::Delete { deleted: false });
    assert!(matches!(bench.run(put_if("a", "3", Version(1))), Outcome::Mismatch { .. }));
    assert_eq!(bench.run(put("b", "2")), stored(7));
    assert_eq!(bench.version("a"), Some(Version(3)));
    assert_eq!(bench.shard().status().expect("is open").last_version, Version(7));
}

#[test]
fn versions_go_on_after_the_shard_is_opened_again() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.run(delete("a"));
    bench.reopen();
    assert_eq!(bench.run(put("a", "2")), stored(3), "also when nothing carries the last one");
    bench.reopen();
    assert_eq!(bench.run(put("b", "1")), stored(4));
}

#[test]
fn if_version_decides_whether_a_write_happens() {
    let bench = Bench::new();
    let mismatch = |expected, actual| Outcome::Mismatch {
        expected: Version(expected),
        actual: Version(actual),
    };
    // Zero is "only if absent".
    assert_eq!(bench.run(put_if("k", "1", Version(7))), mismatch(7, 0));
    assert_eq!(bench.run(put_if("k", "1", Version::ABSENT)), stored(1));
    assert_eq!(bench.run(put_if("k", "2", Version::ABSENT)), mismatch(0, 1));
    assert_eq!(bench.run(delete_if("k", Version(2))), mismatch(2, 1));
    assert_eq!(bench.text("k").as_deref(), Some("1"), "nothing changed");
    assert_eq!(bench.run(put_if("k", "2", Version(1))), stored(2));
    assert_eq!(bench.run(delete_if("k", Version::ABSENT)), mismatch(0, 2));
    assert_eq!(bench.run(delete_if("k", Version(2))), Outcome::Delete { deleted: true });
    assert_eq!(bench.run(delete_if("k", Version(2))), mismatch(2, 0));
    assert_eq!(bench.run(delete_if("k", Version::ABSENT)), Outcome::Delete { deleted: false });
    assert_eq!(bench.run(put_if("k", "3", Version::ABSENT)), stored(4), "absent again");
    // What has expired is absent, by the clock of the write that asks.
    bench.run(put_for("t", "1", 5));
    bench.clock.advance(Duration::from_millis(4_999));
    assert_eq!(bench.run(put_if("t", "2", Version::ABSENT)), mismatch(0, 5));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.run(put_if("t", "2", Version::ABSENT)), stored(6));
}

#[test]
fn commands_of_one_group_see_each_other() {
    let bench = Bench::new();
    bench.put("old", "0");
    bench.gate().hold();
    let first = bench.propose(put("x", "parks the committer"));
    bench.gate().wait_for_sync();
    let id = |change| with_id("id", change);
    let commands = [
        (put_if("k", "1", Version::ABSENT).into(), stored(3)),
        (put_if("k", "2", Version(3)).into(), stored(4)),
        (
            put_if("k", "3", Version(3)).into(),
            Outcome::Mismatch { expected: Version(3), actual: Version(4) },
        ),
        (delete_if("old", Version(1)).into(), Outcome::Delete { deleted: true }),
        (delete("old").into(), Outcome::Delete { deleted: false }),
        (put_if("old", "1", Version::ABSENT).into(), stored(6)),
        (id(put("k", "4")), stored(7)),
        (put("k", "5").into(), stored(8)),
        (id(put("k", "4")), stored(7)),
        (id(delete("k")), Outcome::RequestIdReused),
        (put_many(&[("m", "1"), ("m", "2"), ("n", "1")]).into(), Outcome::PutMany { count: 3 }),
        (put_if("m", "3", Version(10)).into(), stored(12)),
    ];
    let tickets: Vec<_> =
        commands.iter().map(|(command, _): &(Command, _)| bench.propose(command.clone())).collect();
    let batches = bench.gate().batches().len();
    bench.gate().release();
    wait(first).expect("is applied");
    for (ticket, (command, outcome)) in tickets.into_iter().zip(commands) {
        assert_eq!(wait(ticket).expect("is applied"), outcome, "{command:?}");
    }
    assert_eq!(bench.gate().batches().len(), batches + 1, "they were one group");
    let texts = ["k", "old", "m", "n"].map(|key| bench.text(key).expect("is there"));
    assert_eq!(texts, ["5", "1", "3", "1"]);
}

#[test]
fn repeat_answers_as_the_first_did_and_changes_nothing() {
    let mut bench = Bench::new();
    bench.put("b", "1");
    let commands = [
        with_id("put", put("a", "1")),
        with_id("delete", delete("b")),
        with_id("delete nothing", delete("none")),
        with_id("many", put_many(&[("c", "1"), ("d", "1")])),
    ];
    let first = commands.clone().map(|command| bench.run(command));
    for change in [put("a", "2"), put("b", "2"), put("c", "2"), put("none", "2")] {
        bench.run(change);
    }
    let last = bench.shard().status().expect("is open").last_version;
    for round in ["at once", "after the shard was opened again"] {
        let repeats = commands.clone().map(|command| bench.run(command));
        assert_eq!(repeats, first, "{round}");
        let texts = ["a", "b", "c", "d", "none"].map(|key| bench.text(key).expect("is there"));
        assert_eq!(texts, ["2", "2", "2", "1", "2"], "{round}");
        assert_eq!(bench.shard().status().expect("is open").last_version, last, "{round}");
        bench.reopen();
    }
}

#[test]
fn repeat_of_a_conditional_write_answers_as_the_first_although_the_condition_fails_now() {
    let bench = Bench::new();
    let create = || with_id("create", put_if("k", "1", Version::ABSENT));
    assert_eq!(bench.run(create()), stored(1));
    assert_eq!(bench.run(create()), stored(1));
    let remove = || with_id("remove", delete_if("k", Version(1)));
    assert_eq!(bench.run(remove()), Outcome::Delete { deleted: true });
    assert_eq!(bench.run(remove()), Outcome::Delete { deleted: true });
}

#[test]
fn repeat_of_a_conditional_write_is_refused_as_the_first_although_the_condition_holds_now() {
    let bench = Bench::new();
    let command = || with_id("id", put_if("k", "2", Version(1)));
    let refused = Outcome::Mismatch { expected: Version(1), actual: Version::ABSENT };
    assert_eq!(bench.run(command()), refused);
    bench.put("k", "1");
    assert_eq!(bench.run(command()), refused);
    assert_eq!(bench.text("k").as_deref(), Some("1"));
}

#[test]
fn request_id_of_another_kind_of_write_is_refused() {
    let bench = Bench::new();
    let kinds = [put("k", "1"), delete("k"), put_many(&[("k", "1")])];
    for (number, first) in kinds.iter().enumerate() {
        for (other, second) in kinds.iter().enumerate() {
            let id = format!("{number} {other}");
            bench.run(with_id(&id, first.clone()));
            bench.put("k", "before");
            let outcome = bench.run(with_id(&id, second.clone()));
            assert_eq!(outcome == Outcome::RequestIdReused, number != other, "{id}");
            assert_eq!(bench.text("k").as_deref(), Some("before"), "{id}: nothing changed");
        }
    }
}

#[test]
fn request_id_is_kept_for_ten_minutes_by_the_clock_of_the_shard() {
    let mut bench = Bench::new();
    let command = || with_id("id", put("k", "1"));
    assert_eq!(bench.run(command()), stored(1));
    bench.clock.advance(REQUEST_ID_KEPT.saturating_sub(Duration::from_millis(1)));
    assert_eq!(bench.run(command()), stored(1), "a repeat does not prolong it");
    bench.reopen();
    assert_eq!(bench.run(command()), stored(1));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.run(command()), stored(2), "after that it is a new one");
    assert_eq!(bench.run(command()), stored(2));
}

#[test]
fn key_expires_by_the_stamp_of_later_writes() {
    let bench = Bench::new();
    bench.run(put_for("t", "1", 2));
    bench.run(Change::PutMany { entries: vec![(key("m"), json("1"))], ttl: Some(seconds(2)) });
    bench.clock.advance(Duration::from_millis(1_999));
    bench.put("x", "1");
    assert!(bench.text("t").is_some() && bench.text("m").is_some());
    bench.clock.advance(Duration::from_millis(1));
    bench.put("x", "2");
    assert_eq!((bench.text("t"), bench.text("m")), (None, None));
    assert_eq!(bench.shard().status().expect("is open").engine.keys, 1);
}

#[test]
fn key_expires_by_a_tick_although_nobody_writes() {
    let bench = Bench::new();
    assert!(bench.shard().tick().expect("nothing to refuse").is_none(), "nothing can expire");
    bench.run(put_for("t", "1", 1));
    assert!(bench.shard().tick().expect("nothing to refuse").is_none(), "not yet");
    bench.clock.advance(Duration::from_millis(999));
    assert!(bench.shard().tick().expect("nothing to refuse").is_none(), "not yet");
    bench.clock.advance(Duration::from_millis(1));
    let ticket = bench.shard().tick().expect("there is room").expect("it is time");
    assert_eq!(wait(ticket).expect("is applied"), Outcome::Tick);
    assert_eq!(bench.text("t"), None);
    assert!(bench.shard().tick().expect("nothing to refuse").is_none(), "it is done");
    assert_eq!(bench.run(put("t", "2")), stored(2), "a tick takes no version");
}

#[test]
fn clock_that_goes_back_neither_revives_nor_kills() {
    let mut bench = Bench::new();
    bench.run(put_for("gone", "1", 10));
    bench.clock.advance(Duration::from_secs(10));
    bench.put("x", "1");
    bench.clock.set(Timestamp::from_millis(5));
    bench.put("x", "2");
    assert_eq!(bench.text("gone"), None);
    // The time to live counts from the clock of the shard, which has not gone back.
    bench.run(put_for("t", "1", 10));
    bench.run(with_id("id", put("i", "1")));
    bench.reopen();
    bench.clock.set(NOON.saturating_add(Duration::from_millis(19_999)));
    bench.put("x", "3");
    assert!(bench.text("t").is_some());
    bench.clock.advance(Duration::from_millis(1));
    bench.put("x", "4");
    assert_eq!(bench.text("t"), None);
    assert_eq!(bench.run(with_id("id", put("i", "1"))), stored(5));
}

#[test]
fn clock_far_ahead_does_not_wrap() {
    let bench = Bench::new();
    bench.clock.set(Timestamp::from_millis(u64::MAX - 5));
    bench.run(put_for("t", "1", u32::MAX));
    bench.run(with_id("id", put("k", "1")));
    assert!(bench.text("t").is_some());
    bench.clock.set(Timestamp::from_millis(u64::MAX));
    bench.put("x", "1");
    assert_eq!(bench.text("t"), None, "at the end of time everything with a time expires");
    assert!(bench.text("k").is_some());
    assert!(bench.shard().tick().expect("nothing to refuse").is_none());
}

#[test]
fn put_without_ttl_keeps_the_key_and_one_with_ttl_says_how_long() {
    let bench = Bench::new();
    let ttl = |key: &str| {
        bench
            .shard()
            .get(&bench.seat(), key.as_bytes())
            .expect("reads")
            .expect("is there")
            .ttl_seconds
    };
    bench.run(put_for("k", "1", 10));
    assert_eq!(ttl("k"), Some(10));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(ttl("k"), Some(10), "rounded up");
    bench.clock.advance(Duration::from_millis(9_998));
    assert_eq!(ttl("k"), Some(1));
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(ttl("k"), Some(1), "there until the clock of the shard says otherwise, so not zero");
    bench.clock.set(NOON);
    bench.run(put("k", "2"));
    assert_eq!(ttl("k"), None);
    bench.clock.advance(Duration::from_secs(20));
    bench.put("x", "1");
    assert_eq!(bench.text("k").as_deref(), Some("2"));
}

#[test]
fn values_come_back_in_their_kind_byte_for_byte() {
    let mut bench = Bench::new();
    let values =
        [json(" {\"a\" : 1.0}\n"), Value::Raw(vec![0, 0xff, 1].into()), Value::Raw(Bytes::new())];
    for (number, value) in values.iter().enumerate() {
        let key = key(&number.to_string());
        bench.run(Change::Put { key, value: value.clone(), ttl: None, if_version: None });
    }
    bench.reopen();
    for (number, value) in values.iter().enumerate() {
        let found = bench.shard().get(&bench.seat(), number.to_string().as_bytes()).expect("reads");
        assert_eq!(found.expect("is there").value, *value);
    }
}

#[test]
fn reads_meet_documents_only() {
    let bench = Bench::new();
    for name in ["a", "b", "\u{0}", "\u{10ffff}"] {
        bench.run(with_id(name, put(name, name)));
    }
    let scanned = |range: KeyRange<'_>, direction| {
        let reader = bench.shard().reader(&bench.seat()).expect("is open");
        let mut scan = reader.scan(range, direction).expect("scans");
        let mut keys = Vec::new();
        while let Some(document) = scan.next().expect("reads") {
            assert_eq!(document.value_bytes(), document.key.len());
            assert_eq!(document.value().bytes(), document.key);
            keys.push(String::from_utf8(document.key.to_vec()).expect("text"));
        }
        keys
    };
    assert_eq!(scanned(KeyRange::ALL, Direction::Forward), ["\0", "a", "b", "\u{10ffff}"]);
    assert_eq!(scanned(KeyRange::ALL, Direction::Reverse), ["\u{10ffff}", "b", "a", "\0"]);
    assert_eq!(scanned(KeyRange::new(b"a", Some(b"b")), Direction::Forward), ["a"]);
    assert_eq!(scanned(KeyRange::new(b"b", None), Direction::Reverse), ["\u{10ffff}", "b"]);
    assert_eq!(bench.shard().status().expect("is open").engine.keys, 4);
    // The rows beside them are out of reach by their names.
    for name in [&b"v"[..], b"\0v", b"\0ra", b"ra"] {
        assert_eq!(bench.shard().get(&bench.seat(), name).expect("reads"), None);
    }
    let mut found = Vec::new();
    let visit = &mut |position, document: Document| {
        found.push((position, document.version));
        Ok(())
    };
    bench.shard().get_many(&bench.seat(), &[b"b", b"none", b"a", b"b"], visit).expect("reads");
    found.sort();
    assert_eq!(found, [(0, Version(2)), (2, Version(1)), (3, Version(2))]);
}

#[test]
fn error_of_a_visitor_ends_a_read_of_many() {
    let bench = Bench::new();
    bench.run(put_many(&[("a", "1"), ("b", "1"), ("c", "1")]));
    let mut visited = 0;
    let visit = &mut |_, _| {
        visited += 1;
        Err(Error::new(Reason::LimitExceeded, "enough"))
    };
    let error =
        bench.shard().get_many(&bench.seat(), &[b"a", b"b", b"c"], visit).expect_err("was refused");
    assert_eq!((error.reason(), visited), (Reason::LimitExceeded, 1));
}

#[test]
fn damaged_rows_are_corruption_and_nothing_else_suffers() {
    let mut bench = Bench::new();
    bench.put("a", "1");
    bench.put("b", "1");
    bench.run(with_id("id", put("c", "1")));
    let engine = bench.shard().engine().expect("is open");
    let mut batch = storage::WriteBatch::new();
    batch.put(&[&record::document_key(b"a")], &[b"\x09 no document"], None);
    batch.put(&[&record::request_key(&RequestId::new("id").expect("an id"))], &[b"\x09"], None);
    engine.write(&batch, Durability::None).expect("writes");
    let corrupt = |error: Error| assert_eq!(error.reason(), Reason::Corruption, "{error}");
    corrupt(bench.shard().get(&bench.seat(), b"a").expect_err("damaged"));
    corrupt(
        bench
            .shard()
            .get_many(&bench.seat(), &[b"b", b"a"], &mut |_, _| Ok(()))
            .expect_err("damaged"),
    );
    corrupt(
        bench
            .shard()
            .reader(&bench.seat())
            .expect("is open")
            .scan(KeyRange::ALL, Direction::Forward)
            .expect("scans")
            .next()
            .err()
            .expect("damaged"),
    );
    corrupt(wait(bench.propose(put_if("a", "2", Version(1)))).expect_err("damaged"));
    corrupt(wait(bench.propose(with_id("id", put("c", "1")))).expect_err("damaged"));
    assert_eq!(bench.text("b").as_deref(), Some("1"));
    assert_eq!(bench.run(put("a", "2")), stored(4), "what does not read it repairs it");
    assert_eq!(bench.text("a").as_deref(), Some("2"));

    batch.clear();
    batch.put(&[&record::LAST_VERSION], &[b"short"], None);
    engine.write(&batch, Durability::None).expect("writes");
    drop(engine);
    bench.shard = None;
    let clock: Arc<dyn Clock> = Arc::new(bench.clock.clone());
    let committer = bench.committer.as_ref().expect("it runs");
    let opened = Shard::open(ShardId(3), bench.gate.clone().expect("open"), committer, clock);
    let error = opened.err().expect("the last version is unknown");
    assert_eq!(error.reason(), Reason::Corruption);
    assert!(error.message().contains("shard-3"), "{error}");
}
