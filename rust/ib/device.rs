// SPDX-License-Identifier: GPL-2.0

//! RDMA devices, and how long they may be used.
//!
//! The RDMA core tells its clients that a device goes away by calling `remove`, and the device is
//! gone when that returns. A [`DeviceLease`] keeps `remove` from returning; whoever holds one is
//! told through [`Link::lost`] that it is time to let go.
//!
//! C header: [include/rdma/ib_verbs.h](srctree/include/rdma/ib_verbs.h)

use super::{
    lost::Lost,
    pd::{
        self,
        Kept, //
    },
};
use crate::{
    bindings,
    rt::{
        completion::Completion,
        debugfs::Show,
        err,
        queue,
        ratelimit::say,
        stack::Stack, //
    },
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    alloc::Flags,
    error::to_result,
    fmt,
    prelude::*,
    str::CStr,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        global_lock,
        new_mutex,
        Arc,
        Mutex,
        Refcount, //
    },
    types::Opaque, //
};

/// Somebody who wants to know when what it uses is about to go.
pub(super) trait Link: Send + Sync + 'static {
    /// Called in process context, that of an accepted connection in any (a queue pair's event may come in an
    /// interrupt); maybe with locks of the caller held: must not sleep and only schedules what has to be done. May be
    /// called more than once.
    fn lost(&self, why: Lost);
}

/// Somebody who has something of a device.
pub(super) trait Tenant: Link {
    /// Says on one line what that is, as `key=value`, behind a space each. Must not allocate, or wait
    /// for who does: connections wait for the caller.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// What uses which device, for administrators: a line each.
pub(crate) struct Connections;

impl Show for Connections {
    fn show(f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in DEVICES.lock().iter() {
            // SAFETY: The device is valid: its removal waits for the lock.
            let name = unsafe { DeviceName::copy(entry.dev.as_ptr()) };
            for (_, tenant) in entry.state.lock().tenants.iter() {
                f.write_fmt(fmt!("device={name}"))?;
                tenant.show(f)?;
                f.write_str("\n")?;
            }
        }
        Ok(())
    }
}

/// How many devices were added so far.
static ADDED: Atomic<u32> = Atomic::new(0);

/// A number that changes when a device is added: where there was no way to a peer, there may be one.
pub(crate) fn device_news() -> u32 {
    ADDED.load(Relaxed)
}

/// What a device can do, as far as a connection needs to know.
#[derive(Clone, Copy)]
pub(super) struct Caps {
    /// Fast registration and local and remote invalidation.
    pub(super) mem_mgt: bool,
    /// Memory regions may have gaps between their pieces.
    pub(super) sg_gaps: bool,
    /// When the peer has invalidated a region, it cannot reach it any more.
    pub(super) remote_inv_ends: bool,
    /// Pages that one memory region can cover.
    pub(super) max_fast_reg: u32,
    /// Work requests that one queue can hold.
    pub(super) max_qp_wr: u32,
    /// Completions that one completion queue can hold.
    pub(super) max_cqe: u32,
    /// Reads and atomics that a peer may have outstanding at a queue pair.
    pub(super) max_qp_rd_atom: u32,
}

/// A device's name, for messages: a copy.
#[derive(Clone, Copy)]
pub(crate) struct DeviceName([u8; DeviceName::LEN]);

impl DeviceName {
    /// What the RDMA core has for names.
    const LEN: usize = 64;

    /// Copies the name of a device, which somebody may be changing.
    ///
    /// # Safety
    ///
    /// The device is valid.
    unsafe fn copy(dev: *const bindings::ib_device) -> Self {
        // Longer ones do not exist.
        let mut copy = [0; Self::LEN];
        for (n, to) in copy.iter_mut().enumerate().take(Self::LEN - 1) {
            // SAFETY: The name has so many bytes, which are always there.
            *to = unsafe { (&raw const (*dev).name).cast::<u8>().add(n).read_volatile() };
        }
        Self(copy)
    }

    /// The name of a device that was added and is not being removed. `dev` is only compared. Sleeps.
    pub(super) fn of(dev: *mut bindings::ib_device) -> Option<Self> {
        let devices = DEVICES.lock();
        let entry = devices.iter().find(|entry| entry.dev.as_ptr() == dev);
        entry.map(|entry| entry.name)
    }

    /// The name.
    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// " by device rxe0", for messages about what may have got no device yet: then nothing.
pub(crate) struct ByDevice(pub(crate) Option<DeviceName>);

impl fmt::Display for ByDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(name) => f.write_fmt(fmt!(" by device {name}")),
            None => Ok(()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_c_str(), f)
    }
}

/// One device as long as we may use it.
#[pin_data]
struct Entry {
    dev: NonNull<bindings::ib_device>,
    /// What it was called when it was added.
    name: DeviceName,
    /// The table's own lease counts as one.
    leases: Refcount,
    #[pin]
    idle: Completion,
    #[pin]
    state: Mutex<State>,
}

