//! The same random requests through two sidecars and directly: app and client must see the same bytes but for the header
//! fields that the docs name.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::app::{playing, read_body, read_head};
use super::http::http;
use super::*;

/// Fields that the server's sidecar adds to every request.
const ADDED: [&str; 4] = ["x-forwarded-for", "x-forwarded-proto", "x-request-id", "x-forwarded-client-cert"];

/// A request, and how the app answers it.
#[derive(Clone, Debug)]
struct Case {
    method: &'static str,
    path: String,
    fields: Vec<(String, String)>,
    body: Option<(Vec<u8>, bool)>,
    answer: String,
}

fn token() -> impl Strategy<Value = String> {
    "[a-w][a-z0-9-]{0,12}"
}

fn value() -> impl Strategy<Value = String> {
    "[!-~]([ -~]{0,30}[!-~])?"
}

fn case() -> impl Strategy<Value = Case> {
    let reserved = |name: &String| {
        [
            "connection",
            "keep-alive",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
            "host",
            "expect",
            "content-length",
            "date",
        ]
        .contains(&&**name)
            || name.starts_with("proxy-")
    };
    let fields = || {
        proptest::collection::vec(
            (token().prop_filter("has a meaning", move |name| !reserved(name)), value()),
            0..8,
        )
    };
    let body = proptest::option::of((proptest::collection::vec(any::<u8>(), 0..3000), any::<bool>()));
    let method =
        prop_oneof![Just("GET"), Just("POST"), Just("PUT"), Just("DELETE"), Just("OPTIONS"), Just("PATCH")];
    let path = "/[!-\"$-~]{0,40}";
    let answer = (200u16..599, fields(), proptest::collection::vec(any::<u8>(), 0..3000), any::<bool>());
    (method, path, fields(), body, answer).prop_map(|(method, path, fields, body, answer)| {
        let (status, answered, content, is_chunked) = answer;
        let content: String = content.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
        let mut text = format!("HTTP/1.1 {status} Fine\r\n");
        for (name, value) in answered {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        let has_body = !matches!(status, 204 | 304);
        match (has_body, is_chunked) {
            (false, _) => text.push_str("\r\n"),
            (true, false) => text.push_str(&format!("content-length: {}\r\n\r\n{content}", content.len())),
            (true, true) => {
                text.push_str("transfer-encoding: chunked\r\n\r\n");
                if !content.is_empty() {
                    text.push_str(&format!("{:x}\r\n{content}\r\n", content.len()));
                }
                text.push_str("0\r\n\r\n");
            }
        }
        Case { method, path, fields, body, answer: text }
    })
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: cart.shop\r\n", self.method, self.path);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match &self.body {
            None => [head.as_bytes(), b"connection: close\r\n\r\n"].concat(),
            Some((body, false)) => {
                let length = format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
                [head.as_bytes(), length.as_bytes(), body].concat()
            }
            Some((body, true)) => {
                let mut bytes =
                    [head.as_bytes(), b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"].concat();
                for chunk in body.chunks(700) {
                    bytes.extend(format!("{:x}\r\n", chunk.len()).as_bytes());
                    bytes.extend(chunk);
                    bytes.extend(b"\r\n");
                }
                bytes.extend(b"0\r\n\r\n");
                bytes
            }
        }
    }
}

/// A message as its receiver sees it: first line, fields without those of one connection, and the body.
type Message = (String, Vec<String>, Vec<u8>);

fn message(head: &str, body: Vec<u8>) -> Message {
    let mut lines = head.trim_end().split("\r\n");
    let first = lines.next().unwrap_or_default().to_owned();
    let of_connection = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        ["connection", "transfer-encoding"].contains(&name) || ADDED.contains(&name)
    };
    (first, lines.filter(|line| !of_connection(line)).map(str::to_owned).collect(), body)
}

/// Sends a case to an address, where the app gives its answer: what app and client have seen.
async fn exchange(
    case: &Case,
    address: SocketAddr,
    seen: &mut tokio::sync::mpsc::UnboundedReceiver<Message>,
) -> (Message, Message) {
    let mut io = TcpStream::connect(address).await.unwrap();
    io.write_all(&case.bytes()).await.unwrap();
    let head = read_head(&mut io).await.unwrap();
    let body = if head.contains(" 204 ") || head.contains(" 304 ") {
        Vec::new()
    } else {
        read_body(&mut io, &head).await
    };
    (seen.recv().await.unwrap(), message(&head, body))
}

#[tokio::test]
async fn app_and_client_see_the_same_through_two_sidecars() {
    let (tell, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let answer = Arc::new(std::sync::Mutex::new(String::new()));
    let given = answer.clone();
    let app = playing(move |mut io: TcpStream| {
        let (tell, answer) = (tell.clone(), given.clone());
        async move {
            while let Some(head) = read_head(&mut io).await {
                let body = read_body(&mut io, &head).await;
                tell.send(message(&head, body)).unwrap();
                let text = answer.lock().unwrap().clone();
                io.write_all(text.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let server = server_before(app);
    let client = Client::of(&server.root);
    client.learn(http(&[(server.address(Port::Mesh), identity("cart"))]));
    let through = client.workers.addresses()[0];
    let mut runner = TestRunner::deterministic();
    for _ in 0..300 {
        let case = case().new_tree(&mut runner).unwrap().current();
        case.answer.clone_into(&mut answer.lock().unwrap());
        let exchanges =
            async { (exchange(&case, app, &mut seen).await, exchange(&case, through, &mut seen).await) };
        let (directly, meshed) = tokio::time::timeout(PATIENCE, exchanges).await.expect("no answer");
        assert_eq!(directly, meshed, "{case:?}");
    }
}
