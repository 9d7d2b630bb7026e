//! Messages that decode and are no HTTP (RFC 9113, section 8.1.1).
//!
//! A malformed request is an error of its stream: the stream is reset with `PROTOCOL_ERROR`, and the connection goes
//! on. The code that drives a server's connection can learn of such requests, and can have them answered instead; see
//! [`observed`].

use crate::frame::Pseudo;

use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, Response};

use std::cell::RefCell;
use std::rc::Rc;

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// The name of a field is no token.
    FieldName,
    /// The name of a field has an upper-case letter.
    UpperCaseName,
    /// The value of a field has a control character.
    FieldValue,
    /// A field that belongs to a connection of HTTP/1, such as `connection`, or a `te` other than `trailers`.
    ConnectionField,
    /// A `content-length` that is no number, or that differs from another one.
    ContentLength,
    /// A `content-length` in a head that ends its stream.
    MissingBody,
    /// A pseudo-header field that is missing, unknown, repeated, misplaced, or not for this kind of message.
    PseudoField,
    /// A `:method` that is no token.
    Method,
    /// A `:scheme` that is none.
    Scheme,
    /// An `:authority` that is none.
    Authority,
    /// A `:path` with bytes that no path or query has, or with a fragment.
    Path,
    /// The stream depends on itself.
    Dependency,
    /// More bytes than `SETTINGS_MAX_HEADER_LIST_SIZE` allows.
    TooLarge,
}

/// A request that is none. What it says is as the client sent it, and empty where the client said nothing.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct MalformedRequest<'a> {
    /// What is wrong.
    pub fault: Fault,
    /// `:method`.
    pub method: &'a [u8],
    /// `:authority`.
    pub authority: &'a [u8],
    /// `:path`.
    pub path: &'a [u8],
    /// The fields that are well formed.
    pub fields: &'a HeaderMap,
}

/// What becomes of a malformed request.
#[derive(Debug)]
pub enum Verdict {
    /// Its stream is reset with `PROTOCOL_ERROR`, which counts towards the connection's bound of such resets.
    Reset,
    /// It gets this answer, without a body.
    Answer(Response<()>),
}

/// Learns of malformed requests.
pub trait Observer {
    /// A request is malformed. To be quick, and to touch no stream of the connection.
    fn malformed(&self, request: MalformedRequest<'_>) -> Verdict;
}

thread_local! {
    static OBSERVER: RefCell<Option<Rc<dyn Observer>>> = const { RefCell::new(None) };
}

/// Polls a server's connection by `poll`; `observer` learns of the malformed requests that are received meanwhile.
///
/// It is bound to the call, and not to the connection's builder, so that it passes through libraries that build
/// connections for others.
pub fn observed<R>(observer: &Rc<dyn Observer>, poll: impl FnOnce() -> R) -> R {
    struct Restore(Option<Rc<dyn Observer>>);

    impl Drop for Restore {
        fn drop(&mut self) {
            OBSERVER.with(|current| *current.borrow_mut() = self.0.take());
        }
    }

    let before = OBSERVER.with(|current| current.borrow_mut().replace(observer.clone()));
    let _restore = Restore(before);
    poll()
}

/// The first field of a header block that HTTP does not allow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) fault: Fault,
    name: Bytes,
    value: Bytes,
}

/// A message that could not be made of a head.
#[derive(Debug)]
pub(crate) struct Unfit {
    pub(crate) fault: Fault,
    pub(crate) pseudo: Pseudo,
    pub(crate) fields: HeaderMap,
}

impl Flaw {
    /// Without a field that is to blame.
    pub(crate) fn new(fault: Fault) -> Self {
        Flaw {
            fault,
            name: Bytes::new(),
            value: Bytes::new(),
        }
    }

    /// A field of this name may not have this value, or none at all.
    pub(crate) fn field(name: Bytes, value: Bytes) -> Self {
        let fault = match &name[..] {
            b":method" => Fault::Method,
            b":scheme" => Fault::Scheme,
            b":authority" => Fault::Authority,
            b":path" => Fault::Path,
            [b':', ..] => Fault::PseudoField,
            name if HeaderName::from_lowercase(name).is_ok() => Fault::FieldValue,
            name if HeaderName::from_bytes(name).is_ok() => Fault::UpperCaseName,
            _ => Fault::FieldName,
        };
        Flaw { fault, name, value }
    }

    fn value_of(&self, name: &[u8]) -> Option<&[u8]> {
        (&self.name[..] == name).then_some(&self.value[..])
    }
}

/// Tells the observer, if there is one, of a malformed request.
pub(crate) fn report(fault: Fault, flaw: Option<&Flaw>, pseudo: &Pseudo, fields: &HeaderMap) -> Option<Verdict> {
    let observer = OBSERVER.with(|current| current.borrow().clone())?;
    let raw = |name: &str| flaw.and_then(|flaw| flaw.value_of(name.as_bytes()));
    let method = pseudo.method.as_ref().map(|method| method.as_str().as_bytes());
    let authority = pseudo.authority.as_ref().map(|authority| authority.as_bytes());
    let path = pseudo.path.as_ref().map(|path| path.as_bytes());
    Some(observer.malformed(MalformedRequest {
        fault,
        method: raw(":method").or(method).unwrap_or_default(),
        authority: raw(":authority").or(authority).unwrap_or_default(),
        path: raw(":path").or(path).unwrap_or_default(),
        fields,
    }))
}
