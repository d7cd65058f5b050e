//! The node's directories of CNI plugins and network configurations.
//!
//! Container runtimes use the first configuration in the order of file names.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use runtime::file::{WriteError, is_half_written, write_whole};

use crate::{PLUGIN, conflist};

/// Suffix of a `.conf` file whose list replaces it. Runtimes ignore such names.
const KEPT: &str = ".connect-cni";

/// Suffix of the list that replaces a `.conf` file. It sorts right behind the file.
const LIST: &str = "-connect-cni.conflist";

/// How often removing the plugin is tried while other programs write configurations.
const TRIES: usize = 10;

/// The node's directories.
#[derive(Clone, Debug)]
pub(crate) struct Folders {
    /// Network configurations.
    pub(crate) configurations: PathBuf,
    /// Binaries.
    pub(crate) plugins: PathBuf,
}

/// Why the plugin can't be installed or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// No network is installed yet.
    #[error("there is no network configuration in {}", .0.display())]
    NoNetwork(PathBuf),
    /// The plugin can't be part of the configuration in use.
    #[error("cannot add connect-cni to {}: {why}", .path.display())]
    Unfit {
        /// The configuration in use.
        path: PathBuf,
        /// Why.
        why: conflist::Error,
    },
    /// The entry or the binary is missing.
    #[error("connect-cni is not installed: {} {what}", .path.display())]
    Missing {
        /// The configuration without the entry, or the absent binary.
        path: PathBuf,
        /// What it lacks.
        what: &'static str,
    },
    /// The directory was removed. A container sees the removed one until it restarts.
    #[error("{} was removed", .0.display())]
    Removed(PathBuf),
    /// Another program wrote the file at the same time.
    #[error("{} changed while connect-cni was editing it", .0.display())]
    Raced(PathBuf),
    /// A file or directory can't be read, renamed or removed.
    #[error("{}: {source}", .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The state of the plugin after [`Folders::install`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The plugin was installed already.
    Unchanged,
    /// Another process with a higher generation has installed it.
    Superseded,
    /// This file was written: the configuration, or the binary alone.
    Installed(PathBuf),
}

// === impl Folders ===

impl Folders {
    /// Writes the binary and then the entry, unless they are there already.
    pub(crate) fn install(&self, entry: &str) -> Result<Outcome, Error> {
        self.check()?;
        if self.generation() > generation_of(entry) && self.binary().exists() {
            return Ok(Outcome::Superseded);
        }
        // Before anything is written: the runtime may use another directory of plugins.
        let (path, text) = self.in_use()?;
        let is_new = self.install_binary()?;
        Ok(match add(path, &text, entry)? {
            Outcome::Unchanged if is_new => Outcome::Installed(self.binary()),
            outcome => outcome,
        })
    }

    /// The generation of the entry in the configuration in use; 0 without one.
    pub(crate) fn generation(&self) -> u64 {
        let text = self.first().and_then(|path| read(&path)).unwrap_or_default();
        let entry = conflist::entry_of(&text).ok().flatten();
        entry.as_ref().map_or(0, conflist::generation)
    }

    /// Replaces the entry by this one if it has the generation `own`. A generation of 0
    /// hands the plugin over: any other process then installs its own binary and entry.
    pub(crate) fn hand_over(&self, own: u64, entry: &str) -> Result<(), Error> {
        if self.generation() != own {
            return Ok(());
        }
        let path = self.first()?;
        let text = read(&path)?;
        let unfit = |why| Error::Unfit { path: path.clone(), why };
        if let Some(without) = conflist::without(&text).map_err(unfit)?
            && let Some(with) = conflist::with(&without, entry).map_err(unfit)?
        {
            replace(&path, &text, &with)?;
        }
        Ok(())
    }

