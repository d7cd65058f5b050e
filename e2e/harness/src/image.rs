//! What stands in for container images: a root made of files of this machine,
//! and what an image's configuration would say.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Result;
use crate::container::Mount;
use crate::node::Node;
use crate::parts::Parts;

/// The image of `connect-init`, as the injector is told.
pub const INIT: &str = "localhost/connect-init:test";
/// The image of Envoy, as the injector is told.
pub const ENVOY: &str = "localhost/envoy:test";

/// The image of an application that speaks HTTP/1, HTTP/2, gRPC and websocket.
pub const APPLICATION: &str = "localhost/application:test";

#[derive(Clone, Debug, Default)]
pub struct Image {
    /// What its root holds.
    pub mounts: Vec<Mount>,
    /// Links in its root: link, then target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// What runs if a container has no command.
    pub entrypoint: Vec<String>,
    /// Where programs are looked for.
    pub path: String,
    /// The user if a container names none.
    pub user: u32,
}

/// Finds the image of that name.
///
/// # Errors
/// There is no stand-in for it.
pub fn find(name: &str, node: &Node) -> Result<Image> {
    let parts = node.parts();
    match name {
        INIT => match &parts.init_image {
            Some(archive) => unpack(archive, &node.folder("init-image")?),
            None => Ok(init(parts)),
        },
        ENVOY => Ok(envoy(parts)),
        "hashicorp/http-echo:latest" => Ok(own(parts, "http-echo")),
        APPLICATION => Ok(own(parts, "application")),
        // A shell and curl, as the machine has them.
        "tutum/curl:latest" => Ok(machine()),
        _ => Err(format!("there is no stand-in for the image {name}").into()),
    }
}

/// As `Dockerfile.init` makes it, and nothing else: no shell, no libraries, no
/// certificates, no temporary folder that could be written to.
fn init(parts: &Parts) -> Image {
    let file = |name: &str| read_only(parts.bins.join(name), Path::new("/").join(name));
    Image {
        mounts: ["connect-init", "connect-lifecycle", "connect-redirect"].map(file).into(),
        entrypoint: vec!["/connect-init".to_owned()],
        user: 5995,
        ..Image::default()
    }
}

/// An image as `docker save` and its kin write it: a list of layers, which are
/// laid over each other, and a configuration.
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
