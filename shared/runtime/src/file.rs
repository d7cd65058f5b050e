//! Files that a reader sees either whole or not at all.

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::exit::{Exit, Failure};

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", .path.display())]
pub struct WriteError {
    pub path: PathBuf,
    pub source: std::io::Error,
}

/// Prefix and suffix of temporary file names.
const PREFIX: &str = ".whole-";
const SUFFIX: &str = ".tmp";

/// Whether a file is a temporary one of [`write_whole`], left behind by a process that
/// was killed.
pub fn is_half_written(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// A temporary file in a writable directory. The target appears when it is
/// [finished](Begun::finish).
#[derive(Debug)]
pub struct Begun {
    file: NamedTempFile,
    path: PathBuf,
}

/// Writes a file atomically: a temporary file in the same directory, synced, then
/// renamed over the old one. A reader, also after a crash, sees the old contents or the
/// new.
///
/// `mode` is the file's permissions, whatever the umask is.
pub fn write_whole(path: &Path, mode: u32, contents: impl Read) -> Result<(), WriteError> {
    Begun::new(path)?.finish(mode, contents)
}

// === impl Begun ===

impl Begun {
    /// Creates the temporary file.
    pub fn new(path: &Path) -> Result<Self, WriteError> {
        let file = tempfile::Builder::new().prefix(PREFIX).suffix(SUFFIX).tempfile_in(folder(path));
        let path = path.to_owned();
        match file {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(WriteError { path, source }),
        }
    }

    /// Writes the file, as [`write_whole`] does.
    pub fn finish(self, mode: u32, mut contents: impl Read) -> Result<(), WriteError> {
        let Self { mut file, path } = self;
        let write = || {
            // `copy` lets the kernel copy if both sides are files.
            std::io::copy(&mut contents, file.as_file_mut())?;
            // Not by the builder: the umask would remove bits.
            file.as_file().set_permissions(Permissions::from_mode(mode))?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            // Makes the rename survive a crash.
            File::open(folder(&path))?.sync_all()
        };
        write().map_err(|source| WriteError { path: path.clone(), source })
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        let hint = match error.source.kind() {
            std::io::ErrorKind::NotFound => {
                "the directory does not exist: create it, or name another one with --dir"
            }
            std::io::ErrorKind::PermissionDenied => {
                "let the user that this runs as write there, or name another directory with --dir"
            }
            std::io::ErrorKind::ReadOnlyFilesystem => {
                "mount a writable volume there, or name another directory with --dir"
            }
            std::io::ErrorKind::StorageFull => {
                "the volume is full: free some space or raise its size limit"
            }
            _ => "check that the directory is a writable one",
        };
        Self::new(Exit::CannotWrite, &error).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_and_sets_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        write_whole(&path, 0o644, &b"old"[..]).unwrap();
        write_whole(&path, 0o600, &b"new"[..]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }

    #[test]
    fn a_file_is_copied_whole() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        let long: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
        write_whole(&from, 0o644, long.as_slice()).unwrap();
        write_whole(&to, 0o555, File::open(&from).unwrap()).unwrap();
        assert_eq!(std::fs::read(&to).unwrap(), long);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("token");
        let failure = Failure::from(write_whole(&path, 0o600, &b"x"[..]).unwrap_err());
        assert_eq!(failure.exit(), Exit::CannotWrite);
        assert!(failure.to_string().contains("missing/token"), "{failure}");
        // A directory can't be replaced by a file.
        let path = folder.path().join("folder");
        std::fs::create_dir(&path).unwrap();
        assert!(write_whole(&path, 0o600, &b"x"[..]).is_err());
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "a temporary file is left"
        );
    }
}
