//! Formats a record as a line of the access log.

use std::fmt::Write as _;
use std::io::Write;
use std::time::SystemTime;

use tidegate_core::policy::Decision;

use crate::connection_info::UNREGISTERED;
use crate::telemetry::Record;

/// Maximum bytes of a field from the wire, so that a client cannot determine the length of a line.
const MAX_FIELD: usize = 1024;

/// Appends a JSON object with Istio's keys, and with `presented_names`, `policy` and `direction`.
pub(super) fn json_line(out: &mut Vec<u8>, record: &Record<'_>) {
    json_members(out, record).close();
}

/// The same with `remote`, the number of the remote workload.
pub(in crate::telemetry) fn json_line_with_remote(out: &mut Vec<u8>, record: &Record<'_>) {
    let mut line = json_members(out, record);
    line.number("remote", record.remote().index() as u128);
    line.close();
}

fn json_members<'a>(out: &'a mut Vec<u8>, record: &Record<'_>) -> JsonObject<'a> {
    let mut line = JsonObject::open(out);
    line.text("start_time", timestamp(record.start).as_bytes());
    line.optional("method", record.method);
    line.optional("path", record.path);
    line.optional("protocol", record.protocol.as_bytes());
    line.number("response_code", u128::from(record.status));
    line.text("response_flags", record.flag.code().as_bytes());
    line.optional("response_code_details", record.details.as_bytes());
    line.null("connection_termination_details");
    line.optional("upstream_transport_failure_reason", record.transport_failure.as_bytes());
    line.number("bytes_received", u128::from(record.received));
    line.number("bytes_sent", u128::from(record.sent));
    line.number("duration", record.duration.as_millis());
    match record.upstream_time {
        Some(time) => line.number("upstream_service_time", time.as_millis()),
        None => line.null("upstream_service_time"),
    }
    line.optional("x_forwarded_for", record.forwarded_for);
    line.optional("user_agent", record.user_agent);
    line.optional("request_id", record.request_id);
    line.optional("authority", record.authority);
    line.optional("upstream_host", upstream_host(record).as_bytes());
    line.optional("upstream_cluster", upstream_cluster(record).as_bytes());
    line.optional("upstream_local_address", upstream_local(record).as_bytes());
    let (local, remote) = downstream(record);
    line.optional("downstream_local_address", local.as_bytes());
    line.optional("downstream_remote_address", remote.as_bytes());
    line.optional("requested_server_name", server_name(record));
    line.optional("route_name", route(record));
    line.optional("connection_security_policy", record.security().as_str().as_bytes());
    line.optional("presented_names", presented(record));
    line.optional("policy", policy(record).as_bytes());
    line.text("direction", if record.outbound.is_some() { b"outbound" } else { b"inbound" });
    line
}

/// Appends Istio's columns in Istio's order, then the presented names and the policy's decision.
pub(super) fn text_line(out: &mut Vec<u8>, record: &Record<'_>) {
    let (local, remote) = downstream(record);
    let mut line = TextLine { out };
    line.raw("[").raw(&timestamp(record.start)).raw("] \"");
    line.bare(record.method).raw(" ").bare(record.path).raw(" ").bare(record.protocol.as_bytes()).raw("\" ");
    line.number(u128::from(record.status)).raw(" ").raw(record.flag.code()).raw(" ");
    line.bare(record.details.as_bytes()).raw(" - ").quoted(record.transport_failure.as_bytes()).raw(" ");
    line.number(u128::from(record.received)).raw(" ").number(u128::from(record.sent)).raw(" ");
    line.number(record.duration.as_millis()).raw(" ");
    match record.upstream_time {
        Some(time) => line.number(time.as_millis()),
        None => line.raw("-"),
    };
    line.raw(" ").quoted(record.forwarded_for).raw(" ").quoted(record.user_agent).raw(" ");
    line.quoted(record.request_id).raw(" ").quoted(record.authority).raw(" ");
    line.quoted(upstream_host(record).as_bytes())
        .raw(" ")
        .bare(upstream_cluster(record).as_bytes())
        .raw(" ")
        .bare(upstream_local(record).as_bytes())
        .raw(" ");
    line.bare(local.as_bytes()).raw(" ").bare(remote.as_bytes()).raw(" ");
    line.bare(server_name(record)).raw(" ").bare(route(record)).raw(" ");
    line.quoted(presented(record)).raw(" ").quoted(policy(record).as_bytes()).raw("\n");
}

/// RFC 3339 in UTC with milliseconds, as Envoy's `START_TIME`.
fn timestamp(start: Option<SystemTime>) -> String {
    humantime::format_rfc3339_millis(start.unwrap_or_else(SystemTime::now)).to_string()
}

