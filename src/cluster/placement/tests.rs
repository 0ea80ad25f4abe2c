//! The promises of `cluster/placement`, over thousands of random member lists: what holds for each placement, and what moves from one to the next.
//!
//! `PROPTEST_CASES=20000` before `cargo test --profile soak --lib cluster` looks longer.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::members::{Member, Zone};
use super::*;

/// One change of a cluster. Nodes are chosen by number, modulo those there are.
#[derive(Debug, Clone)]
enum Change {
    Add { name: u8, weight: u16, zone: u8 },
    Remove(u8),
    Weigh(u8, u16),
    Move(u8, u8),
    Replicate(u32),
}

/// What changes may do in a history.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Nodes that are all alike come and go.
    Alike,
    /// Nodes come with weights and zones, and go.
    Unlike,
    /// Anything.
    Any,
}

fn changes(kind: Kind) -> impl Strategy<Value = Vec<Change>> {
    let weight = prop_oneof![3 => Just(100), 1 => 50u16..=400];
    let (weight, zones) = match kind {
        Kind::Alike => (Just(100).boxed(), 0u8),
        _ => (weight.boxed(), 4),
    };
    let add = (any::<u8>(), weight.clone(), 0..=zones)
        .prop_map(|(name, weight, zone)| Change::Add { name, weight, zone });
    let remove = any::<u8>().prop_map(Change::Remove);
    let other = prop_oneof![
        (any::<u8>(), prop_oneof![weight, Just(0), 1u16..=10_000])
            .prop_map(|(node, weight)| Change::Weigh(node, weight)),
        (any::<u8>(), 0..=zones).prop_map(|(node, zone)| Change::Move(node, zone)),
        (1u32..=5).prop_map(Change::Replicate),
    ];
    let others = if kind == Kind::Any { 3 } else { 0 };
    let change = prop_oneof![5 => add, 3 => remove, others => other];
    prop::collection::vec(change, 1..24)
}

/// `text` as a zone: 0 stands for none.
fn zone(number: u8) -> Option<Zone> {
    (number > 0).then(|| Zone(format!("z{number}")))
}

impl Change {
    fn apply(&self, topology: &mut Topology) {
        let names: Vec<NodeName> = topology.members.keys().cloned().collect();
        let chosen = |number: &u8| names.get(usize::from(*number) % names.len().max(1));
        let mut change = |number: &u8, change: &dyn Fn(&mut Member)| {
            if let Some(member) = chosen(number).and_then(|it| topology.members.get_mut(it)) {
                change(member);
            }
        };
        match self {
            Self::Add { name, weight, zone: number } => {
                let member = Member { weight: Weight(*weight), zone: zone(*number) };
                topology.members.entry(NodeName(format!("n{name}"))).or_insert(member);
            }
            Self::Remove(number) => {
                chosen(number).map(|name| topology.members.remove(name));
            }
            Self::Weigh(number, weight) => change(number, &|it| it.weight = Weight(*weight)),
            Self::Move(number, to) => change(number, &|it| it.zone = zone(*to)),
            Self::Replicate(factor) => topology.replication_factor = *factor,
        }
    }
}

fn topology(nodes: usize, replication_factor: u32) -> Topology {
    let node = |number| (NodeName(format!("m{number:04}")), Member::default());
    let members = (0..nodes).map(node).collect();
    Topology { members, replication_factor, virtual_nodes_per_node: 20 }
}

/// A cluster that begins, and every placement after each change that was one.
fn history(nodes: usize, factor: u32, shards: u32, changes: &[Change]) -> Vec<Placement> {
    let mut placements = vec![Placement::first(shards, topology(nodes, factor))];
    for change in changes {
        let last = placements.last().expect("it begins with one");
        let mut topology = last.topology.clone();
        change.apply(&mut topology);
        if topology != last.topology {
            placements.push(last.next(topology));
        }
    }
    placements
}

fn loads(placement: &Placement) -> BTreeMap<&NodeName, usize> {
    let mut loads: BTreeMap<_, _> = placement.topology.members.keys().map(|it| (it, 0)).collect();
    for node in placement.shards.iter().flatten() {
        *loads.get_mut(node).expect("only members hold shards") += 1;
    }
    loads
}

