use std::sync::Arc;
use std::time::{Instant, SystemTime};

use tidegate_core::policy::{AppProtocol, ClientCheck, IngressTransport, Sources};
use tidegate_runtime::drain::DrainOutcome;

use super::*;
use crate::limits::Limits;
use crate::test_mesh::rule;
use crate::test_pki::{Authority, GATEWAY, dns};

/// A connection of each kind, each of which was used.
async fn connections(mesh: &Mesh) -> (TcpStream, Client, Client) {
    let mut opaque = mesh.connect(Port::Tcp).await;
    opaque.write_all(b"hello").await.unwrap();
    opaque.read_exact(&mut [0; 5]).await.unwrap();
    let peer = mesh.root.workload("curl", "curl");
    let mut peer = tls(mesh, Port::Mesh, Some(&peer), &["tidegate/tcp"]).await.unwrap();
    peer.write_all(b"hello").await.unwrap();
    peer.read_exact(&mut [0; 5]).await.unwrap();
    let gateway = mesh.root.named(GATEWAY);
    let mut https = tls(mesh, Port::Https, Some(&gateway), &[]).await.unwrap();
    get(&mut https).await.unwrap();
    (opaque, peer, https)
}

async fn alive(opaque: &mut TcpStream, peer: &mut Client, https: &mut Client) {
    let mut echo = [0; 2];
    for _ in 0..3 {
        opaque.write_all(b"hi").await.unwrap();
        opaque.read_exact(&mut echo).await.unwrap();
        peer.write_all(b"hi").await.unwrap();
        peer.read_exact(&mut echo).await.unwrap();
        assert!(get(https).await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn a_policy_change_ends_connections_that_it_forbids_within_a_second_and_no_others() {
    let mesh = Mesh::with(2, Limits::default()).await;
    let (mut opaque, mut peer, mut https) = connections(&mesh).await;
    mesh.publish(|policy| drop(policy.ports.remove(&(Port::Http as u16))));
    alive(&mut opaque, &mut peer, &mut https).await;

    let stopwatch = Stopwatch::start();
    mesh.publish(|policy| policy.ports.clear());
    assert_eq!(end(&mut opaque).await.0, End::Reset);
    assert_eq!(end(&mut peer).await.0, End::Reset);
    assert_eq!(end(&mut https).await.0, End::Fin);
    stopwatch.assert_within(Duration::from_secs(1));
    mesh.connections(0).await;
}

#[tokio::test]
async fn connections_end_when_their_port_changes_from_opaque_to_http_or_back() {
    let skip = || IngressTransport::Https { sni_hosts: vec![], client: ClientCheck::Skip };
    for transport in [IngressTransport::Http, skip()] {
        let mesh = Mesh::start().await;
        let mut plain = mesh.connect(Port::Tcp).await;
        plain.write_all(b"hello").await.unwrap();
        plain.read_exact(&mut [0; 5]).await.unwrap();
        // The app's own TLS: its ClientHello is echoed.
        let mut own_tls = mesh.connect(Port::Tcp).await;
        let config = client_config(&mesh.root.bundle(), None, &VERSIONS, &[]);
        let name = ServerName::try_from(SERVER).unwrap();
        let mut hello = Vec::new();
        rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
        own_tls.write_all(&hello).await.unwrap();
        own_tls.read_exact(&mut vec![0; hello.len()]).await.unwrap();

        mesh.publish(|policy| {
            let port = policy.ports.get_mut(&(Port::Tcp as u16)).unwrap();
            port.protocol = AppProtocol::Http;
            port.ingress = rule(Sources::Any, transport);
        });
        assert_eq!(end(&mut plain).await, (End::Reset, vec![]));
        assert_eq!(end(&mut own_tls).await, (End::Reset, vec![]));
    }

    let mesh = Mesh::start().await;
    let mut plain = mesh.connect(Port::Http).await;
    get(&mut plain).await.unwrap();
    let mut https = tls(&mesh, Port::Skip, None, &[]).await.unwrap();
    get(&mut https).await.unwrap();
    let (mut opaque, mut peer, _) = connections(&mesh).await;
    mesh.publish(|policy| {
        for port in [Port::Http, Port::Skip] {
            let port = policy.ports.get_mut(&(port as u16)).unwrap();
            port.protocol = AppProtocol::Tcp;
            port.ingress = rule(Sources::Any, IngressTransport::Tcp);
        }
    });
    assert_eq!(end(&mut plain).await.0, End::Fin);
    assert_eq!(end(&mut https).await.0, End::Fin);
    let mut echo = [0; 2];
    opaque.write_all(b"hi").await.unwrap();
    opaque.read_exact(&mut echo).await.unwrap();
    peer.write_all(b"hi").await.unwrap();
    peer.read_exact(&mut echo).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_never_let_in_keeps_its_403() {
    let mesh = Mesh::start().await;
    let other = mesh.root.named("other.ns.cluster.local");
    let mut client = tls(&mesh, Port::Https, Some(&other), &[]).await.unwrap();
    assert!(get(&mut client).await.unwrap().starts_with("HTTP/1.1 403 "));
    mesh.publish(|policy| drop(policy.ports.remove(&(Port::Http as u16))));
    assert!(get(&mut client).await.unwrap().starts_with("HTTP/1.1 403 "));
}

#[tokio::test]
async fn a_root_that_is_no_longer_trusted_ends_the_connections_of_its_clients() {
    let mesh = Mesh::start().await;
    let (mut opaque, mut peer, mut https) = connections(&mesh).await;
    // The same root with a new server certificate: all connections stay open.
    mesh.trust(&mesh.root);
    alive(&mut opaque, &mut peer, &mut https).await;
    let stopwatch = Stopwatch::start();
    mesh.trust(&Authority::root("new root"));
    assert_eq!(end(&mut peer).await.0, End::Reset);
    assert_eq!(end(&mut https).await.0, End::Fin);
    stopwatch.assert_within(Duration::from_secs(1));
    opaque.write_all(b"hi").await.unwrap();
    opaque.read_exact(&mut [0; 2]).await.unwrap();
}

#[tokio::test]
async fn a_root_that_is_retired_ends_no_connection_until_it_is_revoked_and_opens_none() {
    let mesh = Mesh::start().await;
    let (mut opaque, mut peer, mut https) = connections(&mesh).await;
    let (next, last) = (Authority::root("next"), Authority::root("last"));
    mesh.trust_bundle(next.bundle_after(&mesh.root));
    // The policy still decides.
    mesh.publish(|policy| drop(policy.ports.remove(&(Port::Http as u16))));
    alive(&mut opaque, &mut peer, &mut https).await;
    let gateway = mesh.root.named(GATEWAY);
    let refused = async {
        let mut client = tls(&mesh, Port::Https, Some(&gateway), &[]).await?;
        get(&mut client).await
    };
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("UnknownCA"), "{refused}");

    // Further rotations change nothing.
    let retired = [&mesh.root, &next].map(|root| root.bundle().fingerprints().remove(0));
    let after = tidegate_runtime::trust_bundle::TrustBundle::clone(&last.bundle()).with_retired(retired);
    mesh.trust_bundle(Arc::new(after.in_place_of(&next.bundle_after(&mesh.root))));
    alive(&mut opaque, &mut peer, &mut https).await;

    let stopwatch = Stopwatch::start();
    mesh.trust_bundle(last.bundle_after(&next));
    assert_eq!(end(&mut peer).await.0, End::Reset);
    let answer = get(&mut https).await.unwrap();
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert_eq!(end(&mut https).await.0, End::Fin);
    stopwatch.assert_within(Duration::from_secs(1));
    opaque.write_all(b"hi").await.unwrap();
    opaque.read_exact(&mut [0; 2]).await.unwrap();
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_has_opened_it() {
    let mesh = Mesh::start().await;
    let end_of_life = SystemTime::now() + Duration::from_secs(3);
    let short = |san: rcgen::SanType| {
        mesh.root.issue(|params| {
            params.subject_alt_names = vec![san];
            params.not_before = (SystemTime::now() - Duration::from_secs(2)).into();
            params.not_after = end_of_life.into();
        })
    };
    let gateway = short(dns(GATEWAY));
    let mut https = tls(&mesh, Port::Https, Some(&gateway), &[]).await.unwrap();
    get(&mut https).await.unwrap();
    let lasting = mesh.root.named(GATEWAY);
    let mut other = tls(&mesh, Port::Https, Some(&lasting), &[]).await.unwrap();
    get(&mut other).await.unwrap();
    assert_eq!(end(&mut https).await.0, End::Fin);
    // Certificates have a resolution of a second, and ticks are up to a quarter of a second late.
    let early = end_of_life.duration_since(SystemTime::now()).unwrap_or_default();
    assert!(early <= Duration::from_millis(1600), "{early:?}");
    assert!(SystemTime::now() < end_of_life + Duration::from_secs(1));
    get(&mut other).await.unwrap();
}

/// Echoes a byte, at least once and until a condition is met; returns how often.
async fn echo_until(client: &mut Client, is_done: impl Fn() -> bool) -> usize {
    for count in 1.. {
        client.write_all(b"a").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'a');
        if is_done() {
            return count;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    unreachable!("the condition is met eventually")
}

#[tokio::test]
async fn opaque_connections_outlive_their_certificate_but_neither_its_root_nor_the_policy() {
    let mesh = Mesh::start().await;
    let end_of_life = SystemTime::now() + Duration::from_secs(2);
    let peer = mesh.root.workload_until("curl", "curl", end_of_life);
    let gateway = mesh.root.issue(|params| {
        params.subject_alt_names = vec![dns(GATEWAY)];
        params.not_after = end_of_life.into();
    });
    let mut first = tls(&mesh, Port::Mesh, Some(&peer), &["tidegate/tcp"]).await.unwrap();
    echo_until(&mut first, || true).await;
    let mut second = tls(&mesh, Port::Mesh, Some(&peer), &["tidegate/tcp"]).await.unwrap();
    echo_until(&mut second, || true).await;
    let mut https = tls(&mesh, Port::Https, Some(&gateway), &[]).await.unwrap();
    get(&mut https).await.unwrap();
    assert_eq!(end(&mut https).await.0, End::Fin);
    let is_long_over = || SystemTime::now() > end_of_life + Duration::from_secs(2);
    assert!(echo_until(&mut first, is_long_over).await > 10);
    echo_until(&mut second, || true).await;
    tls(&mesh, Port::Mesh, Some(&peer), &["tidegate/tcp"]).await.unwrap().read_u8().await.unwrap_err();

    // Reviews after a new server certificate, trust bundle or policy check the root, not the expiry.
    mesh.trust(&mesh.root);
    let both = [&mesh.root, &Authority::root("new root")].map(|root| root.bundle().roots()[0].clone());
    let both = tidegate_runtime::trust_bundle::TrustBundle::from_certificates(both).unwrap();
    let with_both =
        crate::tls::ServerTls::new(mesh.root.named(SERVER).credentials(), Arc::new(both)).unwrap();
    mesh.publisher.update(|snapshot| snapshot.tls = Some(Arc::new(with_both)));
    mesh.publish(|policy| drop(policy.ports.remove(&(Port::Http as u16))));
    let reviewed = Instant::now();
    echo_until(&mut first, || reviewed.elapsed() > Duration::from_millis(300)).await;

    let stopwatch = Stopwatch::start();
    mesh.trust(&Authority::root("new root"));
    assert_eq!(end(&mut first).await.0, End::Reset);
    assert_eq!(end(&mut second).await.0, End::Reset);
    stopwatch.assert_within(Duration::from_secs(1));

    mesh.trust(&mesh.root);
    let lasting = mesh.root.workload("curl", "curl");
    let mut third = tls(&mesh, Port::Mesh, Some(&lasting), &["tidegate/tcp"]).await.unwrap();
    third.write_all(b"a").await.unwrap();
    third.read_u8().await.unwrap();
    let stopwatch = Stopwatch::start();
    mesh.publish(|policy| {
        policy.ports.get_mut(&(Port::Mesh as u16)).unwrap().mesh =
            tidegate_core::policy::MeshRule::Deny("permissive mode is off".into());
    });
    assert_eq!(end(&mut third).await.0, End::Reset);
    stopwatch.assert_within(Duration::from_secs(1));
}

#[tokio::test]
async fn a_drain_waits_for_open_connections_and_cuts_them_at_the_deadline() {
    let mesh = Mesh::start().await;
    let (mut opaque, _peer, mut https) = connections(&mesh).await;
    let address = mesh.address(Port::Http);
    let drain = mesh.workers.drain(Duration::from_secs(3));
    let client = async {
        // Idle connections end first; opaque ones, which may have data in flight, at the deadline.
        assert_eq!(end(&mut https).await.0, End::Fin);
        opaque.write_all(b"hi").await.unwrap();
        opaque.read_exact(&mut [0; 2]).await.unwrap();
        let error = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(end(&mut opaque).await.0, End::Reset);
    };
    let (outcome, ()) = tokio::join!(drain, client);
    assert_eq!(outcome, DrainOutcome::DeadlinePassed { remaining: 2 });
}

#[tokio::test]
async fn a_drain_waits_for_requests_of_idle_connections_only_for_the_configured_time() {
    let limits = Limits { drain_idle: Duration::from_millis(500), ..Limits::default() };
    let mesh = Mesh::with(3, limits).await;
    let mut client = mesh.connect(Port::Http).await;
    get(&mut client).await.unwrap();
    let start = Instant::now();
    let (outcome, ended) = tokio::join!(mesh.workers.drain(Duration::from_secs(60)), end(&mut client));
    assert_eq!((outcome, ended.0), (DrainOutcome::Complete, End::Fin));
    let took = start.elapsed();
    assert!((Duration::from_millis(450)..Duration::from_secs(5)).contains(&took), "{took:?}");
}
