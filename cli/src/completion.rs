//! Completion: scripts for shells, and `kubectl`'s way of completing a plugin.
//!
//! The scripts query the program on each completion, so that namespaces and Pods are current ([`crate::candidates`]).

use std::env;
use std::ffi::OsString;

use clap::Command;
use clap_complete::Shell;
use clap_complete::env::Shells;

/// The variable by which a shell's script requests candidates.
pub(crate) const VARIABLE: &str = "COMPLETE";
/// The name under which `kubectl` looks for a plugin's completion.
pub(crate) const KUBECTL_COMPLETE: &str = "kubectl_complete-tidegate";
/// `ShellCompDirectiveNoFileComp` of `kubectl`'s completion.
const NO_FILES: &str = ":4";

/// The script that makes `shell` complete this program.
pub(crate) fn script(shell: Shell) -> anyhow::Result<Vec<u8>> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let completer = shells.completer(&name);
    let completer = completer.ok_or_else(|| anyhow::anyhow!("completion for {name} is not supported"))?;
    let mut script = Vec::new();
    completer.write_registration(VARIABLE, "tidegate", "tidegate", "tidegate", &mut script)?;
    Ok(script)
}

/// The candidates in `kubectl`'s format for the words after `kubectl tidegate`, the last of which is being typed.
pub(crate) fn for_kubectl(
    command: &mut Command,
    words: impl Iterator<Item = OsString>,
) -> anyhow::Result<String> {
    let mut all = vec![OsString::from("kubectl-tidegate")];
    all.extend(words);
    let last = all.len() - 1;
    let typed = all.get(last).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let directory = env::current_dir().ok();
    let candidates = clap_complete::engine::complete(command, all, last, directory.as_deref())?;
    let mut text = String::new();
    for candidate in candidates {
        let value = candidate.get_value().to_string_lossy();
        if value.starts_with(&typed) {
            text += &value;
            if let Some(help) = candidate.get_help() {
                text += &format!("\t{}", help.to_string().lines().next().unwrap_or_default());
            }
            text.push('\n');
        }
    }
    Ok(text + NO_FILES + "\n")
}

/// The command line, named as it was called: `kubectl tidegate` as a plugin of `kubectl`.
pub(crate) fn named(command: Command, program: &str) -> Command {
    match program.trim_end_matches(".exe") {
        "kubectl-tidegate" => command.bin_name("kubectl tidegate").display_name("kubectl tidegate"),
        _ => command,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::commands::Cli;

    fn completed(words: &[&str]) -> String {
        for_kubectl(&mut Cli::command(), words.iter().map(OsString::from)).unwrap()
    }

    #[test]
    fn kubectl_gets_candidates_with_help_and_a_directive() {
        let text = completed(&["namespace", "a"]);
        assert!(text.starts_with("add\t"), "{text}");
        assert!(text.ends_with("\n:4\n"), "{text}");
        assert!(!text.contains("remove"), "{text}");
        assert!(completed(&["proxy", "st"]).starts_with("status\t"));
    }

    #[test]
    fn a_plugin_of_kubectl_is_called_so_in_its_usage() {
        let usage = |program: &str| named(Cli::command(), program).render_help().to_string();
        assert!(
            usage("kubectl-tidegate").contains("Usage: kubectl tidegate <COMMAND>"),
            "{}",
            usage("kubectl-tidegate")
        );
        assert!(usage("tidegate").contains("Usage: tidegate <COMMAND>"));
        let mut command = named(Cli::command(), "kubectl-tidegate");
        command.build();
        let sub = command.find_subcommand_mut("namespace").unwrap().render_help().to_string();
        assert!(sub.contains("Usage: kubectl tidegate namespace <COMMAND>"), "{sub}");
    }
}
