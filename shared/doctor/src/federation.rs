//! Checks upstreams in peered clusters and other datacenters.

use consul::Agent;
use consul::answer::PeerState;

use crate::PATIENCE;
use crate::finding::{Finding, Reason, Verdict, word};

/// The subject of the findings about peers.
const PEER: &str = "peer";

/// Whether the peer of an upstream exists and is connected.
pub async fn examine_peer(agent: &Agent, peer: &str) -> Finding {
    match agent.within(PATIENCE).peer(peer).await {
        Ok(Some(state)) => judge_peer(peer, state),
        Ok(None) => Finding::new(
            PEER,
            Verdict::Wrong,
            Reason::NoPeer,
            "an upstream names it, but the servers have no such peer",
        )
        .of(peer)
        .hint("correct the upstream's peer, or establish the peering")
        .next("consul peering list"),
        Err(error) => {
            let found = Finding::unknown(PEER, &error).of(peer);
            let is_denied = found.reason == Some(Reason::Denied);
            if is_denied {
                found.hint("an ACL token with `peering = \"read\"` shows it")
            } else {
                found
            }
        }
    }
}

fn judge_peer(peer: &str, state: PeerState) -> Finding {
    let look = || format!("consul peering read -name {}", word(peer));
    let found =
        |verdict, reason, detail: &str| Finding::new(PEER, verdict, reason, detail).of(peer);
    match state {
        PeerState::Active => Finding::ok(PEER, "connected").of(peer),
        PeerState::Failing => found(
            Verdict::Wrong,
            Reason::PeerFailing,
            "the servers have lost the stream to it: information about its services is outdated",
        )
        .hint("check that the other cluster's servers, or its mesh gateways, are reachable on their gRPC TLS port")
        .next(look()),
        PeerState::Pending | PeerState::Establishing => found(
            Verdict::Warning,
            Reason::PeerPending,
            "the peering is not complete",
        )
        .hint("establish it on the other side with the token that was generated on this one")
        .next(look()),
        PeerState::Terminated => found(
            Verdict::Wrong,
            Reason::PeerEnded,
            "the other side has ended the peering: none of its services is reachable",
        )
        .hint("remove the upstream, or delete the peering here and establish it again")
        .next(format!("consul peering delete -name {}", word(peer))),
        PeerState::Deleting => {
            found(Verdict::Wrong, Reason::PeerEnded, "the peering is being deleted here")
                .hint("remove the upstream, or establish the peering again")
                .next(look())
        }
        PeerState::Other => {
            found(Verdict::Unknown, Reason::NotTold, "this program does not know the peering's state")
                .hint("read it with the Consul CLI")
                .next(look())
        }
    }
}

/// Whether the servers know the datacenter of an upstream.
pub async fn examine_datacenter(agent: &Agent, datacenter: &str) -> Finding {
    const WHAT: &str = "datacenter";
    match agent.within(PATIENCE).datacenters().await {
        Err(error) => Finding::unknown(WHAT, &error).of(datacenter),
        Ok(known) if known.iter().any(|known| known == datacenter) => {
            Finding::ok(WHAT, "the servers know it").of(datacenter)
        }
        Ok(known) => Finding::new(
            WHAT,
            Verdict::Wrong,
            Reason::NoDatacenter,
            format!("an upstream names it, but the servers know: {}", known.join(", ")),
        )
        .of(datacenter)
        .hint("correct the upstream's datacenter, or join the servers of both (WAN federation)")
        .next("consul members -wan"),
    }
}
