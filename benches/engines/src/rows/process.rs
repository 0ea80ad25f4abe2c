//! What needs a process of its own: opening after a kill, and memory. The child is this binary, called `child`.

use std::process::Command;
use std::time::Instant;

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::{Run, Stage, Unit, cost};
use crate::contestants::{Class, Outcome};
use crate::keys::{key, touch};

/// How long it takes from opening, after the writer was killed, to the first value.
pub const OPEN: Stage = Stage { rows: &[cost("open-after-kill", Unit::Milliseconds)], run: open };

/// The most memory that a process needs to fill the database at random and to read each key.
pub const MEMORY: Stage = Stage { rows: &[cost("memory-peak", Unit::Mebibytes)], run: memory };

/// What a child is to do.
#[derive(Debug, Clone, Copy)]
pub enum Task {
    /// Write all keys, then die.
    Kill,
    /// Write and read all keys, then print the most memory it ever had, in KiB.
    Memory,
}

fn open(run: &mut Run<'_>) -> Outcome<()> {
    let status = child(run, "kill").status()?;
    if status.success() {
        return Err("the child outlived its kill".into());
    }
    let last = run.options.keys - 1;
    let start = Instant::now();
    let db = run.open()?;
    let mut found = None;
    db.get(&key(last), &mut |value| found = Some(touch(value)))?;
    run.note("open-after-kill", start.elapsed().as_secs_f64() * 1e3);
    if found != Some(last) && !run.kind.promises_less(Class::PageCache) {
        return Err(format!("the last write before the kill: read {found:?}").into());
    }
    Ok(())
}

fn memory(run: &mut Run<'_>) -> Outcome<()> {
    let output = child(run, "memory").stderr(std::process::Stdio::inherit()).output()?;
    let kib: f64 = String::from_utf8(output.stdout)?.trim().parse()?;
    run.note("memory-peak", kib / 1024.0);
    Ok(())
}

fn child(run: &Run<'_>, task: &str) -> Command {
    let binary = std::env::current_exe().unwrap_or_else(|_| "engines".into());
    let mut command = Command::new(binary);
    command.arg("child").arg(task).args(run.options.arguments(run.kind));
    command
}

/// The child's side.
pub fn perform(task: Task, run: &mut Run<'_>) -> Outcome<()> {
    let db = run.open()?;
    let mut order = run.random.permutation(run.options.keys);
    // The last key is the last write.
    let last = run.options.keys - 1;
    order.retain(|index| *index != last);
    order.push(last);
    for index in order {
        db.put(&key(index), run.values.next(index, 100), Class::PageCache)?;
    }
    match task {
        Task::Kill => {
            let own: Pid = getpid();
            Ok(kill_process(own, Signal::KILL)?)
        }
        Task::Memory => {
            for index in run.random.permutation(run.options.keys) {
                db.get(&key(index), &mut |value| _ = touch(value))?;
            }
            let status = std::fs::read_to_string("/proc/self/status")?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let kib = line.and_then(|line| line.split_whitespace().next());
            println!("{}", kib.ok_or("/proc/self/status has no VmHWM")?);
            Ok(())
        }
    }
}
