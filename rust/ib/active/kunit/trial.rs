// SPDX-License-Identifier: GPL-2.0

//! A connection for tests, on a device that does what the test says ([`Fake`]), of a protocol
//! that notes what it is told.

use crate::{
    bindings,
    ib::{
        active::{
            cm,
            conn::{
                Conn,
                Protocol, //
            },
            expose::{
                Exposed,
                Exposing, //
            },
            inner::{
                phase,
                Cx,
                Inner, //
            },
            limits::{
                Attempt,
                Limits,
                Params, //
            },
            rx::{
                RemoteInvalidated,
                RxMsg, //
            },
            spare::{
                Parts,
                Spare, //
            },
        },
        device::DeviceLease,
        domain::Domain,
        kunit::{
            counter,
            fake::{
                self,
                Fake,
                DEPTH, //
            },
        },
        lost::Lost,
        pd::Pd, //
    },
    rt::{
        err,
        kbuf::{
            KBuf,
            RawGfp, //
        },
        net::SockAddr,
        pages::{
            Access,
            Lease,
            Piece, //
        },
    },
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed,
            Release, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    }, //
};

pub(super) const REQUESTS: u32 = 16;
/// Regions of a set of eight pages.
pub(super) const TWO: usize = 2;

/// What keeps the pages of a set. The counter says whether it exists.
pub(super) struct Memory {
    pub(super) buf: Arc<KBuf>,
    /// What of each page is meant: where it begins, and how long it is. The first ones are listed.
    pieces: &'static [(u32, u32)],
    alive: Arc<Atomic<u32>>,
}

impl Memory {
    pub(super) fn new(alive: &Arc<Atomic<u32>>) -> Result<Self> {
        let buf = KBuf::new(TWO * DEPTH as usize * PAGE_SIZE, RawGfp::KERNEL, -1)?;
        alive.fetch_add(1, Relaxed);
        Ok(Self {
            buf: Arc::new(buf, GFP_KERNEL)?,
            pieces: &[],
            alive: alive.clone(),
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Relaxed);
    }
}

#[derive(Clone)]
pub(super) struct Pages<'l> {
    buf: &'l KBuf,
    pieces: &'static [(u32, u32)],
    pages: Range<usize>,
}

impl<'l> Iterator for Pages<'l> {
    type Item = Piece<'l>;

    fn next(&mut self) -> Option<Piece<'l>> {
        let number = self.pages.next()?;
        let whole = (0, PAGE_SIZE as u32);
        let (offset, len) = self.pieces.get(number).copied().unwrap_or(whole);
        let at = number * PAGE_SIZE;
        // SAFETY: The page is part of memory from kmalloc, which is aligned to pages by its size.
        let page = unsafe { bindings::virt_to_page(self.buf.as_ptr().add(at).cast()) };
        // SAFETY: As above; the lease keeps it. Tests list pieces of pages only.
        Some(unsafe { Piece::new(NonNull::new(page)?, offset, len) })
    }
}

// SAFETY: The buffer is the value's own.
unsafe impl Lease for Memory {
    type Part<'a> = Range<usize>;
    type Pieces<'l> = Pages<'l>;

    fn access(_: &Range<usize>) -> Access {
        Access::Read
    }

