//! The user's document, by kubectl.

use e2e::cluster::client::Cluster;
use e2e::cluster::demo;

#[test]
fn the_document_happens_word_for_word() {
    let Some(cluster) = Cluster::find_or_skip() else { return };
    let mut said = Vec::new();
    let played = demo::play(cluster, &mut |line| said.push(line.to_owned()));
    played.unwrap_or_else(|error| panic!("{error}\nuntil then:\n{}", said.join("\n")));
}
