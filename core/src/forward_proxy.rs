//! HTTP forward proxies: what is sent to them, what they answer, and which traffic goes through them.
//!
//! [`connect`] is the codec of `CONNECT`, for every client of ours that opens a tunnel. [`EgressProxyRule`] is what an
//! EgressProxy means to a workload; [`NoProxy`] is its list of exceptions.

pub mod connect;
mod credentials;
mod no_proxy;
mod rule;

pub use self::credentials::ProxyCredentials;
pub use self::no_proxy::{InvalidNoProxy, NoProxy};
pub use self::rule::{EgressProxyRule, ForwardedHeaders, ProxySettings, ProxyTarget};
