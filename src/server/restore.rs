//! Takes a backup back into an empty data directory.

use std::io;
use std::path::Path;

use super::Error;
use super::identity::Identity;
use super::storage::open_environment;
use crate::backup::{self, Manifest, shard_directory};
use crate::config::{Config, Engine};
use crate::util::fs::{FileSystem as _, RealFileSystem};

/// Checks the backup in `path` and fills the data directory of `config`, which must be empty or not exist, with it. Blocks.
///
/// # Errors
///
/// When the backup is damaged or of another engine or number of shards than configured, the directory is not empty, or a write
/// fails. A directory that was filled in part has no identity and is refused at start.
pub fn restore(path: &Path, config: &Config) -> Result<Manifest, Error> {
    let manifest = backup::verify(path).map_err(|error| Error::Foreign(error.to_string()))?;
    let directory = &config.storage.data_dir;
    if config.cluster.is_set() {
        let message = "a backup is restored into a node by itself; unset kvstore.cluster.members and kvstore.cluster.join";
        return Err(Error::Unsupported(message.to_owned()));
    }
    if Engine::from_word(&manifest.engine) != Some(config.storage.engine) {
        return Err(Error::Foreign(format!(
            "the backup was made by the engine {}; set kvstore.storage.engine: {}",
            manifest.engine, manifest.engine
        )));
    }
    if manifest.shards != config.hash_ring.shards {
        return Err(Error::Foreign(format!(
            "the backup has {} shards; set kvstore.hash-ring.shards: {}",
            manifest.shards, manifest.shards
        )));
    }
    match RealFileSystem.list(directory) {
        Ok(names) if !names.is_empty() => {
            let message = format!(
                "{} is not empty; a backup goes into an empty data directory",
                directory.display()
            );
            return Err(Error::Foreign(message));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Error::file("list", directory, error));
        }
        _ => {}
    }
    let environment = open_environment(config)?;
    for shard in 0..manifest.shards {
        let name = shard_directory(shard);
        environment
            .install(&name, &path.join(&name))
            .map_err(|error| Error::Storage(error.to_string()))?;
    }
    drop(environment);
    // Last: a directory without it is refused at start, so that a restore that was cut off is not taken for whole.
    Identity::create(&RealFileSystem, directory, config)?;
    Ok(manifest)
}
