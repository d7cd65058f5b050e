//! The images of a cluster, in a registry's layout: those of `Dockerfile.init` unchanged, and
//! small images with one layer, which contain programs of this machine and their libraries.
//!
//! Source: the OCI image and distribution specifications.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::parts::Parts;
use crate::write;
use harness::Result;
use harness::process::run;
use harness::runtime::image;

/// The image of a pod's sandbox.
pub const PAUSE: &str = "localhost/pause:test";
pub const CONSUL: &str = "localhost/consul:test";
/// Where that image has [`Parts::outdated_consul`], if it was found.
pub const OUTDATED_CONSUL: &str = "/bin/consul-outdated";
pub const INJECT: &str = "localhost/connect-inject:test";

/// Another mutating webhook.
pub const OTHER: &str = "localhost/other-webhook:test";

/// The cluster DNS of a test.
pub const NAMESERVER: &str = "localhost/nameserver:test";

/// Media type of a layer, not compressed.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a manifest, which a registry must send.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image to build.
struct Draft {
    name: &'static str,
    /// Programs: path on this machine, and in the image.
    programs: Vec<(PathBuf, &'static str)>,
    entrypoint: Vec<&'static str>,
    /// Whether it has busybox's shell and tools.
    shell: bool,
}

/// Builds all images into a directory: `blobs/DIGEST` and `manifests/NAME/TAG`.
///
/// # Errors
/// A program is missing, or the directory can't be written to.
pub fn make(folder: &Path, parts: &Parts) -> Result<()> {
    for name in ["blobs", "manifests", "work"] {
        fs::create_dir_all(folder.join(name))?;
    }
    archived(folder, &parts.init_image, image::INIT)?;
    archived(folder, &parts.inject_image, INJECT)?;
    let echo = parts.common.harness("http-echo");
    let drafts = [
        Draft {
            name: PAUSE,
            programs: vec![],
            entrypoint: vec!["/bin/busybox", "sleep", "2147483647"],
            shell: true,
        },
        Draft {
            name: CONSUL,
            programs: [(parts.common.consul.clone(), "/bin/consul")]
                .into_iter()
                .chain(parts.outdated_consul.clone().map(|consul| (consul, OUTDATED_CONSUL)))
                .collect(),
            entrypoint: vec!["/bin/consul"],
            shell: true,
        },
        Draft {
            name: image::ENVOY,
            programs: vec![(parts.common.envoy.clone(), "/bin/envoy")],
            entrypoint: vec!["/bin/envoy"],
            shell: false,
        },
        Draft {
            name: OTHER,
            programs: vec![(parts.common.harness("other-webhook"), "/other-webhook")],
            entrypoint: vec!["/other-webhook"],
            shell: false,
        },
        Draft {
            name: NAMESERVER,
            programs: vec![(parts.common.harness("nameserver"), "/nameserver")],
            entrypoint: vec!["/nameserver", "0.0.0.0:53", "/tmp/names"],
            shell: true,
        },
        Draft {
            name: "hashicorp/http-echo:latest",
            programs: vec![(echo.clone(), "/http-echo")],
            entrypoint: vec!["/http-echo"],
            shell: false,
        },
        // The tutorial only starts nginx, so any server will do.
        Draft {
            name: "library/nginx:latest",
            programs: vec![(echo, "/http-echo")],
            entrypoint: vec!["/http-echo", "-text=nginx", "-listen=:80"],
            shell: false,
        },
        Draft {
            name: "library/busybox:latest",
            programs: vec![],
            entrypoint: vec!["sh"],
            shell: true,
        },
    ];
    // The tutorial's, and that of the examples.
    let curls = ["tutum/curl:latest", "curlimages/curl:latest"].map(|name| Draft {
        name,
        programs: vec![("/usr/bin/curl".into(), "/bin/curl")],
        entrypoint: vec![],
        shell: true,
    });
    for draft in drafts.into_iter().chain(curls) {
        draft
            .make(folder, parts)
            .map_err(|error| format!("cannot make the image {}: {error}", draft.name))?;
    }
    Ok(())
}

// === impl Draft ===

impl Draft {
    fn make(&self, folder: &Path, parts: &Parts) -> Result<()> {
        let layer = folder.join("work/layer.tar");
        let mut tar = tar::Builder::new(File::create(&layer)?);
        for name in ["bin", "etc", "tmp"] {
            directory(&mut tar, name)?;
        }
        let mut libraries = Vec::new();
        for (program, place) in &self.programs {
            file(&mut tar, program, place)?;
            libraries.append(&mut libraries_of(program));
        }
        libraries.sort_unstable();
        libraries.dedup();
        for library in libraries {
            file(&mut tar, &library, &library.to_string_lossy())?;
        }
        if self.shell {
            let busybox = parts.node("busybox");
            file(&mut tar, &busybox, "/bin/busybox")?;
            let busybox = busybox.to_string_lossy();
            for tool in run(&busybox, &["--list"])?.lines().filter(|tool| *tool != "busybox") {
                let mut header = header(tar::EntryType::Symlink, 0);
                tar.append_link(&mut header, format!("bin/{tool}"), "busybox")?;
            }
        }
        tar.finish()?;
        let layer = keep(folder, &layer)?;
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Entrypoint": self.entrypoint},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        });
        let path = folder.join("work/config.json");
        write(&path, &config.to_string())?;
        let config = keep(folder, &path)?;
        publish(folder, self.name, &config, &[layer])
    }
}

/// Size and digest of a blob.
struct Blob {
    digest: String,
    size: u64,
}

/// Adds an image archive in the format of `docker save`.
fn archived(folder: &Path, archive: &Path, name: &str) -> Result<()> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Saved {
        config: String,
        layers: Vec<String>,
    }
    let parts = folder.join("work/archive");
    tar::Archive::new(File::open(archive)?)
        .unpack(&parts)
        .map_err(|error| format!("cannot unpack {}: {error}", archive.display()))?;
    let saved: Vec<Saved> = serde_json::from_slice(&fs::read(parts.join("manifest.json"))?)?;
    let saved = saved.into_iter().next().ok_or("the archive has no image")?;
    let config = keep(folder, &parts.join(saved.config))?;
    let mut layers = Vec::new();
    for layer in saved.layers {
        layers.push(keep(folder, &parts.join(layer))?);
    }
    fs::remove_dir_all(parts)?;
    publish(folder, name, &config, &layers)
}

