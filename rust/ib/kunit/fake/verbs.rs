// SPDX-License-Identifier: GPL-2.0

//! The verbs of the device for tests.

use super::{
    Asked,
    Facts,
    Posted,
    Raw,
    RawMr, //
};
use crate::bindings;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::SpinLock, //
};

/// Gives a device its verbs.
pub(super) fn set(ops: &mut bindings::ib_device_ops) {
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
    ops.modify_qp = Some(modify_qp);
    ops.query_qp = Some(query_qp);
    ops.destroy_qp = Some(destroy_qp);
    ops.drain_rq = Some(drain_rq);
    ops.drain_sq = Some(drain_sq);
    ops.alloc_mr = Some(alloc_mr);
    ops.dereg_mr = Some(dereg_mr);
    ops.map_mr_sg = Some(map_mr_sg);
    ops.post_send = Some(post_send);
    ops.post_recv = Some(post_recv);
}

/// # Safety
///
/// `cq` is a completion queue with a work item.
pub(super) unsafe fn notify(cq: *mut bindings::ib_cq) {
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
pub(super) unsafe fn flush(cq: *mut bindings::ib_cq) {
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

unsafe extern "C" fn query_qp(
    qp: *mut bindings::ib_qp,
    attr: *mut bindings::ib_qp_attr,
    _: c_int,
    _: *mut bindings::ib_qp_init_attr,
) -> c_int {
    // SAFETY: The queue pair and what is to be filled are valid.
    unsafe { (*attr).qp_state = facts((*qp).device).lock().state };
    0
}

unsafe extern "C" fn modify_qp(
    qp: *mut bindings::ib_qp,
    attr: *mut bindings::ib_qp_attr,
    mask: c_int,
    _: *mut bindings::ib_udata,
) -> c_int {
    // CAST: A low bit.
    let to_state = mask & bindings::ib_qp_attr_mask_IB_QP_STATE as c_int != 0;
    // SAFETY: The attributes are valid.
    let state = unsafe { (*attr).qp_state };
    let stops = [
        bindings::ib_qp_state_IB_QPS_ERR,
        bindings::ib_qp_state_IB_QPS_RESET,
    ];
    if !to_state || !stops.contains(&state) {
        return 0;
    }
    {
        // SAFETY: See above.
        let mut facts = unsafe { facts((*qp).device) }.lock();
        if facts.refusals.0 != 0 {
            facts.refusals.0 -= 1;
            return EIO.to_errno();
        }
        if state == bindings::ib_qp_state_IB_QPS_RESET {
            facts.sends.clear();
            facts.receives.clear();
            return 0;
        }
        if !facts.flushes {
            return 0;
        }
        for send in [true, false] {
            facts.complete(send, usize::MAX, bindings::ib_wc_status_IB_WC_WR_FLUSH_ERR);
        }
    }
    // SAFETY: The queue pair is valid, and so are its completion queues.
    unsafe {
        notify((*qp).send_cq);
        notify((*qp).recv_cq);
    }
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
    {
        // SAFETY: See above.
        let mut facts = unsafe { facts((*mr).device) }.lock();
        facts.ask(Asked::DeregMr);
        facts.kept.retain(|of| *of != mr.cast());
        if facts.refusals.1 != 0 {
            facts.refusals.1 -= 1;
            let _ = facts.kept.push_within_capacity(mr.cast());
            return EIO.to_errno();
        }
    }
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
    // SAFETY: See above; made by `alloc_mr`, and the core has noted the kind.
    unsafe {
        (*mr.cast::<RawMr>()).pages = 0;
        if (*mr).type_ == bindings::ib_mr_type_IB_MR_TYPE_SG_GAPS {
            // Such a device keeps a list of addresses and lengths.
            (*mr).iova = (*sg).dma_address;
            (*mr).length = 0;
            for at in 0..nents as usize {
                if set_page(mr, 0) != 0 {
                    return at as c_int;
                }
                (*mr).length += u64::from((*sg.add(at)).length);
            }
            return nents;
        }
        let bends = facts((*mr).device).lock().bends;
        let part = |at: usize| (*sg.add(at)).length as usize != PAGE_SIZE;
        // CAST: Lists of tests are short.
        let bend = (1..nents as usize).find(|at| bends && (part(at - 1) || part(*at)));
        // CAST: As above.
        let nents = bend.map_or(nents, |at| at as c_int);
        bindings::ib_sg_to_pages(mr, sg, nents, offset, Some(set_page))
    }
}

/// Takes a chain of work requests, as far as there is room. `take` notes one, and gives the next.
///
/// # Safety
///
/// `bad` can be written to.
unsafe fn post<W>(
    facts: &mut Facts,
    first: *const W,
    bad: *mut *const W,
    mut take: impl FnMut(&mut Facts, *const W) -> *const W,
) -> c_int {
    let mut next = first;
    while !next.is_null() {
        if facts.room == 0 {
            if !facts.vague {
                // SAFETY: As the caller promises.
                unsafe { *bad = next };
            }
            return ENOMEM.to_errno();
        }
        facts.room -= 1;
        next = take(facts, next);
    }
    0
}

/// What a work request of the send queue asks for.
///
/// # Safety
///
/// It is valid, and part of what its kind says.
unsafe fn asked_by(wr: *const bindings::ib_send_wr, signalled: bool) -> Asked {
    // SAFETY: As the caller promises; there are so many pieces.
    unsafe {
        let rdma = |kind: fn(u32, u32) -> Asked| {
            let pieces = (0..(*wr).num_sge as usize).map(|at| (*(*wr).sg_list.add(at)).length);
            kind((*wr.cast::<bindings::ib_rdma_wr>()).rkey, pieces.sum())
        };
        match (*wr).opcode {
            bindings::ib_wr_opcode_IB_WR_REG_MR => {
                Asked::Register((*wr.cast::<bindings::ib_reg_wr>()).key)
            }
            bindings::ib_wr_opcode_IB_WR_LOCAL_INV => {
                Asked::Invalidate((*wr).ex.invalidate_rkey, signalled)
            }
            bindings::ib_wr_opcode_IB_WR_SEND_WITH_INV => {
                Asked::SendInvalidate((*wr).ex.invalidate_rkey)
            }
            bindings::ib_wr_opcode_IB_WR_RDMA_READ
            | bindings::ib_wr_opcode_IB_WR_RDMA_READ_WITH_INV => rdma(Asked::Read),
            bindings::ib_wr_opcode_IB_WR_RDMA_WRITE => rdma(Asked::Write),
            _ => Asked::Send(signalled),
        }
    }
}

unsafe extern "C" fn post_send(
    qp: *mut bindings::ib_qp,
    first: *const bindings::ib_send_wr,
    bad: *mut *const bindings::ib_send_wr,
) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*qp).device) }.lock();
    facts.posts = facts.posts.saturating_add(1);
    // SAFETY: See above: a chain of valid work requests.
    let ret = unsafe {
        post(&mut facts, first, bad, |facts, wr| {
            let signalled = (*wr).send_flags & bindings::ib_send_flags_IB_SEND_SIGNALED != 0;
            let asked = asked_by(wr, signalled);
            if matches!(asked, Asked::Send(_) | Asked::SendInvalidate(_)) {
                let sge = &*(*wr).sg_list;
                let from = core::ptr::with_exposed_provenance::<u8>(sge.addr as usize);
                let len = facts.sent.len().min(sge.length as usize);
                facts.sent = [0; 64];
                // Without mappings of its own, a device is given addresses of the kernel.
                core::ptr::copy_nonoverlapping(from, facts.sent.as_mut_ptr(), len);
            }
            if matches!(asked, Asked::Read(..) | Asked::Write(..)) {
                // CAST: A small number.
                facts.pieces = facts.pieces.saturating_add((*wr).num_sge as usize);
            }
            facts.ask(asked);
            let _ = facts.sends.push_within_capacity(Posted {
                cqe: (*wr).__bindgen_anon_1.wr_cqe,
                signalled,
                addr: 0,
                len: 0,
            });
            (*wr).next
        })
    };
    if ret == 0 && facts.prompt {
        facts.complete(true, usize::MAX, bindings::ib_wc_status_IB_WC_SUCCESS);
        // SAFETY: See above; this only queues the work item.
        unsafe { notify((*qp).send_cq) };
    }
    ret
}

unsafe extern "C" fn post_recv(
    qp: *mut bindings::ib_qp,
    first: *const bindings::ib_recv_wr,
    bad: *mut *const bindings::ib_recv_wr,
) -> c_int {
    // SAFETY: See above.
    let mut facts = unsafe { facts((*qp).device) }.lock();
    // SAFETY: See above: a chain of valid work requests of one piece each.
    unsafe {
        post(&mut facts, first, bad, |facts, wr| {
            let _ = facts.receives.push_within_capacity(Posted {
                cqe: (*wr).__bindgen_anon_1.wr_cqe,
                signalled: true,
                addr: (*(*wr).sg_list).addr,
                len: (*(*wr).sg_list).length,
            });
            (*wr).next
        })
    }
}
