//! The generated sections of README.md.

use anyhow::{Context, Result};

/// The text with everything between the two markers of this name replaced. Fails without the markers.
pub(super) fn with_section(readme: &str, name: &str, text: &str) -> Result<String> {
    let [begin, end] = ["begin", "end"].map(|edge| format!("<!-- {name}:{edge} -->"));
    let (before, rest) = readme.split_once(&begin).with_context(|| format!("no {begin} in README.md"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no {end} after {begin} in README.md"))?;
    Ok(format!("{before}{begin}\n{}\n{end}{after}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes_and_a_second_run_changes_nothing_more() {
        let other = "<!-- b:begin -->\nkept\n<!-- b:end -->";
        let readme = format!("# Bench\n<!-- a:begin -->\nold\n<!-- a:end -->\n{other}\nrest\n");
        let once = with_section(&readme, "a", "| new |\n").unwrap();
        assert_eq!(once, format!("# Bench\n<!-- a:begin -->\n| new |\n<!-- a:end -->\n{other}\nrest\n"));
        assert_eq!(with_section(&once, "a", "| new |\n").unwrap(), once);
    }

    #[test]
    fn a_readme_without_markers_is_an_error() {
        assert!(with_section("# Bench\n", "a", "x").is_err());
        assert!(with_section("<!-- a:end --> <!-- a:begin -->", "a", "x").is_err());
    }
}
