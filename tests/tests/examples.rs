//! The examples of the user docs: each is valid, a test applies or explains it, and the routes decide as their table says.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tidegate_tests::daemon;

/// Folders of suites and of tests beside the code that apply or explain examples.
const SUITES: [&str; 3] = ["tests/tests", "tests/src", "controller/src/explain"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn tidegate(arguments: &[&str]) -> Output {
    Command::new(daemon::ours("tidegate")).current_dir(root()).args(arguments).output().unwrap()
}

/// The cells of the rows below the first heading that begins with these words.
fn rows(document: &str, heading: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs").join(document)).unwrap();
    let lines = text.lines().skip_while(|line| !line.starts_with(&format!("| {heading} |"))).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Every Rust file below a folder.
fn sources(folder: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let own = files.map(|path| fs::read_to_string(path).unwrap());
    own.chain(folders.into_iter().flat_map(sources)).collect()
}

/// The text between the first of these and the next ones, again and again.
fn between<'t>(text: &'t str, before: &'t str, after: char) -> impl Iterator<Item = &'t str> {
    text.split(before).skip(1).filter_map(move |rest| rest.split(after).next())
}

#[test]
fn each_policy_of_the_traffic_document_has_an_example_that_is_valid_and_that_a_test_runs() {
    let suites: Vec<_> = SUITES.iter().flat_map(|folder| sources(root().join(folder))).collect();
    let mut seen = 0;
    for row in rows("traffic.md", "what it says") {
        let examples: Vec<_> = between(&row[2], "](../", ')').collect();
        assert!(!examples.is_empty(), "no example of {}", row[1]);
        for example in examples {
            let (folder, file) = example.rsplit_once('/').unwrap();
            // Other files of the folder may be alternatives.
            let alone = tempfile::tempdir().unwrap();
            fs::copy(root().join(example), alone.path().join(file)).unwrap();
            let output = tidegate(&["validate", "-f", alone.path().to_str().unwrap()]);
            assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stdout));
            let names = format!("/{file}");
            let runs = |source: &String| source.contains(folder) || source.contains(&names);
            assert!(suites.iter().any(runs), "no test names {example}");
            seen += 1;
        }
    }
    assert!(seen >= 10, "only {seen} examples were found; has the table changed its form?");
}

/// What a folder's routes make of a request, such as `GET /cart/7` with `x-group: beta`, of service account `shop/web`.
fn explained(request: &str, service: &str) -> Value {
    let mut parts = between(request, "`", '`').step_by(2);
    let (method, path) = parts.next().unwrap().split_once(' ').unwrap();
    let service = format!("shop/{service}");
    let mut arguments = vec!["explain", &service, "--from", "shop/web", "--method", method, "--path", path];
    if let Some(header) = parts.next() {
        arguments.extend(["--header", header]);
    }
    arguments.extend(["-f", "examples/gateway-api", "-o", "json"]);
    let output = tidegate(&arguments);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_example_s_routes_decide_as_their_table_says() {
    let rows = rows("gateway-api.md", "request");
    assert_eq!(rows.len(), 5);
    for row in rows {
        let found = explained(&row[0], row[1].trim_matches('`'));
        assert_eq!(found["route"], row[2].trim_matches('`'), "{row:?}: {found}");
        if row[3].starts_with("redirected") {
            assert!(found["reason"].as_str().unwrap().starts_with(&row[3]), "{row:?}: {found}");
            continue;
        }
        let backends = found["backends"].as_array().unwrap();
        let named: Vec<_> = between(&row[3], "`", '`').step_by(2).collect();
        assert_eq!(backends.len(), named.len(), "{row:?}: {found}");
        for (backend, name) in backends.iter().zip(named) {
            assert_eq!(backend["backend"], name, "{row:?}: {found}");
        }
        let has_copies = row[3].contains("copies");
        assert_eq!(
            found["mirrors"].as_array().map_or(0, Vec::len),
            usize::from(has_copies),
            "{row:?}: {found}"
        );
    }
}
