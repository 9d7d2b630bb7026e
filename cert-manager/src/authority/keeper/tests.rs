use std::path::Path;
use std::time::Duration;

use tidegate_core::{DnsName, San, TrustDomain};

use super::*;
use crate::service_names::ServiceNames;
use crate::store::PublishedBundle;
use crate::store::bundle_file::BundleFile;
use crate::store::root_folder::RootFolder;

const AT_ONCE: RotationTiming = RotationTiming { propagation: Duration::ZERO, max_life: Duration::ZERO };
const SLOWLY: RotationTiming =
    RotationTiming { propagation: Duration::from_secs(10), max_life: Duration::from_secs(3600) };

async fn open(dir: &Path, given: Option<GivenFiles>, timing: RotationTiming) -> Authority {
    let publishers: Vec<Arc<dyn BundlePublisher>> = vec![Arc::new(BundleFile::new(dir.join("bundle.pem")))];
    Authority::open(
        Arc::new(RootFolder::new(dir.join("ca"))),
        given,
        publishers,
        timing,
        names(),
        NewRoot::WhereNoneWas,
    )
    .await
    .unwrap()
}

fn names() -> RequiredNames {
    let own = [San::Dns(DnsName::parse("ca.example").unwrap())];
    RequiredNames::new(&TrustDomain::default(), &own, &ServiceNames::default())
}

fn published(dir: &Path) -> Vec<String> {
    TrustBundle::read_file(&dir.join("bundle.pem")).unwrap().fingerprints()
}

fn give(dir: &Path, issuer: &Issuer) -> GivenFiles {
    let files = GivenFiles { certificate: dir.join("given.crt"), key: dir.join("given.key"), root: None };
    std::fs::write(&files.certificate, issuer.chain_pem()).unwrap();
    std::fs::write(&files.key, issuer.key_pem()).unwrap();
    files
}

fn root() -> Issuer {
    Issuer::create_root(SystemTime::now()).unwrap()
}

#[tokio::test]
async fn a_restart_keeps_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), None, AT_ONCE).await.current();
    let second = open(dir.path(), None, AT_ONCE).await.current();
    assert!(first.issuer.same_as(&second.issuer));
    assert_eq!(published(dir.path()), [fingerprint(first.issuer.root())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_start_at_once_agree_on_one_root() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let dir = dir.path().to_owned();
        set.spawn(async move { open(&dir, None, AT_ONCE).await.current() });
    }
    let states = set.join_all().await;
    assert!(states.iter().all(|state| state.issuer.same_as(&states[0].issuer)));
}

#[tokio::test]
async fn a_rotation_goes_through_its_steps_and_survives_a_restart_in_each() {
    let dir = tempfile::tempdir().unwrap();
    let old = open(dir.path(), None, AT_ONCE).await.current().issuer.clone();
    for (step, roots) in [("trust-both", 2), ("issue-new", 2), ("steady", 1)] {
        let authority = open(dir.path(), None, AT_ONCE).await;
        let status = authority.next(Vouched::Nothing).await.unwrap();
        assert_eq!((status.step, status.trusted_roots.len()), (step, roots));
        let fingerprints: Vec<_> = status.trusted_roots.iter().map(|root| root.fingerprint.clone()).collect();
        assert_eq!(published(dir.path()), fingerprints);
        assert_eq!(authority.bundle().borrow().fingerprints(), fingerprints);
        assert_eq!(open(dir.path(), None, AT_ONCE).await.status().step, step);
    }
    let new = open(dir.path(), None, AT_ONCE).await.current();
    assert_ne!(new.issuer.root(), old.root());
    assert_eq!(published(dir.path()), [fingerprint(new.issuer.root())]);
}

#[tokio::test]
async fn a_step_that_comes_too_early_is_refused_unless_forced() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, SLOWLY).await;
    assert!(authority.status().next_allowed);
    authority.next(Vouched::Nothing).await.unwrap();
    assert!(matches!(authority.next(Vouched::Nothing).await, Err(NotAllowed::TooEarly { .. })));
    let status = authority.status();
    assert!(!status.next_allowed && status.reason.unwrap().contains("wait"));
    assert_eq!(authority.next(Vouched::Everything).await.unwrap().step, "issue-new");
}

