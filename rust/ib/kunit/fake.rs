// SPDX-License-Identifier: GPL-2.0

//! A device for tests. It does nothing by itself: it notes what it is asked for, and completes what the
//! test says, as the test says. The RDMA core does not know of it, but its verbs work on it; whoever
//! has it uses it from one thread, with one connection at a time.

mod verbs;

use self::verbs::{
    flush,
    notify, //
};
use crate::{
    bindings,
    ib::{
        device,
        domain::Domain,
        OWNER, //
    },
    rt::net::Net, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::{
        new_spinlock,
        SpinLock, //
    }, //
};

/// What a device was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    AllocPd,
    DeallocPd,
    CreateCq,
    DestroyCq,
    CreateQp,
    DestroyQp,
    AllocMr,
    DeregMr,
    DrainRq,
    DrainSq,
    /// A registration of memory under a key.
    Register(u32),
    /// The end of one, and whether its success is told too.
    Invalidate(u32, bool),
    /// A Send, and whether its success is told too.
    Send(bool),
    /// A Send that invalidates this key.
    SendInvalidate(u32),
    /// So many bytes read from under a key, or written.
    Read(u32, u32),
    Write(u32, u32),
}

/// Pages that one memory region can have.
pub(in crate::ib) const DEPTH: u32 = 4;

/// Room in the lists: none of them grows when verbs are called.
const MANY: usize = 2048;

/// A work request that is not complete.
#[derive(Clone, Copy)]
struct Posted {
    cqe: *mut bindings::ib_cqe,
    signalled: bool,
    /// Where a Receive goes.
    addr: u64,
    len: u32,
}

struct Facts {
    asked: KVec<Asked>,
    sends: KVec<Posted>,
    /// How often work requests were posted to the send queue, however many at a time.
    posts: usize,
    receives: KVec<Posted>,
    /// Completions that nobody has polled.
    done: KVec<(*mut bindings::ib_cq, bindings::ib_wc)>,
    qp: *mut bindings::ib_qp,
    /// So many work requests are taken.
    room: usize,
    /// Nobody is told which ones were not.
    vague: bool,
    /// How the message that was sent last begins.
    sent: [u8; 64],
    /// Of how many pieces of memory Reads and Writes were, all together.
    pieces: usize,
    prompt: bool,
    flushes: bool,
    /// Receives complete twice.
    stutters: bool,
    keys: u32,
    /// So many attempts to stop the queue pair fail, and to free a region.
    refusals: (usize, usize),
    /// What queue pairs say their state is.
    state: bindings::ib_qp_state,
    /// What a bounce buffer does: parts of pages do not adjoin.
    bends: bool,
    /// Regions that were not freed.
    kept: KVec<*mut RawMr>,
}

// SAFETY: The pointers are followed by the device's owner and by verbs on what they point to.
unsafe impl Send for Facts {}

impl Facts {
    fn ask(&mut self, what: Asked) {
        // Tests do not ask for more.
        let _ = self.asked.push_within_capacity(what);
    }

    /// Completes the oldest `count` work requests of a queue.
    fn complete(&mut self, send: bool, count: usize, status: bindings::ib_wc_status) {
        if self.qp.is_null() {
            return;
        }
        // SAFETY: The queue pair is there until `destroy_qp`.
        let (send_cq, recv_cq) = unsafe { ((*self.qp).send_cq, (*self.qp).recv_cq) };
        let (cq, list) = if send {
            (send_cq, &mut self.sends)
        } else {
            (recv_cq, &mut self.receives)
        };
        for _ in 0..count.min(list.len()) {
            let Ok(posted) = list.remove(0) else { break };
            if posted.signalled || status != bindings::ib_wc_status_IB_WC_SUCCESS {
                let mut wc: bindings::ib_wc = pin_init::zeroed();
                wc.__bindgen_anon_1.wr_cqe = posted.cqe;
                wc.status = status;
                let _ = self.done.push_within_capacity((cq, wc));
            }
        }
    }
}

#[pin_data]
struct State {
    #[pin]
    facts: SpinLock<Facts>,
    /// Ports are counted from 1.
    ports: [bindings::ib_port_data; 2],
}