/// Moves a file to the blobs.
fn keep(folder: &Path, file: &Path) -> Result<Blob> {
    let sum = run("sha256sum", &[file])?;
    let sum = sum.split_whitespace().next().ok_or("sha256sum says nothing")?;
    let digest = format!("sha256:{sum}");
    let size = fs::metadata(file)?.len();
    fs::rename(file, folder.join("blobs").join(&digest))?;
    Ok(Blob { digest, size })
}

fn publish(folder: &Path, name: &str, config: &Blob, layers: &[Blob]) -> Result<()> {
    let describe = |kind: &str, blob: &Blob| json!({"mediaType": kind, "digest": blob.digest, "size": blob.size});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": describe(CONFIG, config),
        "layers": layers.iter().map(|layer| describe(LAYER, layer)).collect::<Vec<Value>>(),
    });
    let path = folder.join("work/manifest.json");
    write(&path, &manifest.to_string())?;
    let manifest = keep(folder, &path)?;
    let (name, tag) = name.rsplit_once(':').ok_or("an image's name has a tag")?;
    let place = folder.join("manifests").join(name.strip_prefix("localhost/").unwrap_or(name));
    fs::create_dir_all(&place)?;
    write(&place.join(tag), &manifest.digest)
}

/// The libraries of a program, by the paths at which it looks for them.
fn libraries_of(program: &Path) -> Vec<PathBuf> {
    // ldd fails for a static program, which has none.
    let Ok(listed) = run("ldd", &[program]) else { return Vec::new() };
    let paths = listed.lines().filter_map(|line| {
        line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    paths.collect()
}

fn directory(tar: &mut tar::Builder<File>, name: &str) -> Result<()> {
    let mut header = header(tar::EntryType::Directory, 0);
    header.set_mode(if name == "tmp" { 0o1777 } else { 0o755 });
    Ok(tar.append_data(&mut header, format!("{name}/"), std::io::empty())?)
}

fn file(tar: &mut tar::Builder<File>, source: &Path, place: &str) -> Result<()> {
    let content =
        File::open(source).map_err(|error| format!("cannot read {}: {error}", source.display()))?;
    let mut header = header(tar::EntryType::Regular, content.metadata()?.len());
    Ok(tar.append_data(&mut header, place.trim_start_matches('/'), content)?)
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header
}
