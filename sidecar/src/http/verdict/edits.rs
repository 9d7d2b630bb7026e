//! What the server changes of a request, and of its response.
//!
//! Over HTTP/1, an edited head is written again and parsed by the same parser as the client's, so that it meets the same rules
//! and limits.

use std::borrow::Cow;

use tidegate_core::route::filter::HeaderEdits;

use crate::http::headers::REQUEST_ID;
use crate::http::request::{Request, Version};

/// Edits of one request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Edits {
    /// Of the request's fields.
    pub(in crate::http) request: HeaderEdits,
    /// Of the response's fields.
    pub(in crate::http) response: HeaderEdits,
    pub(in crate::http) query: QueryEdits,
}

/// Edits of the parameters in the query.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct QueryEdits {
    pub(in crate::http) set: Vec<(String, String)>,
    pub(in crate::http) remove: Vec<String>,
}

impl Edits {
    pub(in crate::http) fn is_empty(&self) -> bool {
        self.request.is_empty() && self.response.is_empty() && self.query.is_empty()
    }

    /// One edit with the effect of this edit followed by another. Only one of them edits the query.
    pub(super) fn then(self, next: Self) -> Self {
        Self {
            request: self.request.then(&next.request),
            response: self.response.then(&next.response),
            query: if next.query.is_empty() { self.query } else { next.query },
        }
    }

    /// The request gets this ID, which is a valid value, unless the server sets another.
    pub(in crate::http) fn set_id(&mut self, id: &str) {
        let is_set = self.request.appended().any(|(name, _)| name.as_str() == REQUEST_ID);
        if !is_set && let Ok(id) = HeaderEdits::new(&[(REQUEST_ID, id)], &[], &[]) {
            self.request = id.then(&self.request);
        }
    }

    /// Path and query that the app gets.
    pub(in crate::http) fn path<'p>(&self, path: &'p [u8]) -> Cow<'p, [u8]> {
        if self.query.is_empty() { Cow::Borrowed(path) } else { self.query.apply(path).into() }
    }

    /// The head of an HTTP/1 request with these edits. `path`: see [`Edits::path`].
    pub(in crate::http) fn head(&self, request: &Request<'_>, path: &[u8]) -> Vec<u8> {
        let mut head = Vec::with_capacity(1024);
        for part in [request.method, b" ", path, b" ", request.version.as_str().as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
        let mut has_host = false;
        let mut line = |name: &[u8], value: &[u8]| {
            for part in [name, b": ", value, b"\r\n"] {
                head.extend_from_slice(part);
            }
        };
        request.for_each_field(|name, value| {
            if name.eq_ignore_ascii_case(b"host") {
                has_host = true;
                // An absolute target has said otherwise.
                line(name, request.authority);
            } else if !self.request.drops(name) {
                line(name, value);
            }
        });
        if !has_host && (request.version != Version::Http10 || !request.authority.is_empty()) {
            line(b"host", request.authority);
        }
        for (name, value) in self.request.appended() {
            line(name.as_str().as_bytes(), value.as_str().as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

impl QueryEdits {
    fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// Parameters that are set take the place of those with the same name, at the end.
    fn apply(&self, path: &[u8]) -> Vec<u8> {
        let (path, query) = tidegate_core::path::split_query(path);
        let is_edited = |pair: &[u8]| {
            let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
            let removed = self.remove.iter().map(String::as_bytes);
            removed.chain(self.set.iter().map(|(name, _)| name.as_bytes())).any(|edited| edited == name)
        };
        let kept = query.into_iter().flat_map(|query| query.split(|byte| *byte == b'&'));
        let kept = kept.filter(|pair| !pair.is_empty() && !is_edited(pair)).map(<[u8]>::to_vec);
        let set = self.set.iter().map(|(name, value)| [encoded(name), encoded(value)].join(&b'='));
        let pairs: Vec<_> = kept.chain(set).collect();
        let mut edited = path.to_vec();
        if !pairs.is_empty() {
            edited.push(b'?');
            edited.extend_from_slice(&pairs.join(&b'&'));
        }
        edited
    }
}

/// Percent-encodes what a parameter may not contain; what is encoded already stays.
fn encoded(text: &str) -> Vec<u8> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?@!$'()*,;%+".contains(&byte);
    let mut bytes = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            bytes.push(byte);
        } else {
            bytes.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    bytes
}