    /// Whether the plugin is installed with this entry, in any generation.
    ///
    /// # Errors
    /// The binary or the entry is missing, or the runtime uses another directory of
    /// plugins.
    pub(crate) fn ready(&self, entry: &str) -> Result<(), Error> {
        self.check()?;
        let binary = self.binary();
        if !binary.exists() {
            return Err(Error::Missing { path: binary, what: "does not exist" });
        }
        let (path, text) = self.in_use()?;
        let unfit = |why| Error::Unfit { path: path.clone(), why };
        if is_list(&path)
            && let Some(mut there) = conflist::entry_of(&text).map_err(unfit)?
            && let Ok(mut expected) = serde_json::from_str::<serde_json::Value>(entry)
        {
            for entry in [&mut there, &mut expected] {
                if let Some(members) = entry.as_object_mut() {
                    members.remove("generation");
                }
            }
            if there == expected {
                return Ok(());
            }
        }
        Err(Error::Missing { path, what: "has no entry of connect-cni, or an outdated one" })
    }

    /// Removes the entry from all configurations, and then the binary.
    pub(crate) fn uninstall(&self) -> Result<(), Error> {
        let mut result = self.remove_entries();
        for _ in 1..TRIES {
            if !matches!(result, Err(Error::Raced(_))) {
                break;
            }
            result = self.remove_entries();
        }
        // With the entry, but without the binary, no pod would get a network.
        result?;
        remove(&self.binary())?;
        for folder in [&self.configurations, &self.plugins] {
            for path in list(folder)?.into_iter().filter(|path| is_half_written(path)) {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn remove_entries(&self) -> Result<(), Error> {
        for path in self.files()?.into_iter().filter(|path| !path.is_dir()) {
            let name = name_of(&path);
            if let Some(original) = name.strip_suffix(LIST) {
                self.put_back(original, &path)?;
            } else if name.ends_with(".conflist") {
                remove_entry(&path)?;
            } else if let Some(original) = name.strip_suffix(KEPT) {
                // A process was killed between writing the list and the rename, or
                // somebody removed the list.
                self.put_back(original, &path.with_file_name(format!("{original}{LIST}")))?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        for folder in [&self.configurations, &self.plugins] {
            if fs::metadata(folder).map_err(in_file(folder))?.nlink() == 0 {
                return Err(Error::Removed(folder.clone()));
            }
        }
        Ok(())
    }

    /// Renames a kept `.conf` file back and removes the list that replaced it.
    fn put_back(&self, original: &str, list: &Path) -> Result<(), Error> {
        let path = self.configurations.join(original);
        let kept = self.configurations.join(format!("{original}{KEPT}"));
        if path.exists() {
            // The network's own installer wrote a newer one.
            remove(&kept)?;
        } else if kept.exists() {
            fs::rename(&kept, &path).map_err(in_file(&kept))?;
        }
        remove(list)
    }

    /// Writes the binary unless it is there already; returns whether it wrote it.
    fn install_binary(&self) -> Result<bool, Error> {
        let own = Path::new("/proc/self/exe");
        let to = self.binary();
        let contents = fs::read(own).map_err(in_file(own))?;
        if fs::read(&to).is_ok_and(|there| there == contents) && mode_of(&to)? & 0o111 == 0o111 {
            return Ok(false);
        }
        write_whole(&to, 0o755, contents.as_slice())?;
        Ok(true)
    }

    fn binary(&self) -> PathBuf {
        self.plugins.join(PLUGIN)
    }

    /// The configuration in use, and its text.
    ///
    /// # Errors
    /// There is none, or the runtime does not look for its plugins in our directory.
    fn in_use(&self) -> Result<(PathBuf, String), Error> {
        let path = self.first()?;
        let text = read(&path)?;
        match self.find_others(&text) {
            Ok(()) => Ok((path, text)),
            Err(why) => Err(Error::Unfit { path, why }),
        }
    }

    /// Looks for the other plugins of a configuration. One is enough: runtimes can have
    /// several directories of plugins.
    fn find_others(&self, text: &str) -> Result<(), conflist::Error> {
        let plugins = conflist::others(text)?;
        // Without following links: k3s links plugins to a directory that a container does
        // not see.
        let is_there = |plugin: &String| {
            let path = self.plugins.join(plugin);
            path.parent() == Some(self.plugins.as_path())
                && fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_dir())
        };
        if plugins.iter().any(is_there) {
            return Ok(());
        }
        Err(conflist::Error::Elsewhere { plugins, folder: self.plugins.clone() })
    }

    /// The configuration in use.
    fn first(&self) -> Result<PathBuf, Error> {
        let is_one = |path: &PathBuf| {
            let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default();
            ["conf", "conflist", "json"].contains(&extension) && !path.is_dir()
        };
        let first = self.files()?.into_iter().find(is_one);
        first.ok_or_else(|| Error::NoNetwork(self.configurations.clone()))
    }

    /// The directory of configurations, sorted.
    fn files(&self) -> Result<Vec<PathBuf>, Error> {
        list(&self.configurations)
    }
}

// === impl Error ===

impl Error {
    /// What to do next, in the words of the chart's values: a container sees the node's
    /// directories at other paths.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::NoNetwork(_) => {
                "if the node has a network, set connectInject.cni.cniNetDir to the directory in \
                 which the container runtime looks for configurations"
            }
            Self::Unfit { why, .. } => why.hint(),
            Self::Missing { .. } => "see the log of connect-cni install",
            Self::Removed(_) => {
                "restart this container, which then mounts the node's new directory"
            }
            Self::Raced(_) => {
                "if this repeats, find the program that keeps writing to the node's directory \
                 connectInject.cni.cniNetDir"
            }
            Self::Io { .. } | Self::Write(_) => {
                "let user 0 with the capability DAC_OVERRIDE read and write the node's \
                 directories connectInject.cni.cniNetDir and cniBinDir"
            }
        }
    }
}

/// Adds the entry to the configuration in use, whose text was read before.
fn add(path: PathBuf, text: &str, entry: &str) -> Result<Outcome, Error> {
    let unfit = |why| Error::Unfit { path: path.clone(), why };
    if is_list(&path) {
        return Ok(match conflist::with(text, entry).map_err(unfit)? {
            None => Outcome::Unchanged,
            Some(with) => {
                replace(&path, text, &with)?;
                Outcome::Installed(path)
            }
        });
    }
    let with = conflist::list_of(text, entry).map_err(unfit)?;
    let list = suffixed(&path, LIST);
    // The rename puts the list in use, so that there is a configuration at any moment.
    write_whole(&list, mode_of(&path)?, with.as_bytes())?;
    let kept = suffixed(&path, KEPT);
    fs::rename(&path, &kept).map_err(in_file(&path))?;
    Ok(Outcome::Installed(list))
}

/// Removes the entry from a list. Skips dangling links and files that were removed
/// meanwhile, and invalid files: runtimes can't use them either.
fn remove_entry(path: &Path) -> Result<(), Error> {
    let edit = || {
        let text = read(path)?;
        match conflist::without(&text) {
            Ok(Some(without)) => replace(path, &text, &without),
            _ => Ok(()),
        }
    };
    match edit() {
        Err(Error::Io { source, .. })
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) =>
        {
            Ok(())
        }
        result => result,
    }
}

