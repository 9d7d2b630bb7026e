use std::collections::HashSet;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use clap::Parser;
use rcgen::{CertificateSigningRequestParams, SanType};
use tempfile::TempDir;

use super::renewal::{Renewal, RenewalTiming};
use super::*;
use crate::chain::chains_to;
use crate::grpc::{ClientCertificates, server_config};
use crate::test_ca::{Flaw, TestCa};
use crate::test_pki::{TestAuthority, bundle, identity};

const LIFE: Duration = Duration::from_secs(1000);

/// A wall clock that tests set forward and back.
#[derive(Clone)]
struct FakeClock {
    now: Arc<Mutex<SystemTime>>,
    looks: Arc<AtomicUsize>,
}

struct Fixture {
    root: Arc<TestAuthority>,
    ca: TestCa,
    clock: FakeClock,
    bundle: watch::Sender<Arc<TrustBundle>>,
    metrics: Metrics,
    token: PathBuf,
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    task: JoinHandle<()>,
    _folder: TempDir,
}

impl FakeClock {
    fn new() -> Self {
        Self { now: Arc::new(Mutex::new(SystemTime::now())), looks: Arc::default() }
    }

    fn now(&self) -> SystemTime {
        self.looks.fetch_add(1, Ordering::Relaxed);
        *self.now.lock().unwrap()
    }

    fn advance(&self, seconds: u64) {
        *self.now.lock().unwrap() += Duration::from_secs(seconds);
    }

    fn set_back(&self, seconds: u64) {
        *self.now.lock().unwrap() -= Duration::from_secs(seconds);
    }

    /// Waits until the renewal has looked at the clock often enough to have acted on what it says.
    async fn looked_at(&self) {
        let goal = self.looks.load(Ordering::Relaxed) + 10;
        until(|| self.looks.load(Ordering::Relaxed) >= goal).await;
    }
}

impl Fixture {
    /// A process that has asked for its certificate; `prepare` may change the CA before.
    async fn start(prepare: impl FnOnce(&TestCa)) -> Self {
        let root = Arc::new(TestAuthority::root("root"));
        let clock = FakeClock::new();
        let ca_clock = clock.now.clone();
        let ca_clock = Arc::new(move || *ca_clock.lock().unwrap());
        let ca = TestCa::start(root.clone(), identity("cart"), LIFE, ca_clock).await;
        prepare(&ca);
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, "first\n").unwrap();
        let options = CaOptions {
            ca_address: format!("https://{}", ca.address).parse().unwrap(),
            ca_server_name: Some("localhost".try_into().unwrap()),
            ca_trust_bundle: PathBuf::new(),
            token_file: token.clone(),
            proxy: ControlPlaneProxyOptions::default(),
            certificate_lifetime: Duration::from_secs(86_400),
        };
        let metrics = Metrics::new();
        let (bundle, roots) = watch::channel(Arc::new(root.bundle()));
        let (sender, credentials) = watch::channel(None);
        let mut renewal = Renewal::new(options, Some(identity("cart")), roots, &metrics, sender);
        let renewal_clock = clock.clone();
        renewal.clock = Arc::new(move || renewal_clock.now());
        renewal.timing = RenewalTiming {
            longest_sleep: Duration::from_millis(2),
            first_retry: Duration::from_millis(2),
            slowest_retry: Duration::from_millis(20),
            ..RenewalTiming::default()
        };
        let task = tokio::spawn(renewal.run());
        Self { root, ca, clock, bundle, metrics, token, credentials, task, _folder: folder }
    }

    fn current(&self) -> Arc<Credentials> {
        self.credentials.borrow().clone().unwrap()
    }

    /// Waits for the certificate of `generation`.
    async fn generation(&mut self, generation: u64) -> Arc<Credentials> {
        let is_there = |current: &Option<Arc<Credentials>>| {
            current.as_ref().is_some_and(|current| current.generation >= generation)
        };
        let current = self.credentials.wait_for(is_there);
        let current =
            tokio::time::timeout(Duration::from_secs(30), current).await.unwrap().unwrap().clone().unwrap();
        assert_eq!(current.generation, generation);
        current
    }

    /// Waits for `count` more tries that ended with `result`.
    async fn tries(&self, result: &str, count: u64) {
        let goal = self.tried(result) + count;
        until(|| self.tried(result) >= goal).await;
    }

    fn tried(&self, result: &str) -> u64 {
        let prefix = format!("tidegate_certificate_renewals_total{{result=\"{result}\"}} ");
        let page = self.metrics.encode();
        page.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |count| count.parse().unwrap())
    }
}

