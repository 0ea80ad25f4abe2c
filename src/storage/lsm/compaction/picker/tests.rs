//! Scripts that draw a tree and print what the picker chooses. After a change that is meant:
//! `UPDATE_GOLDENFILES=1 cargo test --lib picker`, then read the difference.
//!
//! `table 5 7 a..c 60` is table 7 of level 5, with the keys from `a` to `c`, of 60 MiB. What it has besides plain values is
//! said by name: `seqnos=10..20` (in level 0, by default ten times the number), `dense=30` (of 100 blocks), `tombstones=100`
//! and `expiring=50` (of 100 entries), `expires=10..20`, `deletes=a..c seqno` (a range deletion). `do` acts as chosen: a merge
//! makes one clean table of its inputs. `begin` and `end 7` do so in two steps, between which the choice that takes table 7
//! is one of those that run. `merge 3 4 to=6` begins a merge that nobody chose; `busy 1`, the deletion of a table.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use super::*;
use crate::storage::Seqno;
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::compaction::rules::Moment;
use crate::storage::lsm::files::{FileNumber, TableDirectory};
use crate::storage::lsm::level::Span;
use crate::storage::lsm::open_files::OpenFiles;
use crate::storage::lsm::table::{Properties, RangeDeletions, TableMetadata, TableUid, UpperBound};
use crate::storage::lsm::version::{Flushed, LAST_LEVEL};
use crate::util::fs::sim::SimFileSystem;
use crate::util::time::Timestamp;

const SCRIPTS: &str = "src/storage/lsm/compaction/testscripts";

const MIB: u64 = 1 << 20;

#[test]
fn scripts_tell_what_is_chosen() {
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join(SCRIPTS);
    let mut ran = 0;
    for entry in std::fs::read_dir(scripts).expect("there are scripts") {
        let path = entry.expect("an entry").path();
        println!("{}", path.display());
        goldenscript::run(&mut Runner::default(), &path).expect("the script runs");
        ran += 1;
    }
    assert!(ran > 0, "there are scripts");
}

#[derive(goldenscript::Command)]
enum Command {
    /// Begins with an empty tree.
    New {
        #[arg(key)]
        l0: Option<usize>,
        /// Sizes in MiB.
        #[arg(key)]
        base: Option<u64>,
        #[arg(key)]
        growth: Option<u64>,
        #[arg(key)]
        table: Option<u64>,
    },
    Table {
        level: usize,
        number: u64,
        keys: String,
        megabytes: u64,
        #[arg(key)]
        seqnos: Option<String>,
        #[arg(key, optional)]
        dense: u32,
        #[arg(key, optional)]
        tombstones: u64,
        #[arg(key, optional)]
        expiring: u64,
        #[arg(key)]
        expires: Option<String>,
        #[arg(key)]
        deletes: Option<String>,
    },
    /// The last key is not in the table.
    Open(u64),
    View {
        seqno: u64,
        clock: u64,
    },
    DropViews,
    Clock(u64),
    /// The last choice runs from now on.
    Begin,
    /// What takes this table ends.
    End(u64),
    /// A merge of these tables runs from now on.
    Merge {
        tables: Vec<u64>,
        #[arg(key)]
        to: Option<usize>,
    },
    /// Only these tables are taken, from now on.
    Busy(Vec<u64>),
    /// None runs any more.
    Idle,
    /// Only what is urgent.
    Urgent,
    Choose,
    /// Also what only saves space.
    Space,
    Manual {
        keys: String,
        #[arg(key)]
        upto: Option<u64>,
        #[arg(key)]
        before: Option<u64>,
    },
    /// Acts on the last choice.
    Do,
    Tree,
    /// Base level, what each level may hold, and the debt, in MiB.
    Shape,
}

struct Runner {
    directory: Arc<TableDirectory>,
    version: Version,
    options: PickerOptions,
    views: Vec<Moment>,
    clock: Timestamp,
    running: Running,
    begun: Vec<Choice>,
    deletions: Vec<(FileNumber, Vec<Fragment>)>,
    last: Option<Choice>,
}

impl Default for Runner {
    fn default() -> Self {
        let fs = Arc::new(SimFileSystem::new(1));
        let directory =
            TableDirectory::new(OpenFiles::new(fs, 8), "/engine".into(), BlockCache::new(0), 1);
        // Numbers of new tables tell them from those of the script.
        directory.skip(FileNumber(99));
        let flushed = Some(Flushed { seqno: Seqno(1_000_000), ..Flushed::default() });
        let edit = VersionEdit { flushed, ..VersionEdit::default() };
        let (version, _) = Version::default().apply(&edit, &directory).expect("it fits");
        Self {
            directory,
            version,
            options: PickerOptions::default(),
            views: Vec::new(),
            clock: Timestamp::BEGINNING,
            running: Running::default(),
            begun: Vec::new(),
            deletions: Vec::new(),
            last: None,
        }
    }
}