    fn pieces<'l>(&'l self, part: &'l Range<usize>) -> Pages<'l> {
        Pages {
            buf: &self.buf,
            pieces: self.pieces,
            pages: part.start..part.end.min(self.buf.len() / PAGE_SIZE),
        }
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Then {
    Drop,
    Keep,
    /// The set is invalidated, with this number.
    Invalidate(u32),
}

pub(super) struct Facts {
    pub(super) then: Then,
    pub(super) messages: usize,
    pub(super) kept: KVec<RxMsg<Proto>>,
    pub(super) set: Option<Exposed<Proto>>,
    pub(super) lease: Option<Memory>,
    /// Numbers of fences, and how many regions they ended.
    pub(super) fenced: KVec<(u32, Option<usize>)>,
    /// What the set said of keys that the peer invalidated.
    pub(super) remote: KVec<bool>,
    pub(super) refused: usize,
    pub(super) lost: usize,
    pub(super) why: Option<Lost>,
    pub(super) writable: usize,
}

pub(super) type Seen = Arc<SpinLock<Facts>>;

/// Notes what it is told.
pub(super) struct Proto(Seen);

impl Proto {
    pub(super) fn seen() -> Result<Seen> {
        const ROOM: usize = 64;
        let kept = KVec::with_capacity(ROOM, GFP_KERNEL)?;
        let fenced = KVec::with_capacity(ROOM, GFP_KERNEL)?;
        let remote = KVec::with_capacity(ROOM, GFP_KERNEL)?;
        Arc::pin_init(
            new_spinlock!(Facts {
                then: Then::Drop,
                messages: 0,
                kept,
                set: None,
                lease: None,
                fenced,
                remote,
                refused: 0,
                lost: 0,
                why: None,
                writable: 0,
            }),
            GFP_KERNEL,
        )
    }
}

impl Protocol for Proto {
    type Lease = Memory;
    type Pending = u32;

    fn receive(
        &self,
        cx: &Cx<'_, Self>,
        msg: RxMsg<Self>,
        proof: Option<RemoteInvalidated<'_, Self>>,
    ) {
        let (then, mut set) = {
            let mut facts = self.0.lock();
            facts.messages += 1;
            (facts.then, facts.set.take())
        };
        if let (Some(set), Some(proof)) = (&mut set, proof) {
            let taken = set.remote_invalidated(proof).is_ok();
            let _ = self.0.lock().remote.push_within_capacity(taken);
        }
        if let Then::Invalidate(number) = then {
            set = set.and_then(|set| match cx.invalidate(set, number) {
                Ok(()) => None,
                Err((set, _)) => {
                    self.0.lock().refused += 1;
                    Some(set)
                }
            });
        }
        let mut facts = self.0.lock();
        if set.is_some() {
            facts.set = set;
        }
        if then == Then::Keep {
            let _ = facts.kept.push_within_capacity(msg);
        }
    }

    fn fenced(
        &self,
        _cx: &Cx<'_, Self>,
        number: u32,
        result: Result<(Memory, usize), Exposed<Self>>,
    ) {
        let mut facts = self.0.lock();
        let count = match result {
            Ok((lease, count)) => {
                facts.lease = Some(lease);
                Some(count)
            }
            Err(set) => {
                facts.set = Some(set);
                None
            }
        };
        let _ = facts.fenced.push_within_capacity((number, count));
    }

    fn writable(&self) {
        self.0.lock().writable += 1;
    }

    fn regions_created(&self, _count: u32) {}

    fn receives_posted(&self, _queue: u32, _count: usize, _ring: u32, _result: Result) {}

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(" state=trial")
    }

    fn lost(&self, why: Lost) {
        let mut facts = self.0.lock();
        facts.lost += 1;
        facts.why = Some(why);
    }
}

/// A device, what the protocol of its connection has seen, a counter of leases, and the connection.
pub(super) fn trial() -> Result<(Fake, Seen, Arc<Atomic<u32>>, Conn<Proto>)> {
    let (fake, seen, alive) = (Fake::new()?, Proto::seen()?, counter()?);
    let conn = connection(&fake, &seen)?;
    Ok((fake, seen, alive, conn))
}

/// The connection alone.
fn connection(fake: &Fake, seen: &Seen) -> Result<Conn<Proto>> {
    next_connection(fake, seen, None)
}

/// The same, with what an earlier connection left.
pub(super) fn next_connection(
    fake: &Fake,
    seen: &Seen,
    spare: Option<Spare>,
) -> Result<Conn<Proto>> {
    connection_with(fake, seen, spare, false)
}

/// The same, whose peer may be trusted.
pub(super) fn connection_with(
    fake: &Fake,
    seen: &Seen,
    spare: Option<Spare>,
    trusts_peer: bool,
) -> Result<Conn<Proto>> {
    let dst = SockAddr::none();
    let params = Params {
        net: fake.net(),
        dst: &dst,
        requests: REQUESTS,
        min_requests: 2,
        extra: 1,
        tx_bytes: 256,
        rx_bytes: 256,
        max_pages: 2 * DEPTH,
        extra_regions: 0,
        max_regions: 8,
        trusts_peer,
        private: &[],
        msecs: 1000,
        wanted: &|| true,
        attempt: &Attempt::default(),
    };
    fake.connect(&params, spare, |_| Proto(seen.clone()))
}

impl Fake {
    /// What a connection over this device gets.
    pub(crate) fn limits(&self, params: &Params<'_>) -> Result<Limits> {
        let lease = DeviceLease::new(self.as_raw())?;
        Limits::new(&lease.caps(), lease.name(), params)
    }

