//! The trace that a request belongs to: read from its fields, and written to those of the next hop.
//!
//! W3C's fields and B3's are read. If both are valid and name different traces, B3's count. The next hop gets the form
//! that came, and always W3C's. `tracestate` is passed on, unless what it belongs to is invalid; `baggage` always.

use super::b3::{self, B3Context, B3Fields};
use super::ids::{SpanId, TraceId};
use super::received::TraceDecision;
use super::w3c;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The share of traces that are recorded if nothing is said about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sampling {
    /// Recorded is a trace whose randomness is at least this; 2⁵⁶: none.
    threshold: u64,
}

/// The fields of a request that are about its trace.
#[derive(Default)]
pub(crate) struct ReceivedTrace<'a> {
    parent: Option<&'a [u8]>,
    has_several_parents: bool,
    b3: Option<&'a [u8]>,
    b3_fields: B3Fields<'a>,
}

/// The span of a request, as the next hop gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestTrace {
    trace: TraceId,
    span: SpanId,
    /// The span that it came from.
    parent: Option<SpanId>,
    decision: TraceDecision,
    is_random: bool,
    keeps_state: bool,
    /// The forms of B3 that came.
    has_single: bool,
    has_fields: bool,
}

impl Sampling {
    /// This share of all traces, 0 to 1.
    pub(crate) fn of(share: f64) -> Self {
        const ALL: f64 = (1u64 << 56) as f64;
        // Conversion saturates.
        Self { threshold: ((1.0 - share.clamp(0.0, 1.0)) * ALL) as u64 }
    }

    fn decide(self, trace: TraceId) -> TraceDecision {
        if trace.randomness() >= self.threshold { TraceDecision::Record } else { TraceDecision::Drop }
    }
}

impl<'a> ReceivedTrace<'a> {
    /// Takes note of a field.
    pub(crate) fn see(&mut self, name: &[u8], value: &'a [u8]) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is(b3::SINGLE) => self.b3 = Some(value),
            10 if is(b3::FLAGS) => self.b3_fields.flags = Some(value),
            11 if is(TRACEPARENT) => self.has_several_parents |= self.parent.replace(value).is_some(),
            11 if is(b3::SPAN) => self.b3_fields.span = Some(value),
            12 if is(b3::TRACE) => self.b3_fields.trace = Some(value),
            12 if is(b3::SAMPLED) => self.b3_fields.sampled = Some(value),
            _ => {}
        }
    }

    /// The span of the request; a new trace if it comes from none.
    pub(crate) fn begin(&self, sampling: Sampling) -> RequestTrace {
        let of_w3c = self.parent.filter(|_| !self.has_several_parents).and_then(w3c::parse);
        let of_b3 = match self.b3 {
            Some(single) => B3Context::single(single),
            None => self.b3_fields.parse(),
        };
        let (received, keeps_state) = match (of_w3c, of_b3.context) {
            (Some(w3c), Some(b3)) if w3c.trace != b3.trace => (Some(b3), false),
            (Some(w3c), _) => (Some(w3c), true),
            (None, b3) => (b3, false),
        };
        let trace = received.map_or_else(TraceId::random, |received| received.trace);
        let decision = received.and_then(|received| received.decision).or(of_b3.decision);
        RequestTrace {
            trace,
            span: SpanId::random(),
            parent: received.map(|received| received.span),
            decision: decision.unwrap_or_else(|| sampling.decide(trace)),
            is_random: received.is_none_or(|received| received.is_random),
            keeps_state,
            has_single: self.b3.is_some(),
            has_fields: !self.b3_fields.is_empty(),
        }
    }
}

impl RequestTrace {
    /// Whether its span is exported.
    pub(crate) fn is_recorded(&self) -> bool {
        self.decision != TraceDecision::Drop
    }

    /// The trace.
    pub(crate) fn trace_id(&self) -> [u8; 16] {
        self.trace.bytes()
    }

    /// The span.
    pub(crate) fn span_id(&self) -> [u8; 8] {
        self.span.bytes()
    }

    /// The span that the request comes from.
    pub(crate) fn parent_id(&self) -> Option<[u8; 8]> {
        self.parent.map(SpanId::bytes)
    }

    /// W3C's flags of the span.
    pub(crate) fn flags(&self) -> u8 {
        u8::from(self.is_recorded()) + u8::from(self.is_random) * w3c::RANDOM
    }

