use proptest::prelude::*;

use super::*;

fn normal(target: &str) -> Result<String, PathError> {
    normalize(target.as_bytes()).map(|path| String::from_utf8(path.into_owned()).unwrap())
}

#[test]
fn each_row_of_the_table_holds() {
    for (target, expected) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("/%41%7e%2d", "/A~-"),
        ("/a%2fb%3b", "/a%2Fb%3B"),
        ("/\"<>^`{|}", "/%22%3C%3E%5E%60%7B%7C%7D"),
        ("/[a]", "/%5Ba%5D"),
        ("/ä", "/%C3%A4"),
        ("/%c3%a4", "/%C3%A4"),
        ("/%e4", "/%E4"),
        ("/100%", "/100%25"),
        ("/%zz%4", "/%25zz%254"),
        ("/%%32e%2%35", "/%252e%2525"),
        ("/%252e%252e/", "/%252e%252e/"),
        ("/a\\b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("//a///b//", "/a/b/"),
        ("/a//../b", "/b"),
        ("/a/./b/.", "/a/b/"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/..", "/"),
        ("/../../a", "/a"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/.../..a/a..", "/.../..a/a.."),
        ("/a;v=1/b;c", "/a;v=1/b;c"),
        ("/projects/group%2Fname", "/projects/group%2Fname"),
        ("/!$&'()*+,;=:@", "/!$&'()*+,;=:@"),
        ("/a//b?c//d/../%7e\"{", "/a/b?c//d/../%7e\"{"),
        ("/a?", "/a?"),
        ("/?a?b", "/?a?b"),
    ] {
        assert_eq!(normal(target).as_deref(), Ok(expected), "{target}");
    }
}

#[test]
fn a_target_with_several_meanings_is_refused() {
    for (target, error) in [
        ("", PathError::NotAbsolute),
        ("*", PathError::NotAbsolute),
        ("?a", PathError::NotAbsolute),
        ("a:443", PathError::NotAbsolute),
        ("/a#b", PathError::Fragment),
        ("/a?b#c", PathError::Fragment),
        ("/a%00", PathError::Nul),
        ("/public/..;/admin", PathError::HiddenDotSegment),
        ("/public/..;x=1/admin", PathError::HiddenDotSegment),
        ("/public/.%2e%3bx/admin", PathError::HiddenDotSegment),
        ("/public/.;/admin", PathError::HiddenDotSegment),
        ("/public/..%2fadmin", PathError::HiddenDotSegment),
        ("/public/x%2F..%2F..%2Fadmin", PathError::HiddenDotSegment),
        ("/public/x%5c..%5c..%5cadmin", PathError::HiddenDotSegment),
        ("/public%2F%2e%2e", PathError::HiddenDotSegment),
    ] {
        assert_eq!(normal(target), Err(error), "{target}");
    }
}

#[test]
fn a_path_in_normal_form_is_borrowed() {
    for target in ["/", "/a/b/c?d=%7e", "/a%2Fb/", "/a;b"] {
        assert!(matches!(normalize(target.as_bytes()), Ok(Cow::Borrowed(_))), "{target}");
    }
}

/// Targets in which everything that the normal form knows is likely.
fn target() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => prop::sample::select(vec![
            "/", "//", "\\", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", ";", "%3B", "a", "b", "%41", "%61", "%25", "%",
            "%7", "%e4", "ä", "{", "?", "%zz", "~", "%7E",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => any::<u8>().prop_map(|byte| vec![byte]),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| [b"/".to_vec(), parts.concat()].concat())
}

/// The same, byte by byte and element by element, in as many passes as the table has rows.
fn naive(target: &[u8]) -> Option<String> {
    let (path, query) = match target.iter().position(|byte| *byte == b'?') {
        Some(at) => target.split_at(at),
        None => (target, &[][..]),
    };
    if target.contains(&b'#') {
        return None;
    }
    let text = spelled_once(path);
    if text.contains("%00") || text.split('/').any(is_ambiguous) {
        return None;
    }
    let query: String = query.iter().map(|byte| char::from(*byte)).collect();
    Some(without_dots(&text) + &query)
}

/// The path with each byte in its one spelling: as itself if it may stand there, else escaped (RFC 3986 §6.2.2).
fn spelled_once(path: &[u8]) -> String {
    // Each token is a byte and whether it was escaped.
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let hex = |i: usize| path.get(i).and_then(|byte| char::from(*byte).to_digit(16));
        match (path[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                tokens.push((u8::try_from(high * 16 + low).unwrap(), true));
                at += 3;
            }
            (byte, ..) => {
                tokens.push((byte, byte == b'%'));
                at += 1;
            }
        }
    }
    tokens
        .iter()
        .map(|(byte, is_escaped)| match (*byte, *is_escaped) {
            (b'\\', false) => "/".to_owned(),
            (byte, _) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                char::from(byte).to_string()
            }
            (byte, false) if b"/!$&'()*+,;=:@".contains(&byte) => char::from(byte).to_string(),
            (byte, _) => format!("%{byte:02X}"),
        })
        .collect()
}

