//! HTTP forward proxies: what is sent to them, what they answer, and which traffic goes through them.

pub mod connect;
mod credentials;
mod no_proxy;

pub use self::credentials::ProxyCredentials;
pub use self::no_proxy::{InvalidNoProxy, NoProxy};
