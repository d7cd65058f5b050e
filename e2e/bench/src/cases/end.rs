//! The pod's end: deregisters service and proxy. The peer is Consul's CLI with the definition
//! file, the floor is curl with the same requests.

use super::start::{Bench, PROXY, SERVICE, text};
use crate::command::{Steps, Taken};
use crate::figure::{Budget, Figure, Row};
use crate::{Found, Plan};
use harness::Result;
use harness::node::Node;

/// # Errors
/// A program fails.
pub(super) fn run(plan: &Plan) -> Result<Found> {
    let node = Node::new(plan.parts.clone())?;
    let _agent = node.start_agent()?;
    let bench = Bench::new(plan, &node)?;
    bench.describe()?;
    let consul = text(&plan.parts.consul);
    let cli = Steps::default().then(&[
        &consul,
        "services",
        "deregister",
        &format!("-http-addr={}", bench.url()),
        &text(&bench.definition()),
    ]);
    let curl = curl(bench.url());
    let (mut ours, mut peer, mut floor) = (Taken::default(), Taken::default(), Taken::default());
    for _ in 0..plan.runs {
        let ended = Steps::default().then(&[
            &text(&plan.parts.bins.join("connect-lifecycle")),
            "deregister",
            "--dir",
            &text(&bench.last_folder()),
        ]);
        for (taken, steps) in [(&mut ours, &ended), (&mut peer, &cli), (&mut floor, &curl)] {
            Taken::default().add(plan, &bench.init()?)?;
            taken.add(plan, steps)?;
            let left = node.get("/v1/agent/services")?;
            if left.as_object().is_none_or(|left| !left.is_empty()) {
                return Err(format!("not all is deregistered: {left}").into());
            }
        }
    }
    let row = |what: &str, unit, figure: fn(&Taken) -> Option<Figure>| -> Result<Row> {
        let ours = figure(&ours).ok_or("nothing was run")?;
        let row = Row::new(format!("pod's end: {what}"), unit, ours);
        Ok(row.peer(figure(&peer)).floor(figure(&floor)))
    };
    let rows = vec![
        row("wall", "ms", Taken::wall)?,
        row("processor", "ms", Taken::cpu)?,
        row("peak memory", "MiB", Taken::peak)?.budget(Budget::TimesLessThanPeer(8.0)),
    ];
    Ok(Found { rows, ..Found::default() })
}

/// Deregisters each and verifies that it is gone, like connect-lifecycle.
fn curl(url: &str) -> Steps {
    let mut args = vec!["curl".to_owned()];
    for (index, id) in [PROXY, SERVICE].into_iter().enumerate() {
        if index > 0 {
            args.push("--next".to_owned());
        }
        // Without -f, because the answer for a missing service is 404.
        args.extend(["-s", "-o", "/dev/null", "-X", "PUT"].map(str::to_owned));
        args.push(format!("{url}/v1/agent/service/deregister/{id}"));
        args.extend(["--next", "-s", "-o", "/dev/null"].map(str::to_owned));
        args.push(format!("{url}/v1/agent/service/{id}"));
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Steps::default().then(&args)
}
