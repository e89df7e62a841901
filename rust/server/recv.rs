// SPDX-License-Identifier: GPL-2.0

//! How a call gets to sunrpc (rows S33 to S51).

use super::{
    bc,
    conn::{
        Connection,
        Job,
        Peer,
        Work, //
    },
    ctxt::CallCtxt,
    plan::{
        Plan,
        Step, //
    },
    tunables, //
};
use crate::{
    ib::{
        Message,
        Read, //
    },
    rt::err,
    sunrpc::CallRqst,
    trace,
    wire::{
        self,
        Call,
        CallError,
        Fixed,
        Proc,
        Segment,
        WireError, //
    },
};
use kernel::prelude::*;

/// Makes a call of some work. `None` when there is none (yet); after an error the connection is
/// closed.
pub(super) fn receive(
    conn: &Connection,
    work: Work,
    rqst: &mut CallRqst<'_>,
) -> Result<Option<KBox<CallCtxt>>> {
    let message = match work {
        Work::Read(pages, job) => {
            trace::svcrdma_read_finished(|| (job.cid,));
            let mut ctxt = job.ctxt;
            ctxt.spare = rqst.exchange_pages(pages)?.emptied();
            job.shape.apply(rqst)?;
            return Ok(Some(ctxt));
        }
        Work::Message(message) => message,
    };
    tunables::RECEIVES.add(1);
    let outcome = take_up(conn, &message, rqst)?;
    // The client may send the next one when it has the answer to this one: its buffer is there before that.
    drop(message);
    match outcome {
        Outcome::Call(ctxt) => Ok(Some(ctxt)),
        Outcome::Nothing => Ok(None),
        Outcome::Refused(error) => refuse(conn, &error),
        Outcome::Reads(reads, job, xid) => match reads.post(job) {
            Ok(waits) => {
                if waits {
                    tunables::STARVED.add(1);
                }
                Ok(None)
            }
            // Row S49: more work requests than the send queue has.
            Err(e) if e == err::emsgsize() => refuse(conn, &bad_chunk(xid)),
            Err(e) => Err(e),
        },
    }
}

/// What has become of a message.
enum Outcome<'c> {
    /// A call is complete.
    Call(KBox<CallCtxt>),
    /// Nothing is left to do.
    Nothing,
    /// It makes no sense.
    Refused(CallError),
    /// This has to be read first, for the call with this XID.
    Reads(Read<'c, Peer>, Job, u32),
}

/// Takes from a message what there is.
fn take_up<'c>(
    conn: &'c Connection,
    message: &Message<Peer>,
    rqst: &mut CallRqst<'_>,
) -> Result<Outcome<'c>> {
    let bytes = message.bytes();
    if wire::is_backward_reply(bytes) && rqst.has_bc() {
        bc::receive(rqst, bytes);
        return Ok(Outcome::Nothing);
    }
    let call = match wire::decode_call(bytes, &conn.limits) {
        Ok(call) => call,
        Err(error) => {
            trace_bad(message, &error);
            return Ok(Outcome::Refused(error));
        }
    };
    trace_call(message, &call);
    if !call.reads.is_empty() {
        return read(conn, &call, bytes, message.cid(), rqst);
    }
    if call.proc != Proc::Msg || call.inline.is_empty() {
        // Rows W39 and X61: the client need not wait for its timeout.
        return Ok(Outcome::Refused(bad_chunk(call.xid)));
    }
    rqst.write(0, call.inline)?;
    rqst.set_linear(call.inline.len())?;
    Ok(Outcome::Call(conn.take_ctxt(&call, bytes)?))
}

/// Prepares to read what belongs to a call.
fn read<'c>(
    conn: &'c Connection,
    call: &Call<'_>,
    bytes: &[u8],
    cid: trace::Cid,
    rqst: &mut CallRqst<'_>,
) -> Result<Outcome<'c>> {
    let Ok(plan) = Plan::new(call, rqst.max_pages()) else {
        // Row W37, but the connection stays: nothing was touched.
        return Ok(Outcome::Refused(bad_chunk(call.xid)));
    };
    let mut ctxt = conn.take_ctxt(call, bytes)?;
    let mut to_read = false;
    plan.walk(&mut |at, step| match step {
        Step::Copy(bytes) => rqst.write(at, bytes),
        Step::Zero(len) => rqst.clear(at, len),
        Step::Read(_) => {
            to_read = true;
            Ok(())
        }
    })?;
    if !to_read {
        // All segments are empty.
        plan.shape.apply(rqst)?;
        return Ok(Outcome::Call(ctxt));
    }
    let spare = core::mem::take(&mut ctxt.spare);
    let pages = rqst.take_pages(spare, plan.shape.page_count())?;
    let mut reads = conn.rdma().read(pages)?;
    let mut count = 0u32;
    plan.walk(&mut |at, step| {
        if let Step::Read(from) = step {
            // CAST: 32 bits fit.
            let len = from.length as usize;
            count = count.wrapping_add(reads.add(from.handle, from.offset, at, len)?);
        }
        Ok(())
    })?;
    tunables::READS.add(count.into());
    let job = Job {
        ctxt,
        shape: plan.shape,
        cid,
    };
    Ok(Outcome::Reads(reads, job, call.xid))
}

#[inline]
fn trace_call(message: &Message<Peer>, call: &Call<'_>) {
    trace::svcrdma_decode_rqst(|| {
        // CAST: At most 64 KiB.
        let header = call.inline_offset as u32;
        let proc = call.proc.as_u32();
        (
            message.cid(),
            call.xid,
            wire::VERSION,
            proc,
            call.credits,
            header,
        )
    });
    trace::svcrdma_decode_rseg(|show| {
        for (number, read) in (0..u32::MAX).zip(call.reads.clone()) {
            show((message.cid(), number, read.position, traced(&read.segment)));
        }
    });
    trace::svcrdma_decode_wseg(|show| {
        for chunk in Iterator::chain(call.writes.clone(), call.reply) {
            for (number, segment) in (0..u32::MAX).zip(chunk.segments()) {
                show((message.cid(), number, traced(&segment)));
            }
        }
    });
}

/// A segment for tracepoints.
pub(super) fn traced(segment: &Segment) -> trace::Segment {
    trace::Segment {
        handle: segment.handle,
        length: segment.length,
        offset: segment.offset,
    }
}

#[cold]
fn trace_bad(message: &Message<Peer>, error: &CallError) {
    let cid = || message.cid();
    let Ok((fixed, _)) = Fixed::decode(message.bytes()) else {
        // CAST: At most 64 KiB.
        trace::svcrdma_decode_short_err(|| (cid(), message.bytes().len() as u32));
        return;
    };
    let header = || (cid(), fixed.xid, fixed.version, fixed.proc, fixed.credits);
    match error {
        CallError::ErrVers { .. } => trace::svcrdma_decode_badvers_err(header),
        CallError::Drop => trace::svcrdma_decode_drop_err(header),
        CallError::ErrChunk {
            error: WireError::BadProc(_),
            ..
        } => trace::svcrdma_decode_badproc_err(header),
        CallError::ErrChunk { .. } => trace::svcrdma_decode_parse_err(header),
    }
}

fn bad_chunk(xid: u32) -> CallError {
    CallError::ErrChunk {
        xid,
        version: wire::VERSION,
        error: WireError::BadChunk,
    }
}

fn refuse(conn: &Connection, error: &CallError) -> Result<Option<KBox<CallCtxt>>> {
    conn.refuse(error)?;
    Ok(None)
}
