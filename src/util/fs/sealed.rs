//! Small files that are read whole and replaced whole, with a checksum: text, a line feed, the CRC-32C of the text in eight hexadecimal digits, a line feed.
//!
//! Readable with any pager, and a flipped bit or a cut is found. Callers: whoever keeps a few facts that must not change unseen.

use std::io;
use std::path::Path;

use super::{FileSystem, read_file, replace_file};

/// Reads the file at `path`, of at most `size_max` bytes; `None` when there is none.
///
/// # Errors
///
/// `InvalidData` when it is damaged, with what is wrong; the disk's otherwise.
pub fn read_sealed(fs: &dyn FileSystem, path: &Path, size_max: u64) -> io::Result<Option<Vec<u8>>> {
    let mut content = match read_file(fs, path, size_max) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = |what| Err(io::Error::new(io::ErrorKind::InvalidData, what));
    let text = content.strip_suffix(b"\n").and_then(|text| text.split_last_chunk::<9>());
    let Some((text, checksum)) = text else { return damaged("it is cut off") };
    if checksum[..] != *seal(text).as_bytes() {
        return damaged("its checksum does not match");
    }
    let length = text.len();
    content.truncate(length);
    Ok(Some(content))
}

/// Makes `dir/name` hold `text`, atomically and durably; see [`replace_file`].
///
/// # Errors
///
/// The disk's.
pub fn write_sealed(
    fs: &dyn FileSystem,
    dir: &Path,
    name: &str,
    mut text: Vec<u8>,
) -> io::Result<()> {
    let seal = seal(&text);
    text.extend_from_slice(seal.as_bytes());
    text.push(b'\n');
    replace_file(fs, dir, name, &text)
}

fn seal(text: &[u8]) -> String {
    format!("\n{:08x}", crc32c::crc32c(text))
}
