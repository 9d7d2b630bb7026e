//! Requests of HTTP/2: to an app of HTTP/2, and between the versions by what is the same in both.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::HeaderMap;
use http::header::HOST;
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::{H2cAnswer, H2cApp, H2cRequest};
use tidegate_tests::caller::CallerMesh;
use tidegate_tests::client::Client;
use tidegate_tests::client::h2::{Answer, H2Connection};
use tidegate_tests::http1::Message;
use tidegate_tests::mesh::Options;
use tokio::runtime::Runtime;

use super::random::{Random, RandomRequest};
use super::{REQUESTS, Way, is_own};

/// Requests of each pair of versions.
const OF_EACH_PAIR: u64 = 1000;

/// Fields by name.
type Fields = BTreeMap<String, Vec<String>>;

/// What must be the same on both ways, in whichever versions of HTTP a message came: names in lower case, the values of each in
/// their order, but those of `cookie` in one line (RFC 9113 §8.2.3), and no `date`, which sidecars add to answers over HTTP/2.
#[derive(Debug, PartialEq)]
struct SeenByEither {
    /// Method, authority and path of a request; the status of an answer.
    first: String,
    fields: Fields,
    body: Vec<u8>,
    trailers: Fields,
}

/// What an app got since the last time.
type Log = Arc<Mutex<Vec<SeenByEither>>>;

/// A client of one version of HTTP.
enum EitherClient {
    Http1(Way),
    Http2(Runtime, H2Connection),
}

impl SeenByEither {
    fn new<'f>(
        first: String,
        fields: impl IntoIterator<Item = (&'f str, &'f [u8])>,
        body: Vec<u8>,
        trailers: impl IntoIterator<Item = (&'f str, &'f [u8])>,
    ) -> Self {
        let [mut fields, trailers] = [by_name(fields), by_name(trailers)];
        fields.retain(|name, _| !is_own(name) && name != "host" && name != "date");
        if let Some(crumbs) = fields.get_mut("cookie") {
            *crumbs = vec![crumbs.join("; ").trim_end().to_owned()];
        }
        Self { first, fields, body, trailers }
    }

    fn of_http1(first: String, message: Message) -> Self {
        let [fields, trailers] = [&message.fields, &message.trailers]
            .map(|fields| fields.iter().map(|(name, value)| (&**name, value.as_bytes())));
        Self::new(first, fields, message.body.clone(), trailers)
    }

    fn of_http2(first: String, fields: &HeaderMap, body: Vec<u8>, trailers: Option<&HeaderMap>) -> Self {
        Self::new(first, pairs(fields), body, trailers.into_iter().flat_map(pairs))
    }

    /// A sidecar may say the length of a body of which only the end did (RFC 9110 §8.6).
    fn forget_added_length(&mut self, sent: &Self) {
        if !sent.fields.contains_key("content-length")
            && let Some(length) = self.fields.remove("content-length")
        {
            assert_eq!(length, [self.body.len().to_string()]);
        }
    }

    fn number(&self) -> u64 {
        self.fields["x-case"][0].parse().unwrap()
    }
}

fn pairs(map: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    map.iter().map(|(name, value)| (name.as_str(), value.as_bytes()))
}

fn by_name<'f>(fields: impl IntoIterator<Item = (&'f str, &'f [u8])>) -> Fields {
    let mut all = Fields::new();
    for (name, value) in fields {
        all.entry(name.to_ascii_lowercase()).or_default().push(String::from_utf8_lossy(value).into_owned());
    }
    all
}

impl EitherClient {
    fn http1(address: SocketAddr) -> Self {
        Self::Http1(Way::to(address))
    }

    fn http2(address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connection = runtime.block_on(H2Connection::open(&Client::to(address))).unwrap();
        Self::Http2(runtime, connection)
    }

