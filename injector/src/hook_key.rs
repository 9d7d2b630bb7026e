//! The secrets in the paths of lifecycle hooks.

use std::fmt;
use std::sync::LazyLock;

use aws_lc_rs::hmac;
use tidegate_core::hex;

/// Hexadecimal digits of a secret; 128 bits.
const SECRET_DIGITS: usize = 32;

/// The key from which secrets are derived.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct HookKey([u8; 32]);

impl HookKey {
    /// A random key for this process.
    pub(crate) fn of_process() -> Self {
        static KEY: LazyLock<HookKey> = LazyLock::new(|| HookKey(rand::random()));
        KEY.clone()
    }

    /// A fixed key.
    #[cfg(test)]
    pub(crate) fn known() -> Self {
        Self([7; 32])
    }

    /// The secret of what these parts name, none of which contains a slash; the same for the same key.
    pub(crate) fn secret(&self, parts: [&str; 4]) -> String {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        for part in parts {
            context.update(part.as_bytes());
            context.update(b"/");
        }
        let mut secret = hex(context.sign().as_ref());
        secret.truncate(SECRET_DIGITS);
        secret
    }
}

impl fmt::Debug for HookKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookKey")
    }
}
