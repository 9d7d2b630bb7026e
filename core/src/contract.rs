//! What the parts of an installation must spell alike: ports, flags, variables, labels, annotations and names of objects.
//!
//! Injector, controller, sidecar, cert-manager and command line take each of them from here. Whatever cannot import it,
//! the charts' templates and the docs, is compared with these files by `tests/tests/contract.rs`, which also finds a
//! second spelling in the source. It reads each constant as one line, `pub const NAME: TYPE = LITERAL;`.

pub mod annotations;
pub mod environment;
pub mod flags;
pub mod labels;
pub mod names;
pub mod ports;
