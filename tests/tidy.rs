//! House rules as a test: what a reader relies on and no compiler checks.
//!
//! * Every source file opens with `//!`: what it is.
//! * Imports go strictly down the ranks; equal ranks do not import each other.
//! * The storage side knows no async runtime, only the edges know gRPC, and only `net` opens connections.
//!
//! All findings are reported at once, as `file:line: what`.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules with their rank: a module may import those of lower ranks. `lib.rs` and `main.rs` stand outside.
const RANKS: [(&str, u32); 23] = [
    ("util", 0),
    ("proto", 0),
    ("types", 1),
    ("telemetry", 1),
    ("wal", 1),
    ("storage", 2),
    ("command", 2),
    ("cluster", 2),
    ("error", 3),
    ("config", 3),
    ("net", 3),
    ("machine", 4),
    ("ticket", 4),
    ("raft", 5),
    ("shard", 6),
    ("backup", 7),
    ("fuzzing", 7),
    ("router", 7),
    ("controller", 7),
    ("api", 8),
    ("server", 9),
    ("bench", 10),
    ("cli", 11),
];

/// Synchronous: no async runtime in them.
const SYNCHRONOUS: [&str; 4] = ["util", "wal", "storage", "command"];

/// The only modules that may speak of gRPC.
const KNOW_GRPC: [&str; 7] = ["proto", "api", "server", "net", "raft", "bench", "cli"];

/// How a connection is opened.
const CONNECTS: [&str; 4] =
    ["TcpStream::connect", "Channel::from", "Endpoint::from_shared", "connect_lazy"];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut findings = Vec::new();
    for path in rust_files(&root) {
        let relative = path.strip_prefix(&root).expect("it was found there");
        let text = fs::read_to_string(&path).expect("a source file is text");
        check(relative, &text, &mut findings);
    }
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn the_rules_find_what_breaks_them() {
    let broken = |file: &str, text: &str| {
        let mut findings = Vec::new();
        check(Path::new(file), text, &mut findings);
        findings.len()
    };
    assert_eq!(broken("shard/mod.rs", "//! A shard.\nuse crate::storage::Error;\n"), 0);
    assert_eq!(broken("shard/mod.rs", "use std::fmt;\n"), 1);
    assert_eq!(broken("shard/mod.rs", "//! A shard.\nuse crate::router::Router;\n"), 1);
    assert_eq!(broken("shard/mod.rs", "//! A shard.\nfn f(r: crate::router::Router) {}\n"), 1);
    assert_eq!(broken("shard/mod.rs", "//! A shard.\nuse crate::{api, error};\n"), 1);
    assert_eq!(broken("router/mod.rs", "//! Routes.\nuse crate::backup::create;\n"), 1);
    assert_eq!(broken("storage/mod.rs", "//! Engines.\nuse tokio::sync::Mutex;\n"), 1);
    assert_eq!(broken("shard/mod.rs", "//! A shard.\nfn f() -> tonic::Status {}\n"), 1);
    assert_eq!(broken("api/mod.rs", "//! API.\nlet s = TcpStream::connect(a);\n"), 1);
    assert_eq!(broken("lost/mod.rs", "//! Not in the table.\n"), 1);
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(directory)
        .expect("a directory of the sources")
        .map(|entry| entry.expect("a readable entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

fn check(file: &Path, text: &str, findings: &mut Vec<String>) {
    let mut find = |line: usize, what: String| {
        findings.push(format!("src/{}:{line}: {what}", file.display()));
    };
    if !text.starts_with("//!") {
        find(1, "does not open with //!".to_owned());
    }
    let module = file.iter().next().and_then(|part| part.to_str()).expect("a relative path");
    let module = module.trim_end_matches(".rs");
    if matches!(module, "lib" | "main") {
        return;
    }
    let Some(own) = rank(module) else {
        find(1, format!("module {module} has no rank in tests/tidy.rs"));
        return;
    };
    for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
        let code = line.split("//").next().unwrap_or_default();
        for imported in imported_modules(code) {
            if imported != module && rank(&imported).is_some_and(|rank| rank >= own) {
                find(number, format!("{module} imports {imported}, which is not below it"));
            }
        }
        if SYNCHRONOUS.contains(&module) && code.contains("tokio::") {
            find(number, format!("{module} is synchronous and mentions tokio"));
        }
        if !KNOW_GRPC.contains(&module) && code.contains("tonic::") {
            find(number, format!("{module} mentions tonic"));
        }
        if module != "net" && CONNECTS.iter().any(|connect| code.contains(connect)) {
            find(number, "opens a connection; only net does".to_owned());
        }
    }
}

/// The modules that a line names after `crate::`, also in braces.
fn imported_modules(code: &str) -> Vec<String> {
    let word = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        text[..end.unwrap_or(text.len())].to_owned()
    };
    let mut found = Vec::new();
    for (position, _) in code.match_indices("crate::") {
        let rest = &code[position + "crate::".len()..];
        if let Some(list) = rest.strip_prefix('{') {
            found.extend(list.split(',').map(|item| word(item.trim_start())));
        } else {
            found.push(word(rest));
        }
    }
    found
}
