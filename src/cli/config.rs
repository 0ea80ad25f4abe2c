//! `config`: what a node would run with, or runs with, and who said so.

use serde_json::{Value, json};

use super::args::{ConfigArgs, FormArgs};
use super::error::{Error, Result};
use super::output::Output;
use crate::config::Setting;
use crate::net::{Client, Endpoint};
use crate::proto::admin::{ConfigValue, GetConfigRequest};

const HELP: &str =
    "Without --endpoint: what `kvstore serve` with the same options would run with, here and now.
Later origins win: default, application.yml, application-{profile}.yml, environment, --set.
Secrets are shown as ******.";

/// `kvstore config`.
#[derive(clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    // Not from the environment: a script that talks to a cluster must not change what this shows.
    /// Ask the node that runs there what it runs with
    #[arg(long, value_name = "URL", conflicts_with = "set")]
    endpoint: Option<Endpoint>,
    #[command(flatten)]
    form: FormArgs,
}

/// One value.
struct Shown {
    key: String,
    value: String,
    origin: String,
    ignored: Option<&'static str>,
}

impl Args {
    pub(super) fn run(self, output: &mut Output) -> Result<()> {
        let values: Vec<Shown> = match self.endpoint {
            Some(endpoint) => {
                let client = Client::new([endpoint], Client::TIMEOUT);
                let found = super::block_on(async {
                    client.get_config(GetConfigRequest {}).await.map_err(Error::from)
                })?;
                found.values.into_iter().map(Shown::from).collect()
            }
            None => self.config.load()?.settings.into_iter().map(Shown::from).collect(),
        };
        show(output, &values, self.form.is_json())
    }
}

impl From<ConfigValue> for Shown {
    fn from(ConfigValue { key, value, origin }: ConfigValue) -> Self {
        Self { key, value, origin, ignored: None }
    }
}

impl From<Setting> for Shown {
    fn from(setting: Setting) -> Self {
        let Setting { key, value, origin, ignored } = setting;
        Self { key, value, origin: origin.to_string(), ignored }
    }
}

fn show(output: &mut Output, values: &[Shown], json: bool) -> Result<()> {
    if json {
        let values = values.iter().map(|shown| {
            let mut value =
                json!({ "key": shown.key, "value": shown.value, "origin": shown.origin });
            if let Some(why) = shown.ignored {
                value["ignored"] = why.into();
            }
            value
        });
        return output.json(&json!({ "values": values.collect::<Vec<Value>>() }));
    }
    let heading = ["KEY", "VALUE", "ORIGIN"].map(str::to_owned).to_vec();
    let rows = values.iter().map(|shown| {
        let ignored = shown.ignored.map(|why| format!(" (ignored: {why})")).unwrap_or_default();
        // An empty cell would let the origin pass for the value.
        let value = if shown.value.is_empty() { "\"\"" } else { &shown.value };
        vec![shown.key.clone(), value.to_owned(), format!("{}{ignored}", shown.origin)]
    });
    output.table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}
