//! Tests of `suite`: what each check takes, and hostile lines.

#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;
use serde_json::json;

use super::Suite;
use crate::format::Format;

fn holds(check: &serde_json::Value, answer: &str) -> bool {
    let line = json!({"prompt": "?", "check": check}).to_string();
    Suite::parse(&line).unwrap().prompts[0].holds(None, answer)
}

#[test]
fn each_check() {
    let schema = json!({"json_schema": {"type": "object", "required": ["a"]}});
    for (check, answer, expected) in [
        (json!({"equals": "yes"}), " yes\n", true),
        (json!({"equals": "yes"}), "Yes", false),
        (json!({"equals": "yes"}), "yes.", false),
        (json!({"contains": ["4", "7"]}), "7 and 4", true),
        (json!({"contains": ["4", "7"]}), "7 and 5", false),
        (json!({"regex": "(?i)yes|no"}), " NO ", true),
        (json!({"regex": "yes|no"}), "yes, sir", false),
        (schema.clone(), " {\"a\": 1} ", true),
        (schema.clone(), "{\"b\": 1}", false),
        (schema, "```json\n{\"a\": 1}\n```", false),
        (json!({"format": true}), "anything", true),
        (json!({"format": true}), " \n", false),
        (json!({"length": [2, 4]}), " äöü ", true),
        (json!({"length": [2, 4]}), "abcde", false),
        (json!({"length": [1, 4]}), "", false),
    ] {
        assert_eq!(holds(&check, answer), expected, "{check} of {answer:?}");
    }
}

