//! No text panics in either format; what is wrong has a place within the text;
//! and what is read is the same after it is printed.

#![no_main]

use definition::{Definition, Format};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for format in [Format::Hcl, Format::Json] {
        match definition::parse("f", format, text) {
            Ok(definitions) => {
                printed(&definitions, Format::Json);
                printed(&definitions, Format::Hcl);
            }
            Err(problems) => {
                assert!(!problems.is_empty());
                for problem in problems {
                    let line = text.split('\n').nth(problem.line - 1).expect("a line of the text");
                    assert!(problem.column <= line.chars().count() + 1);
                    assert!(!problem.to_string().is_empty());
                }
            }
        }
    }
});

fn printed(definitions: &[Definition], format: Format) {
    let services: Vec<_> = definitions.iter().map(|read| &read.service).collect();
    let text = definition::print(services.iter().copied(), format);
    let again = definition::parse("f", format, &text).expect("what is printed is read");
    // HCL has no null.
    if format == Format::Json {
        assert!(again.iter().map(|read| &read.service).eq(services));
    }
}
