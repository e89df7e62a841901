// SPDX-License-Identifier: GPL-2.0

//! An accepted connection for tests, on a device that does what the test says ([`Fake`]): the
//! request for it comes by the handler of a listener, the service notes what it is told.

use crate::{
    bindings,
    ib::{
        kunit::fake::{
            self,
            Fake, //
        },
        lost::Lost,
        passive::{
            conn::{
                ServerConn,
                Service, //
            },
            incoming::{
                self,
                Incoming, //
            },
            limits::{
                ServerLimits,
                ServerParams, //
            },
            listen::{
                self,
                Doorbell,
                Listener, //
            },
            op::Reply,
            rx::Message, //
        },
        OWNER, //
    },
    rt::{
        kbuf::{
            KBuf,
            RawGfp, //
        },
        net::{
            Net,
            SockAddr, //
        },
        pages::Piece,
        pagevec::{
            PageVec,
            Payload, //
        },
    },
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    },
};

pub(super) const PARAMS: ServerParams = ServerParams {
    requests: 16,
    min_requests: 2,
    extra: 2,
    msg_bytes: 256,
    max_pages: 16,
};

/// The peer's region.
pub(super) const KEY: u32 = 0x1234_5600;

/// Pages of a payload.
pub(super) const PAGES: usize = 8;

/// Writes of a reply of which two do not fit into the send queue.
pub(super) const WRITES: usize = 600;

/// Counts those of its kind that exist.
struct Token(Arc<Atomic<u32>>);

impl Token {
    fn new(alive: &Arc<Atomic<u32>>) -> Self {
        alive.fetch_add(1, Relaxed);
        Self(alive.clone())
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What belongs to a Read.
pub(super) struct Job {
    number: u32,
    _token: Token,
}

impl Job {
    pub(super) fn new(number: u32, alive: &Arc<Atomic<u32>>) -> Self {
        Self {
            number,
            _token: Token::new(alive),
        }
    }
}

/// The memory of a reply.
pub(super) struct Source {
    buf: KBuf,
    _token: Token,
}

// SAFETY: The buffer is the value's own, and stays where it is when that moves.
unsafe impl Payload for Source {
    fn pieces(&self, at: usize, len: usize) -> impl Iterator<Item = Piece<'_>> {
        let mut at = at;
        let end = (at + len).min(self.buf.len());
        core::iter::from_fn(move || {
            let offset = at % PAGE_SIZE;
            let take = end.checked_sub(at)?.min(PAGE_SIZE - offset);
            if take == 0 {
                return None;
            }
            // SAFETY: The page is part of memory from kmalloc, which is aligned to pages by its size.
            let page = unsafe { bindings::virt_to_page(self.buf.as_ptr().add(at).cast()) };
            at += take;
            // SAFETY: As above; the value keeps it.
            Some(unsafe { Piece::new(NonNull::new(page)?, offset as u32, take as u32) })
        })
    }

    fn pages(&self) -> usize {
        self.buf.len().div_ceil(PAGE_SIZE)
    }

    fn into_room(self) -> PageVec {
        PageVec::new()
    }
}

pub(super) struct Facts {
    /// Messages are kept.
    pub(super) keep: bool,
    pub(super) kept: KVec<Message<Host>>,
    pub(super) received: usize,
    /// Pages and numbers of what was read.
    pub(super) read: KVec<(usize, u32)>,
    pub(super) congested: KVec<bool>,
    pub(super) known: bool,
    pub(super) writable: usize,
    /// What had been read by then.
    pub(super) read_before: usize,
    pub(super) idle: usize,
    pub(super) lost: usize,
    pub(super) why: Option<Lost>,
    pub(super) ended: usize,
    /// Payloads and jobs that were there at the end.
    pub(super) left: u32,
}

pub(super) type Seen = Arc<SpinLock<Facts>>;

/// Notes what it is told.
pub(super) struct Host {
    seen: Seen,
    alive: Arc<Atomic<u32>>,
}

impl Service for Host {
    type Job = Job;
    type Payload = Source;

