//! `tests/run` sets up a machine that has nothing yet.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use tidegate_tests::golden::repository;
use tidegate_tests::kubernetes::cluster::run;

#[test]
fn the_dependency_rules_are_checked_offline_after_a_setup_with_an_empty_cargo_home() {
    let home = tempfile::tempdir().unwrap();
    let in_home = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        // The toolchain and cargo's tools stay those in `PATH`; only cargo's downloads are gone.
        command.current_dir(repository()).env("CARGO_HOME", home.path()).args(arguments);
        run(&mut command, "").unwrap_or_else(|failure| panic!("{failure}"));
    };
    in_home("tests/setup", &[]);
    assert!(home.path().join("registry").is_dir(), "the set-up has fetched no crates");
    in_home("cargo", &["deny", "--offline", "check", "bans", "licenses", "sources"]);
}
