//! Reads a source file as far as needed to find the modules and types that it declares, and the modules that it names.
//!
//! It is a tokenizer and a few patterns, not a parser: enough for this workspace's style, without a dependency on the
//! compiler's grammar. What it cannot see are paths made by macros.

use std::collections::{BTreeMap, BTreeSet};

/// The result for a file.
#[derive(Debug, Default)]
pub(super) struct ScannedFile {
    /// Modules that it declares in separate files.
    pub(super) children: BTreeSet<String>,
    /// Names that it re-exports from one of its modules, with that module.
    pub(super) exports: BTreeMap<String, String>,
    pub(super) references: Vec<ModulePath>,
    /// Names of the types and traits that it declares, except those inside functions.
    pub(super) types: BTreeSet<String>,
}

/// A name after `crate::` or after one or more `super::`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModulePath {
    pub(super) name: String,
    /// How many modules above the file's own it is looked up; `None`: at the root.
    above: Option<usize>,
}

/// Words that begin an item; anything else with an attribute is a field, a variant or a statement.
const ITEMS: [&str; 16] = [
    "pub",
    "use",
    "mod",
    "fn",
    "impl",
    "struct",
    "enum",
    "union",
    "const",
    "static",
    "type",
    "trait",
    "async",
    "unsafe",
    "extern",
    "macro_rules",
];

impl ScannedFile {
    /// Scans a whole file, as rustc accepts it.
    pub(super) fn read(text: &str) -> Self {
        let tokens = tokens(text);
        let mut source = Self::default();
        source.scan(&tokens);
        source
    }

    /// One pass over the tokens; `depth` counts braces, and items for tests only are skipped.
    fn scan(&mut self, tokens: &[String]) {
        let text = |at: usize| tokens.get(at).map_or("", String::as_str);
        // The depths at which inline modules end.
        let (mut depth, mut inner) = (0_usize, Vec::new());
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                at = past_item(tokens, at);
                continue;
            }
            match text(at) {
                "{" => depth += 1,
                "}" => {
                    depth = depth.saturating_sub(1);
                    if inner.last() == Some(&depth) {
                        inner.pop();
                    }
                }
                "mod" if text(at + 2) == ";" => {
                    self.children.insert(text(at + 1).to_owned());
                }
                "mod" if text(at + 2) == "{" => inner.push(depth),
                "struct" | "enum" | "union" | "trait" | "type"
                    if depth == inner.len() && is_name(text(at + 1)) =>
                {
                    self.types.insert(text(at + 1).to_owned());
                }
                "use" if depth == 0 && matches!(text(at.wrapping_sub(1)), "pub" | ")") => {
                    for path in tree(&tokens[at + 1..]) {
                        let skip =
                            usize::from(matches!(path.first().map(String::as_str), Some("crate" | "self")));
                        if let (Some(module), Some(name)) = (path.get(skip), path.last()) {
                            self.exports.insert(name.clone(), module.clone());
                        }
                    }
                }
                "crate" | "super" if text(at + 1) == "::" && text(at.wrapping_sub(1)) != "::" => {
                    let supers = tokens[at..].chunks(2).take_while(|pair| pair[0] == "super").count();
                    let above = (supers > 0).then_some(supers);
                    let start = at + 2 * supers.max(1);
                    for path in tree(&tokens[start..]) {
                        let Some(name) = path.into_iter().next() else { continue };
                        match above {
                            // Still within this file.
                            Some(above) if above <= inner.len() => {}
                            Some(above) => {
                                self.references.push(ModulePath { name, above: Some(above - inner.len()) });
                            }
                            None => self.references.push(ModulePath { name, above: None }),
                        }
                    }
                    at = start;
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
    }
}

impl ModulePath {
    /// Whether it is looked up at the crate's root, from a file whose module is `depth` below it.
    pub(super) fn is_at_root(&self, depth: usize) -> bool {
        self.above.is_none_or(|above| above == depth)
    }
}

/// The paths of a tree such as `a::{b, c::d as e}`, each as its names; the last one is its local name.
fn tree(tokens: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    branch(tokens, &mut 0, &[], &mut paths);
    paths
}

fn branch(tokens: &[String], at: &mut usize, before: &[String], paths: &mut Vec<Vec<String>>) {
    let text = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut path = before.to_vec();
    loop {
        match text(*at) {
            "{" => {
                *at += 1;
                while !matches!(text(*at), "}" | "") {
                    let start = *at;
                    branch(tokens, at, &path, paths);
                    if text(*at) == "," || *at == start {
                        *at += 1;
                    }
                }
                *at += 1;
                return;
            }
            name if is_name(name) => path.push(name.to_owned()),
            // `*`, or a token outside any path.
            _ => {
                if text(*at) == "*" {
                    *at += 1;
                }
                break;
            }
        }
        *at += 1;
        if text(*at) != "::" {
            break;
        }
        *at += 1;
    }
    if text(*at) == "as" {
        path.push(text(*at + 1).to_owned());
        *at += 2;
    }
    if !path.is_empty() {
        paths.push(path);
    }
}

/// Whether `#[cfg(test)]` begins here.
fn is_test_attribute(tokens: &[String]) -> bool {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    tokens.len() >= attribute.len() && tokens.iter().zip(attribute).all(|(token, expected)| token == expected)
}

/// The index after the item, field or statement that these attributes belong to.
fn past_item(tokens: &[String], mut at: usize) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", String::as_str);
    while text(at) == "#" {
        at = past_group(tokens, at + 1);
    }
    let is_item = ITEMS.contains(&text(at));
    let is_use =
        text(at) == "use" || (text(at) == "pub" && tokens[at..].iter().take(6).any(|token| token == "use"));
    while at < tokens.len() {
        match text(at) {
            ";" => return at + 1,
            "," if !is_item => return at + 1,
            // The end of the enclosing group.
            "}" | ")" | "]" => return at,
            "{" => {
                at = past_group(tokens, at);
                if !is_use {
                    return at;
                }
            }
            "(" | "[" => at = past_group(tokens, at),
            _ => at += 1,
        }
    }
    at
}

