//! `engine`: looks into the files of a node that does not run. Nothing is changed.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use serde_json::{Value, json};

use super::args::FormArgs;
use super::error::{Error, Result};
use super::output::{Content, Item, Output, count, size};
use crate::machine::StoredRow;
use crate::storage::EntryRef;
use crate::storage::lsm::{EngineFigures, Inspection, LevelFigures, RawEntry, Verification};
use crate::types;
use crate::util::fs::RealFileSystem;
use crate::util::time::Timestamp;

/// The part of a data directory that the engine has.
const ENGINE_DIRECTORY: &str = "lsm";

/// `kvstore engine ...`.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Read every byte of every file and check it; exit code 1 when something is damaged
    Verify {
        /// Data directory of a node, or its part `lsm`
        directory: PathBuf,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Tell levels, counts, sizes and key ranges of every shard
    Stats {
        /// Data directory of a node, or its part `lsm`
        directory: PathBuf,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Print what is stored, shard by shard, as lines that `batch` takes back
    #[command(after_help = DUMP_HELP)]
    Dump {
        /// Data directory of a node, or its part `lsm`
        directory: PathBuf,
        /// Only this engine, `shard-0` for example
        #[arg(long, value_name = "NAME")]
        engine: Option<String>,
        /// Everything as it is stored: all versions, tombstones, bookkeeping; keys and values in hexadecimal
        #[arg(long)]
        raw: bool,
    },
}

const DUMP_HELP: &str = "Also what was written last and is only in the log. Of keys that expire the seconds are told that were left
by the clock of their shard when it was last written to.";

impl Command {
    pub(super) fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::Verify { directory, form } => verify(&open(&directory)?, &form, output),
            Self::Stats { directory, form } => stats(&open(&directory)?, &form, output),
            Self::Dump { directory, engine, raw } => {
                let inspection = open(&directory)?;
                let wanted = |name: &str| engine.as_deref().is_none_or(|engine| engine == name);
                if raw {
                    return inspection.dump_raw(|name, entry| {
                        if wanted(name) { output.json(&raw_line(name, &entry)) } else { Ok(()) }
                    });
                }
                inspection.dump(|name, clock, entry| {
                    if wanted(name) { document(name, clock, entry, output) } else { Ok(()) }
                })
            }
        }
    }
}

fn open(directory: &Path) -> Result<Inspection> {
    let part = directory.join(ENGINE_DIRECTORY);
    let directory = if part.is_dir() { &part } else { directory };
    Ok(Inspection::open(Arc::new(RealFileSystem), directory)?)
}

fn verify(inspection: &Inspection, form: &FormArgs, output: &mut Output) -> Result<()> {
    let found = inspection.verify();
    let Verification { files, bytes, damage, remarks } = &found;
    if form.is_json() {
        let damage: Vec<_> = damage.iter().map(ToString::to_string).collect();
        output.json(&json!({
            "sound": found.is_sound(),
            "files": files,
            "bytes": bytes,
            "damage": damage,
            "remarks": remarks,
        }))?;
    } else {
        for remark in remarks {
            output.line(remark)?;
        }
        let checked = format!("{}, {}", count(*files, "file", "files"), size(*bytes));
        let verdict = if found.is_sound() { "all sound" } else { "sound" };
        output.line(&format!("{checked}: {verdict}"))?;
        output.finish()?;
        for error in damage {
            let _ = writeln!(std::io::stderr(), "kvstore: CORRUPTION: {error}");
        }
    }
    if found.is_sound() { Ok(()) } else { Err(Error::Told) }
}

fn stats(inspection: &Inspection, form: &FormArgs, output: &mut Output) -> Result<()> {
    let engines = inspection.stats()?;
    if form.is_json() {
        let engines: Vec<_> = engines.iter().map(engine_object).collect();
        return output.json(&json!({ "engines": engines }));
    }
    let heading = ["ENGINE", "LEVEL", "TABLES", "SIZE", "ENTRIES", "TOMBSTONES", "FROM", "TO"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for engine in &engines {
        let log = engine.log_entries.to_string();
        let blank = String::new;
        rows.push(vec![engine.name.clone(), "log".to_owned(), blank(), blank(), log]);
        rows.extend(engine.levels.iter().map(|level| level_row(engine, level)));
    }
    output.table(&rows)
}

fn level_row(engine: &EngineFigures, level: &LevelFigures) -> Vec<String> {
    vec![
        engine.name.clone(),
        level.level.to_string(),
        level.tables.to_string(),
        size(level.bytes),
        level.entries.to_string(),
        level.tombstones.to_string(),
        readable(&level.smallest),
        readable(&level.largest),
    ]
}

fn engine_object(engine: &EngineFigures) -> Value {
    let level = |level: &LevelFigures| {
        json!({
            "level": level.level,
            "tables": level.tables,
            "bytes": level.bytes,
            "entries": level.entries,
            "tombstones": level.tombstones,
            "smallest": readable(&level.smallest),
            "largest": readable(&level.largest),
        })
    };
    json!({
        "name": engine.name,
        "keysEstimate": engine.keys,
        "newestWrite": engine.newest.0,
        "flushedWrite": engine.flushed.0,
        "clock": engine.clock.as_millis(),
        "tableBytes": engine.table_bytes,
        "logEntries": engine.log_entries,
        "readAmplificationMax": engine.read_amplification,
        "spaceAmplificationEstimate": engine.space_amplification,
        "levels": engine.levels.iter().map(level).collect::<Vec<_>>(),
    })
}

/// A key of the engine for people: bytes that are no printable ASCII as `\xNN`.
fn readable(key: &[u8]) -> String {
    key.escape_ascii().to_string()
}

fn document(name: &str, clock: Timestamp, entry: EntryRef<'_>, output: &mut Output) -> Result<()> {
    let (key, document) = match StoredRow::read(entry.key, entry.value) {
        Some(StoredRow::Document { key, value, version }) => (key, (value, version)),
        Some(StoredRow::Bookkeeping) => return Ok(()),
        None => {
            let key = readable(entry.key);
            let message = format!("{name} holds {key}, which is no document; --raw prints it");
            return Err(Error::Failed(message));
        }
    };
    let (value, version) = document;
    let content = match value {
        types::Value::Json(text) => {
            let no_text = |_| Error::Failed(format!("{name}: the value of {key:?} is no text"));
            Content::Json(String::from_utf8(text.to_vec()).map_err(no_text)?)
        }
        types::Value::Raw(bytes) => Content::Raw(bytes.to_vec()),
    };
    let left = |at: Timestamp| at.as_millis().saturating_sub(clock.as_millis()).div_ceil(1000);
    let ttl = entry.expires_at.map(|at| u32::try_from(left(at)).unwrap_or(u32::MAX));
    let item = Item { key: key.to_owned(), content: Some(content), version: version.0, ttl };
    output.line(&item.to_json())
}

fn raw_line(name: &str, entry: &RawEntry<'_>) -> Value {
    let RawEntry { key, seqno, kind, value, expires_at } = *entry;
    let mut line = json!({ "engine": name, "write": seqno.0, "kind": kind, "key": hex(key) });
    match kind {
        "put" => line["value"] = hex(value).into(),
        "delete-range" => line["end"] = hex(value).into(),
        _ => {}
    }
    if let Some(at) = expires_at {
        line["expiresAt"] = at.as_millis().into();
    }
    line
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
