//! Programs that are built with Go from the modules in `tests/`, which pin their versions.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::daemon::programs;

/// Builds a package that a module's `go.mod` lists as a tool; Go caches the result. `module` is a folder of `tests/`.
#[track_caller]
pub fn build(module: &str, package: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(module);
    let program = programs().join("go").join(module).join(package.rsplit('/').next().unwrap());
    let mut command = Command::new("go");
    command.current_dir(&folder).arg("build").arg("-o").arg(&program).arg(package);
    let output = command.output().unwrap_or_else(|error| panic!("{package} is built with Go 1.26: {error}"));
    assert!(output.status.success(), "go build {package}: {}", String::from_utf8_lossy(&output.stderr));
    program
}
