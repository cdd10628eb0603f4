//! `torc import`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use torc_client::{Client, ClientConfig, Routing};
use torc_import::{Columns, Format, Import, Progress, Summary};

use crate::args::{DataArgs, Output};
use crate::exit::{REFUSED, Usage};
use crate::output;

/// How long a batch is tried while the cluster is away or has no quorum.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time for one batch, unless --deadline names another.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(
    after_help = "A run that was interrupted goes on where it was: the same command again. Import before clients \
    write to the same keys: a record replaces what its key held."
)]
pub(crate) struct ImportArgs {
    /// The export
    export: PathBuf,
    /// Its form [default: by the end of its name: .csv, .jsonl, .ndjson, .sql]
    #[arg(long, value_enum)]
    format: Option<Form>,
    /// Table of a SQL dump; others are passed over
    #[arg(long, value_name = "NAME", default_value = "kv")]
    table: String,
    /// Column of the key
    #[arg(long, value_name = "NAME", default_value = "key")]
    key_column: String,
    /// Column of the value
    #[arg(long, value_name = "NAME", default_value = "value")]
    value_column: String,
    /// File that says how far it is [default: the export's name and .checkpoint]
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Store nothing, only compare
    #[arg(long)]
    verify_only: bool,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    data: DataArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Csv,
    Jsonl,
    Sql,
}

pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let format = match args.format {
        Some(Form::Csv) => Format::Csv,
        Some(Form::Jsonl) => Format::JsonLines,
        Some(Form::Sql) => Format::Sql,
        None => by_name(&args.export)?,
    };
    let checkpoint = args.checkpoint.unwrap_or_else(|| {
        let mut name = args.export.clone().into_os_string();
        name.push(".checkpoint");
        name.into()
    });
    let import = Import {
        export: args.export,
        format,
        columns: Columns {
            table: args.table,
            key: args.key_column,
            value: args.value_column,
        },
        bucket: args.data.bucket,
        checkpoint,
        verify_only: args.verify_only,
        patience: PATIENCE,
    };
    let mut config = ClientConfig::new(args.data.node);
    config.routing = Routing::InTurn;
    config.deadline = args.data.deadline.unwrap_or(DEADLINE);
    // Storing the same record twice leaves the same value.
    config.retry_unknown = true;
    let client = Client::new(config)?;
    let mut said = output::Progress::new();
    let summary = torc_import::run(&import, &client, &mut |step| {
        said.say(&match step {
            Progress::Resumed(records) => {
                format!("{records} records were stored by an earlier run")
            }
            Progress::Stored(records) => format!("{records} records stored"),
            Progress::Verified(done, keys) => format!("{done} of {keys} keys read back"),
        });
    })
    .await
    .with_context(|| format!("cannot import {}", import.export.display()))?;
    said.finish();
    match args.output {
        Output::Json => output::json(&summary)?,
        Output::Text => output::line(text(&summary))?,
    }
    if summary.is_equal() {
        Ok(ExitCode::SUCCESS)
    } else {
        Ok(ExitCode::from(REFUSED))
    }
}

fn by_name(export: &Path) -> anyhow::Result<Format> {
    let ending = export.extension().unwrap_or_default().to_string_lossy();
    Ok(match ending.to_ascii_lowercase().as_str() {
        "csv" => Format::Csv,
        "jsonl" | "ndjson" => Format::JsonLines,
        "sql" => Format::Sql,
        _ => {
            let name = export.display();
            return Err(Usage(format!(
                "the name {name} does not say its form; give --format csv, jsonl or sql"
            ))
            .into());
        }
    })
}

fn text(summary: &Summary) -> String {
    let Summary {
        records,
        keys,
        equal,
        missing,
        different,
        ..
    } = summary;
    let verdict = if summary.is_equal() {
        "EQUAL: the cluster holds every key of the export with its value".to_owned()
    } else {
        format!(
            "NOT EQUAL: {missing} keys are missing, {different} have another value; the first: {}",
            summary.examples.join(", ")
        )
    };
    format!(
        "records   {records}\nkeys      {keys}\nequal     {equal}\nchecksum  {} (export)\n          {} (cluster)\n{verdict}",
        summary.checksum_export, summary.checksum_cluster
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_says_its_form_by_its_name() {
        for (name, format) in [
            ("a.csv", Format::Csv),
            ("b.NDJSON", Format::JsonLines),
            ("/x/c.sql", Format::Sql),
        ] {
            assert_eq!(by_name(Path::new(name)).expect(name), format);
        }
        assert!(by_name(Path::new("dump")).is_err());
    }
}
