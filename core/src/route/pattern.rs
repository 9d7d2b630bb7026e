//! Regular expressions in rules: the dialect of RE2, anchored at both ends, matched in linear time.
//!
//! Users of SMI and Gateway API write RE2 patterns, which OSM, Istio and other proxies based on Envoy match in full
//! (`RE2::FullMatch`). The `regex` crate has the same guarantee (time linear in pattern times text) and nearly the same
//! syntax. Patterns with a different meaning are refused:
//!
//! | pattern | RE2 | `regex` crate | here |
//! |---|---|---|---|
//! | `[a&&b]`, `[a--b]`, `[a~~b]` | a class with these characters | set operations | refused: write `[a&b]`, `[ab-]` |
//! | `[a[b]` | a class with a `[` | nested classes | refused: write `[a\[b]` |
//! | `(?x)`, `(?u)`, `(?R)` | errors | flags | refused |
//! | `\d`, `\w`, `\s`, `\b`, `(?i)` | ASCII | Unicode | ASCII |
//! | `\pL`, `\p{Greek}` | Unicode classes | Unicode classes | refused: text is matched as bytes |
//! | `.` | one character | one character | one byte; the same for ASCII, which paths in normal form are |
//! | `\Q…\E`, `\C` | quoting, one byte | errors | refused |
//!
//! Look-around and back-references are errors in both.

use std::fmt;
use std::sync::Arc;

use regex::bytes::{Regex, RegexBuilder};
use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{
    self, Ast, ClassSetBinaryOp, ClassSetItem, Flag, Flags, FlagsItemKind, GroupKind, Visitor,
};
use regex_syntax::hir::literal::Extractor;

use super::error::Problem;

/// Maximum size of a compiled program in bytes. Every sidecar that uses a tenant's rule holds its program, so a pattern
/// such as `(a{1000}){1000}` must not cost megabytes.
const MAX_PROGRAM: usize = 256 * 1024;
/// Maximum size of the cache of DFA states in bytes, per pattern and thread. A full cache is cleared; at worst, matching
/// continues without it, slower but still linear.
const MAX_CACHE: usize = 64 * 1024;
/// Characters with a meaning of their own outside of classes.
const SPECIAL: &[u8] = br"\.+*?()|[]{}^$";
/// Maximum nesting of groups.
const MAX_NESTING: u32 = 64;

/// A regular expression that a text matches from its first to its last byte. Clones share the program.
#[derive(Clone)]
pub struct Pattern {
    text: Arc<str>,
    program: Program,
    /// What every text that matches begins with.
    beginning: Arc<str>,
}

/// How a text is matched.
#[derive(Clone)]
enum Program {
    /// The pattern has no special character: only the same text matches.
    Literal,
    /// By this program.
    Compiled(Regex),
    /// The program is compiled for each match.
    NotKept,
}

impl Pattern {
    /// Compiles a pattern of at most `max_len` bytes.
    pub(crate) fn parse(text: &str, max_len: usize) -> Result<Self, Problem> {
        if text.len() > max_len {
            return Err(Problem::TooLong(max_len));
        }
        let mut parser = ParserBuilder::new().nest_limit(MAX_NESTING).build();
        // Parsed separately first: `a)|(b` must not break out of the group below.
        let tree = parser.parse(text).map_err(|error| Problem::Regex(error.kind().to_string()))?;
        ast::visit(&tree, Re2)?;
        let is_literal = text.bytes().all(|byte| byte.is_ascii() && !SPECIAL.contains(&byte));
        let text: Arc<str> = text.into();
        if is_literal {
            return Ok(Self { beginning: text.clone(), program: Program::Literal, text });
        }
        let program = Program::Compiled(compile(&text)?);
        Ok(Self { beginning: beginning_of(&text), program, text })
    }

    /// The same pattern without its program.
    #[must_use]
    pub(crate) fn without_program(self) -> Self {
        let program = match self.program {
            Program::Literal => Program::Literal,
            Program::Compiled(_) | Program::NotKept => Program::NotKept,
        };
        Self { program, ..self }
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &[u8]) -> bool {
        match &self.program {
            Program::Literal => self.text.as_bytes() == text,
            Program::Compiled(regex) => regex.is_match(text),
            Program::NotKept => compile(&self.text).is_ok_and(|regex| regex.is_match(text)),
        }
    }

    /// What every text that matches begins with, as far as that is easily known.
    pub(super) fn beginning(&self) -> Arc<str> {
        self.beginning.clone()
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", self.text)
    }
}

impl serde::Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

fn compile(text: &str) -> Result<Regex, Problem> {
    RegexBuilder::new(&format!(r"\A(?:{text})\z"))
        .unicode(false)
        .size_limit(MAX_PROGRAM)
        .dfa_size_limit(MAX_CACHE)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => Problem::RegexTooLarge(limit),
            error => Problem::Regex(last_line(&error.to_string())),
        })
}

