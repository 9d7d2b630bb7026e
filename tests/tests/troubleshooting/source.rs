//! String literals in Rust source, by context: functions, blocks, calls, fields.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::tokens::{Token, tokens};

/// The tokens of some files, each file's without its tests.
pub(crate) struct SourceTokens {
    files: Vec<(PathBuf, Vec<Token>)>,
}

/// Whether a literal looks like a code: words joined by `_` or `.`, possibly with a suffix in braces or brackets.
pub(crate) fn is_code(text: &str) -> bool {
    let end = text.find(['{', '[', ':']).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let is_joined = word.contains(['_', '.']) || (rest.starts_with('{') && rest.ends_with('}'));
    let is_word = !word.is_empty()
        && word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.ends_with(|c: char| c.is_ascii_alphanumeric())
        && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c));
    let is_closed = rest.is_empty() || rest.starts_with(':') || rest.ends_with(['}', ']']);
    is_word && is_joined && is_closed && !rest.contains(' ') && !word.starts_with("tidegate_")
}

/// Whether a literal looks like a message: three words or more, apart from placeholders.
pub(crate) fn is_message(text: &str) -> bool {
    let mut fixed = String::new();
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ if depth == 0 => fixed.push(c),
            _ => {}
        }
    }
    fixed.split_whitespace().filter(|word| word.chars().any(char::is_alphabetic)).count() >= 3
}

impl SourceTokens {
    /// One file.
    pub(crate) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { files: vec![(path.to_owned(), without_tests(&tokens(&text)))] }
    }

    /// Every file of a crate that is not a test.
    pub(crate) fn of_crate(root: &Path, name: &str) -> Self {
        let folder = root.join(name).join("src");
        let mut files = Vec::new();
        collect(&folder, &mut files);
        assert!(!files.is_empty(), "{} has no source", folder.display());
        let read = |path: PathBuf| {
            let tokens = Self::read(&path).files.remove(0).1;
            (path.strip_prefix(&folder).unwrap().to_owned(), tokens)
        };
        Self { files: files.into_iter().map(read).collect() }
    }

    /// Without the files whose path has one of these prefixes.
    pub(crate) fn except(&self, prefixes: &[&str]) -> Self {
        let is_kept = |path: &Path| !prefixes.iter().any(|prefix| path.to_string_lossy().starts_with(prefix));
        Self { files: self.files.iter().filter(|(path, _)| is_kept(path)).cloned().collect() }
    }

    /// Without the bodies of functions of these names.
    pub(crate) fn except_functions(&self, names: &[&str]) -> Self {
        let files = self.files.iter().map(|(path, tokens)| {
            let mut kept = Vec::new();
            let mut at = 0;
            while let Some(token) = tokens.get(at) {
                let is_skipped = names.iter().any(|name| is_function(tokens, at, name));
                at = if is_skipped { block_end(tokens, at) } else { at + 1 };
                if !is_skipped {
                    kept.push(token.clone());
                }
            }
            (path.clone(), kept)
        });
        Self { files: files.collect() }
    }

    /// Every string literal.
    pub(crate) fn literals(&self) -> std::vec::IntoIter<String> {
        let all: Vec<_> = self.files.iter().flat_map(|(_, tokens)| texts(tokens)).collect();
        all.into_iter()
    }

    /// Literals in the bodies of functions of this name.
    pub(crate) fn of_functions(&self, name: &str) -> std::vec::IntoIter<String> {
        let all: Vec<_> =
            self.files.iter().flat_map(|(_, tokens)| texts_of_functions(tokens, name)).collect();
        all.into_iter()
    }

    /// Literals that are arms of a `match` in the bodies of functions of this name.
    pub(crate) fn arms_of_functions(&self, name: &str) -> std::vec::IntoIter<String> {
        let mut found = Vec::new();
        for (_, tokens) in &self.files {
            for window in bodies(tokens, name).flat_map(|body| body.windows(3)) {
                if let [Token::Punct('='), Token::Punct('>'), Token::Text(text)] = window {
                    found.push(text.clone());
                }
            }
        }
        found.into_iter()
    }

    /// Literals in the body of a method of a type.
    pub(crate) fn of_method(&self, type_name: &str, method: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (_, tokens) in &self.files {
            for at in (0..tokens.len()).filter(|at| is_word(tokens, *at, "impl")) {
                let Some(open) = (at..tokens.len()).find(|at| tokens[*at] == Token::Punct('{')) else {
                    continue;
                };
                let is_own = is_word(tokens, open - 1, type_name)
                    && !tokens[at..open].contains(&Token::Word("for".to_owned()));
                if is_own {
                    found.extend(texts_of_functions(&tokens[open..block_end(tokens, open)], method));
                }
            }
        }
        found
    }

    /// Literals in the arguments of calls of this function or method, nested ones included.
    pub(crate) fn arguments_of(&self, name: &str) -> std::vec::IntoIter<String> {
        let mut found = Vec::new();
        for (_, tokens) in &self.files {
            for at in 1..tokens.len() {
                let is_call = is_word(tokens, at, name)
                    && !is_word(tokens, at - 1, "fn")
                    && tokens.get(at + 1) == Some(&Token::Punct('('));
                if is_call {
                    found.extend(texts(&tokens[at..block_end(tokens, at)]));
                }
            }
        }
        found.into_iter()
    }

    /// Literals that are assigned to a field of this name.
    pub(crate) fn assigned_to(&self, field: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (_, tokens) in &self.files {
            for window in tokens.windows(3) {
                if let [Token::Word(name), Token::Punct('='), Token::Text(text)] = window
                    && name == field
                {
                    found.push(text.clone());
                }
            }
        }
        found
    }

    /// The literal in a field of each literal of a struct.
    pub(crate) fn fields_of(&self, type_name: &str, field: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (_, tokens) in &self.files {
            for at in 0..tokens.len() {
                if is_word(tokens, at, type_name) && tokens.get(at + 1) == Some(&Token::Punct('{')) {
                    let block = &tokens[at + 1..block_end(tokens, at)];
                    found.extend(block.windows(3).filter_map(|window| match window {
                        [Token::Word(name), Token::Punct(':'), Token::Text(text)] if name == field => {
                            Some(text.clone())
                        }
                        _ => None,
                    }));
                }
            }
        }
        found
    }

    /// Literals of the array whose loop sets a label of this name: `for … in [("a", …), …] { … &[("label", …)] … }`.
    pub(crate) fn array_before(&self, label: &str) -> Vec<String> {
        let mut found = Vec::new();
        for (_, tokens) in &self.files {
            for at in (0..tokens.len()).filter(|at| is_word(tokens, *at, "for")) {
                let Some(open) = (at..tokens.len().min(at + 20)).find(|at| tokens[*at] == Token::Punct('['))
                else {
                    continue;
                };
                let array = open..block_end(tokens, open);
                let body = array.end..block_end(tokens, array.end);
                if is_word(tokens, open - 1, "in") && texts(&tokens[body]).any(|text| text == label) {
                    found.extend(texts(&tokens[array]));
                }
            }
        }
        found
    }

    /// Exit codes of programs: `ExitCode::from(N)`, `exit(N)`; and expressions that are not plain numbers.
    pub(crate) fn exit_statuses(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (_, tokens) in &self.files {
            for at in 0..tokens.len() {
                let is_exit = (is_word(tokens, at, "exit") && at > 0 && tokens[at - 1] == Token::Punct(':'))
                    || (is_word(tokens, at, "from") && at > 2 && is_word(tokens, at - 3, "ExitCode"));
                if let (true, Some(Token::Punct('(')), Some(Token::Word(status))) =
                    (is_exit, tokens.get(at + 1), tokens.get(at + 2))
                {
                    found.push(status.clone());
                }
            }
        }
        found
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_test =
            name == "tests" || name == "tests.rs" || name.starts_with("test_") || name == "testing.rs";
        if path.is_dir() && !is_test {
            collect(&path, files);
        } else if name.ends_with(".rs") && !is_test {
            files.push(path);
        }
    }
}

