//! The life of a cluster as its state tells it: who comes and goes, and that what is planned comes to an end on the way that was promised.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;

const SHARDS: u32 = 8;

fn newcomer(name: &str) -> Newcomer {
    Newcomer {
        name: name.into(),
        incarnation: Incarnation(Uuid::from_u128(name.bytes().map(u128::from).sum())),
        address: format!("{name}:9090"),
        weight: Weight::USUAL,
        zone: None,
    }
}

fn founded(names: &[&str]) -> ClusterState {
    let founders = names.iter().map(|name| newcomer(name)).collect();
    ClusterState::found(founders, SHARDS, Settings::default())
}

fn all(state: &ClusterState) -> BTreeSet<NodeName> {
    state.members.keys().cloned().collect()
}

/// What the leaders of all shards do with the changes that are under way, one step for each; the highest replica number seen before.
fn carry_on(state: &mut ClusterState) {
    for index in 0..SHARDS {
        let shard = state.shards[index as usize].clone();
        let Some(change) = shard.change else { continue };
        let mut voters = shard.voters.clone();
        let undone = change.cancelled
            && change.add.as_ref().is_some_and(|(replica, _)| !voters.contains_key(replica));
        if !undone {
            voters.extend(change.add.clone());
            if let Some(remove) = change.remove {
                voters.remove(&remove);
            }
        }
        assert!(!voters.is_empty(), "shard {index} has nobody left");
        assert!(state.report(ShardId(index), shard.as_of + 1, &voters, &Replicas::new()));
    }
}

/// Until nothing is under way; how many replicas came.
fn settle(state: &mut ClusterState) -> usize {
    let mut came = 0;
    for _ in 0..1_000 {
        let (reached, gone) = (all(state), BTreeSet::new());
        if !state.plan(&reached, &gone) && state.shards.iter().all(|shard| shard.change.is_none()) {
            let meta = state.meta_replicas();
            state.forget(&meta);
            assert!(state.is_settled(), "{state:?}");
            return came;
        }
        let moving = state.shards.iter().filter(|shard| shard.change.is_some()).count();
        assert!(moving <= state.settings.moves_max as usize);
        came += state.shards.iter().filter_map(|shard| shard.change.as_ref()?.add.as_ref()).count();
        carry_on(state);
    }
    panic!("it does not come to an end: {state:?}");
}

#[test]
fn a_cluster_begins_where_it_is_to_be() {
    let state = founded(&["n3", "n1", "n2"]);
    assert!(state.is_settled());
    assert_eq!(state, founded(&["n1", "n2", "n3"]), "in whatever order they are named");
    assert_eq!(state.revision, 0);
    let mut numbers = BTreeSet::new();
    for shard in &state.shards {
        assert_eq!(shard.voters.len(), 3);
        numbers.extend(shard.voters.keys().copied());
    }
    numbers.extend(state.members.values().map(|node| node.meta));
    assert_eq!(numbers.len(), 3 * 8 + 3, "no number twice");
}

#[test]
fn the_fourth_node_takes_its_share_and_nothing_else_moves() {
    let mut state = founded(&["n1", "n2", "n3"]);
    state.admit(newcomer("n4")).expect("there is room");
    assert!(!state.is_settled());
    assert_eq!(settle(&mut state), 6, "a quarter of 24");
    let on_new = state.shards.iter().filter(|shard| shard.names(&"n4".into())).count();
    assert_eq!(on_new, 6);
    assert_eq!(state.revision, 1);
}

#[test]
fn a_node_leaves_when_its_shards_have_left() {
    let mut state = founded(&["n1", "n2", "n3", "n4"]);
    let held = state.shards.iter().filter(|shard| shard.names(&"n2".into())).count();
    state.remove(&"n2".into()).expect("three are left");
    let meta = state.meta_replicas();
    assert!(!state.forget(&meta) && !state.has_gone(&"n2".into()), "it holds shards");
    assert_eq!(settle(&mut state), held, "only what it held moves");
    assert!(!state.members.contains_key(&"n2".into()));
    assert!(state.shards.iter().all(|shard| !shard.names(&"n2".into()) && shard.voters.len() == 3));
}

