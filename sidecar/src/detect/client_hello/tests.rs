use std::sync::Arc;

use proptest::prelude::*;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use rustls_pki_types::ServerName;

use super::check::check_against_rustls;
use super::*;

/// A rustls client's ClientHello, in one record.
fn hello(
    server_name: &str,
    alpn: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(server_name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// A ClientHello with these extensions, in one record.
fn hand_made(extensions: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 1, 1, 0]);
    let mut block = Vec::new();
    for (kind, bytes) in extensions {
        block.extend(kind.to_be_bytes());
        block.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        block.extend(*bytes);
    }
    body.extend(u16::try_from(block.len()).unwrap().to_be_bytes());
    body.extend(block);
    records(&message(&body), usize::MAX)
}

fn message(body: &[u8]) -> Vec<u8> {
    let mut message = vec![CLIENT_HELLO];
    message.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    message.extend(body);
    message
}

/// A message split into records of at most this many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for fragment in message.chunks(size.min(MAX_RECORD)) {
        bytes.extend([HANDSHAKE, MAJOR_VERSION, 1]);
        bytes.extend(u16::try_from(fragment.len()).unwrap().to_be_bytes());
        bytes.extend(fragment);
    }
    bytes
}

fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        list.extend(*name);
    }
    let mut body = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
    body.extend(list);
    body
}

const BOTH: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

#[test]
fn a_hello_is_parsed_the_same_however_it_is_split_into_records_and_segments() {
    let whole = hello("API.Example.com", &["h2", "tidegate/tcp", "tidegate/h1"], BOTH);
    let expected = ClientHello {
        server_name: Some(DnsName::parse("api.example.com").unwrap()),
        alpn: Alpn { mesh: Some(MeshProtocol::Tcp), http1: false, http2: true },
        newest_version: TLS13,
    };
    assert_eq!(ClientHello::parse(&whole), Ok(Some(expected.clone())));
    let message = &whole[RECORD_HEADER..];
    for size in [message.len().div_ceil(MAX_RECORDS), 100, 512, message.len() - 1] {
        let cut = records(message, size);
        for end in 0..cut.len() {
            let parsed = if end < 2 { Ok(None) } else { ClientHello::parse(&cut[..end]) };
            assert_eq!(parsed, Ok(None), "{end} bytes of records of {size}");
        }
        assert_eq!(ClientHello::parse(&cut), Ok(Some(expected.clone())), "records of {size}");
    }
}

#[test]
fn a_hello_in_very_many_records_is_refused() {
    let whole = hello("a.example", &[], BOTH);
    assert_eq!(ClientHello::parse(&records(&whole[RECORD_HEADER..], 1)), Err(Malformed::TooManyRecords));
}

#[test]
fn a_hello_that_is_too_long_is_refused_at_its_length_field() {
    let mut bytes = vec![HANDSHAKE, MAJOR_VERSION, 1, 0x40, 0, CLIENT_HELLO];
    bytes.extend(&u32::try_from(MAX_MESSAGE - MESSAGE_HEADER + 1).unwrap().to_be_bytes()[1..]);
    assert_eq!(ClientHello::parse(&bytes), Err(Malformed::TooLong));
    assert_eq!(ClientHello::parse(&bytes[..bytes.len() - 1]), Ok(None));
}

#[test]
fn only_a_dns_name_is_a_server_name() {
    let parse = |names: &[(u8, &[u8])]| {
        ClientHello::parse(&hand_made(&[(SERVER_NAME, &sni(names))])).map(|hello| hello.unwrap().server_name)
    };
    assert_eq!(parse(&[(0, b"A.Example.")]), Ok(Some(DnsName::parse("a.example").unwrap())));
    assert_eq!(parse(&[(0, b"127.0.0.1")]), Ok(None));
    assert_eq!(parse(&[(0, b"::1")]), Ok(None));
    for names in [
        &[(0, &b"a.example\0.evil"[..])][..],
        &[(0, b"")],
        &[(0, b"*.example")],
        &[(0, b"\xff")],
        &[(1, b"a.example")],
        &[(0, b"a.example"), (0, b"b.example")],
        &[(0, b"a.example"), (1, b"b.example")],
    ] {
        assert_eq!(parse(names), Err(Malformed::ServerName), "{names:?}");
    }
    assert_eq!(parse(&[]), Err(Malformed::Syntax));
}