/// The address that was dialled, and the client's.
fn downstream(record: &Record<'_>) -> (String, String) {
    match (&record.outbound, record.connection) {
        (Some(outbound), _) => (outbound.dialled.to_string(), outbound.peer.to_string()),
        (None, Some(connection)) => (connection.local.to_string(), connection.peer.to_string()),
        (None, None) => Default::default(),
    }
}

/// The endpoint's address; empty if the request did not reach one.
fn upstream_host(record: &Record<'_>) -> String {
    if let Some(outbound) = &record.outbound {
        return outbound.endpoint.map(|endpoint| endpoint.address.to_string()).unwrap_or_default();
    }
    match record.connection {
        Some(connection) if record.upstream_time.is_some() => connection.app.to_string(),
        _ => String::new(),
    }
}

/// The sidecar's end of the connection to the endpoint; empty for requests, which share connections.
fn upstream_local(record: &Record<'_>) -> String {
    let local = record.outbound.as_ref().and_then(|outbound| outbound.local);
    local.map(|local| local.to_string()).unwrap_or_default()
}

/// The cluster name in Istio's format.
fn upstream_cluster(record: &Record<'_>) -> String {
    if let Some(outbound) = &record.outbound {
        let port = outbound.dialled.port();
        let of_host = || outbound.hosts.and_then(|hosts| hosts.of(record.authority)?.service);
        return match outbound.service {
            Some(service) => format!("outbound|{port}||{service}"),
            None if record.details == UNREGISTERED => "BlackHoleCluster".to_owned(),
            None => of_host().map_or_else(
                || "PassthroughCluster".to_owned(),
                |service| format!("outbound|{port}||{service}"),
            ),
        };
    }
    record.connection.map(|connection| format!("inbound|{}||", connection.port)).unwrap_or_default()
}

/// The SNI of the client's ClientHello.
fn server_name<'a>(record: &Record<'a>) -> &'a [u8] {
    let outbound = record.outbound.as_ref().and_then(|outbound| outbound.server_name);
    let inbound = record.connection.and_then(|connection| connection.server_name.as_deref());
    outbound.or(inbound).unwrap_or_default().as_bytes()
}

/// The rule of a route that applied.
fn route<'a>(record: &Record<'a>) -> &'a [u8] {
    record.route.unwrap_or_default().as_bytes()
}

/// The SANs of the client's certificate.
fn presented<'a>(record: &Record<'a>) -> &'a [u8] {
    record
        .connection
        .and_then(|c| c.client.as_ref())
        .map(|client| client.names.as_bytes())
        .unwrap_or_default()
}

/// The decision, and the rule that made it or came closest to granting.
fn policy(record: &Record<'_>) -> String {
    match record.decision {
        Some(Decision::Allow(grant)) => format!("allowed: {grant}"),
        Some(Decision::Deny(denial)) => format!("refused: {denial}"),
        None => String::new(),
    }
}

