//! Network namespaces, such as a pod's: each belongs to a thread, which ends with the test.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};

pub(crate) const POD: &str = "10.9.0.1";
pub(crate) const OUTSIDE: &str = "10.9.0.2";
pub(crate) const OUTSIDE_V6: &str = "fd00:9::2";
pub(crate) const POD_V6: &str = "fd00:9::1";

/// Timeout of each operation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace.
pub(crate) struct Network {
    jobs: Sender<Job>,
}

/// A pod and the host at the other end of its veth pair; `None`, with a message, if the
/// machine lacks something.
pub(crate) fn pod_and_outside() -> Option<(Network, Network)> {
    testkit::or_skip(needs())?;
    let (pod, outside) = (Network::new(), Network::new());
    let thread = pod.run(|| nix::unistd::gettid().as_raw());
    outside.run(move || {
        ip(&format!("link add eth0 type veth peer name eth0 netns {thread}"));
        for line in [
            format!("addr add {OUTSIDE}/24 dev eth0"),
            format!("addr add {OUTSIDE_V6}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
        ] {
            ip(&line);
        }
    });
    pod.run(|| {
        for line in [
            format!("addr add {POD}/24 dev eth0"),
            format!("addr add {POD_V6}/64 dev eth0 nodad"),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
            format!("route add default via {OUTSIDE}"),
        ] {
            ip(&line);
        }
    });
    Some((pod, outside))
}

fn needs() -> Result<(), String> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("network namespaces require root".to_owned());
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables"), ("setpriv", "util-linux")] {
        let version = Command::new(program).arg("-V").stdout(Stdio::null()).status();
        if version.is_err() {
            return Err(format!("{program} is not installed: install {package}"));
        }
    }
    Ok(())
}

fn ip(line: &str) {
    let output = output("ip", line);
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs a program in the network namespace of the calling thread.
pub(crate) fn output(program: &str, line: &str) -> Output {
    Command::new(program).args(line.split_whitespace()).output().unwrap()
}

/// Like [`output`], with input on stdin.
pub(crate) fn output_with_input(program: &str, line: &str, input: &str) -> Output {
    let mut command = Command::new(program);
    command.args(line.split_whitespace()).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Listens on that address, sends its port to each client, and then echoes.
pub(crate) fn serve(address: &str) {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let _ = stream.write_all(format!("{port:<5}").as_bytes());
                let mut heard = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut heard) {
                    let _ = stream.write_all(&heard[..length]);
                }
            });
        }
    });
}

/// The port of the listener that a connection to that address reaches.
pub(crate) fn connect(address: &str) -> Option<u16> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut port = [0; 5];
    stream.read_exact(&mut port).unwrap();
    String::from_utf8_lossy(&port).trim().parse().ok()
}

// === impl Network ===

impl Network {
    fn new() -> Self {
        let (jobs, todo) = channel::<Job>();
        std::thread::spawn(move || {
            // Affects this thread and its child processes only.
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            for job in todo {
                job();
            }
        });
        Self { jobs }
    }

    /// Runs a job in this network namespace.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job = Box::new(move || drop(tell.send(job())));
        self.jobs.send(job).unwrap();
        told.recv().expect("the job panicked: see above")
    }
}