#[test]
fn a_repeated_extension_is_refused() {
    let name = sni(&[(0, b"a.example")]);
    let twice = hand_made(&[(SERVER_NAME, &name), (5, b""), (SERVER_NAME, &name)]);
    assert_eq!(ClientHello::parse(&twice), Err(Malformed::Extensions));
    let many: Vec<(u16, &[u8])> = (1000..1200).map(|kind| (kind, &b""[..])).collect();
    assert_eq!(ClientHello::parse(&hand_made(&many)), Err(Malformed::Extensions));
}

#[test]
fn what_follows_the_hello_in_its_record_is_refused() {
    let whole = hello("a.example", &[], BOTH);
    let mut message = whole[RECORD_HEADER..].to_vec();
    message.push(0);
    assert_eq!(ClientHello::parse(&records(&message, usize::MAX)), Err(Malformed::Trailing));
    // In a record of its own, it is not part of the ClientHello any more; rustls checks it.
    assert!(matches!(ClientHello::parse(&records(&message, message.len() - 1)), Ok(Some(_))));
}

#[test]
fn records_of_other_kinds_are_refused() {
    let whole = hello("a.example", &[], BOTH);
    let mut cut = records(&whole[RECORD_HEADER..], 100);
    for (at, byte) in [(RECORD_HEADER + 100, 0x17), (RECORD_HEADER + 101, 2), (3, 0x41)] {
        let before = std::mem::replace(&mut cut[at], byte);
        assert_eq!(ClientHello::parse(&cut), Err(Malformed::Record), "byte {at}");
        cut[at] = before;
    }
    assert_eq!(ClientHello::parse(&[HANDSHAKE, MAJOR_VERSION, 1, 0, 0]), Err(Malformed::Record));
    assert_eq!(ClientHello::parse(&[HANDSHAKE, MAJOR_VERSION, 1, 0, 4, 2]), Err(Malformed::NotClientHello));
}

#[test]
fn grease_versions_are_ignored() {
    let parse =
        |body: &[u8]| ClientHello::parse(&hand_made(&[(SUPPORTED_VERSIONS, body)])).map(Option::unwrap);
    assert_eq!(parse(&[6, 0x7a, 0x7a, 3, 4, 3, 3]).unwrap().newest_version, TLS13);
    assert_eq!(ClientHello::parse(&hand_made(&[])).unwrap().unwrap().newest_version, 0x0303);
    assert_eq!(parse(&[3, 3, 4, 3]), Err(Malformed::Syntax));
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = ClientHello::parse(&bytes);
        let _ = super::super::first_bytes(&[&[HANDSHAKE, MAJOR_VERSION], &bytes[..]].concat());
    }

    #[test]
    fn rustls_reads_the_same_from_a_hello_that_both_accept(
        host in "[a-zA-Z0-9]{1,10}(\\.[a-z0-9]{1,10}){0,3}\\.[a-z]{2,4}",
        alpn in prop::collection::vec(prop::sample::select(vec!["h2", "http/1.1", "tidegate/h1", "tidegate/h2", "tidegate/tcp", "x"]), 0..5),
        old: bool,
        size in 40_usize..3000,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let versions = if old { &BOTH[1..] } else { BOTH };
        let mut message = hello(&host, &alpn, versions).split_off(RECORD_HEADER);
        for (index, mask) in &flips {
            let at = index.index(message.len());
            message[at] ^= mask;
        }
        let bytes = records(&message, size);
        if flips.is_empty() {
            // Both must accept it, so that the check below compares something.
            prop_assert!(matches!(ClientHello::parse(&bytes), Ok(Some(_))) && check::by_rustls(&bytes).is_some());
        }
        check_against_rustls(&bytes);
    }
}
