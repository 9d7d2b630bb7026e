//! Holds ARCHITECTURE.md to the crates and files that exist.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Rows of the table of crates: the folder, and what it may use.
fn table() -> BTreeMap<String, BTreeSet<String>> {
    let text = read("ARCHITECTURE.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| crate | what it is | may use |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with("| "));
    rows.map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, _, uses] = cells[..] else { panic!("not three cells: {row}") };
        let uses = uses.split(", ").filter(|name| !["", "–", "nothing of ours"].contains(name));
        (name.trim_matches(['`', '/']).to_owned(), uses.map(str::to_owned).collect())
    })
    .collect()
}

/// Our own crates among the `[dependencies]` of a manifest, except for those of an optional feature.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut section = "";
    let mut found = BTreeSet::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            section = line;
        }
        if section == "[dependencies]"
            && !line.contains("optional = true")
            && let Some(rest) = line.strip_prefix("tidegate-")
        {
            found.insert(rest.split(['.', ' ']).next().unwrap().to_owned());
        }
    }
    found
}

#[test]
fn each_crate_uses_what_its_row_says_and_nothing_else() {
    let table = table();
    let mut crates = BTreeSet::new();
    for entry in fs::read_dir(root()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(manifest) = fs::read_to_string(entry.path().join("Cargo.toml")) else { continue };
        let row = table.get(&name).unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for `{name}/`"));
        assert_eq!(
            *row,
            dependencies(&manifest),
            "ARCHITECTURE.md, `{name}/`: may use (left) and uses (right)"
        );
        crates.insert(name);
    }
    // Folders without a manifest also have a row, and use nothing.
    for (name, uses) in &table {
        assert!(root().join(name).is_dir(), "ARCHITECTURE.md: `{name}/` does not exist");
        assert!(crates.contains(name) || uses.is_empty(), "ARCHITECTURE.md: `{name}/` is not a crate");
    }
    assert!(crates.len() > 10, "{crates:?}");
}

/// Every file below `folder`, and every folder with a `/` at its end, as paths from the root with a `/` before them.
fn files(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if ["target", ".git"].contains(&&*name) {
            continue;
        }
        let shown = format!("/{}", path.strip_prefix(root()).unwrap().display());
        if path.is_dir() {
            found.push(format!("{shown}/"));
            files(&path, found);
        } else {
            found.push(shown);
        }
    }
}

#[test]
fn every_file_that_the_papers_name_is_there() {
    let mut there = Vec::new();
    files(&root(), &mut there);
    for paper in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = read(paper);
        let code = text.split('`').skip(1).step_by(2);
        let is_path = |text: &&str| {
            let ends = [".rs", ".md", ".proto", ".toml", ".yaml", ".ld", ".txt", "/"];
            ends.iter().any(|end| text.ends_with(end))
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c))
        };
        // Names from the style guide, and those that a contributor chooses.
        let is_example = |path: &str| ["mod.rs", "foo.rs", "foo/"].contains(&path) || path.contains("NAME");
        let paths: BTreeSet<_> = code.filter(is_path).filter(|path| !is_example(path)).collect();
        assert!(paths.len() > 5, "{paper}: {paths:?}");
        // A path may begin below a crate, as `http/h1/` does.
        let is_there = |path: &str| there.iter().any(|file| file.ends_with(&format!("/{path}")));
        let missing: Vec<_> = paths.iter().filter(|path| !is_there(path)).collect();
        assert!(missing.is_empty(), "{paper} names what is not there: {missing:?}");
    }
}

/// Whether a file declares state that several threads may change.
fn shares_state(text: &str) -> bool {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = code.lines().map(str::trim_start).filter(|line| !line.starts_with("//"));
    let mut lines = lines.filter(|line| !line.starts_with("use "));
    lines.any(|line| ["Atomic", "Mutex<", "RwLock<", "OnceLock<"].iter().any(|name| line.contains(name)))
}

#[test]
fn each_file_with_state_that_threads_share_says_why_that_is_right() {
    let text = read("ARCHITECTURE.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| file | state |")).skip(2);
    let rows = rows.take_while(|line| line.starts_with("| "));
    let names = rows.flat_map(|row| row.split(" | ").next().unwrap().split('`').skip(1).step_by(2));
    let named: BTreeSet<_> = names.map(|name| format!("/{name}")).collect();
    let mut found = Vec::new();
    for folder in ["sidecar/src", "core/src"] {
        files(&root().join(folder), &mut found);
    }
    let is_for_tests = |file: &str| ["/tests", "/test_", "/naive"].iter().any(|part| file.contains(part));
    found.retain(|file| file.ends_with(".rs") && !is_for_tests(file) && shares_state(&read(&file[1..])));
    let missing: Vec<_> = found.iter().filter(|file| !named.contains(*file)).collect();
    assert!(missing.is_empty(), "not in the table of what the threads share: {missing:?}");
    assert!(found.len() > 15, "{found:?}");
}
