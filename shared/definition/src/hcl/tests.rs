use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};

use super::*;
use crate::tree::DEEPEST;

fn read(text: &str) -> Json {
    parse(text).unwrap_or_else(|found| panic!("{text}: {}", found.message)).to_json()
}

fn value(text: &str) -> Json {
    read(&format!("a = {text}"))["a"].take()
}

fn error(text: &str) -> (usize, String) {
    match parse(text) {
        Ok(node) => panic!("{text} is {}", node.to_json()),
        Err(found) => (found.offset, found.message),
    }
}

#[test]
fn nothing_separates_items_but_themselves() {
    let expected = json!({"a": {"b": 1, "c": "x"}});
    for text in [
        "a { b = 1 c = \"x\" }",
        "a { b = 1, c = \"x\", }",
        "a = { b = 1\nc = \"x\" }",
        "\"a\"\n{ \"b\"=1 c\n=\n\"x\"} ,",
        "# one\na { // two\nb /* three\n */ = 1 c = \"x\" # four\r\n}\r\n//",
    ] {
        assert_eq!(read(text), expected, "{text}");
    }
    assert_eq!(read(" \n"), json!({}));
    assert_eq!(read("a-b.c_1 = 1 _d = 2 \u{e9} = 3"), json!({"a-b.c_1": 1, "_d": 2, "\u{e9}": 3}));
}

#[test]
fn blocks_add_up_and_keys_in_a_row_are_blocks() {
    assert_eq!(read("a {} b = {}"), json!({"a": {}, "b": {}}));
    assert_eq!(read("a { x = 1 } a { x = 2 }"), json!({"a": [{"x": 1}, {"x": 2}]}));
    assert_eq!(read("a = [{ x = 1 }] a { x = 2 }"), json!({"a": [{"x": 1}, {"x": 2}]}));
    assert_eq!(read("a = [1] a = [2]"), json!({"a": [1, 2]}));
    assert_eq!(read("a b \"c d\" { x = 1 }"), json!({"a": {"b": {"c d": {"x": 1}}}}));
}

