//! `tidegate`: the command line. See [`tidegate::commands`].

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match tidegate::commands::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
