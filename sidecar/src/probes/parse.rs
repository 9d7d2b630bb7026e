//! Parses the list of probes. Strict: everything unknown is refused by name.

use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde_json::{Map, Value};

use super::{HttpTarget, Probe, ProbeTarget, Probes};

/// Longer timeouts are reduced to this, which no probe reaches.
const MAX_TIMEOUT_SECONDS: u64 = 24 * 3600;

/// Why a list of probes is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProbesError {
    /// Not a JSON list.
    #[error("not a JSON list of probes: {0}")]
    Json(String),
    /// An invalid field of one probe.
    #[error("{field}: {problem}")]
    Field {
        /// Path of the field, such as `[0].target.tcp.port`.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
}

impl FromStr for Probes {
    type Err = ProbesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| ProbesError::Json(error.to_string()))?;
        let Value::Array(list) = value else {
            return Err(ProbesError::Json(format!("it is {}", kind(&value))));
        };
        let mut probes: Vec<Probe> = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let probe = probe(&ProbeField { path: format!("[{index}]"), value })?;
            if probes.iter().any(|other| other.port == probe.port && other.path == probe.path) {
                return Err(ProbesError::Field {
                    field: format!("[{index}].path"),
                    problem: format!("{:?} is duplicated for port {}", probe.path, probe.port),
                });
            }
            probes.push(probe);
        }
        Ok(Self(probes.into()))
    }
}

/// A JSON value and its path.
struct ProbeField<'v> {
    path: String,
    value: &'v Value,
}

/// One probe: `port` and `path` are those that kubelet dials; `timeoutSeconds` is 1 by default as in Kubernetes, and
/// absent for a hook.
fn probe(field: &ProbeField<'_>) -> Result<Probe, ProbesError> {
    let object = field.object(&["port", "path", "timeoutSeconds", "hook", "target"])?;
    let path = field.member(object, "path")?.text()?;
    if !path.starts_with('/') || path.parse::<Uri>().is_err() || path.contains(['?', '#']) {
        return Err(field.member_error("path", format!("{path:?} is not a URL path")));
    }
    let is_hook = match object.get("hook") {
        None => false,
        Some(value) => value
            .as_bool()
            .ok_or_else(|| field.member_error("hook", format!("{value} is neither true nor false")))?,
    };
    let seconds = match object.get("timeoutSeconds") {
        None if is_hook => None,
        None => Some(1),
        Some(value) => {
            let seconds = value.as_u64().filter(|seconds| *seconds > 0).ok_or_else(|| {
                field.member_error("timeoutSeconds", format!("{value} is not a positive number"))
            });
            Some(seconds?.min(MAX_TIMEOUT_SECONDS))
        }
    };
    Ok(Probe {
        port: field.member(object, "port")?.port()?,
        path: path.into(),
        timeout: seconds.map(Duration::from_secs),
        is_hook,
        target: target(&field.member(object, "target")?)?,
    })
}

/// The request to the app: exactly one of `http`, `tcp` and `grpc`.
fn target(field: &ProbeField<'_>) -> Result<ProbeTarget, ProbesError> {
    let object = field.object(&["http", "tcp", "grpc"])?;
    let mut members = object.keys();
    let (Some(name), None) = (members.next(), members.next()) else {
        return Err(field.error(format!("one of http, tcp, grpc is expected, there are {}", object.len())));
    };
    let inner = field.member(object, name)?;
    match name.as_str() {
        "http" => http_target(&inner).map(ProbeTarget::Http),
        "tcp" => Ok(ProbeTarget::Tcp { port: inner.member(inner.object(&["port"])?, "port")?.port()? }),
        _ => {
            let object = inner.object(&["port", "service"])?;
            let service = if object.contains_key("service") {
                inner.member(object, "service")?.text()?.into()
            } else {
                Box::default()
            };
            Ok(ProbeTarget::Grpc { port: inner.member(object, "port")?.port()?, service })
        }
    }
}

/// A request over HTTP, or over HTTPS with any certificate. Defaults: scheme `http`, path `/`, no fields beyond
/// kubelet's own.
fn http_target(field: &ProbeField<'_>) -> Result<HttpTarget, ProbesError> {
    let object = field.object(&["scheme", "port", "path", "headers"])?;
    let tls = match object.get("scheme").map(|scheme| scheme.as_str().unwrap_or_default()) {
        None | Some("http") => false,
        Some("https") => true,
        Some(_) => {
            return Err(field
                .member_error("scheme", format!("{} is neither \"http\" nor \"https\"", object["scheme"])));
        }
    };
    let path = if object.contains_key("path") { field.member(object, "path")?.text()? } else { "/" };
    // As in kubelet, a path without a leading slash gets one.
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path: Uri = format!("{slash}{path}")
        .parse()
        .map_err(|error| field.member_error("path", format!("{path:?}: {error}")))?;
    let mut headers = HeaderMap::new();
    if object.contains_key("headers") {
        let list = field.member(object, "headers")?;
        let pairs = list
            .value
            .as_array()
            .ok_or_else(|| list.error(format!("it is {}, not a list", kind(list.value))))?;
        for (index, pair) in pairs.iter().enumerate() {
            let pair = ProbeField { path: format!("{}[{index}]", list.path), value: pair };
            let (name, value) = header(&pair)?;
            headers.append(name, value);
        }
    }
    Ok(HttpTarget { tls, port: field.member(object, "port")?.port()?, path, headers })
}

