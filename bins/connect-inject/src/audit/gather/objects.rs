//! Reads objects of the Kubernetes API: one by its name, or a list page by page.

use std::time::Duration;

use kube::api::{GetParams, ListParams};
use kube::core::Request;
use runtime::{Exit, Failure};
use serde::Deserialize;
use serde_json::Value;

use super::super::Settings;
use super::Seen;
use crate::kubernetes::Refusal;

/// Number of objects in a page; a pod may have 100 KiB.
const PAGE: u32 = 200;

/// Timeout of each request.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    metadata: PageMeta,
    items: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PageMeta {
    r#continue: String,
}

/// Reads an object; `None` if it does not exist.
pub(super) async fn get(
    settings: &Settings,
    path: &str,
    name: &str,
    what: &str,
) -> Result<Option<Value>, Refusal> {
    let request = Request::new(path).get(name, &GetParams::default());
    let request = request.map_err(kube::Error::BuildRequest);
    match settings.api.read(PATIENCE, what, request).await {
        Ok(object) => Ok(Some(object)),
        Err(Refusal::Missing) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Calls `take` for each object of a list, which it reads page by page.
pub(super) async fn each(
    settings: &Settings,
    path: &str,
    what: &str,
    mut take: impl FnMut(Value),
) -> Result<(), Refusal> {
    let mut next = String::new();
    loop {
        let mut parameters = ListParams::default().limit(PAGE);
        if !next.is_empty() {
            parameters = parameters.continue_token(&next);
        }
        let request = Request::new(path).list(&parameters).map_err(kube::Error::BuildRequest);
        let page: Page = settings.api.read(PATIENCE, what, request).await?;
        page.items.into_iter().for_each(&mut take);
        next = page.metadata.r#continue;
        if next.is_empty() {
            return Ok(());
        }
    }
}

/// Turns a denied request into a finding; the result is `false` then.
pub(super) fn allowed(
    read: Result<(), Refusal>,
    seen: &mut Seen,
    what: &str,
) -> Result<bool, Failure> {
    match read {
        Ok(()) => Ok(true),
        Err(Refusal::Failed(problem)) => Err(Failure::new(Exit::Unreachable, problem)
            .hint("check --kubeconfig, and that the API server can be reached from here")),
        Err(Refusal::Denied(problem)) => {
            seen.unreadable("Kubernetes", what, problem);
            Ok(false)
        }
        Err(Refusal::Missing) => {
            seen.unreadable("Kubernetes", what, "the API server does not know them");
            Ok(false)
        }
    }
}

/// The text of a field; empty if the field is absent.
pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
