//! The kubelet's part for a pod: volumes, the downward API, init containers in order, native
//! sidecars among them, containers with their hooks, and termination.
//!
//! Sources: the Kubernetes pages "Pod Lifecycle", "Sidecar Containers",
//! "Container Lifecycle Hooks", "Downward API" and "Define Dependent
//! Environment Variables".

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod as Manifest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid as ProcessId;
use serde_json::Value;

use crate::node::Node;
use crate::process::{Process, tail};
use crate::runtime::container::{Mount, Spec};
use crate::{Result, until};

/// A pod.
#[derive(Debug)]
pub struct Pod<'n> {
    node: &'n Node,
    manifest: Manifest,
    name: String,
    /// Its address.
    pub ip: String,
    folder: PathBuf,
    sandbox: Child,
    containers: Vec<Running>,
}

/// A container that was started.
#[derive(Debug)]
struct Running {
    container: Container,
    process: Process,
    env: BTreeMap<String, String>,
    user: (u32, u32),
}

/// Prefix of the names of sidecars.
const SIDECAR: &str = "envoy-sidecar";

/// The admin port of the first sidecar; additional services have the next ports.
const ADMIN_PORT: u16 = 19000;

/// The statistics of Envoy that [`is_settled`] and [`has_rejected`] use.
pub const XDS_STATS: &str =
    "(connected_state|local_agent.upstream_rq_pending_active|update_rejected|lds.update_success)$";

/// Kubernetes' default of `terminationGracePeriodSeconds`.
const GRACE: Duration = Duration::from_secs(30);

// === impl Pod ===

