//! Follows the roots of Connect's CA, which signs the agents' certificates with
//! `auto_encrypt`.
//!
//! Consul cross-signs each new root with the one before. So a pod still trusts its agent
//! after one rotation, but not after two, unless it has read the new root in between. This
//! process and Envoy both reload the files that are written here.

use std::convert::Infallible;
use std::time::Duration;

use consul::TlsFiles;
use consul::blocking::Follow;
use flags::Report;
use runtime::Failure;
use runtime::retry::jitter;

use crate::pod::Pod;

/// Wait time of the blocking query.
const WAIT: Duration = Duration::from_secs(600);

/// Longest pause after a failed request. The keeper of the registration logs why requests
/// fail.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes the roots of Connect's CA whenever they change. Never ends; does nothing unless
/// the pod was registered with `--auto-encrypt`.
pub(crate) async fn follow(pod: &Pod) -> Infallible {
    if pod.record.agent.tls.ca_path.is_none() {
        return std::future::pending().await;
    }
    let mut follow = Follow::new(WAIT);
    let mut written = None;
    loop {
        match pod.agent.next_connect_roots(&mut follow).await {
            Ok(roots) => {
                let pem: Vec<_> = roots.roots.into_iter().map(|root| root.root_cert).collect();
                let pem = Some(pem.join("\n"));
                // The index also changes without the roots, and each write is synced to the
                // disk.
                if written != pem {
                    match write(pod, pem.clone()) {
                        Ok(()) => written = pem,
                        Err(failure) => tracing::warn!("{failure}"),
                    }
                }
            }
            Err(error) => {
                tracing::debug!("{error}");
                tokio::time::sleep(jitter(PAUSE)).await;
            }
        }
    }
}

/// Writes the roots for this process, and all trusted CAs for Envoy if it watches them.
/// Fails if there is no certificate in `pem`.
fn write(pod: &Pod, pem: Option<String>) -> Result<(), Failure> {
    let Pod { handoff, record, .. } = pod;
    let text = TlsFiles { inline_ca_pem: pem, ..TlsFiles::default() };
    handoff.write_roots(&text.ca_pem().map_err(Report::failure)?)?;
    if handoff.envoy_ca().exists() {
        let trusted = record.agent.tls.ca_pem().map_err(Report::failure)?;
        handoff.write_envoy_ca(&bootstrap::ca_secret(&trusted))?;
    }
    Ok(())
}
