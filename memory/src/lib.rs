//! The one function of the C library for which there is no safe crate. Everything else of ours forbids `unsafe`.

/// Gives the pages that the allocator keeps free back to the system; whether there were any.
///
/// glibc gives back on its own only what is free at the end of a heap: one small piece there keeps hundreds of megabytes
/// before it. This looks through all heaps, each locked meanwhile. Other C libraries have no such function, and nothing
/// is done there.
pub fn trim() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    return malloc_trim(0) == 1;
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(
    unsafe_code,
    reason = "a declaration: malloc_trim(3) takes a number and may be called by any thread at any time"
)]
unsafe extern "C" {
    safe fn malloc_trim(pad: usize) -> std::ffi::c_int;
}
