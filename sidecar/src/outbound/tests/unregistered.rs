//! Addresses that no object has, while workloads may not reach these.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;

const REASON: &str = "enableEgress is false";

/// A ClientHello with SNI `a.example`, from rustls.
pub(super) fn client_hello() -> Vec<u8> {
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = "a.example".try_into().unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

/// A client with an access log in this file, for which an address is unknown.
fn refused(dialled: SocketAddr, log: PathBuf) -> Client {
    let telemetry = Arc::new(move || Telemetry::in_file(&log));
    let client = Client::telling(dialled, Limits::default(), telemetry);
    client.destinations.set_egress(EgressMode::RegistryOnly(REASON.into()), &[]);
    client.learn(Answer::Destination(Destination::Unknown));
    client
}

/// The one line with this method, host or server name.
pub(super) async fn line(log: &Path, text: &str) -> Value {
    let find = || Telemetry::records_in(log).into_iter().find(|line| line.to_string().contains(text));
    until(|| find().is_some()).await;
    find().unwrap()
}

/// What comes back until the end.
pub(super) async fn send(client: &Client, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut io = client.dial().await;
    io.write_all(bytes).await?;
    let mut received = Vec::new();
    tokio::time::timeout(PATIENCE, io.read_to_end(&mut received)).await.expect("no end")?;
    Ok(received)
}

#[tokio::test]
async fn an_unknown_address_is_refused_and_the_log_names_the_host() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let app = start_app().await;
    let client = refused(app, log.clone());
    let hello = client_hello();
    let (first, rest) = hello.split_at(40);
    let mut io = client.dial().await;
    io.write_all(first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    io.write_all(rest).await.unwrap();
    assert!(io.read_u8().await.is_err());
    let tls = line(&log, "a.example").await;
    assert_eq!(tls["requested_server_name"], "a.example");
    let of_tls = [&tls["response_flags"], &tls["response_code_details"], &tls["upstream_cluster"]];
    assert_eq!(of_tls, ["UH", "destination_unregistered", "BlackHoleCluster"]);

    let connect = "CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n";
    assert!(send(&client, connect.as_bytes()).await.is_err());
    assert_eq!(line(&log, "b.example").await["requested_server_name"], "b.example:443");

    let mut io = client.dial().await;
    for path in ["/1", "/2"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: c.example\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![0; 12];
        io.read_exact(&mut head).await.unwrap();
        assert_eq!(head, b"HTTP/1.1 502");
        until_end_of_head(&mut io).await;
    }
    let http = line(&log, "\"/2\"").await;
    let of_http = [&http["authority"], &http["upstream_cluster"], &http["upstream_host"]];
    assert_eq!(of_http, [&Value::from("c.example"), &Value::from("BlackHoleCluster"), &Value::Null]);
    assert!(send(&client, b"\x00binary").await.is_err(), "bytes of any other protocol");
}

/// Reads to the blank line; the response has no body.
async fn until_end_of_head(io: &mut TcpStream) {
    let mut last = [0; 4];
    while last != *b"\r\n\r\n" {
        last.rotate_left(1);
        last[3] = io.read_u8().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_would_speak_first_is_refused_after_the_time_for_detection() {
    let directory = tempfile::tempdir().unwrap();
    let client = refused(start_app().await, directory.path().join("log"));
    let start = Instant::now();
    assert!(client.dial().await.read_u8().await.is_err());
    assert!(start.elapsed() >= Limits::default().outbound_detect);
}

#[tokio::test]
async fn a_change_of_the_mode_reaches_addresses_that_are_known_and_those_that_are_never_answered() {
    let app = start_app().await;
    let client = Client::to(app, Limits::default());
    client.learn(Answer::Destination(Destination::Unknown));
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
    let set = |mode| {
        client.destinations.set_egress(mode, &[]);
        client.destinations.settle(true);
    };
    set(EgressMode::RegistryOnly(REASON.into()));
    assert!(client.echo().await.is_err());
    client.learn(Answer::Destination(Destination::Passthrough));
    assert_eq!(client.echo().await.unwrap(), b"hellobye", "an address that an object has");
    client.learn(Answer::Destination(Destination::Unknown));
    set(EgressMode::AllowAny);
    assert_eq!(client.echo().await.unwrap(), b"hellobye");

    let offline = Client::to(app, Limits::default());
    offline.destinations.set_egress(EgressMode::RegistryOnly(REASON.into()), &[]);
    offline.destinations.disconnect();
    assert!(offline.echo().await.is_err(), "without a controller, too");
}

#[test]
fn a_sidecar_without_a_policy_lets_nothing_out() {
    let destinations = Destinations::default();
    let unanswered = destinations.unanswered("192.0.2.1:80".parse().unwrap());
    assert_eq!(
        unanswered.choose_for_connection(None).err(),
        Some(crate::destinations::NoEndpoint::Unregistered)
    );
}
