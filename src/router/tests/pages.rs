//! Pages over shards: in order, complete, each key once, within their limits, also while others write.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::storage::Direction;
use crate::storage::testing::property;

const WIDE: PageLimits = PageLimits { items: usize::MAX, bytes: usize::MAX };

/// A query as a client states it.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) start: String,
    pub(super) end: String,
    pub(super) prefix: String,
    pub(super) reverse: bool,
    pub(super) keys_only: bool,
}

impl Asked {
    pub(super) fn all() -> Self {
        let none = String::new;
        Self { start: none(), end: none(), prefix: none(), reverse: false, keys_only: false }
    }

    pub(super) fn prefix(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned(), ..Self::all() }
    }

    pub(super) fn query(&self) -> Query {
        let direction = if self.reverse { Direction::Reverse } else { Direction::Forward };
        Query::new(&self.start, &self.end, &self.prefix, direction, self.keys_only)
            .expect("the range goes upwards")
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        key >= self.start.as_str()
            && (self.end.is_empty() || key < self.end.as_str())
            && key.starts_with(&self.prefix)
    }
}

async fn page(bench: &Bench, query: Query, limits: PageLimits) -> Page {
    bench.router.page(query, limits, Freshness::Linearizable, deadline()).await.expect("reads")
}

fn keys(page: &Page) -> Vec<&str> {
    page.items.iter().map(|item| item.key.as_str()).collect()
}

async fn store(bench: &Bench, names: &[&str]) {
    let entries = names.iter().map(|name| (key(name), json(name))).collect();
    bench.batch_put(entries).await.expect("stored");
}

/// All keys of a query, page by page, as a client reads them: each page with the token of the one before.
async fn all_pages(bench: &Bench, asked: &Asked, limits: PageLimits) -> Vec<String> {
    let mut found = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let mut query = asked.query();
        if let Some(token) = &token {
            query = query.resume(token).expect("its own token");
        }
        let page = page(bench, query, limits).await;
        found.extend(page.items.iter().map(|item| item.key.as_str().to_owned()));
        if !page.more {
            return found;
        }
        token = page.items.last().map(|last| asked.query().token(last.key.as_bytes()));
    }
}

