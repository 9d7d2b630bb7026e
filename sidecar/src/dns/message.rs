//! Messages of DNS (RFC 1035 §4): a query for the addresses of one name, and what a response says about it.
//!
//! Only what an answer needs is read: the header, the question, and the records of the answer section, in which aliases lead from
//! the name to its addresses. Every length is checked, a compressed name only points backwards, and the work is linear in the bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tidegate_core::DnsName;

/// Bytes of a header.
const HEADER: usize = 12;
/// The size of responses over UDP that queries announce: what passes every network unfragmented (DNS flag day 2020).
pub(super) const MOST_UDP: u16 = 1232;
/// The most bytes of a name (RFC 1035 §2.3.4).
const MOST_NAME: usize = 255;

const CLASS_IN: u16 = 1;
const TYPE_CNAME: u16 = 5;
const TYPE_OPT: u16 = 41;

const IS_RESPONSE: u8 = 0x80;
const IS_TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;

/// The addresses of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressType {
    /// `A`.
    V4,
    /// `AAAA`.
    V6,
}

/// What a response says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// The addresses, in the order of the records, and the least TTL on the way to them in seconds. There may be none.
    Addresses(Vec<IpAddr>, u32),
    /// The name does not exist.
    NoSuchName,
    /// It does not fit: the query has to be sent again over TCP.
    Truncated,
    /// The server cannot answer: its response code.
    Failure(u8),
}

/// Bytes that are not a response to the query.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum MessageError {
    /// Of another query, or invented.
    #[error("a response to another query")]
    Other,
    /// A length, a name or a record is wrong.
    #[error("a malformed response")]
    Malformed,
}

impl AddressType {
    fn code(self) -> u16 {
        match self {
            Self::V4 => 1,
            Self::V6 => 28,
        }
    }
}

/// A query with this number.
pub(super) fn query(id: u16, name: &DnsName, wanted: AddressType) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + MOST_NAME);
    bytes.extend(id.to_be_bytes());
    // One question, and one additional record.
    bytes.extend([RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    bytes.extend(question(name, wanted));
    // EDNS (RFC 6891 §6.1): the size of responses that are received.
    bytes.push(0);
    bytes.extend(TYPE_OPT.to_be_bytes());
    bytes.extend(MOST_UDP.to_be_bytes());
    bytes.extend([0; 6]);
    bytes
}

fn question(name: &DnsName, wanted: AddressType) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.as_str().len() + 6);
    for label in name.as_str().split('.') {
        // A label has at most 63 bytes.
        bytes.push(u8::try_from(label.len()).unwrap_or(0));
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes.extend(wanted.code().to_be_bytes());
    bytes.extend(CLASS_IN.to_be_bytes());
    bytes
}

/// What these bytes say in response to a query.
pub(super) fn response(
    bytes: &[u8],
    id: u16,
    name: &DnsName,
    wanted: AddressType,
) -> Result<Response, MessageError> {
    let mut reader = MessageReader { bytes, at: 0 };
    let header = reader.take(HEADER)?;
    let [id_high, id_low, flags, code, ..] = *header else { return Err(MessageError::Malformed) };
    if [id_high, id_low] != id.to_be_bytes() || flags & IS_RESPONSE == 0 {
        return Err(MessageError::Other);
    }
    let count =
        |at: usize| header.get(at..at + 2).and_then(|two| two.try_into().ok()).map_or(0, u16::from_be_bytes);
    let asked = question(name, wanted);
    if count(4) != 1 || !reader.take(asked.len())?.eq_ignore_ascii_case(&asked) {
        return Err(MessageError::Other);
    }
    match code & 0x0f {
        _ if flags & IS_TRUNCATED != 0 => return Ok(Response::Truncated),
        0 => {}
        3 => return Ok(Response::NoSuchName),
        code => return Ok(Response::Failure(code)),
    }
    let mut owner = Vec::new();
    let mut current = wire_name(&asked);
    let (mut addresses, mut ttl) = (Vec::new(), u32::MAX);
    for _ in 0..count(6) {
        reader.name(&mut owner)?;
        let [kind, class] = [reader.number()?, reader.number()?];
        let age = (u32::from(reader.number()?) << 16) | u32::from(reader.number()?);
        let length = usize::from(reader.number()?);
        let data = reader.at;
        let value = reader.take(length)?;
        if class != CLASS_IN || owner != current {
            continue;
        }
        if kind == TYPE_CNAME {
            MessageReader { bytes, at: data }.name(&mut current)?;
        } else if kind == wanted.code() {
            addresses.push(address(value).ok_or(MessageError::Malformed)?);
        } else {
            continue;
        }
        ttl = ttl.min(age);
    }
    Ok(Response::Addresses(addresses, ttl))
}

/// The name at the beginning of a question, as [`MessageReader::name`] reads it.
fn wire_name(question: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    let _ = MessageReader { bytes: question, at: 0 }.name(&mut name);
    name
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
        16 => <[u8; 16]>::try_from(value).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

/// Reads a message from front to back.
struct MessageReader<'m> {
    bytes: &'m [u8],
    at: usize,
}

impl<'m> MessageReader<'m> {
    fn take(&mut self, count: usize) -> Result<&'m [u8], MessageError> {
        let taken = self.at.checked_add(count).and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or(MessageError::Malformed)?;
        self.at += count;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, MessageError> {
        let two = self.take(2)?.try_into().map_err(|_| MessageError::Malformed)?;
        Ok(u16::from_be_bytes(two))
    }