#[tokio::test]
async fn the_last_step_is_taken_early_if_the_caller_vouches_for_new_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let timing = RotationTiming { propagation: Duration::ZERO, ..SLOWLY };
    let authority = open(dir.path(), None, timing).await;
    authority.next(Vouched::Nothing).await.unwrap();
    authority.next(Vouched::Nothing).await.unwrap();
    let status = authority.status();
    assert!(!status.next_allowed && status.next_allowed_once_renewed);
    assert!(matches!(authority.next(Vouched::Nothing).await, Err(NotAllowed::TooEarly { .. })));
    assert_eq!(authority.next(Vouched::Renewed).await.unwrap().step, "steady");
}

#[tokio::test]
async fn no_step_is_taken_while_the_bundle_cannot_be_published() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, AT_ONCE).await;
    // A folder stands where the file should be.
    std::fs::remove_file(dir.path().join("bundle.pem")).unwrap();
    std::fs::create_dir_all(dir.path().join("bundle.pem/in-the-way")).unwrap();
    assert!(matches!(authority.next(Vouched::Nothing).await, Err(NotAllowed::NotPublished(_))));
    std::fs::remove_dir_all(dir.path().join("bundle.pem")).unwrap();
    assert_eq!(authority.next(Vouched::Nothing).await.unwrap().step, "trust-both");
}

/// Publishes everywhere but in one namespace, for as long as that refuses.
struct Refusing(watch::Receiver<bool>);

#[tonic::async_trait]
impl BundlePublisher for Refusing {
    async fn publish(&self, _: &str) -> Result<(), StoreError> {
        let shop = UnpublishedNamespace { namespace: "shop".to_owned(), reason: "it is full".to_owned() };
        if *self.0.borrow() { Err(StoreError::Unreached(vec![shop])) } else { Ok(()) }
    }

    async fn published(&self) -> Result<Option<PublishedBundle>, StoreError> {
        Ok(None)
    }
}

#[tokio::test]
async fn a_namespace_without_the_bundle_blocks_a_step_unless_the_step_skips_it() {
    let dir = tempfile::tempdir().unwrap();
    let (refuses, refusing) = watch::channel(true);
    let store = Arc::new(RootFolder::new(dir.path().join("ca")));
    let publishers: Vec<Arc<dyn BundlePublisher>> = vec![Arc::new(Refusing(refusing))];
    let authority =
        Authority::open(store, None, publishers, AT_ONCE, names(), NewRoot::WhereNoneWas).await.unwrap();
    let without = |names: &[&str]| Advance {
        without: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Advance::default()
    };
    let status = authority.status();
    assert!(status.next_allowed && status.unreached.len() == 1 && status.unreached[0].namespace == "shop");
    for advance in [Advance::default(), without(&["mart"])] {
        let refused = authority.next(advance).await.unwrap_err().to_string();
        assert_eq!(refused, "the trust bundle is not published: namespace shop: it is full");
    }
    assert_eq!(authority.next(without(&["mart", "shop"])).await.unwrap().step, "trust-both");
    refuses.send_replace(false);
    let status = authority.next(Vouched::Nothing).await.unwrap();
    assert!(status.step == "issue-new" && status.unreached.is_empty());
}

#[tokio::test]
async fn a_retired_root_is_published_as_one_until_it_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, AT_ONCE).await;
    let read = || TrustBundle::read_file(&dir.path().join("bundle.pem")).unwrap();
    let old = published(dir.path());
    for _ in 0..3 {
        authority.next(Vouched::Nothing).await.unwrap();
    }
    assert_eq!(read().retired(), old);
    let status = open(dir.path(), None, AT_ONCE).await.status();
    assert_eq!(status.retired_roots, old);
    assert!(status.bridge_ends.is_some_and(|end| end.starts_with("20")));
    let revoke = Advance { farewell: Farewell::Revoke, ..Advance::default() };
    for _ in 0..3 {
        authority.next(revoke.clone()).await.unwrap();
    }
    assert!(read().retired().is_empty());
    assert_eq!(authority.status().bridge_ends, None);
}

#[tokio::test]
async fn what_another_process_changes_in_the_store_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (open(dir.path(), None, AT_ONCE).await, open(dir.path(), None, AT_ONCE).await);
    one.next(Vouched::Nothing).await.unwrap();
    // The other one does not know yet, and its own step would be a second rotation.
    assert_eq!(other.next(Vouched::Nothing).await.unwrap_err(), NotAllowed::Conflict);
    other.refresh().await;
    assert_eq!(other.status().step, "trust-both");
    assert_eq!(other.bundle().borrow().fingerprints(), one.bundle().borrow().fingerprints());
}

