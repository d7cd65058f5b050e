//! The redirect rules of a transparent pod, loaded into a new network namespace and verified.
//! The peer is iptables, with one process per rule as in other injectors: for IPv4 only, and
//! without verification. The floor is nft, which loads the same rules in one transaction,
//! without verification.

use std::path::Path;

use nix::sched::{CloneFlags, unshare};

use crate::command::{Steps, Taken};
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan};
use harness::Result;
use harness::process::{run as output_of, write};

/// Excluded ports: probes, metrics, and a database.
const PORTS_IN: [&str; 3] = ["20300", "20200", "20600"];
const PORT_OUT: &str = "5432";

/// The node's agent, which is excluded, too.
const AGENT: &str = "10.99.0.1";

/// The rules that are not about a port, as arguments of iptables.
const IPTABLES: [&str; 12] = [
    "-N CONNECT_OUT",
    "-A CONNECT_OUT -m owner --uid-owner 5995 -j RETURN",
    "-A CONNECT_OUT -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:8653",
    "-A CONNECT_OUT -p tcp --dport 53 -j DNAT --to-destination 127.0.0.1:8653",
    "-A CONNECT_OUT -o lo -j RETURN",
    "-A CONNECT_OUT -d 10.99.0.1/32 -j RETURN",
    "-A CONNECT_OUT -p tcp --dport 5432 -j RETURN",
    "-A CONNECT_OUT -p tcp --syn -j REDIRECT --to-ports 15001",
    "-A OUTPUT -j CONNECT_OUT",
    "-N CONNECT_IN",
    "-A PREROUTING -p tcp -j CONNECT_IN",
    "-A CONNECT_IN -p tcp --syn -j REDIRECT --to-ports 20000",
];

/// # Errors
/// A program fails; with its output.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let program = plan.parts.bins.join("connect-redirect");
    let size = std::fs::metadata(&program)?.len();
    let folder = tempfile::tempdir()?;
    let rules = folder.path().join("rules.nft");
    let flags = flags();
    let command = |verb: &'static str| -> Vec<String> {
        let program = program.to_string_lossy().into_owned();
        [program, verb.to_owned()].into_iter().chain(flags.iter().cloned()).collect()
    };
    let print = command("print");
    write(&rules, &output_of(&print[0], &print[1..])?)?;
    let apply = command("apply");
    let apply: Vec<&str> = apply.iter().map(String::as_str).collect();
    let ways = [Steps::default().then(&apply), iptables(), nft(&rules)];
    let mut taken = [(); 3].map(|()| Taken::default());
    for round in 0..=plan.runs {
        for (steps, taken) in ways.iter().zip(&mut taken) {
            let mut once = Taken::default();
            in_a_new_network(|| once.add(plan, steps))?;
            // The first run is not counted: it reads files and loads kernel modules.
            if round > 0 {
                taken.append(once);
            }
        }
    }
    let [ours, peer, floor] = &taken;
    let row = |what: &str, unit, figure: fn(&Taken) -> Option<Figure>| -> Result<Row> {
        let row = Row::new(format!("redirect rules: {what}"), unit, figure(ours).ok_or("no run")?);
        Ok(row.peer(figure(peer)).floor(figure(floor)))
    };
    #[expect(clippy::cast_precision_loss, reason = "a file of less than 2^52 bytes")]
    let size = Figure::exact(size as f64 / f64::from(1 << 20));
    Ok(Found {
        rows: vec![
            row("wall", "ms", Taken::wall)?.budget(Budget::AtMost(15.0)),
            row("processor", "ms", Taken::cpu)?,
            Row::new("connect-redirect: size", "MiB", size),
        ],
        ..Found::default()
    })
}

/// Arguments of connect-redirect.
fn flags() -> Vec<String> {
    vec![
        format!("--exclude-inbound-port={}", PORTS_IN.join(",")),
        format!("--exclude-outbound-port={PORT_OUT}"),
        format!("--exclude-outbound-cidr={AGENT}/32"),
        "--consul-dns=127.0.0.1:8653".to_owned(),
    ]
}

fn iptables() -> Steps {
    let ports = PORTS_IN.map(|port| format!("-I CONNECT_IN -p tcp --dport {port} -j RETURN"));
    let all = IPTABLES.iter().copied().chain(ports.iter().map(String::as_str));
    all.fold(Steps::default(), |steps, rule| {
        let args: Vec<&str> =
            ["iptables", "-w", "-t", "nat"].into_iter().chain(rule.split(' ')).collect();
        steps.then(&args)
    })
}

fn nft(rules: &Path) -> Steps {
    Steps::default().then(&["nft", "-f", &rules.to_string_lossy()])
}

/// Runs something in a network namespace like a pod's, with an address and a default route.
fn in_a_new_network(act: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let act = || {
        // Affects only this thread, and ends with it.
        unshare(CloneFlags::CLONE_NEWNET)?;
        for command in [
            "link set lo up",
            "link add eth0 type veth peer name node",
            "link set node up",
            "addr add 10.99.0.9/24 dev eth0",
            "link set eth0 up",
            "route add default via 10.99.0.1",
        ] {
            output_of("ip", &command.split(' ').collect::<Vec<_>>())?;
        }
        act()
    };
    std::thread::scope(|scope| scope.spawn(act).join())
        .unwrap_or_else(|_| Err("the case panicked".into()))
}
