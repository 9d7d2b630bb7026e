//! The codec between real clients and real apps: hyper on both sides, and handwritten frames where hyper is too strict.

mod abuse;
mod apps;
mod forwarding;
mod keepalive;
mod kit;
mod lifecycle;
mod limits;
mod malformed;
mod records;
mod resend;
mod uploads;
mod writes;
