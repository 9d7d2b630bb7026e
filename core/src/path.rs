//! The normal form of a request's path: what path rules match is what the backend receives.
//!
//! If a proxy matches one spelling of a path and forwards another, its rules can be bypassed. Where a table has path
//! rules, a request's path is therefore normalized, matched and forwarded in normal form. Where it has none, the path is
//! forwarded byte for byte.
//!
//! | input | normal form | source |
//! |---|---|---|
//! | `%41`, `%7e` (unreserved) | `A`, `~` | RFC 3986 §6.2.2.2 |
//! | `%2f`, `%3b` (anything else encoded) | `%2F`, `%3B`: stays encoded, in upper case | RFC 3986 §2.2, §6.2.2.1 |
//! | `"`, `<`, `{`, `ä` and other characters that are not allowed in a URI | percent-encoded | RFC 3986 §2.1, RFC 3987 §3.1 |
//! | `%` without two hexadecimal digits | `%25` | as lenient decoders read it |
//! | `\` | `/` | WHATWG URL, Envoy's `normalize_path` |
//! | `//` | `/` | Envoy's `merge_slashes`, nginx's `merge_slashes on` (its default) |
//! | `.`, `..` as a whole element | resolved; `..` at the root stays there | RFC 3986 §5.2.4, §6.2.2.3 |
//! | `;` and what follows it in an element | kept | RFC 3986 §3.3: no meaning of its own |
//! | `#` | refused | RFC 9112 §3.2: a request target has no fragment; Envoy and Istio answer 400 |
//! | `%00` | refused | Envoy and nginx answer 400 |
//! | `..;x`, `x%2F..` | refused | see below |
//! | query | kept byte for byte | as Envoy and nginx |
//!
//! An encoded slash never becomes a separator: Envoy's `path_with_escaped_slashes_action: KEEP_UNCHANGED`. Backends that
//! decode before they resolve dot segments, or that strip `;` parameters first (servlet containers), see dot segments
//! where RFC 3986 has none: `/public/..;/admin`, `/public/x%2F..%2F..%2Fadmin`. Elements that such a backend reads as `.`
//! or `..` are refused; other encoded slashes (`/projects/group%2Fname`) are allowed.
//!
//! Slashes are merged before dot segments are resolved, as nginx does and Envoy does not: `/a//../b` is `/b`, because
//! `/a//` and `/a/` are the same path here.

use std::borrow::Cow;

/// Why a request target has no normal form. The response is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Not a path: `*`, an authority, or empty.
    #[error("does not start with \"/\"")]
    NotAbsolute,
    /// `#`.
    #[error("contains a fragment (\"#\")")]
    Fragment,
    /// A NUL, percent-encoded or not.
    #[error("contains a NUL")]
    Nul,
    /// An element that some backends read as `.` or `..`.
    #[error("hides a dot segment behind \";\", \"%2F\" or \"%5C\"")]
    HiddenDotSegment,
}

/// The normal form of a path, with its query unchanged. Borrowed if the target is in normal form already, so that the
/// usual request needs no allocation. Idempotent.
pub fn normalize(target: &[u8]) -> Result<Cow<'_, [u8]>, PathError> {
    let (path, _) = split_query(target);
    if path.first() != Some(&b'/') {
        return Err(PathError::NotAbsolute);
    }
    if target.contains(&b'#') {
        return Err(PathError::Fragment);
    }
    let query = target.get(path.len()..).unwrap_or_default();
    let encoded = encode(path)?;
    if encoded.split(|byte| *byte == b'/').any(hides_dot_segment) {
        return Err(PathError::HiddenDotSegment);
    }
    if !is_resolved(&encoded) {
        return Ok(Cow::Owned([&resolve(&encoded), query].concat()));
    }
    Ok(match encoded {
        Cow::Borrowed(_) => Cow::Borrowed(target),
        Cow::Owned(path) => Cow::Owned([&path, query].concat()),
    })
}

/// Path and query of a request target; the query comes without its `?`.
pub fn split_query(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match target.iter().position(|byte| *byte == b'?') {
        Some(at) => (target.get(..at).unwrap_or_default(), target.get(at + 1..)),
        None => (target, None),
    }
}

