//! `torc pki init` and `torc pki issue`.

use std::process::ExitCode;

use torc_node::pki;

use crate::args::PkiCommand;
use crate::output;

pub(crate) fn run(command: PkiCommand) -> anyhow::Result<ExitCode> {
    match command {
        PkiCommand::Init { out } => {
            pki::init(&out)?;
            output::line(format!(
                "made a certificate authority in {0}: {1} goes to every node, {2} stays where certificates are \
                 issued (`torc pki issue NAME --pki {0}`)",
                out.display(),
                pki::CA_CERTIFICATE,
                pki::CA_KEY
            ))?;
        }
        PkiCommand::Issue { name, pki } => {
            let issued = pki::issue(&pki, &name)?;
            output::line(format!(
                "issued {} and {}: copy both and {} to the node's --pki folder",
                issued.certificate.display(),
                issued.key.display(),
                pki::CA_CERTIFICATE
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
