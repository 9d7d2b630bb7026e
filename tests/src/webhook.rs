//! What an API server sends to the injector's webhook, and what it never would.

use serde_json::Value;

use crate::client::{Client, Connection, End};

/// The name in the webhook's certificate.
pub const NAME: &str = "tidegate-injector.tidegate-system.cluster.local";
/// The largest body that the webhook accepts.
pub const LARGEST: usize = 4 << 20;

/// A review of a new Pod of namespace `shop`; `pod` is its text.
pub fn create(pod: &str) -> String {
    create_named("a", pod)
}

/// [`create`] with this text as the request's name.
pub fn create_named(name: &str, pod: &str) -> String {
    let kind = r#"{"group":"","version":"v1","kind":"Pod"}"#;
    format!(
        r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","kind":{kind},"operation":"CREATE","namespace":"shop","name":"{name}","object":{pod}}}}}"#
    )
}

/// A Pod with a field of its spec, filled with as many items as fit into this many bytes.
pub fn full(field: &str, item: &str, bytes: usize) -> String {
    let items = vec![item; (bytes - 1024) / (item.len() + 1)].join(",");
    format!(r#"{{"metadata":{{"name":"a"}},"spec":{{"containers":[{{"name":"a"}}],"{field}":[{items}]}}}}"#)
}

/// The head of a review whose body has this many bytes.
pub fn head(bytes: usize) -> String {
    format!(
        "POST /mutate HTTP/1.1\r\nhost: {NAME}\r\ncontent-type: application/json\r\ncontent-length: {bytes}\r\n\r\n"
    )
}

/// Sends a review without waiting for the answer.
pub fn send(connection: &mut Connection, body: &str) {
    connection.write(head(body.len()).as_bytes());
    for piece in body.as_bytes().chunks(16 * 1024) {
        connection.write(piece);
    }
}

/// The `response` to a new Pod, on a connection that stays open.
pub fn ask_on(connection: &mut Connection, pod: &str) -> Result<Value, End> {
    let body = create(pod);
    let answer = connection.request(format!("{}{body}", head(body.len())).as_bytes())?;
    let answer: Option<Value> = serde_json::from_slice(&answer.body).ok();
    Ok(answer.map(|mut answer| answer["response"].take()).unwrap_or_default())
}

/// [`ask_on`] a new connection; must be answered.
#[track_caller]
pub fn ask(client: &Client, pod: &str) -> Value {
    let answer = client.connect().and_then(|mut connection| ask_on(&mut connection, pod));
    answer.unwrap_or_else(|end| panic!("review: {end:?}"))
}
