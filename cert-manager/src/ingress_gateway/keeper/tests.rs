use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::tls::load_pem_certificates;

use super::*;
use crate::ingress_gateway::SettingsInput;
use crate::issuer::Issuer;
use crate::store::secret_folder::SecretFolder;

struct World {
    dir: tempfile::TempDir,
    gateway: IngressGateway,
    settings: watch::Sender<Option<IngressGatewaySettings>>,
    states: watch::Sender<Arc<AuthorityState>>,
    drain: drain::Trigger,
    watch: drain::Watch,
}

fn settings(names: &[&str], validity: &str, secret: &str) -> Option<IngressGatewaySettings> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let input = SettingsInput {
        subject_alt_names: &names,
        validity_duration: validity,
        secret_namespace: "osm-system",
        secret_name: secret,
    };
    Some(IngressGatewaySettings::parse(input).unwrap())
}

fn usual() -> Option<IngressGatewaySettings> {
    settings(&["ingress-nginx.ingress-nginx.cluster.local"], "24h", "client-cert")
}

fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let now = SystemTime::now();
    let state = AuthorityState::steady(Issuer::create_root(now).unwrap(), now);
    let (states, states_rx) = watch::channel(Arc::new(state));
    let (settings, settings_rx) = watch::channel(usual());
    let (drain, watch) = drain::channel();
    let gateway = IngressGateway {
        gateway: GatewayDependencies::alone(settings_rx, Arc::new(SecretFolder::new(dir.path()))),
        states: states_rx,
        rules: IssuingRules::default(),
        telemetry: CaTelemetry::register(&Metrics::new()),
        status: watch::channel(GatewayStatus::NotConfigured).0,
        untidy: None,
        failures: BTreeMap::new(),
        turn: None,
    };
    World { dir, gateway, settings, states, drain, watch }
}

impl World {
    fn path(&self, secret: &str) -> PathBuf {
        self.dir.path().join("osm-system").join(secret)
    }

    fn read(&self, secret: &str, file: &str) -> String {
        fs::read_to_string(self.path(secret).join(file)).unwrap()
    }

