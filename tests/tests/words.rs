//! Plain English: phrases that need a second reading, and what to write instead.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use regex::{Regex, RegexSet};
use tidegate_tests::golden::repository;

#[path = "words/text.rs"]
mod text;

/// A phrase to avoid.
struct Phrase {
    /// A regular expression for lower-case text with single spaces.
    pattern: &'static str,
    /// Where the same words are plain English: a regular expression for what `pattern` matches.
    unless: &'static str,
    better: &'static str,
}

const fn phrase(pattern: &'static str, better: &'static str) -> Phrase {
    Phrase { pattern, unless: "", better }
}

const fn phrase_unless(pattern: &'static str, unless: &'static str, better: &'static str) -> Phrase {
    Phrase { pattern, unless, better }
}

const PHRASES: &[Phrase] = &[
    phrase_unless(
        r"(?:there |\b)(?:is|are|was|were|be) no [a-z]+",
        r"^there |no (?:longer|more|less|fewer|different|other)$|no (?:large|small|great|bett|lat|old|new|high|low)e?r$",
        "`is not a …`",
    ),
    phrase_unless(
        r"[a-z]* ?\b(?:is|are|was|were) none\b",
        r"^there ",
        "`is not one`, `does not exist`, `is invalid`",
    ),
    phrase(
        r"(?:^|\s)(?:nobody|somebody|anybody|everybody)(?:[\s,.:;)']|$)",
        "the noun: `no client`, `another process`, `every peer`",
    ),
    phrase(r"\b(?:whoever|whosoever|whomever|whom)\b", "the noun, or `that` and `which`"),
    phrase(r"\boftener\b", "`more often`; `is asked no oftener`: `at most once per …`"),
    phrase(r"\btakes? (?:its|their|his) leave\b", "`closes gracefully`, `leaves`"),
    phrase(r"\btakes? leave\b", "`closes gracefully`, `leaves`"),
    phrase(r"\bnothing else than\b", "`only`"),
    phrase(r"\bbe had\b", "`is available`, `can be read`"),
    phrase(r"\bfor ever\b", "`forever`"),
    phrase(r"\bin vain\b", "`without success`, `timed out`"),
    phrase(r"\bby and by\b", "`gradually`"),
    phrase(r"\b(?:is|are|was|were) asked for by\b", "`is requested by`; active: `… requests`"),
    phrase_unless(
        r"\b(?:is|are|was|were|be|been|being) told\b(?: apart)?",
        "apart",
        "`receives`, `is configured with`, `is notified`, `is reported`",
    ),
    phrase(r"\banew\b", "`again`, `from scratch`"),
    phrase(r"\b(?:for|of|until|with|by) so many\b", "the number: `this many`, `N`, `as many … as …`"),
    phrase(r"\ball the same(?:[.,:;)]| $)", "`anyway`, `nevertheless`"),
    phrase(r"\b(?:is|are|was|were|be) believed\b", "`is trusted`"),
    phrase(r"\b(?:is|are|was|were) known of\b", "`is known about`, `unknown`"),
    phrase(r"\bknows? nothing\b", "`does not depend on`, `does not know`, `has no … yet`"),
    phrase(r"\b(?:is|are|was|were|be|been) let\b", "`is admitted`, `may`, `is allowed`"),
    phrase(r"\bbec(?:omes?|ame) of\b", "`what happens to …`, `the outcome of …`"),
    phrase(r"\bstands? on\b", "`depends on`, `is based on`, `runs on`"),
    phrase(r"\b(?:is|are|be) through with\b", "`has finished`, `has processed`"),
    phrase(r"\blive[sd]? on[.,:;]", "`stays open`, `keeps running`"),
    phrase(r"\bat one try\b", "`at the first attempt`"),
    phrase(r"\bc[oa]me(?:s|) to (?:nothing|an end|its end|their end)\b", "`fails`, `ends`"),
];

