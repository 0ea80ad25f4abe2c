//! Single keys and batches over shards: which shard, what is answered when some of them fail.

use super::*;

#[derive(serde::Deserialize)]
struct Vector {
    key: String,
    xxh64: String,
    shards: std::collections::BTreeMap<String, u32>,
}

/// Clients and other tools compute the same: the file is for them as well.
#[test]
fn shard_of_gives_the_published_vectors() {
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../../tests/data/shard_of.json")).expect("JSON");
    assert!(vectors.len() > 20);
    for Vector { key, xxh64, shards } in vectors {
        let hash = xxhash_rust::xxh64::xxh64(key.as_bytes(), 0);
        assert_eq!(format!("{hash:016x}"), xxh64, "{key:?}");
        for (count, shard) in shards {
            let count = count.parse().expect("a number");
            assert_eq!(shard_of(key.as_bytes(), count), ShardId(shard), "{key:?} of {count}");
        }
    }
}

#[test]
fn shards_get_equal_parts_of_many_keys() {
    for count in [1, 2, 3, 16, 100] {
        let mut keys = vec![0u32; count as usize];
        for number in 0..100 * count {
            keys[shard_of(format!("user/{number}").as_bytes(), count).0 as usize] += 1;
        }
        assert!(keys.iter().all(|&keys| (50..=150).contains(&keys)), "{count}: {keys:?}");
    }
}

#[test]
#[should_panic(expected = "in order of id")]
fn shards_in_the_wrong_place_are_a_defect() {
    let shards = Bench::new(2).router.shards().iter().rev().cloned().collect();
    Router::new(shards);
}

#[tokio::test]
async fn key_lives_in_its_shard_and_only_there() {
    let bench = Bench::new(5);
    for number in 0..100 {
        let name = format!("k/{number}");
        bench.put(&name, &number.to_string()).await;
        assert_eq!(bench.text(&name).await, Some(number.to_string()));
    }
    let mut found = 0;
    for shard in bench.router.shards() {
        let reader =
            shard.reader(&shard.seat(Freshness::Stale).expect("it is here")).expect("is open");
        let mut scan = reader.scan(KeyRange::ALL, storage::Direction::Forward).expect("scans");
        while let Some(document) = scan.next().expect("reads") {
            assert_eq!(shard_of(document.key, 5), shard.id());
            found += 1;
        }
    }
    assert_eq!(found, 100);
    let figures = bench.router.figures().await.expect("is open");
    assert_eq!(figures.iter().map(|figures| figures.keys).sum::<u64>(), 100);
    assert_eq!(figures.iter().map(|figures| figures.writes).sum::<u64>(), 100);
    assert!(figures.iter().enumerate().all(|(id, figures)| figures.shard.0 as usize == id));
}

#[tokio::test]
async fn refusals_say_what_was_required_and_what_there_is() {
    let bench = Bench::new(3);
    let version = bench.put("k", "1").await;
    let put_if = |version| Put { if_version: Some(version), ..put("k", "2") };
    let refuse =
        async |put| bench.router.put(put, deadline()).expect("room").await.expect_err("refused");
    let error = refuse(put_if(Version(9))).await;
    assert_eq!(error.reason(), Reason::VersionMismatch);
    assert_eq!(error.metadata(), [("expected", "9".to_owned()), ("actual", version.to_string())]);
    let error = refuse(put_if(Version::ABSENT)).await;
    assert!(error.message().contains("exists"), "{error}");
    let delete = |name, version, id: Option<&str>| {
        let id = id.map(|id| RequestId::new(id).expect("an id"));
        bench.router.delete(key(name), version, id, deadline()).expect("room")
    };
    let error = delete("none", Some(Version(4)), None).await.expect_err("refused");
    assert!(error.message().contains("does not exist"), "{error}");
    assert!(delete("k", Some(version), Some("id")).await.expect("it holds"));
    assert!(delete("k", Some(version), Some("id")).await.expect("a repeat"));
    assert!(!delete("k", None, None).await.expect("no error"));
    let request_id = RequestId::new("id");
    let error = refuse(Put { request_id, ..put("k", "2") }).await;
    assert_eq!(error.reason(), Reason::InvalidRequestId);
    assert_eq!(bench.text("k").await, None);
}

