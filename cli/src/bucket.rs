//! `torc bucket list`, `create`, `update`, `delete`.

use std::process::ExitCode;
use std::time::Duration;

use torc_client::{Admin, BucketView, BucketWish};

use crate::args::{AdminArgs, BucketCommand, BucketSettings, Output};
use crate::exit::Usage;
use crate::output;

const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn run(command: BucketCommand) -> anyhow::Result<ExitCode> {
    match command {
        BucketCommand::List(args) => {
            let buckets = connect(&args)?.buckets().await?;
            match args.output {
                Output::Json => output::json(&serde_json::json!({ "buckets": buckets }))?,
                Output::Text => output::line(table(&buckets))?,
            }
        }
        BucketCommand::Create {
            name,
            settings,
            admin,
        } => {
            let connection = connect(&admin)?;
            if connection.buckets().await?.iter().any(|b| b.name == name) {
                anyhow::bail!(
                    "there is a bucket `{name}` already; `torc bucket update` changes it"
                );
            }
            put(&connection, &name, settings, admin.output).await?;
        }
        BucketCommand::Update {
            name,
            settings,
            admin,
        } => {
            let connection = connect(&admin)?;
            if !connection.buckets().await?.iter().any(|b| b.name == name) {
                anyhow::bail!("there is no bucket `{name}`; `torc bucket create` makes it");
            }
            put(&connection, &name, settings, admin.output).await?;
        }
        BucketCommand::Delete { name, yes, admin } => {
            if !yes {
                return Err(Usage(format!(
                    "this deletes the bucket `{name}` with all of its keys: confirm it with --yes"
                ))
                .into());
            }
            connect(&admin)?.delete_bucket(&name).await?;
            match admin.output {
                Output::Json => output::json(&serde_json::json!({ "deleted": name }))?,
                Output::Text => output::line(format!("deleted {name}"))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(args: &AdminArgs) -> anyhow::Result<Admin> {
    Ok(Admin::new(args.admin.clone(), DEADLINE)?)
}

async fn put(
    admin: &Admin,
    name: &str,
    settings: BucketSettings,
    output: Output,
) -> anyhow::Result<()> {
    let ttl = settings.ttl.map(|ttl| (ttl != "none").then_some(ttl));
    let wish = BucketWish {
        n: settings.n,
        r: settings.r.map(|r| r.to_string()),
        w: settings.w.map(|w| w.to_string()),
        conflict: settings.conflict,
        ttl,
        read_repair: settings.read_repair,
        sloppy: settings.sloppy,
    };
    let bucket = admin.put_bucket(name, &wish).await?;
    match output {
        Output::Json => output::json(&bucket),
        Output::Text => output::line(table(std::slice::from_ref(&bucket))),
    }
}

fn table(buckets: &[BucketView]) -> String {
    let rows = buckets.iter().map(|bucket| {
        vec![
            bucket.name.clone(),
            bucket.n.to_string(),
            bucket.r.clone(),
            bucket.w.clone(),
            bucket.conflict.clone(),
            bucket.ttl.clone().unwrap_or_else(|| "-".to_owned()),
            bucket.read_repair.clone(),
            if bucket.sloppy { "yes" } else { "no" }.to_owned(),
        ]
    });
    output::table(
        &[
            "BUCKET",
            "N",
            "R",
            "W",
            "CONFLICT",
            "TTL",
            "READ REPAIR",
            "SLOPPY",
        ],
        rows,
    )
}