#[repr(C)]
struct Raw {
    base: bindings::ib_device,
    state: *const State,
}

#[repr(C)]
struct RawMr {
    base: bindings::ib_mr,
    pages: u32,
    max: u32,
}

/// The device.
///
/// # Invariants
///
/// `raw` was allocated by [`Fake::new`], and has `state`.
pub(crate) struct Fake {
    raw: NonNull<Raw>,
    state: Pin<KBox<State>>,
}

impl Fake {
    /// Makes a device, and lets this module know of it. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        let mut ports: [bindings::ib_port_data; 2] = pin_init::zeroed();
        for port in ports.iter_mut() {
            port.immutable.core_cap_flags = bindings::RDMA_CORE_CAP_PROT_ROCE_UDP_ENCAP;
        }
        let state = KBox::pin_init(
            try_pin_init!(State {
                facts <- new_spinlock!(Facts {
                    asked: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    sends: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    posts: 0,
                    receives: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    done: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    qp: core::ptr::null_mut(),
                    room: usize::MAX,
                    vague: false,
                    sent: [0; 64],
                    pieces: 0,
                    prompt: false,
                    flushes: true,
                    stutters: false,
                    keys: 0,
                    refusals: (0, 0),
                    state: bindings::ib_qp_state_IB_QPS_RTS,
                    bends: false,
                    kept: KVec::with_capacity(MANY, GFP_KERNEL)?,
                }),
                ports,
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: The size is that of a structure which begins with a device.
        let raw = unsafe { bindings::_ib_alloc_device(size_of::<Raw>(), core::ptr::null_mut()) };
        let raw = NonNull::new(raw.cast::<Raw>()).ok_or(ENOMEM)?;
        // SAFETY: Just allocated, all zeroes where the core has not written.
        let dev = unsafe { &mut *raw.as_ptr() };
        dev.state = &raw const *state;
        dev.base.port_data = (&raw const state.ports).cast_mut().cast();
        for (to, from) in dev.base.name.iter_mut().zip(b"fake0") {
            *to = *from;
        }
        let attrs = &mut dev.base.attrs;
        attrs.device_cap_flags = bindings::ib_device_cap_flags_IB_DEVICE_MEM_MGT_EXTENSIONS as u64;
        attrs.kernel_cap_flags = u64::from(bindings::ib_kernel_cap_flags_IBK_LOCAL_DMA_LKEY);
        attrs.max_fast_reg_page_list_len = DEPTH;
        attrs.max_qp_wr = 4096;
        attrs.max_cqe = 4096;
        attrs.max_qp_rd_atom = 1;
        attrs.max_qp_init_rd_atom = 1;
        attrs.max_send_sge = 4;
        attrs.max_sge_rd = 4;
        verbs::set(&mut dev.base.ops);
        // INVARIANT: See above.
        let this = Self { raw, state };
        // SAFETY: The device is valid until `Drop`, which calls `remove`.
        kernel::error::to_result(unsafe { device::add(this.as_raw()) })?;
        Ok(this)
    }

    /// The device as C knows it.
    pub(in crate::ib) fn as_raw(&self) -> *mut bindings::ib_device {
        self.raw.as_ptr().cast()
    }

    /// The network namespace of the machine.
    pub(crate) fn net(&self) -> Net<'_> {
        // SAFETY: The core puts such a device into the first namespace, which never goes.
        unsafe {
            let core = (*self.as_raw()).__bindgen_anon_1.coredev.as_ref();
            Net::from_raw(core.rdma_net.net)
        }
    }

    /// What the device was asked for since this was called last.
    pub(crate) fn asked(&self) -> Result<KVec<Asked>> {
        let new = KVec::with_capacity(MANY, GFP_KERNEL)?;
        Ok(core::mem::replace(&mut self.state.facts.lock().asked, new))
    }

    /// Receives that are posted.
    pub(crate) fn receives(&self) -> usize {
        self.state.facts.lock().receives.len()
    }

    /// Work requests in the send queue.
    pub(crate) fn sends(&self) -> usize {
        self.state.facts.lock().sends.len()
    }

    /// How often work requests were posted to the send queue since this was asked last: chains.
    pub(crate) fn posts(&self) -> usize {
        core::mem::take(&mut self.state.facts.lock().posts)
    }

    /// How the message that was sent last begins.
    pub(crate) fn sent(&self) -> [u8; 64] {
        self.state.facts.lock().sent
    }

    /// The device takes `count` more work requests, then refuses.
    pub(crate) fn take_only(&self, count: usize) {
        self.state.facts.lock().room = count;
    }

    /// As [`Self::take_only`], but nobody is told where it stopped.
    pub(in crate::ib) fn take_only_vaguely(&self, count: usize) {
        let mut facts = self.state.facts.lock();
        facts.room = count;
        facts.vague = true;
    }

    /// The device speaks iWARP: it reads into registered memory alone.
    pub(in crate::ib) fn be_iwarp(&mut self) {
        // SAFETY: Nobody else uses the device now, and nobody moves what is changed.
        for port in unsafe { &mut self.state.as_mut().get_unchecked_mut().ports } {
            port.immutable.core_cap_flags = bindings::RDMA_CORE_CAP_PROT_IWARP;
        }
    }

    /// It is a driver that registers regions once more when a packet is lost, from the next connection on.
    pub(in crate::ib) fn be_soft(&self) {
        // SAFETY: This is read when a connection is made, by this thread.
        unsafe { (*self.as_raw()).ops.driver_id = bindings::rdma_driver_id_RDMA_DRIVER_RXE };
    }

    /// Regions can have gaps, from the next connection on.
    pub(in crate::ib) fn allow_gaps(&self) {
        let gaps = u64::from(bindings::ib_kernel_cap_flags_IBK_SG_GAPS_REG);
        // SAFETY: The attributes are read when a connection is made, by this thread.
        unsafe { (*self.as_raw()).attrs.kernel_cap_flags |= gaps };
    }

    /// Queues can have so many entries, from now on.
    pub(in crate::ib) fn limit_queues(&self, entries: c_int) {
        // SAFETY: The attributes are read when a connection is made, by this thread.
        unsafe {
            (*self.as_raw()).attrs.max_qp_wr = entries;
            (*self.as_raw()).attrs.max_cqe = entries.max(4096);
        }
    }

    /// Work requests complete when they are posted, from now on.
    pub(crate) fn be_prompt(&self) {
        self.state.facts.lock().prompt = true;
    }

    /// The device has failed: it does not flush what is posted.
    pub(crate) fn fail(&self) {
        self.state.facts.lock().flushes = false;
    }

    /// So many attempts to stop the queue pair fail, and so many to free a region.
    pub(in crate::ib) fn refuse(&self, stops: usize, frees: usize) {
        self.state.facts.lock().refusals = (stops, frees);
    }

    /// Queue pairs say that they are in this state, from now on.
    pub(in crate::ib) fn claim(&self, state: bindings::ib_qp_state) {
        self.state.facts.lock().state = state;
    }

    /// Of how many pieces of memory Reads and Writes were since this was asked last.
    pub(in crate::ib) fn pieces(&self) -> usize {
        core::mem::take(&mut self.state.facts.lock().pieces)
    }

    /// How many attempts are still to fail: see [`Self::refuse`].
    pub(in crate::ib) fn refusals(&self) -> (usize, usize) {
        self.state.facts.lock().refusals
    }

    /// From now on the device tells twice of each message.
    pub(in crate::ib) fn stutter(&self) {
        self.state.facts.lock().stutters = true;
    }

    /// As the device sees them, parts of pages do not adjoin what is next to them.
    pub(in crate::ib) fn bend(&self) {
        self.state.facts.lock().bends = true;
    }

    /// Completes the oldest `count` work requests of the send queue, and waits for the handlers.
    pub(crate) fn complete(&self, count: usize, status: bindings::ib_wc_status) {
        self.state.facts.lock().complete(true, count, status);
        self.ring();
        self.settle();
    }

    /// A message arrives, which invalidates a key. Waits for the handlers. `false` if no Receive is
    /// posted for it.
    pub(crate) fn receive(&self, bytes: &[u8], key: Option<u32>) -> bool {
        self.arrives(bytes, |wc| {
            if let Some(key) = key {
                wc.wc_flags = bindings::ib_wc_flags_IB_WC_WITH_INVALIDATE as c_int;
                wc.ex.invalidate_rkey = key;
            }
        })
    }

    /// The peer writes so many bytes elsewhere with immediate data, as [`Self::receive`]. Drivers tell
    /// it by the operation, or by a flag.
    pub(in crate::ib) fn receive_immediate(&self, len: u32, by_flag: bool) -> bool {
        self.arrives(&[], |wc| {
            if by_flag {
                wc.opcode = bindings::ib_wc_opcode_IB_WC_RECV;
                wc.wc_flags = bindings::ib_wc_flags_IB_WC_WITH_IMM as c_int;
            } else {
                wc.opcode = bindings::ib_wc_opcode_IB_WC_RECV_RDMA_WITH_IMM;
            }
            wc.byte_len = len;
        })
    }

    fn arrives(&self, bytes: &[u8], detail: impl FnOnce(&mut bindings::ib_wc)) -> bool {
        {
            let mut facts = self.state.facts.lock();
            let Some(posted) = facts.receives.first().copied() else {
                return false;
            };
            // CAST: Messages of tests are short.
            let len = bytes.len().min(posted.len as usize);
            // SAFETY: Without mappings of its own, a device is given addresses of the kernel; the
            // buffer stays until the completion.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    bytes.as_ptr(),
                    core::ptr::with_exposed_provenance_mut(posted.addr as usize),
                    len,
                );
            }
            facts.complete(false, 1, bindings::ib_wc_status_IB_WC_SUCCESS);
            let Some((_, wc)) = facts.done.last_mut() else {
                return false;
            };
            wc.byte_len = len as u32;
            detail(wc);
            if facts.stutters {
                if let Some(again) = facts.done.last().copied() {
                    let _ = facts.done.push_within_capacity(again);
                }
            }
        }
        self.ring();
        self.settle();
        true
    }

    /// Tells of completions.
    fn ring(&self) {
        let facts = self.state.facts.lock();
        if facts.qp.is_null() {
            return;
        }
        // SAFETY: The queue pair is there until `destroy_qp`, and its queues are.
        for cq in unsafe { [(*facts.qp).send_cq, (*facts.qp).recv_cq] } {
            // SAFETY: As above.
            unsafe { notify(cq) };
        }
    }

    /// Waits for handlers. Sleeps.
    fn settle(&self) {
        let qp = self.state.facts.lock().qp;
        if !qp.is_null() {
            // SAFETY: As in `ring`; nobody destroys the queues while the owner is here.
            unsafe {
                flush((*qp).send_cq);
                flush((*qp).recv_cq);
            }
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        // SAFETY: Made by `new`. It waits until nobody uses the device; that it may have been called
        // before does no harm.
        unsafe {
            device::remove(self.as_raw(), core::ptr::null_mut());
        }
        let kept = core::mem::replace(&mut self.state.facts.lock().kept, KVec::new());
        for mr in kept {
            // SAFETY: Made by `alloc_mr`; nobody uses it any more.
            drop(unsafe { KBox::from_raw(mr) });
        }
        // SAFETY: As above.
        unsafe {
            // The core did not make them.
            (*self.as_raw()).port_data = core::ptr::null_mut();
            bindings::ib_dealloc_device(self.as_raw());
        }
    }
}

/// Makes a queue pair for an identifier without an address: nobody can reach the device. Sleeps.
///
/// # Safety
///
/// The identifier is valid, and used by nobody else. The queues in `attr` are of the same device and
/// outlive the queue pair.
pub(in crate::ib) unsafe fn create_qp(
    id: *mut bindings::rdma_cm_id,
    domain: &Domain,
    attr: &mut bindings::ib_qp_init_attr,
) -> Result<NonNull<bindings::ib_qp>> {
    // SAFETY: The protection domain is valid, and as the caller promises.
    let qp = from_err_ptr(unsafe {
        bindings::ib_create_qp_kernel(domain.as_raw(), attr, OWNER.as_char_ptr())
    })?;
    // `rdma_destroy_qp` finds it there, as it does those of the connection manager.
    // SAFETY: As the caller promises.
    unsafe { (*id).qp = qp };
    NonNull::new(qp).ok_or(EINVAL)
}