    /// Reads a name into `name`: its labels in lower case, each behind its length.
    fn name(&mut self, name: &mut Vec<u8>) -> Result<(), MessageError> {
        name.clear();
        // Where the part that is being read begins; a pointer leads before it, so that each is followed once at most.
        let mut start = self.at;
        let mut part = MessageReader { bytes: self.bytes, at: self.at };
        let mut is_elsewhere = false;
        loop {
            let length = *part.take(1)?.first().ok_or(MessageError::Malformed)?;
            match length {
                0 => break,
                1..=63 => {
                    if name.len() + usize::from(length) + 2 > MOST_NAME {
                        return Err(MessageError::Malformed);
                    }
                    name.push(length);
                    name.extend(part.take(length.into())?.iter().map(u8::to_ascii_lowercase));
                }
                0xc0.. => {
                    let low = *part.take(1)?.first().ok_or(MessageError::Malformed)?;
                    let target = usize::from(length & 0x3f) << 8 | usize::from(low);
                    if target >= start {
                        return Err(MessageError::Malformed);
                    }
                    if !std::mem::replace(&mut is_elsewhere, true) {
                        self.at = part.at;
                    }
                    (start, part.at) = (target, target);
                }
                _ => return Err(MessageError::Malformed),
            }
        }
        if !is_elsewhere {
            self.at = part.at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> DnsName {
        DnsName::parse(text).unwrap()
    }

    /// A response with number 7 to the question for `a.example`, with `flags` and these records.
    fn message(flags: [u8; 2], records: &[&[u8]]) -> Vec<u8> {
        let mut bytes =
            vec![0, 7, flags[0], flags[1], 0, 1, 0, u8::try_from(records.len()).unwrap(), 0, 0, 0, 0];
        bytes.extend(question(&name("a.example"), AddressType::V4));
        bytes.extend(records.concat());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Response, MessageError> {
        response(bytes, 7, &name("a.example"), AddressType::V4)
    }

    /// A record of the question's name.
    fn record(kind: u8, ttl: u8, value: &[u8]) -> Vec<u8> {
        [&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, ttl, 0, u8::try_from(value.len()).unwrap()], value].concat()
    }

    const OK: [u8; 2] = [0x81, 0x80];

    #[test]
    fn a_query_is_one_question_with_the_size_of_responses() {
        let expected =
            b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x07example\x00\x00\x1c\x00\x01\
                         \x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x00";
        assert_eq!(query(7, &name("A.example"), AddressType::V6), expected);
    }

    #[test]
    fn addresses_of_the_name_and_of_what_it_is_an_alias_of_are_found_with_the_least_ttl() {
        let one = record(1, 60, &[192, 0, 2, 1]);
        let found = |addresses: &[&str], ttl| {
            Ok(Response::Addresses(addresses.iter().map(|ip| ip.parse().unwrap()).collect(), ttl))
        };
        assert_eq!(
            read(&message(OK, &[&one, &record(1, 9, &[192, 0, 2, 2])])),
            found(&["192.0.2.1", "192.0.2.2"], 9)
        );
        // b.example, whose last label is the question's.
        let alias = record(5, 5, b"\x01B\xc0\x0e");
        let of_alias = [b"\x01b\xc0\x0e", &record(1, 60, &[192, 0, 2, 3])[2..]].concat();
        assert_eq!(read(&message(OK, &[&alias, &of_alias])), found(&["192.0.2.3"], 5));
        let of_another = [b"\x01c\xc0\x0e", &one[2..]].concat();
        assert_eq!(read(&message(OK, &[&of_another])), found(&[], u32::MAX));
        // A circle of aliases has no address.
        assert_eq!(read(&message(OK, &[&record(5, 5, &[0xc0, 12])])), found(&[], 5));
        assert_eq!(read(&message(OK, &[&record(28, 5, &[0; 16])])), found(&[], u32::MAX));
    }

    #[test]
    fn what_is_not_a_response_to_the_query_is_refused() {
        let good = message(OK, &[&record(1, 60, &[192, 0, 2, 1])]);
        for at in [1, 2, 5, HEADER + 1] {
            let mut other = good.clone();
            other[at] ^= if at == 2 { IS_RESPONSE } else { 3 };
            assert_eq!(read(&other), Err(MessageError::Other), "{at}");
        }
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err(), "{length}");
        }
        assert_eq!(read(&message([0x81, 0x83], &[])), Ok(Response::NoSuchName));
        assert_eq!(read(&message([0x81, 0x82], &[])), Ok(Response::Failure(2)));
        assert_eq!(read(&message([0x83, 0x80], &[])), Ok(Response::Truncated));
        // Pointers to themselves, forwards, and in a circle; a label of a reserved kind; three bytes of an address.
        let at = u8::try_from(message(OK, &[]).len()).unwrap();
        for owner in [&[0xc0, at][..], &[0xc0, at + 2], &[1, b'a', 0xc0, at], &[0x80, 0]] {
            let record = [owner, &record(1, 60, &[192, 0, 2, 1])[2..]].concat();
            assert_eq!(read(&message(OK, &[&record])), Err(MessageError::Malformed), "{owner:?}");
        }
        assert_eq!(read(&message(OK, &[&record(1, 60, &[192, 0, 2])])), Err(MessageError::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), is_addressed: bool) {
            let mut bytes = bytes;
            if is_addressed {
                let start = message(OK, &[]);
                bytes.splice(0..0, start);
                bytes[7] = 200;
            }
            let _ = read(&bytes);
        }
    }
}
