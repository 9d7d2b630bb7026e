use std::fs;

use super::*;
use crate::test_pki::{TestAuthority, bundle};

const SOON: Duration = Duration::from_millis(5);

#[test]
fn only_the_set_of_certificates_counts() {
    let (a, b) = (TestAuthority::root("a"), TestAuthority::root("b"));
    let (a_pem, b_pem) = (tls::pem_encode(&[a.der()]), tls::pem_encode(&[b.der()]));
    let expected = bundle(&[&a, &b]);
    for text in [
        format!("{a_pem}{b_pem}"),
        format!("{b_pem}{a_pem}"),
        format!("{a_pem}{b_pem}{a_pem}"),
        format!("{a_pem}{b_pem}").replace('\n', "\r\n"),
        format!("\n\n# first\n{a_pem}\n\n  # second\n{}", b_pem.trim_end()),
        format!("subject=CN = a\nissuer=CN = a\n{a_pem}\r\n\r\n{b_pem}\n\n\n"),
    ] {
        let parsed = TrustBundle::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed, expected, "{text}");
        assert_eq!(parsed.roots().len(), 2);
        assert_eq!(parsed.root_store().len(), 2);
    }
    assert_ne!(a.bundle(), expected);
    assert_ne!(a.bundle(), b.bundle());
    assert_eq!(TrustBundle::parse(expected.to_pem().as_bytes()).unwrap(), expected);
}

#[test]
fn an_incomplete_bundle_is_refused() {
    let pem = tls::pem_encode(&[TestAuthority::root("a").der()]);
    assert!(matches!(TrustBundle::parse(b""), Err(TrustBundleError::Empty)));
    assert!(matches!(TrustBundle::parse(b"# nothing\n"), Err(TrustBundleError::Empty)));
    let cut = format!("{pem}{}", &pem[..pem.len() / 2]);
    assert!(matches!(TrustBundle::parse(cut.as_bytes()), Err(TrustBundleError::Pem(_))));
    let no_certificate = tls::pem_encode(&[CertificateDer::from(vec![1, 2, 3])]);
    let error = TrustBundle::parse(format!("{pem}{no_certificate}").as_bytes()).unwrap_err();
    assert!(matches!(error, TrustBundleError::Root { position: 2, .. }), "{error}");
}

#[test]
fn a_fingerprint_is_the_sha256_of_the_certificate() {
    let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(fingerprint(&CertificateDer::from(&b"abc"[..])), digest);
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    fs::write(&path, vec![b'\n'; MAX_FILE_BYTES as usize + 1]).unwrap();
    assert!(matches!(TrustBundle::read_file(&path), Err(TrustBundleError::TooLarge)));
}

#[tokio::test]
async fn an_absent_file_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let watching = tokio::spawn(watch_file(path.clone(), SOON));
    tokio::task::yield_now().await;
    assert!(!watching.is_finished());
    let root = TestAuthority::root("a");
    fs::write(&path, root.bundle().to_pem()).unwrap();
    assert_eq!(**watching.await.unwrap().borrow(), root.bundle());
}

#[tokio::test]
async fn a_changed_file_is_followed_until_all_receivers_are_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let (a, b) = (TestAuthority::root("a"), TestAuthority::root("b"));
    fs::write(&path, a.bundle().to_pem()).unwrap();
    let mut receiver = watch_file(path.clone(), SOON).await;
    receiver.mark_unchanged();
    fs::remove_file(&path).unwrap();
    replace(&path, &bundle(&[&a, &b]).to_pem());
    receiver.changed().await.unwrap();
    assert_eq!(**receiver.borrow_and_update(), bundle(&[&a, &b]));
}

#[tokio::test]
async fn a_file_rewritten_with_the_same_roots_does_not_count_as_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let (a, b, c) = (TestAuthority::root("a"), TestAuthority::root("b"), TestAuthority::root("c"));
    let (sender, mut receiver) = watch::channel(Arc::new(bundle(&[&a, &b, &c])));
    let mut file = WatchedFile { path: path.clone(), complaint: None };
    for text in [
        format!("# same\r\n{}\n\n", bundle(&[&a, &b, &c]).to_pem().replace('\n', "\r\n")),
        bundle(&[&a, &c, &b]).to_pem().trim_end().to_owned(),
    ] {
        replace(&path, &text);
        file.follow(&sender).await;
        assert!(!receiver.has_changed().unwrap(), "{text}");
    }
    // But for which of them issues.
    replace(&path, &bundle(&[&b, &a, &c]).to_pem());
    file.follow(&sender).await;
    assert_eq!(*receiver.borrow_and_update().issuing(), b.der());
    replace(&path, &b.bundle().to_pem());
    file.follow(&sender).await;
    assert_eq!(**receiver.borrow_and_update(), b.bundle());
}

