//! Runs the scripts in `storage/testscripts` on every engine: one text, one outcome.
//!
//! A script begins with an empty engine called `main`. Commands act on it; with a prefix, reads act on the view of that name
//! (`v: get a`). `"\xff"` in a script is the byte, as in the output. After a change of behaviour that is meant:
//! `UPDATE_GOLDENFILES=1 cargo test --lib script`, then read the difference.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::{Home, Subject, on_each_engine};
use crate::storage::{
    Direction, Durability, EntryRef, KeyRange, Reader, StorageEngine, WriteBatch,
};
use crate::util::time::Timestamp;

const SCRIPTS: &str = "src/storage/testscripts";

on_each_engine!(scripts_tell_the_same);

fn scripts_tell_the_same(subject: &'static Subject) {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCRIPTS);
    let mut ran = 0;
    for entry in std::fs::read_dir(scripts).expect("there are scripts") {
        let path = entry.expect("an entry").path();
        // Shown only when the test fails: the comparison itself does not name the script.
        println!("{} on {}", path.display(), subject.kind);
        goldenscript::run(&mut Runner::new(subject), &path).expect("the script runs");
        ran += 1;
    }
    assert!(ran > 0, "there are scripts");
}

/// Bytes as a script writes them: each character is the byte of that number.
#[derive(Default)]
struct Text(Vec<u8>);

impl FromStr for Text {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let byte = |c: char| u8::try_from(c).map_err(|_| format!("{c:?} is not a byte"));
        text.chars().map(byte).collect::<Result<_, _>>().map(Self)
    }
}

#[derive(goldenscript::Command)]
enum Command {
    /// Stores one value: `put a 1 expires=50`.
    Put {
        key: Text,
        value: Text,
        #[arg(key)]
        expires: Option<u64>,
    },
    /// Stores a value of a size under a key of a size, and says no more about it.
    PutSized {
        key_bytes: usize,
        value_bytes: usize,
    },
    Delete(Text),
    DeleteRange {
        start: Text,
        end: Text,
    },
    /// Moves the clock.
    Clock(u64),
    /// What follows is collected until `write`.
    Batch,
    Write {
        #[arg(key)]
        durability: Option<String>,
    },
    Get(Text),
    GetMany(Vec<Text>),
    /// `scan b d reverse=true limit=3`: from `b` to before `d`.
    Scan {
        start: Option<Text>,
        end: Option<Text>,
        #[arg(key, optional)]
        reverse: bool,
        #[arg(key)]
        limit: Option<usize>,
    },
    /// What the clock shows.
    Now,
    /// Whether the engine says that something expires, not later than that.
    Expiring {
        #[arg(key)]
        by: u64,
    },
    /// Counts by a scan, and compares with the engine's word where that is exact.
    Count,
    View(String),
    DropView(String),
    Flush,
    Compact,
    /// Closes everything and opens it again.
    Reopen,
    Checkpoint(String),
    /// Replaces an engine by a checkpoint.
    Install {
        name: String,
        checkpoint: String,
    },
    /// Goes on with another engine.
    Open(String),
    /// Opens one more engine and closes it at once.
    TryOpen(String),
    Remove(String),
    List,
}

struct Runner {
    home: Home,
    name: String,
    // Closed before the environment is.
    engine: Option<Arc<dyn StorageEngine>>,
    views: BTreeMap<String, Box<dyn Reader>>,
    collecting: Option<WriteBatch>,
}

impl Runner {
    fn new(subject: &'static Subject) -> Self {
        let home = Home::new(subject);
        let engine = Some(home.open("main"));
        Self { home, name: "main".to_owned(), engine, views: BTreeMap::new(), collecting: None }
    }

    fn engine(&self) -> &dyn StorageEngine {
        self.engine.as_deref().expect("an engine is open")
    }

    /// What reads go to: a view when the command has its name as prefix.
    fn reader(&self, view: Option<&str>) -> Result<&dyn Reader, Box<dyn Error>> {
        match view {
            None => Ok(self.engine()),
            Some(name) => match self.views.get(name) {
                Some(view) => Ok(&**view),
                None => Err(format!("there is no view {name}").into()),
            },
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut WriteBatch)) -> crate::storage::Result<()> {
        if let Some(batch) = &mut self.collecting {
            change(batch);
            return Ok(());
        }
        let mut batch = WriteBatch::new();
        change(&mut batch);
        self.engine().write(&batch, Durability::None).map(|_| ())
    }

    fn count(&self) -> String {
        let status = self.engine().status();
        // Nothing beside the engine's own word and a scan could tell them apart, so both speak.
        let counted = super::rows(self.engine());
        let counted = counted.iter().filter(|(key, ..)| key.first() != Some(&0));
        let (keys, bytes) = counted.fold((0, 0), |(keys, bytes), (key, value, _)| {
            (keys + 1, bytes + key.len() as u64 + value.len() as u64)
        });
        if self.home.subject.counts_exactly {
            assert_eq!((status.keys, status.bytes), (keys, bytes), "status against scan");
        }
        format!("{keys} keys, {bytes} bytes")
    }