/// Folders with code of others, with generated files, or with what programs leave behind.
const SKIPPED: [&str; 10] = [
    ".git",
    ".tidegate",
    "bench/out",
    "charts/tidegate-crds/files",
    "fuzz/artifacts",
    "fuzz/corpus",
    "injector/testdata/patches",
    "target",
    "tests/golden",
    "vendor",
];
/// Files that quote: this list, and a history that tells what texts were.
const QUOTING: [&str; 2] = ["tests/tests/words.rs", "CHANGELOG.md"];
/// How the names of files with English in them end; programs without such an ending begin with `#!`.
const ENDINGS: [&str; 14] = [
    ".rs",
    ".md",
    ".yaml",
    ".tpl",
    ".toml",
    ".json",
    ".proto",
    ".sh",
    ".go",
    ".txt",
    ".conf",
    ".ld",
    "Dockerfile",
    "justfile",
];

/// Calls `visit` with the path of each text below a folder, relative to the repository, and its content.
fn texts(folder: &str, visit: &mut impl FnMut(&str, &str)) {
    for entry in fs::read_dir(repository().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let name = Path::new(folder).join(entry.file_name());
        let name = name.to_str().unwrap();
        let kind = entry.file_type().unwrap();
        if SKIPPED.contains(&name) || QUOTING.contains(&name) || name.ends_with("/target") {
            continue;
        }
        if kind.is_dir() {
            texts(name, visit);
        } else if kind.is_file() {
            let content = fs::read(entry.path()).unwrap();
            if ENDINGS.iter().any(|ending| name.ends_with(ending)) || content.starts_with(b"#!") {
                visit(name, std::str::from_utf8(&content).unwrap());
            }
        }
    }
}

/// The phrases, compiled.
struct Phrases {
    /// All at once, because few passages have one of them.
    any: RegexSet,
    each: Vec<(Regex, Option<Regex>, &'static str)>,
}

impl Phrases {
    fn new() -> Self {
        let each = PHRASES.iter().map(|Phrase { pattern, unless, better }| {
            (ascii(pattern), (!unless.is_empty()).then(|| ascii(unless)), *better)
        });
        let any = PHRASES.iter().map(|phrase| ascii(phrase.pattern).to_string());
        Self { any: RegexSet::new(any).unwrap(), each: each.collect() }
    }

    /// Where a text has a phrase, the phrase, and what to write instead.
    fn find<'t>(&self, text: &'t str) -> Vec<(usize, &'t str, &'static str)> {
        let mut found = Vec::new();
        for (pattern, unless, better) in self.any.matches(text).iter().map(|index| &self.each[index]) {
            let places = pattern.find_iter(text);
            let bad =
                places.filter(|place| !unless.as_ref().is_some_and(|plain| plain.is_match(place.as_str())));
            found.extend(bad.map(|place| (place.start(), place.as_str().trim(), *better)));
        }
        found
    }
}

/// A regular expression over bytes: the tables of Unicode are not built in.
fn ascii(pattern: &str) -> Regex {
    Regex::new(&format!("(?-u){pattern}")).unwrap()
}

#[test]
fn texts_avoid_phrases_that_need_a_second_reading() {
    let phrases = Phrases::new();
    let mut found = Vec::new();
    texts("", &mut |name, content| {
        let passages = if name.ends_with(".rs") { text::of_rust(content) } else { text::of_text(content) };
        for passage in &passages {
            for (place, words, better) in phrases.find(&passage.text) {
                found.push(format!("{name}:{}: {words:?}: better {better}", passage.line_of(place)));
            }
        }
    });
    found.sort();
    assert!(found.is_empty(), "write it plainly:\n{}", found.join("\n"));
}

#[test]
fn plain_english_passes_and_odd_phrases_are_found() {
    let phrases = Phrases::new();
    let plain = [
        "there is no route",
        "it is no longer open",
        "the two are told apart",
        "all the same values",
        "an identity is no larger than that",
        "if there is none",
        "the pod httpbin/nobody",
    ];
    for text in plain {
        assert!(phrases.find(text).is_empty(), "{text:?}: {:?}", phrases.find(text));
    }
    for text in ["it is no list", "the name is none", "nobody's turn", "open for ever", "it is told so"] {
        assert_eq!(phrases.find(text).len(), 1, "{text:?}");
    }
}
