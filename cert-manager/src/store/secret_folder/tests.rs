use super::*;

fn name(namespace: &str, name: &str) -> SecretName {
    SecretName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn secret(value: &str) -> TlsSecret {
    TlsSecret { ca_crt: value.to_owned(), tls_crt: value.to_owned(), tls_key: value.to_owned() }
}

#[tokio::test]
async fn secrets_come_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = SecretFolder::new(dir.path().join("secrets"));
    let (a, b) = (name("ingress", "client"), name("osm-system", "osm-nginx-client-cert"));
    assert_eq!(store.owned().await.unwrap(), []);
    store.put(&a, &secret("1")).await.unwrap();
    store.put(&b, &secret("2")).await.unwrap();
    store.put(&a, &secret("3")).await.unwrap();
    assert_eq!(store.get(&a).await.unwrap(), Some(secret("3")));
    let mut owned = store.owned().await.unwrap();
    owned.sort();
    assert_eq!(owned, [a.clone(), b.clone()]);
    store.remove(&a).await.unwrap();
    store.remove(&a).await.unwrap();
    assert_eq!(store.get(&a).await.unwrap(), None);
    assert_eq!(store.owned().await.unwrap(), [b]);
    assert!(!dir.path().join("secrets/ingress").exists());
}

#[tokio::test]
async fn a_secret_with_a_missing_or_overwritten_value_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = SecretFolder::new(dir.path());
    let name = name("a", "b");
    for damage in [
        |path: PathBuf| fs::remove_file(path.join("tls.key")).unwrap(),
        |path: PathBuf| fs::write(path.join("..data/ca.crt"), [0xff]).unwrap(),
        |path: PathBuf| fs::remove_dir_all(path).unwrap(),
        |path: PathBuf| {
            fs::remove_file(path.join("tls.crt")).unwrap();
            fs::write(path.join("tls.crt"), "mine").unwrap();
        },
    ] {
        store.put(&name, &secret("1")).await.unwrap();
        assert_eq!(store.get(&name).await.unwrap(), Some(secret("1")));
        damage(dir.path().join("a/b"));
        assert_eq!(store.get(&name).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_name_never_leaves_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let store = SecretFolder::new(dir.path());
    for name in
        [name("..", "a"), name("a", "../b"), name("a", ""), name("a", "B"), name("/a", "b"), name("a", ".")]
    {
        assert!(matches!(store.put(&name, &secret("1")).await, Err(StoreError::Name(_))), "{name}");
    }
}

#[tokio::test]
async fn a_copied_secret_is_continued_and_a_key_of_another_author_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (store, copied) = (SecretFolder::new(dir.path().join("a")), SecretFolder::new(dir.path().join("b")));
    let name = name("ingress", "client");
    store.put(&name, &secret("1")).await.unwrap();
    let copy = std::process::Command::new("cp").args(["-rL", "a", "b"]).current_dir(dir.path()).status();
    assert!(copy.unwrap().success());
    assert_eq!(copied.get(&name).await.unwrap(), Some(secret("1")));
    assert_eq!(copied.owned().await.unwrap().as_slice(), std::slice::from_ref(&name));
    copied.put(&name, &secret("2")).await.unwrap();
    assert_eq!(copied.get(&name).await.unwrap(), Some(secret("2")));

    let key = dir.path().join("b/ingress/client/tls.key");
    fs::remove_file(&key).unwrap();
    fs::write(&key, "mine").unwrap();
    assert_eq!(copied.get(&name).await.unwrap(), None);
    let refused = copied.put(&name, &secret("3")).await.unwrap_err().to_string();
    assert!(refused.contains("tls.key is a key that was not written by this store"), "{refused}");
    assert_eq!(fs::read_to_string(&key).unwrap(), "mine");
}