    fn received(&self, msg: Message<Self>) {
        let mut facts = self.seen.lock();
        facts.received += 1;
        let rest = if facts.keep {
            facts.kept.push_within_capacity(msg).err().map(|e| e.0)
        } else {
            Some(msg)
        };
        drop(facts);
        // Not under the lock: it is posted again.
        drop(rest);
    }

    fn read_done(&self, pages: PageVec, job: Job) {
        let mut facts = self.seen.lock();
        let _ = facts.read.push_within_capacity((pages.len(), job.number));
    }

    fn congested(&self, congested: bool) {
        let mut facts = self.seen.lock();
        let _ = facts.congested.push_within_capacity(congested);
    }

    fn is_peer_known(&self) -> bool {
        self.seen.lock().known
    }

    fn writable(&self) {
        let mut facts = self.seen.lock();
        facts.writable += 1;
        facts.read_before = facts.read.len();
    }

    fn idle(&self) {
        self.seen.lock().idle += 1;
    }

    fn lost(&self, why: Lost) {
        let mut facts = self.seen.lock();
        facts.lost += 1;
        facts.why = Some(why);
    }

    fn ended(&self) {
        let mut facts = self.seen.lock();
        facts.ended += 1;
        facts.left = self.alive.load(Relaxed);
    }
}

/// Counts how often it rings.
pub(super) struct Bell {
    pub(super) rings: Arc<Atomic<u32>>,
    _token: Token,
}

impl Doorbell for Bell {
    fn ring(&self) {
        self.rings.fetch_add(1, Relaxed);
    }
}

/// A port of all addresses, and how often its bell rang. The bell is counted in `alive`.
pub(super) fn listener(
    net: &Net<'_>,
    alive: &Arc<Atomic<u32>>,
) -> Result<(Listener, Arc<Atomic<u32>>)> {
    let rings = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let bell = Bell {
        rings: rings.clone(),
        _token: Token::new(alive),
    };
    let mut addr: bindings::sockaddr_in = pin_init::zeroed();
    addr.sin_family = bindings::AF_INET as u16;
    // SAFETY: The address has so many bytes.
    let addr = unsafe {
        SockAddr::copy_from((&raw const addr).cast(), size_of::<bindings::sockaddr_in>())
    };
    let addr = addr.ok_or(EINVAL)?;
    let listener = Listener::new(net, &addr, Arc::new(bell, GFP_KERNEL)?)?;
    Ok((listener, rings))
}

/// A request as the connection manager brings it.
pub(super) struct Request<'a> {
    pub(super) private: &'a [u8],
    /// RDMA Reads that the peer can serve at a time.
    pub(super) reads: u8,
}

/// A peer asks for a connection over the device. Its identifier, unless it is refused.
pub(super) fn ask(
    listener: &Listener,
    fake: &Fake,
    request: &Request<'_>,
) -> Result<Option<*mut bindings::rdma_cm_id>> {
    let context = Arc::as_ptr(&listener.port).cast_mut().cast();
    // SAFETY: The namespace stays, and so does the port, until the identifier gets another context or
    // is destroyed below; the name lives for ever.
    let id = from_err_ptr(unsafe {
        bindings::__rdma_create_kernel_id(
            fake.net().as_raw(),
            Some(listen::port_handler),
            context,
            bindings::rdma_ucm_port_space_RDMA_PS_TCP,
            bindings::ib_qp_type_IB_QPT_RC,
            OWNER.as_char_ptr(),
        )
    })?;
    let mut event: bindings::rdma_cm_event = pin_init::zeroed();
    event.event = bindings::rdma_cm_event_type_RDMA_CM_EVENT_CONNECT_REQUEST;
    event.param.conn = bindings::rdma_conn_param {
        private_data: if request.private.is_empty() {
            core::ptr::null()
        } else {
            request.private.as_ptr().cast()
        },
        private_data_len: u8::try_from(request.private.len())?,
        initiator_depth: request.reads,
        ..pin_init::zeroed()
    };
    let family = bindings::AF_INET as u16;
    // SAFETY: Nobody else has the identifier; the event is one for it. When it is refused, it is the
    // caller of the handler who destroys it.
    unsafe {
        (*id).device = fake.as_raw();
        (*id).port_num = 1;
        // Addresses begin with their family.
        let addr = &raw mut (*id).route.addr;
        (&raw mut (*addr).src_addr).cast::<u16>().write(family);
        (&raw mut (*addr).dst_addr).cast::<u16>().write(family);
        if listen::port_handler(id, &mut event) == 0 {
            return Ok(Some(id));
        }
        bindings::rdma_destroy_id(id);
    }
    Ok(None)
}

