//! kubelet's probes, pointed at the sidecar: kubelet has no certificate of the mesh, so the app's own ports refuse it.
//!
//! Each probe of each container gets its own path on the sidecar, which queries the app on kubelet's behalf and returns
//! the app's result. `exec` probes never leave the container and are not changed. Hooks work the same way
//! ([`crate::hooks`]).

mod request_target;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tidegate_core::contract::ports;

use self::request_target::{is_request_target, request_target};
use crate::patch::PatchBuilder;
use crate::pod::{ContainerFields, ContainerProbe, HttpGet, HttpHeader, PortReference, shortened};

/// A probe that the sidecar answers, as passed in its flag `--probes`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct AppProbe {
    port: u16,
    path: String,
    /// `None` for hooks, for which kubelet waits as long as the Pod's grace period allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_seconds: Option<i32>,
    /// A lifecycle hook: for kubelet it fails only without any response.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    hook: bool,
    target: ProbedEndpoint,
}

/// What the sidecar requests from the app.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum ProbedEndpoint {
    Http { scheme: ProbeScheme, port: u16, path: String, headers: Vec<(String, String)> },
    Tcp { port: u16 },
    Grpc { port: u16, service: String },
}

/// How the sidecar speaks to the app for an `httpGet`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProbeScheme {
    Http,
    Https,
}

/// A probe or hook that cannot be pointed at the sidecar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("container {container}: {field}: {problem}")]
pub struct ProbeRewriteError {
    container: String,
    field: String,
    problem: String,
}

/// One of the three probes that a container may have.
struct ProbeKind {
    field: &'static str,
    port: u16,
    path: &'static str,
    of: fn(&ContainerFields) -> Option<&ContainerProbe>,
}

const KINDS: [ProbeKind; 3] = [
    ProbeKind {
        field: "livenessProbe",
        port: ports::LIVENESS,
        path: "/osm-liveness-probe/",
        of: |container| container.liveness_probe.as_ref(),
    },
    ProbeKind {
        field: "readinessProbe",
        port: ports::READINESS,
        path: "/osm-readiness-probe/",
        of: |container| container.readiness_probe.as_ref(),
    },
    ProbeKind {
        field: "startupProbe",
        port: ports::STARTUP,
        path: "/osm-startup-probe/",
        of: |container| container.startup_probe.as_ref(),
    },
];

/// Points the probes of one container, found at `path` in the Pod, at the sidecar, and appends what the sidecar needs
/// to know about them to `all`. `before` holds the probes of an existing sidecar: a probe that points at it is not
/// changed.
pub(crate) fn rewrite(
    container: &ContainerFields,
    path: &[&str],
    before: &[AppProbe],
    patch: &mut PatchBuilder,
    all: &mut Vec<AppProbe>,
) -> Result<(), ProbeRewriteError> {
    for kind in &KINDS {
        let Some(probe) = (kind.of)(container) else { continue };
        let error = |field: &str, problem: String| {
            ProbeRewriteError::new(container, format!("{}.{field}", kind.field), problem)
        };
        let own_path = format!("{}{}", kind.path, container.name);
        if points_at(probe, kind.port, &own_path) {
            let known = before.iter().find(|known| known.is_at(kind.port, &own_path));
            let known = known.ok_or_else(|| {
                let problem = format!(
                    "port {} and path {own_path} are the sidecar's; name the app's own port and path",
                    kind.port
                );
                error("httpGet", problem)
            })?;
            all.push(known.clone().checked().map_err(|problem| error("httpGet", problem))?);
            continue;
        }
        let Some((field, target)) =
            target(container, probe).map_err(|(field, problem)| error(field, problem))?
        else {
            continue;
        };
        let action = json!({"path": own_path, "port": kind.port, "scheme": "HTTP"});
        let probe_path = [path, &[kind.field]].concat();
        if field == "httpGet" {
            patch.replace(&[&probe_path[..], &["httpGet"]].concat(), action);
        } else {
            patch.remove(&[&probe_path[..], &[field]].concat());
            patch.add(&[&probe_path[..], &["httpGet"]].concat(), action);
        }
        // Kubernetes' own default.
        let timeout_seconds = probe.timeout_seconds.filter(|seconds| *seconds > 0).unwrap_or(1);
        let timeout_seconds = Some(timeout_seconds);
        all.push(AppProbe { port: kind.port, path: own_path, timeout_seconds, hook: false, target });
    }
    Ok(())
}

impl AppProbe {
    /// A lifecycle hook, for which the sidecar sets no timeout of its own.
    pub(crate) fn hook(port: u16, path: String, target: ProbedEndpoint) -> Self {
        Self { port, path, timeout_seconds: None, hook: true, target }
    }

    /// Whether kubelet's request to this port and path is for this probe.
    pub(crate) fn is_at(&self, port: u16, path: &str) -> bool {
        self.port == port && self.path == path
    }

    /// The flag of an existing sidecar may have been written by anyone. It is kept if it is valid.
    pub(crate) fn checked(mut self) -> Result<Self, String> {
        if self.timeout_seconds.is_some_and(|seconds| seconds < 1) {
            return Err("the sidecar's flag --probes has a timeoutSeconds that is not positive".to_owned());
        }
        if !is_request_target(&self.path) || self.path.contains('?') {
            return Err(format!("the sidecar's flag --probes has {:?}, which is not a path", self.path));
        }
        match &mut self.target {
            ProbedEndpoint::Tcp { port } | ProbedEndpoint::Grpc { port, .. } => drop(number((*port).into())?),
            ProbedEndpoint::Http { port, path, headers, .. } => {
                number((*port).into())?;
                if !is_request_target(path) {
                    *path = request_target(path)?;
                }
                headers.iter().try_for_each(|(name, value)| check_header(name, value))?;
            }
        }
        Ok(self)
    }
}

