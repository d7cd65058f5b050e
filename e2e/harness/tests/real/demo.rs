//! The user's document, from injection to the end of a pod.

use harness::demo;
use harness::parts::Parts;

#[test]
fn the_document_happens_word_for_word() {
    let Some(parts) = Parts::find_or_skip() else { return };
    let mut said = Vec::new();
    let played = demo::play(parts, &mut |line| said.push(line.to_owned()));
    played.unwrap_or_else(|error| panic!("{error}\nuntil then:\n{}", said.join("\n")));
}