    fn exchange(&mut self, request: &RandomRequest) -> SeenByEither {
        match self {
            Self::Http1(way) => {
                let answer = way.exchange(request.answered_by(), &request.http1());
                SeenByEither::of_http1(answer.status().to_string(), answer)
            }
            Self::Http2(runtime, connection) => {
                let (head, body) = request.http2();
                let answer = runtime.block_on(connection.exchange_body(head, body));
                let Answer { head, body, trailers } =
                    answer.unwrap_or_else(|error| panic!("{error}: {request:?}"));
                SeenByEither::of_http2(
                    head.status().as_u16().to_string(),
                    head.headers(),
                    body,
                    trailers.as_ref(),
                )
            }
        }
    }
}

/// An app of HTTP/1.1 that answers a request by its number.
fn http1_app(address: SocketAddr) -> (App, Log) {
    let log = Log::default();
    let all = log.clone();
    let app = App::unrecorded(address, move |conversation| {
        while let Some(request) = conversation.request()? {
            let host = request.value("host").unwrap();
            let first = format!("{} {host} {}", request.method(), request.target());
            let is_head = request.method() == "HEAD";
            let seen = SeenByEither::of_http1(first, request);
            let answer = Random::of_case(seen.number() + REQUESTS).answer(is_head);
            all.lock().unwrap().push(seen);
            conversation.write(&answer.http1())?;
        }
        Ok(())
    });
    (app, log)
}

/// The same of HTTP/2.
fn http2_app(address: SocketAddr) -> (H2cApp, Log) {
    let log = Log::default();
    let all = log.clone();
    let app = H2cApp::answering(address, move |request: H2cRequest| {
        let H2cRequest { head, body, trailers } = request;
        let host = head.headers().get(HOST).map_or("", |host| host.to_str().unwrap());
        let authority = head.uri().authority().map_or(host, |authority| authority.as_str());
        let first = format!("{} {authority} {}", head.method(), head.uri().path_and_query().unwrap());
        let seen = SeenByEither::of_http2(first, head.headers(), body, trailers.as_ref());
        let answer = Random::of_case(seen.number() + REQUESTS).answer(head.method() == http::Method::HEAD);
        all.lock().unwrap().push(seen);
        let (head, body) = answer.http2();
        H2cAnswer { head, body }
    });
    (app, log)
}

/// Sends each request straight to the app and through the sidecars. Between versions, trailers of requests end on the way.
fn compare(log: &Log, mut straight: EitherClient, mut meshed: EitherClient, keeps_trailers: bool) {
    for number in 0..OF_EACH_PAIR {
        let request = Random::of_case(number).request(number);
        let [mut expected, mut actual] = [&mut straight, &mut meshed].map(|client| {
            let answer = client.exchange(&request);
            let mut seen = std::mem::take(&mut *log.lock().unwrap());
            seen.push(answer);
            seen
        });
        if !keeps_trailers {
            expected[0].trailers.clear();
        }
        for (expected, actual) in expected.iter().zip(&mut actual) {
            actual.forget_added_length(expected);
        }
        assert_eq!(expected, actual, "request {number}: {request:?}");
    }
}

fn mesh(protocol: &'static str) -> CallerMesh {
    CallerMesh::calling(protocol, Options { port_name: protocol, ..Options::default() })
}

#[test]
fn requests_and_responses_of_http_2_are_the_same_through_two_sidecars_as_without() {
    let mesh = mesh("http");
    let (app, way_out) = (mesh.mesh.app_address(), mesh.mesh.way_out());
    let (_app, log) = http2_app(app);
    compare(&log, EitherClient::http2(app), EitherClient::http2(way_out), true);
}

#[test]
fn a_client_of_http_2_and_an_app_of_http_1_see_what_they_would_see_in_one_version() {
    let mesh = mesh("ws");
    let (app, way_out) = (mesh.mesh.app_address(), mesh.mesh.way_out());
    let (_app, log) = http1_app(app);
    compare(&log, EitherClient::http1(app), EitherClient::http2(way_out), false);
}

#[test]
fn a_client_of_http_1_and_an_app_of_http_2_see_what_they_would_see_in_one_version() {
    let mesh = mesh("http2");
    let (app, way_out) = (mesh.mesh.app_address(), mesh.mesh.way_out());
    let (_app, log) = http2_app(app);
    compare(&log, EitherClient::http2(app), EitherClient::http1(way_out), false);
}
