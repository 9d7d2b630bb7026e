//! `tidegate`: the command line. See [`tidegate::commands`].

use std::process::ExitCode;

use clap::Parser;

// glibc's allocator keeps what a burst of connections once needed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match tidegate::commands::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
