//! The protocol's machines, as they are shipped, in a world where everything
//! goes wrong at every point: no registration comes back after it was taken
//! back, and none is lost.
//!
//! - [`explore`]: every state that a world can come to
//! - [`world`]: the agent, the folder, and the processes of a pod

#![expect(clippy::print_stdout, reason = "the number of states is the result")]

mod explore;
mod world;

use explore::Space;
use world::{Pod, Variant};

fn check(variant: Variant) -> Result<(), String> {
    let space = Space::explore(Pod::new(variant))?;
    println!("{variant:?}: {} states, {} steps", space.len(), space.steps);
    space.ends_well()
}

#[test]
fn nothing_comes_back_and_nothing_is_lost() {
    check(Variant::AsShipped).unwrap_or_else(|way| panic!("{way}"));
}

/// Pain 22: what was made with a token that is gone is made again with another.
#[test]
fn what_is_registered_is_so_with_a_token_that_is_good() {
    check(Variant::WithLogin).unwrap_or_else(|way| panic!("{way}"));
}

/// P14: two pods of one name in two namespaces, on one node.
#[test]
fn another_pods_entry_is_never_touched() {
    check(Variant::WithNeighbour).unwrap_or_else(|way| panic!("{way}"));
}

/// The model can tell a wrong protocol: each rule, left out, is missed.
#[test]
fn no_rule_can_be_left_out() {
    for (variant, words) in [
        (Variant::WithoutLock, "came back"),
        (Variant::WithoutSecondLook, "stands beside"),
        (Variant::TombstoneLast, "stands beside"),
        (Variant::ServiceNotWatched, "does not end well"),
        (Variant::WithoutLookAfterFailure, "stands beside"),
        (Variant::TriedAnewOnce, "does not end well"),
        (Variant::TrustedAtStart, "does not end well"),
        (Variant::TakesAllAsOurs, "another pod's entry was touched"),
    ] {
        let way = check(variant).expect_err("a protocol without one of its rules is wrong");
        println!("{variant:?}: {way}\n");
        assert!(way.contains(words), "{variant:?}: {way}");
    }
}