#[test]
fn a_node_that_leaves_stays_in_the_meta_group_until_it_has_nothing() {
    let mut state = founded(&["n1", "n2", "n3", "n4"]);
    let meta = state.members[&NodeName::from("n2")].meta;
    state.remove(&"n2".into()).expect("three are left");
    assert!(state.meta_replicas().contains_key(&meta), "it has to hear what becomes of its shards");
    assert!(!state.meta_voters(&state.meta_replicas().keys().copied().collect()).contains(&meta));
}

#[test]
fn nobody_leaves_who_is_needed() {
    let mut state = founded(&["n1", "n2", "n3"]);
    for refused in
        [state.remove(&"n1".into()), state.drain(&"n1".into()), state.give_up(&"n1".into())]
    {
        let Refused(why) = refused.expect_err("two nodes cannot hold three replicas");
        assert!(why.contains("3 replicas") && why.contains("n2 and n3"), "{why}");
    }
    let Refused(why) = state.remove(&"n9".into()).expect_err("nobody");
    assert_eq!(why, "there is no node n9; the members are n1, n2 and n3");
    let fewer = Settings { replication_factor: 1, ..state.settings.clone() };
    state.set(fewer).expect("it is in range");
    settle(&mut state);
    state.remove(&"n1".into()).expect("one replica finds a place on two nodes");
    settle(&mut state);
    state.remove(&"n2".into()).expect("or on one");
    settle(&mut state);
    assert_eq!(all(&state), BTreeSet::from(["n3".into()]));
    assert!(state.remove(&"n3".into()).is_err(), "but not on none");
}

#[test]
fn a_node_takes_the_place_of_another_in_one_move() {
    let mut state = founded(&["n1", "n2", "n3"]);
    state.replace(&"n2".into(), &"n4".into()).expect("n4 is to come");
    assert!(state.is_settled(), "nothing moves before it has come");
    state.admit(newcomer("n4")).expect("there is room");
    assert_eq!(settle(&mut state), 8, "every shard of n2, once");
    assert_eq!(all(&state), ["n1", "n3", "n4"].map(NodeName::from).into());
}

#[test]
fn what_comes_to_a_node_that_went_silent_is_taken_back() {
    let mut state = founded(&["n1", "n2", "n3"]);
    state.admit(newcomer("n4")).expect("there is room");
    let (reached, nobody) = (all(&state), BTreeSet::new());
    assert!(state.plan(&reached, &nobody));
    let without: BTreeSet<_> = reached.iter().filter(|node| node.0 != "n4").cloned().collect();
    assert!(state.plan(&without, &["n4".into()].into()));
    assert!(state.shards.iter().filter_map(|it| it.change.as_ref()).all(|it| it.cancelled));
    carry_on(&mut state);
    assert!(!state.plan(&without, &["n4".into()].into()), "it is not tried again while it is away");
    assert_eq!(settle(&mut state), 6, "but when it is back");
}

#[test]
fn nothing_begins_that_would_leave_a_shard_without_a_majority() {
    let mut state = founded(&["n1", "n2", "n3", "n4"]);
    let fewer = Settings { replication_factor: 1, ..state.settings.clone() };
    state.set(fewer).expect("it is in range");
    let up: BTreeSet<_> = ["n1".into()].into();
    state.plan(&up, &BTreeSet::new());
    for shard in &state.shards {
        let Some(Change { remove: Some(remove), .. }) = &shard.change else { continue };
        let stay = shard.voters.iter().filter(|(replica, _)| *replica != remove);
        let up_then = stay.clone().filter(|(_, node)| up.contains(*node)).count();
        assert!(2 * up_then > stay.count(), "{shard:?}");
    }
}