impl<'n> Pod<'n> {
    /// Creates a pod's sandbox: its network and its directory. Starts no container.
    ///
    /// # Errors
    /// The specification is invalid, or the network can't be created.
    pub fn create(node: &'n Node, pod: &Value) -> Result<Self> {
        let manifest: Manifest = serde_json::from_value(pod.clone())?;
        let name = manifest.metadata.name.clone().ok_or("the pod has no name")?;
        let folder = node.folder(&format!("pod-{name}"))?;
        let mut sandbox = Command::new(node.parts().harness("pod-runtime"))
            .arg("sandbox")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 6];
        sandbox.stdout.take().ok_or("the sandbox has no output")?.read_exact(&mut ready)?;
        let ip = node.attach(&sandbox)?;
        Ok(Self { node, manifest, name, ip, folder, sandbox, containers: Vec::new() })
    }

    /// Runs the init containers one after the other, and then starts the containers in order;
    /// each postStart hook finishes before the next container starts. Then waits for Envoy,
    /// see [`Self::await_xds`].
    ///
    /// # Errors
    /// An init container or a hook failed; with its output.
    pub fn start(&mut self) -> Result<()> {
        self.start_with(|_| Ok(()))
    }

    /// Like [`Self::start`], and calls `meanwhile` once while the first init container runs.
    ///
    /// # Errors
    /// As [`Self::start`], or `meanwhile` failed.
    pub fn start_with(&mut self, meanwhile: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let spec = self.manifest.spec.clone().ok_or("the pod has no spec")?;
        let mut meanwhile = Some(meanwhile);
        for container in spec.init_containers.into_iter().flatten() {
            let running = self.run_container(container)?;
            self.containers.push(running);
            if let Some(meanwhile) = meanwhile.take() {
                meanwhile(self)?;
            }
            let Some(running) = self.containers.last_mut() else { continue };
            if running.is_native_sidecar() {
                running.await_started()?;
                continue;
            }
            let status = running.process.wait()?;
            if !status.success() {
                let (name, output) = (&running.container.name, running.process.output());
                return Err(format!("init container {name}: {status}\n{output}").into());
            }
        }
        for container in spec.containers {
            let running = self.run_container(container)?;
            let hook = running
                .container
                .lifecycle
                .as_ref()
                .and_then(|lifecycle| lifecycle.post_start.clone());
            self.containers.push(running);
            if let Some(hook) = hook {
                let name = self
                    .containers
                    .last()
                    .map(|running| running.container.name.clone())
                    .unwrap_or_default();
                self.hook(&name, &hook)?;
            }
        }
        self.await_xds()
    }

    /// Terminates the pod: all containers at the same time get the preStop hook and then
    /// SIGTERM; a native sidecar gets SIGTERM when the other containers have exited. After
    /// the grace period the rest is killed. Returns how each container ended, by name.
    ///
    /// # Errors
    /// A process can't be signalled or waited for.
    pub fn stop(mut self) -> Result<BTreeMap<String, String>> {
        let spec = self.manifest.spec.as_ref();
        let grace = spec.and_then(|spec| spec.termination_grace_period_seconds);
        let grace = grace
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(GRACE, Duration::from_secs);
        let deadline = Instant::now() + grace;
        let mut containers = std::mem::take(&mut self.containers);
        containers.retain_mut(|running| matches!(running.process.ended(), Ok(None)));
        let join = |end: ScopedJoinHandle<'_, Result<(String, String)>>| {
            end.join().unwrap_or_else(|_| Err("a container's end panicked".into()))
        };
        std::thread::scope(|scope| {
            let (sidecars, others): (Vec<_>, Vec<_>) =
                containers.iter_mut().partition(|running| running.is_native_sidecar());
            let (tell, told): (Vec<_>, Vec<_>) =
                sidecars.iter().map(|_| mpsc::channel::<()>()).unzip();
            let sidecars: Vec<_> = sidecars
                .into_iter()
                .zip(told)
                .map(|(running, told)| {
                    scope.spawn(move || {
                        let how = pre_stop(running);
                        // Nothing is ever sent: the channel closes when the others have
                        // exited.
                        let _ = told.recv();
                        end(running, how, deadline)
                    })
                })
                .collect();
            let others: Vec<_> = others
                .into_iter()
                .map(|running| {
                    scope.spawn(move || {
                        let how = pre_stop(running);
                        end(running, how, deadline)
                    })
                })
                .collect();
            let others: Vec<_> = others.into_iter().map(join).collect();
            drop(tell);
            others.into_iter().chain(sidecars.into_iter().map(join)).collect()
        })
    }

    /// The pod's network namespace, as a file.
    pub fn network(&self) -> PathBuf {
        network_of(self.sandbox.id())
    }

    /// Runs a command in a container, as `kubectl exec` does.
    ///
    /// # Errors
    /// The container does not run, or the command can't be started.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Output> {
        let running = self.running(container)?;
        exec_in(running, command)
    }

    /// Waits until the pod's Envoys are connected to Consul's xDS and have accepted all
    /// updates.
    ///
    /// # Errors
    /// An Envoy is not connected in time, or has rejected an update; with its log.
    pub fn await_xds(&mut self) -> Result<()> {
        let is_sidecar = |running: &&mut Running| running.container.name.starts_with(SIDECAR);
        for (port, running) in (ADMIN_PORT..).zip(self.containers.iter_mut().filter(is_sidecar)) {
            let name = running.container.name.clone();
            let url = format!("http://127.0.0.1:{port}/stats?filter={XDS_STATS}");
            let mut seen = String::new();
            until(&format!("{name} to be connected to xDS"), || {
                seen = match exec_in(running, &["curl", "-s", &url]) {
                    Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
                    Err(error) => error.to_string(),
                };
                // Don't wait for an Envoy that has exited.
                is_settled(&seen) || !matches!(running.process.ended(), Ok(None))
            })
            .map_err(|error| format!("{error}: {seen}\n{}", tail(&running.process.output(), 20)))?;
            let what = if has_rejected(&seen) {
                "rejected updates"
            } else if !is_settled(&seen) {
                "ended"
            } else {
                continue;
            };
            let log = tail(&running.process.output(), 20);
            return Err(format!("{name} {what}: {seen}\n{log}").into());
        }
        Ok(())
    }

    fn hook(&self, container: &str, hook: &LifecycleHandler) -> Result<()> {
        run_hook(self.running(container)?, hook)
    }

    fn running(&self, container: &str) -> Result<&Running> {
        let found = self.containers.iter().find(|running| running.container.name == container);
        found.ok_or_else(|| format!("pod {} has no container {container}", self.name).into())
    }

    /// A container's log.
    pub fn log(&self, container: &str) -> String {
        let output =
            self.running(container).map(|running| running.process.output()).unwrap_or_default();
        // Envoy's list of extensions would hide the rest of a failed test's output.
        let is_list = |line: &str| line.contains("/server.cc:") && line.contains("]   ");
        output
            .lines()
            .filter(|line| !is_list(line))
            .fold(String::new(), |log, line| log + line + "\n")
    }

    pub fn log_file(&self, container: &str) -> PathBuf {
        self.folder.join(container).join("log")
    }

    /// The root of a running container, as a directory of this machine.
    ///
    /// # Errors
    /// The container does not run.
    pub fn root(&self, container: &str) -> Result<PathBuf> {
        let process = main_process(&self.running(container)?.process)?;
        Ok(PathBuf::from(format!("/proc/{process}/root")))
    }

    /// Ids of the processes in the pod's network namespace.
    pub fn processes(&self) -> Vec<i32> {
        in_network_of(self.sandbox.id().cast_signed())
    }

    fn run_container(&self, container: Container) -> Result<Running> {
        let image = self.node.image(container.image.as_deref().unwrap_or_default())?;
        let context = container.security_context.as_ref();
        let number = |field: Option<i64>, default: u32| field.map_or(Ok(default), u32::try_from);
        let uid = number(context.and_then(|context| context.run_as_user), image.user)?;
        let gid = number(context.and_then(|context| context.run_as_group), image.user)?;
        if context.and_then(|context| context.run_as_non_root) == Some(true) && uid == 0 {
            return Err(format!(
                "container {} has runAsNonRoot, and would run as root",
                container.name
            )
            .into());
        }
        let env = self.environment(&container, &image.path)?;
        let expand_all = |words: &Option<Vec<String>>| -> Option<Vec<String>> {
            words.as_ref().map(|words| words.iter().map(|word| expand(word, &env)).collect())
        };
        let mut command =
            expand_all(&container.command).unwrap_or_else(|| image.entrypoint.clone());
        command.extend(expand_all(&container.args).unwrap_or_default());

        let folder = self.folder.join(&container.name);
        fs::create_dir_all(folder.join("root"))?;
        let mut mounts = image.mounts;
        for mount in container.volume_mounts.iter().flatten() {
            let volume = self.folder.join("volumes").join(&mount.name);
            let known = self.manifest.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let known = known
                .filter(|volume| volume.empty_dir.is_some())
                .any(|volume| volume.name == mount.name);
            if !known {
                return Err(format!(
                    "volume {} is not an emptyDir: others are not known here",
                    mount.name
                )
                .into());
            }
            fs::create_dir_all(&volume)?;
            fs::set_permissions(&volume, fs::Permissions::from_mode(0o777))?;
            let writable = mount.read_only != Some(true);
            mounts.push(Mount {
                source: volume,
                target: PathBuf::from(&mount.mount_path),
                writable,
            });
        }
        let spec = Spec {
            root: folder.join("root"),
            mounts,
            links: image.links,
            read_only_root: context.and_then(|context| context.read_only_root_filesystem)
                == Some(true),
            network: self.network(),
            command,
            env: env.clone(),
            uid,
            gid,
            started: folder.join("started"),
            cgroup: None,
        };
        let file = folder.join("spec.json");
        serde_json::to_writer(File::create(&file)?, &spec)?;
        let mut command = Command::new(self.node.parts().harness("pod-runtime"));
        command.arg("run").arg(&file);
        let name = format!("{}/{}", self.name, container.name);
        let mut process = Process::spawn(&name, self.log_file(&container.name), command)?;
        until(&format!("the start of {name}"), || {
            fs::read(&spec.started).is_ok_and(|text| !text.is_empty())
                || !matches!(process.ended(), Ok(None))
        })?;
        Ok(Running { container, process, env, user: (uid, gid) })
    }

    /// The environment of a container: literal values with `$(NAME)` of the
    /// variables before, and the downward API.
    fn environment(&self, container: &Container, path: &str) -> Result<BTreeMap<String, String>> {
        let mut env = BTreeMap::new();
        if !path.is_empty() {
            env.insert("PATH".to_owned(), path.to_owned());
        }
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(value), _) => expand(value, &env),
                (None, None) => String::new(),
                (None, Some(source)) => {
                    let field =
                        source.field_ref.as_ref().ok_or("the harness supports only fieldRef")?;
                    self.field(&field.field_path)?
                }
            };
            env.insert(variable.name.clone(), value);
        }
        Ok(env)
    }

    fn field(&self, path: &str) -> Result<String> {
        Ok(match path {
            "metadata.name" => self.name.clone(),
            "metadata.namespace" => {
                self.manifest.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned())
            }
            "metadata.uid" => format!("uid-of-{}", self.name),
            "status.podIP" => self.ip.clone(),
            "status.hostIP" => self.node.ip().to_owned(),
            "spec.nodeName" => self.node.name().to_owned(),
            _ => {
                let metadata = &self.manifest.metadata;
                let of = |kind: &str| path.strip_prefix(kind)?.strip_suffix("']");
                let (all, key) = match (of("metadata.annotations['"), of("metadata.labels['")) {
                    (Some(key), _) => (&metadata.annotations, key),
                    (None, Some(key)) => (&metadata.labels, key),
                    (None, None) => {
                        return Err(format!("the harness does not support the field {path}").into());
                    }
                };
                // Empty if it is missing, as in the kubelet.
                all.as_ref().and_then(|all| all.get(key)).cloned().unwrap_or_default()
            }
        })
    }
}