#[test]
fn lists() {
    for (text, expected) in [
        ("[]", json!([])),
        ("[1, \"x\", true, [2], { b = 1 }, ]", json!([1, "x", true, [2], {"b": 1}])),
        ("[,1,,2]", json!([1, 2])),
        ("[1 # c\n, 2 /* d */]", json!([1, 2])),
        ("[<<E\nx\nE\n, \"y\"]", json!(["x\n", "y"])),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
}

#[test]
fn numbers() {
    for (text, expected) in [
        ("80", json!(80)),
        ("-5", json!(-5)),
        ("0x1F", json!(31)),
        ("-0X10", json!(-16)),
        ("0120", json!(80)),
        ("00", json!(0)),
        ("2.50", json!(2.5)),
        (".5", json!(0.5)),
        ("1.", json!(1.0)),
        ("09.5", json!(9.5)),
        ("8e1", json!(80.0)),
        ("1E+5", json!(100_000.0)),
        ("-9223372036854775808", json!(i64::MIN)),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
    for (text, words) in [
        ("08", "octal"),
        ("0x", "hexadecimal"),
        ("1e", "exponent"),
        ("1e+", "exponent"),
        ("1e400", "64 bits"),
        ("99999999999999999999", "64 bits"),
        ("10s", "a duration, stands between quotes"),
        ("1_0", "between quotes"),
        ("0b1", "between quotes"),
        ("-", "expected a value"),
        ("+1", "found '+'"),
    ] {
        let (offset, message) = error(&format!("a = {text}"));
        assert!(offset == 4 && message.contains(words), "{text}: {offset} {message}");
    }
}

#[test]
fn texts() {
    for (text, expected) in [
        (r#""""#, ""),
        (r#""x\ny\t\"\\""#, "x\ny\t\"\\"),
        (r#""\a\b\f\v\r""#, "\u{7}\u{8}\u{c}\u{b}\r"),
        (r#""\u00e9\x41\101\U0001F600""#, "\u{e9}AA\u{1f600}"),
        (r#""\xc3\xa9\303\251""#, "\u{e9}\u{e9}"),
        // Neither is replaced.
        (r#""${b}""#, "${b}"),
        (r#""${b("x\n{}")}" "#, r#"${b("x\n{}")}"#),
        ("\"${\nb}\"", "${\nb}"),
        ("\"$ $$ ${{}}\"", "$ $$ ${{}}"),
        ("<<E\n  x\n  y\nE\n", "  x\n  y\n"),
        ("<<E\r\nx\r\nE\r\n", "x\n"),
        ("<<E_1\nx\\ny \"q\" ${z}\nE_1\n", "x\\ny \"q\" ${z}\n"),
        ("<<E\nE\n", ""),
        ("<<E\nxE\n E x\nE\n", "xE\n E x\n"),
        // The indentation of the last line.
        ("<<E\n  x\n  E\n", "  x\n  "),
        ("<<-E\n    x\n      y\n    E\n", "x\n  y\n"),
        ("<<-E\n    x\n  y\n    E\n", "    x\n  y\n"),
        ("<<-E\n\n  x\n  E\n", "\n  x\n"),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
    for (text, at, words) in [
        ("\"x", 0, "expected `\"` to end the text"),
        ("\"x\ny\"", 0, "on the same line"),
        ("\"${x\"", 0, "expected `}`"),
        ("\"x\\q\"", 2, "expected one of \\a"),
        ("\"x\\'\"", 2, "expected one of \\a"),
        ("\"\\400\"", 1, "expected one of"),
        ("\"\\ud800\"", 1, "expected one of"),
        ("\"\\x4\u{e9}\"", 1, "expected one of"),
        ("\"\\x80\"", 0, "UTF-8"),
        ("\"\0\"", 1, "null character"),
        ("<<\nx\n\n", 0, "a word"),
        ("<<E x\nE\n", 0, "a word"),
        ("<<\"E\"\nE\n", 0, "a word"),
        ("<<E\nx\nE", 0, "nothing but the word"),
        ("<<E\nx\nE }\n", 0, "nothing but the word"),
    ] {
        let (offset, message) = error(&format!("a = {text}"));
        assert!(offset == 4 + at && message.contains(words), "{text}: {offset} {message}");
    }
}

#[test]
fn errors_say_where_and_what_was_expected() {
    for (text, at, words) in [
        ("service {\n name = \"a\"\n", 22, "to close the `{` of line 1; found the end of the file"),
        ("a = 1 }", 6, "expected a key: no `{` is open; found `}`"),
        ("a", 1, "expected `=` and a value, or `{` and a block, after a key; found the end"),
        ("a: 1", 1, "found ':'"),
        ("a = 1; b = 2", 5, "expected a key"),
        ("a b = 1", 4, "expected `{`: several keys in a row are blocks; found `=`"),
        ("= 1", 0, "expected a key"),
        ("{ a = 1 ", 0, "expected a key"),
        ("a { { b = 1 } }", 4, "expected a key"),
        ("a = 1,, b = 2", 6, "expected a key"),
        ("1a = 2", 0, "expected a number"),
        ("true = 1", 0, "expected a key"),
        ("a { port = }", 11, "expected a value"),
        ("a = abc", 4, "found `abc`; did you mean \"abc\"?"),
        ("a = TRUE", 4, "did you mean `true`?"),
        ("a = null", 4, "a key without a value is left out"),
        ("a = [1 2]", 7, "expected `,` or `]`"),
        ("a = [1\nb = 2", 7, "expected `,` or `]`"),
        ("a = [1, }", 8, "expected `]` to close the `[` of line 1; found `}`"),
        ("/* x", 0, "expected `*/`"),
        ("\u{feff}a = 1", 0, "byte order mark"),
        ("a\0 = 1", 1, "expected `=`"),
    ] {
        let (offset, message) = error(text);
        assert!(offset == at && message.contains(words), "{text:?}: {offset} {message}");
    }
}

#[test]
fn what_may_be_a_token_is_not_repeated() {
    for text in ["token = s3cret", "token \"s3cret\" = 1", "Token = [s3cret]", "token s3cret"] {
        assert!(!error(text).1.contains("s3cret"), "{text}");
    }
}

#[test]
fn depth_has_a_limit() {
    let blocks = |depth: usize| format!("{}{}", "a {".repeat(depth), "}".repeat(depth));
    let lists = |depth: usize| format!("a = {}{}", "[".repeat(depth), "]".repeat(depth));
    let keys = |depth: usize| format!("{}{{}}", "a ".repeat(depth));
    for nested in [&blocks as &dyn Fn(usize) -> String, &lists, &keys] {
        assert!(parse(&nested(DEEPEST)).is_ok());
        assert!(error(&nested(DEEPEST + 2)).1.contains("64 levels"));
        assert!(error(&nested(100_000)).1.contains("64 levels"));
    }
}

/// Free values, as far as HCL has words for them.
fn json_value() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_filter("finite", |float| float.is_finite()).prop_map(Json::from),
        any::<String>().prop_map(Json::from),
        "[$a{}\"\\\\\n]{0,8}".prop_map(Json::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            entries(inner).prop_map(Json::Object),
        ]
    })
}

fn entries(value: impl Strategy<Value = Json>) -> impl Strategy<Value = Map<String, Json>> {
    let key = prop_oneof!["[a-z_][a-z0-9_.-]{0,5}", any::<String>(), Just("true".to_owned())];
    prop::collection::btree_map(key, value, 0..5).prop_map(|map| map.into_iter().collect())
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(entries in entries(json_value())) {
        let text = print::print(&entries);
        let read = parse(&text).map_err(|found| found.message);
        prop_assert_eq!(read.map(|node| node.to_json()), Ok(Json::Object(entries)), "{}", text);
    }

    #[test]
    fn no_text_panics(text: String) {
        let _ = parse(&text);
    }

    #[test]
    fn nothing_like_hcl_panics(text in r#"([a-z]{1,2}|[ \n\r]|[={}\[\],\"\\$#/*<-]|<<E\n|\nE\n|[0-9.ex]{1,3}|\$\{|é){0,40}"#) {
        if let Err(found) = parse(&text) {
            prop_assert!(text.is_char_boundary(found.offset), "{}", found.offset);
        }
    }
}
