//! The cluster from inside: what is mounted, the network, and the programs in
//! the order in which they need each other. It is run as a process of the
//! cluster's own namespaces: whatever it makes but files outside of its folder,
//! the kernel takes away with them.

use std::fs;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::json;

use crate::network::{Family, Network};
use crate::parts::Parts;
use crate::{images, registry, write};
use harness::process::{Process, run, tail};
use harness::{Result, until};

pub const NAME: &str = "node-1";
const REGISTRY: &str = "127.0.0.1:5000";
const TOKEN: &str = "of-this-cluster-only";

/// Directory of the node's CNI plugins.
pub const CNI_BIN_DIR: &str = "/var/lib/cni/bin";
/// Directory of the node's CNI configurations.
pub const CNI_NET_DIR: &str = "/var/lib/cni/net.d";

/// The kernel settings that the kubelet wants. It sees files with these values; the
/// machine's own settings stay as they are.
const KERNEL: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A cluster that runs. Its programs end with it.
#[derive(Debug)]
pub struct Node {
    programs: Vec<Process>,
    kubelet: Program,
    /// How it is reached from inside.
    pub kubeconfig: PathBuf,
}

/// What a cluster is told from outside.
#[derive(Debug)]
pub struct Settings {
    /// An empty folder that outlives the cluster.
    pub folder: PathBuf,
    /// The name of its control groups.
    pub cgroup: String,
    /// Where the API server is reached from outside.
    pub door: TcpListener,
    /// Which addresses it has.
    pub family: Family,
}

// === impl Node ===

impl Node {
    /// Starts everything, and waits until the node is ready.
    ///
    /// # Errors
    /// What did not come up, with its output.
    pub fn start(parts: &Parts, settings: Settings) -> Result<Self> {
        let Settings { folder, cgroup, door, family } = settings;
        let network = family.network();
        let data = folder.join("data");
        mounts(&data)?;
        network.make()?;
        images::make(&data.join("images"), parts)?;
        registry::serve(TcpListener::bind(REGISTRY)?, data.join("images"));
        let address = door.local_addr()?;
        forward(door);

        let starter = Starter { parts, data: &data, folder: &folder, network };
        let secrets = Secrets::make(&data, network)?;
        let kubeconfig = folder.join("kubeconfig");
        write(&kubeconfig, &user(&secrets, &address.to_string()))?;
        let inner = data.join("kubeconfig");
        write(&inner, &user(&secrets, "127.0.0.1:443"))?;

        let mut programs = vec![starter.etcd().start()?, starter.containerd()?.start()?];
        programs.push(starter.api_server().start()?);
        let kubectl = |args: &[&str]| {
            let config = format!("--kubeconfig={}", inner.display());
            let args: Vec<&str> =
                [config.as_str()].into_iter().chain(args.iter().copied()).collect();
            run(&parts.kubernetes("kubectl").to_string_lossy(), &args)
        };
        await_up(&mut programs, "the API server", || kubectl(&["get", "--raw=/readyz"]).is_ok())?;
        await_up(&mut programs, "containerd", || data.join("containerd.sock").exists())?;
        cgroups(&cgroup)?;
        let kubelet = starter.kubelet(&cgroup)?;
        programs.push(kubelet.start()?);
        programs.push(starter.scheduler().start()?);
        programs.push(starter.controller_manager().start()?);
        await_up(&mut programs, "the node's readiness", || {
            let ready = "-o=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
            kubectl(&["get", "node", NAME, ready]).is_ok_and(|status| status == "True")
        })?;
        Ok(Self { programs, kubelet, kubeconfig: inner })
    }

