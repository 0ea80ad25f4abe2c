//! The catalogue of an environment: which engines there are, and the number of each. Replaced as a whole, atomically.
//!
//! | file `catalogue` | bytes | |
//! |---|---|---|
//! | magic | 8 | `kvLSMcat` |
//! | version | 4 | 1 |
//! | next | 8 | number of the next engine; never goes back, so that no number is used twice |
//! | count | 4 | engines |
//! | engine | * | number (8); varint length, name |
//! | checksum | 4 | CRC-32C of all before |
//!
//! Numbers are little-endian.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::shared::name_shortage;
use crate::storage::{Error, Result, check_name};
use crate::util::coding::{Cursor, put_slice};
use crate::util::fs::{FileSystem, read_file, replace_file};

/// Name of the file.
pub(super) const FILE_NAME: &str = "catalogue";
const MAGIC: &[u8; 8] = b"kvLSMcat";
const VERSION: u32 = 1;

/// Bounds what a damaged size can make us reserve.
const BYTES_MAX: u64 = 64 << 20;

/// Numbers an engine, and its owner in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EngineId(pub(super) u64);

impl EngineId {
    /// Name of its directory.
    pub(super) fn directory_name(self) -> String {
        format!("engine-{}", self.0)
    }

    /// The number in the name of a directory.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let id = Self(name.strip_prefix("engine-")?.parse().ok()?);
        (id.directory_name() == name).then_some(id)
    }
}

/// See the [module](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Catalogue {
    engines: BTreeMap<String, EngineId>,
    next: u64,
}

impl Default for Catalogue {
    fn default() -> Self {
        Self { engines: BTreeMap::new(), next: 1 }
    }
}

impl Catalogue {
    /// Reads the one in `directory`; `None` when there is none.
    pub(super) fn open(fs: &dyn FileSystem, directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(FILE_NAME);
        match read_file(fs, &path, BYTES_MAX) {
            Ok(bytes) => {
                Self::decode(&bytes).map(Some).map_err(|damage| Self::damaged(directory, &damage))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Ok(None),
                io::ErrorKind::InvalidData => Err(Self::damaged(directory, &error.to_string())),
                _ => Err(Error::io("read", &path, error)),
            },
        }
    }

    /// What is wrong with the one in `directory`.
    pub(super) fn damaged(directory: &Path, damage: &str) -> Error {
        Error::corruption(directory.join(FILE_NAME), 0, damage)
    }

    /// Whether the number was given out, be it to an engine that is gone.
    pub(super) const fn knew(&self, id: EngineId) -> bool {
        id.0 < self.next
    }

    /// Makes this the catalogue of `directory`, durably.
    pub(super) fn store(&self, fs: &dyn FileSystem, directory: &Path) -> Result<()> {
        replace_file(fs, directory, FILE_NAME, &self.encode())
            .map_err(|error| name_shortage(Error::io("write", directory.join(FILE_NAME), error)))
    }

    /// The engines by name.
    pub(super) const fn engines(&self) -> &BTreeMap<String, EngineId> {
        &self.engines
    }

    /// Gives `name` a new number, whatever it had before.
    pub(super) fn add(&mut self, name: &str) -> EngineId {
        let id = EngineId(self.next);
        self.next += 1;
        self.engines.insert(name.to_owned(), id);
        id
    }

    /// Forgets `name`.
    pub(super) fn remove(&mut self, name: &str) -> Option<EngineId> {
        self.engines.remove(name)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&self.next.to_le_bytes());
        let count = u32::try_from(self.engines.len()).expect("far fewer engines");
        bytes.extend_from_slice(&count.to_le_bytes());
        for (name, id) in &self.engines {
            bytes.extend_from_slice(&id.0.to_le_bytes());
            put_slice(&mut bytes, name.as_bytes());
        }
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let (body, checksum) = bytes.split_last_chunk::<4>().ok_or("it is cut")?;
        let Some(fields) = body.strip_prefix(MAGIC) else {
            return Err("not a catalogue: wrong magic".to_owned());
        };
        if crc32c::crc32c(body).to_le_bytes() != *checksum {
            return Err("the checksum does not match".to_owned());
        }
        let mut cursor = Cursor::new(fields);
        let version = cursor.u32().ok_or("it is cut")?;
        if version != VERSION {
            return Err(format!("version {version}; this program reads version {VERSION}"));
        }
        Self::decode_engines(&mut cursor).ok_or_else(|| "it is malformed".to_owned())
    }

    fn decode_engines(cursor: &mut Cursor<'_>) -> Option<Self> {
        let next = cursor.u64()?;
        let mut engines = BTreeMap::new();
        for _ in 0..cursor.u32()? {
            let id = EngineId(cursor.u64()?);
            let name = std::str::from_utf8(cursor.slice()?).ok()?;
            check_name(name).ok()?;
            if id.0 >= next || engines.insert(name.to_owned(), id).is_some() {
                return None;
            }
        }
        cursor.is_empty().then_some(Self { engines, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::fs::sim::SimFileSystem;

    #[test]
    fn catalogue_reads_back_and_no_number_is_used_twice() {
        let fs = SimFileSystem::new(1);
        assert_eq!(Catalogue::open(&fs, Path::new("/")).expect("there is none"), None);
        let mut catalogue = Catalogue::default();
        let first = catalogue.add("a");
        assert_ne!(catalogue.add("b"), first);
        assert_eq!(catalogue.remove("a"), Some(first));
        catalogue.store(&fs, Path::new("/")).expect("stores");
        let mut read = Catalogue::open(&fs.restart(1), Path::new("/")).expect("opens");
        let mut read = read.take().expect("there is one");
        assert_eq!(read, catalogue);
        assert_eq!(read.add("a"), EngineId(3));
    }

    #[test]
    fn any_damage_is_found() {
        let mut catalogue = Catalogue::default();
        catalogue.add("main");
        let bytes = catalogue.encode();
        for at in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[at] ^= 4;
            assert!(Catalogue::decode(&bent).is_err(), "byte {at}");
            assert!(Catalogue::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(Catalogue::decode(&bytes), Ok(catalogue));
    }
}
