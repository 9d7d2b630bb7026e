//! `tidegate`: the command line. See [`tidegate::commands`].
//!
//! Called through a link named `kubectl-tidegate` it is a plugin of `kubectl`, and through one named
//! `kubectl_complete-tidegate` that plugin's completion.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use tidegate::commands;

fn main() -> ExitCode {
    let program = env::args_os().next().unwrap_or_default();
    let program = Path::new(&program).file_name().unwrap_or_default().to_string_lossy().into_owned();
    match commands::main(&program) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
