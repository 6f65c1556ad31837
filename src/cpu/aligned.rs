//! Memory for weights: cache-line aligned and on huge pages where the system has them.

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Zeroed bytes at a multiple of 2 MiB for large buffers, of 64 bytes for small ones.
///
/// A decode step reads every weight once, a hundred megabytes in a few milliseconds. On 4 KiB
/// pages that is a page walk per 64 cache lines. The advice comes before the first touch, and
/// zeroes come from the system: what is never written takes no memory.
pub(crate) struct AlignedBytes {
    /// What was allocated, and at which alignment its use begins.
    base: *mut u8,
    layout: Layout,
    start: *mut u8,
    len: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for AlignedBytes {}
// SAFETY: shared references only read.
unsafe impl Sync for AlignedBytes {}

const HUGE_PAGE: usize = 2 << 20;

impl AlignedBytes {
    /// `len` zero bytes.
    ///
    /// # Panics
    /// If the system refuses them, as for any allocation in Rust.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|| panic!("{len} bytes of memory were refused"))
    }

    /// As [`AlignedBytes::zeroed`], for sizes that somebody may have mistyped: `None` if the
    /// system refuses them.
    pub(crate) fn try_zeroed(len: usize) -> Option<Self> {
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { 64 };
        // With a small alignment, because zeroed memory of a larger one is written to by the
        // allocator.
        let layout = len
            .checked_add(align)
            .and_then(|size| Layout::from_size_align(size, 16).ok())?;
        // SAFETY: the layout has a non-zero size.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() {
            return None;
        }
        // SAFETY: the offset is less than `align`, and `align` more bytes than `len` are there.
        let start = unsafe { base.add(base.align_offset(align)) };
        #[cfg(target_os = "linux")]
        if align == HUGE_PAGE {
            // SAFETY: the range was just allocated; the call is advice and may fail harmlessly.
            unsafe { libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE) };
        }
        Some(Self {
            base,
            layout,
            start,
            len,
        })
    }
}

impl std::ops::Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl std::ops::DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl Drop for AlignedBytes {
    fn drop(&mut self) {
        // SAFETY: allocated in `try_zeroed` with this layout, and freed only here.
        unsafe { dealloc(self.base, self.layout) }
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}
