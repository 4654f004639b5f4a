//! `vaultfs serve --data DIR key …`: API keys, beside a running server or without one.
//!
//! A key is shown once, when it is made: the vault keeps a keyed hash of it. What is revoked is
//! refused from the next request on.

use std::path::{Path, PathBuf};

use crate::cli::exit::{Exit, Failure};
use crate::cli::output;
use crate::cli::output::Output;
use crate::display;
use crate::server::instance::serve;
use crate::server::instance::serve::ServeOptions;
use crate::server::service::{Service, ServiceError};
use crate::server::store::{Permission, Permissions, StoreError};
use crate::sys::stdio;

/// Manage the vault's API keys.
#[derive(Debug, clap::Subcommand)]
pub enum ServeCommand {
    /// Make, list and revoke API keys
    #[command(subcommand)]
    Key(ApiKeyCommand),
}

/// What to do with API keys.
#[derive(Debug, clap::Subcommand)]
pub enum ApiKeyCommand {
    /// Make an API key and print it, this once
    Add {
        /// What the key may do
        #[arg(
            long,
            value_name = "LIST",
            value_delimiter = ',',
            default_value = "read,write,delete,keys",
            value_parser = permission
        )]
        permissions: Vec<Permission>,
        /// What to call it in the list
        #[arg(long, default_value = "unnamed")]
        name: String,
    },
    /// List the keys: id, permissions, when made, name
    List {
        /// Print JSON: an array of keys with id, permissions, created_at, name
        #[arg(long)]
        json: bool,
    },
    /// Refuse a key from now on
    Revoke {
        /// The key's id, as listed
        id: String,
    },
}

fn permission(text: &str) -> Result<Permission, String> {
    Permission::ALL
        .into_iter()
        .find(|p| p.name() == text)
        .ok_or_else(|| "permissions are read, write, delete, keys".to_owned())
}

/// Runs the command.
pub async fn run(data: &Path, master: Option<PathBuf>, command: ServeCommand) -> anyhow::Result<()> {
    let options = ServeOptions { master_key_file: master, ..ServeOptions::default() };
    let service = serve::open_beside(data, options).await?;
    let ServeCommand::Key(command) = command;
    match command {
        ApiKeyCommand::Add { permissions, name } => {
            let key = serve::new_api_key()?;
            let row = service.add_key(&key, &name, Permissions::of(&permissions)).await?;
            // The one place where a key is printed: it was asked for, and is not kept anywhere.
            let mut out = Output::new();
            out.line(key.expose())?;
            out.finish()?;
            stdio::line(format_args!("made {} ({}): the key is shown this once", row.id, row.permissions));
        }
        ApiKeyCommand::List { json } => list(&service, json).await?,
        ApiKeyCommand::Revoke { id } => service.revoke_key(&id).await.map_err(|e| match e {
            ServiceError::Store(StoreError::NotFound) => {
                anyhow::Error::new(Failure::new(Exit::NotFound, "there is no key with this id: see key list"))
            }
            e => e.into(),
        })?,
    }
    Ok(())
}

async fn list(service: &Service, json: bool) -> anyhow::Result<()> {
    let keys = service.keys().await?;
    if json {
        let shown = keys.iter().map(|key| {
            let may = Permission::ALL.into_iter().filter(|&p| key.permissions.allow(p)).map(Permission::name);
            serde_json::json!({
                "id": key.id, "permissions": may.collect::<Vec<_>>(), "created_at": key.created_at.to_string(), "name": key.name
            })
        });
        return Ok(output::print_array(shown).map(drop)?);
    }
    let mut out = Output::new();
    for key in keys {
        let name = display::text(&key.name);
        let line = format!("{}\t{}\t{}\t{name}\n", key.id, key.permissions, key.created_at);
        out.bytes(line.as_bytes())?;
    }
    Ok(out.finish().map(drop)?)
}