/// Whether a server that decodes an element, or drops what follows its `;`, would find `.` or `..` in it.
fn is_ambiguous(element: &str) -> bool {
    let early = element.replace("%2F", "/").replace("%5C", "/").replace("%3B", ";");
    let is_dot = |part: &str| matches!(part.split(';').next(), Some("." | ".."));
    (early != element && early.split('/').any(is_dot)) || (element.contains(';') && is_dot(element))
}

/// Removes dot segments and empty elements (RFC 3986 §5.2.4).
fn without_dots(text: &str) -> String {
    let mut stack: Vec<&str> = Vec::new();
    let mut ends_with_slash = false;
    for element in text.split('/').skip(1) {
        ends_with_slash = matches!(element, "" | "." | "..");
        match element {
            "" | "." => {}
            ".." => {
                stack.pop();
            }
            _ => stack.push(element),
        }
    }
    let mut out: String = stack.iter().map(|element| format!("/{element}")).collect();
    if ends_with_slash {
        out.push('/');
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_normal_form_is_what_the_naive_reading_says(target in target()) {
        let latin1 = |bytes: &[u8]| bytes.iter().map(|byte| char::from(*byte)).collect::<String>();
        prop_assert_eq!(normalize(&target).ok().map(|path| latin1(&path)), naive(&target));
    }

    #[test]
    fn the_normal_form_of_a_normal_form_is_itself(target in target()) {
        if let Ok(once) = normalize(&target) {
            prop_assert!(matches!(normalize(&once), Ok(Cow::Borrowed(twice)) if twice == &*once));
        }
    }

    #[test]
    fn no_dot_segment_no_empty_element_and_no_new_separator_survives(target in target()) {
        let Ok(normal) = normalize(&target) else { return Ok(()) };
        let (path, query) = split_query(&normal);
        let (sent, sent_query) = split_query(&target);
        prop_assert_eq!(query, sent_query);
        prop_assert!(path.starts_with(b"/") && !path.windows(2).any(|pair| pair == b"//"));
        for element in path.split(|byte| *byte == b'/') {
            prop_assert!(element != b"." && element != b"..");
        }
        let separators = |text: &[u8]| text.iter().filter(|byte| matches!(byte, b'/' | b'\\')).count();
        prop_assert!(separators(path) <= separators(sent), "an encoded slash became a separator");
    }

    #[test]
    fn spellings_of_one_path_have_one_normal_form(target in target()) {
        let (path, _) = split_query(&target);
        let Ok(normal) = normalize(path) else { return Ok(()) };
        // Slashes doubled, and each unreserved byte that belongs to no escape encoded.
        let mut respelled = Vec::new();
        let mut at = 0;
        while at < path.len() {
            let byte = path[at];
            match byte {
                b'%' if escaped(&path[at + 1..]).is_some() => {
                    respelled.extend_from_slice(&path[at..at + 3].to_ascii_lowercase());
                    at += 2;
                }
                b'%' => respelled.extend_from_slice(b"%25"),
                b'/' => respelled.extend_from_slice(b"//"),
                byte if is_unreserved(byte) => respelled.extend_from_slice(format!("%{byte:02x}").as_bytes()),
                byte => respelled.push(byte),
            }
            at += 1;
        }
        let respelled = normalize(&respelled);
        prop_assert_eq!(respelled.as_deref(), Ok(&*normal));
    }
}
