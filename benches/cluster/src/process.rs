//! What processes use: CPU time, memory, and what they wrote to disk, from `/proc`.

use std::fs;
use std::ops::{Add, Sub};
use std::time::Duration;

use crate::Outcome;

/// Ticks of `/proc/PID/stat` in a second: fixed at 100 in the interface to programs (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// What a process has used since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of all threads, those that ended included; to 10 ms.
    pub cpu: Duration,
    /// Bytes that it caused to be written to the disk.
    pub written_bytes: u64,
}

impl Usage {
    /// Of the process with this id.
    pub fn of(pid: u32) -> Outcome<Self> {
        let (stat, io) = (format!("/proc/{pid}/stat"), format!("/proc/{pid}/io"));
        let cpu = cpu(&read(&stat)?).ok_or_else(|| format!("{stat} is not as proc(5) says"))?;
        let written_bytes = number_after("write_bytes:", &read(&io)?)
            .ok_or_else(|| format!("{io} is not as proc(5) says"))?;
        Ok(Self { cpu, written_bytes })
    }

    /// Of this process.
    pub fn own() -> Outcome<Self> {
        Self::of(std::process::id())
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, written_bytes: self.written_bytes + other.written_bytes }
    }
}

impl Sub for Usage {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(other.cpu),
            written_bytes: self.written_bytes.saturating_sub(other.written_bytes),
        }
    }
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: u32) -> Outcome<u64> {
    let path = format!("/proc/{pid}/status");
    let kibibytes = number_after("VmRSS:", &read(&path)?)
        .ok_or_else(|| format!("{path} is not as proc(5) says"))?;
    Ok(kibibytes << 10)
}

fn read(path: &str) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}").into())
}

/// User and system time in a line of `/proc/PID/stat`: fields 14 and 15. The name, in parentheses, may hold anything.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user + TICK * system)
}

/// The number in the line that begins with this word.
fn number_after(word: &str, text: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(word))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_proc_has_them() {
        let stat = "77 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 250 0 0 20 0 9 0 1 2 3";
        assert_eq!(cpu(stat), Some(Duration::from_secs(4)));
        assert_eq!(cpu("77 (a) S 1 2"), None);
        let io = "wchar: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 1\n";
        assert_eq!(number_after("write_bytes:", io), Some(4096));
        assert_eq!(number_after("VmRSS:", "VmRSS:\t  1216 kB\n"), Some(1216));
        assert_eq!(number_after("VmRSS:", io), None);
    }

    #[test]
    fn this_process_has_used_something() {
        assert!(Usage::own().is_ok());
        assert!(resident_bytes(std::process::id()).is_ok_and(|bytes| bytes > 0));
        assert!(Usage::of(u32::MAX).is_err());
    }
}
