use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

fn entries(pairs: &[(&str, &str)]) -> NamedValues {
    NamedValues(pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_was_written_is_read_and_stands_under_its_plain_names() {
    let dir = tempfile::tempdir().unwrap();
    let folder = VersionedFolder::public(dir.path().join("deep/folder"));
    assert_eq!(folder.read().unwrap(), None);
    let first = folder.lock().unwrap().write(&entries(&[("a.crt", "1"), ("b.key", "2")])).unwrap();
    assert_eq!(folder.read().unwrap(), Some(first.clone()));
    let second = folder.lock().unwrap().write(&entries(&[("a.crt", "3")])).unwrap();
    assert_ne!(first.revision, second.revision);
    assert_eq!(fs::read(folder.path.join("a.crt")).unwrap(), b"3");
    assert!(!folder.path.join("b.key").exists() && fs::symlink_metadata(folder.path.join("b.key")).is_err());
}

#[test]
fn keys_are_for_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let public = VersionedFolder::public(dir.path().join("public"));
    public.lock().unwrap().write(&entries(&[("tls.crt", ""), ("tls.key", "")])).unwrap();
    assert_eq!(mode(&public.path.join("tls.key")), 0o600);
    assert_eq!(mode(&public.path.join("tls.crt")), 0o644);
    let private = VersionedFolder::private(dir.path().join("private"));
    private.lock().unwrap().write(&entries(&[("ca.crt", "")])).unwrap();
    assert_eq!(mode(&private.path.join("ca.crt")), 0o600);
    assert_eq!(mode(&private.path), 0o700);
}

#[test]
fn the_version_before_stays_for_its_readers_and_older_ones_go() {
    let dir = tempfile::tempdir().unwrap();
    let folder = VersionedFolder::private(dir.path());
    let versions: Vec<_> = (0..4)
        .map(|i| folder.lock().unwrap().write(&entries(&[("a", &i.to_string())])).unwrap().revision)
        .collect();
    let there: Vec<bool> = versions.iter().map(|version| dir.path().join(version).exists()).collect();
    assert_eq!(there, [false, false, true, true]);
}

#[test]
fn readers_never_see_values_of_two_versions() {
    let dir = tempfile::tempdir().unwrap();
    let folder = VersionedFolder::public(dir.path());
    let write = |i: usize| {
        let value = i.to_string();
        folder.lock().unwrap().write(&entries(&[("tls.crt", &value), ("tls.key", &value)])).unwrap();
    };
    write(0);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = || {
            let mut last = 0_usize;
            while !done.load(Ordering::Relaxed) {
                let read = folder.read().unwrap().unwrap().entries.0;
                assert_eq!(read["tls.crt"], read["tls.key"]);
                let seen: usize = String::from_utf8(read["tls.crt"].clone()).unwrap().parse().unwrap();
                assert!(seen >= last, "a version came back");
                last = seen;
            }
        };
        scope.spawn(reader);
        scope.spawn(reader);
        (1..150).for_each(write);
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(folder.read().unwrap().unwrap().entries.0["tls.crt"], b"149");
}

#[test]
fn removal_takes_what_is_ours_and_leaves_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, shared) = (dir.path().join("ours"), dir.path().join("shared"));
    for path in [&ours, &shared] {
        VersionedFolder::public(path).lock().unwrap().write(&entries(&[("tls.crt", "1")])).unwrap();
    }
    fs::write(shared.join("mine.txt"), "").unwrap();
    for path in [&ours, &shared] {
        VersionedFolder::public(path).remove().unwrap();
    }
    assert!(!ours.exists());
    let left: Vec<_> = fs::read_dir(&shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine.txt"]);
    // Files of other authors are not deleted.
    let foreign = dir.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("tls.key"), "").unwrap();
    VersionedFolder::public(&foreign).remove().unwrap();
    assert!(foreign.join("tls.key").exists());
}
