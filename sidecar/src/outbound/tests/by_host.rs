//! Addresses at which hosts tell connections apart.

use tidegate_core::DnsName;
use tidegate_core::backend::OriginalDestination;
use tidegate_core::destination::{DestinationKey, RequestedHost};

use super::app::{ask, echo};
use super::unregistered::{client_hello, line, send};
use super::*;

const REASON: &str = "enableEgress is false";
const REQUEST: &str = "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";

/// A client in whose namespace hosts tell connections to this address apart, while other addresses are refused.
fn told_apart(dialled: SocketAddr, otherwise: Destination, log: &std::path::Path) -> Client {
    let log = log.to_owned();
    let client = Client::telling(dialled, Limits::default(), Arc::new(move || Telemetry::in_file(&log)));
    client.destinations.set_egress(EgressMode::RegistryOnly(REASON.into()));
    client.learn(Answer::Destination(Destination::ByHost(Box::new(otherwise))));
    client
}

fn entry() -> BackendRef {
    BackendRef { object: ObjectRef::new("ServiceEntry", "shop", "api"), port: 443 }
}

fn tls(name: &str) -> RequestedHost {
    RequestedHost::of_server_name(DnsName::parse(name).unwrap())
}

fn http(name: &str) -> RequestedHost {
    RequestedHost::of_authority(name.as_bytes()).unwrap()
}

impl Client {
    /// The controller's answer about a host: the address that was dialled, or nothing.
    fn learn_host(&self, host: RequestedHost, carried: Option<AppProtocol>) {
        let key = DestinationKey { host: Some(host), ..self.dialled.into() };
        self.destinations.look_up(&key);
        let destination =
            carried.map_or(Destination::Unknown, |carried| Destination::backend(carried, entry()));
        let set =
            |name: ResourceName, resource| self.destinations.set(&name, "1".into(), resource, 100).unwrap();
        set(ResourceName::Destination(key), Resource::Destination(destination));
        let backend = Backend::new(entry(), BackendProtocol::Http, Vec::new());
        let backend = Backend { original_destination: Some(OriginalDestination { port: None }), ..backend };
        set(ResourceName::Backend(entry()), Resource::Backend(backend));
        self.destinations.settle(true);
    }
}

#[tokio::test]
async fn the_server_name_of_tls_decides_and_other_servers_are_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let app = start_app().await;
    let client = told_apart(app, Destination::Unknown, &log);
    client.learn_host(tls("a.example"), Some(AppProtocol::Tcp));
    let hello = client_hello();
    // The first bytes do not hold all of the ClientHello.
    let (first, rest) = hello.split_at(40);
    let mut io = client.dial().await;
    io.write_all(first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    io.write_all(rest).await.unwrap();
    io.shutdown().await.unwrap();
    let mut received = Vec::new();
    io.read_to_end(&mut received).await.unwrap();
    assert!(received.starts_with(&hello), "the bytes are passed on as they are");
    let passed = line(&log, "outbound|").await;
    assert_eq!(passed["requested_server_name"], "a.example");
    assert_eq!(passed["upstream_host"], app.to_string());

    client.learn_host(tls("a.example"), None);
    assert!(send(&client, &hello).await.is_err());
    let refused = line(&log, "destination_unregistered").await;
    assert_eq!(refused["requested_server_name"], "a.example");
    // Bytes that name no host, and a request for a forward proxy.
    for bytes in [&b"EHLO a.example\r\n"[..], b"CONNECT a.example:443 HTTP/1.1\r\n\r\n"] {
        assert!(send(&client, bytes).await.is_err());
    }
}

#[tokio::test]
async fn each_request_of_a_connection_goes_where_its_host_leads() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let (app, _) = echo().await;
    let client = told_apart(app, Destination::Unknown, &log);
    client.learn_host(http("a.example"), Some(AppProtocol::Http));
    client.learn_host(http("b.example"), None);
    let mut io = client.dial().await;
    for (host, status) in [("a.example", 200), ("b.example:80", 502), ("A.example", 200), ("192.0.2.1", 502)]
    {
        let request = format!("GET /{host} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(ask(&mut io, &request).await.0, status, "{host}");
    }
    let refused = line(&log, "/b.example").await;
    assert_eq!([&refused["authority"], &refused["response_flags"]], ["b.example:80", "UH"]);
}

#[tokio::test]
async fn a_request_for_a_new_host_waits_for_the_controller_s_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (app, _) = echo().await;
    let client = told_apart(app, Destination::Unknown, &directory.path().join("log"));
    client.destinations.subscriptions().await;
    let mut io = client.dial().await;
    let answered = async {
        let asked = client.destinations.subscriptions().await.wanted;
        assert_eq!(asked[0].to_string(), format!("destination/{app}/http/a.example"));
        client.learn_host(http("a.example"), Some(AppProtocol::Http));
    };
    let ((status, _), ()) = tokio::join!(ask(&mut io, REQUEST), answered);
    assert_eq!(status, 200);
}

#[tokio::test]
async fn without_an_answer_a_host_counts_as_one_that_no_object_has() {
    let directory = tempfile::tempdir().unwrap();
    let (app, _) = echo().await;
    let client = told_apart(app, Destination::Unknown, &directory.path().join("log"));
    client.destinations.disconnect();
    let mut io = client.dial().await;
    for _ in 0..2 {
        assert_eq!(ask(&mut io, REQUEST).await.0, 502);
    }
}

#[tokio::test]
async fn what_names_no_host_goes_where_the_address_leads_and_servers_may_speak_first() {
    let directory = tempfile::tempdir().unwrap();
    let app = start_app().await;
    let client = told_apart(app, Destination::Passthrough, &directory.path().join("log"));
    let mut io = client.dial().await;
    let mut greeting = [0; 11];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    assert_eq!(client.echo().await.unwrap(), b"hellobye");
}

#[tokio::test]
async fn streams_of_http2_go_where_their_authority_leads() {
    let directory = tempfile::tempdir().unwrap();
    let (app, _) = echo().await;
    let client = told_apart(app, Destination::Unknown, &directory.path().join("log"));
    client.destinations.subscriptions().await;
    let mut sender = http::http2(&client).await;
    let mut get = |host: &str| {
        let uri = format!("http://{host}/");
        let request = ::http::Request::get(uri).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request);
        async { response.await.unwrap().status().as_u16() }
    };
    let answered = async {
        let asked = client.destinations.subscriptions().await.wanted;
        assert_eq!(asked[0].to_string(), format!("destination/{app}/http/a.example"));
        client.learn_host(http("a.example"), Some(AppProtocol::H2c));
    };
    let (status, ()) = tokio::join!(get("a.example"), answered);
    assert_eq!(status, 200);
    client.learn_host(http("b.example"), None);
    assert_eq!([get("b.example:80").await, get("a.example").await], [502, 200]);
}