/// Who holds a shard now and did not before.
fn moved(before: &Placement, after: &Placement) -> Vec<(usize, NodeName)> {
    let pairs = before.shards.iter().zip(&after.shards).enumerate();
    pairs
        .flat_map(|(shard, (before, after))| {
            after.iter().filter(|it| !before.contains(it)).map(move |it| (shard, it.clone()))
        })
        .collect()
}

/// What no shard has any more although the node is still there.
fn given_up(before: &Placement, after: &Placement) -> usize {
    let pairs = before.shards.iter().zip(&after.shards);
    let lost = pairs.flat_map(|(before, after)| before.iter().filter(|it| !after.contains(it)));
    lost.filter(|it| after.topology.members.contains_key(it)).count()
}

fn holds_what_it_promises(placement: &Placement) {
    let Topology { members, replication_factor, .. } = &placement.topology;
    let usable: BTreeMap<_, _> =
        members.iter().filter(|(_, member)| member.weight != Weight::NONE).collect();
    let replicas = usable.len().min(*replication_factor as usize);
    let mut sizes = BTreeMap::<String, usize>::new();
    let zone_of = |name: &NodeName| match &members[name].zone {
        Some(zone) => format!("zone {}", zone.0),
        None => format!("node {name}"),
    };
    for name in usable.keys() {
        *sizes.entry(zone_of(name)).or_default() += 1;
    }
    let fit = |most: usize| sizes.values().map(|size| (*size).min(most)).sum::<usize>();
    let most = (0..=replicas).find(|most| fit(*most) >= replicas).expect("all of them do");
    for (shard, nodes) in placement.shards.iter().enumerate() {
        let distinct: BTreeSet<_> = nodes.iter().collect();
        assert_eq!((nodes.len(), distinct.len()), (replicas, replicas), "shard {shard}: {nodes:?}");
        let mut zones = BTreeMap::<String, usize>::new();
        for node in nodes {
            assert!(usable.contains_key(node), "{node} is to hold nothing");
            *zones.entry(zone_of(node)).or_default() += 1;
        }
        assert!(zones.values().all(|count| *count <= most), "shard {shard}: {nodes:?}, {most}");
    }
    for ((name, count), load) in loads(placement).into_iter().zip(&spread(placement).loads) {
        assert!(count <= load.bound, "{name} holds {count}: {load:?}\n{:?}", loads(placement));
    }
    if members.values().all(|it| *it == Member::default()) && !members.is_empty() {
        let (all, nodes) = (placement.shards.len() * replicas, members.len());
        let bound = (5 * all / (4 * nodes)).max(all.div_ceil(nodes) + 1);
        assert!(loads(placement).values().all(|count| *count <= bound));
    }
}

fn spread(placement: &Placement) -> Spread {
    let Topology { members, replication_factor, .. } = &placement.topology;
    Spread::new(members, placement.shards.len(), *replication_factor as usize)
}

