//! Golden files: what others consume, kept beside the tests so that changes are noticed.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// If set, golden files are written instead of compared: `just golden`.
const WRITE: &str = "TIDEGATE_WRITE_GOLDEN";

/// The repository's folder.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Whether golden files are written.
pub fn is_written() -> bool {
    env::var_os(WRITE).is_some()
}

/// Compares `text` with a file below `tests/golden/`, or writes it.
pub fn assert_golden(file: &str, text: &str) {
    let path = repository().join("tests/golden").join(file);
    if is_written() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return;
    }
    let golden = fs::read_to_string(&path).unwrap_or_default();
    if golden == text {
        return;
    }
    let at = golden.lines().zip(text.lines()).take_while(|(golden, text)| golden == text).count();
    panic!(
        "tests/golden/{file} is not what came out, from line {}:\n  golden: {:?}\n  now:    {:?}\nIf that is meant: `just golden`, and read the difference.",
        at + 1,
        golden.lines().nth(at).unwrap_or("(end)"),
        text.lines().nth(at).unwrap_or("(end)"),
    );
}
