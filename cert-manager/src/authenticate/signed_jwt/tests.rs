use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, encode};
use serde_json::{Value, json};
use tidegate_core::contract::names::TOKEN_AUDIENCE;

use super::*;
use crate::testing::TokenSigner;

fn claims() -> Value {
    json!({
        "aud": ["tidegate-ca"],
        "exp": jsonwebtoken::get_current_timestamp() + 600,
        "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:httpbin:httpbin",
        "kubernetes.io": {
            "namespace": "httpbin",
            "serviceaccount": {"name": "httpbin", "uid": "1"},
            "pod": {"name": "httpbin-1", "uid": "2"},
        },
    })
}

fn with(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Value {
    let mut claims = claims();
    change(claims.as_object_mut().unwrap());
    claims
}

fn options(files: Vec<PathBuf>) -> SignedJwtOptions {
    SignedJwtOptions {
        key_files: files,
        audience: TOKEN_AUDIENCE.to_owned(),
        issuer: None,
        trust_domain: TrustDomain::default(),
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// An authenticator that knows one ES256 key.
fn one_key() -> (tempfile::TempDir, TokenSigner, SignedJwt) {
    let dir = tempfile::tempdir().unwrap();
    let signer = TokenSigner::new(Algorithm::ES256);
    let file = write(dir.path(), "keys.pem", &signer.key.public_key_pem());
    let authenticator = SignedJwt::open(options(vec![file])).unwrap();
    (dir, signer, authenticator)
}

#[test]
fn a_token_of_each_allowed_algorithm_proves_its_service_account() {
    let dir = tempfile::tempdir().unwrap();
    let signers = [Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA].map(TokenSigner::new);
    let pem: String = signers.iter().map(|signer| signer.key.public_key_pem()).collect();
    let authenticator = SignedJwt::open(options(vec![write(dir.path(), "keys.pem", &pem)])).unwrap();
    for signer in &signers {
        let caller = authenticator.verify(&signer.sign(&claims())).unwrap();
        assert_eq!(caller.identity.spiffe_uri(), "spiffe://cluster.local/ns/httpbin/sa/httpbin");
        assert_eq!(caller.pod, Some(PodReference { name: "httpbin-1".to_owned(), uid: "2".to_owned() }));
    }
}

#[test]
fn either_claim_alone_names_the_service_account() {
    let (_dir, signer, authenticator) = one_key();
    for claim in ["sub", "kubernetes.io"] {
        let token = signer.sign(&with(|claims| drop(claims.remove(claim))));
        let caller = authenticator.verify(&token).unwrap();
        assert_eq!(caller.identity.dns_name(), "httpbin.httpbin.cluster.local", "without {claim}");
    }
}

#[test]
fn tokens_that_prove_nothing_are_refused_with_the_reason() {
    let (_dir, signer, authenticator) = one_key();
    let now = jsonwebtoken::get_current_timestamp();
    let set = |name: &'static str, value: Value| with(|claims| drop(claims.insert(name.to_owned(), value)));
    let without = |name: &'static str| with(|claims| drop(claims.remove(name)));
    let audience = || AuthError::Audience(TOKEN_AUDIENCE.to_owned());
    let table = [
        (set("aud", json!("https://kubernetes.default.svc")), audience()),
        (set("aud", json!(["a", "b"])), audience()),
        (set("aud", json!([])), audience()),
        (without("aud"), AuthError::Claim("aud")),
        (set("aud", json!(7)), AuthError::Claim("aud")),
        (set("exp", json!(now - 60)), AuthError::Expired),
        (set("exp", json!(0)), AuthError::Expired),
        (without("exp"), AuthError::Claim("exp")),
        (set("exp", json!("tomorrow")), AuthError::Claim("exp")),
        (set("exp", json!(-1)), AuthError::Claim("exp")),
        (set("nbf", json!(now + 600)), AuthError::NotYetValid),
        (set("sub", json!("httpbin")), AuthError::Claim("sub")),
        (set("sub", json!("system:serviceaccount:httpbin")), AuthError::Claim("sub")),
        (set("sub", json!("system:serviceaccount:a:b:c")), AuthError::Claim("sub")),
        (set("sub", json!("system:serviceaccount:bank:vault")), AuthError::Contradiction),
        (
            with(|claims| {
                claims.remove("sub");
                claims.remove("kubernetes.io");
            }),
            AuthError::Claim("sub"),
        ),
    ];
    for (claims, expected) in table {
        assert_eq!(authenticator.verify(&signer.sign(&claims)), Err(expected), "{claims}");
    }
    for sub in ["system:serviceaccount:A:b", "system:serviceaccount:a.b:c", "system:serviceaccount::"] {
        let claims = with(|claims| {
            claims.remove("kubernetes.io");
            claims.insert("sub".to_owned(), json!(sub));
        });
        assert!(matches!(authenticator.verify(&signer.sign(&claims)), Err(AuthError::Identity(_))), "{sub}");
    }
}

#[test]
fn unsigned_tokens_and_those_signed_with_the_public_key_are_refused() {
    let (_dir, signer, authenticator) = one_key();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for alg in ["none", "None", "", "ES257"] {
        for signature in ["", "AAAA"] {
            let token = format!("{}.{}.{signature}", part(json!({"alg": alg})), part(claims()));
            assert_eq!(authenticator.verify(&token), Err(AuthError::Algorithm), "{alg}");
        }
    }
    // An HMAC keyed by public data, CVE-2016-5431's trick.
    let pem = signer.key.public_key_pem();
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        let key = EncodingKey::from_secret(pem.as_bytes());
        let token = encode(&Header::new(algorithm), &claims(), &key).unwrap();
        assert_eq!(authenticator.verify(&token), Err(AuthError::Algorithm));
    }
}

#[test]
fn a_token_of_another_key_or_altered_is_refused() {
    let (_dir, signer, authenticator) = one_key();
    for other in [Algorithm::ES256, Algorithm::RS256, Algorithm::EdDSA] {
        let token = TokenSigner::new(other).sign(&claims());
        assert_eq!(authenticator.verify(&token), Err(AuthError::Signature), "{other:?}");
    }
    let token = signer.sign(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();
    let vault = with(|claims| {
        claims.remove("kubernetes.io");
        claims.insert("sub".to_owned(), json!("system:serviceaccount:bank:vault"));
    });
    let forged = format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode(vault.to_string()));
    assert_eq!(authenticator.verify(&forged), Err(AuthError::Signature));
}

#[test]
fn text_that_is_not_a_token_is_refused() {
    let (_dir, signer, authenticator) = one_key();
    let token = signer.sign(&claims());
    for text in ["", ".", "..", "a.b.c", "a.b", &format!("{token}.x"), &token.replace('.', "")] {
        assert!(matches!(authenticator.verify(text), Err(AuthError::Malformed)), "{text}");
    }
    let long = "a".repeat(MAX_TOKEN_BYTES + 1);
    assert_eq!(authenticator.verify(&long), Err(AuthError::TooLong(MAX_TOKEN_BYTES)));
    let mut header = Header::new(Algorithm::ES256);
    header.crit = Some(vec!["exp".to_owned()]);
    assert_eq!(authenticator.verify(&signer.sign_with(header, &claims())), Err(AuthError::Malformed));
}

#[test]
fn a_wanted_issuer_is_demanded() {
    let (dir, signer, _) = one_key();
    let mut options = options(vec![dir.path().join("keys.pem")]);
    options.issuer = Some("https://kubernetes.default.svc".to_owned());
    let authenticator = SignedJwt::open(options).unwrap();
    assert!(authenticator.verify(&signer.sign(&claims())).is_ok());
    let other = with(|claims| drop(claims.insert("iss".to_owned(), json!("https://evil.example"))));
    assert!(matches!(authenticator.verify(&signer.sign(&other)), Err(AuthError::Issuer(_))));
    let none = with(|claims| drop(claims.remove("iss")));
    assert_eq!(authenticator.verify(&signer.sign(&none)), Err(AuthError::Claim("iss")));
}

fn jwks(signer: &TokenSigner, id: &str) -> Value {
    let raw = signer.key.public_key_raw();
    json!({"keys": [{
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": id,
        "x": URL_SAFE_NO_PAD.encode(&raw[1..33]), "y": URL_SAFE_NO_PAD.encode(&raw[33..]),
    }]})
}

#[test]
fn keys_come_from_a_jwks_too_and_are_chosen_by_their_id() {
    let dir = tempfile::tempdir().unwrap();
    let signer = TokenSigner::new(Algorithm::ES256);
    let file = write(dir.path(), "jwks.json", &jwks(&signer, "one").to_string());
    let authenticator = SignedJwt::open(options(vec![file])).unwrap();
    let named = |id: &str| Header { kid: Some(id.to_owned()), ..Header::new(Algorithm::ES256) };
    assert!(authenticator.verify(&signer.sign_with(named("one"), &claims())).is_ok());
    assert!(authenticator.verify(&signer.sign(&claims())).is_ok());
    let other = signer.sign_with(named("two"), &claims());
    assert_eq!(authenticator.verify(&other), Err(AuthError::Signature));
}

#[test]
fn files_without_a_usable_key_are_an_error_that_names_them() {
    let dir = tempfile::tempdir().unwrap();
    let rsa_1024 =
        crate::testing::openssl(dir.path(), "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out k");
    drop(rsa_1024);
    let weak = String::from_utf8(crate::testing::openssl(dir.path(), "pkey -in k -pubout")).unwrap();
    for (text, problem) in [
        ("", "holds no public key"),
        ("{\"keys\": []}", "holds no public key"),
        ("{", "is not a JWKS"),
        ("{\"keys\": [{\"kty\": \"oct\", \"k\": \"AAAA\"}]}", "symmetric"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "key 1: is not a public key"),
        (weak.as_str(), "1024 bits"),
    ] {
        let error = SignedJwt::open(options(vec![write(dir.path(), "keys", text)])).unwrap_err().to_string();
        assert!(error.contains("/keys: ") && error.contains(problem), "{error}");
    }
    assert!(SignedJwt::open(options(vec![dir.path().join("absent")])).is_err());
}

#[test]
fn a_changed_file_counts_at_once_and_a_broken_one_does_not() {
    let (dir, old, authenticator) = one_key();
    let new = TokenSigner::new(Algorithm::ES256);
    let path = dir.path().join("keys.pem");
    assert_eq!(authenticator.verify(&new.sign(&claims())), Err(AuthError::Signature));

    std::fs::write(dir.path().join("next.pem"), new.key.public_key_pem()).unwrap();
    std::fs::rename(dir.path().join("next.pem"), &path).unwrap();
    assert!(authenticator.verify(&new.sign(&claims())).is_ok());
    assert_eq!(authenticator.verify(&old.sign(&claims())), Err(AuthError::Signature));

    std::fs::write(&path, "broken").unwrap();
    authenticator.keys.afresh();
    assert!(authenticator.verify(&new.sign(&claims())).is_ok());
    std::fs::remove_file(&path).unwrap();
    authenticator.keys.afresh();
    assert!(authenticator.verify(&new.sign(&claims())).is_ok());
}

#[test]
fn a_refusal_never_holds_the_token() {
    let (_dir, _, authenticator) = one_key();
    let token = TokenSigner::new(Algorithm::ES256).sign(&claims());
    let error = authenticator.verify(&token).unwrap_err();
    for part in token.split('.') {
        assert!(!format!("{error:?} {error}").contains(part));
    }
}
