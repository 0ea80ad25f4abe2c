//! Backups: checkpoints of all shards in one directory, with a manifest that lists every file and its checksum.
//!
//! A backup is made of a running node; each shard's part is of one moment, the parts of different shards are not. It appears under
//! its name only when it is whole and synced. It is taken back by a node of the same engine and number of shards, into an
//! empty data directory.
//!
//! The LSM engine's checkpoints share table files with the node by hard links where both are on one file system, and a restore does so as
//! well: tables never change, so the copy is of one moment, but damage of the disk hits both. On another file system they are copied.
//!
//! # On disk
//!
//! `NAME/shard-N/...`: what the engine's checkpoint wrote. `NAME/backup.json`, written last, one JSON object:
//!
//! | member | |
//! |---|---|
//! | `magic`, `version` | `"kvstore-backup"`, `1` |
//! | `node`, `engine`, `shards` | where it comes from; engine and number of shards must be the same where it goes |
//! | `files` | array of `{"path", "bytes", "crc32c"}`, by path; paths are relative, with `/` |
//!
//! and, after a line feed, the CRC-32C of the object's bytes in eight hexadecimal digits and a line feed.
//!
//! Callers: `api/admin` creates, the command line verifies and restores (`server`).

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Reason, Result};
use crate::shard::Shard;
use crate::storage;
use crate::util::fs::{FileSystem as _, RealFileSystem, read_file, replace_file};
use crate::util::time::{Clock as _, SystemClock};

const MAGIC: &str = "kvstore-backup";
const VERSION: u32 = 1;
const MANIFEST: &str = "backup.json";

/// Larger manifests are damaged: this holds about half a million files.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;

/// Held while a backup is made: two of one name would write into one directory.
static MAKING: Mutex<()> = Mutex::new(());

/// Bytes that are read at a time for a checksum.
const READ_BYTES: usize = 1 << 20;

/// A backup that was made.
#[derive(Debug)]
pub struct Made {
    /// Its directory.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Their number.
    pub files: u32,
    /// Keys in it, as the engines count them.
    pub keys: u64,
}

/// What a backup holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    magic: String,
    version: u32,
    /// The node it was made of.
    pub node: String,
    /// The kind of engine that wrote it.
    pub engine: String,
    /// How many shards it has.
    pub shards: u32,
    files: Vec<BackupFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BackupFile {
    path: String,
    bytes: u64,
    crc32c: u32,
}

impl Manifest {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.files.len()
    }
}

/// The directory of a shard within a backup, and the name of its engine.
pub fn shard_directory(shard: u32) -> String {
    format!("shard-{shard}")
}

/// Makes a backup called `name`, by default the time in milliseconds, below `directory`. Blocks.
///
/// # Errors
///
/// INVALID_REQUEST for a name that is no plain file name, FAILED_PRECONDITION when it is taken; what checkpoints fail with.
pub fn create(
    directory: &Path,
    name: Option<String>,
    node: &str,
    engine: &str,
    shards: &[Shard],
) -> Result<Made> {
    let name = name.unwrap_or_else(|| SystemClock.now().as_millis().to_string());
    check_name(&name)?;
    let _making = MAKING.lock();
    let path = directory.join(&name);
    let unfinished = directory.join(format!(".{name}.unfinished"));
    if path.exists() {
        let message = format!("there is a backup {name:?} already");
        return Err(Error::new(Reason::FailedPrecondition, message));
    }
    remove_all(&unfinished)?;
    let made = write(&unfinished, node, engine, shards).and_then(|mut made| {
        let failed = |error| failed("rename", &unfinished, error);
        RealFileSystem.rename(&unfinished, &path).map_err(failed)?;
        RealFileSystem.sync_dir(directory).map_err(failed)?;
        made.path.clone_from(&path);
        Ok(made)
    });
    if made.is_err() {
        // The failure that matters is the first one; the next backup of this name tries again.
        let _ = remove_all(&unfinished);
    }
    made
}

