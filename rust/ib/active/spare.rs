// SPDX-License-Identifier: GPL-2.0

//! What a lost connection leaves to the next one (row X23): its protection domain, memory regions and
//! message buffers, if that one is over the same device.
//!
//! Reconnecting is what happens when a network or a server is in trouble, and often memory is short
//! then: what is there already need not be asked for.

use super::raw_mr::RawMr;
use crate::{
    ib::{
        device::{
            DeviceLease,
            Link,
            Listening,
            Tenant, //
        },
        dma::{
            Direction,
            DmaBuf, //
        },
        lost::Lost,
        pd::Pd, //
    },
    rt::{
        kbuf::RawGfp,
        queue, //
    },
};
use kernel::{
    alloc::flags::GFP_NOWAIT,
    fmt,
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

/// The parts.
pub(super) struct Parts {
    /// All others belong to it.
    pub(super) pd: Arc<Pd>,
    /// Idle regions.
    pub(super) regions: KVVec<RawMr>,
    /// Receive buffers.
    rx: KVVec<DmaBuf>,
    /// Send buffers.
    tx: KVVec<DmaBuf>,
}

impl Parts {
    /// Nothing but a protection domain.
    pub(super) fn new(pd: Arc<Pd>) -> Self {
        Self {
            pd,
            regions: KVVec::new(),
            rx: KVVec::new(),
            tx: KVVec::new(),
        }
    }

    /// Keeps what is left of a connection's rings and pool, as far as there is memory for the lists.
    pub(super) fn keep(
        &mut self,
        regions: (usize, impl Iterator<Item = RawMr>),
        rx: (usize, impl Iterator<Item = DmaBuf>),
        tx: (usize, impl Iterator<Item = DmaBuf>),
    ) {
        append(&mut self.regions, regions);
        append(&mut self.rx, rx);
        append(&mut self.tx, tx);
    }

    /// A buffer of `size` bytes: one that is there, or a new one. Those of another size go. Sleeps.
    pub(super) fn buffer(&mut self, size: u32, dir: Direction) -> Result<DmaBuf> {
        let kept = match dir {
            Direction::FromDevice => &mut self.rx,
            Direction::ToDevice => &mut self.tx,
        };
        // CAST: At most 64 KiB.
        let size = size as usize;
        while let Some(buf) = kept.pop() {
            if buf.len() == size {
                return Ok(buf);
            }
        }
        DmaBuf::new(&self.pd, size, dir, RawGfp::NOIO)
    }

    /// A region for `depth` pages that is there. Those of another kind go. Sleeps.
    pub(super) fn region(&mut self, depth: u32, gaps: bool) -> Option<RawMr> {
        while let Some(region) = self.regions.pop() {
            if region.is_like(depth, gaps) {
                return Some(region);
            }
        }
        None
    }
}

/// Adds so many; those for which there is no room are dropped: whoever waits for a connection to end
/// does not wait for memory.
fn append<T>(list: &mut KVVec<T>, (count, more): (usize, impl Iterator<Item = T>)) {
    let room = list.reserve(count, GFP_NOWAIT).is_ok();
    for item in more {
        if room {
            // What does not fit is dropped there.
            let _ = list.push_within_capacity(item);
        }
    }
}

/// What the device's removal takes.
#[pin_data]
struct Kept {
    #[pin]
    parts: Mutex<Option<Parts>>,
    #[pin]
    work: Work<Self>,
}

impl_has_work! {
    impl HasWork<Self> for Kept { self.work }
}

impl WorkItem for Kept {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // The device's removal waits for it, and file systems may wait for that.
        queue::without_fs(|| {
            let parts = this.parts.lock().take();
            drop(parts);
        });
    }
}

/// The device goes, and waits for its leases. To free some hundred regions takes time, in which others
/// have to be told.
struct Removal(Arc<Kept>);

impl Link for Removal {
    fn lost(&self, _why: Lost) {
        // An error means that it is on its way already.
        let _ = queue::module_queue().enqueue::<_, 0>(self.0.clone());
    }
}

impl Tenant for Removal {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(" state=kept")
    }
}

/// Parts of a connection that is gone, for the next one. They go with the device, should it be removed.
///
/// Dropping it sleeps.
///
/// What is left of the connection itself (an `Arc` of [`crate::ib::domain::Domain`] in each of its regions and
/// queues) keeps the next connection from using them: so nothing that a peer could reach once is in the
/// protection domain when the next peer comes.
pub(crate) struct Spare {
    // Nobody is told any more before the rest goes.
    listening: Listening,
    kept: Arc<Kept>,
}

impl Spare {
    /// Keeps parts. `None`, and they are gone, if the device is on its way out or memory is missing.
    pub(super) fn new(parts: Parts) -> Option<Self> {
        let pd = parts.pd.clone();
        let kept = Arc::pin_init(
            pin_init!(Kept {
                parts <- new_mutex!(Some(parts)),
                work <- new_work!("rpcrdma_rust::spare"),
            }),
            GFP_NOWAIT,
        )
        .ok()?;
        let link = Arc::new(Removal(kept.clone()), GFP_NOWAIT).ok()?;
        let listening = pd.lease().listen(link, GFP_NOWAIT).ok()?;
        Some(Self { listening, kept })
    }

    /// The parts, if they are of this device and still there.
    pub(super) fn open(self, lease: &DeviceLease) -> Option<Parts> {
        let Self { listening, kept } = self;
        let parts = kept.parts.lock().take();
        drop(listening);
        // The lease of the parts keeps its device: another one is at another address. Somebody may not
        // be done yet with what the last connection had: its peer must not reach that again.
        parts.filter(|parts| parts.pd.lease().as_raw() == lease.as_raw() && parts.pd.is_clean())
    }
}
