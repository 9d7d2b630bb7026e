//! The inbound policy of one workload, and its evaluator.
//!
//! The controller compiles a policy, sends it as one resource, and it takes effect as a whole. It is evaluated in three
//! phases, each of which knows more of the connection:
//!
//! 1. [`InboundPolicy::admit`]: address and port, before a byte is read;
//! 2. [`InboundPolicy::open`]: the first bytes, which decide how the connection is served ([`Terms`]);
//! 3. [`InboundPolicy::authorize`]: the verified client certificate, if there is one.
//!
//! Rules are grants. A connection that no rule grants is refused, with the reason of the rule that came closest.

mod evaluate;
mod model;
#[cfg(test)]
mod naive;

pub use evaluate::{Decision, Denial, Grant, MeshProtocol, Opening, Reason, Session, Terms};
pub use model::{
    ActiveIngressRule, AppProtocol, ClientCheck, InboundPolicy, IngressRule, IngressTransport, MeshRule,
    PortPolicy, RuleState, Sources,
};
