//! The codec between real clients and real apps: hyper on both sides, and bytes by hand where hyper is too polite.

mod abuse;
mod apps;
mod forwarding;
mod kit;
mod lifecycle;
mod limits;
mod malformed;
mod records;
mod uploads;
