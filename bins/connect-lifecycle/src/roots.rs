//! The roots of Connect's CA, kept up with.
//!
//! Where agents have their certificates from Connect's CA (`auto_encrypt`), a pod that
//! lives long sees several roots. Consul has each new one signed by the one before, so
//! that the pod trusts the agent after one rotation, and asks it for the new root before
//! the next. Both this process and Envoy read the files again that are written here.

use std::convert::Infallible;
use std::time::Duration;

use consul::TlsFiles;
use flags::Report;
use runtime::Failure;
use runtime::retry::jitter;

use crate::pod::Pod;

/// How long the agent holds back its answer while nothing changes.
const WAIT: Duration = Duration::from_secs(600);

/// The pause after an answer that did not come: whoever keeps the registration says why.
const PAUSE: Duration = Duration::from_secs(5);

/// Writes the roots of Connect's CA whenever they change, for as long as it is polled;
/// where the pod does not keep up with them, never.
pub(crate) async fn keep_up(pod: &Pod) -> Infallible {
    if pod.record.agent.tls.ca_path.is_none() {
        return std::future::pending().await;
    }
    let mut known = 0;
    loop {
        match pod.agent.connect_roots_after(known, WAIT).await {
            Ok((roots, index)) => {
                known = index;
                let pem: String =
                    roots.roots.iter().map(|root| with_newline(&root.root_cert)).collect();
                if let Err(failure) = write(pod, &pem) {
                    tracing::warn!("{failure}");
                }
                if index == 0 {
                    tokio::time::sleep(jitter(WAIT)).await;
                }
            }
            Err(error) => {
                tracing::debug!("{error}");
                tokio::time::sleep(jitter(PAUSE)).await;
            }
        }
    }
}

fn with_newline(pem: &str) -> String {
    format!("{}\n", pem.trim_end())
}

/// Writes them, if they hold anything, where this process and Envoy read them.
fn write(pod: &Pod, pem: &str) -> Result<(), Failure> {
    let Pod { handoff, record, .. } = pod;
    let text = TlsFiles { inline_ca_pem: Some(pem.to_owned()), ..TlsFiles::default() };
    handoff.write_roots(&text.ca_pem().map_err(Report::failure)?)?;
    if handoff.envoy_ca().exists() {
        let trusted = record.agent.tls.ca_pem().map_err(Report::failure)?;
        handoff.write_envoy_ca(&bootstrap::ca_secret(&trusted))?;
    }
    Ok(())
}