    /// All that [`Conn::connect`] makes, without a peer, and so without memory for padding.
    pub(crate) fn connect<P: Protocol>(
        &self,
        params: &Params<'_>,
        spare: Option<Spare>,
        new: impl FnOnce(&Limits) -> P,
    ) -> Result<Conn<P>> {
        let id = cm::Id::new(&params.net, cm::Events::new()?)?;
        let lease = DeviceLease::new(self.as_raw())?;
        let limits = self.limits(params)?;
        let mut parts = match spare.and_then(|spare| spare.open(&lease)) {
            Some(parts) => parts,
            None => Parts::new(Pd::new(lease)?),
        };
        let domain = Domain::new(parts.pd.clone())?;
        let inner = Inner::new(new(&limits), limits, id.events().clone())?;
        let mut conn = Conn::new(id, domain, inner);
        conn.make_queues(params, &mut parts, |id, domain, attr| {
            // SAFETY: As `make_queues` promises.
            unsafe { fake::create_qp(id.as_raw(), domain, attr) }
        })?;
        conn.inner.phase.store(phase::UP, Release);
        Ok(conn)
    }
}

/// A set of eight pages, and its keys.
pub(super) fn set(
    conn: &mut Conn<Proto>,
    alive: &Arc<Atomic<u32>>,
) -> Result<(Exposing<Proto>, KVec<u32>)> {
    let mut set = Exposing::new(Memory::new(alive)?);
    let mut keys = KVec::new();
    let mut tx = conn.reserve().ok_or_else(err::enobufs)?;
    let (_, regions) = tx.split();
    set.expose::<Error>(
        &(0..TWO * DEPTH as usize),
        7,
        || regions.take().ok_or(ENOMEM),
        |named| Ok(keys.push(named.handle.rkey, GFP_KERNEL)?),
    )?;
    Ok((set, keys))
}

/// The bytes of each memory region that is made of pieces of pages: see [`Memory`].
pub(super) fn cut(
    conn: &mut Conn<Proto>,
    alive: &Arc<Atomic<u32>>,
    pieces: &'static [(u32, u32)],
) -> Result<KVec<u32>> {
    let mut memory = Memory::new(alive)?;
    memory.pieces = pieces;
    let mut set = Exposing::new(memory);
    let mut bytes = KVec::new();
    let mut tx = conn.reserve().ok_or_else(err::enobufs)?;
    let (_, regions) = tx.split();
    set.expose::<Error>(
        &(0..pieces.len()),
        7,
        || regions.take().ok_or(ENOMEM),
        |named| Ok(bytes.push(named.handle.len, GFP_KERNEL)?),
    )?;
    drop(set.cancel());
    Ok(bytes)
}

/// Sends a message with a set, which the protocol has then. Its keys.
pub(super) fn send_set(
    conn: &mut Conn<Proto>,
    seen: &Seen,
    alive: &Arc<Atomic<u32>>,
) -> Result<KVec<u32>> {
    let (set, keys) = set(conn, alive)?;
    let tx = conn.reserve().ok_or_else(err::enobufs)?;
    tx.send_exposing(16, set, |set| seen.lock().set = Some(set))?;
    Ok(keys)
}

pub(super) fn idle(conn: &Conn<Proto>) -> usize {
    conn.inner.mrs.lock().idle.len()
}

pub(super) fn take_set(seen: &Seen) -> Result<Exposed<Proto>> {
    seen.lock().set.take().ok_or(ENOENT)
}
