//! Keeps the plugin installed on a node, and removes it at the end.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use runtime::{Exit, Failure, Signals};

use crate::config::Entry;
use crate::folders::{Error, Folders, Outcome};
use crate::watch::Watch;

/// Where the plugin is installed.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) folders: Folders,
    /// Addresses of the node's Consul agent.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The longest time between two looks at the directories: a file system may report no
/// changes.
const INTERVAL: Duration = Duration::from_secs(30);

/// The pause after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// The pause between two attempts to get the lock.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// How often the plugin is put back at once within [`PERIOD`]; after that, only after a
/// [`PAUSE`]. Cilium, for instance, restores its configuration as quickly
/// (<https://github.com/cilium/cilium/issues/26760>).
const AT_ONCE: usize = 10;
const PERIOD: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_secs(5);

/// Counts how often the plugin was put back.
#[derive(Debug, Default)]
struct Pace {
    installed: Vec<Instant>,
}

/// What earlier attempts to install the plugin came to.
#[derive(Debug, Default)]
struct Attempts {
    pace: Pace,
    /// The last error since the plugin was installed; the log repeats no error.
    logged: Option<String>,
    is_superseded: bool,
}

/// When to try again.
enum Next {
    /// When a directory changes, and after this time at the latest.
    OnChange(Duration),
    /// After this time, even if a directory changes earlier.
    After(Duration),
}

/// Installs the plugin and puts it back when another program removes it, until a signal
/// arrives.
pub(crate) async fn install(node: Node, mut signals: Signals) -> Result<ExitCode, Failure> {
    let Node { folders, addresses } = &node;
    let watch = watch(folders)?;
    let Some(lock) = lock(folders, &mut signals).await? else { return Ok(Exit::Done.into()) };
    tracing::info!(
        configurations = %folders.configurations.display(),
        plugins = %folders.plugins.display(),
        "started to keep connect-cni installed"
    );
    let generation = next_generation(folders);
    keep(folders, &entry(addresses, generation), &watch, &mut signals).await?;
    // Before it is known whether this process is the last: finding out can lose the lock, and
    // then another process may be uninstalling at the same time.
    if let Err(error) = folders.hand_over(generation, &entry(addresses, 0)) {
        let hint = error.hint();
        tracing::warn!(%error, "cannot hand connect-cni over to an earlier process; hint: {hint}");
    }
    if !is_last(&lock) {
        tracing::info!("left connect-cni in place: another process keeps it installed");
        return Ok(Exit::Done.into());
    }
    uninstall(folders)
}

fn watch(folders: &Folders) -> Result<Watch, Failure> {
    let Folders { configurations, plugins } = folders;
    Watch::new(&[configurations, plugins]).map_err(|error| {
        let (configurations, plugins) = (configurations.display(), plugins.display());
        let problem = format_args!("cannot watch {configurations} and {plugins}: {error}");
        Failure::new(Exit::Failure, problem).hint("mount both directories of the node")
    })
}

/// Puts the plugin back when another program removes it, until a signal arrives.
async fn keep(
    folders: &Folders,
    entry: &str,
    watch: &Watch,
    signals: &mut Signals,
) -> Result<(), Failure> {
    let mut attempts = Attempts::default();
    loop {
        let is_over = match attempts.judge(folders.install(entry))? {
            Next::OnChange(at_most) => wait_for_change(watch, at_most, signals).await,
            Next::After(time) => wait(time, signals).await,
        };
        if is_over {
            return Ok(());
        }
    }
}

/// Waits until a directory changes, or for `at_most`; returns whether a signal arrived
/// meanwhile.
async fn wait_for_change(watch: &Watch, at_most: Duration, signals: &mut Signals) -> bool {
    tokio::select! {
        biased;
        signal = signals.next() => {
            tracing::info!(%signal, "received a signal");
            return true;
        }
        changed = watch.changed() => {
            let Err(error) = changed else { return false };
            tracing::warn!(%error, "cannot watch the directories");
        }
        () = tokio::time::sleep(at_most) => return false,
    }
    wait(RETRY, signals).await
}

/// Waits; returns whether a signal arrived meanwhile.
async fn wait(time: Duration, signals: &mut Signals) -> bool {
    tokio::select! {
        biased;
        signal = signals.next() => {
            tracing::info!(%signal, "received a signal");
            true
        }
        () = tokio::time::sleep(time) => false,
    }
}

/// Whether the plugin is installed.
pub(crate) fn ready(node: &Node) -> Result<ExitCode, Failure> {
    node.folders.ready(&entry(&node.addresses, 0)).map_err(|error| {
        let hint = error.hint();
        Failure::new(Exit::Failure, error).hint(hint)
    })?;
    Ok(Exit::Done.into())
}

