//! Checkpoints: a copy of an engine in a directory of its own, which shares the tables' files by hard links.
//!
//! | file | what |
//! |---|---|
//! | `NNNNNN.sst` | the tables |
//! | `checkpoint` | which level each is in, the newest write and the clock |
//!
//! | file `checkpoint` | bytes | |
//! |---|---|---|
//! | magic | 8 | `kvLSMchk` |
//! | version | 4 | 1, little-endian |
//! | tree | * | an edit of the manifest that makes the tree of an empty one |
//! | checksum | 4 | CRC-32C of all before, little-endian |
//!
//! It is written last, beside its name, synced and renamed: a directory that has it is whole. A manifest would not do: its
//! end may be torn, and then it is cut; here it must be refused.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::cache::BlockCache;
use super::files::TableDirectory;
use super::manifest::{decode_edit, encode_edit};
use super::open_files::OpenFiles;
use super::settings::OPEN_FILES_MAX;
use super::shared::{create_directory, name_shortage, sync_directory};
use super::table::Table;
use super::version::{Version, VersionEdit};
use crate::storage::{Error, Result};
use crate::util::fs::{FileSystem, read_file, replace_file};
use crate::wal::Position;

const FILE_NAME: &str = "checkpoint";
const MAGIC: &[u8; 8] = b"kvLSMchk";
const VERSION: u32 = 1;

/// Bounds what a damaged size can make us reserve.
const BYTES_MAX: u64 = 1 << 30;

/// Bytes copied at once where a link cannot be made.
const COPY_BYTES: usize = 1 << 20;

/// Writes the tables of `version`, which nobody removes meanwhile, into `directory`, durably.
pub(super) fn write(
    fs: &dyn FileSystem,
    directory: &Path,
    from: &TableDirectory,
    version: &Version,
) -> Result<()> {
    prepare(fs, directory)?;
    let mut tree = version.snapshot();
    for table in &tree.added {
        let name = table.number.table_name();
        link_or_copy(fs, &from.table_path(table.number), &directory.join(name))?;
    }
    // Positions of the log mean nothing elsewhere.
    if let Some(flushed) = &mut tree.flushed {
        flushed.log = Position::BEGINNING;
    }
    // Names of tables first: the file says that they are there.
    sync_directory(fs, directory)?;
    replace_file(fs, directory, FILE_NAME, &encode(&tree))
        .map_err(|error| failed("write", &directory.join(FILE_NAME), error))
}

/// Reads and checks the checkpoint in `directory`, all of it.
pub(super) fn read(fs: &Arc<dyn FileSystem>, directory: &Path) -> Result<VersionEdit> {
    let path = directory.join(FILE_NAME);
    let bytes = match read_file(&**fs, &path, BYTES_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = directory.display();
            return Err(Error::Invalid(format!("{directory} holds no lsm checkpoint")));
        }
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let tree = decode(&bytes).map_err(|damage| Error::corruption(&path, 0, damage))?;
    let cache = BlockCache::new(0);
    let files = OpenFiles::new(Arc::clone(fs), OPEN_FILES_MAX);
    let files = TableDirectory::new(files, directory.to_owned(), cache.clone(), 0);
    let version = Version::default().apply(&tree, &files);
    version.map_err(|damage| Error::corruption(&path, 0, damage))?;
    for added in &tree.added {
        let path = files.table_path(added.number);
        let table = Table::open(&**fs, &path, &cache, Some(added.metadata.uid))?;
        if *table.properties() != added.metadata.properties {
            return Err(Error::corruption(&path, 0, "this is another table than the one named"));
        }
        table.verify()?;
    }
    Ok(tree)
}

/// Links the tables of a checkpoint, which was read, into the directory of a new engine, and makes that durable.
pub(super) fn link_tables(
    fs: &dyn FileSystem,
    checkpoint: &Path,
    tree: &VersionEdit,
    directory: &TableDirectory,
) -> Result<()> {
    for added in &tree.added {
        let from = checkpoint.join(added.number.table_name());
        link_or_copy(fs, &from, &directory.table_path(added.number))?;
    }
    sync_directory(fs, directory.path())
}

fn prepare(fs: &dyn FileSystem, directory: &Path) -> Result<()> {
    create_directory(fs, directory)?;
    let names = fs.list(directory).map_err(|error| failed("list", directory, error))?;
    if names.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!("checkpoint directory {} is not empty", directory.display())))
}

fn link_or_copy(fs: &dyn FileSystem, from: &Path, to: &Path) -> Result<()> {
    match fs.hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(fs, from, to),
        Err(error) => Err(failed("link", to, error)),
    }
}

fn copy(fs: &dyn FileSystem, from: &Path, to: &Path) -> Result<()> {
    let source = fs.open(from).map_err(|error| failed("open", from, error))?;
    let target = fs.create(to).map_err(|error| failed("create", to, error))?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let read =
            source.read_at(&mut buffer, offset).map_err(|error| failed("read", from, error))?;
        if read == 0 {
            return target.sync_data().map_err(|error| failed("sync", to, error));
        }
        target.write_at(&buffer[..read], offset).map_err(|error| failed("write", to, error))?;
        offset += read as u64;
    }
}

fn failed(operation: &'static str, path: &Path, error: io::Error) -> Error {
    name_shortage(Error::io(operation, path, error))
}

pub(super) fn encode(tree: &VersionEdit) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    encode_edit(tree, &mut bytes);
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<VersionEdit, String> {
    let (body, checksum) = bytes.split_last_chunk::<4>().ok_or("it is cut")?;
    let fields = body.strip_prefix(MAGIC).ok_or("not a checkpoint: wrong magic")?;
    if crc32c::crc32c(body).to_le_bytes() != *checksum {
        return Err("the checksum does not match".to_owned());
    }
    let (version, tree) = fields.split_first_chunk::<4>().ok_or("it is cut")?;
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(format!("version {version}; this program reads version {VERSION}"));
    }
    let tree = decode_edit(tree)?;
    if tree.flushed.is_none() || !tree.removed.is_empty() {
        return Err("it is no tree of its own".to_owned());
    }
    Ok(tree)
}
