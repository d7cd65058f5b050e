//! What stands in for container images: a root made of files of this machine,
//! and what an image's configuration would say.

use std::path::{Path, PathBuf};

use crate::Result;
use crate::container::Mount;
use crate::parts::Parts;

/// The image of `connect-init`, as the injector is told.
pub const INIT: &str = "localhost/connect-init:test";
/// The image of Envoy, as the injector is told.
pub const ENVOY: &str = "localhost/envoy:test";

/// An image.
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
pub fn find(name: &str, parts: &Parts) -> Result<Image> {
    match name {
        INIT => Ok(init(parts)),
        ENVOY => envoy(parts),
        "hashicorp/http-echo:latest" => Ok(http_echo(parts)),
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
        mounts: vec![file("connect-init"), file("connect-lifecycle")],
        entrypoint: vec!["/connect-init".to_owned()],
        user: 5995,
        ..Image::default()
    }
}

fn envoy(parts: &Parts) -> Result<Image> {
    let folder = parts.envoy.parent().ok_or("ENVOY_BIN has no folder")?;
    let mut image = machine();
    image.mounts.push(read_only(folder.to_owned(), PathBuf::from("/opt/envoy")));
    image.path = format!("/opt/envoy:{}", image.path);
    Ok(image)
}

fn http_echo(parts: &Parts) -> Image {
    let mut image = machine();
    image.mounts.push(read_only(parts.harness("http-echo"), PathBuf::from("/http-echo")));
    image.entrypoint = vec!["/http-echo".to_owned()];
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
