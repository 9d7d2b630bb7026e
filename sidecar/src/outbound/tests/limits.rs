//! Limits of what a client's sidecar has open to a backend.

mod kit;

use tidegate_core::backend::{BackendLimits, UsageCounts};

use self::kit::{LimitedClient, PacedApp, retried, rule};
use super::app::ask;
use super::routes::{backend, client};
use super::*;

const VERSIONS: [BackendProtocol; 2] = [BackendProtocol::Http1, BackendProtocol::Http2];
const OVERFLOW: &str = "upstream connect error or disconnect/reset before headers. reset reason: overflow";

fn paced() -> (u16, String) {
    (200, "paced".into())
}

fn overflow() -> (u16, String) {
    (503, OVERFLOW.into())
}

/// Each version of the client with each of the endpoint.
fn pairs() -> impl Iterator<Item = [BackendProtocol; 2]> {
    VERSIONS.into_iter().flat_map(|client| VERSIONS.map(|endpoint| [client, endpoint]))
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_503_at_once_and_a_response_makes_room_for_the_next() {
    for [version, endpoint] in pairs() {
        let limits = BackendLimits { max_requests: Some(2), ..BackendLimits::default() };
        let client = LimitedClient::new(endpoint, limits).await;
        let held = [client.hold(version).await, client.hold(version).await];
        assert_eq!(client.counts().requests, 2);
        assert_eq!(client.refused(version).await, overflow(), "{version:?} to {endpoint:?}");
        client.respond(2);
        for held in held {
            assert_eq!(held.await.unwrap(), paced());
        }
        until(|| client.counts().requests == 0).await;
        client.respond(1);
        assert_eq!(client.get(version).await.await.unwrap(), paced());
        assert_eq!(client.app.requests(), 3);
    }
}

#[tokio::test]
async fn requests_of_http_1_wait_in_turn_for_the_connections_that_there_may_be() {
    for version in VERSIONS {
        let limits = BackendLimits { max_connections: Some(2), ..BackendLimits::default() };
        let client = LimitedClient::new(BackendProtocol::Http1, limits).await;
        let mut sent = vec![client.hold(version).await, client.hold(version).await];
        for waiting in 1..=3 {
            sent.push(client.get(version).await);
            until(|| client.counts().pending_requests == waiting).await;
        }
        assert_eq!((client.counts().connections, client.app.requests()), (2, 2));
        client.respond(5);
        for request in sent {
            assert_eq!(request.await.unwrap(), paced());
        }
        let UsageCounts { pending_requests, requests, .. } = client.counts();
        assert_eq!((client.app.connections(), pending_requests, requests), (2, 0, 0), "{version:?}");
    }
}

#[tokio::test]
async fn requests_of_http_2_share_the_connections_that_there_may_be() {
    for version in VERSIONS {
        let limits = BackendLimits { max_connections: Some(1), ..BackendLimits::default() };
        let client = LimitedClient::new(BackendProtocol::Http2, limits).await;
        let held = [client.hold(version).await, client.hold(version).await, client.hold(version).await];
        assert_eq!((client.counts().connections, client.app.connections()), (1, 1));
        client.respond(3);
        for held in held {
            assert_eq!(held.await.unwrap(), paced());
        }
    }
}

#[tokio::test]
async fn no_more_requests_wait_for_a_connection_than_may() {
    for version in VERSIONS {
        let limits = BackendLimits {
            max_connections: Some(1),
            max_pending_requests: Some(1),
            ..BackendLimits::default()
        };
        let client = LimitedClient::new(BackendProtocol::Http1, limits).await;
        let held = client.hold(version).await;
        let waiting = client.get(version).await;
        until(|| client.counts().pending_requests == 1).await;
        assert_eq!(client.refused(version).await, overflow(), "{version:?}");
        client.respond(2);
        assert_eq!((held.await.unwrap(), waiting.await.unwrap()), (paced(), paced()));
        // Those that find a connection do not wait.
        let none = BackendLimits { max_pending_requests: Some(0), ..limits };
        client.limit(none);
        client.respond(1);
        assert_eq!(client.get(version).await.await.unwrap(), paced());
    }
    for [version, endpoint] in pairs() {
        let limits = BackendLimits { max_pending_requests: Some(0), ..BackendLimits::default() };
        let client = LimitedClient::new(endpoint, limits).await;
        assert_eq!(client.refused(version).await, overflow(), "{version:?} to {endpoint:?}: not open yet");
        assert_eq!(client.app.connections(), 0);
    }
}

#[tokio::test]
async fn a_connection_is_closed_after_as_many_requests_as_it_may_have() {
    for [version, endpoint] in pairs() {
        let limits = BackendLimits { max_requests_per_connection: Some(2), ..BackendLimits::default() };
        let client = LimitedClient::new(endpoint, limits).await;
        client.respond(5);
        for _ in 0..5 {
            assert_eq!(client.get(version).await.await.unwrap(), paced());
        }
        assert_eq!(client.app.connections(), 3, "{version:?} to {endpoint:?}");
        until(|| client.counts().connections == 1).await;
    }
}

#[tokio::test]
async fn no_more_requests_are_retried_at_a_time_than_may_be_and_others_get_the_failure() {
    for [version, endpoint] in pairs() {
        for (most, attempts) in [(None, 3), (Some(1), 3), (Some(0), 1)] {
            let limits = BackendLimits { max_retries: most, ..BackendLimits::default() };
            let app = PacedApp::start(503).await;
            let client = LimitedClient::with(endpoint, limits, retried(2), app);
            client.respond(10);
            assert_eq!(client.get(version).await.await.unwrap(), (503, "paced".into()));
            assert_eq!(client.app.requests(), attempts, "{version:?} to {endpoint:?}");
            until(|| client.counts().retries == 0).await;
        }
    }
    let limits = BackendLimits { max_retries: Some(1), ..BackendLimits::default() };
    let app = PacedApp::start(503).await;
    let client = LimitedClient::with(BackendProtocol::Http1, limits, retried(1), app);
    client.respond(1);
    let retried = client.get(BackendProtocol::Http1).await;
    until(|| client.app.requests() == 2).await;
    assert_eq!(client.counts().retries, 1);
    assert_eq!(client.send(BackendProtocol::Http1, "/now").await.await.unwrap().0, 503);
    assert_eq!(client.app.requests(), 3, "it was not retried");
    client.respond(1);
    assert_eq!(retried.await.unwrap().0, 503);
}

#[tokio::test]
async fn a_connection_opens_within_the_backend_s_time_tls_included() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for version in VERSIONS {
        let server = server().await;
        let client = Client::of(&server.root);
        let Answer::Service(carried, mut backend) =
            service_of(AppProtocol::Http, version, &[(silent.local_addr().unwrap(), identity("cart"))])
        else {
            unreachable!()
        };
        backend.limits.connect_timeout = Some(Duration::from_millis(300));
        client.learn(Answer::Service(carried, backend));
        let start = Instant::now();
        let (status, body) = ask(&mut client.dial().await, "GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await;
        assert_eq!((status, body.rsplit(": ").next().unwrap()), (504, "connection timeout"));
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(300) && took < Limits::default().handshake / 2, "{took:?}");
    }
}

