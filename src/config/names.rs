//! The names a key may go by: Spring's relaxed binding in files and in the environment, and the nearest name for one that
//! is none.

use std::borrow::Cow;

/// The form in which names from files and `--set` are compared: `kvstore.storage.dataDir`, `data_dir` and `data-dir` are
/// one.
pub(super) fn canonical(path: &str) -> String {
    path.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// The documented name in the environment: dots become `_`, dashes vanish.
pub fn environment_name(path: &str) -> String {
    path.chars()
        .filter(|c| *c != '-')
        .map(|c| if c == '.' { '_' } else { c.to_ascii_uppercase() })
        .collect()
}

/// What is left of `name` after the environment form of `path`, where each dash may also be a `_`. Case is ignored, as
/// Spring does.
pub(super) fn strip_environment<'a>(name: &'a str, path: &str) -> Option<&'a str> {
    let mut rest = name;
    for wanted in path.bytes() {
        match wanted {
            b'-' => rest = rest.strip_prefix('_').unwrap_or(rest),
            b'.' => rest = rest.strip_prefix('_')?,
            _ => {
                let first = *rest.as_bytes().first()?;
                if !first.eq_ignore_ascii_case(&wanted) {
                    return None;
                }
                rest = &rest[1..];
            }
        }
    }
    Some(rest)
}

/// Whether a variable is one that Kubernetes and Docker links set for a service called `kvstore...` or `node`, and not
/// meant as configuration: `KVSTORE_SERVICE_HOST`, `KVSTORE_PORT_9090_TCP_ADDR`, `KVSTORE_GRPC_PORT=tcp://10.0.0.7:9090`.
pub(super) fn is_service_link(name: &str, value: &str) -> bool {
    let names_protocol = |tail: &str| {
        let (port, protocol) = tail.split_once('_').unwrap_or((tail, ""));
        !port.is_empty()
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known))
    };
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && is_url)
        || name.split("_PORT_").skip(1).any(names_protocol)
}

/// The one of `names` that `wrong` most likely meant: at most two edits away (one in four letters for long names), or
/// the one that ends with it (`grpc.port` for `kvstore.grpc.port`).
pub(super) fn nearest<'a>(
    wrong: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    // A longer text is no misspelling of any name, and the distance costs the product of both lengths.
    if wrong.is_empty() || wrong.len() > 128 {
        return None;
    }
    let most = (wrong.chars().count() / 4).clamp(1, 4);
    names
        .clone()
        .map(|name| (distance(wrong, name), name))
        .filter(|(edits, _)| *edits <= most)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
        .or_else(|| {
            let mut tails = names.filter(|name| {
                name.strip_suffix(wrong).is_some_and(|head| head.ends_with(['.', '_']))
            });
            tails.next().filter(|_| tails.next().is_none())
        })
}

/// Edits between two words: insert, delete, replace, or swap two neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = above[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut above, row);
    }
    above[b.len()]
}

/// Whether a key that this program does not know names something that nobody shall read.
pub(super) fn sounds_secret(path: &str) -> bool {
    let path = canonical(path);
    ["password", "secret", "token", "credential", "apikey", "privatekey"]
        .iter()
        .any(|word| path.contains(word))
}

/// `text` as it may stand in a message: on one line, and not longer than anybody reads.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    const CHARS_MAX: usize = 80;
    if text.chars().count() <= CHARS_MAX && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(CHARS_MAX).collect();
    Cow::Owned(format!("{line}..."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_names_drop_dashes_or_turn_them() {
        let path = "kvstore.hash-ring.virtual-nodes-per-node";
        assert_eq!(environment_name(path), "KVSTORE_HASHRING_VIRTUALNODESPERNODE");
        for name in [
            "KVSTORE_HASHRING_VIRTUALNODESPERNODE",
            "KVSTORE_HASH_RING_VIRTUAL_NODES_PER_NODE",
            "KVSTORE_HASH_RING_VIRTUALNODESPERNODE",
            "kvstore_hashring_virtualnodespernode",
        ] {
            assert_eq!(strip_environment(name, path), Some(""), "{name}");
        }
        assert_eq!(strip_environment("KVSTOREHASHRING", "kvstore.hash-ring"), None);
        assert_eq!(strip_environment("KVSTORE_CLUSTER_JOIN_0", "kvstore.cluster.join"), Some("_0"));
        assert_eq!(strip_environment("KVSTÖRE", "kvstore.cluster.join"), None);
    }

    #[test]
    fn service_links_are_no_configuration() {
        for (name, value) in [
            ("KVSTORE_SERVICE_HOST", "10.0.0.7"),
            ("KVSTORE_SERVICE_PORT", "9090"),
            ("KVSTORE_SERVICE_PORT_GRPC", "9090"),
            ("KVSTORE_PORT", "tcp://10.0.0.7:9090"),
            ("KVSTORE_GRPC_PORT", "tcp://10.0.0.7:9090"),
            ("KVSTORE_NODE1_PORT_9090_TCP_ADDR", "10.0.0.7"),
            ("KVSTORE_PORT_9090_TCP", "tcp://10.0.0.7:9090"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        for (name, value) in [
            ("KVSTORE_GRPC_PORT", "9090"),
            ("NODE_PORT", "8080"),
            ("KVSTORE_STORAGE_ENGINE", "lsm"),
        ] {
            assert!(!is_service_link(name, value), "{name}");
        }
    }

    #[test]
    fn the_nearest_name_is_one_that_a_hand_may_have_meant() {
        let names = ["kvstore.grpc.port", "server.port", "kvstore.storage.engine"];
        let near = |wrong| nearest(wrong, names.iter().copied());
        assert_eq!(near("kvstore.storage.engnie"), Some("kvstore.storage.engine"));
        assert_eq!(near("server.prot"), Some("server.port"));
        assert_eq!(near("grpc.port"), Some("kvstore.grpc.port"));
        assert_eq!(near("port"), None, "two keys end so");
        assert_eq!(near("something.else"), None);
        assert_eq!(near(""), None);
    }
}
