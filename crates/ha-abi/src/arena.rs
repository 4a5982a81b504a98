//! Memory for C forms: aligned blocks that do not move, wiped before they are given back.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use zeroize::Zeroize;

/// Blocks that live as long as the arena. Allocates nothing until the first block is asked for.
pub(crate) struct Arena {
    blocks: Vec<Block>,
}

struct Block {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the blocks are owned by the arena alone; nothing in them is bound to a thread.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena without blocks.
    pub(crate) const fn new() -> Self {
        Arena { blocks: Vec::new() }
    }

    /// `len` zeroed bytes at an alignment that suits every C structure; never null, also for `len` 0.
    /// `None` where no allocation can be that long.
    pub(crate) fn alloc(&mut self, len: usize) -> Option<*mut u8> {
        let layout = Layout::from_size_align(len.max(1), 16).ok()?;
        // SAFETY: the layout's size is not zero.
        let Some(start) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        self.blocks.push(Block { start, layout });
        Some(start.as_ptr())
    }

    /// A block that holds a copy of `bytes`.
    pub(crate) fn copy(&mut self, bytes: &[u8]) -> Option<*mut u8> {
        let to = self.alloc(bytes.len())?;
        // SAFETY: the new block has room for `bytes.len()` and cannot overlap what existed before it.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(to)
    }

    /// The block that starts at `p` with its size, found by address: a module may have changed the pointers in
    /// a structure, so they are never followed without this.
    pub(crate) fn block(&self, p: *const u8) -> Option<(*mut u8, usize)> {
        let block = self.blocks.iter().find(|b| b.start.as_ptr().cast_const() == p)?;
        Some((block.start.as_ptr(), block.layout.size()))
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for block in &self.blocks {
            // SAFETY: the block is ours, that long, and zeroed at birth, so initialised.
            unsafe { std::slice::from_raw_parts_mut(block.start.as_ptr(), block.layout.size()) }.zeroize();
            // SAFETY: allocated with this layout, and given back once: the arena ends here.
            unsafe { dealloc(block.start.as_ptr(), block.layout) }
        }
    }
}
