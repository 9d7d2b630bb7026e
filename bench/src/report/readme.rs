//! The place in README.md that a run fills.

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- results:begin -->";
const END: &str = "<!-- results:end -->";

/// The text with everything between the two markers replaced. Fails if there are none.
pub(super) fn with_results(readme: &str, results: &str) -> Result<String> {
    let (before, rest) = readme.split_once(BEGIN).with_context(|| format!("no {BEGIN} in README.md"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("no {END} after {BEGIN} in README.md"))?;
    Ok(format!(
        "{before}{BEGIN}\n{}\n\n![Chart of the table's main rows](results.svg)\n{END}{after}",
        results.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes_and_a_second_run_changes_nothing_more() {
        let readme = format!("# Bench\n{BEGIN}\nold\n{END}\nrest\n");
        let once = with_results(&readme, "| new |\n").unwrap();
        assert!(once.starts_with("# Bench\n") && once.ends_with("\nrest\n"));
        assert!(once.contains("\n| new |\n") && !once.contains("old"));
        assert_eq!(with_results(&once, "| new |\n").unwrap(), once);
    }

    #[test]
    fn a_readme_without_markers_is_an_error() {
        assert!(with_results("# Bench\n", "x").is_err());
        assert!(with_results(&format!("{END} {BEGIN}"), "x").is_err());
    }
}
