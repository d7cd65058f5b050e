//! The protocol's machines, as they are shipped, in a world where everything goes wrong
//! at every point: no registration comes back after it was deregistered, none is lost,
//! and no token is logged out that one was made with.
//!
//! - [`explore`]: every state that a world can come to
//! - [`scene`]: what happens to a pod, and the rules that can be left out
//! - [`pod`]: a pod and all around it, and what must be true of them
//! - [`machine`]: the shipped machines, as what runs them sees them
//! - [`process`]: what the pod's processes do
//! - [`agent`]: what the agent has and does
//! - [`kubelet`]: what the kubelet does

#![expect(clippy::print_stdout, reason = "the number of states is the result")]

mod agent;
mod explore;
mod kubelet;
mod machine;
mod pod;
mod process;
mod scene;

use explore::Space;
use pod::Pod;
use scene::{Rule, Scene, Variant};

fn check(scene: Scene, left_out: Option<Rule>) -> Result<(), String> {
    let variant = Variant { scene, left_out };
    let space = Space::explore(Pod::new(variant))?;
    println!("{variant:?}: {} states, {} steps", space.len(), space.steps);
    space.ends_well()
}

fn holds(scene: Scene) {
    check(scene, None).unwrap_or_else(|way| panic!("{way}"));
}

#[test]
fn nothing_comes_back_and_nothing_is_lost() {
    holds(Scene::Ending);
}

#[test]
fn nothing_comes_back_and_nothing_is_lost_if_answers_arrive_late() {
    holds(Scene::LateAnswers);
}

/// An agent that hangs while the pod ends.
#[test]
fn a_pod_ends_by_its_deadlines_if_the_agent_does_not_answer() {
    holds(Scene::Hanging);
}

/// What was made with a token that is gone is made again with another; and a token that
/// is about to end is replaced before it does. Reported in
/// <https://github.com/hashicorp/consul/issues/11949>.
#[test]
fn what_is_registered_is_so_with_a_token_that_is_good() {
    holds(Scene::Tokens);
}

/// The agent does not tell the servers of a deregistration whose token is gone.
#[test]
fn a_pod_that_ends_without_its_token_logs_in_to_leave_nothing_behind() {
    holds(Scene::EndingTokens);
}

/// Two pods of one name in two namespaces, on one node. Reported in
/// <https://github.com/hashicorp/consul-k8s/issues/690>.
#[test]
fn another_pods_entry_is_never_touched() {
    holds(Scene::Neighbour);
}

/// An agent that comes back with what it had is not registered with again, and one that
/// is not heard is asked on another connection.
#[test]
fn what_an_agent_loses_in_a_restart_is_registered_again_and_nothing_else() {
    holds(Scene::Restarts);
}

/// The model can tell a wrong protocol: each rule, left out, is missed.
#[test]
fn no_rule_can_be_left_out() {
    for (scene, rule, words) in [
        (Scene::Ending, Rule::Lock, "came back"),
        (Scene::Ending, Rule::SecondLook, "stands beside"),
        (Scene::Ending, Rule::TombstoneFirst, "stands beside"),
        (Scene::Ending, Rule::LookAfterFailure, "stands beside"),
        (Scene::Ending, Rule::LoggedOutWhenUnused, "whose token the pod has logged out"),
        (Scene::LateAnswers, Rule::Lock, "came back"),
        (Scene::LateAnswers, Rule::GivenUpMayHaveArrived, "whose token the pod has logged out"),
        (Scene::LateAnswers, Rule::EarlierRunsTakenBack, "whose token the pod has logged out"),
        (Scene::Hanging, Rule::Deadline, "does not end well"),
        (Scene::Tokens, Rule::TriedUntilDone, "does not end well"),
        (Scene::Tokens, Rule::NothingTrustedAtStart, "does not end well"),
        (Scene::Tokens, Rule::ReplacedAhead, "does not end well"),
        (Scene::Tokens, Rule::LoggedOutLast, "a token was logged out"),
        (Scene::EndingTokens, Rule::LoggedInToEnd, "whose token the pod has logged out"),
        (Scene::EndingTokens, Rule::RegisteredToDeregister, "the servers go on listing"),
        (Scene::Neighbour, Rule::OwnersCompared, "another pod's entry was touched"),
        (Scene::Restarts, Rule::ServiceWatched, "does not end well"),
        (Scene::Restarts, Rule::Patience, "does not end well"),
        (Scene::Restarts, Rule::SeenBeforeRegistered, "nothing was lost or changed"),
    ] {
        let way =
            check(scene, Some(rule)).expect_err("a protocol without one of its rules is wrong");
        println!("{scene:?} without {rule:?}: {way}\n");
        assert!(way.contains(words), "{scene:?} without {rule:?}: {way}");
    }
}