impl ProbeRewriteError {
    /// An error about a field of a container, whose name is cut to the length that Kubernetes allows.
    pub(crate) fn new(container: &ContainerFields, field: String, problem: String) -> Self {
        Self { container: shortened(&container.name).to_owned(), field, problem }
    }
}

/// The value of the flag `--probes`. Kubernetes expands `$(…)` in arguments, so it contains no `$`.
pub(crate) fn to_flag(probes: &[AppProbe]) -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string(probes)?.replace('$', "\\u0024"))
}

/// Parses the output of [`to_flag`].
pub(crate) fn from_flag(text: &str) -> Result<Vec<AppProbe>, serde_json::Error> {
    serde_json::from_str(text)
}

/// Whether a probe was rewritten before: its `httpGet` has the sidecar's port and path.
fn points_at(probe: &ContainerProbe, port: u16, path: &str) -> bool {
    probe.http_get.as_ref().is_some_and(|action| {
        action.port == PortReference::Number(port.into()) && action.path.as_deref() == Some(path)
    })
}

/// The field with the handler, and its target; `None` if the sidecar is not involved. The error names a field of the
/// probe.
fn target(
    container: &ContainerFields,
    probe: &ContainerProbe,
) -> Result<Option<(&'static str, ProbedEndpoint)>, (&'static str, String)> {
    if let Some(action) = &probe.http_get {
        if is_elsewhere(action.host.as_deref()) {
            return Ok(None);
        }
        return Ok(Some(("httpGet", http(container, action)?)));
    }
    if let Some(action) = &probe.tcp_socket {
        if is_elsewhere(action.host.as_deref()) {
            return Ok(None);
        }
        let port = resolve(container, &action.port).map_err(|problem| ("tcpSocket.port", problem))?;
        return Ok(Some(("tcpSocket", ProbedEndpoint::Tcp { port })));
    }
    if let Some(action) = &probe.grpc {
        let mode = action.mode.as_deref().unwrap_or("Plaintext");
        if mode != "Plaintext" {
            return Err(("grpc.mode", format!("{mode:?} is not supported for a pod of the mesh")));
        }
        let port = number(action.port).map_err(|problem| ("grpc.port", problem))?;
        return Ok(Some((
            "grpc",
            ProbedEndpoint::Grpc { port, service: action.service.clone().unwrap_or_default() },
        )));
    }
    Ok(None)
}

/// The target of an `httpGet`. The error names a field of the handler's owner.
pub(crate) fn http(
    container: &ContainerFields,
    action: &HttpGet,
) -> Result<ProbedEndpoint, (&'static str, String)> {
    if let Some(protocol) = action.protocol.as_deref().filter(|protocol| !matches!(*protocol, "HTTP1")) {
        return Err(("httpGet.protocol", format!("{protocol:?} is not supported for a pod of the mesh")));
    }
    let scheme = match action.scheme.as_deref() {
        None | Some("" | "HTTP") => ProbeScheme::Http,
        Some("HTTPS") => ProbeScheme::Https,
        Some(other) => return Err(("httpGet.scheme", format!("expected HTTP or HTTPS, got {other:?}"))),
    };
    let port = resolve(container, &action.port).map_err(|problem| ("httpGet.port", problem))?;
    let path = request_target(action.path.as_deref().unwrap_or_default())
        .map_err(|problem| ("httpGet.path", problem))?;
    let header = |header: &HttpHeader| {
        check_header(&header.name, &header.value).map_err(|problem| ("httpGet.httpHeaders", problem))?;
        Ok((header.name.clone(), header.value.clone()))
    };
    let headers = action.http_headers.iter().flatten().map(header).collect::<Result<_, _>>()?;
    Ok(ProbedEndpoint::Http { scheme, port, path, headers })
}

/// kubelet sends nothing if a header is invalid. Kubernetes accepts even fewer names.
fn check_header(name: &str, value: &str) -> Result<(), String> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err(format!("{name:?} is not a header name"));
    }
    if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
        return Err(format!(
            "the value of {name} has a control character, so it cannot be sent, got {value:?}"
        ));
    }
    Ok(())
}

/// Whether kubelet calls another host than the Pod.
pub(crate) fn is_elsewhere(host: Option<&str>) -> bool {
    host.is_some_and(|host| !host.is_empty())
}

/// The number of a port; like kubelet, looks up a name among the container's own ports.
fn resolve(container: &ContainerFields, port: &PortReference) -> Result<u16, String> {
    match port {
        PortReference::Number(port) => number(*port),
        PortReference::Name(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            match named {
                Some(port) => number(port.container_port),
                // kubelet parses digits in quotes as a number.
                None => name
                    .parse()
                    .map_err(|_| format!("the container has no port named {name:?}"))
                    .and_then(number),
            }
        }
    }
}

/// A port's number, which must be 1 to 65535 and not one of the sidecar's: the sidecar would call itself.
fn number(port: i32) -> Result<u16, String> {
    match u16::try_from(port) {
        Ok(port) if ports::RESERVED.contains(&port) => Err(format!("{port} is a port of the sidecar")),
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{port} is not within 1..=65535")),
    }
}