/// The connection manager tells of an event, without more.
///
/// # Safety
///
/// `id` is the identifier of an [`Incoming`] that exists, or of the connection made of it.
pub(super) unsafe fn happens(id: *mut bindings::rdma_cm_id, kind: bindings::rdma_cm_event_type) {
    let mut event: bindings::rdma_cm_event = pin_init::zeroed();
    event.event = kind;
    // SAFETY: As the caller promises.
    unsafe { incoming::peer_handler(id, &mut event) };
}

/// A request that waits to be accepted.
pub(super) fn request(fake: &Fake, request: &Request<'_>) -> Result<KBox<Incoming>> {
    let bells = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let (listener, _) = listener(&fake.net(), &bells)?;
    ask(&listener, fake, request)?;
    listener.accept().0.ok_or(ENOENT)
}

/// All that [`ServerConn::accept`] makes, without a peer.
pub(super) fn accepted(
    fake: &Fake,
    seen: &Seen,
    alive: &Arc<Atomic<u32>>,
) -> Result<ServerConn<Host>> {
    accepted_from(fake.incoming(&[])?, seen, alive)
}

/// As [`accepted`], for this request.
pub(super) fn accepted_from(
    incoming: KBox<Incoming>,
    seen: &Seen,
    alive: &Arc<Atomic<u32>>,
) -> Result<ServerConn<Host>> {
    ServerConn::unanswered(incoming, &PARAMS, |_| {
        Ok(Host {
            seen: seen.clone(),
            alive: alive.clone(),
        })
    })
}

impl<S: Service> ServerConn<S> {
    /// As [`Self::accept`], but nobody is told.
    pub(crate) fn unanswered(
        incoming: KBox<Incoming>,
        params: &ServerParams,
        new: impl FnOnce(&ServerLimits) -> Result<S>,
    ) -> Result<Self> {
        let mut conn = Self::new(incoming, params, new)?;
        conn.make_queues(|id, domain, attr| {
            // SAFETY: As `make_queues` promises.
            unsafe { fake::create_qp(id, domain, attr) }
        })?;
        Ok(conn)
    }
}

impl Fake {
    /// A request that waits to be accepted.
    pub(crate) fn incoming(&self, private: &[u8]) -> Result<KBox<Incoming>> {
        request(self, &Request { private, reads: 1 })
    }
}

/// A service that has noted nothing, and a counter of payloads and jobs.
pub(super) fn service() -> Result<(Seen, Arc<Atomic<u32>>)> {
    const ROOM: usize = 64;
    let kept = KVec::with_capacity(ROOM, GFP_KERNEL)?;
    let read = KVec::with_capacity(ROOM, GFP_KERNEL)?;
    let congested = KVec::with_capacity(ROOM, GFP_KERNEL)?;
    let seen = Arc::pin_init(
        new_spinlock!(Facts {
            keep: false,
            kept,
            received: 0,
            read,
            congested,
            known: true,
            writable: 0,
            read_before: 0,
            idle: 0,
            lost: 0,
            why: None,
            ended: 0,
            left: 0,
        }),
        GFP_KERNEL,
    )?;
    Ok((seen, Arc::new(Atomic::new(0), GFP_KERNEL)?))
}

/// A device, what the service of its connection has seen, a counter of payloads and jobs, and the
/// connection. The device has noted nothing yet.
pub(super) fn server() -> Result<(Fake, Seen, Arc<Atomic<u32>>, ServerConn<Host>)> {
    let fake = Fake::new()?;
    let (seen, alive) = service()?;
    let conn = accepted(&fake, &seen, &alive)?;
    fake.asked()?;
    Ok((fake, seen, alive, conn))
}

