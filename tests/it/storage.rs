//! What is stored: the same stories on every engine, through the public API.

use kvstore::proto::v1::{DeleteRequest, PutRequest, RangeRequest, StatsRequest};
use tonic::Code;

use crate::node::{TestNode, eventually, get, put, reason, text};

const ENGINES: [&str; 3] = ["kvstore.storage.engine=memory", "kvstore.storage.engine=sled", LSM];

/// What a node has that says nothing.
const LSM: &str = "kvstore.storage.engine=lsm";

/// The engines that keep files.
const ON_DISK: [&str; 2] = ["kvstore.storage.engine=sled", LSM];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_comes_back_byte_for_byte_and_versions_grow() {
    for engine in ENGINES {
        let node = TestNode::with(&[engine]).await;
        let mut client = node.client().await;
        let document = "\n{ \"a\": 1.0,\t\"a\": \"\\u00e9é\" }  ";
        let first = client.put(put("k", document)).await.expect("stored").into_inner().version;
        let found = client.get(get("k")).await.expect("there").into_inner();
        assert_eq!(
            (text(found.content).as_str(), found.version, found.ttl),
            (document, first, None),
            "{engine}"
        );
        let second = client.put(put("k", "2")).await.expect("stored").into_inner().version;
        assert!(second > first, "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_version_decides_between_writers() {
    for engine in ENGINES {
        let node = TestNode::with(&[engine]).await;
        let mut client = node.client().await;
        let only_if = |version| PutRequest { if_version: Some(version), ..put("k", "1") };
        let version = client.put(only_if(0)).await.expect("it is absent").into_inner().version;
        let refused = client.put(only_if(0)).await.expect_err("it is there");
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::Aborted, "VERSION_MISMATCH"),
            "{engine}"
        );
        let delete = |version| DeleteRequest {
            key: "k".to_owned(),
            if_version: Some(version),
            request_id: None,
        };
        assert_eq!(
            client.delete(delete(version + 1)).await.expect_err("another").code(),
            Code::Aborted,
            "{engine}"
        );
        assert!(
            client.delete(delete(version)).await.expect("this one").into_inner().deleted,
            "{engine}"
        );
        // Exactly one of many who see the same version wins.
        let rivals = (0..16).map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.put(only_if(0)).await.is_ok() })
        });
        let won = futures::future::join_all(rivals).await;
        assert_eq!(
            won.into_iter().filter(|won| *won.as_ref().expect("no panic")).count(),
            1,
            "{engine}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeat_with_the_same_request_id_is_applied_once_also_after_a_restart() {
    for engine in ON_DISK {
        repeats_are_applied_once(engine).await;
    }
}

