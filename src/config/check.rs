//! What no single value shows: combinations that cannot work, and the secret that stands in a file of its own.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::Path;

use super::settings::Config;
use super::value;

/// Longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 1_024;

/// A combination that cannot work: the key to look at first, and why.
pub(super) type Conflict = (&'static str, String);

/// One rule: the keys it reads (the first is the one to blame), whether it is broken, what to say.
type Rule = (&'static [&'static str], fn(&Config) -> bool, &'static str);

const RULES: &[Rule] = &[
    (
        &["kvstore.raft.election-timeout", "kvstore.raft.heartbeat-interval"],
        |c| c.raft.election_timeout < 3 * c.raft.heartbeat_interval,
        "has to be at least three times kvstore.raft.heartbeat-interval",
    ),
    (
        &["kvstore.grpc.port", "server.port", "kvstore.grpc.enabled"],
        |c| c.grpc.enabled && c.grpc.port != 0 && c.grpc.port == c.server.port,
        "is also server.port; the two ports have to differ",
    ),
    (
        &["kvstore.limits.page-items-default", "kvstore.limits.page-items"],
        |c| c.limits.page_items_default > c.limits.page_items,
        "is more than kvstore.limits.page-items",
    ),
    (
        &["kvstore.limits.deadline-default", "kvstore.limits.deadline-max"],
        |c| c.limits.deadline_default > c.limits.deadline_max,
        "is longer than kvstore.limits.deadline-max",
    ),
    (
        &["kvstore.limits.value-size", "kvstore.limits.request-size"],
        |c| c.limits.value_size > c.limits.request_size,
        "is more than kvstore.limits.request-size",
    ),
    (
        &["kvstore.limits.batch-size", "kvstore.limits.request-size"],
        |c| c.limits.batch_size > c.limits.request_size,
        "is more than kvstore.limits.request-size",
    ),
    (
        &["kvstore.limits.request-size", "kvstore.limits.in-flight-size"],
        |c| c.limits.request_size > c.limits.in_flight_size,
        "is more than kvstore.limits.in-flight-size",
    ),
    (
        &["kvstore.cluster.join", "kvstore.cluster.members"],
        |c| !c.cluster.join.is_empty() && !c.cluster.members.is_empty(),
        "is set together with kvstore.cluster.members: a node either creates a cluster or joins one",
    ),
    (
        &["kvstore.node.host", "kvstore.cluster.join"],
        |c| is_loopback(&c.node.host) && !c.cluster.join.iter().all(|seed| is_loopback(seed)),
        "is reached from this machine only, but kvstore.cluster.join names others; set it (or NODE_HOST) to the name or address under which they reach this node",
    ),
    (
        &["kvstore.raft.enabled", "kvstore.cluster.join", "kvstore.cluster.members"],
        |c| !c.raft.enabled && c.cluster.is_set(),
        "is false, but kvstore.cluster names other nodes",
    ),
    (
        &["kvstore.grpc.enabled", "kvstore.cluster.join", "kvstore.cluster.members"],
        |c| !c.grpc.enabled && c.cluster.is_set(),
        "is false, but the nodes of kvstore.cluster meet on the gRPC port",
    ),
    (
        &["kvstore.cluster.members", "kvstore.node.id"],
        |c| {
            let members = &c.cluster.members;
            !members.is_empty() && members.iter().all(|member| member.node != c.node.id)
        },
        "does not name this node, see kvstore.node.id",
    ),
    (
        &["kvstore.cluster.members"],
        |c| !all_differ(c.cluster.members.iter().map(|member| member.node.as_str())),
        "names a node twice",
    ),
    (
        &["kvstore.cluster.members"],
        |c| !all_differ(c.cluster.members.iter().map(|member| member.address.as_str())),
        "gives two nodes the same address",
    ),
    (
        &["kvstore.cluster.secret-file", "kvstore.cluster.secret"],
        |c| c.cluster.secret_file.is_some() && !c.cluster.secret.is_empty(),
        "is set together with kvstore.cluster.secret",
    ),
    (
        &[
            "server.address",
            "kvstore.cluster.secret",
            "kvstore.cluster.secret-file",
            "kvstore.cluster.insecure",
            "kvstore.cluster.members",
            "kvstore.cluster.join",
        ],
        |c| {
            let (open, cluster) = (!c.server.address.is_loopback(), &c.cluster);
            let without = cluster.secret.is_empty() && cluster.secret_file.is_none();
            cluster.is_set() && open && without && !cluster.insecure
        },
        "is not loopback, and without a secret whoever reaches it could pass for a node of the cluster; set the same kvstore.cluster.secret (or kvstore.cluster.secret-file) on all nodes, or, on a network that you trust, kvstore.cluster.insecure: true",
    ),
];

/// Whether `host`, which may have a port, can only be this machine.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').filter(|_| host.parse::<IpAddr>().is_err());
    value::address(name.map_or(host, |(name, _)| name)).is_some_and(|it| it.is_loopback())
}

fn all_differ<'a>(mut names: impl Iterator<Item = &'a str>) -> bool {
    let mut seen = HashSet::new();
    names.all(|name| seen.insert(name))
}

/// The broken rules, but for those about keys that `is_bad` already.
pub(super) fn conflicts(config: &Config, is_bad: &dyn Fn(&str) -> bool) -> Vec<Conflict> {
    RULES
        .iter()
        .filter(|(keys, broken, _)| !keys.iter().any(|key| is_bad(key)) && broken(config))
        .map(|(keys, _, why)| (keys[0], (*why).to_owned()))
        .collect()
}

/// Takes the secret from its file, relative to `working_dir`. Nothing of the file ever gets into a message.
pub(super) fn read_secret(config: &mut Config, working_dir: &Path) -> Result<(), Conflict> {
    let Some(file) = &config.cluster.secret_file else { return Ok(()) };
    let fail = |why: String| Err(("kvstore.cluster.secret-file", why));
    let mut bytes = Vec::new();
    let most = SECRET_BYTES_MAX as u64 + 2;
    let read =
        File::open(working_dir.join(file)).and_then(|open| open.take(most).read_to_end(&mut bytes));
    if let Err(error) = read {
        return fail(format!("{} cannot be read: {error}", file.display()));
    }
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    match std::str::from_utf8(line).map(str::trim) {
        Ok("") => fail(format!("{} has an empty first line", file.display())),
        Ok(secret) if secret.len() <= SECRET_BYTES_MAX => {
            secret.clone_into(&mut config.cluster.secret);
            Ok(())
        }
        Ok(_) => fail(format!(
            "the first line of {} is longer than {SECRET_BYTES_MAX} bytes",
            file.display()
        )),
        Err(_) => fail(format!("{} is not UTF-8", file.display())),
    }
}
