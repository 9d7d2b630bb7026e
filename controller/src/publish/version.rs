//! Versions of what is sent: equal content has equal versions, at every replica and after every restart.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use prost::Message;
use tidegate_core::hex;

/// Hexadecimal digits of a version; 128 bits of SHA-256.
const VERSION_DIGITS: usize = 32;

/// A hash of a message. Ours hold lists only, no maps, so equal values are equal bytes.
pub(crate) fn version_of(message: &impl Message) -> Arc<str> {
    let mut version = hex(digest(&SHA256, &message.encode_to_vec()).as_ref());
    version.truncate(VERSION_DIGITS);
    version.into()
}