#[test]
fn a_report_that_is_late_changes_nothing() {
    let mut state = founded(&["n1", "n2", "n3"]);
    let before = state.shards[0].voters.clone();
    let after: Replicas = before.iter().skip(1).map(|(it, node)| (*it, node.clone())).collect();
    assert!(state.report(ShardId(0), 7, &after, &Replicas::new()));
    assert!(!state.report(ShardId(0), 6, &before, &Replicas::new()));
    assert_eq!(state.shards[0].voters, after);
    assert!(!state.report(ShardId(99), 8, &before, &Replicas::new()), "no such shard");
}

#[test]
fn a_name_belongs_to_one_data_directory() {
    let mut state = founded(&["n1", "n2", "n3"]);
    let wiped = Newcomer { incarnation: Incarnation(Uuid::from_u128(1)), ..newcomer("n2") };
    let Refused(why) = state.admit(wiped).expect_err("another directory");
    assert!(why.contains("n2") && why.contains("join under a new name"), "{why}");
    let moved = Newcomer { address: "elsewhere:1".to_owned(), ..newcomer("n2") };
    state.admit(moved).expect("the same directory, elsewhere");
    assert_eq!(state.members[&NodeName::from("n2")].address, "elsewhere:1");
    assert_eq!((state.revision, state.is_settled()), (0, true));
}

#[test]
fn the_meta_group_has_an_odd_number_of_voters_over_all_zones() {
    let voters = |state: &ClusterState, now: &[ReplicaNumber]| {
        state.meta_voters(&now.iter().copied().collect())
    };
    for (count, expected) in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (7, 5)] {
        let names: Vec<_> = (1..=count).map(|number| format!("n{number}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        assert_eq!(voters(&founded(&names), &[]).len(), expected, "{count} nodes");
    }
    let mut state = founded(&["n1", "n2", "n3", "n4", "n5", "n6"]);
    let five = voters(&state, &[]);
    let (first, rest): (BTreeSet<_>, BTreeSet<_>) = five.iter().copied().partition(|it| *it == 1);
    state.remove(&"n1".into()).expect("five are left");
    let next = state.meta_voters(&five);
    assert!(next.is_superset(&rest) && next.is_disjoint(&first) && next.len() == 5, "{next:?}");

    for (name, zone) in [("n2", "a"), ("n3", "a"), ("n4", "b"), ("n5", "c"), ("n6", "a")] {
        let zoned = Newcomer { zone: Some(Zone(zone.to_owned())), ..newcomer(name) };
        state.admit(zoned).expect("it is a member");
    }
    let one_of_a = state.members[&NodeName::from("n2")].meta;
    let chosen = state.meta_voters(&[one_of_a].into());
    for zone in ["a", "b", "c"] {
        let votes =
            |node: &&Node| chosen.contains(&node.meta) && node.zone == Some(Zone(zone.to_owned()));
        assert!(state.members.values().any(|node| votes(&node)), "zone {zone}");
    }
}

#[test]
fn a_state_of_another_format_is_refused() {
    let state = founded(&["n1"]);
    let text = String::from_utf8(state.to_json()).expect("JSON is text");
    assert_eq!(ClusterState::from_json(text.as_bytes()), Ok(state));
    let later = text.replace("\"format\":1", "\"format\":2");
    let error = ClusterState::from_json(later.as_bytes()).expect_err("it is later");
    assert_eq!(error, "the cluster's state has format 2, this program reads 1");
    assert!(ClusterState::from_json(b"{}").is_err());
}

/// What happens to a cluster, by numbers modulo what there is.
#[derive(Debug, Clone)]
enum Event {
    Join(u8),
    Remove(u8),
    Drain(u8),
    Restore(u8),
    GiveUp(u8),
    Replace(u8, u8),
    Replicate(u32),
    /// The controller begins what it may; these nodes are up, the others are gone if said so.
    Plan(u16, bool),
    CarryOn,
    Forget,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => (0u8..12).prop_map(Event::Join),
        1 => any::<u8>().prop_map(Event::Remove),
        1 => any::<u8>().prop_map(Event::Drain),
        1 => any::<u8>().prop_map(Event::Restore),
        1 => any::<u8>().prop_map(Event::GiveUp),
        1 => (any::<u8>(), 0u8..12).prop_map(|(old, new)| Event::Replace(old, new)),
        1 => (1u32..=5).prop_map(Event::Replicate),
        4 => (any::<u16>(), any::<bool>()).prop_map(|(up, gone)| Event::Plan(up, gone)),
        4 => Just(Event::CarryOn),
        1 => Just(Event::Forget),
    ];
    prop::collection::vec(event, 1..60)
}

