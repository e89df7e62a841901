// SPDX-License-Identifier: GPL-2.0

//! A device for tests. It does nothing by itself: it notes what it is asked for, and completes what the
//! test says, as the test says. The RDMA core does not know of it, but its verbs work on it; whoever
//! has it uses it from one thread, with one connection at a time.

use super::device;
use crate::{
    bindings,
    rt::net::Net, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        new_spinlock,
        SpinLock, //
    }, //
};

/// What a device was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
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
}

/// Pages that one memory region can have.
pub(super) const DEPTH: u32 = 4;

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
    receives: KVec<Posted>,
    /// Completions that nobody has polled.
    done: KVec<(*mut bindings::ib_cq, bindings::ib_wc)>,
    qp: *mut bindings::ib_qp,
    /// So many work requests are taken.
    room: usize,
    prompt: bool,
    flushes: bool,
    keys: u32,
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
pub(super) struct Fake {
    raw: NonNull<Raw>,
    state: Pin<KBox<State>>,
}

impl Fake {
    /// Makes a device, and lets this module know of it. Sleeps.
    pub(super) fn new() -> Result<Self> {
        let state = KBox::pin_init(
            try_pin_init!(State {
                facts <- new_spinlock!(Facts {
                    asked: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    sends: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    receives: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    done: KVec::with_capacity(MANY, GFP_KERNEL)?,
                    qp: core::ptr::null_mut(),
                    room: usize::MAX,
                    prompt: false,
                    flushes: true,
                    keys: 0,
                }),
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: The size is that of a structure which begins with a device.
        let raw = unsafe { bindings::_ib_alloc_device(size_of::<Raw>(), core::ptr::null_mut()) };
        let raw = NonNull::new(raw.cast::<Raw>()).ok_or(ENOMEM)?;
        // SAFETY: Just allocated, all zeroes where the core has not written.
        let dev = unsafe { &mut *raw.as_ptr() };
        dev.state = &raw const *state;
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
        let ops = &mut dev.base.ops;
        ops.size_ib_pd = size_of::<bindings::ib_pd>();
        ops.size_ib_cq = size_of::<bindings::ib_cq>();
        ops.size_ib_qp = size_of::<bindings::ib_qp>();
        ops.alloc_pd = Some(alloc_pd);
        ops.dealloc_pd = Some(dealloc_pd);
        ops.create_cq = Some(create_cq);
        ops.destroy_cq = Some(destroy_cq);
        ops.req_notify_cq = Some(req_notify_cq);
        ops.poll_cq = Some(poll_cq);
        ops.create_qp = Some(create_qp);
        ops.destroy_qp = Some(destroy_qp);
        ops.drain_rq = Some(drain_rq);
        ops.drain_sq = Some(drain_sq);
        ops.alloc_mr = Some(alloc_mr);
        ops.dereg_mr = Some(dereg_mr);
        ops.map_mr_sg = Some(map_mr_sg);
        ops.post_send = Some(post_send);
        ops.post_recv = Some(post_recv);
        // INVARIANT: See above.
        let this = Self { raw, state };
        // SAFETY: The device is valid until `Drop`, which calls `remove`.
        kernel::error::to_result(unsafe { device::add(this.as_raw()) })?;
        Ok(this)
    }

    /// The device as C knows it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_device {
        self.raw.as_ptr().cast()
    }

    /// The network namespace of the machine.
    pub(super) fn net(&self) -> Net<'_> {
        // SAFETY: The core puts such a device into the first namespace, which never goes.
        unsafe {
            let core = (*self.as_raw()).__bindgen_anon_1.coredev.as_ref();
            Net::from_raw(core.rdma_net.net)
        }
    }

    /// What the device was asked for since this was called last.
    pub(super) fn asked(&self) -> Result<KVec<Asked>> {
        let new = KVec::with_capacity(MANY, GFP_KERNEL)?;
        Ok(core::mem::replace(&mut self.state.facts.lock().asked, new))
    }

    /// Receives that are posted.
    pub(super) fn receives(&self) -> usize {
        self.state.facts.lock().receives.len()
    }

    /// Work requests in the send queue.
    pub(super) fn sends(&self) -> usize {
        self.state.facts.lock().sends.len()
    }

    /// The device takes `count` more work requests, then refuses.
    pub(super) fn take_only(&self, count: usize) {
        self.state.facts.lock().room = count;
    }

    /// Work requests complete when they are posted, from now on.
    pub(super) fn be_prompt(&self) {
        self.state.facts.lock().prompt = true;
    }

    /// The device has failed: it does not flush what is posted.
    pub(super) fn fail(&self) {
        self.state.facts.lock().flushes = false;
    }

    /// Completes the oldest `count` work requests of the send queue, and waits for the handlers.
    pub(super) fn complete(&self, count: usize, status: bindings::ib_wc_status) {
        self.state.facts.lock().complete(true, count, status);
        self.ring();
        self.settle();
    }

    /// A message arrives, which invalidates a key. Waits for the handlers. `false` if no Receive is
    /// posted for it.
    pub(super) fn receive(&self, bytes: &[u8], key: Option<u32>) -> bool {
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
            if let Some(key) = key {
                wc.wc_flags = bindings::ib_wc_flags_IB_WC_WITH_INVALIDATE as c_int;
                wc.ex.invalidate_rkey = key;
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
            bindings::ib_dealloc_device(self.as_raw());
        }
    }
}

/// # Safety
///
/// `cq` is a completion queue with a work item.
unsafe fn notify(cq: *mut bindings::ib_cq) {
    // SAFETY: As the caller promises.
    unsafe {
        if let Some(handler) = (*cq).comp_handler {
            handler(cq, (*cq).cq_context);
        }
    }
}

/// # Safety
///
/// As for [`notify`].
unsafe fn flush(cq: *mut bindings::ib_cq) {
    // SAFETY: As the caller promises: the union is the work item.
    unsafe { bindings::flush_work((&raw mut (*cq).__bindgen_anon_1).cast()) };
}

/// # Safety
///
/// `dev` is the device of a [`Fake`].
unsafe fn facts<'a>(dev: *mut bindings::ib_device) -> &'a SpinLock<Facts> {
    // SAFETY: As the caller promises; the state lives longer than the device is used.
    unsafe { &(*(*dev.cast::<Raw>()).state).facts }
}

// The verbs. In each of them:
// SAFETY: The RDMA core calls them with objects of the device, which are valid for the call.

unsafe extern "C" fn alloc_pd(pd: *mut bindings::ib_pd, _: *mut bindings::ib_udata) -> c_int {
    // SAFETY: See above.
    unsafe { facts((*pd).device) }.lock().ask(Asked::AllocPd);
    0
}

unsafe extern "C" fn dealloc_pd(pd: *mut bindings::ib_pd, _: *mut bindings::ib_udata) -> c_int {
    // SAFETY: See above.
    unsafe { facts((*pd).device) }.lock().ask(Asked::DeallocPd);
    0
}

unsafe extern "C" fn create_cq(
    cq: *mut bindings::ib_cq,
    _: *const bindings::ib_cq_init_attr,
    _: *mut bindings::uverbs_attr_bundle,
) -> c_int {
    // SAFETY: See above.
    unsafe { facts((*cq).device) }.lock().ask(Asked::CreateCq);
    0
}

unsafe extern "C" fn destroy_cq(cq: *mut bindings::ib_cq, _: *mut bindings::ib_udata) -> c_int {
    // SAFETY: See above.
    unsafe { facts((*cq).device) }.lock().ask(Asked::DestroyCq);
    0
}

unsafe extern "C" fn req_notify_cq(
    cq: *mut bindings::ib_cq,
    _: bindings::ib_cq_notify_flags,
) -> c_int {
    // SAFETY: See above.
    let facts = unsafe { facts((*cq).device) }.lock();
    // Ask again: there are some.
    facts.done.iter().any(|(of, _)| *of == cq).into()
}

unsafe extern "C" fn poll_cq(
    cq: *mut bindings::ib_cq,
    count: c_int,
    wcs: *mut bindings::ib_wc,
) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*cq).device) }.lock();
    let mut got = 0;
    while got < count {
        let Some(at) = facts.done.iter().position(|(of, _)| *of == cq) else {
            break;
        };
        let Ok((_, wc)) = facts.done.remove(at) else {
            break;
        };
        // SAFETY: There is room for `count`.
        unsafe { *wcs.add(got as usize) = wc };
        got += 1;
    }
    got
}