#[test]
fn the_tasks_format_where_it_has_one() {
    let suite = Suite::parse(r#"{"prompt": "?", "check": {"equals": "x"}, "slice": "s"}"#).unwrap();
    let format = Format::regex("yes|no").unwrap();
    assert!(suite.prompts[0].holds(Some(&format), "x"));
    assert_eq!(suite.prompts[0].name, "line 1");
    let suite = suite.in_format();
    assert!(suite.prompts[0].holds(Some(&format), "yes"));
    assert!(!suite.prompts[0].holds(Some(&format), " yes"));
    assert!(!suite.prompts[0].holds(Some(&format), "x"));
    assert_eq!(suite.prompts[0].slice.as_deref(), Some("s"));
}

#[test]
fn a_hostile_line_is_named_with_what_was_expected() {
    let check = r#""check": {"equals": "x"}"#;
    let deep = format!(
        r#"{{"prompt": "x", "check": {}1{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    for (line, says) in [
        ("{".to_owned(), "is no JSON"),
        ("\u{0}".to_owned(), "is no JSON"),
        (deep, "is no JSON"),
        ("[1]".to_owned(), "is [1]; expected an object"),
        ("null".to_owned(), "is null; expected an object"),
        (format!("{{{check}}}"), "has neither messages nor prompt"),
        (
            format!(r#"{{"prompt": "x", "messages": [], {check}}}"#),
            "has both",
        ),
        (
            format!(r#"{{"prompt": 1, {check}}}"#),
            "prompt: is 1; expected a text",
        ),
        (format!(r#"{{"messages": [], {check}}}"#), "messages: is []"),
        (
            format!(r#"{{"messages": [{{"role": "user"}}], {check}}}"#),
            "messages[0]: is",
        ),
        (
            format!(r#"{{"messages": [{{"role": "tool", "content": "x"}}], {check}}}"#),
            "the role one of system",
        ),
        (
            format!(
                r#"{{"messages": [{{"role": "user", "content": "x", "name": "y"}}], {check}}}"#
            ),
            "and no more",
        ),
        (
            format!(r#"{{"messages": [{{"role": "assistant", "content": "x"}}], {check}}}"#),
            "the last is not the user's",
        ),
        (
            format!(r#"{{"prompt": "x", "chek": 1, {check}}}"#),
            "\"chek\": there is no such key",
        ),
        (
            format!(r#"{{"prompt": "x", "name": " ", {check}}}"#),
            "name: is \" \"",
        ),
        (
            format!(r#"{{"prompt": "x", "slice": 3, {check}}}"#),
            "slice: is 3",
        ),
        (
            r#"{"prompt": "x"}"#.to_owned(),
            "has no check; expected one of",
        ),
        (
            r#"{"prompt": "x", "check": "x"}"#.to_owned(),
            "check: is \"x\"; expected one of",
        ),
        (r#"{"prompt": "x", "check": {}}"#.to_owned(), "check: is {}"),
        (
            r#"{"prompt": "x", "check": {"equals": "x", "format": true}}"#.to_owned(),
            "check: is {",
        ),
        (
            r#"{"prompt": "x", "check": {"like": "x"}}"#.to_owned(),
            "check: is {",
        ),
        (
            r#"{"prompt": "x", "check": {"equals": " "}}"#.to_owned(),
            "not blank",
        ),
        (
            r#"{"prompt": "x", "check": {"contains": []}}"#.to_owned(),
            "check.contains: is []",
        ),
        (
            r#"{"prompt": "x", "check": {"contains": ["a", 1]}}"#.to_owned(),
            "check.contains",
        ),
        (
            r#"{"prompt": "x", "check": {"regex": "("}}"#.to_owned(),
            "check.regex: ",
        ),
        (
            r#"{"prompt": "x", "check": {"regex": 1}}"#.to_owned(),
            "check.regex: is 1",
        ),
        (
            r#"{"prompt": "x", "check": {"json_schema": {"type": "objekt"}}}"#.to_owned(),
            "check.json_schema: not a JSON schema",
        ),
        (
            r##"{"prompt": "x", "check": {"json_schema": {"allOf": [{"$ref": "#"}]}}}"##.to_owned(),
            "leads back to itself",
        ),
        (
            r#"{"prompt": "x", "check": {"json_schema": "a.json"}}"#.to_owned(),
            "check.json_schema: is",
        ),
        (
            r#"{"prompt": "x", "check": {"format": false}}"#.to_owned(),
            "expected true",
        ),
        (
            r#"{"prompt": "x", "check": {"length": [1]}}"#.to_owned(),
            "check.length: is [1]",
        ),
        (
            r#"{"prompt": "x", "check": {"length": [-1, 2]}}"#.to_owned(),
            "two whole numbers",
        ),
        (
            r#"{"prompt": "x", "check": {"length": [4, 2]}}"#.to_owned(),
            "check.length: the least",
        ),
    ] {
        let good = format!(r#"{{"prompt": "", {check}}}"#);
        let wrong = Suite::parse(&format!("{good}\n\n{line}\n")).unwrap_err();
        let short: String = line.chars().take(80).collect();
        assert_eq!((wrong.len(), wrong[0].line), (1, 3), "{short}");
        assert!(wrong[0].what.contains(says), "{short}: {}", wrong[0].what);
        assert!(wrong[0].what.len() < 600, "{}", wrong[0].what);
    }
}

#[test]
fn names_are_told_apart_and_a_suite_is_neither_empty_nor_endless() {
    let line = r#"{"prompt": "x", "check": {"format": true}, "name": "a"}"#;
    let twice = Suite::parse(&format!("{line}\n{line}")).unwrap_err();
    assert_eq!(twice[0].line, 2);
    assert!(twice[0].what.contains("as in line 1"), "{twice:?}");
    let unnamed = r#"{"prompt": "x", "check": {"format": true}}"#;
    for (text, count) in [
        ("\n \n".to_owned(), "0"),
        (format!("{unnamed}\n").repeat(1001), "1001"),
    ] {
        let wrong = Suite::parse(&text).unwrap_err();
        assert!(wrong[0].what.starts_with(count), "{wrong:?}");
    }
    assert_eq!(
        Suite::parse(&format!("{unnamed}\r\n").repeat(1000))
            .unwrap()
            .prompts
            .len(),
        1000
    );
}

proptest! {
    /// Whatever is in a file: it is read whole, or each wrong line is one of its lines.
    #[test]
    fn nothing_breaks_it(text in r#"(\{"prompt":|"check":|\{"(equals|contains|regex|length|json_schema)":|"a|\[|\]|\}|1|,|"|\n|\PC){0,40}"#) {
        match Suite::parse(&text) {
            Ok(suite) => prop_assert!(!suite.prompts.is_empty()),
            Err(wrong) => {
                let lines = text.lines().count().max(1);
                prop_assert!(wrong.iter().all(|w| (1..=lines).contains(&w.line) && !w.what.is_empty()));
            }
        }
    }
}
