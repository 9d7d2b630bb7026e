//! Every command and its flags.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::runtime::{Builder, Runtime};

use crate::demo::DemoOptions;
use crate::explain::ExplainOptions;
use crate::output::{OutputFormat, print};
use crate::standalone::StandaloneOptions;
use crate::validate::ValidateOptions;
use crate::{demo, explain, policy, standalone, validate};

/// A service mesh for the ingress controller that you have.
///
/// Exit status: 0 if all is well, 1 if something is not, 2 for a command line that cannot be understood.
#[derive(Parser, Debug)]
#[command(name = "tidegate", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the CA, the controller and a sidecar for each local Pod in one process, from a folder of manifests.
    Standalone(Box<StandaloneOptions>),
    /// Walk the ingress story: 200, 403 for the wrong principal, 200 without client certificates.
    Demo(DemoOptions),
    /// Report everything that is wrong in a folder of manifests, with file and line.
    Validate(ValidateOptions),
    /// Say whether a connection to a backend would be let in, and why.
    Explain(ExplainOptions),
    /// Look at policies in a running process.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Subcommand, Debug)]
enum PolicyCommand {
    /// List policies with their status and warnings.
    List {
        #[command(flatten)]
        target: AdminTarget,
        /// How to print it.
        #[arg(short, long, value_enum, default_value = "table")]
        output: OutputFormat,
    },
}

/// A running process to ask.
#[derive(Args, Clone, Copy, Debug)]
pub struct AdminTarget {
    /// Admin address of the running process.
    #[arg(long, env = "TIDEGATE_ADMIN_ADDRESS", value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    pub admin_address: SocketAddr,
}

impl Cli {
    /// Runs the command; `Err` is a failure to do what was asked, to be printed.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Standalone(options) => threads()?.block_on(standalone::run(*options)),
            Command::Demo(options) => threads()?.block_on(demo::run(options)),
            Command::Validate(options) => validate::run(&options),
            Command::Explain(options) => threads()?.block_on(explain::run(options)),
            Command::Policy(PolicyCommand::List { target, output }) => {
                threads()?.block_on(policy::list(target, output))
            }
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "tidegate", &mut script);
                print(&script)
            }
        }
    }
}

fn threads() -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completion_scripts_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "tidegate", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in ["standalone", "demo", "validate", "explain", "policy"] {
                assert!(script.contains(command), "{shell}: {command}");
            }
        }
    }
}