struct State {
    removing: bool,
    /// Protection domains without users that go with the device, or with us.
    kept: Stack<Kept>,
    tenants: KVec<(u64, Arc<dyn Tenant>)>,
}

// SAFETY: The device may be used from any thread; the rest is `Send`.
unsafe impl Send for Entry {}

// SAFETY: As above, and the rest is `Sync`.
unsafe impl Sync for Entry {}

global_lock! {
    // SAFETY: `Client::new` initialises the lock before it registers the callbacks, and nothing
    // looks for a device before that.
    unsafe(uninit) static DEVICES: Mutex<KVec<Arc<Entry>>> = KVec::new();
}

static NEXT_LISTENER: Atomic<u64> = Atomic::new(1);

/// The right to use a device.
///
/// # Invariants
///
/// The `remove` callback for the device has not returned: the device is valid.
pub(super) struct DeviceLease {
    entry: Arc<Entry>,
}

impl DeviceLease {
    /// Takes a lease on a device that the connection manager chose.
    ///
    /// `dev` is only compared, so it need not be valid. Sleeps. `ENOTCONN` when the device is
    /// not there any more or on its way out (row M27).
    pub(super) fn new(dev: *mut bindings::ib_device) -> Result<Self> {
        let devices = DEVICES.lock();
        let entry = devices
            .iter()
            .find(|entry| entry.dev.as_ptr() == dev)
            .ok_or_else(err::enotconn)?;
        let state = entry.state.lock();
        if state.removing {
            return Err(err::enotconn());
        }
        // INVARIANT: `remove` sets `removing` under the lock we hold, and waits for the count.
        entry.leases.inc();
        Ok(Self {
            entry: entry.clone(),
        })
    }

    /// Keeps a protection domain until the device goes, or we do. Sleeps.
    ///
    /// # Safety
    ///
    /// It is one of the device, and has no user.
    pub(super) unsafe fn inherit(&self, kept: KBox<Kept>) {
        self.entry.state.lock().kept.push(kept);
    }

    /// The device as C knows it: valid as long as the lease.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_device {
        self.entry.dev.as_ptr()
    }

    /// The device's name. An administrator may be changing it.
    pub(super) fn name(&self) -> DeviceName {
        // SAFETY: The device is valid by the type invariant.
        unsafe { DeviceName::copy(self.entry.dev.as_ptr()) }
    }

    /// The NUMA node that is near.
    pub(super) fn node(&self) -> i32 {
        // SAFETY: The device is valid by the type invariant.
        unsafe { bindings::ibdev_to_node(self.as_raw()) }
    }

    /// What the device can do.
    pub(super) fn caps(&self) -> Caps {
        // SAFETY: The device is valid by the type invariant; attributes and verbs do not change.
        let (attrs, driver) = unsafe { (&(*self.as_raw()).attrs, (*self.as_raw()).ops.driver_id) };
        Caps {
            // CAST: The bit is in the lower half.
            mem_mgt: attrs.device_cap_flags
                & bindings::ib_device_cap_flags_IB_DEVICE_MEM_MGT_EXTENSIONS as u64
                != 0,
            sg_gaps: attrs.kernel_cap_flags
                & u64::from(bindings::ib_kernel_cap_flags_IBK_SG_GAPS_REG)
                != 0,
            // A packet that is sent again may make rxe register the region once more. siw does not
            // look whether it is registered already.
            remote_inv_ends: driver != bindings::rdma_driver_id_RDMA_DRIVER_RXE
                && driver != bindings::rdma_driver_id_RDMA_DRIVER_SIW,
            max_fast_reg: attrs.max_fast_reg_page_list_len,
            max_qp_wr: u32::try_from(attrs.max_qp_wr).unwrap_or(0),
            max_cqe: u32::try_from(attrs.max_cqe).unwrap_or(0),
            max_qp_rd_atom: u32::try_from(attrs.max_qp_rd_atom).unwrap_or(0),
        }
    }

    /// Asks to be told when the device goes. Sleeps.
    pub(super) fn listen(&self, link: Arc<dyn Tenant>, gfp: Flags) -> Result<Listening> {
        let id = NEXT_LISTENER.fetch_add(1, Relaxed);
        let mut state = self.entry.state.lock();
        if state.removing {
            return Err(err::enotconn());
        }
        // The device's removal waits for this lock, and file systems may wait for that.
        queue::without_fs(|| state.tenants.push((id, link), gfp))?;
        // CAST: To tell them apart, the lower half will do.
        let name = self.name();
        trace::rpcrdma_client_register(|| (name.as_c_str(), trace::Callback, id as u32));
        Ok(Listening {
            entry: self.entry.clone(),
            id,
        })
    }
}

impl Drop for DeviceLease {
    fn drop(&mut self) {
        self.entry.put();
    }
}