async fn repeats_are_applied_once(engine: &str) {
    let mut node = TestNode::with(&[engine]).await;
    let with_id = || PutRequest { request_id: Some("id-1".to_owned()), ..put("k", "1") };
    let first = node.client().await.put(with_id()).await.expect("stored").into_inner().version;
    node.client().await.put(put("k", "2")).await.expect("stored");
    for round in 0..2 {
        let mut client = node.client().await;
        let again = client.put(with_id()).await.expect("answered").into_inner().version;
        assert_eq!(again, first, "round {round}");
        assert_eq!(
            text(client.get(get("k")).await.expect("there").into_inner().content),
            "2",
            "round {round}"
        );
        let delete = DeleteRequest {
            key: "k".to_owned(),
            if_version: None,
            request_id: Some("id-1".to_owned()),
        };
        let other = client.delete(delete).await.expect_err("another kind of write");
        assert_eq!(reason(&other), "INVALID_REQUEST_ID", "round {round}");
        drop(client);
        node.stop().await;
        node.open().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_gone_within_a_second_of_its_time_although_nobody_writes() {
    for engine in ENGINES {
        let node = TestNode::with(&[engine]).await;
        let mut client = node.client().await;
        let begun = std::time::Instant::now();
        client.put(PutRequest { ttl: Some(1), ..put("short", "1") }).await.expect("stored");
        client.put(PutRequest { ttl: Some(1), ..put("kept", "1") }).await.expect("stored");
        client.put(put("kept", "2")).await.expect("stored: without ttl it stays");
        assert_eq!(
            client.get(get("short")).await.expect("there").into_inner().ttl,
            Some(1),
            "{engine}"
        );
        eventually("the key expires", || {
            let mut client = client.clone();
            async move { client.get(get("short")).await.is_err() }
        })
        .await;
        let lived = begun.elapsed().as_secs_f64();
        assert!(lived >= 0.9, "{engine}: gone after {lived} s");
        assert_eq!(
            text(client.get(get("kept")).await.expect("there").into_inner().content),
            "2",
            "{engine}"
        );
        let range = client.range(RangeRequest::default()).await.expect("a page").into_inner();
        assert_eq!(range.items.len(), 1, "{engine}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_through_a_range_in_both_directions_while_others_write() {
    for engine in ENGINES {
        let node = TestNode::with(&[engine]).await;
        let mut client = node.client().await;
        let mut wanted: Vec<String> = (0..100).map(|number| format!("r/{number:03}")).collect();
        for key in &wanted {
            client.put(put(key.as_str(), "1")).await.expect("stored");
        }
        client.put(put("q", "1")).await.expect("stored");
        client.put(put("s", "1")).await.expect("stored");
        for reverse in [false, true] {
            let mut found = Vec::new();
            let mut page_token = String::new();
            loop {
                let request = RangeRequest {
                    prefix: Some("r/".to_owned()),
                    limit: Some(7),
                    reverse,
                    keys_only: true,
                    page_token,
                    ..RangeRequest::default()
                };
                let page = client.range(request).await.expect("a page").into_inner();
                assert!(
                    page.items.len() <= 7 && page.items.iter().all(|item| item.content.is_none())
                );
                found.extend(page.items.into_iter().map(|item| item.key));
                client.put(put(format!("s/{}", found.len()), "1")).await.expect("stored");
                if page.next_page_token.is_empty() {
                    break;
                }
                page_token = page.next_page_token;
            }
            assert_eq!(found, wanted, "{engine}, reverse: {reverse}");
            wanted.reverse();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_restart() {
    for engine in ON_DISK {
        restarts(engine).await;
    }
}

async fn restarts(engine: &str) {
    let mut node = TestNode::with(&[engine]).await;
    let mut client = node.client().await;
    for number in 0..50 {
        client.put(put(format!("k/{number}"), number.to_string())).await.expect("stored");
    }
    client
        .delete(DeleteRequest { key: "k/7".to_owned(), ..DeleteRequest::default() })
        .await
        .expect("deleted");
    let before = client.get(get("k/8")).await.expect("there").into_inner();
    drop(client);
    node.stop().await;
    node.open().await;
    let mut client = node.client().await;
    assert_eq!(client.stats(StatsRequest {}).await.expect("counted").into_inner().keys, 49.0);
    assert_eq!(client.get(get("k/7")).await.expect_err("deleted").code(), Code::NotFound);
    assert_eq!(client.get(get("k/8")).await.expect("there").into_inner(), before);
    let version = client.put(put("k/8", "0")).await.expect("stored").into_inner().version;
    assert!(version > before.version, "versions go on where they were");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_can_be_verified_and_restored_and_damage_is_found() {
    for engine in ON_DISK {
        backs_up_and_restores(engine).await;
    }
}

async fn backs_up_and_restores(engine: &str) {
    use kvstore::proto::admin::CreateBackupRequest;
    let place = tempfile::tempdir().expect("a temporary directory");
    let backups = format!("kvstore.backup.dir={}", place.path().join("backups").display());
    let node = TestNode::with(&[engine, &backups]).await;
    let mut client = node.client().await;
    for number in 0..20 {
        client.put(put(format!("k/{number}"), number.to_string())).await.expect("stored");
    }
    let mut admin = node.admin().await;
    for wrong in ["../x", "", ".hidden", "a/b"] {
        let name = Some(wrong.to_owned());
        let refused = admin.create_backup(CreateBackupRequest { name }).await.expect_err(wrong);
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}");
    }
    let name = || Some("monday".to_owned());
    let made =
        admin.create_backup(CreateBackupRequest { name: name() }).await.expect("made").into_inner();
    assert_eq!(made.keys, 20.0);
    let taken = admin
        .create_backup(CreateBackupRequest { name: name() })
        .await
        .expect_err("the name is taken");
    assert_eq!(taken.code(), Code::FailedPrecondition);

    let path = std::path::PathBuf::from(made.path);
    kvstore::backup::verify(&path).expect("whole");
    let fresh = tempfile::tempdir().expect("a temporary directory");
    let mut loaded = crate::node::load(&fresh, &[engine.to_owned()]);
    loaded.config.storage.data_dir = fresh.path().join("restored");
    kvstore::server::restore(&path, &loaded.config).expect("restored");
    assert!(
        kvstore::server::restore(&path, &loaded.config).is_err(),
        "the directory is not empty now"
    );
    let server = kvstore::server::Server::start(&loaded, std::sync::Arc::default())
        .await
        .expect("it starts");
    let url = format!("http://{}/api/v1/kv/k/7", server.http_address);
    let found: serde_json::Value =
        reqwest::get(url).await.expect("an answer").json().await.expect("JSON");
    assert_eq!(found["value"], "7");
    server.stop().await.expect("it stops");

    let victim =
        walk(&path).into_iter().find(|file| file.metadata().is_ok_and(|data| data.len() > 20));
    let victim = victim.expect("some file has content");
    let mut content = std::fs::read(&victim).expect("readable");
    content[10] ^= 1;
    std::fs::write(&victim, content).expect("writable");
    let error = kvstore::backup::verify(&path).expect_err("damaged").to_string();
    assert!(error.contains(&*victim.to_string_lossy()), "{error} names {}", victim.display());
}

/// Restoring checks everything before it writes anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_backup_is_refused_with_nothing_written() {
    refuses_damage(LSM, "checkpoint").await;
    refuses_damage(ON_DISK[0], "dump").await;
}

/// `file` is the name of a file that every shard's part has.
async fn refuses_damage(engine: &str, file: &str) {
    use kvstore::proto::admin::CreateBackupRequest;
    let place = tempfile::tempdir().expect("a temporary directory");
    let backups = format!("kvstore.backup.dir={}", place.path().join("backups").display());
    let node = TestNode::with(&[engine, &backups]).await;
    let mut client = node.client().await;
    for number in 0..20 {
        client.put(put(format!("k/{number}"), number.to_string())).await.expect("stored");
    }
    let made = node.admin().await.create_backup(CreateBackupRequest::default()).await;
    let path = std::path::PathBuf::from(made.expect("made").into_inner().path);
    let fresh = tempfile::tempdir().expect("a temporary directory");
    let mut loaded = crate::node::load(&fresh, &[engine.to_owned()]);
    loaded.config.storage.data_dir = fresh.path().join("restored");
    let target = loaded.config.storage.data_dir.clone();
    let refuse = |what: &str| {
        let error = kvstore::server::restore(&path, &loaded.config).expect_err(what).to_string();
        assert!(error.contains(&*path.to_string_lossy()), "{what}: {error}");
        assert!(!target.exists(), "{what}: something was written");
    };
    // The last of all files, so that whoever writes while he checks has written by then.
    let files = walk(&path);
    let victim = files.iter().filter(|path| path.ends_with(file)).max().expect("a shard's part");
    let whole = std::fs::read(victim).expect("readable");
    let mut bent = whole.clone();
    *bent.last_mut().expect("not empty") ^= 1;
    for (content, what) in [(&bent[..], "a changed byte"), (&whole[..whole.len() - 1], "a cut")] {
        std::fs::write(victim, content).expect("writable");
        refuse(what);
    }
    std::fs::remove_file(victim).expect("removable");
    refuse("a missing file");
    std::fs::write(victim, &whole).expect("writable");

    let stray = path.join("shard-0").join("stray");
    std::fs::write(&stray, "").expect("writable");
    refuse("a foreign file");
    std::fs::remove_file(&stray).expect("removable");

    let manifest = path.join("backup.json");
    let text = std::fs::read_to_string(&manifest).expect("readable");
    let (json, _) = text.split_once('\n').expect("an object and its checksum");
    let outside = json.replace(&format!("shard-0/{file}"), &format!("../{file}"));
    let forged = format!("{outside}\n{:08x}\n", crc32c::crc32c(outside.as_bytes()));
    std::fs::write(path.parent().expect("a parent").join(file), &whole).expect("writable");
    std::fs::write(&manifest, forged).expect("writable");
    refuse("a path that leaves the backup");
    std::fs::write(&manifest, text).expect("writable");

    let configured = loaded.config.storage.engine;
    loaded.config.storage.engine = kvstore::config::Engine::Memory;
    let error = kvstore::server::restore(&path, &loaded.config).expect_err("another engine");
    let word = configured.as_str();
    assert!(error.to_string().contains(word) && !target.exists(), "{error}");
    loaded.config.storage.engine = configured;
    loaded.config.hash_ring.shards += 1;
    let error = kvstore::server::restore(&path, &loaded.config).expect_err("other shards");
    assert!(error.to_string().contains("shards") && !target.exists(), "{error}");
    loaded.config.hash_ring.shards -= 1;
    kvstore::server::restore(&path, &loaded.config).expect("it is whole");
}

fn walk(path: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries =
        std::fs::read_dir(path).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