    /// Waits for the first program that ends, which none should. Only the kubelet
    /// is started again, as a node's service manager does it.
    ///
    /// # Errors
    /// Always: with the name and the end of the output.
    pub fn watch(mut self) -> Result<()> {
        loop {
            for program in &mut self.programs {
                if program.name() == self.kubelet.name && program.ended()?.is_some() {
                    *program = self.kubelet.start()?;
                }
            }
            ended(&mut self.programs)?;
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }
}

/// One of a cluster's programs, and how it is started.
#[derive(Debug)]
struct Program {
    name: String,
    path: PathBuf,
    args: Vec<String>,
    log: PathBuf,
    /// Where it looks for others.
    search: String,
}

// === impl Program ===

impl Program {
    fn start(&self) -> Result<Process> {
        let env = [("PATH", self.search.as_str())];
        Process::start(&self.name, self.log.clone(), &self.path, &self.args, &env)
    }
}

/// Waits for something of programs that are to go on meanwhile.
fn await_up(programs: &mut [Process], what: &str, mut is_up: impl FnMut() -> bool) -> Result<()> {
    let mut failed = Ok(());
    let waited = until(what, || {
        failed = ended(programs);
        failed.is_err() || is_up()
    });
    failed?;
    waited.map_err(|error| {
        let last = programs.last().map(Process::output).unwrap_or_default();
        format!("{error}\n{}", tail(&last, 20)).into()
    })
}

fn ended(programs: &mut [Process]) -> Result<()> {
    for program in programs {
        if let Some(status) = program.ended()? {
            return Err(format!(
                "{} ended: {status}\n{}",
                program.name(),
                tail(&program.output(), 20)
            )
            .into());
        }
    }
    Ok(())
}

/// Makes everything that the programs write to by a path that can't be chosen
/// a place of this mount namespace, in memory.
fn mounts(data: &Path) -> Result<()> {
    let none: Option<&str> = None;
    let memory = |place: &Path| {
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755"))
            .map_err(|errno| format!("cannot mount {}: {errno}", place.display()))
    };
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), none)?;
    fs::create_dir_all(data)?;
    memory(data)?;
    memory(Path::new("/run"))?;
    for name in ["lib", "log"] {
        let place = Path::new("/var").join(name);
        let (upper, work) =
            (data.join("var").join(name), data.join("var").join(format!("{name}.work")));
        fs::create_dir_all(&upper)?;
        fs::create_dir_all(&work)?;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            place.display(),
            upper.display(),
            work.display()
        );
        mount(Some("overlay"), &place, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .map_err(|errno| format!("cannot lay a folder over {}: {errno}", place.display()))?;
    }
    // The kernel gives a pod in a user namespace its own /proc only if there is one that
    // nothing covers.
    let whole = data.join("proc");
    fs::create_dir_all(&whole)?;
    mount(Some("proc"), &whole, Some("proc"), MsFlags::empty(), none)?;
    for (name, value) in KERNEL {
        let file = data.join(name.replace('/', "."));
        write(&file, &format!("{value}\n"))?;
        let place = Path::new("/proc/sys").join(name);
        mount(Some(&file), &place, none, MsFlags::MS_BIND, none)
            .map_err(|errno| format!("cannot cover {}: {errno}", place.display()))?;
    }
    Ok(())
}

/// Lets connections to a socket of another network reach the API server.
fn forward(door: TcpListener) {
    let to = SocketAddr::from(([127, 0, 0, 1], 443));
    std::thread::spawn(move || {
        for client in door.incoming().flatten() {
            let Ok(server) = TcpStream::connect(to) else { continue };
            let both = client.try_clone().and_then(|client| Ok((client, server.try_clone()?)));
            let Ok((client_too, server_too)) = both else { continue };
            std::thread::spawn(move || pass(&client, &server));
            std::thread::spawn(move || pass(&server_too, &client_too));
        }
    });
}

/// Passes bytes on until there are no more, and says so to the other end.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    // Either end may break off: the other is told, and that is all.
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}

/// The control groups of pods. A cpuset that is new has no processors.
fn cgroups(name: &str) -> Result<()> {
    let top = Path::new("/sys/fs/cgroup");
    if top.join("cgroup.controllers").exists() {
        return Err("this machine has cgroup v2 only, and the node takes the hierarchies of v1\n\
                    hint: set KUBECONFIG to a cluster of yours"
            .into());
    }
    for hierarchy in fs::read_dir(top)? {
        let hierarchy = hierarchy?;
        // Some are links to others.
        if !hierarchy.file_type()?.is_dir() || hierarchy.file_name() == "unified" {
            continue;
        }
        let group = hierarchy.path().join(name);
        fs::create_dir_all(&group)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if group.join(file).exists() {
                write(&group.join(file), &fs::read_to_string(hierarchy.path().join(file))?)?;
            }
        }
    }
    Ok(())
}

