//! Rust source as tokens, as far as a search for string literals needs them.

/// A token of Rust, as coarse as possible.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    /// A string literal, unescaped.
    Text(String),
    /// A name, a keyword or a number.
    Word(String),
    Punct(char),
}

/// The tokens of a file, without comments, character literals and whitespace.
pub(crate) fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let next = chars.get(at + 1).copied();
        match c {
            '/' if next == Some('/') => at = find(&chars, at, "\n"),
            '/' if next == Some('*') => at = find(&chars, at, "*/") + 2,
            '"' => {
                let (literal, end) = literal(&chars, at + 1);
                tokens.push(Token::Text(literal));
                at = end;
            }
            'r' if matches!(next, Some('"' | '#')) && raw_start(&chars, at).is_some() => {
                let (start, hashes) = raw_start(&chars, at).unwrap();
                let end = find(&chars, start, &format!("\"{}", "#".repeat(hashes)));
                tokens.push(Token::Text(chars[start..end].iter().collect()));
                at = end + 1 + hashes;
            }
            // A character literal; a lifetime has no quote after its first letter.
            '\'' if next == Some('\\') => at = find(&chars, at + 3, "'") + 1,
            '\'' if chars.get(at + 2) == Some(&'\'') => at += 3,
            c if c.is_alphanumeric() || c == '_' => {
                let end = (at..chars.len()).find(|at| !(chars[*at].is_alphanumeric() || chars[*at] == '_'));
                let end = end.unwrap_or(chars.len());
                tokens.push(Token::Word(chars[at..end].iter().collect()));
                at = end;
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(Token::Punct(c));
                }
                at += 1;
            }
        }
    }
    tokens
}

/// A literal from after its first quote, and where it ends.
fn literal(chars: &[char], start: usize) -> (String, usize) {
    let (mut text, mut at) = (String::new(), start);
    while let Some(&c) = chars.get(at) {
        at += 1;
        match c {
            '"' => break,
            '\\' => {
                let escaped = chars.get(at).copied().unwrap_or('\\');
                at += 1;
                if escaped == '\n' {
                    while chars.get(at).is_some_and(|c| c.is_whitespace()) {
                        at += 1;
                    }
                } else {
                    text.push(if escaped == 'n' { '\n' } else { escaped });
                }
            }
            c => text.push(c),
        }
    }
    (text, at)
}

/// Where the text of a raw literal begins, and its number of `#`.
fn raw_start(chars: &[char], at: usize) -> Option<(usize, usize)> {
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some((at + 2 + hashes, hashes))
}

/// The first place of `text` at `from` or later; the end if there is none.
fn find(chars: &[char], from: usize, text: &str) -> usize {
    let wanted: Vec<char> = text.chars().collect();
    (from..chars.len()).find(|at| chars[*at..].starts_with(&wanted)).unwrap_or(chars.len())
}
