//! Standard output: exact bytes, tables for people, JSON for programs.
//!
//! In text, keys and values of a listing stand on one line each and carry no control characters, so that what somebody
//! stored cannot steer a terminal or fake a line. JSON text loses nothing by it: outside of strings such
//! characters are white space, inside they can be escaped.

use std::borrow::Cow;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use super::error::{Error, Result};

/// Bytes that are gathered before they are written.
const BUFFER_BYTES: usize = 64 << 10;

/// Standard output of this process. Not locked: the log of `serve` goes there too.
pub(super) struct Output {
    writer: BufWriter<Stdout>,
}

impl Output {
    pub(super) fn stdout() -> Self {
        Self { writer: BufWriter::with_capacity(BUFFER_BYTES, io::stdout()) }
    }

    /// Whether a person watches.
    pub(super) fn is_terminal() -> bool {
        io::stdout().is_terminal()
    }

    /// Writes `bytes` as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|error| failed(&error))
    }

    /// Writes a line.
    pub(super) fn line(&mut self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())?;
        self.bytes(b"\n")
    }

    /// Writes a JSON value on a line.
    pub(super) fn json(&mut self, value: &Value) -> Result<()> {
        self.line(&value.to_string())
    }

    /// Writes rows in columns; the first row is the heading.
    pub(super) fn table(&mut self, rows: &[Vec<String>]) -> Result<()> {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        for row in rows {
            let cells: Vec<String> =
                row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            self.line(cells.join("  ").trim_end())?;
        }
        Ok(())
    }

    /// Hands everything to the system.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.writer.flush().map_err(|error| failed(&error))
    }
}

fn failed(error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Error::ClosedPipe;
    }
    Error::Failed(format!("cannot write to standard output: {error}"))
}

/// What is stored under a key.
pub(super) enum Content {
    /// JSON text.
    Json(String),
    /// Any bytes.
    Raw(Vec<u8>),
}

/// Takes the value out of any message of the API that carries one.
macro_rules! content {
    ($module:ident, $content:expr) => {
        match $content {
            Some(crate::proto::v1::$module::Content::Value(text)) => Some(Content::Json(text)),
            Some(crate::proto::v1::$module::Content::Raw(bytes)) => {
                Some(Content::Raw(bytes.into()))
            }
            None => None,
        }
    };
}

/// One key as it is listed.
pub(super) struct Item {
    pub(super) key: String,
    /// Absent when only keys were asked for.
    pub(super) content: Option<Content>,
    pub(super) version: u64,
    pub(super) ttl: Option<u32>,
}

impl From<crate::proto::v1::GetResponse> for Item {
    fn from(item: crate::proto::v1::GetResponse) -> Self {
        let content = content!(get_response, item.content);
        Self { key: item.key, content, version: item.version, ttl: item.ttl }
    }
}

impl From<crate::proto::v1::Item> for Item {
    fn from(item: crate::proto::v1::Item) -> Self {
        let content = content!(item, item.content);
        Self { key: item.key, content, version: item.version, ttl: item.ttl }
    }
}

impl From<crate::proto::v1::ScanResponse> for Item {
    fn from(item: crate::proto::v1::ScanResponse) -> Self {
        let content = content!(scan_response, item.content);
        Self { key: item.key, content, version: item.version, ttl: item.ttl }
    }
}

impl Item {
    /// One JSON object without line feeds, from which `batch` stores the same bytes again.
    pub(super) fn to_json(&self) -> String {
        use std::fmt::Write as _;
        let mut line = format!("{{\"key\":{}", quoted(&self.key));
        match &self.content {
            Some(Content::Json(text)) if stands_in_a_line(text) => {
                line.push_str(",\"value\":");
                line.push_str(text);
            }
            Some(Content::Json(text)) => {
                line.push_str(",\"text\":");
                line.push_str(&quoted(text));
            }
            Some(Content::Raw(bytes)) => {
                line.push_str(",\"raw\":\"");
                line.push_str(&BASE64.encode(bytes));
                line.push('"');
            }
            None => {}
        }
        let _ = write!(line, ",\"version\":{}", self.version);
        if let Some(ttl) = self.ttl {
            let _ = write!(line, ",\"ttl\":{ttl}");
        }
        line.push('}');
        line
    }

    /// Key and value for people, parted by a tab.
    pub(super) fn to_text(&self) -> String {
        let key = visible(&self.key, false);
        match &self.content {
            None => key.into_owned(),
            Some(Content::Json(text)) => format!("{key}\t{}", visible(text, true)),
            Some(Content::Raw(bytes)) => format!("{key}\traw:{}", BASE64.encode(bytes)),
        }
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Whether JSON text can stand in an object on one line and be cut out again byte for byte.
fn stands_in_a_line(text: &str) -> bool {
    let space = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let bytes = text.as_bytes();
    !bytes.first().is_some_and(space)
        && !bytes.last().is_some_and(space)
        && !bytes.contains(&b'\n')
        && !bytes.contains(&b'\r')
}

/// `text` without control characters: escaped, or for the white space of `json` replaced.
fn visible(text: &str, json: bool) -> Cow<'_, str> {
    use std::fmt::Write as _;
    if !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' if json => shown.push(' '),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(shown, "\\u{:04x}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// `1 entry`, `2 entries`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// A figure of the API, which is a whole number up to 2^53.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and counts are not negative"
)]
pub(super) fn whole(figure: f64) -> u64 {
    figure as u64
}

/// Bytes for people: `1.5 MiB`.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn size(bytes: u64) -> String {
    let units = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    units.iter().find(|(_, unit)| bytes >= *unit).map_or_else(
        || format!("{bytes} B"),
        |(name, unit)| format!("{:.1} {name}", bytes as f64 / *unit as f64),
    )
}

/// A time since a start for people: `3d 4h`, `5m 12s`.
pub(super) fn age(seconds: f64) -> String {
    let seconds = whole(seconds);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(content: Content) -> Item {
        Item { key: "a\"\n".to_owned(), content: Some(content), version: 7, ttl: Some(60) }
    }

    #[test]
    fn an_item_is_one_line_that_keeps_every_byte() {
        for (content, line) in [
            (Content::Json("{ \"x\" : 1.0 }".to_owned()), r#""value":{ "x" : 1.0 }"#),
            (Content::Json("[1,\n2]".to_owned()), r#""text":"[1,\n2]""#),
            (Content::Json(" 1".to_owned()), r#""text":" 1""#),
            (Content::Raw(vec![0, 255]), r#""raw":"AP8=""#),
        ] {
            let expected = format!(r#"{{"key":"a\"\n",{line},"version":7,"ttl":60}}"#);
            assert_eq!(item(content).to_json(), expected);
        }
    }

    #[test]
    fn a_listing_for_people_has_no_control_characters() {
        let shown = item(Content::Json("{\n\"x\":\t\"\u{9b}31m\"}".to_owned())).to_text();
        assert_eq!(shown, "a\"\\n\t{ \"x\": \"\\u009b31m\"}");
        assert_eq!(item(Content::Raw(vec![27])).to_text(), "a\"\\n\traw:Gw==");
    }

    #[test]
    fn sizes_and_ages_are_short() {
        assert_eq!((size(1_023), size(1_536)), ("1023 B".to_owned(), "1.5 KiB".to_owned()));
        assert_eq!((age(61.9), age(90_000.0)), ("1m 1s".to_owned(), "1d 1h".to_owned()));
    }
}
