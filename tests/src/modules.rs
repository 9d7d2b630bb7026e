//! Which modules of a crate use which others, read from its source, and circles among them; the types of a crate.
//!
//! A module is one that the crate's root declares, with everything below it; code for tests only is left out. Paths
//! that begin with `crate` or `super` are followed, and names that the root re-exports.

mod scan;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use self::scan::{ModulePath, ScannedFile};

/// The modules of a crate, and for each the others that it uses, with a file that does so.
#[derive(Debug, Default)]
pub struct Modules(BTreeMap<String, BTreeMap<String, PathBuf>>);

/// Modules that all depend on each other.
#[derive(Debug)]
pub struct Circle<'m> {
    /// Their names, sorted.
    pub modules: Vec<&'m str>,
    uses: Vec<(&'m str, &'m str, &'m Path)>,
}

impl Modules {
    /// Of the crate with this root file, `lib.rs` or `main.rs`.
    pub fn of(root: &Path) -> Self {
        let source = ScannedFile::read(&fs::read_to_string(root).unwrap());
        let folder = root.parent().unwrap();
        let mut modules = Self::default();
        let found: Vec<_> =
            source.children.iter().map(|name| (name.clone(), references(folder, name, 1))).collect();
        for (name, references) in &found {
            let mut uses = BTreeMap::new();
            for (ModulePath { name: used, .. }, file) in references {
                let exported = source.exports.get(used).unwrap_or(used);
                if exported != name && source.children.contains(exported) {
                    uses.entry(exported.clone()).or_insert_with(|| file.clone());
                }
            }
            modules.0.insert(name.clone(), uses);
        }
        modules
    }

    /// The circles among them.
    pub fn circles(&self) -> Vec<Circle<'_>> {
        let reach: BTreeMap<&str, BTreeSet<&str>> =
            self.0.keys().map(|name| (name.as_str(), self.reached_from(name))).collect();
        let mut left: BTreeSet<&str> = self.0.keys().map(String::as_str).collect();
        let mut circles = Vec::new();
        while let Some(first) = left.pop_first() {
            let mut modules: Vec<_> = left
                .iter()
                .copied()
                .filter(|other| reach[first].contains(other) && reach[other].contains(first))
                .collect();
            if modules.is_empty() {
                continue;
            }
            modules.insert(0, first);
            left.retain(|name| !modules.contains(name));
            let within = |name: &&str| modules.contains(name);
            let uses = modules.iter().flat_map(|from| {
                let uses = self.0[*from].iter().map(|(to, file)| (*from, to.as_str(), file.as_path()));
                uses.filter(|(_, to, _)| within(to))
            });
            let uses = uses.collect();
            circles.push(Circle { modules, uses });
        }
        circles
    }

    /// Every module that one uses, directly or through others; itself, if it is part of a circle.
    fn reached_from(&self, name: &str) -> BTreeSet<&str> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&str> = self.0[name].keys().map(String::as_str).collect();
        while let Some(name) = next.pop() {
            if reached.insert(name) {
                next.extend(self.0[name].keys().map(String::as_str));
            }
        }
        reached
    }
}

impl fmt::Display for Circle<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.modules.join(", "))?;
        for (from, to, file) in &self.uses {
            write!(f, "\n    {from} uses {to} in {}", file.display())?;
        }
        Ok(())
    }
}

/// The types and traits of the crate with this root file, each with the file that declares it.
pub fn types(root: &Path) -> Vec<(String, PathBuf)> {
    let source = ScannedFile::read(&fs::read_to_string(root).unwrap());
    let folder = root.parent().unwrap();
    let mut all: Vec<_> = source.types.iter().map(|name| (name.clone(), root.to_owned())).collect();
    for child in &source.children {
        all.extend(types_below(folder, child));
    }
    all
}

/// Of a module and all below it.
fn types_below(folder: &Path, name: &str) -> Vec<(String, PathBuf)> {
    let below = folder.join(name);
    let Some(file) = source_file(&below) else { return Vec::new() };
    let source = ScannedFile::read(&fs::read_to_string(&file).unwrap());
    let mut all: Vec<_> = source.types.iter().map(|name| (name.clone(), file.clone())).collect();
    for child in &source.children {
        all.extend(types_below(&below, child));
    }
    all
}

/// The file of a module; a module without one is inside its parent.
fn source_file(module: &Path) -> Option<PathBuf> {
    [module.with_extension("rs"), module.join("mod.rs")].into_iter().find(|file| file.exists())
}

/// What a module and all below it refer to at the crate's root. It is declared in a file of `folder`, `depth` below the
/// root.
fn references(folder: &Path, name: &str, depth: usize) -> Vec<(ModulePath, PathBuf)> {
    let below = folder.join(name);
    let Some(file) = source_file(&below) else { return Vec::new() };
    let source = ScannedFile::read(&fs::read_to_string(&file).unwrap());
    let at_root = source.references.iter().filter(|reference| reference.is_at_root(depth)).cloned();
    let mut all: Vec<_> = at_root.map(|reference| (reference, file.clone())).collect();
    for child in &source.children {
        all.extend(references(&below, child, depth + 1));
    }
    all
}