fn generation_of(entry: &str) -> u64 {
    serde_json::from_str(entry).map_or(0, |entry| conflist::generation(&entry))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(in_file(folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>().map_err(in_file(folder))?;
    paths.sort();
    Ok(paths)
}

fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "conflist")
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    path.with_file_name(format!("{}{suffix}", name_of(path)))
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(in_file(path))
}

fn mode_of(path: &Path) -> Result<u32, Error> {
    let metadata = fs::metadata(path).map_err(in_file(path))?;
    Ok(metadata.permissions().mode() & 0o7777)
}

/// Replaces a file, keeping owner and mode, unless another program wrote it after
/// `read_before` was read.
fn replace(path: &Path, read_before: &str, text: &str) -> Result<(), Error> {
    let metadata = fs::metadata(path).map_err(in_file(path))?;
    let mode = metadata.permissions().mode() & 0o7777;
    if read(path)? != read_before {
        return Err(Error::Raced(path.to_owned()));
    }
    write_whole(path, mode, text.as_bytes())?;
    if (metadata.uid(), metadata.gid()) != (0, 0) {
        let owner = (Some(metadata.uid()), Some(metadata.gid()));
        // The container may lack the capability CHOWN. The file stays readable.
        let _ = std::os::unix::fs::chown(path, owner.0, owner.1);
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn in_file(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    move |source| Error::Io { path: path.to_owned(), source }
}