    fn close(&mut self) {
        self.views.clear();
        self.engine = None;
    }

    fn execute(&mut self, command: &Command, view: Option<&str>) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        match command {
            Command::Put { key, value, expires } => {
                let expires = expires.map(Timestamp::from_millis);
                self.change(|batch| batch.put(&[&key.0], &[&value.0], expires))?;
            }
            Command::PutSized { key_bytes, value_bytes } => {
                let (key, value) = (vec![b'k'; *key_bytes], vec![b'v'; *value_bytes]);
                self.change(|batch| batch.put(&[&key], &[&value], None))?;
            }
            Command::Delete(key) => self.change(|batch| batch.delete(&[&key.0]))?,
            Command::DeleteRange { start, end } => {
                self.change(|batch| batch.delete_range(&start.0, &end.0))?;
            }
            Command::Clock(now) => {
                self.change(|batch| batch.advance_clock(Timestamp::from_millis(*now)))?;
            }
            Command::Batch => self.collecting = Some(WriteBatch::new()),
            Command::Write { durability } => {
                let durability = match durability.as_deref() {
                    None | Some("none") => Durability::None,
                    Some("buffered") => Durability::Buffered,
                    Some("sync") => Durability::Sync,
                    Some(other) => return Err(format!("no durability: {other}").into()),
                };
                let batch = self.collecting.take().unwrap_or_default();
                self.engine().write(&batch, durability)?;
            }
            Command::Get(key) => match self.reader(view)?.get(&key.0)? {
                None => output.push_str("none"),
                Some(entry) => {
                    let (value, expires_at) = (&entry.value, entry.expires_at);
                    describe(&mut output, EntryRef { key: &key.0, value, expires_at });
                }
            },
            Command::GetMany(keys) => {
                let keys: Vec<&[u8]> = keys.iter().map(|key| key.0.as_slice()).collect();
                let mut found = BTreeMap::new();
                self.reader(view)?.get_many(&keys, &mut |position, entry| {
                    let text = found.entry(position).or_insert_with(String::new);
                    describe(text, entry);
                })?;
                for (position, text) in found {
                    write!(output, "{position}: {text}")?;
                }
            }
            Command::Scan { start, end, reverse, limit } => {
                let start = start.as_ref().map_or(&[][..], |key| &key.0);
                let range = KeyRange::new(start, end.as_ref().map(|key| key.0.as_slice()));
                let direction = if *reverse { Direction::Reverse } else { Direction::Forward };
                let mut scan = self.reader(view)?.scan(range, direction)?;
                for _ in 0..limit.unwrap_or(usize::MAX) {
                    let Some(entry) = scan.next()? else { break };
                    describe(&mut output, entry);
                }
                if output.is_empty() {
                    output.push_str("empty");
                }
            }
            Command::Now => write!(output, "{}", self.reader(view)?.clock().as_millis())?,
            Command::Expiring { by } => {
                let next = self.engine().next_expiry().map(Timestamp::as_millis);
                output.push_str(if next.is_some_and(|at| at <= *by) { "yes" } else { "no" });
            }
            Command::Count => output = self.count(),
            Command::View(name) => {
                let view = self.engine().view()?;
                self.views.insert(name.clone(), view);
            }
            Command::DropView(name) => {
                self.views.remove(name).ok_or("no such view")?;
            }
            Command::Flush => self.engine().flush()?,
            Command::Compact => self.engine().compact(KeyRange::ALL)?,
            Command::Reopen => {
                self.close();
                self.home.reopen();
                self.engine = Some(self.home.open(&self.name));
            }
            Command::Checkpoint(name) => self.engine().checkpoint(&self.home.beside(name))?,
            Command::Install { name, checkpoint } => {
                self.home.environment().install(name, &self.home.beside(checkpoint))?;
            }
            Command::Open(name) => {
                self.close();
                self.engine = Some(self.home.environment().open(name)?);
                self.name.clone_from(name);
            }
            Command::TryOpen(name) => {
                self.home.environment().open(name)?;
            }
            Command::Remove(name) => self.home.environment().remove(name)?,
            Command::List => output = self.home.environment().list()?.join("\n"),
        }
        Ok(output)
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(
        &mut self,
        command: &Command,
        context: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        self.execute(command, context.prefix.as_deref()).map_err(|error| {
            // What differs from one engine or run to the next.
            let text = error.to_string();
            let text = text.replace(&self.home.beside("").display().to_string(), "DIRECTORY/");
            text.replace(self.home.subject.kind, "ENGINE").into()
        })
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.close();
    }
}

fn describe(output: &mut String, entry: EntryRef<'_>) {
    let shown = |bytes: &[u8]| {
        if bytes.len() > 100 {
            return format!("({} bytes)", bytes.len());
        }
        format!("\"{}\"", bytes.escape_ascii())
    };
    let (key, value) = (shown(entry.key), shown(entry.value));
    let expiry =
        entry.expires_at.map(|at| format!(" until {}", at.as_millis())).unwrap_or_default();
    writeln!(output, "{key} = {value}{expiry}").expect("a string takes any text");
}
