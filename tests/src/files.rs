//! Files that programs watch.

use std::fs;
use std::path::Path;

/// Replaces a file atomically: a reader sees the old content or the new one.
pub fn replace(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(&fresh, path).unwrap();
}