#[tokio::test]
async fn a_store_that_was_damaged_or_deleted_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, AT_ONCE).await;
    let before = authority.current();
    let store = RootFolder::new(dir.path().join("ca"));

    let stored = store.load().await.unwrap().unwrap();
    let mut broken = stored.entries.clone();
    broken.0.insert("issuer.key".to_owned(), b"broken".to_vec());
    store.update(&stored.revision, broken).await.unwrap();
    authority.refresh().await;
    assert!(authority.current().issuer.same_as(&before.issuer));

    std::fs::remove_dir_all(dir.path().join("ca")).unwrap();
    authority.refresh().await;
    let back = store.load().await.unwrap().unwrap();
    assert_eq!(back.entries, before.to_entries());
}

#[tokio::test]
async fn a_root_whose_store_is_gone_is_only_replaced_by_an_explicit_word() {
    let dir = tempfile::tempdir().unwrap();
    let (store, bundle) = (dir.path().join("ca"), dir.path().join("bundle.pem"));
    let before = open(dir.path(), None, AT_ONCE).await.current();
    std::fs::remove_dir_all(&store).unwrap();
    let start = async |new_root| {
        let publishers: Vec<Arc<dyn BundlePublisher>> = vec![Arc::new(BundleFile::new(&bundle))];
        Authority::open(Arc::new(RootFolder::new(&store)), None, publishers, AT_ONCE, names(), new_root).await
    };
    let refused = start(NewRoot::WhereNoneWas).await.unwrap_err().to_string();
    let root = fingerprint(before.issuer.root());
    for part in [store.to_str().unwrap(), bundle.to_str().unwrap(), &root, "--new-root"] {
        assert!(refused.contains(part), "{part} in {refused}");
    }
    assert!(!store.exists());
    assert_eq!(published(dir.path()), [root]);

    let made = start(NewRoot::Wanted).await.unwrap().current();
    assert!(!made.issuer.same_as(&before.issuer));
    // The word is for one root: it does not replace the next.
    for new_root in [NewRoot::Wanted, NewRoot::WhereNoneWas] {
        assert!(start(new_root).await.unwrap().current().issuer.same_as(&made.issuer));
    }
}

#[tokio::test]
async fn a_bundle_without_a_certificate_does_not_show_that_there_was_a_root() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bundle.pem"), "").unwrap();
    let made = open(dir.path(), None, AT_ONCE).await.current();
    assert_eq!(published(dir.path()), [fingerprint(made.issuer.root())]);
}

#[tokio::test]
async fn a_copy_of_the_store_without_its_links_keeps_the_root_and_takes_the_steps_of_a_rotation() {
    let dir = tempfile::tempdir().unwrap();
    let before = open(dir.path(), None, AT_ONCE).await.current();
    let copy = "cp -rL ca copy && rm -r ca && mv copy ca";
    let copied = std::process::Command::new("sh").args(["-c", copy]).current_dir(dir.path()).status();
    assert!(copied.unwrap().success());
    let authority = open(dir.path(), None, AT_ONCE).await;
    assert!(authority.current().issuer.same_as(&before.issuer));
    for step in ["trust-both", "issue-new", "steady"] {
        assert_eq!(authority.next(Vouched::Everything).await.unwrap().step, step);
    }
}

#[tokio::test]
async fn a_given_authority_is_used_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let given = root();
    let authority = open(dir.path(), Some(give(dir.path(), &given)), AT_ONCE).await;
    assert!(authority.current().issuer.same_as(&given));
    assert_eq!(authority.next(Vouched::Nothing).await.unwrap_err(), NotAllowed::Given);
}

/// A root of OpenSSL's with these name constraints.
fn constrained(dir: &Path, constraints: &str) -> GivenFiles {
    let extension = format!("nameConstraints=critical,{constraints}");
    crate::testing::openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout c.key -out c.crt -subj /CN=c \
             -addext {extension}"
        ),
    );
    GivenFiles { certificate: dir.join("c.crt"), key: dir.join("c.key"), root: None }
}

