//! Output: tables for people, JSON and YAML for programs.
//!
//! Standard output has the result only, so that it can be piped; progress, warnings and errors go to standard error.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

/// Maximum characters to show of one text: text in an object may be as long as the API server allows.
const LONGEST: usize = 1000;

/// Output format of a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OutputFormat {
    /// Human-readable.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// Writes to standard output. A reader that closes the pipe (`| head`) is not an error.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("standard output"),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a value as JSON or YAML, or with `table`.
pub(crate) fn print_as<T: Serialize>(
    format: OutputFormat,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<ExitCode> {
    let text = match format {
        OutputFormat::Table => table(value),
        OutputFormat::Json => serde_json::to_string_pretty(value)? + "\n",
        OutputFormat::Yaml => serde_saphyr::to_string(value).context("YAML")?,
    };
    print(text.as_bytes())
}

/// Columns under a heading, each as wide as its widest cell.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(heading.get(column).map(|title| title.chars().count())).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
        padded.join("   ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut heading.iter().copied());
    for row in &rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// `1 sidecar`, `2 sidecars`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// Text for a terminal: truncated, and with control characters escaped, so that text in an object cannot move the
/// cursor or break lines.
pub(crate) fn printable(text: &str) -> String {
    let turns_lines =
        |c| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut clean = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        if index == LONGEST {
            clean.push('…');
            break;
        }
        if c.is_control() || turns_lines(c) {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![vec!["a".into(), "bcd".into()], vec!["longer".into(), "x".into()]];
        assert_eq!(table(&["NAME", "B"], &rows), "NAME     B\na        bcd\nlonger   x\n");
    }

    #[test]
    fn what_would_move_the_cursor_is_spelled_out() {
        assert_eq!(printable("a\u{1b}[2J\n\u{202e}b \"ä\""), "a\\u{1b}[2J\\n\\u{202e}b \"ä\"");
        let rows = vec![vec!["a\nb".into(), "c".into()]];
        assert_eq!(table(&["NAME", "B"], &rows), "NAME   B\na\\nb   c\n");
    }

    #[test]
    fn a_cell_that_never_ends_is_cut() {
        let text = table(&["A", "B"], &[vec!["ä".repeat(100_000), "b".to_owned()]]);
        let row = text.lines().nth(1).unwrap();
        assert_eq!(row, format!("{}…   b", "ä".repeat(LONGEST)));
    }
}
