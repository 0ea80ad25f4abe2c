//! `batch`: many values from a file or a pipe, one JSON object on each line.
//!
//! A thread reads lines and packs them into parcels ([`read`]); this side keeps some parcels on their way at a time ([`send`]).
//! Between them is a short queue, so that memory does not grow with the input.
//!
//! Promises: of a key on several lines the last one wins. A line that cannot be read ends the command after everything before it is
//! stored. A parcel is applied once, however often it has to be sent.

mod read;
mod send;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use self::read::{Reader, Sizes};
use super::args::{Connection, FormArgs, ttl};
use super::error::{Error, Result};
use super::output::{Output, count};

/// Parcels that are packed before they can be sent.
const PACKED_MAX: usize = 4;

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 << 10;

const HELP: &str = r#"Each line is one object; empty lines are skipped:
  {"key": "user/1", "value": {"name": "John"}}  any JSON, stored byte for byte as written here
  {"key": "user/2", "text": "{\n  \"x\": 1\n}"}   JSON text in a string: it may have line breaks
  {"key": "photo", "raw": "iVBORw0KGgo="}       any bytes, in base64
  {"key": "session", "value": 1, "ttl": 3600}   removed after so many seconds
This is what `kvstore scan` prints; its `version` is not taken over.

Lines are stored in batches, of which each is applied once, however often it has to be sent; all of
them together are no transaction. Of a key on several lines the last one wins. A line that cannot
be read ends the command after all lines before it are stored."#;

/// `kvstore batch`.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// File to read; `-` or nothing reads standard input
    #[arg(default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// Remove keys after this time where the line has no ttl of its own: seconds, or 90s, 15m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<u32>,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Args {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let (input, name, bytes) = self.open()?;
        let bar = progress_bar(bytes);
        let input = BufReader::with_capacity(READ_BYTES, bar.wrap_read(input));
        let sizes = Arc::new(Sizes::default());
        let (packed, parcels) = tokio::sync::mpsc::channel(PACKED_MAX);
        let reader = Reader::new(input, self.ttl, Arc::clone(&sizes));
        // Not joined: when sending failed it may still wait for a pipe, and ends with the process.
        std::thread::spawn(move || reader.run(&packed));
        let client = self.connection.client();
        let stored = send::all(&client, parcels, &sizes, &name, &bar).await;
        bar.finish_and_clear();
        let stored = stored?;
        let said = format!("stored {}", count(stored, "entry", "entries"));
        self.form.done(output, &said, &json!({ "stored": stored }))
    }

    /// The input, its name in messages, its size where it is known.
    fn open(&self) -> Result<(Box<dyn Read + Send>, String, Option<u64>)> {
        if self.file.as_os_str() == "-" {
            return Ok((Box::new(io::stdin()), "standard input".to_owned(), None));
        }
        let name = self.file.display().to_string();
        let failed = |error: io::Error| Error::Failed(format!("cannot read {name}: {error}"));
        let file = File::open(&self.file).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok((Box::new(file), name, bytes))
    }
}

/// A bar on standard error; nothing at all when that is no terminal.
fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, form) = match bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{bar:32} {bytes}/{total_bytes} {msg} {bytes_per_sec} {eta} left",
        ),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {msg} {bytes_per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(form).expect("the templates above are well formed"))
}