impl Drop for Pod<'_> {
    fn drop(&mut self) {
        // This also removes its network and its port of the node's bridge.
        self.containers.clear();
        let _ = self.sandbox.kill();
        let _ = self.sandbox.wait();
    }
}

// === impl Running ===

impl Running {
    /// Whether it is a native sidecar.
    fn is_native_sidecar(&self) -> bool {
        self.container.restart_policy.as_deref() == Some("Always")
    }

    /// Waits until its startup probe succeeds, if it has one.
    fn await_started(&mut self) -> Result<()> {
        let probe = self.container.startup_probe.clone().and_then(|probe| probe.exec);
        let Some(command) = probe.and_then(|exec| exec.command) else { return Ok(()) };
        let name = self.container.name.clone();
        let started = until(&format!("the startup probe of {name}"), || {
            exec_in(self, &command).is_ok_and(|output| output.status.success())
        });
        started.map_err(|error| format!("{error}\n{}", self.process.output()).into())
    }
}

/// Runs a container's preStop hook, if it has one. Returns a message if it failed: a failed
/// hook does not stop the termination.
fn pre_stop(running: &Running) -> String {
    let hook =
        running.container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let failed = hook.and_then(|hook| run_hook(running, hook).err());
    failed.map(|error| format!("preStop failed: {error}; ")).unwrap_or_default()
}

