//! The cases.
//!
//! - [`start`]: the pod's start
//! - [`end`]: the pod's end
//! - [`footprint`]: sizes, and an idle sidecar
//! - [`webhook`]: the injector under load, and ([`ready`]) its start
//! - [`scale`]: many pods on one node
//! - [`pods`]: pods on a real Kubernetes
//! - [`writes`]: cost of pods for the servers
//! - [`redirect`]: the redirect rules of a transparent pod
//! - [`audit`]: the audit of a large cluster
//! - [`parsers`]: criterion's results for the parsers

mod audit;
mod end;
mod footprint;
mod parsers;
mod pods;
mod ready;
mod redirect;
mod scale;
pub(crate) mod start;
pub(crate) mod webhook;
mod writes;

use harness::Result;
use serde_json::{Value, json};

use crate::{Found, Plan};

/// A case.
pub struct Case {
    /// Name on the command line.
    pub name: &'static str,
    /// Title in the report.
    pub title: &'static str,
    run: fn(&Plan) -> Result<Found>,
}

/// The cases that need a cluster. They run only on request and without the other cases, which
/// the cluster would disturb.
pub const CLUSTER_CASES: &[Case] =
    &[Case { name: "pods", title: "Pods on Kubernetes", run: pods::run }];

/// All other cases, in the order in which they run.
pub const CASES: &[Case] = &[
    Case { name: "start", title: "The pod's start", run: start::run },
    Case { name: "end", title: "The pod's end", run: end::run },
    Case { name: "footprint", title: "Footprint", run: footprint::run },
    Case { name: "webhook", title: "The webhook", run: webhook::run },
    Case { name: "scale", title: "Many pods on one node", run: scale::run },
    Case { name: "writes", title: "What pods cost the servers", run: writes::run },
    Case { name: "redirect", title: "The redirect rules", run: redirect::run },
    Case { name: "audit", title: "The audit", run: audit::run },
    Case { name: "parsers", title: "The parsers", run: parsers::run },
];

// === impl Case ===

impl Case {
    /// Runs the case, in a new thread, because a node's network namespace is its thread's.
    ///
    /// # Errors
    /// A program failed. Failed runs are not measured.
    pub fn measure(&self, plan: &Plan) -> Result<Found> {
        let run = self.run;
        std::thread::scope(|scope| scope.spawn(|| run(plan)).join())
            .unwrap_or_else(|_| Err("the case panicked".into()))
    }
}

/// A kubeconfig file for that cluster.
fn kubeconfig(cluster: &Value) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    })
    .to_string()
}