#[tokio::test]
async fn batch_goes_to_all_its_shards_and_is_read_in_the_order_asked_for() {
    let bench = Bench::new(4);
    let entries: Vec<_> = (0..40).map(|n| (key(&format!("k/{n}")), json(&n.to_string()))).collect();
    assert_eq!(bench.batch_put(entries).await.expect("stored"), 40);
    assert_eq!(bench.batch_put(Vec::new()).await.expect("nothing to do"), 0);
    // A key that repeats keeps its last value, and is counted as often as it comes.
    let twice = vec![(key("k/0"), json("a")), (key("k/0"), json("b"))];
    assert_eq!(bench.batch_put(twice).await.expect("stored"), 2);
    assert_eq!(bench.text("k/0").await.as_deref(), Some("b"));

    let names = ["k/7", "none", "k/3", "k/39", "k/7", "k/1"];
    let keys = names.map(key).to_vec();
    let items = bench.router.batch_get(keys, 1_000, Freshness::Linearizable, deadline()).await;
    let items = items.expect("reads");
    let found: Vec<_> =
        items.iter().map(|item| text(item.value.as_ref().expect("a value"))).collect();
    assert_eq!(found, ["7", "3", "39", "7", "1"]);
    let keys: Vec<_> = items.iter().map(|item| item.key.as_str()).collect();
    assert_eq!(keys, ["k/7", "k/3", "k/39", "k/7", "k/1"]);
}

#[tokio::test]
async fn repeat_of_a_batch_changes_nothing() {
    let bench = Bench::new(4);
    let entries = || -> Vec<_> { (0..20).map(|n| (key(&format!("k/{n}")), json("1"))).collect() };
    let batch = || {
        let id = RequestId::new("id");
        bench.router.batch_put(entries(), None, id, deadline()).expect("room")
    };
    assert_eq!(batch().await.expect("stored"), 20);
    bench.put("k/5", "2").await;
    assert_eq!(batch().await.expect("a repeat"), 20);
    assert_eq!(bench.text("k/5").await.as_deref(), Some("2"));
}

#[tokio::test]
async fn answer_over_the_limit_is_refused_and_names_it() {
    let bench = Bench::new(3);
    let entries: Vec<_> = (0..9).map(|n| (key(&format!("k/{n}")), json("1234567"))).collect();
    bench.batch_put(entries.clone()).await.expect("stored");
    let keys: Vec<_> = entries.into_iter().map(|(key, _)| key).collect();
    // Nine keys of three bytes with values of seven.
    let read = |max| bench.router.batch_get(keys.clone(), max, Freshness::Stale, deadline());
    assert_eq!(read(90).await.expect("just fits").len(), 9);
    let error = read(89).await.expect_err("does not");
    assert_eq!(error.reason(), Reason::LimitExceeded);
    assert!(
        error.message().contains("89") && error.message().contains("kvstore.limits.page-size"),
        "{error}"
    );
}

/// One entry for each of the first `shards`.
fn one_each(bench: &Bench, shards: u32) -> Vec<(Key, Value)> {
    (0..shards).map(|shard| (bench.key_in(shard, "b"), json("1"))).collect()
}

async fn stored(bench: &Bench, entries: &[(Key, Value)]) -> Vec<bool> {
    let mut stored = Vec::new();
    for (key, _) in entries {
        let found = bench.router.get(key.as_bytes(), Freshness::Stale, deadline()).await;
        stored.push(found.expect("reads").is_some());
    }
    stored
}

#[tokio::test]
async fn batch_that_is_refused_everywhere_is_not_applied() {
    let bench = Bench::new(3);
    let full = || storage::Error::DiskFull { path: "disk".into() };
    bench.gates.iter().for_each(|gate| gate.refuse_write(full()));
    let entries = one_each(&bench, 3);
    let error = bench.batch_put(entries.clone()).await.expect_err("refused");
    assert_eq!(error.reason(), Reason::DiskFull);
    assert_eq!(stored(&bench, &entries).await, [false; 3]);
    bench.gates[1].refuse_write(full());
    let one = vec![entries[1].clone()];
    assert_eq!(bench.batch_put(one).await.expect_err("refused").reason(), Reason::DiskFull);
}

#[tokio::test]
async fn batch_that_only_some_shards_store_has_an_unknown_outcome() {
    let bench = Bench::new(3);
    bench.gates[1].refuse_write(storage::Error::DiskFull { path: "disk".into() });
    let entries = one_each(&bench, 3);
    let error = bench.batch_put(entries.clone()).await.expect_err("refused by one");
    assert_eq!(error.reason(), Reason::OutcomeUnknown);
    assert!(error.message().contains("not all") && error.message().contains("no space"), "{error}");
    assert_eq!(stored(&bench, &entries).await, [true, false, true]);

    // The same when the disk of one failed, whether or not it is the only one.
    for entries in [one_each(&bench, 3), one_each(&bench, 1)] {
        let bench = Bench::new(3);
        bench.gates[0].fail_sync(Gate::broken_disk());
        let error = bench.batch_put(entries).await.expect_err("failed in one");
        assert_eq!(error.reason(), Reason::OutcomeUnknown);
    }
}