fn check_name(name: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(legal) {
        return Ok(());
    }
    let message = format!(
        "the backup name {name:?} is not allowed; it has 1 to 64 of A-Z a-z 0-9 . _ - and no leading dot"
    );
    Err(Error::new(Reason::InvalidRequest, message))
}

/// A restored backup is a node with all its data; one of some shards would be a node that has lost the others.
fn check_all_here(shards: &[Shard]) -> Result<()> {
    let here: Vec<_> = shards
        .iter()
        .filter(|shard| shard.is_here())
        .map(|shard| shard.id().0.to_string())
        .collect();
    if here.len() == shards.len() {
        return Ok(());
    }
    let has = if here.is_empty() { "none".to_owned() } else { here.join(", ") };
    let message = format!(
        "a backup is of all {} shards of a cluster, and this node has {has} of them; make it on a node that has all",
        shards.len()
    );
    Err(Error::new(Reason::FailedPrecondition, message))
}

fn write(path: &Path, node: &str, engine: &str, shards: &[Shard]) -> Result<Made> {
    check_all_here(shards)?;
    fs::create_dir_all(path).map_err(|error| failed("create", path, error))?;
    let mut keys = 0;
    for shard in shards {
        let engine = shard.engine()?;
        engine.checkpoint(&path.join(shard_directory(shard.id().0)))?;
        keys += engine.status().keys;
    }
    let mut files = Vec::new();
    collect(path, "", &mut files)?;
    let manifest = Manifest {
        magic: MAGIC.to_owned(),
        version: VERSION,
        node: node.to_owned(),
        engine: engine.to_owned(),
        shards: u32::try_from(shards.len()).expect("the configuration allows few shards"),
        files,
    };
    let mut text = serde_json::to_vec(&manifest)
        .map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
    let checksum = crc32c::crc32c(&text);
    text.extend_from_slice(format!("\n{checksum:08x}\n").as_bytes());
    replace_file(&RealFileSystem, path, MANIFEST, &text)
        .map_err(|error| failed("write", &path.join(MANIFEST), error))?;
    let count = u32::try_from(manifest.files()).unwrap_or(u32::MAX);
    Ok(Made { path: path.to_owned(), bytes: manifest.bytes(), files: count, keys })
}

/// Lists the files below `directory/prefix` with their checksums, and makes their names durable.
fn collect(directory: &Path, prefix: &str, files: &mut Vec<BackupFile>) -> Result<()> {
    let here = directory.join(prefix);
    let names = RealFileSystem.list(&here).map_err(|error| failed("list", &here, error))?;
    for name in names {
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let path = directory.join(&relative);
        if path.is_dir() {
            collect(directory, &relative, files)?;
        } else {
            let (bytes, crc32c) = checksum(&path).map_err(|error| failed("read", &path, error))?;
            files.push(BackupFile { path: relative, bytes, crc32c });
        }
    }
    RealFileSystem.sync_dir(&here).map_err(|error| failed("sync", &here, error))
}

/// Reads the manifest of the backup in `path` and checks every file against it. Blocks.
///
/// # Errors
///
/// CORRUPTION that names the file when something is missing, too much or different; FAILED_PRECONDITION when there is no
/// backup of a version that this program reads.
pub fn verify(path: &Path) -> Result<Manifest> {
    let manifest = read_manifest(path)?;
    check_paths(&manifest).map_err(|detail| damaged(&path.join(MANIFEST), detail))?;
    let mut found = BTreeSet::new();
    list_plain_files(path, "", &mut found)?;
    found.remove(MANIFEST);
    for file in &manifest.files {
        check_file(&path.join(&file.path), found.remove(&file.path), file)?;
    }
    match found.first() {
        None => Ok(manifest),
        Some(stray) => Err(damaged(&path.join(stray), "the backup was made without this file")),
    }
}

