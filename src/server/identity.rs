//! Whose data directory it is: written when the directory is first used, checked at every start.
//!
//! What was decided when the data was written cannot be changed by configuration: the engine that can read it and the number of
//! shards that its keys were spread over. A start that asks for something else is refused and changes nothing.
//!
//! # On disk
//!
//! `identity.json` in the data directory, one JSON object (`magic`, `version`, `cluster`, `incarnation`, `node`, `engine`, `shards`), a
//! line feed, the CRC-32C of the object's bytes in eight hexadecimal digits, a line feed.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Error;
use crate::config::Config;
use crate::util::fs::{FileSystem, read_file, replace_file};

const FILE: &str = "identity.json";
const FILE_BYTES_MAX: u64 = 64 << 10;
const MAGIC: &str = "kvstore-data";
const VERSION: u32 = 1;

/// What a data directory says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    magic: String,
    version: u32,
    /// The cluster that the data belongs to.
    pub(super) cluster: Uuid,
    /// Random; a directory that was wiped and filled again has another.
    pub(super) incarnation: Uuid,
    /// The node that wrote it first.
    pub(super) node: String,
    pub(super) engine: String,
    pub(super) shards: u32,
}

impl Identity {
    /// Gives `directory` a fresh identity.
    pub(super) fn create(
        fs: &dyn FileSystem,
        directory: &Path,
        config: &Config,
    ) -> Result<Self, Error> {
        let identity = Self {
            magic: MAGIC.to_owned(),
            version: VERSION,
            cluster: Uuid::new_v4(),
            incarnation: Uuid::new_v4(),
            node: config.node.id.clone(),
            engine: config.storage.engine.as_str().to_owned(),
            shards: config.hash_ring.shards,
        };
        identity.write(fs, directory)?;
        Ok(identity)
    }

    /// The identity of `directory`: read and checked, or given now when it has none.
    pub(super) fn establish(
        fs: &dyn FileSystem,
        directory: &Path,
        config: &Config,
    ) -> Result<Self, Error> {
        let (node, engine) = (config.node.id.as_str(), config.storage.engine.as_str());
        let shards = config.hash_ring.shards;
        let Some(found) = Self::read(fs, directory)? else {
            check_empty(fs, directory)?;
            return Self::create(fs, directory, config);
        };
        let refuse = |key: &str, found: &str, asked: &str| {
            let directory = directory.display();
            Err(Error::Foreign(format!(
                "{directory} was written with {key}: {found}, the configuration says {asked}; set {key}: {found} or another kvstore.storage.data-dir"
            )))
        };
        if found.node != node {
            return refuse("kvstore.node.id", &found.node, node);
        }
        if found.engine != engine {
            return refuse("kvstore.storage.engine", &found.engine, engine);
        }
        if found.shards != shards {
            return refuse(
                "kvstore.hash-ring.shards",
                &found.shards.to_string(),
                &shards.to_string(),
            );
        }
        Ok(found)
    }

    fn read(fs: &dyn FileSystem, directory: &Path) -> Result<Option<Self>, Error> {
        let path = directory.join(FILE);
        let content = match read_file(fs, &path, FILE_BYTES_MAX) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::file("read", &path, source)),
        };
        let damaged = |detail: &str| {
            Error::Foreign(format!(
                "{} is damaged: {detail}; restore it from a backup",
                path.display()
            ))
        };
        let text = content.strip_suffix(b"\n").and_then(|text| text.split_last_chunk::<9>());
        let Some((json, checksum)) = text else { return Err(damaged("it is cut off")) };
        if checksum[..] != *format!("\n{:08x}", crc32c::crc32c(json)).as_bytes() {
            return Err(damaged("its checksum does not match"));
        }
        let identity: Self =
            serde_json::from_slice(json).map_err(|error| damaged(&error.to_string()))?;
        if identity.magic != MAGIC || identity.version != VERSION {
            let (path, version) = (path.display(), identity.version);
            return Err(Error::Foreign(format!(
                "{path} has version {version}; this program reads version {VERSION}"
            )));
        }
        Ok(Some(identity))
    }

    fn write(&self, fs: &dyn FileSystem, directory: &Path) -> Result<(), Error> {
        let failed = |source| Error::file("write", &directory.join(FILE), source);
        let mut text = serde_json::to_vec(self).map_err(|error| failed(error.into()))?;
        let checksum = crc32c::crc32c(&text);
        text.extend_from_slice(format!("\n{checksum:08x}\n").as_bytes());
        replace_file(fs, directory, FILE, &text).map_err(failed)
    }
}

/// Refuses a directory that holds something but no identity: another program's files, or a restore that was cut off.
fn check_empty(fs: &dyn FileSystem, directory: &Path) -> Result<(), Error> {
    let names = fs.list(directory).map_err(|source| Error::file("list", directory, source))?;
    let temporary = format!("{FILE}.tmp");
    match names.iter().find(|name| **name != temporary && *name != "lost+found") {
        None => Ok(()),
        Some(name) => Err(Error::Foreign(format!(
            "{} holds {name:?} but no {FILE}: it is not a data directory, or a restore into it was cut off; empty it or set another kvstore.storage.data-dir",
            directory.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Engine;
    use crate::util::fs::RealFileSystem;

    fn establish(directory: &Path, engine: &str, shards: u32) -> Result<Identity, Error> {
        let mut config = Config::default();
        config.storage.engine = Engine::from_word(engine).expect("an engine");
        config.hash_ring.shards = shards;
        Identity::establish(&RealFileSystem, directory, &config)
    }

    #[test]
    fn a_directory_keeps_its_identity_and_refuses_another_configuration() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = establish(directory.path(), "sled", 16).expect("a fresh directory");
        assert_eq!(establish(directory.path(), "sled", 16).expect("the same again"), first);
        let error = establish(directory.path(), "sled", 8).expect_err("other shards").to_string();
        assert!(error.contains("kvstore.hash-ring.shards: 16"), "{error}");
        let error = establish(directory.path(), "lsm", 16).expect_err("another engine").to_string();
        assert!(error.contains("kvstore.storage.engine: sled"), "{error}");
    }

    #[test]
    fn a_damaged_identity_is_refused_wherever_it_is_damaged() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        establish(directory.path(), "sled", 16).expect("a fresh directory");
        let path = directory.path().join(FILE);
        let whole = std::fs::read(&path).expect("it was written");
        // Cut to nothing it is still there, so that the directory does not pass for a fresh one.
        for position in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[position] ^= 1;
            std::fs::write(&path, &damaged).expect("a writable file");
            assert!(establish(directory.path(), "sled", 16).is_err(), "byte {position}");
            std::fs::write(&path, &whole[..position]).expect("a writable file");
            assert!(establish(directory.path(), "sled", 16).is_err(), "cut at {position}");
        }
    }
}
