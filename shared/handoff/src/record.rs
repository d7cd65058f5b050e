//! The record of a registration.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use consul::{Address, Agent, Config, SetupError, TlsFiles};
use registration::pod::Pair;
use runtime::file::{WriteError, write_whole};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::Handoff;

/// Format version. A release raises it only if older releases could no longer use the
/// file.
const VERSION: u32 = 1;

/// The record of a registration and its agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Format version of this record.
    version: u32,
    /// Service and proxy as they were sent.
    #[serde(flatten)]
    pub pair: Pair,
    pub agent: AgentRecord,
    pub admin: SocketAddr,
    /// How to log in again, if the ACL token came from a login.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// The name whose address is the proxy's tagged address `virtual`, if it is a name's:
    /// `connect-lifecycle` looks it up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtual_name: Option<String>,
}

/// An agent, and how to connect to it. The token is in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    /// Where it listens for HTTP.
    pub http_addr: Address,
    #[serde(default)]
    pub tls: TlsFiles,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The file with the ACL token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// The original of `token_file`. Where it can be read, it wins: its owner may put
    /// another token there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_source: Option<PathBuf>,
    /// The file with user and password for HTTP basic authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_auth_file: Option<PathBuf>,
}

/// How to log in. Stored in the record so that `connect-lifecycle` can log in again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    pub auth_method: String,
    /// The file with the bearer token: in a pod, that of the service account, which the
    /// kubelet renews.
    pub bearer_token_file: PathBuf,
    /// Identifies the pod in the description of the token.
    pub meta: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a registration of this program: {source}", .path.display())]
    Form { path: PathBuf, source: serde_json::Error },
    /// A newer release wrote the file in a format that this one can't read.
    #[error("{} has version {version}, this program reads up to {VERSION}", .path.display())]
    Version { path: PathBuf, version: u32 },
}

// === impl Record ===

impl Record {
    pub fn new(pair: Pair, agent: AgentRecord, admin: SocketAddr, login: Option<Login>) -> Self {
        Self { version: VERSION, pair, agent, admin, login, virtual_name: None }
    }

    pub fn write(&self, handoff: &Handoff) -> Result<(), WriteError> {
        // Strings, numbers, lists and maps with string keys always serialize.
        let mut text = serde_json::to_vec_pretty(self).expect("a record is JSON");
        text.push(b'\n');
        write_whole(&handoff.record(), 0o640, text.as_slice())
    }

    pub fn read(handoff: &Handoff) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let path = handoff.record();
        let text = std::fs::read(&path)
            .map_err(|source| ReadError::Read { path: path.clone(), source })?;
        // The version first: the fields of another format need not fit ours.
        let Version { version } = serde_json::from_slice(&text)
            .map_err(|source| ReadError::Form { path: path.clone(), source })?;
        if version > VERSION {
            return Err(ReadError::Version { path, version });
        }
        serde_json::from_slice(&text).map_err(|source| ReadError::Form { path, source })
    }
}

// === impl AgentRecord ===

impl AgentRecord {
    /// A client of the agent with the token that the file contains now; without one if
    /// the file is gone after a logout.
    pub fn connect(&self) -> Result<Agent, SetupError> {
        let token = self.token()?;
        let Self { http_addr, tls, namespace, partition, node, http_auth_file, .. } = self.clone();
        Agent::new(Config {
            address: http_addr,
            token,
            token_file: None,
            http_auth: read(http_auth_file.as_deref())?,
            tls,
            namespace,
            partition,
            node,
        })
    }

    /// The current token: from the original file, if it has one, else from the copy.
    pub fn token(&self) -> Result<Option<SecretString>, SetupError> {
        let source = self.token_source.as_deref();
        // Not every container of the pod mounts the file, or may read it.
        match source.and_then(|file| read(Some(file)).ok().flatten()) {
            Some(token) => Ok(Some(token)),
            None => read(self.token_file.as_deref()),
        }
    }
}

/// Reads a secret from a file. `None` if the file is missing or empty.
fn read(file: Option<&Path>) -> Result<Option<SecretString>, SetupError> {
    match file {
        Some(file) if file.exists() => consul::token::read(file),
        _ => Ok(None),
    }
}

// === impl ReadError ===

impl ReadError {
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "connect-init writes it: check that it has run, and that both use the same --dir"
            }
            Self::Read { .. } => "run as the user that connect-init ran as",
            Self::Form { .. } => "let connect-init write it again",
            Self::Version { .. } => {
                "use connect-lifecycle of the release that wrote it, or a newer one"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use registration::pod::{Declaration, Identity, pair};
    use serde_json::Value;

    use super::*;

    fn record() -> Record {
        let pod = Identity {
            name: "web-0".to_owned(),
            namespace: "shop".to_owned(),
            ip: [10, 0, 0, 7].into(),
        };
        let declared =
            Declaration { name: "web".to_owned(), port: Some(80), ..Declaration::default() };
        let agent = AgentRecord {
            http_addr: "http://10.0.0.1:8500".parse().unwrap(),
            tls: TlsFiles::default(),
            namespace: None,
            partition: None,
            node: Some("n1".to_owned()),
            token_file: None,
            token_source: None,
            http_auth_file: None,
        };
        Record::new(pair(&pod, declared), agent, ([127, 0, 0, 1], 19000).into(), None)
    }

    fn written(change: impl FnOnce(&mut Value)) -> Result<Record, ReadError> {
        let folder = tempfile::tempdir().unwrap();
        let handoff = Handoff::new(folder.path());
        record().write(&handoff).unwrap();
        let mut value: Value =
            serde_json::from_slice(&std::fs::read(handoff.record()).unwrap()).unwrap();
        change(&mut value);
        write_whole(&handoff.record(), 0o640, value.to_string().as_bytes()).unwrap();
        Record::read(&handoff)
    }

    #[test]
    fn what_is_written_is_read_back() {
        assert_eq!(written(|_| {}).unwrap(), record());
    }

    /// An old preStop hook and a new agent. Reported in
    /// <https://github.com/istio/istio/issues/16432>.
    #[test]
    fn a_newer_release_may_add_fields() {
        let read = written(|value| {
            value["added"] = 1.into();
            value["service"]["Added"] = 1.into();
            value["agent"]["added"] = 1.into();
        });
        assert_eq!(read.unwrap(), record());
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        assert!(matches!(
            written(|value| value["version"] = 2.into()),
            Err(ReadError::Version { version: 2, .. })
        ));
        assert!(matches!(
            written(|value| value["proxy"] = Value::Null),
            Err(ReadError::Form { .. })
        ));
        let nowhere = Record::read(&Handoff::new("/nonexistent")).unwrap_err();
        assert!(nowhere.hint().contains("connect-init writes it"));
    }
}
