//! Rules in the kernel: put there, found there, taken away.

use super::InterceptError;
use super::backend::Program;
use super::rule::{PREFIX, Rule, Table, restore_text};

/// What had to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// Nothing: every rule was there, and no other.
    AlreadyThere,
    /// All rules were written.
    Written,
}

/// What of ours a table holds.
struct RulesInPlace {
    /// Names of our chains.
    chains: Vec<String>,
    /// Rules in our chains.
    rules: usize,
    /// Jumps from the kernel's chains to ours, as `iptables -S` lists them.
    jumps: Vec<String>,
}

/// Makes our rules exactly these. `keep` is called once the kernel tracks connections, and before any is redirected.
pub(super) fn apply(
    program: &Program,
    rules: &[Rule],
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

/// The first rule that is not there, or what is there of ours and should not be.
pub(super) fn missing(program: &Program, rules: &[Rule]) -> Result<Option<String>, InterceptError> {
    for table in Table::ALL {
        let wanted: Vec<_> = rules.iter().filter(|rule| rule.table == table).collect();
        let held = RulesInPlace::of(program, table)?;
        let ours = wanted.iter().filter(|rule| rule.chain.is_ours()).count();
        if let Some(rule) = wanted.iter().find(|rule| !held.chains.contains(&rule.chain.to_string()))
            && rule.chain.is_ours()
        {
            return Ok(Some(format!("table {table} has no chain {}", rule.chain)));
        }
        for rule in &wanted {
            if !program.has(rule)? {
                return Ok(Some(format!("table {table} lacks -A {} {rule}", rule.chain)));
            }
        }
        if held.rules != ours || held.jumps.len() != wanted.len() - ours {
            return Ok(Some(format!(
                "table {table} holds {} rules and {} jumps of ours, {ours} and {} are wanted",
                held.rules,
                held.jumps.len(),
                wanted.len() - ours
            )));
        }
    }
    Ok(None)
}

/// Removes everything of ours; whether there was anything.
pub(super) fn clean(program: &Program) -> Result<bool, InterceptError> {
    let mut any = false;
    for table in Table::ALL {
        let held = RulesInPlace::of(program, table)?;
        any |= !held.chains.is_empty();
        held.remove(program, table, |_| true)?;
    }
    Ok(any)
}

/// Removes the chains of ours that these rules do not have, and jumps that are there twice.
fn remove_others(program: &Program, rules: &[Rule]) -> Result<(), InterceptError> {
    for table in Table::ALL {
        let held = RulesInPlace::of(program, table)?;
        let is_wanted =
            |name: &str| rules.iter().any(|rule| rule.table == table && rule.chain.to_string() == name);
        for (index, jump) in held.jumps.iter().enumerate() {
            if held.jumps.iter().take(index).any(|earlier| earlier == jump) {
                program.execute(table, &delete(jump))?;
            }
        }
        held.remove(program, table, |chain| !is_wanted(chain))?;
    }
    Ok(())
}

impl RulesInPlace {
    fn of(program: &Program, table: Table) -> Result<Self, InterceptError> {
        let mut held = Self { chains: Vec::new(), rules: 0, jumps: Vec::new() };
        for line in program.list(table)? {
            match line.split_once(' ') {
                Some(("-N", chain)) if chain.starts_with(PREFIX) => held.chains.push(chain.to_owned()),
                Some(("-A", rule)) if rule.starts_with(PREFIX) => held.rules += 1,
                Some(("-A", _)) if target(&line).is_some_and(|target| target.starts_with(PREFIX)) => {
                    held.jumps.push(line);
                }
                _ => {}
            }
        }
        Ok(held)
    }

    /// Removes the chains of which `which` says so: jumps, then rules, then the chains themselves, which no rule may
    /// name any more by then.
    fn remove(
        &self,
        program: &Program,
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

/// The command that removes a rule which was listed.
fn delete(listed: &str) -> String {
    listed.replacen("-A ", "-D ", 1)
}
