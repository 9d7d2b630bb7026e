//! Names of network interfaces.

/// Whether a text is an interface name: 1 to 15 letters, digits, `.`, `_`, `-` or `@`, not starting with `-`. A trailing
/// `+` is a wildcard, as in iptables.
pub fn is_interface(text: &str) -> bool {
    let name = text.strip_suffix('+').unwrap_or(text);
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    !name.is_empty() && text.len() <= 15 && name.bytes().all(is_known) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_could_be_an_iptables_argument_is_not_an_interface() {
        for name in ["eth0", "net1", "cali+", "eth0.100", "veth-a@b"] {
            assert!(is_interface(name), "{name}");
        }
        for text in ["", "+", "-j", "a b", "a\n", "a;b", "a,b", "interface-too-long", "\"a\"", "!a"] {
            assert!(!is_interface(text), "{text:?}");
        }
    }
}
