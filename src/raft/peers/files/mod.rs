//! Files from one node to another: a snapshot's, as a checkpoint of an engine has them.
//!
//! ```text
//! sender                                             receiver
//!   list: header, name, size and checksum of each ->
//!                                                  <- wanted: file 0, from offset 0
//!   chunk, chunk, ... to the end of the file       ->   checks each, then the file; syncs it
//!                                                  <- wanted: file 2, from offset 1 MiB (it has the others, and the beginning)
//!   chunk, ...                                     ->
//!                                                  <- complete: all are there, checked and durable
//!                                                  <- done: the reply
//! ```
//!
//! * The receiver asks for what it has not, so a transfer that broke off goes on where it was: files that are whole and right are not sent again, and of the
//!   one that was under way only the rest is.
//! * Each chunk has a CRC-32C, each file an xxh3-64 over all of it, also over what an earlier attempt brought. A file that is wrong is cut to nothing.
//! * Files go into one directory, flat. A name that is more than a plain name is refused before anything is written; what is in the directory and not in the list
//!   is removed.
//! * At most [`TRANSFERS_MAX`] at a time go out of a node, and as many come into one; the same header from the same node only once at a time.

mod receive;
mod send;

pub(super) use self::receive::{Receiving, Transfer};
pub(super) use self::send::Sending;

use super::refusal::{Reason, Refusal};

/// Most transfers at a time, in each direction.
const TRANSFERS_MAX: usize = 2;

/// Bytes of a chunk that is sent.
const CHUNK_BYTES: usize = 512 << 10;

/// Most bytes of a chunk that is taken.
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Most files of a transfer.
const FILES_MAX: usize = 100_000;

/// Longest name.
const NAME_BYTES_MAX: usize = 128;

/// Refuses a name that could lead out of the directory, or that no engine gives.
fn check_name(name: &str) -> Result<(), Refusal> {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if plain && (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.starts_with('.') {
        return Ok(());
    }
    let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
    let message = format!(
        "a file named {shown:?} is not taken; a name has 1 to {NAME_BYTES_MAX} characters of A-Z a-z 0-9 . _ - and does not begin with a dot"
    );
    Err(Refusal::new(Reason::BadFile, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["000001.sst", "CURRENT", "a", "manifest-7_x"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "/etc/passwd",
            "a\\b",
            ".hidden",
            "a\0b",
            "ä",
            "a b",
            &long,
        ] {
            assert_eq!(check_name(name).expect_err(name).reason, Reason::BadFile);
        }
    }
}
