//! `backup`: made by a running node, checked and taken back on the spot.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::json;

use super::args::{ConfigArgs, Connection, FormArgs};
use super::error::Result;
use super::output::{Output, size, whole};
use crate::backup::{self, Manifest};
use crate::proto::admin::CreateBackupRequest;
use crate::server;

/// `kvstore backup ...`.
#[derive(Subcommand)]
pub(super) enum Command {
    /// Let a node make a backup of its data below its kvstore.backup.dir; prints where it is
    Create {
        /// Name of the backup; absent: the time
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        form: FormArgs,
        #[command(flatten)]
        connection: Connection,
    },
    /// Check every file of a backup on this machine
    Verify {
        /// Directory of the backup
        backup: PathBuf,
        #[command(flatten)]
        form: FormArgs,
    },
    /// Fill the empty data directory of a node that does not run with a backup on this machine
    Restore {
        /// Directory of the backup
        backup: PathBuf,
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        form: FormArgs,
    },
}

impl Command {
    pub(super) fn run(self, output: &mut Output) -> Result<()> {
        match self {
            Self::Create { name, form, connection } => {
                super::block_on(create(name, &form, &connection, output))
            }
            Self::Verify { backup, form } => {
                let manifest = backup::verify(&backup)?;
                let said = format!("{} is whole: {}", backup.display(), summary(&manifest));
                form.done(output, &said, &object(&manifest))
            }
            Self::Restore { backup, config, form } => {
                let loaded = config.load()?;
                let manifest = server::restore(&backup, &loaded.config)?;
                let directory = loaded.config.storage.data_dir.display();
                let said = format!("restored into {directory}: {}", summary(&manifest));
                form.done(output, &said, &object(&manifest))
            }
        }
    }
}

async fn create(
    name: Option<String>,
    form: &FormArgs,
    connection: &Connection,
    output: &mut Output,
) -> Result<()> {
    let made = connection.client().create_backup(CreateBackupRequest { name }).await?;
    let (bytes, keys) = (whole(made.bytes), whole(made.keys));
    let said = format!("{}: {keys} keys, {} files, {}", made.path, made.files, size(bytes));
    let object = json!({ "path": made.path, "keys": keys, "files": made.files, "bytes": bytes });
    form.done(output, &said, &object)
}

fn summary(manifest: &Manifest) -> String {
    let (files, bytes) = (manifest.files(), size(manifest.bytes()));
    let Manifest { node, engine, shards, .. } = manifest;
    format!("{files} files, {bytes}, {shards} shards of {node} on {engine}")
}

fn object(manifest: &Manifest) -> serde_json::Value {
    json!({
        "node": manifest.node,
        "engine": manifest.engine,
        "shards": manifest.shards,
        "files": manifest.files(),
        "bytes": manifest.bytes(),
    })
}