proptest! {
    #[test]
    fn any_history_keeps_replicas_zones_and_bounds(
        nodes in 0usize..12, factor in 1u32..=5, shards in 0u32..40, changes in changes(Kind::Any),
    ) {
        for placement in history(nodes, factor, shards, &changes) {
            holds_what_it_promises(&placement);
            let again = placement.next(placement.topology.clone());
            prop_assert_eq!(again.epoch, Epoch(placement.epoch.0 + 1));
            prop_assert_eq!(again.shards, placement.shards);
        }
    }

    #[test]
    fn a_node_that_joins_gains_at_most_its_share_and_no_other_gains(
        nodes in 0usize..24, factor in 1u32..=5, shards in 1u32..80, changes in changes(Kind::Alike),
    ) {
        for pair in history(nodes, factor, shards, &changes).windows(2) {
            let [before, after] = pair else { unreachable!("two") };
            let count = after.topology.members.len();
            if count > before.topology.members.len() {
                let moved = moved(before, after);
                let all: usize = after.shards.iter().map(Vec::len).sum();
                prop_assert!(moved.len() * count <= all, "{} of {all} to one of {count}", moved.len());
                for (shard, node) in moved {
                    prop_assert!(!before.topology.members.contains_key(&node), "{shard}: {node}");
                }
            }
        }
    }

    #[test]
    fn a_node_that_leaves_moves_only_what_it_held(
        nodes in 0usize..24, factor in 1u32..=5, shards in 1u32..80, changes in changes(Kind::Alike),
    ) {
        for pair in history(nodes, factor, shards, &changes).windows(2) {
            let [before, after] = pair else { unreachable!("two") };
            if after.topology.members.len() < before.topology.members.len() {
                prop_assert_eq!(given_up(before, after), 0);
            }
        }
    }

    #[test]
    fn with_weights_and_zones_no_more_moves_unless_a_limit_becomes_stricter(
        nodes in 0usize..24, factor in 1u32..=5, shards in 1u32..80, changes in changes(Kind::Unlike),
    ) {
        for pair in history(nodes, factor, shards, &changes).windows(2) {
            let [before, after] = pair else { unreachable!("two") };
            let (old, new) = (spread(before), spread(after));
            if old.zone_limits.iter().max() != new.zone_limits.iter().max() {
                continue;
            }
            if after.topology.members.len() < before.topology.members.len() {
                prop_assert_eq!(given_up(before, after), 0);
                continue;
            }
            let held = loads(before);
            let over = |(name, load): (&NodeName, &Load)| held.get(name).is_some_and(|it| *it > load.bound);
            if !after.topology.members.keys().zip(&new.loads).any(over) {
                for (shard, node) in moved(before, after) {
                    prop_assert!(!before.topology.members.contains_key(&node), "{shard}: {node}");
                }
            }
        }
    }

    #[test]
    fn nodes_that_only_join_carry_their_share_to_the_replica(
        joins in 0u32..12, nodes in 0usize..12, factor in 1u32..=5, shards in 1u32..80,
    ) {
        let mut placement = Placement::first(shards, topology(nodes, factor));
        for join in 0..joins {
            let mut topology = placement.topology.clone();
            topology.members.insert(NodeName(format!("n{join}")), Member::default());
            placement = placement.next(topology);
            let loads = loads(&placement);
            let (least, most) = (loads.values().min(), loads.values().max());
            prop_assert!(most <= least.map(|it| it + 1).as_ref(), "{loads:?}");
        }
    }

    #[test]
    fn the_order_in_which_members_are_listed_says_nothing(
        names in prop::collection::vec(any::<u8>(), 0..12), by in 0usize..12, factor in 1u32..=5,
    ) {
        let member = |name: &u8| {
            let (weight, zone) = (Weight(50 + u16::from(*name)), zone(name % 4));
            (NodeName(format!("n{name}")), Member { weight, zone })
        };
        let mut turned = names.clone();
        turned.rotate_left(by % names.len().max(1));
        turned.reverse();
        let [one, other] = [names, turned].map(|names| {
            let members = names.iter().map(member).collect();
            let first = topology(5, factor);
            Placement::first(32, first.clone()).next(Topology { members, ..first })
        });
        prop_assert_eq!(one, other);
    }

    #[test]
    fn leading_is_spread_as_evenly_as_holding(
        nodes in 1usize..24, factor in 1u32..=5, shards in 1u32..80, changes in changes(Kind::Alike),
    ) {
        for placement in history(nodes, factor, shards, &changes) {
            let mut leads = BTreeMap::<_, usize>::new();
            for first in placement.shards.iter().filter_map(|nodes| nodes.first()) {
                *leads.entry(first).or_default() += 1;
            }
            let replicas = placement.shards.first().map_or(1, |it| it.len().max(1));
            for (node, held) in loads(&placement) {
                let leads = leads.get(node).copied().unwrap_or(0);
                prop_assert!(leads <= held.div_ceil(replicas) + 1, "{node}: {leads} of {held}");
            }
        }
    }
}

/// A cluster of nodes that are alike, named `m0000` and so on, except those that `change` makes otherwise.
fn cluster(nodes: usize, change: impl Fn(usize, &mut Member)) -> Topology {
    let mut topology = topology(nodes, 3);
    for (number, member) in topology.members.values_mut().enumerate() {
        change(number, member);
    }
    topology
}