/// A field as `[name, value]`.
fn header(field: &ProbeField<'_>) -> Result<(HeaderName, HeaderValue), ProbesError> {
    let texts = field.value.as_array().map(|pair| pair.iter().map(Value::as_str).collect::<Vec<_>>());
    let Some([Some(name), Some(value)]) = texts.as_deref() else {
        return Err(field.error(format!("{} is not a pair of name and value", field.value)));
    };
    let name = HeaderName::from_str(name).map_err(|error| field.error(format!("{name:?}: {error}")))?;
    let value = HeaderValue::from_bytes(value.as_bytes())
        .map_err(|error| field.error(format!("{value:?}: {error}")))?;
    Ok((name, value))
}

impl<'v> ProbeField<'v> {
    /// The value as an object whose keys are all among `known`.
    fn object(&self, known: &[&str]) -> Result<&'v Map<String, Value>, ProbesError> {
        let object = self
            .value
            .as_object()
            .ok_or_else(|| self.error(format!("it is {}, not an object", kind(self.value))))?;
        match object.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => {
                Err(self.member_error(unknown, format!("unknown; known are {}", known.join(", "))))
            }
            None => Ok(object),
        }
    }

    /// A member that must be there.
    fn member(&self, object: &'v Map<String, Value>, name: &str) -> Result<Self, ProbesError> {
        let value = object.get(name).ok_or_else(|| self.member_error(name, "is missing".to_owned()))?;
        Ok(Self { path: format!("{}.{name}", self.path), value })
    }

    fn text(&self) -> Result<&'v str, ProbesError> {
        self.value.as_str().ok_or_else(|| self.error(format!("it is {}, not a string", kind(self.value))))
    }

    /// A TCP port other than zero.
    fn port(&self) -> Result<u16, ProbesError> {
        let port = self.value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        port.ok_or_else(|| self.error(format!("{} is not within 1..=65535", self.value)))
    }

    /// An error about a member of this object.
    fn member_error(&self, member: &str, problem: String) -> ProbesError {
        ProbesError::Field { field: format!("{}.{member}", self.path), problem }
    }

    fn error(&self, problem: String) -> ProbesError {
        ProbesError::Field { field: self.path.clone(), problem }
    }
}

/// The JSON type in words, with its article.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_of_every_kind_are_read() {
        let probes: Probes = r#"[
            {"port":15901,"path":"/osm-liveness-probe/app","timeoutSeconds":3,
             "target":{"http":{"scheme":"https","port":8080,"path":"healthz?x=1","headers":[["X-A","1"],["x-a","ü"]]}}},
            {"port":15902,"path":"/osm-readiness-probe/app","target":{"tcp":{"port":6379}}},
            {"port":15903,"path":"/osm-startup-probe/app","timeoutSeconds":2147483647,"target":{"grpc":{"port":9000,"service":"s"}}},
            {"port":15904,"path":"/osm-lifecycle/app/pre-stop/0a1b","hook":true,"target":{"http":{"port":8080}}}
        ]"#
        .parse()
        .unwrap();
        let [http, tcp, grpc, hook] = &*probes.0 else { panic!("{probes:?}") };
        let ProbeTarget::Http(target) = &http.target else { panic!("{http:?}") };
        assert!(target.tls && target.port == 8080 && target.path == "/healthz?x=1");
        assert_eq!(target.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(http.timeout, Some(Duration::from_secs(3)));
        assert!(!http.is_hook && hook.is_hook && hook.timeout.is_none());
        assert!(
            matches!(tcp.target, ProbeTarget::Tcp { port: 6379 })
                && tcp.timeout == Some(Duration::from_secs(1))
        );
        assert!(matches!(&grpc.target, ProbeTarget::Grpc { port: 9000, service } if &**service == "s"));
        assert_eq!(grpc.timeout, Some(Duration::from_secs(24 * 3600)));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field_and_value() {
        let tcp = r#""target":{"tcp":{"port":1}}"#;
        for (text, expected) in [
            ("{}".to_owned(), "not a JSON list of probes: it is an object"),
            (format!(r#"[{{"port":0,"path":"/a",{tcp}}}]"#), "[0].port: 0 is not within 1..=65535"),
            (format!(r#"[{{"port":1,"path":"a",{tcp}}}]"#), "[0].path: \"a\" is not a URL path"),
            (
                format!(r#"[{{"port":1,"path":"/a","timeoutSeconds":0,{tcp}}}]"#),
                "[0].timeoutSeconds: 0 is not a positive number",
            ),
            (format!(r#"[{{"port":1,"path":"/a","more":0,{tcp}}}]"#), "[0].more: unknown; known are port,"),
            (
                format!(r#"[{{"port":1,"path":"/a","hook":1,{tcp}}}]"#),
                "[0].hook: 1 is neither true nor false",
            ),
            (r#"[{"port":1,"path":"/a","target":{}}]"#.to_owned(), "[0].target: one of http, tcp, grpc"),
            (
                r#"[{"port":1,"path":"/a","target":{"http":{"port":1,"scheme":"ftp"}}}]"#.to_owned(),
                "[0].target.http.scheme: \"ftp\" is neither",
            ),
            (
                r#"[{"port":1,"path":"/a","target":{"http":{"port":1,"headers":[["a b","c"]]}}}]"#.to_owned(),
                "[0].target.http.headers[0]: \"a b\": ",
            ),
            (
                format!(r#"[{{"port":1,"path":"/a",{tcp}}},{{"port":1,"path":"/a",{tcp}}}]"#),
                "[1].path: \"/a\" is duplicated for port 1",
            ),
        ] {
            let error = text.parse::<Probes>().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
