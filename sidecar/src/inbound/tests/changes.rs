use std::time::{Instant, SystemTime};

use tidegate_runtime::drain::Outcome;

use super::*;
use crate::limits::Limits;
use crate::test_pki::{Authority, GATEWAY, dns};

/// A connection of each kind, each known to work.
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
async fn a_policy_change_ends_what_it_no_longer_lets_in_within_a_second_and_nothing_else() {
    let mesh = Mesh::with(2, Limits::default()).await;
    let (mut opaque, mut peer, mut https) = connections(&mesh).await;
    mesh.publish(|policy| drop(policy.ports.remove(&(Port::Http as u16))));
    alive(&mut opaque, &mut peer, &mut https).await;

    let start = Instant::now();
    mesh.publish(|policy| policy.ports.clear());
    assert_eq!(end(&mut opaque).await.0, End::Reset);
    assert_eq!(end(&mut peer).await.0, End::Reset);
    assert_eq!(end(&mut https).await.0, End::Fin);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    mesh.connections(0).await;
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
    // The same root with a new certificate of our own: nobody is disturbed.
    mesh.trust(&mesh.root);
    alive(&mut opaque, &mut peer, &mut https).await;
    let start = Instant::now();
    mesh.trust(&Authority::root("new root"));
    assert_eq!(end(&mut peer).await.0, End::Reset);
    assert_eq!(end(&mut https).await.0, End::Fin);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
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
    // The certificate counts whole seconds, and a tick is late by up to a quarter.
    let early = end_of_life.duration_since(SystemTime::now()).unwrap_or_default();
    assert!(early <= Duration::from_millis(1600), "{early:?}");
    assert!(SystemTime::now() < end_of_life + Duration::from_secs(1));
    get(&mut other).await.unwrap();
}

#[tokio::test]
async fn a_drain_waits_for_what_is_in_flight_and_cuts_it_at_the_deadline() {
    let mesh = Mesh::start().await;
    let (mut opaque, _peer, mut https) = connections(&mesh).await;
    let address = mesh.address(Port::Http);
    let drain = mesh.workers.drain(Duration::from_millis(700));
    let client = async {
        // What is idle ends at once, what may be in flight lives on until the deadline.
        assert_eq!(end(&mut https).await.0, End::Fin);
        opaque.write_all(b"hi").await.unwrap();
        opaque.read_exact(&mut [0; 2]).await.unwrap();
        let error = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(end(&mut opaque).await.0, End::Reset);
    };
    let (outcome, ()) = tokio::join!(drain, client);
    assert_eq!(outcome, Outcome::DeadlinePassed { remaining: 2 });
}

#[tokio::test]
async fn a_drain_without_anything_in_flight_is_over_at_once() {
    let mesh = Mesh::with(3, Limits::default()).await;
    let mut client = mesh.connect(Port::Http).await;
    get(&mut client).await.unwrap();
    let start = Instant::now();
    let (outcome, ended) = tokio::join!(mesh.workers.drain(Duration::from_secs(60)), end(&mut client));
    assert_eq!((outcome, ended.0), (Outcome::Complete, End::Fin));
    assert!(start.elapsed() < Duration::from_secs(5));
}
