//! How long it takes to place many shards on many nodes, how even the result is, and what moves when one node comes or goes:
//! `cargo bench --bench placement [nodes] [shards] [zones]`; without numbers 1,000 nodes and 16,384 shards, without zones and with five.

use std::collections::BTreeMap;
use std::time::Instant;

use kvstore::cluster::{Member, NodeName, Placement, Topology, Zone};

const REPLICATION_FACTOR: u32 = 3;
const VIRTUAL_NODES_PER_NODE: u32 = 150;

fn main() {
    let numbers: Vec<u32> = std::env::args().filter_map(|it| it.parse().ok()).collect();
    let number = |index: usize, usual| numbers.get(index).copied().unwrap_or(usual);
    let (nodes, shards) = (number(0, 1_000), number(1, 16_384));
    println!("{nodes} nodes, {shards} shards of {REPLICATION_FACTOR} replicas\n");
    println!("{:28} {:>8} {:>15} {:>15} {:>8}", "", "ms", "load/mean", "firsts/mean", "moved");
    let zones = numbers.get(2).map_or(vec![0, 5], |zones| vec![*zones]);
    for zones in zones {
        println!("{}", if zones == 0 { "no zones".to_owned() } else { format!("{zones} zones") });
        story(nodes, shards, zones);
    }
}

fn story(nodes: u32, shards: u32, zones: u32) {
    let member = |node: u32| {
        let zone = (zones > 0).then(|| Zone(format!("z{}", node % zones.max(1))));
        (NodeName(format!("node-{node:05}")), Member { zone, ..Member::default() })
    };
    let mut topology = Topology {
        members: (0..nodes).map(member).collect(),
        replication_factor: REPLICATION_FACTOR,
        virtual_nodes_per_node: VIRTUAL_NODES_PER_NODE,
    };
    let mut last = Placement::first(0, topology.clone());
    let mut step = |what: &str, topology: &Topology, from_nothing: bool| {
        let start = Instant::now();
        let next = if from_nothing {
            Placement::first(shards, topology.clone())
        } else {
            last.next(topology.clone())
        };
        report(what, start.elapsed().as_secs_f64() * 1e3, &last, &next);
        last = next;
    };
    step("placed from nothing", &topology, true);
    topology.members.extend([member(nodes)]);
    step("one node joins", &topology, false);
    topology.members.remove(&member(0).0);
    step("one node leaves", &topology, false);
    topology.members.extend((nodes + 1..nodes + nodes / 10).map(member));
    step("a tenth joins", &topology, false);
    for node in 1..=nodes / 10 {
        topology.members.remove(&member(node).0);
    }
    step("a tenth leaves", &topology, false);
}

fn report(what: &str, milliseconds: f64, before: &Placement, after: &Placement) {
    let members = &after.topology.members;
    let mut loads: BTreeMap<&NodeName, [f64; 2]> =
        members.keys().map(|it| (it, [0.0; 2])).collect();
    for nodes in &after.shards {
        for (index, node) in nodes.iter().enumerate() {
            let [all, firsts] = loads.entry(node).or_default();
            *all += 1.0;
            *firsts += f64::from(u8::from(index == 0));
        }
    }
    let range = |which: usize| {
        let values = || loads.values().map(|it| it[which]);
        let mean = values().sum::<f64>() / values().map(|_| 1.0).sum::<f64>();
        let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(0.0, f64::max));
        format!("{:.3} to {:.3}", low / mean, high / mean)
    };
    let pairs = before.shards.iter().zip(&after.shards);
    let moved: usize =
        pairs.map(|(old, new)| new.iter().filter(|node| !old.contains(node)).count()).sum();
    println!("  {what:26} {milliseconds:8.1} {:>15} {:>15} {moved:8}", range(0), range(1));
}