    fn serial(&self) -> String {
        match &*self.gateway.status.borrow() {
            GatewayStatus::Ready { serial, .. } => serial.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn leaf(&self, secret: &str) -> tidegate_core::PeerCertificate {
        let chain = load_pem_certificates(self.read(secret, "tls.crt").as_bytes()).unwrap();
        tidegate_core::PeerCertificate::from_der(&chain[0]).unwrap()
    }
}

#[tokio::test]
async fn a_secret_holds_every_name_its_key_and_the_roots() {
    let mut world = world();
    world.settings.send_replace(settings(
        &["ingress-nginx.ingress-nginx.cluster.local", "spiffe://cluster.local/ns/i/sa/n"],
        "70s",
        "client-cert",
    ));
    world.gateway.keep(Look::All).await;

    let leaf = world.leaf("client-cert");
    assert_eq!(
        leaf.display_names(),
        "DNS:ingress-nginx.ingress-nginx.cluster.local, URI:spiffe://cluster.local/ns/i/sa/n"
    );
    assert_eq!(leaf.not_after.duration_since(leaf.not_before).unwrap(), Duration::from_secs(130));
    assert_eq!(leaf.serial, world.serial());
    assert!(world.read("client-cert", "tls.key").starts_with("-----BEGIN PRIVATE KEY-----"));
    assert_eq!(world.read("client-cert", "ca.crt"), world.states.borrow().trusted_pem());
    let openssl = crate::testing::openssl(
        &world.path("client-cert"),
        "verify -x509_strict -purpose sslclient -CAfile ca.crt tls.crt",
    );
    assert_eq!(openssl, b"tls.crt: OK\n");
}

#[tokio::test]
async fn a_right_secret_stays_even_over_a_restart() {
    let mut world = world();
    world.gateway.keep(Look::All).await;
    let first = world.serial();
    world.gateway.keep(Look::All).await;
    assert_eq!(world.serial(), first);
    world.gateway.status.send_replace(GatewayStatus::NotConfigured);
    world.gateway.keep(Look::All).await;
    assert_eq!(world.serial(), first);
}

#[tokio::test]
async fn every_change_of_the_settings_is_followed_at_once() {
    let mut world = world();
    world.gateway.keep(Look::All).await;
    let mut last = world.serial();
    for changed in [
        settings(&["other.example"], "24h", "client-cert"),
        settings(&["other.example"], "70s", "client-cert"),
        settings(&["other.example", "more.example"], "70s", "client-cert"),
        settings(&["other.example", "more.example"], "70s", "renamed"),
    ] {
        world.settings.send_replace(changed.clone());
        world.gateway.keep(Look::All).await;
        assert_ne!(world.serial(), last, "{changed:?}");
        last = world.serial();
    }
    assert!(world.path("renamed").exists() && !world.path("client-cert").exists());
    world.settings.send_replace(None);
    world.gateway.keep(Look::All).await;
    assert!(!world.path("renamed").exists());
    assert_eq!(*world.gateway.status.borrow(), GatewayStatus::NotConfigured);
}

#[tokio::test]
async fn a_secret_that_was_deleted_or_damaged_is_put_back() {
    let mut world = world();
    struct Damage(&'static str, fn(&Path));
    let damages = [
        Damage("folder gone", |path| fs::remove_dir_all(path).unwrap()),
        Damage("key gone", |path| fs::remove_file(path.join("tls.key")).unwrap()),
        Damage("key of another", |path| {
            let other = Issuer::create_root(SystemTime::now()).unwrap();
            fs::write(path.join("tls.key"), other.key_pem()).unwrap();
        }),
        Damage("certificate cut", |path| fs::write(path.join("tls.crt"), "-----BEGIN").unwrap()),
        Damage("roots emptied", |path| fs::write(path.join("ca.crt"), "").unwrap()),
        Damage("link removed", |path| fs::remove_file(path.join("..data")).unwrap()),
    ];
    for Damage(what, damage) in damages {
        world.gateway.keep(Look::All).await;
        let before = world.serial();
        damage(&world.path("client-cert"));
        world.gateway.keep(Look::All).await;
        assert_ne!(world.serial(), before, "{what}");
        assert_eq!(world.leaf("client-cert").serial, world.serial(), "{what}");
    }
}

#[tokio::test]
async fn each_step_of_a_rotation_brings_its_roots_and_a_new_leaf_in_one_write() {
    let mut world = world();
    let now = SystemTime::now();
    let mut state = AuthorityState::clone(&world.states.borrow());
    world.gateway.keep(Look::All).await;
    let mut last = world.serial();
    for roots in [2, 2, 1] {
        state = match state.advanced(now, crate::authority::Farewell::Retire) {
            Some(next) => next,
            None => state.trust_both(Issuer::create_root(now).unwrap(), now),
        };
        world.states.send_replace(Arc::new(state.clone()));
        world.gateway.keep(Look::All).await;
        assert_ne!(world.serial(), last);
        last = world.serial();
        let found = load_pem_certificates(world.read("client-cert", "ca.crt").as_bytes()).unwrap();
        assert_eq!(found, state.trusted());
        assert_eq!(found.len(), roots);
    }
}

#[tokio::test]
async fn half_of_a_life_is_enough() {
    let world = world();
    let state = world.states.borrow().clone();
    let settings = usual().unwrap();
    let now = crate::testing::now();
    let (secret, _) = certificate::issue(&settings, &state, &world.gateway.rules, now).unwrap();
    let due = |at: SystemTime| certificate::why_replace(&secret, &settings, &state, at);
    let hours = |n: u64| Duration::from_secs(n * 3600);
    assert_eq!(due(now), None);
    assert_eq!(due(now + hours(12) - Duration::from_secs(1)), None);
    assert_eq!(due(now + hours(12)), Some("half of its life is over"));
    assert_eq!(due(now + hours(48)), Some("half of its life is over"));
    assert_eq!(due(now - hours(1)), Some("half of its life is over"));
}

#[tokio::test]
async fn a_life_cut_short_by_the_issuers_end_is_not_renewed_again_and_again() {
    let world = world();
    let state = world.states.borrow().clone();
    let settings = settings(&["a.example"], "200000h", "client-cert").unwrap();
    let now = crate::testing::now();
    let (secret, issued) = certificate::issue(&settings, &state, &world.gateway.rules, now).unwrap();
    assert_eq!(issued.not_after, state.issuer.not_after());
    assert_eq!(certificate::why_replace(&secret, &settings, &state, now), None);
}

/// The usual settings with these annotations.
fn copied(annotations: &[(&str, &str)]) -> Option<IngressGatewaySettings> {
    let annotations =
        annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let copies = crate::ingress_gateway::Copies::parse(&annotations).unwrap();
    Some(copies.add_to(usual().unwrap(), []).unwrap())
}

#[tokio::test]
async fn each_namespace_gets_a_key_of_its_own_and_the_roots_a_secret_of_theirs() {
    use tidegate_core::contract::annotations::{GATEWAY_CA_SECRET, GATEWAY_NAMESPACES};
    let mut world = world();
    let in_namespace = |path: &Path, namespace: &str| path.join(namespace).join("client-cert");
    let base = world.dir.path().to_owned();
    let read = |namespace: &str, file: &str| fs::read_to_string(base.join(namespace).join(file)).unwrap();
    world.settings.send_replace(copied(&[(GATEWAY_NAMESPACES, "shop,mart"), (GATEWAY_CA_SECRET, "roots")]));
    world.gateway.keep(Look::All).await;
    let keys = ["osm-system", "shop", "mart"].map(|namespace| read(namespace, "client-cert/tls.key"));
    assert!(keys[0] != keys[1] && keys[1] != keys[2] && keys[0] != keys[2]);
    for namespace in ["osm-system", "shop", "mart"] {
        assert_eq!(read(namespace, "roots/ca.crt"), world.states.borrow().trusted_pem());
        let verified = crate::testing::openssl(
            &in_namespace(&base, namespace),
            "verify -x509_strict -purpose sslclient -CAfile ../roots/ca.crt tls.crt",
        );
        assert_eq!(verified, b"tls.crt: OK\n");
    }

    // A rotation reaches all of them, each damaged one is put back.
    let now = SystemTime::now();
    let both = world.states.borrow().trust_both(Issuer::create_root(now).unwrap(), now);
    world.states.send_replace(Arc::new(both.clone()));
    fs::remove_dir_all(base.join("mart/roots")).unwrap();
    world.gateway.keep(Look::InTurn).await;
    for namespace in ["osm-system", "shop", "mart"] {
        assert_eq!(read(namespace, "client-cert/ca.crt"), both.trusted_pem());
        assert_eq!(read(namespace, "roots/ca.crt"), both.trusted_pem());
    }

    // One that cannot be written is named, and keeps no other from being right.
    fs::remove_dir_all(base.join("shop")).unwrap();
    fs::write(base.join("shop"), "a file in the way").unwrap();
    fs::remove_dir_all(base.join("mart")).unwrap();
    world.gateway.keep(Look::All).await;
    let status = world.gateway.status.borrow().clone();
    assert!(
        matches!(&status, GatewayStatus::Failed { reason } if reason.contains("Secret shop/client-cert: ")
            && reason.contains("Secret shop/roots: ") && !reason.contains("mart")),
        "{status:?}"
    );
    assert_eq!(read("mart", "roots/ca.crt"), both.trusted_pem());
    fs::remove_file(base.join("shop")).unwrap();
    world.gateway.keep(Look::InTurn).await;
    world.serial();

    // What is not asked for any more goes, and nothing else.
    world.settings.send_replace(copied(&[(GATEWAY_NAMESPACES, "mart")]));
    world.gateway.keep(Look::All).await;
    assert!(!base.join("shop").exists() && !base.join("osm-system/roots").exists());
    assert!(in_namespace(&base, "mart").exists() && in_namespace(&base, "osm-system").exists());
}

#[tokio::test]
async fn of_many_secrets_some_are_looked_at_each_time_and_all_of_them_at_first() {
    let mut world = world();
    let names: Vec<String> = (0..30).map(|i| format!("n{i:02}")).collect();
    world.settings.send_replace(copied(&[(
        tidegate_core::contract::annotations::GATEWAY_NAMESPACES,
        &names.join(","),
    )]));
    world.gateway.keep(Look::InTurn).await;
    let there = |world: &World| names.iter().filter(|name| world.dir.path().join(name).exists()).count();
    assert_eq!(there(&world), 30);
    for name in &names {
        fs::remove_dir_all(world.dir.path().join(name)).unwrap();
    }
    for expected in [8, 16, 24, 30] {
        world.gateway.keep(Look::InTurn).await;
        assert_eq!(there(&world), expected);
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_a_status_and_is_tried_again() {
    let mut world = world();
    fs::write(world.dir.path().join("osm-system"), "a file in the way").unwrap();
    world.gateway.keep(Look::All).await;
    let status = world.gateway.status.borrow().clone();
    assert!(
        matches!(&status, GatewayStatus::Failed { reason } if reason.contains("osm-system/client-cert")),
        "{status:?}"
    );
    fs::remove_file(world.dir.path().join("osm-system")).unwrap();
    world.gateway.keep(Look::All).await;
    assert_eq!(world.leaf("client-cert").serial, world.serial());
}

#[tokio::test]
async fn the_running_task_follows_settings_and_puts_a_deleted_secret_back() {
    let world = world();
    let path = world.path("client-cert");
    let mut status = world.gateway.status.subscribe();
    let task = tokio::spawn(world.gateway.run(world.watch));
    let mut next_serial = async |last: &str| {
        let ready = status.wait_for(|s| matches!(s, GatewayStatus::Ready { serial, .. } if serial != last));
        let ready = ready.await.unwrap().clone();
        match ready {
            GatewayStatus::Ready { serial, .. } => serial,
            _ => unreachable!(),
        }
    };
    let first = next_serial("").await;
    world.settings.send_replace(settings(&["other.example"], "24h", "client-cert"));
    let second = next_serial(&first).await;
    fs::remove_dir_all(&path).unwrap();
    next_serial(&second).await;
    assert!(path.join("tls.key").exists());
    world.drain.start();
    task.await.unwrap();
    assert!(path.join("tls.key").exists(), "a restart of ours must not take the certificate away");
}
