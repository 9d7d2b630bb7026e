//! Flow of bodies over HTTP/2, towards clients and upstreams alike: how much a peer may send before it is taken
//! ([`windows`]), how bodies go into streams ([`send`]), and how much of them waits in a connection ([`outbox`]).

pub(crate) mod outbox;
pub(crate) mod send;
pub(crate) mod windows;

/// What h2 buffers of a connection's bodies, in bytes for each stream.
pub(crate) const SEND_BUFFER: usize = 32 * 1024;
