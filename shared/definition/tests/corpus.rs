//! The seeds of the fuzz target (`fuzz/`), without a fuzzer: none panics, a
//! problem has a place, and what is read is the same after it is printed.

use definition::Format;

#[test]
fn every_seed_has_an_answer() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/parse");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus") {
        let path = entry.expect("an entry").path();
        // The fuzzer's own finds need not be text.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        count += 1;
        match definition::parse("f", Format::Hcl, &text) {
            Ok(read) => {
                let services: Vec<_> = read.iter().map(|read| &read.service).collect();
                for format in [Format::Hcl, Format::Json] {
                    let printed = definition::print(services.iter().copied(), format);
                    let again = definition::parse("f", format, &printed).expect("it is printed");
                    assert!(again.iter().map(|read| &read.service).eq(services.iter().copied()));
                }
            }
            Err(problems) => {
                let line = text.split('\n').nth(problems[0].line - 1).expect("a line of the text");
                assert!(problems[0].column <= line.chars().count() + 1, "{}", problems[0]);
            }
        }
    }
    assert!(count > 100, "{count} seeds");
}

/// Long files of every shape; anything that is not linear takes minutes.
#[test]
fn long_files_have_an_answer() {
    let times = |text: &str| text.repeat(500_000 / text.len());
    let pairs = (0..40_000).map(|n| format!("k{n} = 1")).collect::<Vec<_>>().join(" ");
    let key = "k".repeat(250_000);
    for text in [
        times("services { name = \"a\" } "),
        times("a {} "),
        times("a = [1] "),
        times("a = 1 "),
        times("a "),
        times("{"),
        times("["),
        times("# x\n"),
        times("/* "),
        times("\""),
        times("\"${"),
        times("a = <<E\n"),
        format!("a = <<E\n{}", times("x\n")),
        format!("service {{ {pairs} }}"),
        format!("service {{ meta {{ {pairs} }} }}"),
        format!("service {{ tagged_addresses {{ {key} {{ {pairs} }} }} }}"),
        format!("service {{ name = \"a\" proxy {{ config {{ {pairs} }} }} }}"),
        format!("{{\"service\": {{\"{key}\": {}", times("[1,")),
        format!("{{\"services\": [{}{{\"name\": \"b\"}}]}}", times("{\"name\": \"a\"},")),
    ] {
        for format in [Format::Hcl, Format::Json] {
            if let Err(problems) = definition::parse("f", format, &text) {
                assert!(!problems.is_empty() && problems.len() <= 50);
            }
        }
    }
}
