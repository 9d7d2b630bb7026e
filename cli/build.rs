//! Embeds the Helm charts into the program: lists their files for `install::charts`.
//!
//! The list is a Rust expression of pairs (path below `charts/`, content by `include_str!`), sorted, so that equal
//! charts build equal programs.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let charts = Path::new(&env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("../charts");
    println!("cargo::rerun-if-changed={}", charts.display());
    let mut files = Vec::new();
    collect(&charts, &mut files)?;
    files.sort();
    let mut list = String::from("&[\n");
    for file in files {
        let name = file.strip_prefix(&charts).map_err(io::Error::other)?;
        writeln!(list, "({name:?}, include_str!({file:?})),").map_err(io::Error::other)?;
    }
    list.push(']');
    fs::write(Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("charts.rs"), list)
}

/// Collects the files below a folder, in any order.
fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}