/// Normalizes percent-encoding, and replaces `\` by `/`.
pub(crate) fn encode(path: &[u8]) -> Result<Cow<'_, [u8]>, PathError> {
    let Some(first) = first_unencoded(path) else { return Ok(Cow::Borrowed(path)) };
    let (kept, mut rest) = path.split_at(first);
    let mut out = Vec::with_capacity(path.len() + path.len() / 2);
    out.extend_from_slice(kept);
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match (*byte, escaped(rest)) {
            (b'%', Some(value)) => {
                rest = rest.get(2..).unwrap_or_default();
                if is_unreserved(value) { out.push(value) } else { push_escaped(&mut out, value)? }
            }
            (b'\\', _) => out.push(b'/'),
            (byte, _) if is_path_byte(byte) => out.push(byte),
            (byte, _) => push_escaped(&mut out, byte)?,
        }
    }
    Ok(Cow::Owned(out))
}

/// Position of the first byte that [`encode`] would change or refuse.
fn first_unencoded(path: &[u8]) -> Option<usize> {
    let is_encoded = |at: usize, byte: u8| {
        if byte != b'%' {
            return is_path_byte(byte);
        }
        let digits = path.get(at + 1..).unwrap_or_default();
        let is_upper = digits.iter().take(2).all(|digit| !digit.is_ascii_lowercase());
        is_upper && escaped(digits).is_some_and(|value| value != 0 && !is_unreserved(value))
    };
    path.iter().enumerate().position(|(at, byte)| !is_encoded(at, *byte))
}

/// The value of two leading hexadecimal digits.
fn escaped(digits: &[u8]) -> Option<u8> {
    let digit =
        |at: usize| char::from(*digits.get(at)?).to_digit(16).and_then(|value| u8::try_from(value).ok());
    Some((digit(0)? << 4) | digit(1)?)
}

fn push_escaped(out: &mut Vec<u8>, value: u8) -> Result<(), PathError> {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if value == 0 {
        return Err(PathError::Nul);
    }
    out.extend([b'%', DIGITS[usize::from(value >> 4)], DIGITS[usize::from(value & 15)]]);
    Ok(())
}

/// RFC 3986 §2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// RFC 3986 §3.3: `/`, and `pchar` but for `%`.
fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"/!$&'()*+,;=:@".contains(&byte)
}

/// Whether an element is not a dot segment, but becomes one if it is decoded or stripped of parameters first.
fn hides_dot_segment(element: &[u8]) -> bool {
    if !element.starts_with(b".") && !element.contains(&b'%') || is_dot_segment(element) {
        return false;
    }
    let mut rest = element;
    loop {
        let end = (0..rest.len()).find(|at| is_at(rest, *at, b"%2F") || is_at(rest, *at, b"%5C"));
        let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        let parameters = (0..part.len()).find(|at| is_at(part, *at, b";") || is_at(part, *at, b"%3B"));
        if is_dot_segment(part.get(..parameters.unwrap_or(part.len())).unwrap_or_default()) {
            return true;
        }
        match end {
            Some(end) => rest = rest.get(end + 3..).unwrap_or_default(),
            None => return false,
        }
    }
}

fn is_at(text: &[u8], at: usize, wanted: &[u8]) -> bool {
    text.get(at..).is_some_and(|rest| rest.starts_with(wanted))
}

fn is_dot_segment(element: &[u8]) -> bool {
    matches!(element, b"." | b"..")
}

/// Whether [`resolve`] would change nothing.
fn is_resolved(path: &[u8]) -> bool {
    let mut elements = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(element) = elements.next() {
        if is_dot_segment(element) || (element.is_empty() && elements.peek().is_some()) {
            return false;
        }
    }
    true
}

/// Merges slashes and resolves dot segments.
fn resolve(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut is_directory = false;
    for element in path.split(|byte| *byte == b'/').skip(1) {
        is_directory = element.is_empty() || is_dot_segment(element);
        if element == b".." {
            out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
        } else if !is_directory {
            out.push(b'/');
            out.extend_from_slice(element);
        }
    }
    if is_directory {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests;
