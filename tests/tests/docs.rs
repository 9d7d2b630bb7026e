//! The documents name files that exist.

// Test helpers may panic, too.
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

/// The parts of a text in backticks.
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

/// Fails unless each path in a cell about a subject exists; returns how many there are. `same` refers to the row above.
fn assert_there(subject: &str, cell: &str) -> usize {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let paths: Vec<String> = quoted(cell).flat_map(expanded).collect();
    assert!(cell == "same" || !paths.is_empty(), "no test is named for: {subject}");
    for path in &paths {
        assert!(
            root.join(path).exists(),
            "{path} is not there, but docs/security.md names it for: {subject}"
        );
    }
    paths.len()
}

fn security() -> String {
    read("docs/security.md")
}

/// A file of the repository.
fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_defence_in_the_security_document_names_tests_that_exist() {
    let mut seen = 0;
    for cells in rows(&security(), "threat") {
        let [threat, _, tests] = cells[..] else { panic!("not a row of three cells: {cells:?}") };
        seen += assert_there(threat, tests);
    }
    assert!(seen > 50, "only {seen} paths were found; has the table changed its form?");
}

#[test]
fn every_memory_limit_in_the_security_document_names_a_test_that_exists() {
    let mut seen = 0;
    for cells in rows(&security(), "program") {
        let [_, _, attack, test] = cells[..] else { panic!("not a row of four cells: {cells:?}") };
        seen += assert_there(attack, test);
    }
    assert!(seen >= 5, "only {seen} paths were found; has the table changed its form?");
}

#[test]
fn every_end_to_end_test_of_open_service_mesh_has_tests_here_that_exist() {
    let document = read("docs/differences.md");
    let mut seen = 0;
    for cells in rows(&document, "Open Service Mesh tested") {
        let [subject, tests] = cells[..] else { panic!("not a row of two cells: {cells:?}") };
        let before = seen;
        for test in quoted(tests) {
            let (path, name) = test.split_once("::").unwrap_or_else(|| panic!("{test} names no function"));
            assert!(
                read(path).contains(&format!("fn {name}(")),
                "{test} is not there, but it is for: {subject}"
            );
            seen += 1;
        }
        assert!(seen > before, "no test is named for: {subject}");
    }
    assert!(seen > 25, "only {seen} tests were found; has the table changed its form?");
}