#[tokio::test]
async fn an_authority_that_may_not_sign_the_meshs_names_is_refused_and_the_names_are_named() {
    for (constraints, whose) in [
        ("permitted;DNS:corp.example", "for a workload: "),
        ("excluded;DNS:cluster.local", "DNS:default.default.cluster.local"),
        (
            "permitted;DNS:cluster.local",
            "for its own service: the certificate authority may not sign DNS:ca.example",
        ),
        ("excluded;URI:cluster.local", "URI:spiffe://cluster.local/ns/default/sa/default"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let files = constrained(dir.path(), constraints);
        let store = Arc::new(RootFolder::new(dir.path().join("ca")));
        let start =
            |given| Authority::open(store.clone(), given, vec![], AT_ONCE, names(), NewRoot::default());
        let refused = start(Some(files.clone())).await.unwrap_err().to_string();
        assert!(refused.contains(whose), "{constraints}: {refused}");
        assert!(!dir.path().join("ca").exists());

        // Put in place of one that is in force, it changes nothing.
        let good = root();
        let given = give(dir.path(), &good);
        let authority = start(Some(given.clone())).await.unwrap();
        std::fs::copy(&files.certificate, &given.certificate).unwrap();
        std::fs::copy(&files.key, &given.key).unwrap();
        authority.refresh().await;
        assert!(authority.current().issuer.same_as(&good), "{constraints}");
        assert!(authority.status().problem.unwrap().contains(whose), "{constraints}");
    }
}

#[tokio::test]
async fn an_authority_whose_constraints_allow_the_mesh_signs_only_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let files = constrained(
        dir.path(),
        "permitted;DNS:cluster.local,permitted;DNS:ca.example,excluded;DNS:x.cluster.local",
    );
    let authority = open(dir.path(), Some(files), AT_ONCE).await;
    let issuer = authority.current().issuer.clone();
    let now = SystemTime::now();
    let sign = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let sans = [San::Dns(DnsName::parse(name).unwrap())];
        let key = rcgen::PublicKeyData::subject_public_key_info(&key);
        issuer.sign_leaf(&key, &sans, false, now, now + Duration::from_secs(60))
    };
    assert!(sign("a.b.cluster.local").is_ok());
    let refused = sign("a.x.cluster.local").unwrap_err().to_string();
    assert!(
        refused.starts_with("the certificate authority may not sign DNS:a.x.cluster.local: "),
        "{refused}"
    );
}

#[tokio::test]
async fn files_with_another_root_begin_a_rotation_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (root(), root());
    let files = give(dir.path(), &first);
    let authority = open(dir.path(), Some(files.clone()), AT_ONCE).await;

    std::fs::write(&files.key, "half written").unwrap();
    authority.refresh().await;
    assert!(authority.current().issuer.same_as(&first));

    give(dir.path(), &second);
    authority.refresh().await;
    assert_eq!(authority.status().step, "trust-both");
    assert!(authority.current().issuer.same_as(&first));
    assert_eq!(authority.next(Vouched::Nothing).await.unwrap().step, "issue-new");
    authority.refresh().await;
    assert!(authority.current().issuer.same_as(&second));
    assert_eq!(authority.next(Vouched::Nothing).await.unwrap().step, "steady");
}

#[tokio::test]
async fn unusable_files_are_an_error_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let files = GivenFiles { certificate: dir.path().join("a"), key: dir.path().join("b"), root: None };
    let opened = Authority::open(
        Arc::new(RootFolder::new(dir.path().join("ca"))),
        Some(files),
        vec![],
        AT_ONCE,
        names(),
        NewRoot::default(),
    );
    let error = opened.await.unwrap_err().to_string();
    assert!(error.contains("/a: ") && error.contains("/b: "), "{error}");
}

/// Puts entries of the user's into the store, in place of what is there or beside it.
async fn put_into_store(dir: &Path, entries: &[(&str, String)], beside: bool) {
    let store = RootFolder::new(dir.join("ca"));
    let mut wanted = crate::store::NamedValues::default();
    let stored = store.load().await.unwrap();
    if let Some(stored) = stored.as_ref().filter(|_| beside) {
        wanted = stored.entries.clone();
    }
    wanted.0.extend(entries.iter().map(|(name, text)| ((*name).to_owned(), text.clone().into_bytes())));
    match stored {
        Some(stored) => store.update(&stored.revision, wanted).await.unwrap(),
        None => store.create_if_absent(wanted).await.unwrap(),
    };
}

