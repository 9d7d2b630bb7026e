//! Writes, compares and removes rules in the kernel.

use super::InterceptError;
use super::backend::IptablesProgram;
use super::rule::{IptablesRule, PREFIX, Table, restore_text};

/// The result of applying rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// Nothing to do: exactly these rules were in place.
    AlreadyThere,
    /// All rules were written.
    Written,
}

/// Tidegate's rules in a table.
struct RulesInPlace {
    /// Names of our chains.
    chains: Vec<String>,
    /// Number of rules in our chains.
    rules: usize,
    /// Jumps from built-in chains to ours, as `iptables -S` lists them.
    jumps: Vec<String>,
}

/// Replaces our rules with these. `keep` is called once the kernel tracks connections, before any is redirected.
pub(super) fn apply(
    program: &IptablesProgram,
    rules: &[IptablesRule],
    keep: impl FnOnce(),
) -> Result<Applied, InterceptError> {
    if missing(program, rules)?.is_none() {
        return Ok(Applied::AlreadyThere);
    }
    let mut known = Vec::new();
    for rule in rules.iter().filter(|rule| !rule.chain.is_ours()) {
        if program.has(rule)? {
            known.push(rule);
        }
    }
    let (redirecting, others): (Vec<_>, Vec<_>) =
        rules.iter().cloned().partition(|rule| rule.table == Table::Nat);
    program.restore(&restore_text(&others, |rule| known.contains(&rule)))?;
    keep();
    program.restore(&restore_text(&redirecting, |rule| known.contains(&rule)))?;
    remove_others(program, rules)?;
    Ok(Applied::Written)
}

/// The first missing rule, or a difference in the number of our rules; `None` if exactly these rules are in place.
pub(super) fn missing(
    program: &IptablesProgram,
    rules: &[IptablesRule],
) -> Result<Option<String>, InterceptError> {
    for table in Table::ALL {
        let wanted: Vec<_> = rules.iter().filter(|rule| rule.table == table).collect();
        let in_place = RulesInPlace::of(program, table)?;
        let ours = wanted.iter().filter(|rule| rule.chain.is_ours()).count();
        if let Some(rule) = wanted.iter().find(|rule| !in_place.chains.contains(&rule.chain.to_string()))
            && rule.chain.is_ours()
        {
            return Ok(Some(format!("table {table} has no chain {}", rule.chain)));
        }
        for rule in &wanted {
            if !program.has(rule)? {
                return Ok(Some(format!("table {table} lacks -A {} {rule}", rule.chain)));
            }
        }
        if in_place.rules != ours || in_place.jumps.len() != wanted.len() - ours {
            return Ok(Some(format!(
                "table {table} holds {} rules and {} jumps of ours, {ours} and {} are wanted",
                in_place.rules,
                in_place.jumps.len(),
                wanted.len() - ours
            )));
        }
    }
    Ok(None)
}

/// Removes all of our rules; returns whether there were any.
pub(super) fn clean(program: &IptablesProgram) -> Result<bool, InterceptError> {
    let mut any = false;
    for table in Table::ALL {
        let in_place = RulesInPlace::of(program, table)?;
        any |= !in_place.chains.is_empty();
        in_place.remove(program, table, |_| true)?;
    }
    Ok(any)
}

/// Removes our chains that these rules do not use, and duplicate jumps.
fn remove_others(program: &IptablesProgram, rules: &[IptablesRule]) -> Result<(), InterceptError> {
    for table in Table::ALL {
        let in_place = RulesInPlace::of(program, table)?;
        let is_wanted =
            |name: &str| rules.iter().any(|rule| rule.table == table && rule.chain.to_string() == name);
        for (index, jump) in in_place.jumps.iter().enumerate() {
            if in_place.jumps.iter().take(index).any(|earlier| earlier == jump) {
                program.execute(table, &delete(jump))?;
            }
        }
        in_place.remove(program, table, |chain| !is_wanted(chain))?;
    }
    Ok(())
}

impl RulesInPlace {
    /// Reads what earlier runs have left in a table: our chains, their rules, and jumps to them from any chain.
    fn of(program: &IptablesProgram, table: Table) -> Result<Self, InterceptError> {
        let mut in_place = Self { chains: Vec::new(), rules: 0, jumps: Vec::new() };
        for line in program.list(table)? {
            match line.split_once(' ') {
                Some(("-N", chain)) if chain.starts_with(PREFIX) => in_place.chains.push(chain.to_owned()),
                Some(("-A", rule)) if rule.starts_with(PREFIX) => in_place.rules += 1,
                Some(("-A", _)) if target(&line).is_some_and(|target| target.starts_with(PREFIX)) => {
                    in_place.jumps.push(line);
                }
                _ => {}
            }
        }
        Ok(in_place)
    }

    /// Removes the selected chains: first jumps, then rules, then the chains themselves, which must not be referenced
    /// any more by then.
    fn remove(
        &self,
        program: &IptablesProgram,
        table: Table,
        which: impl Fn(&str) -> bool,
    ) -> Result<(), InterceptError> {
        for jump in self.jumps.iter().filter(|jump| target(jump).is_some_and(&which)) {
            program.execute(table, &delete(jump))?;
        }
        let chains = || self.chains.iter().filter(|chain| which(chain));
        for step in ["-F", "-X"] {
            for chain in chains() {
                program.execute(table, &format!("{step} {chain}"))?;
            }
        }
        Ok(())
    }
}

/// The chain that a listed rule jumps to.
fn target(line: &str) -> Option<&str> {
    line.split(" -j ").nth(1)?.split(' ').next()
}

/// The command that removes a listed rule.
fn delete(listed: &str) -> String {
    listed.replacen("-A ", "-D ", 1)
}
