// SPDX-License-Identifier: GPL-2.0

//! Message buffers that stay mapped for a device.

use super::pd::Pd;
use crate::{
    bindings,
    rt::{
        kbuf::{
            KBuf,
            RawGfp, //
        },
        sysctl::Gauge,
    },
    trace, //
};
use core::mem::ManuallyDrop;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The bytes of all message buffers that exist.
pub(crate) static MESSAGE_BYTES: Gauge = Gauge::new();

/// Which way data moves through a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// The device reads.
    ToDevice,
    /// The device writes.
    FromDevice,
}

impl Direction {
    /// As C spells it.
    pub(super) const fn as_raw(self) -> bindings::dma_data_direction {
        match self {
            Self::ToDevice => bindings::dma_data_direction_DMA_TO_DEVICE,
            Self::FromDevice => bindings::dma_data_direction_DMA_FROM_DEVICE,
        }
    }
}

/// A buffer that is mapped for a device all its life.
///
/// # Invariants
///
/// `addr` is a mapping of the whole of `buf` for the device of `pd`, in direction `dir`.
pub(super) struct DmaBuf {
    buf: ManuallyDrop<KBuf>,
    addr: u64,
    dir: Direction,
    pd: Arc<Pd>,
}

impl DmaBuf {
    /// Allocates `size` bytes near the device and maps them. Sleeps.
    pub(super) fn new(pd: &Arc<Pd>, size: usize, dir: Direction, gfp: RawGfp) -> Result<Self> {
        let buf = KBuf::new(size, gfp, pd.lease().node())?;
        let dev = pd.lease().as_raw();
        // SAFETY: The lease keeps the device; the memory is kmalloc'ed and `size` bytes long.
        let addr = unsafe {
            bindings::ib_dma_map_single(dev, buf.as_mut_ptr().cast(), size, dir.as_raw())
        };
        // SAFETY: As above.
        if unsafe { bindings::ib_dma_mapping_error(dev, addr) } != 0 {
            trace::xprtrdma_dma_maperr(|| (addr,));
            return Err(EIO);
        }
        // CAST: 64 bits are enough for sizes.
        MESSAGE_BYTES.add(size as u64);
        // INVARIANT: Just mapped.
        Ok(Self {
            buf: ManuallyDrop::new(buf),
            addr,
            dir,
            pd: pd.clone(),
        })
    }

    /// The buffer as a gather or scatter element of `len` bytes.
    pub(super) fn sge(&self, len: u32) -> bindings::ib_sge {
        bindings::ib_sge {
            addr: self.addr,
            length: len,
            lkey: self.pd.lkey(),
        }
    }

    /// The size in bytes.
    pub(super) fn len(&self) -> usize {
        self.buf.len()
    }

    /// The first `len` bytes after the device wrote them: call [`Self::for_cpu`] before.
    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.as_slice()
    }

    /// The bytes, for the CPU to fill: call [`Self::for_device`] afterwards.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buf.as_mut_slice()
    }

    /// Makes what the device wrote visible to the CPU.
    pub(super) fn for_cpu(&self, len: usize) {
        // SAFETY: By the type invariant; the length is within the mapping.
        unsafe {
            bindings::ib_dma_sync_single_for_cpu(
                self.pd.lease().as_raw(),
                self.addr,
                len.min(self.buf.len()),
                self.dir.as_raw(),
            );
        }
    }

    /// Hands the first `len` bytes to the device (row X42).
    pub(super) fn for_device(&self, len: usize) {
        // SAFETY: By the type invariant; the length is within the mapping.
        unsafe {
            bindings::ib_dma_sync_single_for_device(
                self.pd.lease().as_raw(),
                self.addr,
                len.min(self.buf.len()),
                self.dir.as_raw(),
            );
        }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        if self.pd.is_live() {
            // The device may use it for ever.
            // SAFETY: Memory from kmalloc.
            unsafe { bindings::kmemleak_not_leak(self.buf.as_ptr().cast()) };
            return;
        }
        // CAST: As in `new`.
        MESSAGE_BYTES.sub(self.buf.len() as u64);
        // SAFETY: By the type invariant, and with the parameters of the mapping. The lease in the
        // protection domain still keeps the device. The buffer is not used again.
        unsafe {
            bindings::ib_dma_unmap_single(
                self.pd.lease().as_raw(),
                self.addr,
                self.buf.len(),
                self.dir.as_raw(),
            );
            ManuallyDrop::drop(&mut self.buf);
        }
    }
}
