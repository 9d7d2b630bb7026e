use super::*;

fn subject(name: &str) -> TokenSubject {
    TokenSubject { namespace: "shop".to_owned(), service_account: "cart".to_owned(), name: name.to_owned() }
}

fn issuer(folder: &Path) -> TokenIssuer {
    TokenIssuer::new(folder.join("tokens"), &folder.join("key.pub"), Duration::from_secs(8)).unwrap()
}

#[test]
fn a_renewal_replaces_the_token_of_each_subject_that_is_not_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = issuer(dir.path());
    let files = ["cart-1", "cart-2", "gone"].map(|name| issuer.write(&subject(name)).unwrap());
    issuer.forget("shop", "gone");
    for file in &files[..2] {
        fs::write(file, "old").unwrap();
    }
    assert!(issuer.renew().is_empty());
    for file in &files[..2] {
        assert_eq!(fs::read_to_string(file).unwrap().split('.').count(), 3);
    }
    assert!(!files[2].exists());
    assert_eq!(issuer.renewal_interval(), Duration::from_secs(2));
}

#[test]
fn pods_whose_names_resemble_each_other_keep_their_own_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = issuer(dir.path());
    let files = ["web", "web.new", "web.old"].map(|name| issuer.write(&subject(name)).unwrap());
    assert!(issuer.renew().is_empty());
    assert!(files.iter().all(|file| file.exists()), "{files:?}");
}

#[test]
fn one_subject_that_cannot_be_written_leaves_the_others_their_renewal() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = issuer(dir.path());
    let files = ["a", "b"].map(|name| issuer.write(&subject(name)).unwrap());
    fs::remove_file(&files[0]).unwrap();
    fs::create_dir_all(files[0].join("in-the-way")).unwrap();
    fs::write(&files[1], "old").unwrap();
    assert_eq!(issuer.renew().len(), 1);
    assert_ne!(fs::read_to_string(&files[1]).unwrap(), "old");
}

#[test]
fn a_life_outside_of_its_bounds_is_refused() {
    assert_eq!(parse_life("1h"), Ok(Duration::from_secs(3600)));
    for text in ["3s", "25h", "soon", ""] {
        assert!(parse_life(text).is_err(), "{text}");
    }
}