fn counts(placement: &Placement) -> Vec<usize> {
    loads(placement).into_values().collect()
}

#[test]
fn a_cluster_grows_from_one_node_to_five_and_shrinks_back() {
    let of = |nodes| cluster(nodes, |_, _| {});
    let mut placement = Placement::first(16, of(1));
    let mut story = vec![counts(&placement)];
    for nodes in [2, 3, 4, 5, 4, 3, 2, 1] {
        placement = placement.next(of(nodes));
        story.push(counts(&placement));
    }
    let [one, two, three] = [1, 2, 3].map(|nodes| vec![16; nodes]);
    let grown = [one.clone(), two.clone(), three.clone(), vec![12; 4]];
    assert_eq!(story[..4], grown);
    assert_eq!(story[4], [10, 9, 10, 10, 9]);
    assert_eq!(story[5], [11, 12, 13, 12], "what the fifth held, and nothing else, has moved");
    assert_eq!(story[6..], [three, two, one]);
    assert_eq!(placement.epoch, Epoch(9));
}

#[test]
fn the_first_placement_stays_what_it_is_over_versions() {
    let placement = Placement::first(4, cluster(5, |_, _| {}));
    let names = |shard| placement.nodes(ShardId(shard)).iter().map(|it| it.0.as_str());
    let all: Vec<String> = (0..4).map(|it| names(it).collect::<Vec<_>>().join(" ")).collect();
    let expected =
        ["m0001 m0004 m0002", "m0003 m0001 m0004", "m0002 m0000 m0003", "m0000 m0001 m0003"];
    assert_eq!(all, expected);
    assert!(placement.nodes(ShardId(4)).is_empty());
}

#[test]
fn weights_are_met_from_nothing_and_when_they_change() {
    let weighing =
        |weight| cluster(6, move |number, it| it.weight = Weight([weight, 100][number.min(1)]));
    let placement = Placement::first(140, weighing(200));
    assert_eq!(counts(&placement), [120, 60, 60, 60, 60, 60]);
    let lighter = placement.next(weighing(100));
    assert_eq!(counts(&lighter)[0], 87, "its bound: 1.25 times 70");
    assert_eq!(moved(&placement, &lighter).len(), 120 - 87);
    let heavier = lighter.next(weighing(150));
    assert_eq!(counts(&heavier)[0], 96, "its share: 420 times 150 of 650, rounded down");
    assert_eq!(moved(&lighter, &heavier).len(), 96 - 87);
    let empty = heavier.next(weighing(0));
    assert_eq!(counts(&empty)[0], 0);
    assert_eq!(moved(&heavier, &empty).len(), 96, "what it held and no more");
    assert_eq!(counts(&empty.next(weighing(100)))[0], 70);
}

#[test]
fn a_node_that_is_replaced_gives_all_to_the_one_that_comes() {
    let placement = Placement::first(64, cluster(8, |_, _| {}));
    let mut topology = placement.topology.clone();
    topology.members.remove(&"m0003".into());
    topology.members.insert("new".into(), Member::default());
    let next = placement.next(topology);
    let moved = moved(&placement, &next);
    assert_eq!(moved.len(), 24);
    let to_it = moved.iter().filter(|(_, node)| *node == "new".into()).count();
    assert!(to_it >= 20, "{to_it} of 24; the others carried less than their share");
}

#[test]
fn a_third_zone_gets_one_replica_of_each_shard() {
    let zoned = |nodes| cluster(nodes, |number, it| it.zone = zone([1, 2, 1, 2, 3][number]));
    let placement = Placement::first(60, zoned(4));
    assert_eq!(counts(&placement), [45; 4]);
    let next = placement.next(zoned(5));
    assert_eq!(counts(&next)[4], 60);
    assert_eq!(moved(&placement, &next).len(), 60, "one for each shard, and nothing else");
    holds_what_it_promises(&next);
}

#[test]
fn a_lower_replication_factor_moves_nothing() {
    let placement = Placement::first(100, cluster(7, |_, _| {}));
    let next = placement.next(Topology { replication_factor: 2, ..placement.topology.clone() });
    assert!(moved(&placement, &next).is_empty());
    holds_what_it_promises(&next);
}
