//! The documents name files that exist.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

/// The rows of the table whose first heading this is: the cells of each.
fn rows<'a>(document: &'a str, heading: &str) -> impl Iterator<Item = Vec<&'a str>> {
    let head = format!("| {heading} |");
    document
        .lines()
        .skip_while(move |line| !line.starts_with(&head))
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// What a text has between back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `a/{b,c}.rs` names two files.
fn expanded(path: &str) -> Vec<String> {
    let Some((before, rest)) = path.split_once('{') else { return vec![path.to_owned()] };
    let (inside, after) =
        rest.split_once('}').unwrap_or_else(|| panic!("{path:?} has a brace that stays open"));
    inside.split(',').map(|word| format!("{before}{word}{after}")).collect()
}

#[test]
fn every_defence_in_the_security_document_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = std::fs::read_to_string(root.join("docs/security.md")).unwrap();
    let mut seen = 0;
    for cells in rows(&document, "threat") {
        let [threat, _, tests] = cells[..] else { panic!("not a row of three cells: {cells:?}") };
        assert!(tests == "same" || quoted(tests).next().is_some(), "no test is named for: {threat}");
        for path in quoted(tests).flat_map(expanded) {
            assert!(
                root.join(&path).exists(),
                "{path} is not there, but docs/security.md names it for: {threat}"
            );
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} paths were found; has the table changed its form?");
}