/// The literal text that a pattern begins with.
fn beginning_of(text: &str) -> Arc<str> {
    let mut parser =
        regex_syntax::ParserBuilder::new().nest_limit(MAX_NESTING).unicode(false).utf8(false).build();
    let literals = parser.parse(text).map(|tree| Extractor::new().extract(&tree));
    let common = literals.as_ref().ok().and_then(|literals| literals.longest_common_prefix());
    let common = common.unwrap_or_default();
    match str::from_utf8(common) {
        Ok(common) => common.into(),
        Err(error) => String::from_utf8_lossy(common.get(..error.valid_up_to()).unwrap_or_default()).into(),
    }
}

/// Finds syntax that RE2 interprets differently.
struct Re2;

impl Re2 {
    fn check_flags(flags: &Flags) -> Result<(), Problem> {
        let is_foreign = flags.items.iter().any(|item| {
            matches!(item.kind, FlagsItemKind::Flag(Flag::IgnoreWhitespace | Flag::Unicode | Flag::CRLF))
        });
        if is_foreign { Err(Problem::NotRe2("its flags are i, m, s and U")) } else { Ok(()) }
    }
}

impl Visitor for Re2 {
    type Output = ();
    type Err = Problem;

    fn finish(self) -> Result<(), Problem> {
        Ok(())
    }

    fn visit_pre(&mut self, tree: &Ast) -> Result<(), Problem> {
        match tree {
            Ast::Flags(set) => Self::check_flags(&set.flags),
            Ast::Group(group) => match &group.kind {
                GroupKind::NonCapturing(flags) => Self::check_flags(flags),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Problem> {
        match item {
            ClassSetItem::Bracketed(_) => Err(Problem::NotRe2("write \"[\" in a class as \"\\[\"")),
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Problem> {
        Err(Problem::NotRe2("classes have no \"&&\", \"--\" or \"~~\""))
    }
}

/// The last line of the crate's errors, which follows a print of the pattern.
fn last_line(text: &str) -> String {
    let line = text.lines().last().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> Problem {
        Pattern::parse(text, 1024).unwrap_err()
    }

    #[test]
    fn a_pattern_matches_the_whole_text() {
        let matches =
            |pattern: &str, text: &str| Pattern::parse(pattern, 1024).unwrap().matches(text.as_bytes());
        assert!(matches("/books", "/books"));
        assert!(!matches("/books", "/books/1") && !matches("/books", "x/books"));
        assert!(matches("/a|/ab", "/ab"), "not the first alternative that fits the front");
        assert!(!matches("/a|/b", "/a/b") && !matches("/a$", "/a\n"));
        assert!(matches("(?i)/a", "/A") && matches("/[[:alpha:]]+/\\d{2}", "/x/12"));
        assert!(!matches(r"\d", "\u{0663}"), "digits are ASCII");
    }

    #[test]
    fn a_pattern_cannot_break_out_of_its_anchors() {
        assert!(matches!(problem("/a)|(.*"), Problem::Regex(_)));
        assert!(matches!(problem("(?x)/a #"), Problem::NotRe2(_)));
        assert!(!Pattern::parse("(?m)^a$", 9).unwrap().matches(b"b\na"));
    }

    #[test]
    fn syntax_with_another_meaning_in_re2_is_refused() {
        for text in [
            r"[\w&&x]",
            "[a--z]",
            "[a~~b]",
            "[a[b]]",
            "(?u:a)",
            "(?R)a",
            "(?x: a)",
            "((?i-u)a)",
            r"([a&&b])*",
        ] {
            assert!(matches!(problem(text), Problem::NotRe2(_)), "{text}");
        }
        for text in ["*", "(", r"\pL", r"\Qa\E", r"\C", "(?=a)", r"(a)\1", "a{2,1}"] {
            assert!(matches!(problem(text), Problem::Regex(_)), "{text}: {}", problem(text));
        }
    }

    #[test]
    fn a_pattern_is_bounded_in_its_length_its_nesting_and_its_program() {
        assert_eq!(problem(&"a".repeat(1025)), Problem::TooLong(1024));
        assert_eq!(problem("((a{100}){100}){100}"), Problem::RegexTooLarge(MAX_PROGRAM));
        assert!(matches!(problem(&format!("{}a{}", "(".repeat(200), ")".repeat(200))), Problem::Regex(_)));
        assert!(Pattern::parse(&"[a-z]".repeat(204), 1024).is_ok(), "a long literal pattern fits");
    }

    #[test]
    fn a_pattern_matches_the_same_without_its_program_and_one_without_special_characters_needs_none() {
        for (pattern, text, is_match) in [
            ("/books", "/books", true),
            ("/books", "/books/1", false),
            ("/b.*", "/books", true),
            ("a|b", "c", false),
        ] {
            let kept = Pattern::parse(pattern, 1024).unwrap();
            assert_eq!(kept.matches(text.as_bytes()), is_match, "{pattern} {text}");
            assert_eq!(kept.without_program().matches(text.as_bytes()), is_match, "{pattern} {text}");
        }
        assert!(matches!(Pattern::parse("/books", 1024).unwrap().program, Program::Literal));
    }

    #[test]
    fn time_is_linear_where_backtracking_is_exponential() {
        let pattern = Pattern::parse("(a*)*b|(a|aa)+c", 1024).unwrap();
        assert!(!pattern.matches(&b"a".repeat(100_000)));
    }
}
