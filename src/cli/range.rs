//! `range` and `scan`: many keys, in order.

use std::io::Write as _;

use super::args::{Connection, Form, FormArgs, Reading};
use super::error::Result;
use super::output::{Item, Output};
use crate::proto::v1::{RangeRequest, ScanRequest};

/// Which keys, and what of them.
#[derive(clap::Args)]
struct Which {
    /// Only keys that begin with this text
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// First key; absent: from the first one there is
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    start: String,
    /// First key beyond the range; absent: to the last one there is
    #[arg(long, value_name = "KEY", default_value = "", hide_default_value = true)]
    end: String,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
}

const RANGE_HELP: &str = "One page is at most 1,000 keys unless --limit says otherwise, and at most 4 MiB. When more follow,
the token of the next page is told: on standard error, or as nextPageToken in JSON.
`kvstore scan` goes on to the end by itself.";

/// `kvstore range`.
#[derive(clap::Args)]
#[command(after_help = RANGE_HELP)]
pub(super) struct Range {
    #[command(flatten)]
    which: Which,
    /// Most keys in this page
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u32>,
    /// Continue after the page that told this token; the other options as they were
    #[arg(long, value_name = "TOKEN", default_value = "", hide_default_value = true)]
    page_token: String,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Range {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let request = RangeRequest {
            start_key: self.which.start,
            end_key: self.which.end,
            prefix: self.which.prefix,
            limit: self.limit,
            reverse: self.which.reverse,
            keys_only: self.which.keys_only,
            page_token: self.page_token,
            consistency: self.reading.consistency(),
        };
        let page = self.connection.client().range(request).await?;
        let items = page.items.into_iter().map(Item::from);
        if self.form.is_json() {
            let items: Vec<String> = items.map(|item| item.to_json()).collect();
            let next = serde_json::Value::from(page.next_page_token);
            return output
                .line(&format!("{{\"items\":[{}],\"nextPageToken\":{next}}}", items.join(",")));
        }
        for item in items {
            output.line(&item.to_text())?;
        }
        output.finish()?;
        if !page.next_page_token.is_empty() {
            let token = page.next_page_token;
            let _ = writeln!(std::io::stderr(), "kvstore: more follow: --page-token {token}");
        }
        Ok(())
    }
}

const SCAN_HELP: &str = "Each line is a JSON object that `kvstore batch` takes back, byte for byte:
  kvstore scan --prefix user/ > users.ndjson
  kvstore batch users.ndjson --endpoint http://other:9090
Keys that are written meanwhile may or may not be among them; it is not the state of one moment.
Of keys that expire the seconds left are kept; they count from when the key is stored again.
With `--output text` each line is a key, a tab and its value.";

/// `kvstore scan`.
#[derive(clap::Args)]
#[command(after_help = SCAN_HELP)]
pub(super) struct Scan {
    #[command(flatten)]
    which: Which,
    /// Most keys in all
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    form: FormArgs,
    #[command(flatten)]
    connection: Connection,
}

impl Scan {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        let request = ScanRequest {
            start_key: self.which.start,
            end_key: self.which.end,
            prefix: self.which.prefix,
            limit: self.limit,
            reverse: self.which.reverse,
            keys_only: self.which.keys_only,
            consistency: self.reading.consistency(),
        };
        let client = self.connection.client();
        let mut items = client.scan(request);
        while let Some(item) = items.next().await? {
            let item = Item::from(item);
            let text = self.form.form == Some(Form::Text);
            output.line(&if text { item.to_text() } else { item.to_json() })?;
        }
        Ok(())
    }
}
