//! The English of a file: its passages, each with the line on which every word stands.

use std::ops::Range;

/// Consecutive text that a reader reads as one: a comment, a paragraph, a string literal.
#[derive(Debug, Default)]
pub(super) struct Passage {
    /// In lower case, with single spaces.
    pub(super) text: String,
    /// Where in `text` each line begins, with the line's number, from 1.
    lines: Vec<(usize, usize)>,
}

/// The passages of Rust code: comments, string literals, and names of functions, which for tests are sentences.
pub(super) fn of_rust(code: &str) -> Vec<Passage> {
    let mut passages = Passages::default();
    let mut comment_ended = 0;
    let (mut at, mut line) = (0, 1);
    while at < code.len() {
        let rest = &code[at..];
        let taken = if rest.starts_with("//") {
            let comment = &rest[..rest.find('\n').unwrap_or(rest.len())];
            if comment_ended + 1 != line {
                passages.end();
            }
            comment_ended = line;
            passages.line(line, comment.trim_start_matches(['/', '!']));
            comment.len()
        } else if let Some(literal) = string_literal(rest) {
            passages.end();
            let content = &rest[literal.clone()];
            // A literal without a blank is data, such as a name.
            if content.contains(' ') {
                for (index, text) in content.split('\n').enumerate() {
                    passages.line(line + index, text.trim_end_matches('\\'));
                }
                passages.end();
            }
            // Past the closing quote and the number signs of a raw one, which are as many as before its content.
            literal.end + (literal.start - rest.find('"').unwrap_or(0)).max(1)
        } else if let Some(name) = function_name(code, at) {
            passages.end();
            passages.line(line, &name.replace('_', " "));
            passages.end();
            "fn ".len() + name.len()
        } else {
            char_literal(rest).or_else(|| rest.chars().next().map(char::len_utf8)).unwrap_or(1)
        };
        line += rest[..taken.min(rest.len())].matches('\n').count();
        at += taken;
    }
    passages.all()
}

/// The passages of any other text: its paragraphs, with the signs of comments, lists and tables left out.
pub(super) fn of_text(text: &str) -> Vec<Passage> {
    let mut passages = Passages::default();
    let mut fenced = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if !fenced && !line.starts_with("```") {
            passages.line(index + 1, line.trim_start_matches(['#', '/', '-', '*', '>', '|', ' ']));
        }
    }
    passages.all()
}

impl Passage {
    /// The number of the line with the word at this place of [`Self::text`].
    pub(super) fn line_of(&self, place: usize) -> usize {
        self.lines.iter().take_while(|(start, _)| *start <= place).last().map_or(0, |(_, line)| *line)
    }

    fn push(&mut self, number: usize, line: &str) {
        self.lines.push((self.text.len(), number));
        for word in line.split_whitespace() {
            self.text.push_str(&word.to_lowercase());
            self.text.push(' ');
        }
    }
}

/// Passages while they are read.
#[derive(Debug, Default)]
struct Passages {
    ended: Vec<Passage>,
    current: Passage,
}

impl Passages {
    /// Adds a line to the current passage; an empty one ends it.
    fn line(&mut self, number: usize, line: &str) {
        if line.trim().is_empty() {
            self.end();
        } else {
            self.current.push(number, line);
        }
    }

    fn end(&mut self) {
        let passage = std::mem::take(&mut self.current);
        if !passage.text.is_empty() {
            self.ended.push(passage);
        }
    }

    fn all(mut self) -> Vec<Passage> {
        self.end();
        self.ended
    }
}

/// The name of the function that is declared at this place of the code.
fn function_name(code: &str, at: usize) -> Option<&str> {
    let name = code[at..].strip_prefix("fn ")?;
    let is_keyword = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    is_keyword.then(|| &name[..name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len())])
}

/// The content of the string literal that code begins with.
fn string_literal(code: &str) -> Option<Range<usize>> {
    let signs = code.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let Some(signs) = signs.filter(|signs| code[1 + signs..].starts_with('"')) {
        let start = signs + 2;
        let closing = format!("\"{}", "#".repeat(signs));
        return Some(start..start + code[start..].find(&closing)?);
    }
    let content = code.strip_prefix('"')?;
    let mut is_escaped = false;
    let end = content.find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    })?;
    Some(1..1 + end)
}

/// The length of the character literal that code begins with, which may be a quote.
fn char_literal(code: &str) -> Option<usize> {
    ["'\"'", "'\\\"'", "b'\"'", "b'\\\"'"]
        .iter()
        .find(|quote| code.starts_with(**quote))
        .map(|quote| quote.len())
}

#[test]
fn passages_of_rust_are_comments_and_literals_with_their_lines() {
    let code = "/// A\n/// short list.\nfn short_name() {\n    let q = '\"'; // A quote.\n    f(r#\"raw \"text\" here\"#, \"a \\\n       word\", \"name\");\n}\n";
    let passages = of_rust(code);
    let texts: Vec<_> = passages.iter().map(|passage| passage.text.as_str()).collect();
    assert_eq!(texts, ["a short list. ", "short name ", "a quote. ", "raw \"text\" here ", "a word "]);
    assert_eq!([0, 2].map(|place| passages[0].line_of(place)), [1, 2]);
    assert_eq!([0, 2].map(|place| passages[4].line_of(place)), [5, 6]);
}

#[test]
fn passages_of_other_text_are_paragraphs() {
    let passages = of_text("# Head\n\n- an item\n  goes on\n\n```sh\ncode\n```\n");
    let texts: Vec<_> = passages.iter().map(|passage| passage.text.as_str()).collect();
    assert_eq!(texts, ["head ", "an item goes on "]);
}