fn is_word(tokens: &[Token], at: usize, word: &str) -> bool {
    matches!(tokens.get(at), Some(Token::Word(found)) if found == word)
}

fn is_function(tokens: &[Token], at: usize, name: &str) -> bool {
    is_word(tokens, at, "fn") && is_word(tokens, at + 1, name)
}

fn texts(tokens: &[Token]) -> impl Iterator<Item = String> {
    tokens.iter().filter_map(|token| match token {
        Token::Text(text) => Some(text.clone()),
        _ => None,
    })
}

fn texts_of_functions(tokens: &[Token], name: &str) -> Vec<String> {
    bodies(tokens, name).flat_map(texts).collect()
}

/// The bodies of functions of this name.
fn bodies<'t>(tokens: &'t [Token], name: &str) -> impl Iterator<Item = &'t [Token]> {
    (0..tokens.len()).filter(move |at| is_function(tokens, *at, name)).map(|at| {
        let open = (at..tokens.len()).find(|at| tokens[*at] == Token::Punct('{')).unwrap_or(at);
        &tokens[open..block_end(tokens, open)]
    })
}

/// The end of the first block after `at`: after its closing bracket, or after a `;` before the block.
fn block_end(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        match token {
            Token::Punct('{' | '(' | '[') => depth += 1,
            Token::Punct('}' | ')' | ']') => {
                depth = depth.saturating_sub(1);
                // A function's arguments are not its body.
                let goes_on = tokens[at..=index].iter().any(|token| *token == Token::Word("fn".to_owned()))
                    && *token == Token::Punct(')');
                if depth == 0 && !goes_on {
                    return index + 1;
                }
            }
            Token::Punct(';') if depth == 0 => return index + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Without test-only items.
fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let cfg_test = ["#", "[", "cfg", "(", "test", ")", "]"];
    let is_at = |at: usize| {
        cfg_test.iter().enumerate().all(|(offset, text)| match tokens.get(at + offset) {
            Some(Token::Word(word)) => word == text,
            Some(Token::Punct(c)) => c.to_string() == *text,
            _ => false,
        })
    };
    let mut kept = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if is_at(at) {
            at = block_end(tokens, at + cfg_test.len());
        } else {
            kept.push(token.clone());
            at += 1;
        }
    }
    kept
}

#[test]
fn literals_are_found_where_rust_has_them_and_tests_are_left_out() {
    let text = r###"
        // "comment" with an unpaired "
        fn code(&self) -> &'static str { match self { Self::A => "a_b", Self::B('"') => r#"c"d"#, _ => "e\
            f" } }
        #[cfg(test)]
        mod tests { const X: &str = "hidden"; }
        const CHECK: Check = Check { id: "g-h", hint: "say it" };
    "###;
    let source = SourceTokens { files: vec![("a.rs".into(), without_tests(&tokens(text)))] };
    assert_eq!(source.literals().collect::<Vec<_>>(), ["a_b", "c\"d", "ef", "g-h", "say it"]);
    assert_eq!(source.of_functions("code").collect::<Vec<_>>(), ["a_b", "c\"d", "ef"]);
    assert_eq!(source.fields_of("Check", "id"), BTreeSet::from(["g-h".to_owned()]));
    assert!(source.except_functions(&["code"]).literals().eq(["g-h".to_owned(), "say it".to_owned()]));
}
