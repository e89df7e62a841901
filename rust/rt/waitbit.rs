// SPDX-License-Identifier: GPL-2.0

//! Words of bits, and who sleeps until he gets a bit, as `wait_on_bit_lock` does.
//!
//! C header: [include/linux/wait_bit.h](srctree/include/linux/wait_bit.h)

use crate::bindings;
use kernel::{
    prelude::*,
    sync::barrier::smp_mb, //
};

/// A barrier after an atomic operation that changed a bit and is none by itself. Any context.
///
/// On amd64 every such operation is a barrier.
pub(crate) fn barrier() {
    if !cfg!(CONFIG_X86_64) {
        smp_mb();
    }
}

/// Wakes those who sleep until this bit is cleared, after it was. Any context.
///
/// # Safety
///
/// `word` is a word of bits that stays for the call.
pub(crate) unsafe fn wake(word: *mut c_ulong, bit: u32) {
    // Who has not seen the bit cleared is found: that comes before the look at the queue.
    barrier();
    // SAFETY: By the contract of this function. CAST: There are 64 bits.
    unsafe { bindings::wake_up_bit(word, bit as c_int) };
}

/// Whether somebody sleeps until this bit is cleared. Any context.
///
/// # Safety
///
/// `word` is a word of bits that stays for the call.
pub(crate) unsafe fn is_awaited(word: *mut c_ulong, bit: u32) -> bool {
    // CAST: There are 64 bits.
    let bit = bit as c_int;
    // SAFETY: A computation.
    let queue = unsafe { bindings::bit_waitqueue(word, bit) };
    // SAFETY: The queues for bits are there for ever. Who comes just now is seen the next time.
    if !unsafe { bindings::waitqueue_active(queue) } {
        return false;
    }
    // SAFETY: As above.
    let lock = unsafe { &raw mut (*queue).lock };
    // SAFETY: The lock is initialised.
    let flags = unsafe { bindings::spin_lock_irqsave(lock) };
    let mut found = false;
    // Many bits share a queue.
    // SAFETY: Under the lock the list is whole, and what is in it stays. Of what has this function, all
    // are in a `wait_bit_queue_entry`: the function itself takes them for that.
    unsafe {
        let head = &raw mut (*queue).head;
        let mut at = (*head).next;
        while at != head && !found {
            let entry = kernel::container_of!(at, bindings::wait_queue_entry, entry);
            let function = (*entry).func;
            if function.is_some_and(|f| core::ptr::fn_addr_eq(f, WAKE)) {
                let waits = kernel::container_of!(entry, bindings::wait_bit_queue_entry, wq_entry);
                found = (*waits).key.flags == word && (*waits).key.bit_nr == bit;
            }
            at = (*at).next;
        }
    }
    // SAFETY: Taken above.
    unsafe { bindings::spin_unlock_irqrestore(lock, flags) };
    found
}

/// What wakes those who wait for bits.
const WAKE: unsafe extern "C" fn(
    *mut bindings::wait_queue_entry,
    c_uint,
    c_int,
    *mut c_void,
) -> c_int = bindings::wake_bit_function;
