//! The machine that figures come from, and whether a directory is on a disk.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::options::Options;
use crate::{Outcome, System};

/// File systems by the number that statfs(2) gives.
const FILE_SYSTEMS: [(u64, &str); 8] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x794c_7630, "overlay"),
    (TMPFS, "tmpfs"),
    (RAMFS, "ramfs"),
];
const TMPFS: u64 = 0x0102_1994;
const RAMFS: u64 = 0x8584_58f6;

/// Makes the directory and tells its file system; fails when that is in memory.
pub fn disk(directory: &Path) -> Outcome<String> {
    fs::create_dir_all(directory)
        .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    let number = rustix::fs::statfs(directory)?.f_type.cast_unsigned();
    let known = FILE_SYSTEMS.iter().find(|(known, _)| *known == number);
    let name =
        known.map_or_else(|| format!("file system {number:#x}"), |(_, name)| (*name).to_owned());
    if [TMPFS, RAMFS].contains(&number) {
        let directory = directory.display();
        return Err(format!("dir={directory} is on {name}, in memory; say one on a disk").into());
    }
    Ok(name)
}

/// Median time of a write of 4 KiB to a file that has its blocks, and fdatasync, in microseconds: what one writer by itself pays.
pub fn sync_micros(directory: &Path) -> Outcome<f64> {
    const WRITES: usize = 200;
    let path = directory.join("sync-probe");
    let page = [1_u8; 4096];
    let mut file = File::create(&path)?;
    for _ in 0..WRITES {
        file.write_all(&page)?;
    }
    file.sync_all()?;
    let file = File::options().write(true).open(&path)?;
    let mut micros = Vec::with_capacity(WRITES);
    for at in 0..WRITES {
        let start = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &page, (at * page.len()) as u64)?;
        file.sync_data()?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    fs::remove_file(path)?;
    micros.sort_by(f64::total_cmp);
    Ok(micros[WRITES / 2])
}

/// Waits until everything that was written to this disk is there, so that the next one does not pay for it.
pub fn settle(directory: &Path) -> Outcome<()> {
    rustix::fs::syncfs(File::open(directory)?)?;
    Ok(())
}

/// Prints machine, disk and versions.
pub fn print(options: &Options) -> Outcome<()> {
    let file_system = disk(&options.directory)?;
    let line_after = |path: &str, word: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(word)).unwrap_or_default();
        line.split_once(':').map_or(line, |(_, rest)| rest).trim().to_owned()
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    println!(
        "{processors} processors, {}; memory {}; Linux {}; load before {}",
        line_after("/proc/cpuinfo", "model name"),
        line_after("/proc/meminfo", "MemTotal"),
        line_after("/proc/sys/kernel/osrelease", ""),
        line_after("/proc/loadavg", ""),
    );
    println!(
        "data on {file_system}, {}; write of 4 KiB and fdatasync: {:.0} us",
        options.directory.display(),
        sync_micros(&options.directory)?
    );
    for system in &options.systems {
        println!("{}: {}", system.name(), version(*system, options)?);
    }
    Ok(())
}

/// The first line that the program prints when it is asked for its version.
fn version(system: System, options: &Options) -> Outcome<String> {
    let program = options.program(system);
    let hint = match system {
        System::Etcd => "install it (Debian: etcd-server) or say etcd=PATH",
        System::Kvstore => "build it (cargo build --release) or say kvstore=PATH",
    };
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|error| format!("cannot run {}: {error}; {hint}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or("no version").to_owned())
}