/// Terminates one container: SIGTERM, and SIGKILL at the deadline.
fn end(running: &mut Running, mut how: String, deadline: Instant) -> Result<(String, String)> {
    let name = running.container.name.clone();
    let process = main_process(&running.process)?;
    kill(process, Signal::SIGTERM)?;
    while running.process.ended()?.is_none() {
        if Instant::now() > deadline {
            how.push_str("killed after the grace period; ");
            kill(process, Signal::SIGKILL)?;
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = running.process.wait()?;
    Ok((name, format!("{how}{status}")))
}

/// Whether Envoy is connected to its xDS server and has its listeners, by its statistics.
pub fn is_settled(stats: &str) -> bool {
    is_connected(stats)
        && (count(stats, "listener_manager.lds.update_success: ").is_some_and(|count| count != "0")
            || has_rejected(stats))
}

/// Whether Envoy is connected to its xDS server, by its statistics. In `connected_state`, a
/// stream that still waits for a connection counts, too.
pub fn is_connected(stats: &str) -> bool {
    count(stats, "control_plane.connected_state: ") == Some("1")
        && count(stats, "cluster.local_agent.upstream_rq_pending_active: ") == Some("0")
}

fn count<'s>(stats: &'s str, name: &str) -> Option<&'s str> {
    stats.lines().find_map(|line| line.strip_prefix(name))
}

