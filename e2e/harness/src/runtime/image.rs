//! Stand-ins for container images: a root made of this machine's files, and an image
//! configuration.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Result;
use crate::parts::Parts;
use crate::runtime::container::Mount;

/// The image of `connect-init`, as passed to the injector.
pub const INIT: &str = "localhost/connect-init:test";
/// The image of Envoy, as passed to the injector.
pub const ENVOY: &str = "localhost/envoy:test";

/// The image of an application that speaks HTTP/1, HTTP/2, gRPC and websocket.
pub const APPLICATION: &str = "localhost/application:test";

#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Mounts in its root.
    pub mounts: Vec<Mount>,
    /// Symbolic links in its root: link, then target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Default command.
    pub entrypoint: Vec<String>,
    /// Value of `PATH`.
    pub path: String,
    /// Default user.
    pub user: u32,
}

/// Finds the image of that name. An archive is unpacked to `folder`.
///
/// # Errors
/// There is no stand-in for it.
pub fn find(name: &str, parts: &Parts, folder: &Path) -> Result<Image> {
    match name {
        INIT => match &parts.init_image {
            Some(archive) => unpack(archive, folder),
            None => Ok(init(parts)),
        },
        ENVOY => Ok(envoy(parts)),
        "hashicorp/http-echo:latest" => Ok(own(parts, "http-echo")),
        APPLICATION => Ok(own(parts, "application")),
        // The machine's own shell and curl.
        "tutum/curl:latest" => Ok(machine()),
        _ => Err(format!("there is no stand-in for the image {name}").into()),
    }
}

/// The contents of the image that `Dockerfile.init` builds: no shell, no libraries, no
/// certificates, no writable temporary directory.
fn init(parts: &Parts) -> Image {
    let file = |name: &str| read_only(parts.bins.join(name), Path::new("/").join(name));
    Image {
        mounts: ["connect-init", "connect-lifecycle", "connect-redirect"].map(file).into(),
        entrypoint: vec!["/connect-init".to_owned()],
        user: 5995,
        ..Image::default()
    }
}

/// An image in the format of `docker save`: a list of layers and a configuration.
fn unpack(archive: &Path, folder: &Path) -> Result<Image> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Manifest {
        config: String,
        layers: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Document {
        config: Config,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        user: String,
        entrypoint: Vec<String>,
    }
    let (parts, root) = (folder.join("parts"), folder.join("root"));
    if !root.exists() {
        tar::Archive::new(File::open(archive)?).unpack(&parts)?;
    }
    let manifest: Vec<Manifest> = serde_json::from_slice(&fs::read(parts.join("manifest.json"))?)?;
    let manifest = manifest.into_iter().next().ok_or("the archive has no image")?;
    if !root.exists() {
        for layer in manifest.layers {
            tar::Archive::new(File::open(parts.join(layer))?).unpack(&root)?;
        }
    }
    let Document { config } = serde_json::from_slice(&fs::read(parts.join(manifest.config))?)?;
    let user = config.user.split(':').next().unwrap_or_default();
    let mut image = Image {
        entrypoint: config.entrypoint,
        user: user.parse().map_err(|_| format!("the image's user `{user}` is not a number"))?,
        ..Image::default()
    };
    for entry in fs::read_dir(&root)? {
        let path = entry?.path();
        image.mounts.push(read_only(path.clone(), Path::new("/").join(path.strip_prefix(&root)?)));
    }
    Ok(image)
}

fn envoy(parts: &Parts) -> Image {
    let mut image = machine();
    image.mounts.push(read_only(parts.envoy.clone(), PathBuf::from("/opt/envoy/envoy")));
    image.path = format!("/opt/envoy:{}", image.path);
    image
}

/// One of the harness's own programs.
fn own(parts: &Parts, name: &str) -> Image {
    let program = Path::new("/").join(name);
    let mut image = machine();
    image.mounts.push(read_only(parts.harness(name), program.clone()));
    image.entrypoint = vec![program.to_string_lossy().into_owned()];
    image
}

/// This machine's own programs and libraries, read-only.
fn machine() -> Image {
    let mut image = Image { path: "/usr/bin:/bin".to_owned(), ..Image::default() };
    image.mounts.push(read_only(PathBuf::from("/usr"), PathBuf::from("/usr")));
    for name in ["bin", "lib", "lib64"] {
        let path = Path::new("/").join(name);
        match std::fs::read_link(&path) {
            Ok(target) => image.links.push((path, target)),
            Err(_) if path.is_dir() => image.mounts.push(read_only(path.clone(), path)),
            Err(_) => {}
        }
    }
    image
}

fn read_only(source: PathBuf, target: PathBuf) -> Mount {
    Mount { source, target, writable: false }
}