#[tokio::test]
async fn page_merges_all_shards_in_order() {
    let bench = Bench::new(4);
    let names: Vec<_> = (0..50).map(|number| format!("{number:02}")).collect();
    store(&bench, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let forward = page(&bench, Asked::all().query(), WIDE).await;
    assert_eq!(keys(&forward), names);
    assert!(!forward.more);
    assert!(
        forward
            .items
            .iter()
            .all(|item| text(item.value.as_ref().expect("a value")) == item.key.as_str())
    );
    let reverse = Asked { reverse: true, ..Asked::all() };
    let mut backward = page(&bench, reverse.query(), WIDE).await;
    backward.items.reverse();
    assert_eq!(backward.items, forward.items);
}

#[tokio::test]
async fn page_ends_at_its_number_of_items_and_says_whether_more_follow() {
    let bench = Bench::new(3);
    store(&bench, &["a", "b", "c", "d"]).await;
    for (items, wanted, more) in [
        (1, vec!["a"], true),
        (3, vec!["a", "b", "c"], true),
        (4, vec!["a", "b", "c", "d"], false),
        (5, vec!["a", "b", "c", "d"], false),
    ] {
        let page = page(&bench, Asked::all().query(), PageLimits { items, ..WIDE }).await;
        assert_eq!((keys(&page), page.more), (wanted, more), "{items}");
    }
    let nothing = page(&bench, Asked::prefix("x").query(), WIDE).await;
    assert_eq!((nothing.items.len(), nothing.more), (0, false));
}

#[tokio::test]
async fn page_ends_at_its_bytes_but_has_one_item_at_least() {
    let bench = Bench::new(3);
    store(&bench, &["aaaa", "bbbb", "cccc"]).await;
    // Four bytes of key, four of value.
    for (bytes, count) in [(0, 1), (15, 1), (16, 2), (23, 2), (24, 3)] {
        let page = page(&bench, Asked::all().query(), PageLimits { bytes, ..WIDE }).await;
        assert_eq!((page.items.len(), page.more), (count, count < 3), "{bytes}");
    }
    // Values that are not given out are not counted.
    let keys_only = Asked { keys_only: true, ..Asked::all() };
    let page = page(&bench, keys_only.query(), PageLimits { bytes: 8, ..WIDE }).await;
    assert_eq!(keys(&page), ["aaaa", "bbbb"]);
    assert!(page.items.iter().all(|item| item.value.is_none() && item.version > Version::ABSENT));
}

#[tokio::test]
async fn prefix_and_bounds_narrow_each_other() {
    let bench = Bench::new(3);
    store(&bench, &["a", "user", "user/", "user/a", "user/b", "user/é", "user0", "z"]).await;
    let ask = |start: &str, end: &str, prefix: &str, reverse| Asked {
        start: start.to_owned(),
        end: end.to_owned(),
        reverse,
        ..Asked::prefix(prefix)
    };
    for (asked, wanted) in [
        (ask("", "", "user/", false), vec!["user/", "user/a", "user/b", "user/é"]),
        (ask("", "", "user/", true), vec!["user/é", "user/b", "user/a", "user/"]),
        (ask("user/b", "", "user/", false), vec!["user/b", "user/é"]),
        (ask("", "user/b", "user/", true), vec!["user/a", "user/"]),
        (ask("a", "user/", "", false), vec!["a", "user"]),
        (ask("x", "", "user/", false), vec![]),
        (ask("", "b", "user/", true), vec![]),
        (ask("b", "b", "", false), vec![]),
        (ask("", "", "user/a", false), vec!["user/a"]),
    ] {
        assert_eq!(keys(&page(&bench, asked.query(), WIDE).await), wanted, "{asked:?}");
        let one = PageLimits { items: 1, ..WIDE };
        assert_eq!(all_pages(&bench, &asked, one).await, wanted, "{asked:?} one by one");
    }
}

#[tokio::test]
async fn token_outlives_its_key() {
    let bench = Bench::new(3);
    store(&bench, &["a", "b", "c", "d"]).await;
    for (reverse, wanted) in [(false, ["c", "d"]), (true, ["b", "a"])] {
        let asked = Asked { reverse, ..Asked::all() };
        let last = if reverse { "c" } else { "b" };
        let token = asked.query().token(last.as_bytes());
        bench
            .router
            .delete(key(last), None, None, deadline())
            .expect("room")
            .await
            .expect("deleted");
        let query = asked.query().resume(&token).expect("still a token");
        assert_eq!(keys(&page(&bench, query, WIDE).await), wanted);
        store(&bench, &[last]).await;
    }
}

#[test]
fn token_of_another_query_is_refused() {
    let asked = Asked { end: "z".to_owned(), ..Asked::prefix("m") };
    let token = asked.query().token(b"m/1");
    assert!(asked.query().resume(&token).is_ok());
    let others = [
        Asked { end: "y".to_owned(), ..asked.clone() },
        Asked { end: String::new(), ..asked.clone() },
        Asked { start: "a".to_owned(), ..asked.clone() },
        Asked { reverse: true, ..asked.clone() },
        Asked { prefix: "m/".to_owned(), ..asked.clone() },
        // The same texts in other places.
        Asked { start: "m".to_owned(), end: "z".to_owned(), ..Asked::all() },
        Asked { start: "m".to_owned(), ..Asked::prefix("z") },
    ];
    for other in others {
        let error = other.query().resume(&token).expect_err("foreign");
        assert_eq!(error.reason(), Reason::InvalidPageToken, "{other:?}");
    }
    // What an answer shows of each item is not part of the query.
    let keys_only = Asked { keys_only: true, ..asked };
    assert!(keys_only.query().resume(&token).is_ok());
}

#[test]
fn damaged_token_is_refused() {
    let query = Asked::all().query();
    let token = query.token(b"some key");
    for at in 0..token.len() {
        for other in b"Az0_-=+/ .%" {
            let mut bent = token.clone().into_bytes();
            if bent[at] == *other {
                continue;
            }
            bent[at] = *other;
            let bent = String::from_utf8(bent).expect("text");
            let error = query.clone().resume(&bent).expect_err("damaged");
            assert_eq!(error.reason(), Reason::InvalidPageToken, "{bent}");
        }
        assert!(query.clone().resume(&token[..at]).is_err(), "cut at {at}");
    }
    for foreign in
        [String::new(), format!("{token}A"), format!("{token}{token}"), "A".repeat(1 << 20)]
    {
        assert!(query.clone().resume(&foreign).is_err());
    }
    let longest = "k".repeat(crate::types::KEY_BYTES_MAX);
    assert!(query.clone().resume(&query.token(longest.as_bytes())).is_ok());
    assert!(query.clone().resume(&query.token(format!("{longest}k").as_bytes())).is_err());
    assert!(query.clone().resume(&query.token(b"")).is_err());
}

#[tokio::test]
async fn token_leads_nowhere_beyond_the_bounds_of_its_query() {
    let bench = Bench::new(3);
    store(&bench, &["a", "aa", "m", "yy", "z"]).await;
    for reverse in [false, true] {
        let asked = Asked { start: "b".to_owned(), end: "y".to_owned(), reverse, ..Asked::all() };
        for position in ["a", "b", "m", "y", "zz"] {
            // Anybody can compute a token.
            let token = asked.query().token(position.as_bytes());
            let query = asked.query().resume(&token).expect("well formed");
            let found = page(&bench, query, WIDE).await;
            assert!(keys(&found).iter().all(|key| *key == "m"), "{position} {reverse}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_have_no_gaps_and_no_duplicates_while_others_write() {
    let bench = std::sync::Arc::new(Bench::new(4));
    let lasting: Vec<_> = (0..150).map(|number| format!("k/{number:03}")).collect();
    store(&bench, &lasting.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let finished = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writing = tokio::spawn({
        let (bench, finished) = (bench.clone(), finished.clone());
        async move {
            let mut rounds = 0u32;
            while !finished.load(std::sync::atomic::Ordering::SeqCst) {
                rounds += 1;
                // Keys between the others come and go, and those are written again and again.
                let passing = format!("k/{:03}x", rounds * 7 % 150);
                store(&bench, &[&passing, &format!("k/{:03}", rounds * 13 % 150)]).await;
                let delete = bench.router.delete(key(&passing), None, None, deadline());
                delete.expect("room").await.expect("deleted");
            }
            rounds
        }
    });
    for round in 0..12 {
        let asked = Asked { reverse: round % 2 == 1, ..Asked::prefix("k/") };
        let limits = PageLimits { items: 1 + round, ..WIDE };
        let mut found = all_pages(&bench, &asked, limits).await;
        if asked.reverse {
            found.reverse();
        }
        assert!(found.is_sorted_by(|a, b| a < b), "in order, each key once");
        let found: BTreeSet<_> = found.into_iter().collect();
        assert!(lasting.iter().all(|key| found.contains(key)), "all that was there throughout");
    }
    finished.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(writing.await.expect("no panic") > 0, "somebody wrote");
}

/// What happens between two pages.
#[derive(Debug, Clone)]
enum Change {
    Put(String, usize),
    Delete(String),
}

#[derive(Debug, Clone)]
struct Listing {
    asked: Asked,
    limits: PageLimits,
    changes: Vec<Change>,
}

fn name() -> impl Strategy<Value = String> {
    let letter = prop::sample::select(vec!['a', 'b', '/', '0', '\u{7f}', 'é', '\u{10ffff}']);
    vec(letter, 1..4).prop_map(String::from_iter)
}

fn listing() -> impl Strategy<Value = Listing> {
    let bound = || prop_oneof![2 => Just(String::new()), 3 => name()];
    let asked = (bound(), bound(), bound(), any::<bool>(), any::<bool>()).prop_map(
        |(start, end, prefix, reverse, keys_only)| {
            let (start, end) =
                if !end.is_empty() && end < start { (end, start) } else { (start, end) };
            Asked { start, end, prefix, reverse, keys_only }
        },
    );
    let items = prop_oneof![1..6usize, Just(usize::MAX)];
    let bytes = prop_oneof![0..60usize, Just(usize::MAX)];
    let limits = (items, bytes).prop_map(|(items, bytes)| PageLimits { items, bytes });
    let change = prop_oneof![
        2 => (name(), 0..20usize).prop_map(|(name, size)| Change::Put(name, size)),
        1 => name().prop_map(Change::Delete),
    ];
    (asked, limits, vec(change, 0..6)).prop_map(|(asked, limits, changes)| Listing {
        asked,
        limits,
        changes,
    })
}

/// Keys with the size of their value.
type Model = BTreeMap<String, usize>;

/// The keys of a page, and whether more follow, from what there is now.
fn expected(
    model: &Model,
    asked: &Asked,
    limits: PageLimits,
    last: Option<&str>,
) -> (Vec<String>, bool) {
    let mut left: Vec<_> = model
        .iter()
        .filter(|(key, _)| asked.contains(key))
        .filter(|(key, _)| {
            last.is_none_or(
                |last| if asked.reverse { key.as_str() < last } else { key.as_str() > last },
            )
        })
        .collect();
    if asked.reverse {
        left.reverse();
    }
    let (mut keys, mut bytes) = (Vec::new(), 0);
    for (key, size) in left {
        bytes += key.len() + if asked.keys_only { 0 } else { *size };
        if !keys.is_empty() && (keys.len() == limits.items || bytes > limits.bytes) {
            return (keys, true);
        }
        keys.push(key.clone());
    }
    (keys, false)
}

async fn play(shards: u32, listings: &[Listing]) {
    let bench = Bench::new(shards);
    let mut model = Model::new();
    for Listing { asked, limits, changes } in listings {
        let mut last: Option<String> = None;
        // Every page is compared with what there is at its moment; changes come in between.
        for round in 0.. {
            for change in changes.iter().skip(round % 2).step_by(2) {
                match change {
                    Change::Put(name, size) => {
                        bench.put(name, &"1".repeat(*size)).await;
                        model.insert(name.clone(), *size);
                    }
                    Change::Delete(name) => {
                        let delete = bench.router.delete(key(name), None, None, deadline());
                        let deleted = delete.expect("room").await.expect("deleted");
                        assert_eq!(deleted, model.remove(name).is_some(), "{name:?}");
                    }
                }
            }
            let mut query = asked.query();
            if let Some(last) = &last {
                let token = query.token(last.as_bytes());
                query = query.resume(&token).expect("its own token");
            }
            let found = page(&bench, query, *limits).await;
            let (wanted, more) = expected(&model, asked, *limits, last.as_deref());
            assert_eq!(
                (keys(&found), found.more),
                (wanted.iter().map(String::as_str).collect(), more),
                "{asked:?} {limits:?} after {last:?}"
            );
            for item in &found.items {
                let size = item.value.as_ref().map(|value| value.bytes().len());
                assert_eq!(size, (!asked.keys_only).then(|| model[item.key.as_str()]));
            }
            if !found.more {
                break;
            }
            last = wanted.last().cloned();
        }
    }
}

#[test]
fn pages_are_what_a_sorted_map_would_give() {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_current_thread().enable_time().build().expect("a runtime starts")
    });
    let case = (1..5u32, vec(listing(), 1..20));
    property::check(file!(), (4_000, 40), &case, |(shards, listings)| {
        RUNTIME.block_on(play(shards, &listings));
    });
}
