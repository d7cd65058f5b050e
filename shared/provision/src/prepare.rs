//! Prepares the directory before anything is registered, so that a directory that can't
//! be written needs no rollback.

use std::fs::File;
use std::path::Path;

use consul::{Config, TlsFiles};
use flags::Report;
use handoff::Handoff;
use runtime::Failure;
use runtime::file::write_whole;
use secrecy::ExposeSecret;

/// Removes temporary files of a process that was killed, and copies the files for the
/// connection to the agent into the directory. Returns the TLS files by the paths that
/// the pod's other containers see: with [`Trust::Roots`], the learned roots are among them.
pub fn prepare(handoff: &Handoff, config: &Config, trust: Trust) -> Result<TlsFiles, Failure> {
    handoff.sweep()?;
    if let Some(auth) = &config.http_auth {
        write_whole(&handoff.http_auth(), 0o600, auth.expose_secret().as_bytes())?;
    }
    let ca_pem = config.tls.ca_pem().map_err(Report::failure)?;
    if !ca_pem.is_empty() {
        write_whole(&handoff.ca(), 0o640, ca_pem.as_bytes())?;
        if trust == Trust::Roots {
            handoff.write_roots(&ca_pem)?;
        }
    }
    copy(config.tls.client_cert.as_deref(), &handoff.client_cert(), 0o640)?;
    copy(config.tls.client_key.as_deref(), &handoff.client_key(), 0o600)?;
    Ok(copies(handoff, &config.tls, trust))
}

/// Whom to trust for as long as the pod lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The CA certificates that were given.
    Given,
    /// Those, and the current roots of Connect's CA, which signs the agents' certificates
    /// (`auto_encrypt`).
    Roots,
}

// === impl Trust ===

impl Trust {
    /// By the flag `--auto-encrypt`.
    pub fn of(auto_encrypt: bool) -> Self {
        if auto_encrypt { Self::Roots } else { Self::Given }
    }

    /// Adds the roots that an earlier run in this directory learned: since the pod was
    /// created, Connect's CA may have been rotated.
    pub fn remember(self, handoff: &Handoff, tls: &mut TlsFiles) {
        let roots = handoff.roots();
        if self == Self::Roots && tls.ca_path.is_none() && roots.is_dir() {
            tls.ca_path = Some(roots);
        }
    }
}

/// The TLS files by the paths that the pod's other containers see.
pub fn copies(handoff: &Handoff, tls: &TlsFiles, trust: Trust) -> TlsFiles {
    let TlsFiles { client_cert, client_key, server_name, skip_verify, .. } = tls;
    TlsFiles {
        ca_file: tls.has_ca().then(|| handoff.ca()),
        ca_path: (tls.has_ca() && trust == Trust::Roots).then(|| handoff.roots()),
        client_cert: client_cert.as_ref().map(|_| handoff.client_cert()),
        client_key: client_key.as_ref().map(|_| handoff.client_key()),
        server_name: server_name.clone(),
        skip_verify: *skip_verify,
        ..TlsFiles::default()
    }
}

fn copy(from: Option<&Path>, to: &Path, mode: u32) -> Result<(), Failure> {
    let Some(from) = from else { return Ok(()) };
    let source = File::open(from).map_err(|error| {
        Failure::usage(format_args!("cannot read {}: {error}", from.display()))
            .hint("check --client-cert and --client-key")
    })?;
    write_whole(to, mode, source)?;
    Ok(())
}
