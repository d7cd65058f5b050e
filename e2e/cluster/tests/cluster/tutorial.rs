//! The tutorial, with kubectl.

use cluster::demo;

use crate::support::sharing;

#[test]
fn the_tutorial_works_unchanged() {
    let Some((cluster, _shared)) = sharing() else { return };
    let mut said = Vec::new();
    let played = demo::play(cluster, &mut |line| said.push(line.to_owned()));
    played.unwrap_or_else(|error| panic!("{error}\nuntil then:\n{}", said.join("\n")));
}