/// What is wrong with the manifest's list of files, whatever there is on disk.
fn check_paths(manifest: &Manifest) -> Result<(), String> {
    let mut listed = BTreeSet::new();
    let mut shards = BTreeSet::new();
    for BackupFile { path, .. } in &manifest.files {
        let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        let Some((directory, _)) = path.split_once('/').filter(|_| plain) else {
            return Err(format!("the path {path:?} leads out of the backup's shards"));
        };
        if !listed.insert(path) {
            return Err(format!("the path {path:?} is listed twice"));
        }
        shards.insert(directory);
    }
    // The number is compared first, so that this is bounded by the list.
    let all = shards.len() == manifest.shards as usize
        && (0..manifest.shards).all(|shard| shards.contains(shard_directory(shard).as_str()));
    if all {
        return Ok(());
    }
    let found: Vec<_> = shards.into_iter().collect();
    Err(format!("it lists files of {} and has {} shards", found.join(", "), manifest.shards))
}

/// The files below `directory/prefix`. Links and the like are no part of a backup: they may lead out of it.
fn list_plain_files(directory: &Path, prefix: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let here = directory.join(prefix);
    let names = RealFileSystem.list(&here).map_err(|error| failed("list", &here, error))?;
    for name in names {
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let path = directory.join(&relative);
        let kind = fs::symlink_metadata(&path).map_err(|error| failed("read", &path, error))?;
        if kind.is_dir() {
            list_plain_files(directory, &relative, found)?;
        } else if kind.is_file() {
            found.insert(relative);
        } else {
            return Err(damaged(&path, "it is neither a file nor a directory"));
        }
    }
    Ok(())
}

fn check_file(path: &Path, is_there: bool, listed: &BackupFile) -> Result<()> {
    if !is_there {
        return Err(damaged(path, "the file is missing"));
    }
    let (bytes, crc32c) = checksum(path).map_err(|error| failed("read", path, error))?;
    if (bytes, crc32c) == (listed.bytes, listed.crc32c) {
        return Ok(());
    }
    let detail = format!(
        "the file has {bytes} bytes and checksum {crc32c:08x}; the backup was made with {} and {:08x}",
        listed.bytes, listed.crc32c
    );
    Err(damaged(path, detail))
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let file = path.join(MANIFEST);
    let content =
        read_file(&RealFileSystem, &file, MANIFEST_BYTES_MAX).map_err(|error| {
            match error.kind() {
                io::ErrorKind::NotFound => {
                    let message = format!("{} is no backup: it has no {MANIFEST}", path.display());
                    Error::new(Reason::FailedPrecondition, message)
                }
                _ => failed("read", &file, error),
            }
        })?;
    let text = content.strip_suffix(b"\n").and_then(|text| text.split_last_chunk::<9>());
    let Some((json, checksum)) = text else { return Err(damaged(&file, "it is cut off")) };
    if checksum[..] != *format!("\n{:08x}", crc32c::crc32c(json)).as_bytes() {
        return Err(damaged(&file, "its checksum does not match"));
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(|error| {
        Error::new(
            Reason::FailedPrecondition,
            format!("{} is of another version: {error}", file.display()),
        )
    })?;
    if manifest.magic != MAGIC || manifest.version != VERSION {
        let message = format!(
            "{} has version {}; this program reads version {VERSION}",
            file.display(),
            manifest.version
        );
        return Err(Error::new(Reason::FailedPrecondition, message));
    }
    Ok(manifest)
}

fn checksum(path: &Path) -> io::Result<(u64, u32)> {
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut bytes, mut crc) = (0, 0);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok((bytes, crc));
        }
        bytes += read as u64;
        crc = crc32c::crc32c_append(crc, &buffer[..read]);
    }
}

fn remove_all(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path, error: io::Error) -> Error {
    storage::Error::io(operation, path, error).into()
}

fn damaged(file: &Path, detail: impl Into<String>) -> Error {
    storage::Error::corruption(file, 0, detail).into()
}
