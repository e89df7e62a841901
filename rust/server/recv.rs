// SPDX-License-Identifier: GPL-2.0

//! How a call gets to sunrpc (rows S33 to S51).

use super::{
    bc,
    conn::{
        Connection,
        Job,
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
    rt::err,
    sunrpc::CallRqst,
    wire::{
        self,
        Call,
        CallError,
        Proc,
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
            drop(rqst.exchange_pages(pages)?);
            job.shape.apply(rqst)?;
            return Ok(Some(job.ctxt));
        }
        Work::Message(message) => message,
    };
    tunables::RECEIVES.add(1);
    let bytes = message.bytes();
    if wire::is_backward_reply(bytes) && rqst.has_bc() {
        bc::receive(rqst, bytes);
        return Ok(None);
    }
    let call = match wire::decode_call(bytes, &conn.limits) {
        Ok(call) => call,
        Err(error) => return refuse(conn, &error),
    };
    if !call.reads.is_empty() {
        return read(conn, &call, bytes, rqst);
    }
    if call.proc != Proc::Msg || call.inline.is_empty() {
        // Rows W39 and X61: the client need not wait for its timeout.
        return refuse(conn, &bad_chunk(&call));
    }
    rqst.write(0, call.inline)?;
    rqst.set_linear(call.inline.len())?;
    Ok(Some(conn.take_ctxt(&call, bytes)?))
}

/// Starts to read what belongs to a call.
fn read(
    conn: &Connection,
    call: &Call<'_>,
    bytes: &[u8],
    rqst: &mut CallRqst<'_>,
) -> Result<Option<KBox<CallCtxt>>> {
    let Ok(plan) = Plan::new(call, rqst.max_pages()) else {
        // Row W37, but the connection stays: nothing was touched.
        return refuse(conn, &bad_chunk(call));
    };
    let ctxt = conn.take_ctxt(call, bytes)?;
    let mut to_read = false;
    plan.walk(&mut |at, step| match step {
        Step::Copy(bytes) => rqst.write(at, bytes),
        Step::Read(_) => {
            to_read = true;
            Ok(())
        }
    })?;
    if !to_read {
        // All segments are empty.
        plan.shape.apply(rqst)?;
        return Ok(Some(ctxt));
    }
    let pages = rqst.take_pages(plan.shape.page_count())?;
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
    };
    match reads.post(job) {
        Ok(waits) => {
            if waits {
                tunables::STARVED.add(1);
            }
            Ok(None)
        }
        // Row S49: more work requests than the send queue has.
        Err(e) if e == err::emsgsize() => refuse(conn, &bad_chunk(call)),
        Err(e) => Err(e),
    }
}

fn bad_chunk(call: &Call<'_>) -> CallError {
    CallError::ErrChunk {
        xid: call.xid,
        version: wire::VERSION,
        error: WireError::BadChunk,
    }
}

fn refuse(conn: &Connection, error: &CallError) -> Result<Option<KBox<CallCtxt>>> {
    conn.refuse(error)?;
    Ok(None)
}