/// Lets a write to `shard` wait for its sync, which the gate holds, and with it whatever comes after.
fn park(bench: &Bench, shard: u32) -> impl Future<Output = Result<Version>> + use<> {
    bench.gates[shard as usize].hold();
    let put = Put { key: bench.key_in(shard, "parked"), ..put("x", "1") };
    let waiting = bench.router.put(put, Instant::now() + Duration::from_hours(1)).expect("room");
    bench.gates[shard as usize].wait_for_sync();
    waiting
}

#[tokio::test]
async fn batch_whose_deadline_passes_is_unknown_only_when_some_shard_has_begun() {
    let bench = Bench::new(2);
    let parked = [park(&bench, 0), park(&bench, 1)];
    let entries = one_each(&bench, 2);
    // Both parts are still queued. With the time paused it jumps to the deadline as soon as everybody waits.
    tokio::time::pause();
    let error = bench.batch_put(entries.clone()).await.expect_err("too late");
    tokio::time::resume();
    assert_eq!(error.reason(), Reason::Overloaded);
    assert!(error.message().contains("not applied"), "{error}");

    // One shard is through with it, the other has it in its queue.
    bench.gates[0].release();
    let batch = bench.router.batch_put(entries.clone(), None, None, deadline()).expect("room");
    let batch = tokio::spawn(batch);
    let patience = deadline();
    while !stored(&bench, &entries).await[0] || !bench.router.shards()[0].is_settled() {
        assert!(Instant::now() < patience, "the first shard stores its part");
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    let error = batch.await.expect("no panic").expect_err("too late");
    tokio::time::resume();
    assert_eq!(error.reason(), Reason::OutcomeUnknown);
    bench.gates[1].release();
    for parked in parked {
        parked.await.expect("stored");
    }
    bench.put("x", "1").await;
    assert_eq!(stored(&bench, &entries).await, [true, false]);
}

#[tokio::test]
async fn batch_for_which_one_shard_has_no_room_is_unknown_when_another_took_its_part() {
    let bench = Bench::new(3);
    let parked = park(&bench, 1);
    let value = Value::Raw(vec![7; 1 << 20].into());
    let large = Put { key: bench.key_in(1, "large"), value, ..put("x", "1") };
    let mut accepted = Vec::new();
    let full = loop {
        match bench.router.put(large.clone(), deadline()) {
            Ok(waiting) => accepted.push(waiting),
            Err(error) => break error,
        }
    };
    assert_eq!(full.reason(), Reason::Overloaded);
    let entries = [(0, json("1")), (1, large.value.clone()), (2, json("1"))];
    let entries = entries.map(|(shard, value)| (bench.key_in(shard, "b"), value)).to_vec();
    let error = bench.batch_put(entries.clone()).await.expect_err("no room in one");
    assert_eq!(error.reason(), Reason::OutcomeUnknown);
    // Those after it were not asked any more.
    assert_eq!(stored(&bench, &entries).await, [true, false, false]);
    let named = error.metadata().iter().find(|(name, _)| *name == "not_applied_keys");
    let keys = [&entries[1].0, &entries[2].0].map(Key::as_str);
    assert_eq!(named.map(|(_, list)| list.clone()), serde_json::to_string(&keys).ok());
    // Nobody has taken anything yet: refused at once, nothing applied.
    let error = bench.batch_put(entries[1..2].to_vec()).await.expect_err("no room");
    assert_eq!(error.reason(), Reason::Overloaded);
    bench.gates[1].release();
    parked.await.expect("stored");
    for waiting in accepted {
        waiting.await.expect("stored");
    }
}

#[tokio::test]
async fn linearizable_reads_wait_until_what_they_saw_is_durable() {
    let bench = Bench::new(2);
    let name = bench.key_in(0, "k");
    let quiet = bench.key_in(1, "k");
    bench.put(quiet.as_str(), "1").await;
    bench.gates[0].hold();
    let writing =
        tokio::spawn(bench.router.put(put(name.as_str(), "1"), deadline()).expect("room"));
    bench.gates[0].wait_for_sync();

    let router = &bench.router;
    let fresh = Freshness::Linearizable;
    assert!(router.get_now(name.as_bytes(), fresh).expect("reads").is_none(), "has to wait");
    let stale = router.get_now(name.as_bytes(), Freshness::Stale).expect("reads");
    assert!(stale.expect("does not wait").is_some(), "sees what may be lost");
    assert!(
        router.get_now(quiet.as_bytes(), fresh).expect("reads").expect("does not wait").is_some()
    );
    assert!(router.get(quiet.as_bytes(), fresh, deadline()).await.expect("reads").is_some());

    // The deadline of each of them passes while it waits.
    let soon = || Instant::now() + Duration::from_millis(20);
    let query = || Query::new("", "", "", storage::Direction::Forward, true).expect("a range");
    let limits = PageLimits { items: 10, bytes: 1_000 };
    let keys = || vec![name.clone()];
    for error in [
        router.get(name.as_bytes(), fresh, soon()).await.expect_err("late"),
        router.batch_get(keys(), 100, fresh, soon()).await.expect_err("late"),
        router.page(query(), limits, fresh, soon()).await.expect_err("late"),
    ] {
        assert_eq!(error.reason(), Reason::Overloaded, "{error}");
    }
    let stale = Freshness::Stale;
    assert!(router.get(name.as_bytes(), stale, soon()).await.expect("reads").is_some());
    assert_eq!(router.batch_get(keys(), 100, stale, soon()).await.expect("reads").len(), 1);
    assert_eq!(router.page(query(), limits, stale, soon()).await.expect("reads").items.len(), 2);
    // Keys of another shard only: nothing to wait for.
    assert_eq!(
        router.batch_get(vec![quiet.clone()], 100, fresh, soon()).await.expect("reads").len(),
        1
    );

    let reading = tokio::spawn({
        let (router, name) = (bench.router.clone(), name.clone());
        async move { router.get(name.as_bytes(), fresh, deadline()).await }
    });
    bench.gates[0].release();
    assert!(reading.await.expect("no panic").expect("reads").is_some());
    writing.await.expect("no panic").expect("stored");
    assert!(router.get_now(name.as_bytes(), fresh).expect("reads").expect("no wait").is_some());
}

#[tokio::test]
async fn after_a_failed_disk_only_stale_reads_of_that_shard_are_served() {
    let bench = Bench::new(2);
    let (broken, fine) = (bench.key_in(0, "k"), bench.key_in(1, "k"));
    bench.gates[0].fail_sync(Gate::broken_disk());
    let write = bench.router.put(put(broken.as_str(), "1"), deadline()).expect("room");
    assert_eq!(write.await.expect_err("failed").reason(), Reason::OutcomeUnknown);
    let fresh = Freshness::Linearizable;
    let error = bench.router.get(broken.as_bytes(), fresh, deadline()).await.expect_err("unsafe");
    assert_eq!(error.reason(), Reason::ReadOnly);
    let query = Query::new("", "", "", storage::Direction::Forward, true).expect("a range");
    let limits = PageLimits { items: 10, bytes: 1_000 };
    let page = bench.router.page(query.clone(), limits, fresh, deadline()).await;
    assert_eq!(page.expect_err("unsafe").reason(), Reason::ReadOnly);
    let stale = Freshness::Stale;
    assert!(bench.router.get(broken.as_bytes(), stale, deadline()).await.expect("reads").is_some());
    bench.put(fine.as_str(), "1").await;
    assert_eq!(bench.text(fine.as_str()).await.as_deref(), Some("1"));
}

#[tokio::test]
async fn keys_with_a_ttl_are_told_how_long_they_last_and_then_gone() {
    let bench = Bench::new(3);
    let ttl = TtlSeconds::new(5);
    let entries = one_each(&bench, 3);
    bench
        .router
        .batch_put(entries.clone(), ttl, None, deadline())
        .expect("room")
        .await
        .expect("stored");
    let document = bench.router.get(entries[0].0.as_bytes(), Freshness::Stale, deadline()).await;
    assert_eq!(document.expect("reads").expect("is there").ttl_seconds, Some(5));
    bench.clock.advance(Duration::from_secs(5));
    for shard in bench.router.shards() {
        shard.tick().expect("room").expect("it is time").await.expect("applied");
    }
    assert_eq!(stored(&bench, &entries).await, [false; 3]);
}

#[test]
fn compaction_of_one_shard_or_all_says_how_many() {
    let bench = Bench::new(3);
    assert_eq!(bench.router.compact(None).expect("compacts"), 3);
    assert_eq!(bench.router.compact(Some(ShardId(2))).expect("compacts"), 1);
    let error = bench.router.compact(Some(ShardId(3))).expect_err("there is none");
    assert_eq!(error.reason(), Reason::FailedPrecondition);
    assert!(error.message().contains("shard-3") && error.message().contains("3 shards"), "{error}");
    bench.router.flush().expect("flushes");
}