/// Places in the send queue that are free.
pub(super) fn room(conn: &ServerConn<Host>) -> u32 {
    conn.shared.sq.lock().room
}

/// Messages that were kept. They are the caller's now.
pub(super) fn take_kept(seen: &Seen) -> KVec<Message<Host>> {
    core::mem::replace(&mut seen.lock().kept, KVec::new())
}

/// A reply with so many writes of a page each: one work request for each of them.
pub(super) fn reply<'c>(
    conn: &'c ServerConn<Host>,
    alive: &Arc<Atomic<u32>>,
    writes: usize,
) -> Result<Reply<'c, Host>> {
    let mut reply = conn.reply()?;
    reply.attach(Source {
        buf: KBuf::new(PAGES * PAGE_SIZE, RawGfp::KERNEL, -1)?,
        _token: Token::new(alive),
    });
    for n in 0..writes {
        let at = n % PAGES * PAGE_SIZE;
        reply.write(KEY, (n * PAGE_SIZE) as u64, at, PAGE_SIZE)?;
    }
    Ok(reply)
}

/// Posts such a reply. Whether it has to wait.
pub(super) fn post_reply(
    conn: &ServerConn<Host>,
    alive: &Arc<Atomic<u32>>,
    writes: usize,
) -> Result<bool> {
    reply(conn, alive, writes)?.post(16, None)
}

/// Posts a Read into pages. Whether it has to wait.
pub(super) fn post_read(
    conn: &ServerConn<Host>,
    alive: &Arc<Atomic<u32>>,
    pages: PageVec,
    number: u32,
) -> Result<bool> {
    let bytes = pages.len() * PAGE_SIZE;
    let mut read = conn.read(pages)?;
    read.add(KEY, 0, 0, bytes)?;
    read.post(Job::new(number, alive))
}

/// A page that somebody else has, too.
pub(super) struct Shared(NonNull<bindings::page>);

impl Shared {
    /// Whether the others have given it back.
    pub(super) fn is_alone(&self) -> bool {
        // SAFETY: The value has a reference.
        unsafe { (&raw const (*self.0.as_ptr())._refcount.counter).read_volatile() == 1 }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: The reference is the value's own.
        unsafe { bindings::put_page(self.0.as_ptr()) };
    }
}

/// So many pages, none of which is physically behind the one before it, and the first of them.
pub(super) fn pages(count: usize) -> Result<(PageVec, Shared)> {
    let mut list = PageVec::new().with_room(count)?;
    let mut between = KVec::new();
    let mut last: *mut bindings::page = core::ptr::null_mut();
    while list.len() < count {
        let page = Page::alloc_page(GFP_KERNEL)?;
        if last.wrapping_add(1) == page.as_ptr() {
            between.push(page, GFP_KERNEL)?;
            continue;
        }
        last = page.as_ptr();
        let raw = NonNull::new(last).ok_or(ENOMEM)?;
        // SAFETY: The reference of `page`, which is forgotten.
        unsafe { list.push(raw) }?;
        core::mem::forget(page);
    }
    let first = list.page(0).ok_or(EINVAL)?;
    // SAFETY: The page is there.
    unsafe { bindings::get_page(first.as_ptr()) };
    Ok((list, Shared(first)))
}

/// `1 << order` pages, each physically behind the one before it.
pub(super) fn block(order: u32) -> Result<PageVec> {
    let count = 1usize.checked_shl(order).ok_or(EINVAL)?;
    let mut list = PageVec::new().with_room(count)?;
    let gfp = bindings::GFP_KERNEL | (1 << bindings::___GFP_COMP_BIT);
    // SAFETY: Of pages that belong together, all are there as long as there is a reference to one.
    let first = unsafe { bindings::alloc_pages(gfp, order) };
    if first.is_null() {
        return Err(ENOMEM);
    }
    for number in 0..count {
        let page = NonNull::new(first.wrapping_add(number)).ok_or(ENOMEM)?;
        // SAFETY: As above; the first reference is that of the allocation.
        unsafe {
            if number != 0 {
                bindings::get_page(page.as_ptr());
            }
            list.push(page)?;
        }
    }
    Ok(list)
}
