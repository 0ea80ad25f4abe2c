//! Nodes that tell something else than they were asked, malformed or unfitting: as good as no answer, never a wrong result.
//!
//! Each lie is told by one node first: what comes of the read is what an honest cluster says. Then by all: the read fails as if nobody had answered.

use std::fmt::Debug;

use bytes::Bytes;
use tokio::time::sleep;

use super::nodes::{Nodes, wide, within};
use super::pages::Asked;
use super::*;
use crate::cluster::NodeName;
use crate::raft::Answers as _;
use crate::raft::sim::{PATIENCE, simulate};
use crate::router::remote::{
    Answer, Missing, Question, Told, Wanted, What, decode_answer, encode_answer,
};
use crate::shard::Document;

/// Documents of each shard.
const EACH: usize = 4;

/// Makes something else of what a node answers.
type Lie = fn(&Question<What>, Answer) -> Answer;

/// Likewise, of its bytes.
type Noise = fn(&[u8]) -> Vec<u8>;

const NOISES: [(&str, Noise); 6] = [
    ("nothing", |_| Vec::new()),
    ("a part", |bytes| bytes[..bytes.len() - 1].to_vec()),
    ("a bit more", |bytes| [bytes, &[0]].concat()),
    ("a later version", |bytes| [&[9], &bytes[1..]].concat()),
    ("a kind that there is not", |bytes| [&bytes[..1], &[7], &bytes[2..]].concat()),
    ("a number without end", |bytes| [&bytes[..2], &[0xff; 12]].concat()),
];

/// Lies about everything.
const COMMON: [(&str, Lie); 4] = [
    ("documents, or figures", |question, answer| {
        let told = match question.what {
            What::Documents(_) => Told::Figures(Vec::new()),
            What::Page { .. } | What::Figures => Told::Documents(Vec::new()),
        };
        Answer { told, ..answer }
    }),
    ("a page", |question, answer| {
        let told = match question.what {
            What::Page { .. } => Told::Figures(Vec::new()),
            _ => Told::Page(Page { items: Vec::new(), more: false }),
        };
        Answer { told, ..answer }
    }),
    ("that it does not serve what it was not asked for", |_, mut answer| {
        answer.missing.push(Missing { shard: ShardId(77), leader: None });
        answer
    }),
    ("what it says that it does not serve", |question, mut answer| {
        let missing = question.shards.iter().map(|shard| Missing { shard: *shard, leader: None });
        answer.missing = missing.collect();
        answer
    }),
];

const OF_DOCUMENTS: [(&str, Lie); 3] = [
    ("a document beyond the keys", |question, answer| {
        let What::Documents(Wanted { keys, .. }) = &question.what else { return answer };
        with_documents(answer, |documents| documents[0].0 = keys.len())
    }),
    ("a document twice", |_, answer| {
        with_documents(answer, |documents| documents.push(documents[0].clone()))
    }),
    ("a document at the place of another", |_, answer| {
        with_documents(answer, |documents| documents[0].0 = documents[1].0)
    }),
];

const OF_PAGES: [(&str, Lie); 8] = [
    ("an item twice", |_, answer| with_items(answer, |items| items.insert(0, items[0].clone()))),
    ("items in the other order", |_, answer| with_items(answer, |items| items.reverse())),
    ("an item before the range", |question, answer| {
        let first = of_shard("a", question, true);
        with_items(answer, |items| items[0].key = first)
    }),
    ("an item beyond the range", |question, answer| {
        let beyond = of_shard("z", question, true);
        with_items(answer, |items| items.last_mut().expect("there are some").key = beyond)
    }),
    ("an item of a shard that others were asked for", |question, answer| {
        let foreign = of_shard("k/", question, false);
        with_items(answer, |items| {
            items.truncate(1);
            items[0].key = foreign;
        })
    }),
    ("no value where one is wanted, or one where none is", |_, answer| {
        with_items(answer, |items| {
            let value = &mut items[0].value;
            *value = value.is_none().then(|| json("1"));
        })
    }),
    ("more items than a page may have", |question, answer| {
        with_items(answer, |items| {
            let mut more = items.clone();
            for (number, item) in more.iter_mut().enumerate() {
                item.key = of_shard(&format!("k/~{number}"), question, true);
            }
            more.sort_by(|a, b| a.key.cmp(&b.key));
            items.extend(more);
        })
    }),
    ("more bytes than a page may have", |_, answer| {
        with_items(answer, |items| {
            let value = items[1].value.is_some().then(|| Value::Raw(vec![b'1'; 2_000].into()));
            items[1].value = value;
        })
    }),
];