#[tokio::test]
async fn a_retired_root_judges_what_is_open_for_as_long_as_the_file_names_it_and_nothing_new() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let (a, b, c) = (TestAuthority::root("a"), TestAuthority::root("b"), TestAuthority::root("c"));
    let (sender, receiver) = watch::channel(Arc::new(bundle(&[&a, &b])));
    let mut file = WatchedFile { path: path.clone(), complaint: None };
    let of = |authority: &TestAuthority| fingerprint(&authority.der());
    let mut judges = async |text: String| {
        replace(&path, &text);
        file.follow(&sender).await;
        let bundle = receiver.borrow().clone();
        (bundle.root_store().len(), bundle.lasting_store().len())
    };
    // One that this process has never trusted, and a line that names none, add nothing.
    let retired = b.bundle().with_retired([of(&a), of(&c)]);
    let text = retired.to_text() + RETIRED + "AB\n";
    assert_eq!(TrustBundle::parse(text.as_bytes()).unwrap().retired(), [of(&a), of(&c)]);
    assert_eq!(TrustBundle::parse(text.as_bytes()).unwrap().lasting_store().len(), 1);
    assert_eq!(judges(text).await, (1, 2));
    // It outlives further rotations, and ends when it is not named any more.
    assert_eq!(judges(c.bundle().with_retired([of(&a), of(&b)]).to_text()).await, (1, 3));
    assert_eq!(judges(c.bundle().with_retired([of(&b)]).to_text()).await, (1, 2));
    assert_eq!(judges(c.bundle().to_text()).await, (1, 1));
    assert_eq!(judges(c.bundle().with_retired([of(&a)]).to_text()).await, (1, 1), "revoked for good");
}

#[test]
fn the_roots_that_were_retired_first_are_forgotten_first() {
    let names: Vec<String> = (0..MOST_RETIRED + 2).map(|i| format!("{i:064x}")).collect();
    let bundle = TestAuthority::root("a").bundle().with_retired(names.clone());
    assert_eq!(bundle.retired(), &names[2..]);
    assert_eq!(TrustBundle::parse(bundle.to_text().as_bytes()).unwrap().retired(), &names[2..]);
}

#[tokio::test]
async fn a_broken_empty_or_missing_file_leaves_the_last_good_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let (a, b) = (TestAuthority::root("a"), TestAuthority::root("b"));
    let (sender, receiver) = watch::channel(Arc::new(a.bundle()));
    let mut file = WatchedFile { path: path.clone(), complaint: None };
    file.follow(&sender).await;
    for text in ["", "-----BEGIN CERTIFICATE-----\nbroken", "# empty\n"] {
        replace(&path, text);
        file.follow(&sender).await;
        assert!(file.complaint.is_some(), "{text:?}");
    }
    assert!(!receiver.has_changed().unwrap());
    replace(&path, &b.bundle().to_pem());
    file.follow(&sender).await;
    assert_eq!(**receiver.borrow(), b.bundle());
}

#[tokio::test]
async fn each_reason_is_said_once_while_it_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("roots.pem");
    let mut file = WatchedFile { path: path.clone(), complaint: None };
    assert!(file.read().await.is_none());
    let missing = file.complaint.clone().unwrap();
    assert!(file.read().await.is_none());
    assert_eq!(file.complaint.as_ref(), Some(&missing));
    fs::write(&path, "").unwrap();
    assert!(file.read().await.is_none());
    assert_eq!(file.complaint.as_deref(), Some("holds no certificate"));
    fs::write(&path, TestAuthority::root("a").bundle().to_pem()).unwrap();
    assert!(file.read().await.is_some());
    assert_eq!(file.complaint, None);
}

/// Puts a whole file in place at once, as Kubernetes does.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}
