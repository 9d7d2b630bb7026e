//! Limits the amplification by header compression: one byte can stand for a field of 4 KiB from an earlier request
//! (RFC 7541 §6.1), as often as a head has bytes.
//!
//! The app receives all of them in full. A legitimate head repeats next to nothing, because it names each field once;
//! an attack that expands 30 bytes to a head of 64 KiB consists of repetition.

use http::header::{COOKIE, HeaderMap};
use http::{HeaderName, HeaderValue};

/// Maximum bytes of names and values that repeat earlier ones in the same head.
const MAX_REPEATED: usize = 4 * 1024;

/// Whether a head or trailer section repeats more than [`MAX_REPEATED`] bytes.
pub(super) fn is_excessive(headers: &HeaderMap) -> bool {
    // Every name has one value: nothing repeats.
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
            if repeated > MAX_REPEATED {
                return true;
            }
        }
    }
    false
}

/// How many bytes of another field of this name repeat earlier ones.
fn cost(name: &HeaderName, value: &HeaderValue, is_new: bool) -> usize {
    // A cookie is joined: the app receives its name once.
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
    fn a_field_that_is_repeated_many_times_is_excessive() {
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