/// Writes one JSON object, key by key.
struct JsonObject<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> JsonObject<'a> {
    fn open(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, first: true }
    }

    /// Begins a member: a comma before all but the first.
    fn key(&mut self, key: &str) {
        if !std::mem::replace(&mut self.first, false) {
            self.out.push(b',');
        }
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// A string of at most [`MAX_FIELD`] bytes from the wire. Bytes that are not UTF-8 become U+FFFD, and control
    /// characters `\u` escapes, so that a line stays one line.
    fn text(&mut self, key: &str, value: &[u8]) {
        self.key(key);
        self.out.push(b'"');
        let text = String::from_utf8_lossy(value.get(..MAX_FIELD).unwrap_or(value));
        for c in text.chars() {
            match c {
                '"' => self.out.extend_from_slice(b"\\\""),
                '\\' => self.out.extend_from_slice(b"\\\\"),
                c if c.is_control() => {
                    let mut escaped = String::with_capacity(8);
                    let _ = write!(escaped, "\\u{:04x}", u32::from(c));
                    self.out.extend_from_slice(escaped.as_bytes());
                }
                c => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        self.out.push(b'"');
    }

    /// `null` stands for what is not known.
    fn optional(&mut self, key: &str, value: &[u8]) {
        if value.is_empty() { self.null(key) } else { self.text(key, value) }
    }

    fn number(&mut self, key: &str, value: u128) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    fn null(&mut self, key: &str) {
        self.key(key);
        self.out.extend_from_slice(b"null");
    }

    fn close(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

/// Writes the columns of a text line.
struct TextLine<'a> {
    out: &'a mut Vec<u8>,
}

impl TextLine<'_> {
    /// Text of our own, written as it is.
    fn raw(&mut self, text: &str) -> &mut Self {
        self.out.extend_from_slice(text.as_bytes());
        self
    }

    fn number(&mut self, value: u128) -> &mut Self {
        let _ = write!(self.out, "{value}");
        self
    }

    /// Writes a value from the wire, escaping everything that could break up the line; `-` if empty.
    fn bare(&mut self, value: &[u8]) -> &mut Self {
        if value.is_empty() {
            return self.raw("-");
        }
        for byte in value.get(..MAX_FIELD).unwrap_or(value) {
            match byte {
                b'"' | b'\\' => self.out.extend_from_slice(&[b'\\', *byte]),
                b' '..=b'~' => self.out.push(*byte),
                byte => {
                    let _ = write!(self.out, "\\x{byte:02x}");
                }
            }
        }
        self
    }

    /// The same between quotation marks, which `bare` escapes within the value.
    fn quoted(&mut self, value: &[u8]) -> &mut Self {
        self.raw("\"").bare(value).raw("\"")
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::super::tests::{denied, record};
    use super::*;
    use crate::connection_info::AddressOwner;
    use crate::detect::server::SpokenProtocol;
    use crate::remotes::RemoteId;
    use crate::telemetry::{DialledEndpoint, OutboundRecord};

    #[test]
    fn hostile_bytes_leave_a_json_line_one_valid_object() {
        let (denied, mut out) = (denied(), Vec::new());
        json_line(&mut out, &record(&denied));
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.contains('\x1b'));
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(object["path"], "/get?x=\"}\n\u{1b}[31m");
        assert_eq!(object["response_flags"], "RBAC");
        assert!(object["policy"].as_str().unwrap().contains("IngressBackend httpbin/httpbin"));
        assert_eq!(object["start_time"], "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn the_text_line_has_istios_columns_and_two_of_ours() {
        let (denied, mut out) = (denied(), Vec::new());
        text_line(&mut out, &record(&denied));
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "[2023-11-14T22:13:20.123Z] \"GET /get?x=\\\"}\\x0a\\x1b[31m HTTP/1.1\" 403 RBAC \
             rbac_access_denied_matched_policy[none] - \"-\" 0 19 7 - \"-\" \"curl/8\" \"-\" \"httpbin\\xff\" \"-\" - - \
             - - - - \"-\" \"refused: none of the client certificate's names is an allowed principal (IngressBackend \
             httpbin/httpbin)\"\n"
        );
    }

    #[test]
    fn a_connection_through_a_service_entry_has_the_columns_of_istio_s_example() {
        let outbound = OutboundRecord {
            peer: "172.30.230.52:44476".parse().unwrap(),
            dialled: "172.30.109.95:3128".parse().unwrap(),
            service: Some("my-company-proxy.com"),
            hosts: None,
            destination: RemoteId::UNKNOWN,
            endpoint: Some(DialledEndpoint {
                address: "172.30.109.95:3128".parse().unwrap(),
                is_mutual_tls: false,
                is_http_proxy: false,
                remote: RemoteId::OUTSIDE,
            }),
            local: Some("172.30.230.52:44478".parse().unwrap()),
            owner: &AddressOwner::Cluster,
            spoken: SpokenProtocol::Tcp,
            server_name: None,
        };
        let record = Record {
            outbound: Some(outbound),
            start: Some(UNIX_EPOCH + Duration::from_millis(1_544_179_082_841)),
            duration: Duration::from_millis(92),
            received: 702,
            sent: 87599,
            ..Record::default()
        };
        let mut text = Vec::new();
        text_line(&mut text, &record);
        // With today's columns behind the flags, and ours at the end.
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "[2018-12-07T10:38:02.841Z] \"- - -\" 0 - - - \"-\" 702 87599 92 - \"-\" \"-\" \"-\" \"-\" \
             \"172.30.109.95:3128\" outbound|3128||my-company-proxy.com 172.30.230.52:44478 172.30.109.95:3128 \
             172.30.230.52:44476 - - \"-\" \"-\"\n"
        );
        let mut json = Vec::new();
        json_line(&mut json, &record);
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["upstream_local_address"], "172.30.230.52:44478");
        assert_eq!(json["upstream_cluster"], "outbound|3128||my-company-proxy.com");
    }

    #[test]
    fn a_long_field_is_cut() {
        let (denied, mut out) = (denied(), Vec::new());
        let path = vec![b'a'; 100_000];
        json_line(&mut out, &Record { path: &path, ..record(&denied) });
        assert!(out.len() < 3 * MAX_FIELD, "{}", out.len());
    }
}
