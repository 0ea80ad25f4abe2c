//! `put`, `get`, `delete`: one key.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use serde_json::json;

use super::args::{Connection, FormArgs, Reading, ttl};
use super::error::{Error, Result};
use super::output::{Content, Item, Output};
use crate::proto::v1::{DeleteRequest, GetRequest, PutRequest, put_request};

/// Largest value that is read from a file or a pipe: no node can be configured to take a larger one.
const VALUE_BYTES_MAX: u64 = 64 << 20;

const PUT_HELP: &str = r#"Examples:
  kvstore put user/1 '{"name": "John"}'
  kvstore put greeting '"hello"'          (a JSON text needs its own quotes)
  kvstore put photo @photo.jpg --raw
  jq -c .config app.json | kvstore put config - --ttl 1h
  kvstore put lock '"me"' --if-version 0  (only if it is absent)"#;

/// `kvstore put`.
#[derive(clap::Args)]
#[command(after_help = PUT_HELP)]
pub(super) struct Put {
    /// The key
    key: String,
    /// JSON text, stored byte for byte; `-` reads standard input, `@FILE` a file
    #[arg(allow_negative_numbers = true)]
    value: OsString,
    /// Remove the key after this time: seconds, or 90s, 15m, 12h, 7d
    #[arg(long, value_name = "TIME", value_parser = ttl)]
    ttl: Option<u32>,
    /// Store only if the key has this version; 0: only if it is absent
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Id of this write; a repeat with the same id within 10 minutes writes nothing again
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    /// Store any bytes instead of JSON text
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Put {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let bytes = value(self.value)?;
        let content = if self.raw {
            put_request::Content::Raw(bytes.into())
        } else {
            let text = String::from_utf8(bytes).map_err(|_| {
                Error::Failed("INVALID_JSON: the value is not UTF-8; bytes need --raw".to_owned())
            })?;
            put_request::Content::Value(text)
        };
        let request = PutRequest {
            key: self.key,
            content: Some(content),
            ttl: self.ttl,
            if_version: self.if_version,
            request_id: self.request_id,
        };
        let stored = self.connection.client().put(request).await.map_err(with_hint)?;
        if self.form.is_json() {
            return output.json(&json!({ "version": stored.version }));
        }
        output.line(&format!("version {}", stored.version))
    }
}

/// The node's refusal speaks to programs; here a person wrote the value.
fn with_hint(mut failure: crate::net::Failure) -> Error {
    if failure.reason == "INVALID_JSON" {
        let why = failure.message.split("; a value is").next().unwrap_or_default();
        failure.message = format!(r#"{why}; write text as '"hello"', or store bytes with --raw"#);
    }
    failure.into()
}

/// The value that an argument stands for.
fn value(argument: OsString) -> Result<Vec<u8>> {
    if argument == "-" {
        return bounded(io::stdin().lock(), "standard input");
    }
    let Some(name) = argument.as_bytes().strip_prefix(b"@") else {
        return Ok(argument.into_vec());
    };
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    let shown = path.display().to_string();
    let file =
        File::open(path).map_err(|error| Error::Failed(format!("cannot read {shown}: {error}")))?;
    bounded(file, &shown)
}

fn bounded(reader: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader.take(VALUE_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| Error::Failed(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > VALUE_BYTES_MAX {
        let message = format!("{name} holds more than {VALUE_BYTES_MAX} bytes; no node takes more");
        return Err(Error::Failed(message));
    }
    Ok(bytes)
}

/// `kvstore get`.
#[derive(clap::Args)]
pub(super) struct Get {
    /// The key
    key: String,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Get {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let consistency = self.reading.consistency();
        let request = GetRequest { key: self.key.clone(), consistency };
        let found = self.connection.client().get(request).await?;
        let Some(found) = found else { return Err(Error::KeyNotFound(self.key)) };
        let item = Item::from(found);
        if self.form.is_json() {
            return output.line(&item.to_json());
        }
        match &item.content {
            Some(Content::Json(text)) => output.bytes(text.as_bytes())?,
            Some(Content::Raw(bytes)) => output.bytes(bytes)?,
            None => {}
        }
        // The prompt of a terminal goes on a line of its own; a pipe gets the value and nothing else.
        if Output::is_terminal() { output.line("") } else { Ok(()) }
    }
}

/// `kvstore delete`.
#[derive(clap::Args)]
pub(super) struct Delete {
    /// The key
    key: String,
    /// Remove only if the key has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
    /// Id of this write; a repeat with the same id within 10 minutes is answered as the first was
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Delete {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let Self { key, if_version, request_id, .. } = self;
        let request = DeleteRequest { key, if_version, request_id };
        let deleted = self.connection.client().delete(request).await?.deleted;
        if self.form.is_json() {
            return output.json(&json!({ "deleted": deleted }));
        }
        output.line(if deleted { "deleted" } else { "there was no such key" })
    }
}
