//! A probe that the kubelet requests by a path.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use probe::{NotRun, Probe};

use super::look;

/// A probe, and the path of its requests.
#[derive(Clone, Debug)]
pub(crate) struct Relayed {
    pub(crate) path: String,
    probe: Probe,
    /// Whether the last result in the log is a failure.
    is_failing: Arc<AtomicBool>,
}

// === impl Relayed ===

impl FromStr for Relayed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "expected /PATH=JSON".to_owned();
        let (path, probe) = text.split_once('=').ok_or_else(form)?;
        if !path.starts_with('/') {
            return Err(form());
        }
        let probe = probe.parse().map_err(|error: NotRun| error.to_string())?;
        Ok(Self { path: path.to_owned(), probe, is_failing: Arc::default() })
    }
}

impl Relayed {
    /// Runs the probe; logs when its result changes.
    pub(crate) async fn succeeds(&self, pod: IpAddr) -> bool {
        let Self { path, probe, is_failing } = self;
        let result = look(probe, pod).await;
        let was_failing = is_failing.swap(result.is_err(), Ordering::Relaxed);
        let action = &probe.action;
        match &result {
            Ok(()) if was_failing => tracing::info!("the probe {path} ({action}) succeeds again"),
            Err(why) if !was_failing => tracing::info!("the probe {path} ({action}) fails: {why}"),
            Ok(()) | Err(_) => {}
        }
        result.is_ok()
    }
}
