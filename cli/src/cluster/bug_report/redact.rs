//! Redacts private keys and tokens wherever they appear.
//!
//! It works on text, not on known fields: keys and tokens also occur in logs, annotations and messages. It prefers to
//! remove too much: an incomplete PEM block is removed to the end of the text.

/// The start of a PEM block's first line, which goes on with its label (RFC 7468 §3).
const BEGIN: &str = "-----BEGIN ";
/// The end of the first and of the last line of a block with a private key.
const PRIVATE_KEY: &str = "PRIVATE KEY-----";
const KEY_REMOVED: &str = "<private key removed>";
const TOKEN_REMOVED: &str = "<token removed>";
/// First base64 characters of a base64-encoded PEM private key: PKCS #8 (plain or encrypted), SEC 1, PKCS #1.
const ENCODED_KEYS: [&str; 4] =
    ["LS0tLS1CRUdJTiBQUklWQVRF", "LS0tLS1CRUdJTiBFTkNSWVBU", "LS0tLS1CRUdJTiBFQyBQ", "LS0tLS1CRUdJTiBSU0Eg"];
/// First characters of a JWT: `{"` in base64.
const JWT: &str = "eyJ";
/// Minimum length of a token.
const SHORTEST_TOKEN: usize = 40;

/// The text without PEM private keys, plain or in base64, and without JWTs.
pub(super) fn text(text: &str) -> String {
    words(&pem(text))
}

/// Removes PEM blocks whose label ends in `PRIVATE KEY` (RFC 7468 §10, §11, and the older labels of OpenSSL). Other
/// blocks, such as certificates, stay.
fn pem(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(BEGIN) {
        let (before, block) = rest.split_at(start);
        clean += before;
        // The label ends at the next dashes. A label with a line break is not PEM.
        let label = block.get(BEGIN.len()..).unwrap_or_default();
        let end_of_label = label.find("-----").map(|end| BEGIN.len() + end + "-----".len());
        match end_of_label.and_then(|end| block.get(..end)) {
            Some(head) if head.ends_with(PRIVATE_KEY) => {
                clean += KEY_REMOVED;
                let body = block.get(head.len()..).unwrap_or_default();
                // Without an end marker, treat the rest of the text as part of the key.
                let end = body.find(PRIVATE_KEY).map_or(body.len(), |end| end + PRIVATE_KEY.len());
                rest = body.get(end..).unwrap_or_default();
            }
            _ => {
                clean += BEGIN;
                rest = label;
            }
        }
    }
    clean + rest
}

/// Replaces words, as base64 and tokens have them, one by one.
fn words(text: &str) -> String {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || "-_.+/=".contains(c);
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_of_word) {
        let (before, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c| !is_of_word(c)).unwrap_or(word.len()));
        clean += before;
        clean += replacement(word).unwrap_or(word);
        rest = after;
    }
    clean + rest
}

/// What replaces a word: a private key in base64, as Secrets and kubeconfigs have it, or a JWT of at least
/// [`SHORTEST_TOKEN`] characters.
fn replacement(word: &str) -> Option<&'static str> {
    if ENCODED_KEYS.iter().any(|start| word.contains(start)) {
        return Some(KEY_REMOVED);
    }
    let token = word.find(JWT).and_then(|start| word.get(start..)).unwrap_or_default();
    (token.len() >= SHORTEST_TOKEN && token.matches('.').count() >= 2).then_some(TOKEN_REMOVED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_keys_go_and_certificates_stay() {
        let certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        let key = "-----BEGIN PRIVATE KEY-----\nMIIC\n-----END PRIVATE KEY-----\n";
        assert_eq!(text(&format!("{certificate}{key}x")), format!("{certificate}{KEY_REMOVED}\nx"));
        assert_eq!(
            text("\"-----BEGIN EC PRIVATE KEY-----\\nMIIC\\n-----END EC PRIVATE KEY-----\""),
            format!("\"{KEY_REMOVED}\"")
        );
        assert_eq!(text("a -----BEGIN RSA PRIVATE KEY-----\nMIIC"), format!("a {KEY_REMOVED}"));
        assert_eq!(text("-----BEGIN nothing"), "-----BEGIN nothing");
    }

    #[test]
    fn keys_in_base64_go() {
        let word = "LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCk1JSUM=";
        assert_eq!(text(&format!("tls.key: {word}\n")), format!("tls.key: {KEY_REMOVED}\n"));
        let certificate = "ca.crt: LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1JSUI=";
        assert_eq!(text(certificate), certificate);
    }

    #[test]
    fn tokens_go_and_other_words_stay() {
        let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ";
        assert_eq!(text(&format!("Bearer {token}, ok")), format!("Bearer {TOKEN_REMOVED}, ok"));
        assert_eq!(text(&format!("?token={token}")), format!("?{TOKEN_REMOVED}"));
        let plain = "registry.example/tidegate/sidecar:0.1.0 ü 10.0.0.1:15000 eyJ.a.b";
        assert_eq!(text(plain), plain);
    }
}
