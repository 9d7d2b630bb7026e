//! Findings of one object, bounded in number: what is wrong a hundred times is said a few times and counted.

use std::collections::BTreeMap;

use super::Finding;

/// The most findings of one kind.
const MOST_OF_A_KIND: usize = 8;
/// The most names in one message.
const MOST_NAMES: usize = 5;

/// Findings, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Findings {
    findings: Vec<Finding>,
    /// By kind: how many there are, and where the last one is that was kept.
    kinds: BTreeMap<&'static str, (usize, usize)>,
}

impl Findings {
    /// Adds a finding of a kind, unless there are many of it.
    pub(super) fn add(&mut self, kind: &'static str, finding: impl FnOnce() -> Finding) {
        let (count, last) = self.kinds.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_OF_A_KIND {
            *last = self.findings.len();
            self.findings.push(finding());
        }
    }

    /// All that was kept; the last of a kind says how many more there are.
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

/// The first names, separated by commas, and how many more there are.
pub fn listed(mut names: impl Iterator<Item = String>) -> String {
    let shown: Vec<String> = names.by_ref().take(MOST_NAMES).collect();
    match names.count() {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