/// A registered [`Link`]. When it is dropped, no call of [`Link::lost`] from here is running and
/// none will come. Sleeps in drop.
pub(super) struct Listening {
    entry: Arc<Entry>,
    id: u64,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let gone = {
            let mut state = self.entry.state.lock();
            let index = state.tenants.iter().position(|(id, _)| *id == self.id);
            index.and_then(|index| state.tenants.remove(index).ok())
        };
        if gone.is_some() {
            let entry = &self.entry;
            // CAST: As in `listen`.
            trace::rpcrdma_client_unregister(|| {
                (entry.name.as_c_str(), trace::Callback, self.id as u32)
            });
        }
        // Not under the lock: it may be the last reference.
        drop(gone);
    }
}

impl Entry {
    /// One user less.
    fn put(&self) {
        if self.leases.dec_and_test() {
            trace::rpcrdma_client_completion(|| (self.name.as_c_str(),));
            self.idle.complete_all();
        }
    }
}

/// Our registration with the RDMA core, which keeps the table of devices.
///
/// Dropping it waits until no device is in use by this module.
#[pin_data(PinnedDrop)]
pub(crate) struct Client {
    #[pin]
    raw: Opaque<bindings::ib_client>,
}

// SAFETY: The registration may be dropped by any thread; nothing else can be done with it.
unsafe impl Send for Client {}

// SAFETY: There are no methods.
unsafe impl Sync for Client {}

impl Client {
    /// Registers with the core under `name` (row M8). Sleeps.
    ///
    /// # Safety
    ///
    /// Called at most once in the life of the module.
    pub(crate) unsafe fn new(name: &'static CStr) -> impl PinInit<Self, Error> {
        // SAFETY: The caller promises that there is no second call.
        unsafe { DEVICES.init() };
        try_pin_init!(Self {
            raw <- Opaque::try_ffi_init(|slot: *mut bindings::ib_client| {
                // SAFETY: `slot` is memory for an `ib_client`, for which all zeroes are a valid
                // start.
                unsafe {
                    slot.write_bytes(0, 1);
                    (*slot).name = name.as_char_ptr();
                    (*slot).add = Some(add);
                    (*slot).remove = Some(remove);
                }
                // SAFETY: The client is initialised, stays where it is, and is unregistered
                // before it goes.
                to_result(unsafe { bindings::ib_register_client(slot) })
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Client {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by `new`. This calls `remove` for every device.
        unsafe { bindings::ib_unregister_client(self.raw.get()) };
        // Statics are not dropped when a module goes.
        *DEVICES.lock() = KVec::new();
    }
}

/// # Safety
///
/// Called by the RDMA core with a device that is valid until `remove` for it returns.
pub(super) unsafe extern "C" fn add(dev: *mut bindings::ib_device) -> c_int {
    // SAFETY: The device is valid.
    let name = unsafe { DeviceName::copy(dev) };
    let new = || -> Result {
        let entry = Arc::pin_init(
            try_pin_init!(Entry {
                dev: NonNull::new(dev).ok_or(EINVAL)?,
                name,
                leases: Refcount::new(1),
                idle <- Completion::new(),
                state <- new_mutex!(State { removing: false, kept: Stack::new(), tenants: KVec::new() }),
            }),
            GFP_KERNEL,
        )?;
        trace::rpcrdma_client_add_one(|| (entry.name.as_c_str(),));
        // Whoever connects waits for this lock, and file systems for that.
        queue::without_fs(|| DEVICES.lock().push(entry, GFP_KERNEL))?;
        ADDED.add(1, Relaxed);
        Ok(())
    };
    new().map_or_else(Error::to_errno, |()| 0)
}

/// # Safety
///
/// Called by the RDMA core once for every device that was added, from a context that may sleep.
pub(super) unsafe extern "C" fn remove(dev: *mut bindings::ib_device, _data: *mut c_void) {
    let entry = {
        let mut devices = DEVICES.lock();
        let index = devices.iter().position(|entry| entry.dev.as_ptr() == dev);
        index.and_then(|index| devices.remove(index).ok())
    };
    let Some(entry) = entry else { return };
    trace::rpcrdma_client_remove_one(|| (entry.name.as_c_str(),));
    {
        let mut state = entry.state.lock();
        state.removing = true;
        if !state.tenants.is_empty() {
            say!(
                pr_notice,
                "device {} is being removed, {} connections have to let go of it\n",
                entry.name,
                state.tenants.len()
            );
        }
        for (_, link) in state.tenants.iter() {
            link.lost(Lost::DeviceRemoved);
        }
    }
    trace::rpcrdma_client_wait_on(|| (entry.name.as_c_str(),));
    entry.put();
    entry.idle.wait();
    let kept = entry.state.lock().kept.take();
    // SAFETY: See `DeviceLease::inherit`; the device is there until this function returns.
    unsafe { pd::free_kept(kept) };
    trace::rpcrdma_client_remove_one_done(|| (entry.name.as_c_str(),));
}
