//! Writes a report as an archive or as a folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::BugReport;

/// File mode: only the owner may read a report, because it reveals much about a cluster.
const MODE: u32 = 0o600;

/// Writes all files into a folder named after the report. `path` must not exist.
pub(super) fn write(path: &Path, mut report: BugReport) -> io::Result<()> {
    if !report.missing.is_empty() {
        let text: String = report.missing.iter().map(|line| format!("{line}\n")).collect();
        report.files.push(("missing.txt".to_owned(), text));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.strip_suffix(".tar.gz").or_else(|| name.strip_suffix(".tgz")) {
        Some(name) => archive(path, name, &report.files),
        None => folder(path, &report.files),
    }
}

/// A gzip-compressed tar archive with one folder, so that unpacking does not scatter files.
fn archive(path: &Path, name: &str, files: &[(String, String)]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(create(path)?, Compression::default()));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for (file, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{name}/{file}"), text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

/// The same files on disk. A file that exists already is an error, never overwritten.
fn folder(path: &Path, files: &[(String, String)]) -> io::Result<()> {
    for (file, text) in files {
        let file = path.join(file);
        fs::create_dir_all(file.parent().unwrap_or(path))?;
        create(&file)?.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// A new file that only its owner may read; it is never an existing file or a link.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)
}