/// Removes the plugin.
pub(crate) fn uninstall(folders: &Folders) -> Result<ExitCode, Failure> {
    folders.uninstall().map_err(|error| {
        let exit = if matches!(error, Error::Write(_)) { Exit::CannotWrite } else { Exit::Failure };
        Failure::new(exit, error).while_doing("cannot uninstall connect-cni").hint(
            "run connect-cni uninstall, or remove the entry from the configuration by hand and \
             then the binary",
        )
    })?;
    tracing::info!("uninstalled connect-cni");
    Ok(Exit::Done.into())
}

fn entry(addresses: &[IpAddr], generation: u64) -> String {
    serde_json::to_string(&Entry::new(addresses, generation)).expect("its keys are strings")
}

/// A generation above those of earlier processes: the time in seconds, or one more than
/// the installed entry's if the clock was set back. In a rollout, two processes of
/// different releases would replace each other's binary and entry without it.
fn next_generation(folders: &Folders) -> u64 {
    let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
    now.max(folders.generation().saturating_add(1))
}

/// Takes a shared lock on the directory of configurations, which each process holds while
/// it keeps the plugin installed, and which the kernel releases however the process ends.
/// The last holder uninstalls: in a rollout, the new process starts before the old one
/// ends. `None` if a signal arrived first.
async fn lock(folders: &Folders, signals: &mut Signals) -> Result<Option<Flock<File>>, Failure> {
    let folder = &folders.configurations;
    let cannot = |error: std::io::Error| {
        let problem = format_args!("cannot lock {}: {error}", folder.display());
        Failure::new(Exit::Failure, problem).hint("mount the node's own directory there")
    };
    let mut file = File::open(folder).map_err(cannot)?;
    loop {
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            // Another process is uninstalling.
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => file = back,
            Err((_, errno)) => return Err(cannot(errno.into())),
        }
        if wait(LOCK_RETRY, signals).await {
            return Ok(None);
        }
    }
}

/// Whether no other process holds the lock. Then nobody gets it until this process ends.
/// Otherwise this process loses it, so that of two that end at once, one is the last.
fn is_last(lock: &Flock<File>) -> bool {
    lock.relock(FlockArg::LockExclusiveNonblock).is_ok()
}

// === impl Attempts ===

impl Attempts {
    /// Logs what an attempt came to, and says when to try again.
    ///
    /// # Errors
    /// No further attempt can succeed.
    fn judge(&mut self, attempt: Result<Outcome, Error>) -> Result<Next, Failure> {
        match attempt {
            Ok(Outcome::Unchanged) => Ok(Next::OnChange(INTERVAL)),
            Ok(Outcome::Superseded) => {
                if !self.is_superseded {
                    tracing::info!("left connect-cni to a process that was started later");
                }
                self.is_superseded = true;
                Ok(Next::OnChange(INTERVAL))
            }
            Ok(Outcome::Installed(file)) => Ok(self.installed(&file)),
            Err(error @ Error::Removed(_)) => {
                let hint = error.hint();
                Err(Failure::new(Exit::Failure, error)
                    .while_doing("cannot keep connect-cni installed")
                    .hint(hint))
            }
            Err(error) => Ok(self.failed(&error)),
        }
    }

    fn installed(&mut self, file: &Path) -> Next {
        (self.logged, self.is_superseded) = (None, false);
        tracing::info!(file = %file.display(), "installed connect-cni");
        if !self.pace.is_exceeded(Instant::now()) {
            return Next::OnChange(INTERVAL);
        }
        tracing::warn!(
            file = %file.display(),
            "another program keeps removing connect-cni; hint: let it leave the configuration \
             alone (Cilium: cni.exclusive=false)"
        );
        Next::After(PAUSE)
    }

    fn failed(&mut self, error: &Error) -> Next {
        // An attempt to write is itself a change of the directory.
        let is_write = matches!(error, Error::Write(_));
        let (error, hint) = (error.to_string(), error.hint());
        if self.logged.as_ref() != Some(&error) {
            tracing::warn!(%error, "cannot install connect-cni yet, trying again; hint: {hint}");
            self.logged = Some(error);
        }
        if is_write { Next::After(RETRY) } else { Next::OnChange(RETRY) }
    }
}

// === impl Pace ===

impl Pace {
    /// Counts one installation; returns whether there were too many lately.
    fn is_exceeded(&mut self, now: Instant) -> bool {
        self.installed.retain(|earlier| now.duration_since(*earlier) < PERIOD);
        self.installed.push(now);
        self.installed.len() > AT_ONCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frequent_installations_exceed_the_pace() {
        let start = Instant::now();
        let mut pace = Pace::default();
        for minute in 0..100 {
            assert!(!pace.is_exceeded(start + minute * PERIOD));
        }
        let now = start + 200 * PERIOD;
        for _ in 0..AT_ONCE {
            assert!(!pace.is_exceeded(now));
        }
        assert!(pace.is_exceeded(now));
        assert!(!pace.is_exceeded(now + PERIOD), "a minute later it is forgotten");
    }
}