/// Whether Envoy has rejected an update.
pub fn has_rejected(stats: &str) -> bool {
    let counts = stats.lines().filter_map(|line| line.split_once("update_rejected: "));
    counts.into_iter().any(|(_, count)| count != "0")
}

fn exec_in(running: &Running, command: &[impl AsRef<std::ffi::OsStr>]) -> Result<Output> {
    let target = main_process(&running.process)?;
    let (uid, gid) = running.user;
    let output = Command::new("nsenter")
        .args(["--target", &target.to_string(), "--mount", "--pid", "--net", "--ipc", "--uts"])
        .args([format!("--setuid={uid}"), format!("--setgid={gid}"), "--".to_owned()])
        .args(command)
        .env_clear()
        .envs(&running.env)
        .stdin(Stdio::null())
        .output()?;
    Ok(output)
}

fn run_hook(running: &Running, hook: &LifecycleHandler) -> Result<()> {
    if let Some(sleep) = &hook.sleep {
        std::thread::sleep(Duration::from_secs(u64::try_from(sleep.seconds)?));
        return Ok(());
    }
    let exec = hook
        .exec
        .as_ref()
        .and_then(|exec| exec.command.as_ref())
        .ok_or("the harness supports only exec and sleep hooks")?;
    let output = exec_in(running, exec)?;
    if output.status.success() {
        return Ok(());
    }
    let (name, errors) = (&running.container.name, String::from_utf8_lossy(&output.stderr));
    Err(format!("hook of {name}: {}: {errors}", output.status).into())
}

/// Replaces `$(NAME)` by a variable's value and `$$` by `$`. An unknown variable stays as it
/// is.
pub fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        rest = match (after.strip_prefix('$'), reference) {
            (Some(after), _) => {
                expanded.push('$');
                after
            }
            (None, Some((name, after))) => {
                match env.get(name) {
                    Some(value) => expanded.push_str(value),
                    None => expanded.extend(["$(", name, ")"]),
                }
                after
            }
            (None, None) => {
                expanded.push('$');
                after
            }
        };
    }
    expanded.push_str(rest);
    expanded
}

/// Id of a container's process 1 on this machine: the runtime's only child.
fn main_process(runtime: &Process) -> Result<ProcessId> {
    let pid = runtime.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let child = children.split_whitespace().next().ok_or("the container has exited")?;
    Ok(ProcessId::from_raw(child.parse()?))
}

fn network_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// The processes in the network namespace of a process.
fn in_network_of(pid: i32) -> Vec<i32> {
    let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let Some(wanted) = network(pid) else { return Vec::new() };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|other| network(*other).as_ref() == Some(&wanted)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_as_kubernetes_does() {
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expanded) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A $", "$A $"),
            ("$(", "$("),
        ] {
            assert_eq!(expand(text, &env), expanded, "{text}");
        }
    }
}
