//! What the system offers and no safe crate wraps. All our other crates forbid `unsafe`.

pub mod memory;
pub mod tcp;
