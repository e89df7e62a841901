// SPDX-License-Identifier: GPL-2.0

//! Callbacks: calls that the server makes on the client's connection (RFC 8167, rows B1 to B11).
//!
//! C header: [include/linux/sunrpc/bc_xprt.h](srctree/include/linux/sunrpc/bc_xprt.h)

use super::{
    xprt::{
        Core,
        Xprt, //
    },
    ClientTransport, //
};
use crate::{
    bindings,
    rt::kbuf::{
        KBuf,
        RawGfp, //
    },
    trace, //
};
use kernel::{
    alloc::KVBox,
    new_spinlock,
    page::PAGE_SIZE,
    prelude::*,
    sync::SpinLock,
    types::Opaque, //
};

/// There is no room for another callback: the peer does not keep to the limits it was given.
#[derive(Debug)]
pub(crate) struct BcOverflow;

/// A callback that is being served, or could be.
///
/// # Invariants
///
/// sunrpc uses `rqst` and the buffers from `xprt_enqueue_bc_request` to `bc_free_rqst`. Outside of
/// that, they belong to whoever took the slot's index off the pool's free list.
#[pin_data]
#[repr(C)]
pub(super) struct BcSlot {
    #[pin]
    rqst: Opaque<bindings::rpc_rqst>,
    index: u32,
    /// The call, as it came in. A page is what the protocol allows at most (row B2).
    call: KBuf,
    /// Where the service encodes the reply. It expects that to be a page (row X43).
    reply: KBuf,
}

impl BcSlot {
    /// sunrpc's part.
    pub(super) fn rqst(&self) -> *mut bindings::rpc_rqst {
        self.rqst.get()
    }
}

/// The slots for callbacks of one transport: made when a session wants callbacks, and kept until
/// the transport goes, so that their number is bounded for its life (row X19).
#[pin_data]
pub(super) struct BcPool {
    slots: Pin<KVBox<[BcSlot]>>,
    #[pin]
    free: SpinLock<KVec<u32>>,
}

impl BcPool {
    fn new(count: u32) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            // CAST: 32 bits fit.
            let len = count as usize;
            let mut free = KVec::with_capacity(len, GFP_KERNEL)?;
            for index in (0..count).rev() {
                free.push(index, GFP_KERNEL)?;
            }
            let mut next = 0;
            let slots = KVBox::pin_slice(
                |_| {
                    let index = next;
                    next += 1;
                    try_pin_init!(BcSlot {
                        rqst <- pin_init::init_zeroed(),
                        index,
                        call: KBuf::new(PAGE_SIZE, RawGfp::KERNEL, -1)?,
                        reply: KBuf::new(PAGE_SIZE, RawGfp::KERNEL, -1)?,
                    }? Error)
                },
                len,
                GFP_KERNEL,
            )?;
            Ok(try_pin_init!(Self {
                slots,
                free <- new_spinlock!(free),
            }))
        })
    }

    fn take(&self) -> Option<&BcSlot> {
        let index = self.free.lock().pop()?;
        // CAST: 32 bits fit.
        self.slots.get(index as usize)
    }

    fn give_back(&self, slot: &BcSlot) {
        // The list has room for all slots.
        let _ = self.free.lock().push_within_capacity(slot.index);
    }

    /// The slot that `rqst` is the sunrpc part of, if it is one of this pool.
    pub(super) fn slot_of(&self, rqst: *const bindings::rpc_rqst) -> Option<&BcSlot> {
        let offset = rqst.addr().checked_sub(self.slots.as_ptr().addr())?;
        let size = const { size_of::<BcSlot>() };
        if offset % size != 0 {
            return None;
        }
        self.slots.get(offset / size)
    }

    /// All slots.
    pub(super) fn iter(&self) -> core::slice::Iter<'_, BcSlot> {
        self.slots.iter()
    }
}

impl<T: ClientTransport> Core<T> {
    /// Whether someone serves callbacks on this transport.
    pub(crate) fn has_bc_service(&self) -> bool {
        // SAFETY: The transport is alive; this looks at a pointer without following it.
        !unsafe { (&raw const (*self.raw()).bc_serv).read_volatile() }.is_null()
    }

    /// Rows B3 to B5: hands a call from the server, which starts with its XID, to the callback
    /// service. The message is copied. Without a service it is dropped.
    ///
    /// Process context; does not sleep.
    pub(crate) fn bc_call(&self, msg: &[u8]) -> Result<(), BcOverflow> {
        let Some((xid, _)) = msg.split_first_chunk::<4>() else {
            return Err(BcOverflow);
        };
        let pool = self.own.bc.as_ref().ok_or(BcOverflow)?;
        if msg.len() > PAGE_SIZE {
            return Err(BcOverflow);
        }
        // When the last reference is gone there is nobody to serve the call. Otherwise this
        // reference lets sunrpc take and drop its own without the transport being destroyed here,
        // in a completion handler, which destruction would wait for.
        // SAFETY: The transport's memory is valid.
        if unsafe { bindings::xprt_get(self.raw()) }.is_null() {
            return Ok(());
        }
        let slot = pool.take();
        if let Some(slot) = slot {
            // SAFETY: The slot is off the free list, and so this function's. The message is not
            // longer than the buffer.
            unsafe { self.fill_and_enqueue(slot, u32::from_ne_bytes(*xid), msg) };
        }
        self.put_later();
        slot.map(|_| ()).ok_or(BcOverflow)
    }