    /// Whether the client's field of this name is not passed on.
    pub(crate) fn replaces(&self, name: &[u8]) -> bool {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 => is(b3::SINGLE),
            10 => is(b3::FLAGS) || (!self.keeps_state && is(TRACESTATE)),
            11 => is(TRACEPARENT) || is(b3::SPAN),
            12 => is(b3::TRACE) || is(b3::SAMPLED),
            17 => is(b3::PARENT),
            _ => false,
        }
    }

    /// Visits the names and values of the fields that the next hop gets.
    pub(crate) fn for_each_field(&self, mut visit: impl FnMut(&'static str, &[u8])) {
        visit(TRACEPARENT, &w3c::format(self.trace, self.span, self.is_recorded(), self.is_random));
        let parent = self.parent.map(SpanId::hex);
        let decision = b3::decision_text(self.decision);
        if self.has_single {
            let (trace, span) = (self.trace.hex(), self.span.hex());
            let parts = [&trace[..], &span[..], decision];
            let parts = parts.into_iter().chain(parent.as_ref().map(<[u8; 16]>::as_slice));
            let mut value = Vec::with_capacity(70);
            for (at, part) in parts.enumerate() {
                if at > 0 {
                    value.push(b'-');
                }
                value.extend_from_slice(part);
            }
            visit(b3::SINGLE, &value);
        }
        if self.has_fields {
            visit(b3::TRACE, &self.trace.hex());
            visit(b3::SPAN, &self.span.hex());
            if let Some(parent) = parent {
                visit(b3::PARENT, &parent);
            }
            match self.decision {
                TraceDecision::Debug => visit(b3::FLAGS, b"1"),
                TraceDecision::Record | TraceDecision::Drop => visit(b3::SAMPLED, decision),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";

    fn begin(fields: &[(&str, &str)], share: f64) -> RequestTrace {
        let mut received = ReceivedTrace::default();
        fields.iter().for_each(|(name, value)| received.see(name.as_bytes(), value.as_bytes()));
        received.begin(Sampling::of(share))
    }

    fn sent(trace: &RequestTrace) -> Vec<(&'static str, String)> {
        let mut fields = Vec::new();
        trace.for_each_field(|name, value| fields.push((name, String::from_utf8(value.to_vec()).unwrap())));
        fields
    }

    #[test]
    fn a_request_of_no_trace_begins_one_and_the_share_decides() {
        let trace = begin(&[], 1.0);
        assert!(trace.is_recorded() && trace.parent.is_none());
        let fields = sent(&trace);
        assert_eq!(fields.len(), 1);
        assert!(fields[0].1.ends_with("-03"), "{fields:?}");
        assert!(!begin(&[], 0.0).is_recorded());
        let recorded = (0..4000).filter(|_| begin(&[], 0.25).is_recorded()).count();
        assert!((800..1200).contains(&recorded), "{recorded}");
    }

    #[test]
    fn a_span_is_the_child_of_the_one_that_the_request_comes_from_and_its_decision_holds() {
        for (flags, is_recorded, share) in [("01", true, 0.0), ("00", false, 1.0)] {
            let parent = format!("00-{TRACE}-{PARENT}-{flags}");
            let trace = begin(&[("Traceparent", &parent), ("tracestate", "a=b")], share);
            assert_eq!(trace.is_recorded(), is_recorded);
            assert_eq!(format!("{:?} {:?}", trace.trace, trace.parent.unwrap()), format!("{TRACE} {PARENT}"));
            let expected = format!("00-{TRACE}-{:?}-{flags}", trace.span);
            assert_eq!(sent(&trace), [("traceparent", expected)]);
            assert!(trace.replaces(b"TraceParent") && !trace.replaces(b"tracestate"));
        }
    }

    #[test]
    fn an_invalid_parent_begins_a_trace_and_drops_its_state() {
        let parent = format!("00-{TRACE}-{PARENT}-01");
        let parent = parent.as_str();
        for fields in [
            &[("traceparent", "nonsense"), ("tracestate", "a=b")][..],
            &[("traceparent", parent), ("traceparent", parent)],
        ] {
            let trace = begin(fields, 1.0);
            assert!(trace.parent.is_none() && trace.replaces(b"tracestate"));
            assert_ne!(format!("{:?}", trace.trace), TRACE);
        }
    }

    #[test]
    fn b3_in_one_field_goes_on_as_one_field() {
        let short = "463ac35c9f6413ad";
        let trace = begin(&[("b3", &format!("{short}-{PARENT}-d"))], 0.0);
        assert!(trace.is_recorded());
        let [(_, parent), (name, b3)] = sent(&trace).try_into().unwrap();
        assert_eq!(name, "b3");
        let padded = format!("0000000000000000{short}");
        assert_eq!(b3, format!("{padded}-{:?}-d-{PARENT}", trace.span));
        assert_eq!(parent, format!("00-{padded}-{:?}-01", trace.span));
        for (value, is_recorded) in [("0", false), ("1", true)] {
            let trace = begin(&[("b3", value)], 0.5);
            assert_eq!((trace.is_recorded(), trace.parent), (is_recorded, None));
        }
        let undecided = begin(&[("b3", &format!("{TRACE}-{PARENT}"))], 0.0);
        assert!(!undecided.is_recorded() && undecided.parent.is_some());
    }

    #[test]
    fn b3_in_several_fields_goes_on_in_several() {
        let fields = [("X-B3-TraceId", TRACE), ("X-B3-SpanId", PARENT), ("X-B3-Sampled", "true")];
        let trace = begin(&fields, 0.0);
        let span = format!("{:?}", trace.span);
        let expected = [
            ("traceparent", format!("00-{TRACE}-{span}-01")),
            ("x-b3-traceid", TRACE.to_owned()),
            ("x-b3-spanid", span),
            ("x-b3-parentspanid", PARENT.to_owned()),
            ("x-b3-sampled", "1".to_owned()),
        ];
        assert_eq!(sent(&trace), expected);
        for name in ["x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags", "b3"] {
            assert!(trace.replaces(name.as_bytes()), "{name}");
        }
        let debug = begin(&[("x-b3-flags", "1")], 0.0);
        assert!(debug.is_recorded() && sent(&debug).contains(&("x-b3-flags", "1".to_owned())));
    }

    #[test]
    fn of_two_traces_b3s_counts_and_of_one_w3cs_span() {
        let parent = format!("00-{TRACE}-{PARENT}-01");
        let same = begin(&[("traceparent", &parent), ("b3", &format!("{TRACE}-1111111111111111-0"))], 0.0);
        assert_eq!(format!("{:?}", same.parent.unwrap()), PARENT);
        assert!(same.is_recorded());
        let (other, span) = ("11111111111111111111111111111111", "2222222222222222");
        let differs = begin(&[("traceparent", &parent), ("b3", &format!("{other}-{span}-1"))], 0.0);
        assert_eq!(format!("{:?} {:?}", differs.trace, differs.parent.unwrap()), format!("{other} {span}"));
        assert!(differs.replaces(b"tracestate"));
    }
}
