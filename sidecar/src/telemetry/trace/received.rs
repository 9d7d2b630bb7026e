//! What a request says about its trace, in either form.

use super::ids::{SpanId, TraceId};

/// Whether a trace is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TraceDecision {
    Record,
    Drop,
    /// Recorded by all that take part, whatever their own settings are (B3).
    Debug,
}

/// The span that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReceivedContext {
    pub(super) trace: TraceId,
    pub(super) span: SpanId,
    /// `None`: left to the receiver.
    pub(super) decision: Option<TraceDecision>,
    /// Whether the sender says that the trace's ID is random.
    pub(super) is_random: bool,
}