/// Keys and certificates of a cluster.
struct Secrets {
    /// The certificate of the authority, PEM.
    ca: String,
}

// === impl Secrets ===

impl Secrets {
    fn make(data: &Path, network: &Network) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "the authority of a test's cluster");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = ["127.0.0.1", network.node, network.api, "localhost", "kubernetes.default.svc"];
        let params = CertificateParams::new(names.map(str::to_owned))?;
        let certificate = params.signed_by(&key, &authority)?;
        write(&data.join("ca.crt"), &authority.pem())?;
        write(&data.join("api.crt"), &certificate.pem())?;
        write(&data.join("api.key"), &key.serialize_pem())?;
        let accounts = KeyPair::generate()?;
        write(&data.join("accounts.key"), &accounts.serialize_pem())?;
        write(&data.join("accounts.pub"), &accounts.public_key_pem())?;
        write(&data.join("tokens.csv"), &format!("{TOKEN},admin,admin,system:masters\n"))?;
        Ok(Self { ca: authority.pem() })
    }
}

/// A kubeconfig, in JSON, which is YAML, too.
fn user(secrets: &Secrets, address: &str) -> String {
    use base64::Engine as _;
    let ca = base64::prelude::BASE64_STANDARD.encode(&secrets.ca);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority-data": ca,
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    })
    .to_string()
}

/// Says how the programs are started.
struct Starter<'a> {
    parts: &'a Parts,
    data: &'a Path,
    folder: &'a Path,
    network: &'a Network,
}

// === impl Starter ===