const OF_FIGURES: [(&str, Lie); 3] = [
    ("figures of another shard", |_, answer| {
        with_figures(answer, |figures| figures[0].shard = ShardId(77))
    }),
    ("figures twice", |_, answer| with_figures(answer, |figures| figures.push(figures[0].clone()))),
    ("no figures", |_, answer| with_figures(answer, Vec::clear)),
];

/// Whether it is a real answer, and not already a refusal of everything.
fn with_documents(mut answer: Answer, change: impl FnOnce(&mut Vec<(usize, Document)>)) -> Answer {
    if let Told::Documents(documents) = &mut answer.told {
        change(documents);
    }
    answer
}

fn with_items(mut answer: Answer, change: impl FnOnce(&mut Vec<Item>)) -> Answer {
    if let Told::Page(page) = &mut answer.told {
        change(&mut page.items);
    }
    answer
}

fn with_figures(mut answer: Answer, change: impl FnOnce(&mut Vec<Figures>)) -> Answer {
    if let Told::Figures(figures) = &mut answer.told {
        change(figures);
    }
    answer
}

/// A key that begins so, of one of the shards that were asked for, or of none of them.
fn of_shard(beginning: &str, question: &Question<What>, asked: bool) -> Key {
    let mut keys = (0..).map(|number| key(&format!("{beginning}{number}")));
    let is_asked = |key: &Key| question.shards.contains(&shard_of(key.as_bytes(), 6));
    keys.find(|key| is_asked(key) == asked).expect("there is one")
}

fn told(lie: Lie) -> impl Fn(&Question<What>, Bytes) -> Bytes + Copy + Send + Sync {
    move |question, bytes| match decode_answer(&bytes) {
        Some(Ok(answer)) => encode_answer(&Ok(lie(question, answer))),
        _ => bytes,
    }
}

/// Five nodes with some documents in each shard.
async fn begin(seed: u64) -> (Nodes, Vec<Key>) {
    let nodes = Nodes::start(wide(), seed).await;
    let mut keys = Vec::new();
    for number in 0..EACH {
        keys.extend(nodes.one_each(&format!("k/{number}")).await);
    }
    (nodes, keys)
}

/// Reads at `node` while one node lies, and while all do.
async fn check<T: PartialEq + Debug>(
    nodes: &Nodes,
    name: &str,
    lie: impl Fn(&Question<What>, Bytes) -> Bytes + Copy + Send + Sync + 'static,
    read: impl AsyncFn(Duration) -> Result<T>,
) {
    nodes.bend(|_, _, bytes| bytes);
    nodes.heard();
    let truth = read(PATIENCE).await.expect("they are honest");
    let heard = nodes.heard();
    let liar = heard.first().expect("others are asked").node;
    nodes.bend(
        move |node, question, bytes| {
            if node == liar { lie(question, bytes) } else { bytes }
        },
    );
    let begun = Instant::now();
    assert_eq!(read(PATIENCE).await.expect("the others are honest"), truth, "{name}");
    assert!(begun.elapsed() < Duration::from_millis(100), "{name}: others are asked at once");
    assert!(nodes.heard().len() > heard.len(), "{name}: others are asked for its part");

    nodes.bend(move |_, question, bytes| lie(question, bytes));
    let limit = Duration::from_millis(100);
    let begun = Instant::now();
    let error = read(limit).await.expect_err("nobody is honest");
    assert_eq!(error.reason(), Reason::NoLeader, "{name}: {error}");
    assert!(error.message().contains("does not answer"), "{name}: {error}");
    assert_eq!(begun.elapsed(), limit, "{name}");
    // What was still on its way arrives.
    sleep(limit).await;
}

async fn check_all<T: PartialEq + Debug>(
    nodes: &Nodes,
    lies: &[(&str, Lie)],
    read: impl AsyncFn(Duration) -> Result<T>,
) {
    for (name, noise) in NOISES {
        check(nodes, name, move |_, bytes| noise(&bytes).into(), &read).await;
    }
    for (name, lie) in COMMON.iter().chain(lies) {
        check(nodes, name, told(*lie), &read).await;
    }
}

