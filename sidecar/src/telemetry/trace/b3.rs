//! B3, Zipkin's fields: one `b3`, or several `x-b3-…`.

use super::ids::{SpanId, TraceId};
use super::received::{ReceivedContext, TraceDecision};

pub(super) const SINGLE: &str = "b3";
pub(super) const TRACE: &str = "x-b3-traceid";
pub(super) const SPAN: &str = "x-b3-spanid";
pub(super) const PARENT: &str = "x-b3-parentspanid";
pub(super) const SAMPLED: &str = "x-b3-sampled";
pub(super) const FLAGS: &str = "x-b3-flags";

/// What B3 fields say: where the request comes from, if they do, and whether the trace is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct B3Context {
    pub(super) context: Option<ReceivedContext>,
    pub(super) decision: Option<TraceDecision>,
}

/// The fields of the form with several.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct B3Fields<'a> {
    pub(super) trace: Option<&'a [u8]>,
    pub(super) span: Option<&'a [u8]>,
    pub(super) sampled: Option<&'a [u8]>,
    pub(super) flags: Option<&'a [u8]>,
}

impl B3Context {
    /// Parses `<trace>-<span>[-<decision>[-<parent>]]`, or only a decision.
    pub(super) fn single(value: &[u8]) -> Self {
        let mut parts = value.split(|byte| *byte == b'-');
        let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        match second {
            None => Self { context: None, decision: decision(first) },
            Some(span) => Self::new(first, span, third.and_then(decision)),
        }
    }

    fn new(trace: &[u8], span: &[u8], decision: Option<TraceDecision>) -> Self {
        let ids = TraceId::parse_short(trace).zip(SpanId::parse(span));
        let context = ids.map(|(trace, span)| ReceivedContext { trace, span, decision, is_random: false });
        Self { context, decision }
    }
}

impl B3Fields<'_> {
    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        [self.trace, self.span, self.sampled, self.flags].iter().all(Option::is_none)
    }

    /// What they say together.
    pub(super) fn parse(&self) -> B3Context {
        let debug = self.flags.filter(|flags| *flags == b"1").map(|_| TraceDecision::Debug);
        let decision = debug.or_else(|| self.sampled.and_then(decision));
        B3Context::new(self.trace.unwrap_or_default(), self.span.unwrap_or_default(), decision)
    }
}

/// Whether the trace is recorded. `true` and `false` are of old tracers.
fn decision(text: &[u8]) -> Option<TraceDecision> {
    match text {
        b"1" | b"true" => Some(TraceDecision::Record),
        b"0" | b"false" => Some(TraceDecision::Drop),
        b"d" => Some(TraceDecision::Debug),
        _ => None,
    }
}

/// The text of a decision.
pub(super) fn decision_text(decision: TraceDecision) -> &'static [u8] {
    match decision {
        TraceDecision::Record => b"1",
        TraceDecision::Drop => b"0",
        TraceDecision::Debug => b"d",
    }
}
