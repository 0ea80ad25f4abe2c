//! `/actuator/info`: what runs here. `build`, `git`, `os` and `process` are Spring's members, `rust` stands where Spring has
//! `java`, `node` and `limits` are this program's own.

use serde_json::{Value, json};

use crate::types::Limits;

/// What the build script writes for a fact that it could not learn, for example in a source tree without git.
const UNKNOWN: &str = "unknown";

/// What a node tells about itself beside what its program knows.
#[derive(Debug, Clone)]
pub struct Info {
    /// The node's id.
    pub node: String,
    /// The name or address that others reach it by.
    pub host: String,
    /// Its storage engine.
    pub engine: String,
    /// How many shards the keys are spread over.
    pub shards: u32,
    /// What requests may carry.
    pub limits: Limits,
}

impl Info {
    /// The answer. It holds for as long as the process runs.
    pub(super) fn into_document(self) -> Value {
        let name = env!("CARGO_PKG_NAME");
        let mut build = json!({
            "artifact": name,
            "group": name,
            "name": name,
            "version": env!("CARGO_PKG_VERSION"),
        });
        insert_known(&mut build, "time", env!("BUILD_TIME"));
        let mut document = json!({
            "build": build,
            "os": os(),
            "process": process(),
            "rust": {"version": env!("BUILD_RUSTC"), "target": env!("BUILD_TARGET")},
            "node": {
                "id": self.node,
                "host": self.host,
                "engine": self.engine,
                "shards": self.shards,
            },
            "limits": limits(&self.limits),
        });
        if let Some(git) = git() {
            document["git"] = git;
        }
        document
    }
}

fn insert_known(object: &mut Value, name: &str, value: &str) {
    if value != UNKNOWN {
        object[name] = value.into();
    }
}

/// The commit that was built; nothing where the source was not in git.
fn git() -> Option<Value> {
    let id = env!("BUILD_GIT_COMMIT");
    if id == UNKNOWN {
        return None;
    }
    let mut git = json!({"commit": {"id": id}});
    insert_known(&mut git["commit"], "time", env!("BUILD_GIT_TIME"));
    insert_known(&mut git, "branch", env!("BUILD_GIT_BRANCH"));
    Some(git)
}

fn os() -> Value {
    let system = rustix::system::uname();
    json!({
        "name": system.sysname().to_string_lossy(),
        "version": system.release().to_string_lossy(),
        "arch": system.machine().to_string_lossy(),
    })
}

fn process() -> Value {
    let parent = rustix::process::getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    json!({
        "pid": std::process::id(),
        "parentPid": parent,
        "cpus": std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
    })
}

fn limits(limits: &Limits) -> Value {
    json!({
        "keyBytes": limits.key_bytes,
        "valueBytes": limits.value_bytes,
        "batchEntries": limits.batch_entries,
        "batchBytes": limits.batch_bytes,
        "pageItems": limits.page_items,
        "pageBytes": limits.page_bytes,
        "requestBytes": limits.request_bytes,
    })
}
