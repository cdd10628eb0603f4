//! `torc config default` and `torc config check`.

use std::process::ExitCode;

use anyhow::Context as _;
use torc_node::config::{Layers, default_config};

use crate::args::ConfigCommand;
use crate::output;

pub(crate) fn run(command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Default => output::raw(default_config().as_bytes())?,
        ConfigCommand::Check { file } => {
            let text = read(file)?;
            let wrong = |error| anyhow::anyhow!("{}: {error}", file.display());
            let mut layers = Layers::new();
            layers.file(&text).map_err(wrong)?;
            layers.settings().map_err(wrong)?;
            for warning in layers.warnings() {
                output::line(format!("{}: {warning}", file.display()))?;
            }
            output::line(format!("{}: valid", file.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a configuration file, which is no longer than one can be.
pub(crate) fn read(file: &std::path::Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let open =
        std::fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut text = String::new();
    open.take(torc_node::config::FILE_BYTES_MAX as u64 + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {} as UTF-8 text", file.display()))?;
    Ok(text)
}
