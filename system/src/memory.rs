//! The allocator.

/// Returns the pages that the allocator holds free to the system. Returns whether there were any.
///
/// On its own, glibc returns only what is free at the end of a heap: one small allocation there keeps hundreds of
/// megabytes before it. `malloc_trim` searches all heaps and locks each meanwhile. Other C libraries have no such
/// function, so nothing happens there.
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