/// The index after the group that opens here.
fn past_group(tokens: &[String], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(token) = tokens.get(at) {
        at += 1;
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            _ => {}
        }
    }
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_') && token != "as"
}

/// Names, `::`, and every other character by itself; without comments, and without the content of quotes.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string(rest) {
            length
        } else if first == '"' || rest.starts_with("b\"") || rest.starts_with("c\"") {
            quoted(rest)
        } else if first == '\'' || rest.starts_with("b'") {
            character(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(rest[..end].to_owned());
            end
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// The length of a raw string, if one begins here.
fn raw_string(text: &str) -> Option<usize> {
    let hashes = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let count = hashes.len() - hashes.trim_start_matches('#').len();
    let inside = hashes[count..].strip_prefix('"')?;
    let closing = format!("\"{}", "#".repeat(count));
    let end = inside.find(&closing).map_or(inside.len(), |end| end + closing.len());
    Some(text.len() - inside.len() + end)
}

/// The length of a string that begins here.
fn quoted(text: &str) -> usize {
    let start = text.find('"').unwrap_or_default() + 1;
    let mut is_escaped = false;
    for (at, c) in text[start..].char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return start + at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of a character literal, or of the quote of a lifetime.
fn character(text: &str) -> usize {
    let start = text.find('\'').unwrap_or_default() + 1;
    let mut inside = text[start..].chars();
    match (inside.next(), inside.next()) {
        (Some('\\'), _) => text[start + 2..].find('\'').map_or(text.len(), |end| start + 2 + end + 1),
        (Some(c), Some('\'')) => start + c.len_utf8() + 1,
        _ => start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str, depth: usize) -> Vec<String> {
        let source = ScannedFile::read(text);
        let at_root = source.references.into_iter().filter(|reference| reference.is_at_root(depth));
        at_root.map(|reference| reference.name).collect()
    }

    #[test]
    fn paths_of_the_crate_are_found_in_use_and_in_code() {
        let text = r#"
            use crate::{a, b::{self, c as d}, e::*};
            use super::f::g;
            use super::super::{h, i::j};
            pub(crate) fn k(l: &crate::m::N) -> crate::o::P<'_> { other::crate_::q(crate::r::s()) }
        "#;
        assert_eq!(names(text, 1), ["a", "b", "b", "e", "f", "m", "o", "r"]);
        assert_eq!(names(text, 2), ["a", "b", "b", "e", "h", "i", "m", "o", "r"]);
    }

    #[test]
    fn comments_strings_and_tests_do_not_count() {
        let text = r##"
            //! [`crate::a`]
            /* crate::b::c */
            const D: &str = "crate::e::f \" crate::g::h";
            const I: &[u8] = br#"crate::j::k"#;
            const L: char = '"';
            fn m<'a>(n: &'a str) { let o = '\''; crate::p::q(n) }
            #[cfg(test)]
            use crate::{r::s, t};
            #[cfg(test)]
            mod tests { use crate::u; }
            #[cfg(test)]
            #[derive(Debug)]
            struct V(crate::w::X);
            struct Y { #[cfg(test)] z: crate::aa::Bb, cc: crate::dd::Ee }
        "##;
        assert_eq!(names(text, 1), ["p", "dd"]);
    }

    #[test]
    fn modules_are_declared_in_files_or_within_one() {
        let text = "
            pub mod a;
            mod b { use super::super::c; use super::d; use crate::e; }
            #[cfg(test)]
            mod tests;
            use super::f;
            pub use a::{G, h::I as J};
        ";
        let source = ScannedFile::read(text);
        assert_eq!(source.children, ["a".to_owned()].into());
        assert_eq!(names(text, 1), ["c", "e", "f"]);
        let exports = [("G", "a"), ("J", "a")].map(|(name, module)| (name.to_owned(), module.to_owned()));
        assert_eq!(source.exports, exports.into());
    }
}
