//! The flags of the log, and where failures are reported.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Failure;

/// How much is logged, and in which form. The log goes to stderr; stdout is
/// for data.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// The least severe messages that are logged
    #[arg(
        long,
        env = "CONNECT_LOG_LEVEL",
        value_enum,
        default_value = "info",
        value_name = "LEVEL",
        global = true
    )]
    log_level: LogLevel,

    /// The form of the log
    #[arg(
        long,
        env = "CONNECT_LOG_FORMAT",
        value_enum,
        default_value = "plain",
        value_name = "FORMAT",
        global = true
    )]
    log_format: LogFormat,

    /// Where a failure is written to as well, if the file exists: in a pod,
    /// `kubectl describe pod` shows it
    #[arg(
        long,
        env = "CONNECT_TERMINATION_LOG",
        default_value = "/dev/termination-log",
        value_name = "FILE",
        global = true
    )]
    termination_log: PathBuf,
}

/// The severities.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
    Off,
}

/// The forms of a line of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Plain,
    /// One JSON object a line
    Json,
}

// === impl LogArgs ===

impl LogArgs {
    /// Opens the log. A second call has no effect, so that tests may share it.
    pub fn init(&self) {
        let level = match self.log_level {
            LogLevel::Trace => LevelFilter::TRACE,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Off => LevelFilter::OFF,
        };
        // The libraries below us (HTTP, TLS) speak only when they are in trouble.
        let filter = Targets::new().with_default(level).with_targets(
            ["hyper", "hyper_util", "reqwest", "rustls", "h2", "tower"]
                .map(|library| (library, level.min(LevelFilter::WARN))),
        );
        let registry = tracing_subscriber::registry().with(filter);
        let lines =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
        let opened = match self.log_format {
            LogFormat::Plain => registry.with(lines.with_ansi(false)).try_init(),
            LogFormat::Json => {
                registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init()
            }
        };
        if opened.is_err() {
            tracing::debug!("the log is open already");
        }
    }

    /// Reports why the binary failed: in the log, and in the pod's termination
    /// log if there is one.
    pub fn report(&self, failure: &Failure) {
        tracing::error!(exit = failure.exit() as u8, "{failure}");
        if let Err(error) = append_if_present(&self.termination_log, failure) {
            tracing::warn!(file = %self.termination_log.display(), %error, "cannot write the termination log");
        }
    }
}

/// The kubelet makes the file before it starts the container ("Customizing the
/// termination message" of the Kubernetes documentation); elsewhere there is
/// none, and none is made.
fn append_if_present(file: &Path, failure: &Failure) -> std::io::Result<()> {
    match std::fs::OpenOptions::new().append(true).open(file) {
        Ok(mut file) => writeln!(file, "{failure}"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
