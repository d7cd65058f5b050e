//! The folder made ready, before anything is registered: if it can't be
//! written to, nothing has to be taken back.

use std::fs::File;
use std::path::{Path, PathBuf};

use consul::{Config, TlsFiles};
use handoff::Handoff;
use runtime::Failure;
use runtime::file::write_whole;
use secrecy::ExposeSecret;

/// Takes away what a process that was killed left half written in the folder,
/// and puts there what the agent is spoken to with. Returns the files of TLS as
/// the pod's other containers see them.
pub(crate) fn prepare(handoff: &Handoff, config: &Config) -> Result<TlsFiles, Failure> {
    handoff.sweep()?;
    if let Some(auth) = &config.http_auth {
        write_whole(&handoff.http_auth(), 0o600, auth.expose_secret().as_bytes())?;
    }
    let ca_pem = config.tls.ca_pem()?;
    if !ca_pem.is_empty() {
        write_whole(&handoff.ca(), 0o640, ca_pem.as_bytes())?;
    }
    let TlsFiles { client_cert, client_key, server_name, .. } = &config.tls;
    Ok(TlsFiles {
        ca_file: (!ca_pem.is_empty()).then(|| handoff.ca()),
        client_cert: copy(client_cert.as_deref(), handoff.client_cert(), 0o640)?,
        client_key: copy(client_key.as_deref(), handoff.client_key(), 0o600)?,
        server_name: server_name.clone(),
        ..TlsFiles::default()
    })
}

/// Copies a file, if there is one to copy; where to, then.
fn copy(from: Option<&Path>, to: PathBuf, mode: u32) -> Result<Option<PathBuf>, Failure> {
    let Some(from) = from else { return Ok(None) };
    let source = File::open(from).map_err(|error| {
        Failure::usage(format_args!("cannot read {}: {error}", from.display()))
            .hint("check --client-cert and --client-key")
    })?;
    write_whole(&to, mode, source)?;
    Ok(Some(to))
}
