//! The folder made ready, before anything is registered: if it can't be
//! written to, nothing has to be taken back.

use std::fs::File;
use std::path::{Path, PathBuf};

use handoff::Handoff;
use runtime::file::write_whole;
use runtime::{Exit, Failure};
use secrecy::{ExposeSecret, SecretString};

/// The name of the helper beside this program.
const HELPER: &str = "connect-lifecycle";

/// Puts the lifecycle helper, the agent's CA certificates and the ACL token into
/// the folder, and takes away what an earlier life of the pod left there.
pub(crate) fn prepare(
    handoff: &Handoff,
    helper: Option<PathBuf>,
    ca_pem: &str,
    token: Option<&SecretString>,
) -> Result<(), Failure> {
    let helper = helper.map_or_else(beside_this_program, Ok)?;
    let source = File::open(&helper).map_err(|error| {
        Failure::usage(format_args!(
            "cannot read the lifecycle helper {}: {error}",
            helper.display()
        ))
        .hint("name connect-lifecycle with --helper")
    })?;
    write_whole(&handoff.helper(), 0o555, source)?;
    if !ca_pem.is_empty() {
        write_whole(&handoff.ca(), 0o640, ca_pem.as_bytes())?;
    }
    if let Some(token) = token {
        write_whole(&handoff.token(), 0o600, token.expose_secret().as_bytes())?;
    }
    handoff.unbury()?;
    Ok(())
}

fn beside_this_program() -> Result<PathBuf, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::new(Exit::Failure, format_args!("cannot tell where this program is: {error}"))
            .hint("name connect-lifecycle with --helper")
    })?;
    Ok(program.parent().unwrap_or(Path::new("/")).join(HELPER))
}
