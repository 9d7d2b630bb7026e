//! The inbound policy of one workload, and its evaluator.
//!
//! A policy is compiled by the controller, travels whole, and takes effect whole. It is asked three times about a
//! connection, each time with more in hand:
//!
//! 1. [`InboundPolicy::admit`]: an address and a port, before a byte is read;
//! 2. [`InboundPolicy::open`]: the first bytes, which choose how the connection goes on ([`Terms`]);
//! 3. [`InboundPolicy::authorize`]: the verified client certificate, if there is one.
//!
//! Rules are grants. What no rule grants is refused, with the reason that came closest to a grant.

mod evaluate;
mod model;
#[cfg(test)]
mod naive;

pub use evaluate::{Decision, Denial, Grant, MeshProtocol, Opening, Reason, Session, Terms};
pub use model::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule,
    PortPolicy, RuleState, Sources,
};
