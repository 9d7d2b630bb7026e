//! Every command and its flags.

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::{CompleteEnv, Shell};
use tokio::runtime::{Builder, Runtime};

use crate::admin_target::AdminTarget;
use crate::cluster::bug_report::BugReportOptions;
use crate::cluster::certificate::CertificateCommand;
use crate::cluster::check::CheckOptions;
use crate::cluster::conflicts::ConflictsOptions;
use crate::cluster::inject::InjectOptions;
use crate::cluster::mesh::MeshCommand;
use crate::cluster::namespace::NamespaceCommand;
use crate::cluster::proxy::ProxyCommand;
use crate::cluster::{bug_report, certificate, check, conflicts, inject, mesh, namespace, proxy};
use crate::demo::DemoOptions;
use crate::egress::EgressCommand;
use crate::egress_check::CheckSubject;
use crate::explain::ExplainOptions;
use crate::install::{InstallOptions, UninstallOptions, UpgradeOptions};
use crate::output::{OutputFormat, print};
use crate::standalone::StandaloneOptions;
use crate::validate::ValidateOptions;
use crate::{completion, demo, egress, egress_check, explain, install, policy, standalone, validate};

/// A service mesh for the ingress controller that you have.
///
/// Exit status: 0 on success, 1 if a problem was found or the command failed, 2 for an invalid command line.
#[derive(Parser, Debug)]
#[command(name = "tidegate", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the CA, the controller and a sidecar for each local Pod in one process, from a folder of manifests.
    Standalone(Box<StandaloneOptions>),
    /// Walk through the ingress story: 200, 403 for the wrong principal, 200 without client certificates.
    Demo(DemoOptions),
    /// Report every error in a folder of manifests, with file and line.
    Validate(ValidateOptions),
    /// Explain whether a connection to a backend would be admitted, and why.
    Explain(ExplainOptions),
    /// Show what workloads reach outside the mesh, and allow it.
    #[command(subcommand)]
    Egress(EgressCommand),
    /// Show policies.
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Print the manifests of the control plane, or install it with --apply.
    Install(Box<InstallOptions>),
    /// Upgrade the control plane with the values of its installation.
    Upgrade(Box<UpgradeOptions>),
    /// Uninstall the control plane; keeps what cannot be recreated.
    Uninstall(UninstallOptions),
    /// Add namespaces to the mesh, remove them, list them.
    #[command(subcommand, visible_alias = "ns")]
    Namespace(NamespaceCommand),
    /// Show control planes.
    #[command(subcommand)]
    Mesh(MeshCommand),
    /// Check the cluster, the control plane and the workloads, or a server outside the mesh.
    #[command(args_conflicts_with_subcommands = true)]
    Check {
        #[command(subcommand)]
        subject: Option<CheckSubject>,
        #[command(flatten)]
        options: CheckOptions,
    },
    /// Show and query sidecars.
    #[command(subcommand)]
    Proxy(ProxyCommand),
    /// Show the mesh's root certificate, and replace it.
    #[command(subcommand, visible_alias = "cert")]
    Certificate(CertificateCommand),
    /// Add the sidecar to manifests, as the webhook does to pods, and print them.
    Inject(InjectOptions),
    /// Collect data for diagnosing a problem; no keys, no tokens, no content of Secrets.
    BugReport(BugReportOptions),
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
    /// Report IngressBackends that open the same port of the same Service.
    CheckConflicts(ConflictsOptions),
}

/// Runs the command line of this process. `program` is the name that it was called by.
pub fn main(program: &str) -> anyhow::Result<ExitCode> {
    if program == completion::KUBECTL_COMPLETE {
        return print(completion::for_kubectl(&mut Cli::command(), std::env::args_os().skip(1))?.as_bytes());
    }
    CompleteEnv::with_factory(Cli::command).var(completion::VARIABLE).complete();
    let matches = completion::named(Cli::command(), program).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()).run()
}

impl Cli {
    /// Runs the command. `Err` is a failure to run it, to be printed.
    fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Standalone(options) => threads()?.block_on(standalone::run(*options)),
            Command::Demo(options) => threads()?.block_on(demo::run(options)),
            Command::Validate(options) => validate::run(&options),
            Command::Explain(options) => threads()?.block_on(explain::run(options)),
            Command::Egress(command) => threads()?.block_on(egress::run(command)),
            Command::Policy(PolicyCommand::List { target, output }) => {
                threads()?.block_on(policy::list(&target, output))
            }
            Command::Policy(PolicyCommand::CheckConflicts(options)) => {
                threads()?.block_on(conflicts::run(options))
            }
            Command::Install(options) => threads()?.block_on(install::install(&options)),
            Command::Upgrade(options) => threads()?.block_on(install::upgrade(&options)),
            Command::Uninstall(options) => threads()?.block_on(install::uninstall(options)),
            Command::Namespace(command) => threads()?.block_on(namespace::run(command)),
            Command::Mesh(command) => threads()?.block_on(mesh::run(command)),
            Command::Check { subject: Some(subject), .. } => threads()?.block_on(egress_check::run(subject)),
            Command::Check { subject: None, options } => threads()?.block_on(check::run(options)),
            Command::Inject(options) => threads()?.block_on(inject::run(options)),
            Command::BugReport(options) => threads()?.block_on(bug_report::run(options)),
            Command::Proxy(command) => threads()?.block_on(proxy::run(command)),
            Command::Certificate(command) => threads()?.block_on(certificate::run(command)),
            Command::Completions { shell } => print(&completion::script(shell)?),
        }
    }
}

/// A runtime of two threads. The sidecars of `standalone` and `demo` have threads of their own.
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
    fn completion_scripts_ask_the_program() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell] {
            let script = String::from_utf8(completion::script(shell).unwrap()).unwrap();
            assert!(
                script.contains(completion::VARIABLE) && script.contains("tidegate"),
                "{shell}: {script}"
            );
        }
    }
}
