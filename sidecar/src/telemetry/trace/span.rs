//! The span of a request that has ended, on its way to the exporter.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tidegate_core::ObjectRef;
use tidegate_core::policy::{Decision, Denial, Grant};

use super::context::RequestTrace;
use crate::remotes::RemoteId;
use crate::telemetry::{GrpcOutcome, Record, ResponseFlag};

/// The most bytes of a text from the wire.
const MOST_TEXT: usize = 512;

/// A request that has ended, in its trace.
#[derive(Debug)]
pub(crate) struct FinishedSpan {
    pub(crate) trace: RequestTrace,
    /// The app's own request: a client's span.
    pub(crate) is_outbound: bool,
    pub(crate) start: SystemTime,
    pub(crate) duration: Duration,
    pub(crate) method: Box<[u8]>,
    /// Without the query, which may hold secrets.
    pub(crate) path: Box<[u8]>,
    pub(crate) protocol: Box<str>,
    pub(crate) authority: Box<[u8]>,
    pub(crate) user_agent: Box<[u8]>,
    pub(crate) forwarded_for: Box<[u8]>,
    pub(crate) request_id: Box<[u8]>,
    pub(crate) status: u16,
    pub(crate) grpc: Option<GrpcOutcome>,
    pub(crate) flag: ResponseFlag,
    pub(crate) details: Box<str>,
    /// The rule of a route that applied: `<kind>/<namespace>/<name>/<rule>`.
    pub(crate) route: Option<Box<str>>,
    /// The object whose rule allowed the request, or came closest to it.
    pub(crate) rule: Option<ObjectRef>,
    /// The client, or the endpoint that was tried last.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) remote: RemoteId,
}

impl FinishedSpan {
    /// The span of this request.
    pub(super) fn new(trace: &RequestTrace, record: &Record<'_>) -> Self {
        let text = |bytes: &[u8]| -> Box<[u8]> { bytes.get(..MOST_TEXT).unwrap_or(bytes).into() };
        let path = record.path.split(|byte| *byte == b'?').next().unwrap_or_default();
        let peer = match (&record.outbound, record.connection) {
            (Some(outbound), _) => outbound.endpoint.map(|endpoint| endpoint.address),
            (None, connection) => connection.map(|connection| connection.peer),
        };
        let start = record.start.or_else(|| SystemTime::now().checked_sub(record.duration));
        Self {
            trace: trace.clone(),
            is_outbound: record.outbound.is_some(),
            start: start.unwrap_or(SystemTime::UNIX_EPOCH),
            duration: record.duration,
            method: text(record.method),
            path: text(path),
            protocol: record.protocol.into(),
            authority: text(record.authority),
            user_agent: text(record.user_agent),
            forwarded_for: text(record.forwarded_for),
            request_id: text(record.request_id),
            status: record.status,
            grpc: record.grpc,
            flag: record.flag,
            details: record.details.into(),
            route: record.route.map(Into::into),
            rule: record.decision.and_then(origin).cloned(),
            peer,
            remote: record.remote(),
        }
    }
}

/// The object whose rule made a decision, or came closest to a grant.
fn origin(decision: &Decision) -> Option<&ObjectRef> {
    match decision {
        Decision::Allow(Grant::Peer(origin, _) | Grant::Ingress(origin, _)) => Some(origin),
        Decision::Allow(Grant::Audit(Denial { origin, .. })) | Decision::Deny(Denial { origin, .. }) => {
            origin.as_ref()
        }
        Decision::Allow(Grant::AnyPeer) => None,
    }
}
