//! The tutorial, from injection to the end of a pod.

use harness::demo;
use harness::parts::Parts;

fn play(parts: Option<Parts>) {
    let Some(parts) = parts else { return };
    let mut said = Vec::new();
    let played = demo::play(parts, &mut |line| said.push(line.to_owned()));
    played.unwrap_or_else(|error| panic!("{error}\nuntil then:\n{}", said.join("\n")));
}

#[test]
fn the_tutorial_works_unchanged() {
    play(Parts::find_or_skip());
}

#[test]
fn the_tutorial_works_on_the_oldest_consul() {
    play(Parts::with_oldest_consul_or_skip());
}

#[test]
fn the_tutorial_works_with_the_oldest_envoy() {
    play(Parts::with_oldest_envoy_or_skip());
}