unsafe extern "C" fn create_qp(
    qp: *mut bindings::ib_qp,
    _: *mut bindings::ib_qp_init_attr,
    _: *mut bindings::ib_udata,
) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*qp).device) }.lock();
    facts.ask(Asked::CreateQp);
    facts.qp = qp;
    0
}

unsafe extern "C" fn destroy_qp(qp: *mut bindings::ib_qp, _: *mut bindings::ib_udata) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*qp).device) }.lock();
    facts.ask(Asked::DestroyQp);
    facts.qp = core::ptr::null_mut();
    facts.sends.clear();
    facts.receives.clear();
    0
}

/// # Safety
///
/// `qp` and `cq` are valid, and of a [`Fake`].
unsafe fn drain(qp: *mut bindings::ib_qp, cq: *mut bindings::ib_cq, send: bool, asked: Asked) {
    {
        // SAFETY: As the caller promises.
        let mut facts = unsafe { facts((*qp).device) }.lock();
        facts.ask(asked);
        if facts.flushes {
            facts.complete(send, usize::MAX, bindings::ib_wc_status_IB_WC_WR_FLUSH_ERR);
        }
    }
    // SAFETY: As the caller promises.
    unsafe {
        notify(cq);
        flush(cq);
    }
}

unsafe extern "C" fn drain_rq(qp: *mut bindings::ib_qp) {
    // SAFETY: See above.
    unsafe { drain(qp, (*qp).recv_cq, false, Asked::DrainRq) };
}