impl Starter<'_> {
    fn program(&self, path: PathBuf, args: impl Into<Vec<String>>) -> Program {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // containerd finds its shim and runc there.
        let search = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.parts.node.display());
        let log = self.folder.join(format!("{name}.log"));
        Program { name, path, args: args.into(), log, search }
    }

    fn flag(name: &str, value: impl std::fmt::Display) -> String {
        format!("--{name}={value}")
    }

    /// A flag whose value is a file of the cluster's.
    fn file(&self, name: &str, file: &str) -> String {
        Self::flag(name, self.data.join(file).display())
    }

    fn etcd(&self) -> Program {
        let args = [
            self.file("data-dir", "etcd"),
            Self::flag("listen-client-urls", "http://127.0.0.1:2379"),
            Self::flag("advertise-client-urls", "http://127.0.0.1:2379"),
            Self::flag("listen-peer-urls", "http://127.0.0.1:2380"),
        ];
        self.program(self.parts.node("etcd"), args)
    }

    fn containerd(&self) -> Result<Program> {
        let (data, bin) = (self.data.display(), self.parts.node.display());
        // Directories of this cluster only: a test installs another plugin there.
        for folder in [CNI_BIN_DIR, CNI_NET_DIR] {
            fs::create_dir_all(folder)?;
        }
        for plugin in ["bridge", "host-local", "loopback"] {
            symlink(self.parts.node(plugin), Path::new(CNI_BIN_DIR).join(plugin))?;
        }
        let config = format!(
            r#"version = 2
root = "{data}/containerd"
state = "{data}/containerd-state"
[grpc]
  address = "{data}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{CNI_BIN_DIR}"
  conf_dir = "{CNI_NET_DIR}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = "{bin}/runc"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{data}/hosts"
"#,
            pause = images::PAUSE,
        );
        write(&self.data.join("containerd.toml"), &config)?;
        // The registry serves all images, whatever host their names have.
        let hosts = self.data.join("hosts/_default");
        fs::create_dir_all(&hosts)?;
        write(&hosts.join("hosts.toml"), &format!("[host.\"http://{REGISTRY}\"]\n"))?;
        let network = json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [{
                "type": "bridge",
                "bridge": "pods",
                "isGateway": true,
                // A pod may reach itself by its own address.
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.data.join("ipam"),
                    "ranges": [[{"subnet": self.network.pods}]],
                    "routes": [{"dst": self.network.everywhere}],
                },
            }],
        });
        write(&Path::new(CNI_NET_DIR).join("10-pods.conflist"), &network.to_string())?;
        Ok(self.program(self.parts.node("containerd"), [self.file("config", "containerd.toml")]))
    }

    fn api_server(&self) -> Program {
        let args = [
            Self::flag("etcd-servers", "http://127.0.0.1:2379"),
            Self::flag("bind-address", self.network.any),
            Self::flag("advertise-address", self.network.node),
            // The port of the Service `kubernetes`, too.
            Self::flag("secure-port", "443"),
            self.file("cert-dir", "api"),
            self.file("tls-cert-file", "api.crt"),
            self.file("tls-private-key-file", "api.key"),
            self.file("token-auth-file", "tokens.csv"),
            self.file("service-account-key-file", "accounts.pub"),
            self.file("service-account-signing-key-file", "accounts.key"),
            Self::flag("service-account-issuer", "https://kubernetes.default.svc"),
            Self::flag("service-cluster-ip-range", self.network.services),
            Self::flag("authorization-mode", "RBAC"),
            Self::flag("allow-privileged", "true"),
            Self::flag("kubelet-preferred-address-types", "InternalIP"),
            // A webhook's Service is asked at its pods' addresses: there is no
            // proxy for the addresses of Services.
            Self::flag("enable-aggregator-routing", "true"),
            // Tests run at once, as one user.
            Self::flag("enable-priority-and-fairness", "false"),
        ];
        self.program(self.parts.kubernetes("kube-apiserver"), args)
    }

    fn kubelet(&self, cgroup: &str) -> Result<Program> {
        let socket = format!("unix://{}", self.data.join("containerd.sock").display());
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{cgroup}"),
            "cgroupsPerQOS": true,
            "enforceNodeAllocatable": [],
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": false,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "evictionHard": {"nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "syncFrequency": "2s",
            // How much a pod has written is known in seconds, not in a minute.
            "volumeStatsAggPeriod": "2s",
            "nodeStatusUpdateFrequency": "1s",
            "serializeImagePulls": false,
            "registryPullQPS": 0,
            // 0 would mean 5 a second, client-go's default.
            "eventRecordQPS": 1000,
            "eventBurst": 2000,
            // Without one, the kubelet sends a warning at each sync of each pod.
            "clusterDNS": [self.network.api],
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "containerRuntimeEndpoint": socket,
            "imageServiceEndpoint": socket,
            "failCgroupV1": false,
        });
        write(&self.data.join("kubelet.json"), &config.to_string())?;
        let args = [
            self.file("config", "kubelet.json"),
            self.file("kubeconfig", "kubeconfig"),
            self.file("root-dir", "kubelet"),
            self.file("cert-dir", "kubelet-certificates"),
            Self::flag("hostname-override", NAME),
            Self::flag("node-ip", self.network.node),
            // For the kubelet's garbage collection, each minute, a container that is about to
            // start counts as dead. With 1, the default, it removed the one before it, and with
            // it why that ended.
            Self::flag("maximum-dead-containers-per-container", "2"),
        ];
        Ok(self.program(self.parts.kubernetes("kubelet"), args))
    }

    fn scheduler(&self) -> Program {
        let args = [
            self.file("kubeconfig", "kubeconfig"),
            Self::flag("leader-elect", "false"),
            Self::flag("bind-address", "127.0.0.1"),
            self.file("cert-dir", "scheduler"),
        ];
        self.program(self.parts.kubernetes("kube-scheduler"), args)
    }

    fn controller_manager(&self) -> Program {
        let args = [
            self.file("kubeconfig", "kubeconfig"),
            Self::flag("leader-elect", "false"),
            Self::flag("bind-address", "127.0.0.1"),
            self.file("cert-dir", "controller-manager"),
            self.file("service-account-private-key-file", "accounts.key"),
            self.file("root-ca-file", "ca.crt"),
            Self::flag("controllers", "*,-node-ipam-controller"),
            Self::flag("kube-api-qps", "100"),
            Self::flag("kube-api-burst", "200"),
        ];
        self.program(self.parts.kubernetes("kube-controller-manager"), args)
    }
}