#[test]
fn documents_that_were_not_asked_for_are_no_answer() {
    simulate(1, async || {
        let (nodes, keys) = begin(1).await;
        for asker in [0, 3] {
            let router = nodes.router(asker);
            check_all(&nodes, &OF_DOCUMENTS, async |limit| {
                let freshness = Freshness::Linearizable;
                router.batch_get(keys.clone(), 1 << 20, freshness, within(limit)).await
            })
            .await;
        }
        // One key: nothing that comes is taken for its document.
        let (shard, key) = (ShardId(2), nodes.key_in(ShardId(2), "k/0"));
        let router = nodes.router(nodes.stranger(shard));
        for (name, lie) in COMMON.iter().chain(&OF_DOCUMENTS[..2]) {
            check(&nodes, name, told(*lie), async |limit| {
                router.get(key.as_bytes(), Freshness::Stale, within(limit)).await
            })
            .await;
        }
        nodes.end().await;
    });
}

#[test]
fn items_that_were_not_asked_for_are_no_answer() {
    simulate(2, async || {
        let (nodes, _) = begin(2).await;
        let limits = PageLimits { items: EACH - 1, bytes: 1_000 };
        for reverse in [false, true] {
            for keys_only in [false, true] {
                let asked = Asked { reverse, keys_only, ..Asked::prefix("k/") };
                let router = nodes.router(1);
                // Nothing that is left out counts.
                let lies = &OF_PAGES[..OF_PAGES.len() - usize::from(keys_only)];
                check_all(&nodes, lies, async |limit| {
                    let freshness = Freshness::Linearizable;
                    router.page(asked.query(), limits, freshness, within(limit)).await
                })
                .await;
            }
        }
        nodes.end().await;
    });
}

/// Figures of some shards are better than none: those that nobody tells are left out.
#[test]
fn figures_that_were_not_asked_for_are_left_out() {
    simulate(3, async || {
        let (nodes, _) = begin(3).await;
        for (name, lie) in COMMON.iter().chain(&OF_FIGURES) {
            nodes.bend(|_, _, bytes| bytes);
            nodes.heard();
            let router = nodes.router(2);
            let shards = async || {
                let figures = router.figures().await.expect("it has met its cluster");
                figures.iter().map(|figures| figures.shard).collect::<Vec<_>>()
            };
            assert!(shards().await.into_iter().eq(nodes.shards()));
            let (liar, told) = (nodes.heard()[0].node, told(*lie));
            nodes.bend(
                move |node, question, bytes| {
                    if node == liar { told(question, bytes) } else { bytes }
                },
            );
            assert!(shards().await.into_iter().eq(nodes.shards()), "{name}");
        }
        nodes.end().await;
    });
}

/// What is asked may be anything as well: it is answered, with an error perhaps.
#[test]
fn any_question_is_answered() {
    simulate(4, async || {
        let (nodes, keys) = begin(4).await;
        let answerer = Answerer::new(nodes.router(0));
        let from = NodeName("n2".to_owned());
        let ask = async |what: &What, shards: &[ShardId], left| {
            let freshness = Freshness::Stale;
            let question = Question { what, shards: shards.to_vec(), freshness, left }.encode();
            let answer = answerer.answer(&from, question).await;
            decode_answer(&answer).expect("an answer")
        };
        let (soon, late) = (Duration::from_secs(1), Duration::from_millis(u64::MAX));
        let beyond = [ShardId(0), ShardId(6), ShardId(u32::MAX)];
        let places = beyond.map(|shard| (shard, vec![0, 1])).to_vec();
        let documents = What::Documents(Wanted { keys: keys.clone(), places, bytes_max: 0 });
        let query = Asked::prefix("k/").query();
        let limits = PageLimits { items: 0, bytes: usize::MAX };
        let page = What::Page { query, limits };
        for what in [&documents, &page, &What::Figures] {
            let error = ask(what, &beyond, late).await.expect_err("there is no such shard");
            assert_eq!(error.reason(), Reason::FailedPrecondition, "{error}");
            let none = ask(what, &[], soon).await.expect("nothing was asked");
            assert!(none.missing.is_empty());
        }
        // Each byte of a question is bent, each bit by itself.
        for what in [&documents, &page, &What::Figures] {
            let question = Question {
                what,
                shards: vec![ShardId(0), ShardId(1)],
                freshness: Freshness::Linearizable,
                left: soon,
            };
            let question = question.encode();
            for at in 0..question.len().min(40) {
                for bit in 0..8 {
                    let mut bent = question.to_vec();
                    bent[at] ^= 1 << bit;
                    let answer = answerer.answer(&from, bent.into()).await;
                    assert!(decode_answer(&answer).is_some(), "byte {at}, bit {bit}");
                }
            }
        }
        nodes.end().await;
    });
}