unsafe extern "C" fn drain_sq(qp: *mut bindings::ib_qp) {
    // SAFETY: See above.
    unsafe { drain(qp, (*qp).send_cq, true, Asked::DrainSq) };
}

unsafe extern "C" fn alloc_mr(
    pd: *mut bindings::ib_pd,
    _: bindings::ib_mr_type,
    max: u32,
) -> *mut bindings::ib_mr {
    let Ok(mr) = KBox::<RawMr>::new_uninit(GFP_KERNEL) else {
        return core::ptr::without_provenance_mut((-12isize) as usize);
    };
    let mr = KBox::into_raw(mr).cast::<RawMr>();
    // SAFETY: Just allocated; for numbers and pointers of C all zeroes are a value.
    unsafe {
        mr.write_bytes(0, 1);
        (*mr).max = max;
    }
    // SAFETY: See above.
    let mut facts = unsafe { facts((*pd).device) }.lock();
    facts.ask(Asked::AllocMr);
    facts.keys += 1;
    // SAFETY: Not known to anybody yet.
    unsafe { (*mr).base.rkey = facts.keys << 8 };
    mr.cast()
}

unsafe extern "C" fn dereg_mr(mr: *mut bindings::ib_mr, _: *mut bindings::ib_udata) -> c_int {
    // SAFETY: See above.
    unsafe { facts((*mr).device) }.lock().ask(Asked::DeregMr);
    // SAFETY: Made by `alloc_mr`; the core does not use it any more.
    drop(unsafe { KBox::from_raw(mr.cast::<RawMr>()) });
    0
}

unsafe extern "C" fn map_mr_sg(
    mr: *mut bindings::ib_mr,
    sg: *mut bindings::scatterlist,
    nents: c_int,
    offset: *mut c_uint,
) -> c_int {
    unsafe extern "C" fn set_page(mr: *mut bindings::ib_mr, _: u64) -> c_int {
        let mr = mr.cast::<RawMr>();
        // SAFETY: Made by `alloc_mr`.
        unsafe {
            if (*mr).pages >= (*mr).max {
                return ENOMEM.to_errno();
            }
            (*mr).pages += 1;
        }
        0
    }
    // SAFETY: See above; made by `alloc_mr`.
    unsafe {
        (*mr.cast::<RawMr>()).pages = 0;
        bindings::ib_sg_to_pages(mr, sg, nents, offset, Some(set_page))
    }
}

unsafe extern "C" fn post_send(
    qp: *mut bindings::ib_qp,
    first: *const bindings::ib_send_wr,
    bad: *mut *const bindings::ib_send_wr,
) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*qp).device) }.lock();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: A chain of valid work requests; each is part of what its kind says.
        let (wr, asked) = unsafe {
            let wr = &*next;
            let signalled = wr.send_flags & bindings::ib_send_flags_IB_SEND_SIGNALED != 0;
            let asked = match wr.opcode {
                bindings::ib_wr_opcode_IB_WR_REG_MR => {
                    Asked::Register((*next.cast::<bindings::ib_reg_wr>()).key)
                }
                bindings::ib_wr_opcode_IB_WR_LOCAL_INV => {
                    Asked::Invalidate(wr.ex.invalidate_rkey, signalled)
                }
                _ => Asked::Send(signalled),
            };
            let posted = Posted {
                cqe: wr.__bindgen_anon_1.wr_cqe,
                signalled,
                addr: 0,
                len: 0,
            };
            (posted, asked)
        };
        if facts.room == 0 {
            // SAFETY: See above.
            unsafe { *bad = next };
            return ENOMEM.to_errno();
        }
        facts.room -= 1;
        facts.ask(asked);
        let _ = facts.sends.push_within_capacity(wr);
        // SAFETY: As above.
        next = unsafe { (*next).next };
    }
    if facts.prompt {
        facts.complete(true, usize::MAX, bindings::ib_wc_status_IB_WC_SUCCESS);
        // SAFETY: See above; this only queues the work item.
        unsafe { notify((*qp).send_cq) };
    }
    0
}

unsafe extern "C" fn post_recv(
    qp: *mut bindings::ib_qp,
    first: *const bindings::ib_recv_wr,
    bad: *mut *const bindings::ib_recv_wr,
) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*qp).device) }.lock();
    let mut next = first;
    while !next.is_null() {
        if facts.room == 0 {
            // SAFETY: See above.
            unsafe { *bad = next };
            return ENOMEM.to_errno();
        }
        facts.room -= 1;
        // SAFETY: A chain of valid work requests of one piece each.
        unsafe {
            let sge = &*(*next).sg_list;
            let _ = facts.receives.push_within_capacity(Posted {
                cqe: (*next).__bindgen_anon_1.wr_cqe,
                signalled: true,
                addr: sge.addr,
                len: sge.length,
            });
            next = (*next).next;
        }
    }
    0
}
