//! What the field compression of HTTP/2 multiplies: a byte can stand for a field of 4 KiB that an earlier request named
//! (RFC 7541 §6.1), as often as a head has bytes.
//!
//! Each app gets all of them written out. An honest head names each field once: what it repeats is next to nothing,
//! while 30 bytes that grow to a whole head of 64 KiB do nothing else.

use http::header::{COOKIE, HeaderMap};
use http::{HeaderName, HeaderValue};

/// Bytes of names and values that were there before in the same head.
const MOST_REPEATED: usize = 4 * 1024;

/// Whether a head or a trailer section repeats more than 4 KiB of itself.
pub(super) fn is_excessive(headers: &HeaderMap) -> bool {
    // Each value has a place of its own beside the first of its name.
    if headers.len() == headers.keys_len() {
        return false;
    }
    let mut repeated = 0;
    let mut seen = std::collections::HashSet::new();
    for name in headers.keys() {
        let mut values = headers.get_all(name).iter();
        let Some(first) = values.next() else { continue };
        seen.clear();
        seen.insert(first.as_bytes());
        for value in values {
            repeated += cost(name, value, seen.insert(value.as_bytes()));
            if repeated > MOST_REPEATED {
                return true;
            }
        }
    }
    false
}

/// Bytes of one more field of this name that were there before.
fn cost(name: &HeaderName, value: &HeaderValue, is_new: bool) -> usize {
    // A cookie's name goes to the app once, whatever the number of its crumbs.
    let name = if *name == COOKIE { 0 } else { name.as_str().len() };
    if is_new { name } else { name + value.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: impl IntoIterator<Item = (&'static str, String)>) -> HeaderMap {
        let mut head = HeaderMap::new();
        for (name, value) in fields {
            head.append(HeaderName::from_static(name), HeaderValue::try_from(value).unwrap());
        }
        head
    }

    #[test]
    fn a_field_that_is_named_again_and_again_is_too_much() {
        let value = "v".repeat(1000);
        assert!(!is_excessive(&head((0..5).map(|_| ("x-a", value.clone())))));
        assert!(is_excessive(&head((0..6).map(|_| ("x-a", value.clone())))));
        let name = "n".repeat(2000);
        let mut head = HeaderMap::new();
        for number in 0..4 {
            head.append(HeaderName::try_from(&name).unwrap(), HeaderValue::from(number));
        }
        assert!(is_excessive(&head), "a long name with other values");
    }

    #[test]
    fn an_honest_head_is_not_however_large() {
        let large = "v".repeat(60_000);
        assert!(!is_excessive(&head([("authorization", large.clone()), ("x-b", large)])));
        assert!(!is_excessive(&head((0..1500).map(|number| ("cookie", format!("crumb-{number}=1"))))));
        assert!(!is_excessive(&head((0..100).map(|_| ("accept", "text/html".to_owned())))));
    }
}
