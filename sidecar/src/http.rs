//! HTTP, both codecs. Policy, header rules and logs see one request type and never the codec.
//!
//! `h1` is a path of our own, one task that drives both sides; `h2` is hyper's.
