//! Consul as it is deployed: a server, and a node's client agent. Each is a process with its
//! data on disk and its own address, so that a wrong default of `localhost` fails.
//!
//! Sources: Consul's pages "Agents Configuration File Reference" and "Consul
//! Agent" (command line).

use std::fs::{self, File};
use std::path::Path;

use serde_json::{Value, json};

use crate::Result;
use crate::process::{Process, run};

/// A release of Consul: major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Release(pub u32, pub u32);

/// An agent to start, as a server or as a client.
#[derive(Clone, Debug)]
pub struct Agent {
    /// The name of its node.
    pub name: String,
    /// The address on which it listens.
    pub ip: String,
    /// The data center.
    pub datacenter: String,
    /// Number of servers in the data center (`bootstrap_expect`); 0 for a client agent.
    pub servers: u8,
    /// The addresses of other agents of the data center to join.
    pub join: Vec<String>,
    /// Additional settings, which win.
    pub further: Value,
}

// === impl Release ===

impl Release {
    /// Runs `consul version`.
    ///
    /// # Errors
    /// It does not run, or does not print a version.
    pub fn of(consul: &Path) -> Result<Self> {
        let text = run(&consul.to_string_lossy(), &["version"])?;
        Self::parse(&text).ok_or_else(|| format!("`consul version` printed: {text}").into())
    }

    fn parse(text: &str) -> Option<Self> {
        let release = text.split_whitespace().nth(1)?.trim_start_matches('v');
        let mut numbers = release.split(['.', '-', '+']).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Whether gRPC over TLS has its own port.
    pub fn has_grpc_tls(self) -> bool {
        self >= Self(1, 14)
    }
}

// === impl Agent ===

impl Agent {
    /// The only server of the data center dc1.
    pub fn server(ip: &str) -> Self {
        Self {
            name: "server".to_owned(),
            ip: ip.to_owned(),
            datacenter: "dc1".to_owned(),
            servers: 1,
            join: Vec::new(),
            further: json!({}),
        }
    }

    /// A client agent that joins that server.
    pub fn client(name: &str, ip: &str, server: &str) -> Self {
        Self {
            name: name.to_owned(),
            ip: ip.to_owned(),
            datacenter: "dc1".to_owned(),
            servers: 0,
            join: vec![server.to_owned()],
            further: json!({}),
        }
    }

    /// Starts it with its data in a directory, from which it can be started again.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(&self, consul: &Path, release: Release, folder: &Path) -> Result<Process> {
        fs::create_dir_all(folder.join("data"))?;
        let file = folder.join("agent.json");
        serde_json::to_writer(File::create(&file)?, &self.settings(release, folder))?;
        let args = ["agent", "-config-file", &file.to_string_lossy()].map(str::to_owned);
        Process::start(&format!("consul {}", self.name), folder.join("log"), consul, &args, &[])
    }

    fn settings(&self, release: Release, folder: &Path) -> Value {
        let is_server = self.servers > 0;
        let grpc = if is_server { -1 } else { 8502 };
        let mut settings = json!({
            "node_name": self.name,
            "datacenter": self.datacenter,
            "server": is_server,
            "data_dir": folder.join("data"),
            "bind_addr": self.ip,
            "client_addr": self.ip,
            "retry_join": self.join,
            "retry_interval": "1s",
            "ports": {"grpc": grpc, "dns": -1},
            "disable_update_check": true,
            // Elections as fast as in production.
            "performance": {"raft_multiplier": 1},
        });
        if is_server {
            settings["bootstrap_expect"] = json!(self.servers);
            settings["connect"] = json!({"enabled": true});
        }
        if release.has_grpc_tls() {
            settings["ports"]["grpc_tls"] = json!(-1);
        }
        json_patch::merge(&mut settings, &self.further);
        settings
    }
}

/// Removes an agent's data except its node id: servers reject a node that returns under its
/// old name with another id.
///
/// # Errors
/// A file can't be removed.
pub fn wipe(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder.join("data"))? {
        let entry = entry?;
        if entry.file_name() == "node-id" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_what_consul_prints() {
        for (text, release) in [
            ("Consul v1.14.11\nRevision abc\n", Release(1, 14)),
            ("Consul v1.12.9+ent\n", Release(1, 12)),
            ("Consul v1.22.0-dev\n", Release(1, 22)),
        ] {
            assert_eq!(Release::parse(text), Some(release), "{text}");
        }
        assert_eq!(Release::parse("no release"), None);
        assert!(Release(1, 14).has_grpc_tls() && !Release(1, 13).has_grpc_tls());
    }
}
