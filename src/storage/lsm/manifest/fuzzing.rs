//! The decoders of the manifest, for fuzzers: see [`crate::fuzzing`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::record::{HEADER_BYTES, Header, encode_header, seal};
use super::{CURRENT, Manifest, current_text, edit};
use crate::storage::Error;
use crate::storage::lsm::cache::BlockCache;
use crate::storage::lsm::files::{FileNumber, TableDirectory};
use crate::storage::lsm::open_files::OpenFiles;
use crate::storage::lsm::version::{Version, VersionEdit};
use crate::util::fs::FileSystem as _;
use crate::util::fs::sim::SimFileSystem;

const DIRECTORY: &str = "/engine-1";
const NUMBER: FileNumber = FileNumber(3);

/// Numbers of the tables that there are.
const TABLES: std::ops::Range<u64> = 4..40;

/// One edit.
pub fn manifest_edit(data: &[u8]) {
    let Ok(decoded) = edit::decode(data) else { return };
    let mut again = Vec::new();
    edit::encode(&decoded, &mut again);
    assert_eq!(edit::decode(&again), Ok(decoded.clone()), "an edit reads as it was written");
    let _ = Version::default().apply(&decoded, &directory(&SimFileSystem::new(0)));
}

/// A whole manifest, in the directory of an engine with some tables.
pub fn manifest(data: &[u8]) {
    judge(data);
    let mut sealed = data.to_vec();
    // The end of the snapshot stays what it is.
    let Some(header) = sealed.first_chunk_mut::<HEADER_BYTES>() else { return };
    let snapshot_end = header[24..].first_chunk().map_or(0, |end| u64::from_le_bytes(*end));
    let made_steps = u16::from(header[14] & 1);
    *header = encode_header(NUMBER, Header { engine: 0, made_steps, snapshot_end });
    let mut offset = HEADER_BYTES;
    while let Some(end) = seal(&mut sealed, NUMBER, offset) {
        offset = end;
    }
    judge(&sealed);
}

fn judge(bytes: &[u8]) {
    let fs = SimFileSystem::new(0);
    let root = PathBuf::from(DIRECTORY);
    fs.create_dir_all(&root).and_then(|()| fs.sync_dir(Path::new("/"))).expect("a directory");
    let file = |name: &str, bytes: &[u8]| {
        let file = fs.create(&root.join(name)).expect("a file");
        file.write_at(bytes, 0).and_then(|()| file.sync_data()).expect("written");
    };
    file(&NUMBER.manifest_name(), bytes);
    file(CURRENT, current_text(NUMBER).as_bytes());
    TABLES.for_each(|number| file(&FileNumber(number).table_name(), &[]));
    let found = match Manifest::open(&directory(&fs)) {
        Ok(mut manifest) => {
            let found = manifest.version().snapshot();
            manifest.commit(&VersionEdit::default()).expect("what was opened takes an edit");
            found
        }
        Err(Error::Corruption { .. }) => return,
        Err(error) => panic!("neither opened nor refused: {error}"),
    };
    let again = Manifest::open(&directory(&fs.restart(0))).expect("it opens again");
    assert_eq!(again.version().snapshot(), found, "and says the same");
}

fn directory(fs: &SimFileSystem) -> Arc<TableDirectory> {
    TableDirectory::new(
        OpenFiles::new(Arc::new(fs.clone()), 8),
        Path::new(DIRECTORY).into(),
        BlockCache::new(0),
        1,
    )
}
