//! Certificates for tests of the webhook.