    /// # Safety
    ///
    /// The caller has taken `slot` from the pool of this transport, and gives it up. `msg` is not
    /// longer than a page. `xid` is in wire order.
    unsafe fn fill_and_enqueue(&self, slot: &BcSlot, xid: u32, msg: &[u8]) {
        let rqst = slot.rqst();
        let call = slot.call.as_mut_ptr();
        // SAFETY: By the contract of this function nobody else uses the slot, and the message
        // fits. Zeroes are a valid `rpc_rqst`.
        unsafe {
            rqst.write_bytes(0, 1);
            call.copy_from_nonoverlapping(msg.as_ptr(), msg.len());
            (*rqst).rq_xprt = self.raw();
            (*rqst).rq_xid = xid;
            (*rqst).rq_private_buf.len = msg.len() as u32;
            (*rqst).rq_bc_pa_state = 1 << bindings::RPC_BC_PA_IN_USE;
            bindings::xdr_buf_init(
                &raw mut (*rqst).rq_snd_buf,
                slot.reply.as_mut_ptr().cast(),
                slot.reply.len(),
            );
            bindings::xdr_buf_init(&raw mut (*rqst).rq_rcv_buf, call.cast(), msg.len());
            (*rqst).rq_rcv_buf.len = msg.len() as u32;
            // The service counts down when it is done with the call.
            bindings::atomic_inc(&raw mut (*self.raw()).bc_slot_count);
        }
        // SAFETY: The request is complete. From here on it is sunrpc's.
        unsafe { bindings::xprt_enqueue_bc_request(rqst) };
    }

    /// Drops a reference to the transport from a context that must not destroy it.
    fn put_later(&self) {
        self.own
            .puts
            .fetch_add(1, kernel::sync::atomic::ordering::Full);
        // SAFETY: The work item was initialised with the transport, and destruction waits for it.
        unsafe {
            bindings::queue_work_on(
                // CAST: A small number.
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                bindings::system_dfl_wq,
                self.own.put_work.get(),
            )
        };
    }
}

/// Drops the references that [`Core::put_later`] left.
///
/// # Safety
///
/// `work` is the `put_work` of a transport, and was queued.
pub(super) unsafe extern "C" fn put_worker<T: ClientTransport>(work: *mut bindings::work_struct) {
    // SAFETY: The work item is this field of a transport.
    let core = unsafe { Core::<T>::of_put_work(work) };
    // SAFETY: Destruction waits for this function to return.
    let core = unsafe { &*core };
    let count = core.own.puts.xchg(0, kernel::sync::atomic::ordering::Full);
    for _ in 0..count {
        // SAFETY: `put_later` left this many references. The last one may start destruction, which
        // happens elsewhere and waits.
        unsafe { bindings::xprt_put(core.raw()) };
    }
}

/// Row B1: a session wants callbacks. The number asked for is ignored.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn bc_setup<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    _count: c_uint,
) -> c_int {
    // SAFETY: sunrpc calls this with a transport of this type, and a reference to it.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    trace::xprtrdma_cb_setup(|| (xprt.traced(), T::BC_SLOTS));
    if xprt.own.bc.as_ref().is_none() {
        let count = const { T::BC_SLOTS * 2 };
        match KBox::pin_init(BcPool::new(count), GFP_KERNEL) {
            // If another call was faster, its pool stays and this one is dropped.
            Ok(pool) => _ = xprt.own.bc.populate(pool),
            Err(error) => return error.to_errno(),
        }
    }
    0
}

/// Row B2: how long a callback, or the reply to one, can be.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn bc_maxpayload<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
) -> usize {
    // SAFETY: sunrpc calls this with a transport of this type which has a user.
    T::bc_max_payload(unsafe { Xprt::<T>::from_raw(raw) })
}

/// Row B2: how many callbacks there can be at a time.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn bc_num_slots<T: ClientTransport>(
    _raw: *mut bindings::rpc_xprt,
) -> c_uint {
    T::BC_SLOTS
}

/// Row B8: sunrpc is done with a callback.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn bc_free_rqst<T: ClientTransport>(rqst: *mut bindings::rpc_rqst) {
    // SAFETY: The request has a reference to its transport.
    let raw = unsafe { (*rqst).rq_xprt };
    // SAFETY: As above; the transport is of this type.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    if let Some(pool) = xprt.own.bc.as_ref() {
        if let Some(slot) = pool.slot_of(rqst) {
            pool.give_back(slot);
        }
    }
    // SAFETY: `xprt_enqueue_bc_request` took this reference for the request.
    unsafe { bindings::xprt_put(raw) };
}

/// Row B9: a session does not want callbacks any more. The pool stays for the next one.
///
/// # Safety
///
/// None.
pub(super) unsafe extern "C" fn bc_destroy(_raw: *mut bindings::rpc_xprt, _count: c_uint) {}