fn apply(state: &mut ClusterState, event: &Event) {
    let names: Vec<NodeName> = state.members.keys().cloned().collect();
    let chosen = |number: &u8| names[usize::from(*number) % names.len()].clone();
    let joining = |number: &u8| format!("j{number}");
    // What is refused changes nothing.
    let _ = match event {
        Event::Join(number) => state.admit(newcomer(&joining(number))),
        Event::Remove(number) => state.remove(&chosen(number)),
        Event::Drain(number) => state.drain(&chosen(number)),
        Event::Restore(number) => state.restore(&chosen(number)),
        Event::GiveUp(number) => state.give_up(&chosen(number)),
        Event::Replace(old, new) => state.replace(&chosen(old), &NodeName(joining(new))),
        Event::Replicate(factor) => {
            state.set(Settings { replication_factor: *factor, ..state.settings.clone() })
        }
        Event::Plan(up, gone) => {
            let is_up = |position: usize| position == 0 || up >> (position % 16) & 1 == 1;
            let (up, down): (Vec<_>, Vec<_>) =
                names.into_iter().enumerate().partition(|(position, _)| is_up(*position));
            let up = up.into_iter().map(|(_, name)| name).collect();
            let down = down.into_iter().filter(|_| *gone).map(|(_, name)| name).collect();
            state.plan(&up, &down);
            Ok(())
        }
        Event::CarryOn => {
            carry_on(state);
            Ok(())
        }
        Event::Forget => {
            let meta = state.meta_replicas();
            state.forget(&meta);
            Ok(())
        }
    };
}

proptest! {
    #[test]
    fn whatever_happens_it_comes_to_an_end(events in events()) {
        let mut state = founded(&["n1", "n2", "n3"]);
        let mut seen: BTreeMap<ReplicaNumber, NodeName> = BTreeMap::new();
        for event in &events {
            let before = state.clone();
            apply(&mut state, event);
            for (index, shard) in state.shards.iter().enumerate() {
                prop_assert!(!shard.voters.is_empty());
                let nodes: BTreeSet<_> = shard.replicas().map(|(_, node)| node).collect();
                prop_assert_eq!(nodes.len(), shard.replicas().count(), "a node has a shard once");
                for (replica, node) in shard.replicas() {
                    let first = seen.entry(replica).or_insert_with(|| node.clone());
                    prop_assert_eq!(&*first, node, "a number is given out once");
                    prop_assert!(state.members.contains_key(node), "shard {} is on {}, who has gone", index, node);
                }
                let kept = before.shards[index].change.as_ref().zip(shard.change.as_ref());
                if let Some((before, now)) = kept && before.add == now.add {
                    prop_assert!(now.cancelled >= before.cancelled, "what was taken back stays so");
                }
            }
            prop_assert!(state.revision >= before.revision);
            prop_assert_eq!(
                state.revision > before.revision, all(&state) != all(&before),
                "a list of members has a revision of its own"
            );
            let text = state.to_json();
            prop_assert_eq!(ClusterState::from_json(&text), Ok(state.clone()));
        }
        settle(&mut state);
    }
}