/// `a..c` in its two parts.
fn pair(text: &str) -> Result<(&str, &str), String> {
    text.split_once("..").ok_or_else(|| format!("{text:?} is no pair"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

impl Runner {
    fn apply(&mut self, edit: &VersionEdit) -> Result<(), String> {
        let (version, removed) = self.version.apply(edit, &self.directory)?;
        self.version = version;
        self.deletions.retain(|(of, _)| removed.iter().all(|table| table.number() != *of));
        Ok(())
    }

    fn add(
        &mut self,
        level: usize,
        number: FileNumber,
        properties: Properties,
        bytes: u64,
    ) -> Result<(), String> {
        let metadata = TableMetadata { uid: TableUid(0), size_bytes: bytes, properties };
        let added = vec![AddedTable { level, number, metadata }];
        self.apply(&VersionEdit { added, ..VersionEdit::default() })
    }

    fn with<R>(&self, scope: Scope, ask: impl FnOnce(&Hints<'_>) -> R) -> R {
        let readers = Readers::new(&self.views, self.clock);
        let deletions: Vec<_> = self.deletions.iter().map(|(_, run)| run.clone()).collect();
        ask(&Hints { running: &self.running, readers: &readers, deletions: &deletions, scope })
    }

    fn choose(&mut self, scope: Scope) -> String {
        let chosen = self.with(scope, |hints| choose(&self.version, &self.options, hints));
        let Some((reason, choice)) = chosen else { return "nothing".to_owned() };
        let text = format!("{reason:?}: {}", show(&choice));
        self.last = Some(choice);
        text
    }

    fn manual(&mut self, manual: &Manual) -> String {
        let ask = |hints: &Hints<'_>| choose_manual(&self.version, &self.options, hints, manual);
        match self.with(Scope::Size, ask) {
            ManualStep::Do(choice) => {
                let text = show(&choice);
                self.last = Some(choice);
                text
            }
            other => format!("{other:?}").to_lowercase(),
        }
    }

    fn last(&mut self) -> Result<Choice, String> {
        self.last.take().ok_or_else(|| "nothing was chosen, or it is done already".to_owned())
    }

    fn begin(&mut self, choice: Choice) {
        self.running.begin(choice.clone());
        self.begun.push(choice);
    }

    fn end(&mut self, table: u64) -> Result<(), String> {
        let takes = |choice: &Choice| choice.tables().any(|taken| taken.number().0 == table);
        let at = self.begun.iter().position(takes).ok_or("nothing takes it")?;
        let choice = self.begun.swap_remove(at);
        self.running.end(&choice);
        self.act(choice)
    }

    fn idle(&mut self) {
        self.begun.clear();
        self.running = Running::default();
    }

    /// Tables by number, each an input of its own.
    fn inputs(&self, numbers: &[u64]) -> Result<Vec<Input>, String> {
        let find = |&number: &u64| {
            let (level, table) = self
                .version
                .tables()
                .find(|(_, table)| table.number().0 == number)
                .ok_or_else(|| format!("no table {number}"))?;
            Ok(Input { level, tables: vec![Arc::clone(table)] })
        };
        numbers.iter().map(find).collect()
    }

    fn act(&mut self, choice: Choice) -> Result<(), String> {
        let edit = choice.edit();
        let hull = Span::hull(choice.tables()).ok_or("nothing is in it")?;
        let Choice::Merge { to, .. } = choice else { return self.apply(&edit) };
        let (end, inclusive) = hull.end.ok_or("a table has an end")?;
        let properties = Properties {
            entries: 100,
            distinct_keys: 100,
            data_blocks: 100,
            smallest: hull.start.to_vec(),
            largest: UpperBound { key: end.to_vec(), inclusive },
            ..Properties::default()
        };
        let bytes = choice.tables().map(|table| table.size_bytes()).sum();
        self.apply(&edit)?;
        let (number, _) = self.directory.allocate();
        self.add(to, number, properties, bytes)
    }

    fn tree(&self) -> String {
        let mut text = String::new();
        for (number, level) in self.version.levels().iter().enumerate() {
            if level.is_empty() {
                continue;
            }
            write!(text, "L{number}").expect("a string takes any text");
            for table in level.tables() {
                let properties = table.properties();
                let (number, bytes) = (table.number().0, table.size_bytes() / MIB);
                let start = properties.smallest.escape_ascii();
                let end = properties.largest.key.escape_ascii();
                write!(text, "  {number}:{start}..{end}({bytes})")
                    .expect("a string takes any text");
            }
            text.push('\n');
        }
        text
    }

    fn shape(&self) -> String {
        let shape = Shape::of(&self.version, &self.options);
        let targets = (1..=LAST_LEVEL).map(|level| shape.target_bytes(level) / MIB);
        let targets: Vec<_> = targets.map(|target| target.to_string()).collect();
        let debt = debt_bytes(&self.version, &self.options) / MIB;
        format!("base L{}, L1.. may hold {}, debt {debt}", shape.base(), targets.join(" "))
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each command of the scripts")]
    fn execute(&mut self, command: &Command) -> Result<String, Box<dyn Error>> {
        let mut output = String::new();
        match command {
            Command::New { l0, base, growth, table } => {
                *self = Self::default();
                let options = &mut self.options;
                options.l0_tables = l0.unwrap_or(options.l0_tables);
                options.base_bytes = base.map_or(options.base_bytes, |base| base * MIB);
                options.growth = growth.unwrap_or(options.growth);
                options.table_bytes = table.map_or(options.table_bytes, |table| table * MIB);
            }
            Command::Table {
                level,
                number: table,
                keys,
                megabytes,
                seqnos,
                dense,
                tombstones,
                expiring,
                expires,
                deletes,
            } => {
                let (start, end) = pair(keys)?;
                let default = if *level == 0 { table * 10 } else { 0 };
                let (seqno_min, seqno_max) = match seqnos {
                    Some(seqnos) => (number(pair(seqnos)?.0)?, number(pair(seqnos)?.1)?),
                    None => (default, default),
                };
                let time = |text: &str| number(text).map(Timestamp::from_millis);
                let (earliest_expiry, latest_expiry) = match expires {
                    Some(expires) => (Some(time(pair(expires)?.0)?), Some(time(pair(expires)?.1)?)),
                    None => (None, None),
                };
                let properties = Properties {
                    entries: 100,
                    distinct_keys: 100,
                    data_blocks: 100,
                    deletions: *tombstones,
                    expiring: *expiring,
                    dense_blocks: *dense,
                    range_deletions: u64::from(deletes.is_some()),
                    seqno_min: Seqno(seqno_min),
                    seqno_max: Seqno(seqno_max),
                    earliest_expiry,
                    latest_expiry,
                    smallest: start.into(),
                    largest: UpperBound { key: end.into(), inclusive: true },
                    ..Properties::default()
                };
                self.add(*level, FileNumber(*table), properties, megabytes * MIB)?;
                if let Some(deletes) = deletes {
                    let (keys, seqno) = deletes.split_once(' ').ok_or("no seqno")?;
                    let (start, end) = pair(keys)?;
                    let deletion = (start.into(), end.into(), Seqno(number(seqno)?));
                    let run = RangeDeletions::fragment(&[deletion]).fragments().to_vec();
                    self.deletions.push((FileNumber(*table), run));
                }
            }
            Command::Open(table) => {
                let found = self.version.tables().find(|(_, t)| t.number().0 == *table);
                let (level, found) = found.ok_or("no such table")?;
                let (number, mut metadata) = (found.number(), found.metadata().clone());
                metadata.properties.largest.inclusive = false;
                let removed = vec![(level, number)];
                self.apply(&VersionEdit { removed, ..VersionEdit::default() })?;
                self.add(level, number, metadata.properties, metadata.size_bytes)?;
            }
            Command::View { seqno, clock } => {
                let (seqno, clock) = (Seqno(*seqno), Timestamp::from_millis(*clock));
                self.views.push(Moment { seqno, clock });
            }
            Command::DropViews => self.views.clear(),
            Command::Clock(clock) => self.clock = Timestamp::from_millis(*clock),
            Command::Begin => {
                let choice = self.last()?;
                self.begin(choice);
            }
            Command::End(table) => self.end(*table)?,
            Command::Merge { tables, to } => {
                let to = to.ok_or("no level to merge to")?;
                let inputs = self.inputs(tables)?;
                self.begin(Choice::Merge { inputs, to });
            }
            Command::Busy(numbers) => {
                self.idle();
                let inputs = self.inputs(numbers)?;
                self.begin(Choice::Delete(inputs));
            }
            Command::Idle => self.idle(),
            Command::Urgent => output = self.choose(Scope::LevelZero),
            Command::Choose => output = self.choose(Scope::Size),
            Command::Space => output = self.choose(Scope::Space),
            Command::Manual { keys, upto, before } => {
                let (start, end) = pair(keys)?;
                output = self.manual(&Manual {
                    start: start.into(),
                    end: (!end.is_empty()).then(|| end.into()),
                    upto: Seqno(upto.unwrap_or(1_000_000)),
                    before: FileNumber(before.unwrap_or(100)),
                });
            }
            Command::Do => {
                let choice = self.last()?;
                self.act(choice)?;
            }
            Command::Tree => output = self.tree(),
            Command::Shape => output = self.shape(),
        }
        Ok(output)
    }
}

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(
        &mut self,
        command: &Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        self.execute(command)
    }
}

fn show(choice: &Choice) -> String {
    let input = |input: &Input| {
        let numbers = input.tables.iter().map(|table| table.number().0.to_string());
        format!("L{} [{}]", input.level, numbers.collect::<Vec<_>>().join(" "))
    };
    let inputs: Vec<_> = choice.inputs().iter().map(input).collect();
    let inputs = inputs.join(" + ");
    match choice {
        Choice::Move { to, .. } => format!("move {inputs} -> L{to}"),
        Choice::Delete(_) => format!("delete {inputs}"),
        Choice::Merge { to, .. } => format!("merge {inputs} -> L{to}"),
    }
}