fn forms(issuer: &Issuer) -> [Vec<(&'static str, String)>; 3] {
    let (chain, key) = (issuer.chain_pem(), issuer.key_pem());
    [
        vec![("ca.crt", chain.clone()), ("ca.key", key.clone())],
        vec![("ca.crt", chain.clone()), ("private.key", key.clone())],
        vec![("tls.crt", chain), ("tls.key", key)],
    ]
}

#[tokio::test]
async fn an_authority_that_the_user_has_put_into_the_store_is_used_and_left_as_it_is() {
    let given = root();
    for form in forms(&given) {
        let dir = tempfile::tempdir().unwrap();
        put_into_store(dir.path(), &form, false).await;
        let before = RootFolder::new(dir.path().join("ca")).load().await.unwrap();
        let authority = open(dir.path(), None, AT_ONCE).await;
        assert!(authority.current().issuer.same_as(&given), "{form:?}");
        authority.refresh().await;
        assert_eq!(RootFolder::new(dir.path().join("ca")).load().await.unwrap(), before);
        for step in ["trust-both", "issue-new", "steady"] {
            assert_eq!(authority.next(Vouched::Nothing).await.unwrap().step, step);
        }
        assert!(!open(dir.path(), None, AT_ONCE).await.current().issuer.same_as(&given));
    }
}

#[tokio::test]
async fn another_root_in_the_store_begins_a_rotation_to_it_that_a_restart_survives() {
    for beside in [false, true] {
        for form in forms(&root()) {
            let dir = tempfile::tempdir().unwrap();
            let authority = open(dir.path(), None, AT_ONCE).await;
            let first = authority.current().issuer.clone();
            put_into_store(dir.path(), &form, beside).await;
            authority.refresh().await;
            let status = authority.status();
            assert_eq!((status.step, status.problem), ("trust-both", None), "{beside} {form:?}");
            assert!(authority.current().issuer.same_as(&first));
            assert_eq!(status.required_roots.len(), 2);
            // The same once more changes nothing, in whatever step.
            put_into_store(dir.path(), &form, false).await;
            authority.refresh().await;
            let restarted = open(dir.path(), None, AT_ONCE).await;
            assert_eq!(restarted.status().step, "trust-both");
            assert!(restarted.current().issuer.same_as(&first));
            assert_eq!(restarted.next(Vouched::Nothing).await.unwrap().step, "issue-new");
            assert_eq!(restarted.next(Vouched::Nothing).await.unwrap().step, "steady");
        }
    }
}

#[tokio::test]
async fn a_third_root_in_the_midst_of_a_rotation_is_refused_and_the_rotation_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, AT_ONCE).await;
    authority.next(Vouched::Nothing).await.unwrap();
    for form in forms(&root()) {
        put_into_store(dir.path(), &form, false).await;
        authority.refresh().await;
        let problem = authority.problems().borrow().clone().unwrap();
        assert!(problem.contains("finish the rotation"), "{problem}");
        assert_eq!(open(dir.path(), None, AT_ONCE).await.status().step, "trust-both");
    }
    authority.refresh().await;
    assert_eq!(authority.status().problem, None);
    assert_eq!(authority.next(Vouched::Nothing).await.unwrap().step, "issue-new");
}

#[tokio::test]
async fn a_broken_authority_in_the_store_is_a_problem_that_the_status_shows_until_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, AT_ONCE).await;
    let before = authority.current().issuer.clone();
    let good = RootFolder::new(dir.path().join("ca")).load().await.unwrap().unwrap().entries;
    let (one, other) = (root(), root());
    let broken = [
        vec![("ca.crt", one.chain_pem()), ("ca.key", other.key_pem())],
        vec![("ca.key", one.key_pem())],
        vec![("ca.crt", one.chain_pem()), ("ca.key", one.key_pem()), ("private.key", one.key_pem())],
        vec![("tls.crt", "nonsense".to_owned()), ("tls.key", one.key_pem())],
        vec![("something", "else".to_owned())],
    ];
    for entries in broken {
        put_into_store(dir.path(), &entries, false).await;
        authority.refresh().await;
        assert!(authority.status().problem.unwrap().contains("cannot be used"), "{entries:?}");
        assert!(authority.current().issuer.same_as(&before));
    }
    let store = RootFolder::new(dir.path().join("ca"));
    let revision = store.load().await.unwrap().unwrap().revision;
    store.update(&revision, good).await.unwrap();
    authority.refresh().await;
    assert_eq!(authority.status().problem, None);
}

#[tokio::test]
async fn a_change_without_effect_disturbs_no_reader() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path(), None, AT_ONCE).await;
    let mut states = authority.states();
    states.borrow_and_update();
    put_into_store(dir.path(), &[], true).await;
    authority.refresh().await;
    assert!(!states.has_changed().unwrap());
    assert_eq!(
        authority.next(Vouched::Nothing).await.unwrap().step,
        "trust-both",
        "the new revision is known"
    );
}
