//! Volumes and pull secrets of the pod.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, LocalObjectReference, ProjectedVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::json::patch::Text;
use crate::names::{TOKEN_VOLUME, VOLUME};

/// The volume that the injected containers share. It is in memory, because it holds secrets.
pub(crate) fn volume() -> Text {
    static SHARED: LazyLock<Text> = LazyLock::new(|| {
        Text::of(&Volume {
            name: VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                // The files need a few MiB. Without a limit, they could fill half of the node's
                // memory.
                size_limit: Some(Quantity("32Mi".to_owned())),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        })
    });
    SHARED.clone()
}

/// The volume with a token of the pod's service account, which the pod needs to log in. The
/// token that Kubernetes mounts by default is missing if the pod has disabled
/// `automountServiceAccountToken`.
pub(crate) fn token_volume() -> Volume {
    /// Lifetime of a token. The kubelet replaces the token before it expires.
    const SECONDS: i64 = 3600;
    let token = ServiceAccountTokenProjection {
        expiration_seconds: Some(SECONDS),
        path: "token".to_owned(),
        ..ServiceAccountTokenProjection::default()
    };
    let source =
        VolumeProjection { service_account_token: Some(token), ..VolumeProjection::default() };
    Volume {
        name: TOKEN_VOLUME.to_owned(),
        projected: Some(ProjectedVolumeSource {
            sources: Some(vec![source]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

pub(crate) fn pull_secret(name: &str) -> LocalObjectReference {
    LocalObjectReference { name: name.to_owned() }
}
