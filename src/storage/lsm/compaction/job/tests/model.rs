//! Random histories, flushed and compacted in random order, read at every view as the naive model says.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Write(Write),
    Clock(u64),
    View,
    DropView(usize),
    Flush,
    /// The picker's choice, if it has one.
    Compact {
        space: bool,
    },
    /// The same, but it ends later.
    Begin {
        space: bool,
    },
    /// One of those that run ends.
    End(usize),
    Manual(u8, u8),
}

/// Keys of the stories.
const KEYS: u8 = 30;

fn key_of(number: u8) -> Vec<u8> {
    format!("k{number:02}").into_bytes()
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    (0..KEYS).prop_map(key_of)
}

fn step() -> impl Strategy<Value = Step> {
    let put = (key(), 0..120usize, proptest::option::weighted(0.3, 0..200u64));
    let write = prop_oneof![
        6 => put.prop_map(|(key, length, expires_at)| {
            let value = vec![u8::try_from(length).expect("small"); length];
            Write::Put { key, value, expires_at }
        }),
        2 => key().prop_map(Write::Delete),
        1 => (key(), key()).prop_map(|(start, end)| Write::DeleteRange(start, end)),
    ];
    prop_oneof![
        30 => write.prop_map(Step::Write),
        3 => (1..20u64).prop_map(Step::Clock),
        2 => Just(Step::View),
        2 => (0..4usize).prop_map(Step::DropView),
        5 => Just(Step::Flush),
        6 => any::<bool>().prop_map(|space| Step::Compact { space }),
        3 => any::<bool>().prop_map(|space| Step::Begin { space }),
        3 => any::<usize>().prop_map(Step::End),
        1 => (0..KEYS, 0..KEYS + 5).prop_map(|(start, end)| Step::Manual(start, end)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn compaction_changes_nothing_that_any_reader_sees(
        steps in proptest::collection::vec(step(), 1..250),
    ) {
        let mut engine = Engine::new(tiny());
        for (number, step) in steps.into_iter().enumerate() {
            let what = format!("step {number}, {step:?}");
            match step {
                Step::Write(write) => {
                    engine.history.push(write);
                    continue;
                }
                Step::Clock(passed) => {
                    engine.clock += passed;
                    continue;
                }
                Step::View => engine.view(),
                Step::DropView(at) if at < engine.views.len() => drop(engine.views.swap_remove(at)),
                Step::DropView(_) => continue,
                Step::Flush => engine.flush(),
                Step::Compact { space } => match engine.choose(space) {
                    Some((_, choice)) => engine.run(&choice),
                    None => continue,
                },
                Step::Begin { space } => {
                    engine.begin(space);
                }
                Step::End(_) if engine.begun.is_empty() => continue,
                Step::End(at) => engine.end(at % engine.begun.len()),
                Step::Manual(start, end) => {
                    let end = (end < KEYS).then(|| key_of(end));
                    engine.compact(&key_of(start), end.as_deref());
                }
            }
            engine.check(&what);
        }
        while !engine.begun.is_empty() {
            engine.end(0);
        }
        // Without views, everything that is not live goes; nothing is left for which there is work.
        engine.views.clear();
        engine.flush();
        engine.settle(true);
        engine.check("settled");
        engine.compact(&[], None);
        engine.check("compacted");
        let present = engine.readers().present();
        prop_assert_eq!(engine.entries(), engine.expected(present).len() as u64);
        engine.directory.remove_garbage().expect("removed");
        let is_table = |name: &&String| FileNumber::parse(name, "sst").is_some();
        let tables = engine.files().iter().filter(is_table).count();
        prop_assert_eq!(tables, engine.version().tables().count());
    }
}

/// That the random stories come to all the places: otherwise they show nothing.
#[test]
fn a_long_story_gives_every_reason_to_compact() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut engine = Engine::new(tiny());
    let mut deepest = BTreeSet::new();
    for _ in 0..3000 {
        let drawn = step().new_tree(&mut runner).expect("drawn").current();
        match drawn {
            Step::Write(write) => engine.history.push(write),
            Step::Clock(passed) => engine.clock += passed,
            Step::Flush => {
                engine.flush();
                engine.settle(false);
            }
            Step::Compact { space } => engine.settle(space),
            Step::Begin { .. }
            | Step::End(_)
            | Step::View
            | Step::DropView(_)
            | Step::Manual(..) => {}
        }
        deepest.extend(engine.version().tables().map(|(level, _)| level));
    }
    engine.check("at the end");
    let reasons: Vec<_> = engine.reasons.iter().copied().collect();
    let expected =
        [Reason::Dead, Reason::LevelZero, Reason::Size, Reason::Tombstones, Reason::Expired];
    assert_eq!(reasons, expected);
    assert!(deepest.len() >= 3, "{deepest:?}");
}

/// Bursts of writes to parts of a wider range, so that there is work in many places at once.
#[test]
fn compactions_that_run_together_do_not_meet() {
    let mut most = 0;
    for seed in 0..40u64 {
        let mut engine = Engine::new(PickerOptions { growth: 3, ..tiny() });
        let mut state = seed;
        let mut below = |bound: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % bound
        };
        for burst in 0..60 {
            let first = below(400);
            for _ in 0..20 {
                let key = format!("{:03}", first + below(30));
                match below(20) {
                    0..4 => engine.history.push(Write::Delete(key.into_bytes())),
                    4 => {
                        let end = format!("{:03}", first + 30).into_bytes();
                        engine.history.push(Write::DeleteRange(key.into_bytes(), end));
                    }
                    _ => engine.put(&key, &[1; 40]),
                }
            }
            engine.flush();
            let ran = engine.run_together(burst % 7 == 0, burst % 2 == 0);
            most = most.max(ran);
            if burst % 5 == 0 {
                engine.check(&format!("seed {seed}, burst {burst}, {ran} together"));
            }
        }
    }
    assert!(most >= 4, "at most {most} at a time");
}