#[tokio::test]
async fn a_limit_that_changes_counts_what_is_open_already() {
    for [version, endpoint] in pairs() {
        let limits = |most| BackendLimits { max_requests: Some(most), ..BackendLimits::default() };
        let client = LimitedClient::new(endpoint, limits(1)).await;
        let mut held = vec![client.hold(version).await];
        client.limit(limits(2));
        held.push(client.hold(version).await);
        for most in [2, 1, 0] {
            client.limit(limits(most));
            assert_eq!(client.refused(version).await, overflow());
        }
        client.limit(BackendLimits::default());
        held.push(client.hold(version).await);
        client.respond(3);
        for held in held {
            assert_eq!(held.await.unwrap(), paced());
        }
    }
}

#[tokio::test]
async fn clients_that_leave_and_endpoints_that_fail_give_back_what_they_had() {
    let limits = BackendLimits {
        max_connections: Some(1),
        max_requests: Some(1),
        max_pending_requests: Some(1),
        ..BackendLimits::default()
    };
    for [version, endpoint] in pairs() {
        let client = LimitedClient::new(endpoint, limits).await;
        let held = client.hold(version).await;
        held.abort();
        until(|| client.counts().requests == 0).await;
        // The app may still wait for the turn of the one before.
        let next = client.send(version, "/now").await;
        assert_eq!(next.await.unwrap(), paced(), "{version:?} to {endpoint:?}");
    }
    let gone = closed_address().await;
    for [version, endpoint] in pairs() {
        let backend = Backend { limits, ..backend(endpoint, 80, gone) };
        let app = PacedApp::start(200).await;
        let client = LimitedClient { client: client(vec![rule()], backend), app, protocol: endpoint };
        for _ in 0..3 {
            let (status, body) = client.refused(version).await;
            assert!(status == 503 && body.ends_with("remote connection failure"), "{body}");
        }
        assert_eq!(client.counts(), UsageCounts::default());
    }
}

#[tokio::test]
async fn a_connection_of_bytes_beyond_the_limit_is_reset_and_one_that_ends_makes_room() {
    let app = start_app().await;
    let client = Client::of(&Authority::root("root"));
    let Answer::Service(carried, mut backend) = service(&[(app, None)]) else { unreachable!() };
    backend.limits.max_connections = Some(1);
    client.learn(Answer::Service(carried, backend));
    let mut first = client.dial().await;
    echo_byte(&mut first).await;
    let error = client.echo().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    echo_byte(&mut first).await;
    drop(first);
    until(|| client.workers.connections() == 0).await;
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
}
