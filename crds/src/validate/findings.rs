//! Findings of one object, bounded in number: repeated ones are listed a few times and then counted.

use std::collections::BTreeMap;

use super::Finding;

/// Maximum findings of one kind.
const MOST_OF_A_KIND: usize = 8;
/// Maximum names in one message.
const MOST_NAMES: usize = 5;

/// Findings, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Findings {
    findings: Vec<Finding>,
    /// By kind: how many there are, and the position of the last one that was kept.
    kinds: BTreeMap<&'static str, (usize, usize)>,
}

impl Findings {
    /// Adds a finding of a kind, unless there are already many of it.
    pub(super) fn add(&mut self, kind: &'static str, finding: impl FnOnce() -> Finding) {
        let (count, last) = self.kinds.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_OF_A_KIND {
            *last = self.findings.len();
            self.findings.push(finding());
        }
    }

    /// All findings that were kept; the last of a kind counts the others.
    pub(super) fn finish(mut self) -> Vec<Finding> {
        for (count, last) in self.kinds.into_values() {
            if let (Some(more @ 1..), Some(finding)) =
                (count.checked_sub(MOST_OF_A_KIND), self.findings.get_mut(last))
            {
                finding.message += &format!("; and {more} more like it");
            }
        }
        self.findings
    }
}

/// The first names, separated by commas, and the number of the others.
pub fn listed(mut names: impl Iterator<Item = String>) -> String {
    let shown: Vec<String> = names.by_ref().take(MOST_NAMES).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
