//! Graceful ends: clients that send requests all the time lose none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use tidegate_runtime::drain::DrainOutcome;
use tokio::task::JoinSet;

use super::*;
use crate::certificates::BACK_DATING;
use crate::limits::Limits;
use crate::test_mesh::until;
use crate::test_pki::{Authority, GATEWAY, dns};

/// What a client saw of its connection.
struct Story {
    /// Number of requests, each of which was answered.
    requests: usize,
    /// When the last one was sent, whose answer said so.
    last: SystemTime,
}

/// Sends one request after the other, each once, until an answer says that it is the last; the connection must end
/// with it.
async fn until_told<S>(mut stream: S, pause: Duration, all: Arc<AtomicUsize>) -> Story
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    for requests in 1.. {
        let (last, stopwatch) = (SystemTime::now(), Stopwatch::start());
        let answer = get(&mut stream).await.unwrap_or_else(|error| panic!("request {requests}: {error}"));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        all.fetch_add(1, Ordering::Relaxed);
        if answer.contains("\r\nconnection: close\r\n") {
            assert_eq!(end(&mut stream).await.0, End::Fin);
            stopwatch.assert_within(Duration::from_secs(1));
            return Story { requests, last };
        }
        tokio::time::sleep(pause).await;
    }
    unreachable!("every connection ends eventually")
}

/// Pauses of clients between requests: none, and some during which a connection is about to be closed.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..12_u64).map(|i| Duration::from_micros(i * i * 70))
}

/// A client with the gateway's certificate for each pause, and the number of answers that all have received.
async fn gateway_clients(mesh: &Mesh) -> (JoinSet<Story>, Arc<AtomicUsize>) {
    let gateway = mesh.root.named(GATEWAY);
    let (mut clients, all) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for pause in pauses() {
        let https = tls(mesh, Port::Https, Some(&gateway), &[]).await.unwrap();
        clients.spawn(until_told(https, pause, all.clone()));
    }
    (clients, all)
}

#[tokio::test]
async fn no_request_is_lost_to_a_drain() {
    for round in 0..10 {
        let mesh = Mesh::with(2, Limits::default()).await;
        let (mut clients, all) = gateway_clients(&mesh).await;
        for pause in pauses() {
            clients.spawn(until_told(mesh.connect(Port::Http).await, pause, all.clone()));
        }
        until(|| all.load(Ordering::Relaxed) > 100 + 7 * round).await;
        assert_eq!(mesh.workers.drain(Duration::from_secs(30)).await, DrainOutcome::Complete);
        let counts: Vec<_> = clients.join_all().await.into_iter().map(|story| story.requests).collect();
        assert!(counts.len() == 24 && counts.iter().sum::<usize>() > 100, "{counts:?}");
    }
}

/// Runs clients whose certificates live for this many seconds, and for one and two more, from the moment that each
/// connects; returns how many requests each made. A connection closes gracefully between its
/// certificate's last call and its end.
async fn requests_until_expiry(seconds: u64) -> Vec<usize> {
    let mesh = Mesh::with(2, Limits::default()).await;
    let (mut clients, all) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
    for (number, pause) in (0..3).flat_map(|_| pauses()).enumerate() {
        // A lifetime of ten seconds, without back-dating: the last call is one second before the end.
        let end_of_life = SystemTime::now() + Duration::from_secs(seconds + number as u64 % 3);
        let leaf = mesh.root.issue(|params| {
            params.subject_alt_names = vec![dns(GATEWAY)];
            params.not_before = (end_of_life - BACK_DATING - Duration::from_secs(10)).into();
            params.not_after = end_of_life.into();
        });
        let https = tls(&mesh, Port::Https, Some(&leaf), &[]).await.unwrap();
        let client = until_told(https, pause, all.clone());
        clients.spawn(async move { (client.await, end_of_life) });
    }
    let stories = clients.join_all().await.into_iter().map(|(Story { requests, last }, end_of_life)| {
        // Certificates have a resolution of a second.
        let (earliest, latest) = (end_of_life - Duration::from_secs(2), end_of_life + Duration::from_secs(1));
        assert!((earliest..latest).contains(&last), "last request at {last:?}, end of life {end_of_life:?}");
        requests
    });
    stories.collect()
}

#[tokio::test]
async fn no_request_is_lost_to_the_end_of_the_client_certificate() {
    // A busy machine may need longer for each client's first requests than a short life allows.
    for seconds in [3, 10, 30] {
        let counts = requests_until_expiry(seconds).await;
        if counts.iter().all(|count| *count > 10) {
            return;
        }
        eprintln!("within {seconds} s: {counts:?}");
    }
    panic!("certificates that live for half a minute allow a few requests only");
}

#[tokio::test]
async fn no_request_is_lost_to_a_root_that_is_dropped_either() {
    for round in 0..5 {
        let mesh = Mesh::with(2, Limits::default()).await;
        let (clients, all) = gateway_clients(&mesh).await;
        until(|| all.load(Ordering::Relaxed) > 50 + 7 * round).await;
        let new_root = Authority::root("new root");
        let stopwatch = Stopwatch::start();
        mesh.trust(&new_root);
        clients.join_all().await;
        stopwatch.assert_within(Duration::from_secs(1));
    }
}