/// Lets other tasks run until the condition holds.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), wait).await.expect("it never came to that");
}

#[tokio::test]
async fn the_first_certificate_is_ours_and_usable() {
    let mut fixture = Fixture::start(|_| ()).await;
    let credentials = fixture.generation(1).await;
    assert_eq!(
        credentials.leaf.display_names(),
        "DNS:cart.shop.cluster.local, URI:spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(credentials.chain.len(), 1, "peers have the root");
    assert!(server_config(&credentials, &fixture.root.bundle(), ClientCertificates::Required).is_ok());
    assert_eq!(credentials.time_left(fixture.clock.now()).as_secs().div_ceil(10), LIFE.as_secs() / 10);

    let call = &fixture.ca.calls()[0];
    assert_eq!(call.authorization.as_deref(), Some("Bearer first"));
    assert_eq!(call.validity_duration, 86_400);
    let csr = CertificateSigningRequestParams::from_pem(&call.csr).unwrap();
    let uri = SanType::URI("spiffe://cluster.local/ns/shop/sa/cart".try_into().unwrap());
    assert_eq!(csr.params.subject_alt_names, [uri]);
    assert_eq!(csr.params.distinguished_name.iter().count(), 0);

    let expiry = credentials.leaf.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let gauge = format!("tidegate_certificate_expiry_timestamp_seconds {expiry}\n");
    assert!(fixture.metrics.encode().contains(&gauge));
    assert_eq!(fixture.tried("success"), 1);
}

#[tokio::test]
async fn a_certificate_is_renewed_around_half_of_its_life_with_a_new_key() {
    let mut fixture = Fixture::start(|_| ()).await;
    let mut keys = HashSet::new();
    for generation in 1..=5 {
        let credentials = fixture.generation(generation).await;
        assert!(keys.insert(credentials.key.secret_der().to_vec()));
        fixture.clock.advance(395);
        fixture.clock.looked_at().await;
        assert_eq!(fixture.current().generation, generation, "too early");
        fixture.clock.advance(210);
    }
    fixture.generation(6).await;
    assert_eq!(fixture.ca.calls().len(), 6);
}

#[tokio::test]
async fn a_clock_set_back_before_the_certificate_began_renews_it() {
    let mut fixture = Fixture::start(|_| ()).await;
    fixture.generation(1).await;
    fixture.clock.set_back(50);
    fixture.clock.looked_at().await;
    assert_eq!(fixture.current().generation, 1, "still within its life");
    fixture.clock.set_back(50);
    fixture.generation(2).await;
}

#[tokio::test]
async fn while_the_ca_is_away_the_last_certificate_stays_and_the_next_comes_with_the_ca() {
    let mut fixture = Fixture::start(|_| ()).await;
    fixture.generation(1).await;
    fixture.ca.go_down().await;
    fixture.clock.advance(700);
    fixture.tries("unreachable", 3).await;
    let current = fixture.current();
    assert_eq!(current.generation, 1);
    assert!(!current.is_expired(fixture.clock.now()));
    fixture.ca.come_back().await;
    fixture.generation(2).await;
}

#[tokio::test]
async fn a_process_that_starts_before_the_ca_gets_its_certificate_when_it_is_there() {
    let mut fixture = Fixture::start(|ca| ca.behaviour().flaw = Some(Flaw::Refuses)).await;
    fixture.ca.go_down().await;
    fixture.tries("unreachable", 2).await;
    assert!(fixture.credentials.borrow().is_none());
    fixture.ca.behaviour().flaw = None;
    fixture.ca.come_back().await;
    fixture.generation(1).await;
}

#[tokio::test]
async fn watchers_learn_that_the_certificate_has_expired_and_it_recovers() {
    let mut fixture = Fixture::start(|_| ()).await;
    fixture.generation(1).await;
    fixture.ca.go_down().await;
    fixture.credentials.mark_unchanged();
    fixture.clock.advance(LIFE.as_secs() + 1);
    fixture.credentials.changed().await.unwrap();
    let expired = fixture.current();
    assert_eq!(expired.generation, 1);
    assert!(expired.is_expired(fixture.clock.now()));
    assert_eq!(expired.time_left(fixture.clock.now()), Duration::ZERO);
    fixture.tries("unreachable", 2).await;
    assert!(!fixture.credentials.has_changed().unwrap(), "said once");
    fixture.ca.come_back().await;
    let fresh = fixture.generation(2).await;
    assert!(!fresh.is_expired(fixture.clock.now()));
}

#[tokio::test]
async fn an_answer_that_is_not_for_us_is_refused_and_asked_for_again() {
    let mut fixture = Fixture::start(|ca| ca.behaviour().flaw = Some(Flaw::Refuses)).await;
    fixture.tries("refused", 2).await;
    for flaw in [
        Flaw::Empty,
        Flaw::NotPem,
        Flaw::OtherKey,
        Flaw::OtherRoot,
        Flaw::NoUri,
        Flaw::NoDnsName,
        Flaw::OtherIdentity,
        Flaw::Expired,
        Flaw::NotYetValid,
        Flaw::TooManyCertificates,
    ] {
        fixture.ca.behaviour().flaw = Some(flaw);
        fixture.tries("invalid_answer", 2).await;
        assert!(fixture.credentials.borrow().is_none(), "{flaw:?}");
    }
    fixture.ca.behaviour().flaw = None;
    fixture.generation(1).await;
}

#[tokio::test]
async fn the_token_is_read_afresh_at_each_try() {
    let mut fixture = Fixture::start(|ca| ca.behaviour().token = Some("second")).await;
    fixture.tries("refused", 2).await;
    for unusable in ["", " \n", "two\nlines", "caf\u{e9}"] {
        fs::write(&fixture.token, unusable).unwrap();
        fixture.tries("no_token", 2).await;
    }
    fs::remove_file(&fixture.token).unwrap();
    fixture.tries("no_token", 2).await;
    fs::write(&fixture.token, "second").unwrap();
    fixture.generation(1).await;
    let mut tokens: Vec<_> = fixture.ca.calls().into_iter().filter_map(|call| call.authorization).collect();
    tokens.dedup();
    assert_eq!(tokens, ["Bearer first", "Bearer second"]);
}

#[tokio::test]
async fn a_trust_bundle_that_grows_renews_nothing_and_one_that_drops_our_root_renews_at_once() {
    let mut fixture = Fixture::start(|_| ()).await;
    fixture.generation(1).await;
    let new = Arc::new(TestAuthority::root("new"));
    fixture.bundle.send_replace(Arc::new(bundle(&[&fixture.root, &new])));
    fixture.clock.looked_at().await;
    assert_eq!(fixture.ca.calls().len(), 1);

    fixture.ca.serve_under(&new);
    {
        let mut behaviour = fixture.ca.behaviour();
        behaviour.issuer = new.clone();
        behaviour.rest = vec![new.clone()];
    }
    fixture.bundle.send_replace(Arc::new(new.bundle()));
    let credentials = fixture.generation(2).await;
    let now = fixture.clock.now();
    assert!(chains_to(&credentials.chain, &new.bundle(), now).is_ok());
    assert!(chains_to(&credentials.chain, &fixture.root.bundle(), now).is_err());
}

#[tokio::test]
async fn once_another_root_issues_the_certificate_is_renewed_early_and_just_once() {
    let mut fixture = Fixture::start(|_| ()).await;
    fixture.generation(1).await;
    let new = Arc::new(TestAuthority::root("new"));
    fixture.bundle.send_replace(Arc::new(bundle(&[&fixture.root, &new])));
    fixture.clock.looked_at().await;
    assert_eq!(fixture.ca.calls().len(), 1, "both are trusted, the old one issues");

    // The CA is slower than its bundle, and still issues under the old root.
    fixture.bundle.send_replace(Arc::new(bundle(&[&new, &fixture.root])));
    fixture.clock.looked_at().await;
    fixture.clock.advance(61);
    let second = fixture.generation(2).await;
    let now = fixture.clock.now();
    assert_eq!(second.roots(&bundle(&[&new, &fixture.root]), now), fixture.root.bundle().fingerprints());
    fixture.clock.advance(61);
    fixture.clock.looked_at().await;
    assert_eq!(
        fixture.ca.calls().len(),
        2,
        "a CA that issues under another root is not asked again and again"
    );

    // At half of its life as ever, and then under the new root.
    fixture.ca.behaviour().issuer = new.clone();
    fixture.ca.behaviour().rest = vec![new.clone()];
    fixture.clock.advance(600);
    let third = fixture.generation(3).await;
    let now = fixture.clock.now();
    assert_eq!(third.roots(&bundle(&[&new, &fixture.root]), now), new.bundle().fingerprints());
}

#[tokio::test]
async fn intermediates_stay_in_the_chain_and_the_root_does_not() {
    let mut fixture = Fixture::start(|ca| {
        let mut behaviour = ca.behaviour();
        let root = behaviour.issuer.clone();
        let intermediate = Arc::new(root.intermediate("intermediate"));
        behaviour.issuer = intermediate.clone();
        behaviour.rest = vec![intermediate, root];
    })
    .await;
    let intermediate = fixture.ca.behaviour().issuer.der();
    let credentials = fixture.generation(1).await;
    assert_eq!(credentials.chain.len(), 2);
    assert_eq!(credentials.chain[1], intermediate);
}

#[tokio::test]
async fn no_token_is_sent_to_a_ca_that_the_trust_bundle_does_not_know() {
    let other = TestAuthority::root("other");
    let mut fixture = Fixture::start(|ca| ca.serve_under(&other)).await;
    fixture.tries("unreachable", 3).await;
    assert!(fixture.ca.calls().is_empty());
    let root = fixture.root.clone();
    fixture.ca.serve_under(&root);
    fixture.generation(1).await;
}

#[tokio::test]
async fn the_renewal_ends_when_all_receivers_are_dropped() {
    let mut fixture = Fixture::start(|_| ()).await;
    fixture.generation(1).await;
    let Fixture { credentials, task, .. } = fixture;
    drop(credentials);
    task.await.unwrap();
}

#[tokio::test]
async fn started_as_daemons_start_it_a_short_lived_certificate_is_renewed_in_real_time() {
    let root = Arc::new(TestAuthority::root("root"));
    let life = Duration::from_secs(3);
    let ca = TestCa::start(root.clone(), identity("cart"), life, Arc::new(SystemTime::now)).await;
    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "token").unwrap();
    let options = Program::parse_from([
        "x",
        "--ca-address",
        &format!("https://{}", ca.address),
        "--ca-server-name",
        "localhost",
        "--token-file",
        token.path().to_str().unwrap(),
    ]);
    let (_bundle, roots) = watch::channel(Arc::new(root.bundle()));
    let mut kept = start(options.ca, None, roots, &Metrics::new());
    for generation in 1..=2 {
        kept.credentials.changed().await.unwrap();
        let current = kept.credentials.borrow_and_update().clone().unwrap();
        assert_eq!(current.generation, generation);
        assert!(!current.is_expired(SystemTime::now()));
    }
    ca.asked(2).await;
}

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    ca: CaOptions,
}

#[test]
fn options_have_the_documented_defaults_and_refuse_what_is_wrong() {
    let options = Program::parse_from(["x", "--ca-address", "https://ca.example:8443"]).ca;
    assert_eq!(options.certificate_lifetime, Duration::from_secs(86_400));
    assert_eq!(options.ca_server_name, None);
    assert_eq!(options.ca_address.to_string(), "https://ca.example:8443");
    for wrong in [
        vec!["x"],
        vec!["x", "--ca-address", "http://ca.example:80"],
        vec!["x", "--ca-address", "https://ca.example", "--ca-server-name", "no name"],
        vec!["x", "--ca-address", "https://ca.example", "--certificate-lifetime", "soon"],
    ] {
        assert!(Program::try_parse_from(&wrong).is_err(), "{wrong:?}");
    }
}
