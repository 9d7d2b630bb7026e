//! Facts about a message that several of its fields decide together: framing, host, and the end of the connection.

use httparse::Header;

use super::{Framing, HeadError, MAX_FIELDS, upgrade_protocols};
use crate::http::headers::{Field, classify, is_protected, tokens};
use crate::http::request::Version;

/// Maximum number of options in `connection` fields: each is compared with every other field's name.
const MAX_CONNECTION_OPTIONS: usize = 32;

/// Facts about framing and connection, collected from the fields.
#[derive(Default)]
pub(super) struct HeadFacts<'h> {
    pub(super) host: HostField<'h>,
    /// The one length that all `content-length` fields agree on.
    content_length: Option<u64>,
    /// Number of `transfer-encoding` fields.
    transfer_encodings: usize,
    /// Whether the last of them is exactly `chunked`.
    is_chunked: bool,
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    /// Whether `connection` has the option `upgrade`.
    pub(super) connection_upgrade: bool,
    /// Whether `upgrade` names a protocol that may be tunnelled.
    pub(super) upgrade: bool,
    pub(super) expects_continue: bool,
    /// Whether `connection` names fields that end here with it.
    pub(super) names_fields: bool,
    connection_options: usize,
}

/// The `host` fields of a head.
#[derive(Clone, Copy, Default)]
pub(super) enum HostField<'h> {
    #[default]
    None,
    One(&'h [u8]),
    Several,
}

impl<'h> HeadFacts<'h> {
    /// Classifies each field into `kinds`, and collects what it says.
    ///
    /// # Errors
    ///
    /// As soon as a field is ambiguous whatever the others say.
    pub(super) fn gather(
        &mut self,
        lines: &'h [Header<'h>],
        kinds: &'h mut [Field; MAX_FIELDS],
    ) -> Result<&'h [Field], HeadError> {
        for (line, kind) in lines.iter().zip(kinds.iter_mut()) {
            *kind = classify(line.name.as_bytes());
            match *kind {
                Field::Host => {
                    self.host = if let HostField::None = self.host {
                        HostField::One(line.value)
                    } else {
                        HostField::Several
                    };
                }
                Field::ContentLength => self.content_length(line.value)?,
                Field::TransferEncoding => {
                    self.transfer_encodings += 1;
                    self.is_chunked = line.value.eq_ignore_ascii_case(b"chunked");
                }
                Field::Connection => self.connection(line.value)?,
                Field::Upgrade => self.upgrade |= upgrade_protocols(line.value).next().is_some(),
                Field::Expect => self.expects_continue |= line.value.eq_ignore_ascii_case(b"100-continue"),
                _ => {}
            }
        }
        let kinds: &'h [Field; MAX_FIELDS] = kinds;
        kinds.get(..lines.len()).ok_or(HeadError::TooManyFields)
    }

    /// Digits only; a list or repeated fields only if all values are the same (RFC 9112 §6.3).
    fn content_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for item in value.split(|byte| *byte == b',') {
            let item = if value.len() == item.len() { item } else { item.trim_ascii() };
            if item.is_empty() || item.len() > 19 || !item.iter().all(u8::is_ascii_digit) {
                return Err(HeadError::ContentLength);
            }
            // 19 digits cannot overflow.
            let length = item.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
            if self.content_length.is_some_and(|before| before != length) {
                return Err(HeadError::ContentLength);
            }
            self.content_length = Some(length);
        }
        Ok(())
    }

    /// The options of one `connection` field (RFC 9110 §7.6.1).
    fn connection(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for option in tokens(value) {
            self.connection_options += 1;
            if self.connection_options > MAX_CONNECTION_OPTIONS {
                return Err(HeadError::ConnectionOptions);
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.connection_upgrade = true;
            } else if !is_protected(option) {
                self.names_fields = true;
            }
        }
        Ok(())
    }

    /// How the body ends; `None` if neither field says so. Both at once are refused, which RFC 9112 §6.3 allows: two
    /// parsers could pick different ones.
    pub(super) fn framing(&self, version: Version) -> Result<Option<Framing>, HeadError> {
        match (self.transfer_encodings, self.content_length) {
            (0, length) => Ok(length.map(Framing::Length)),
            (_, Some(_)) => Err(HeadError::TwoFramings),
            (1, None) if self.is_chunked && version == Version::Http11 => Ok(Some(Framing::Chunked)),
            _ => Err(HeadError::TransferEncoding),
        }
    }
}
