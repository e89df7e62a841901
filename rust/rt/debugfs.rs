// SPDX-License-Identifier: GPL-2.0

//! Files of debugfs that show something.
//!
//! Not the kernel crate's: its files have no owner, so the module could go while somebody has one open,
//! and closing that would look at what the module's memory was.
//!
//! C headers: [include/linux/debugfs.h](srctree/include/linux/debugfs.h),
//! [include/linux/seq_file.h](srctree/include/linux/seq_file.h)

use crate::bindings;
use core::marker::PhantomData;
use kernel::{
    fmt,
    prelude::*,
    seq_file::SeqFile,
    seq_print, //
};

/// What a file shows.
pub(crate) trait Show: 'static {
    /// Writes all of it. Process context, may sleep. If the reader has not enough room, it is called
    /// again.
    fn show(f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// The text of a `T`.
struct Text<T>(PhantomData<T>);

impl<T: Show> fmt::Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::show(f)
    }
}

/// A directory of the module's own, with one file, which root may read. Both go when this is dropped,
/// which waits for readers. While somebody has the file open, the module cannot go, unless its loading
/// fails: nothing may fail after this was made.
///
/// # Invariants
///
/// The pointer is a directory made by this type, or an error.
pub(crate) struct File<T: Show> {
    dir: *mut bindings::dentry,
    _text: PhantomData<fn() -> T>,
}

// SAFETY: Any thread may remove a directory.
unsafe impl<T: Show> Send for File<T> {}

// SAFETY: There are no methods.
unsafe impl<T: Show> Sync for File<T> {}

impl<T: Show> File<T> {
    const OPS: bindings::file_operations = bindings::file_operations {
        owner: crate::THIS_MODULE.as_ptr(),
        open: Some(open::<T>),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// Makes them. May sleep. Where that fails, or there is no debugfs, they are not there: nothing
    /// depends on them.
    pub(crate) fn new(dir: &CStr, name: &CStr) -> Self {
        // SAFETY: The names are copied. The functions take errors for directories. The operations are
        // static, and have no data.
        let dir = unsafe {
            let dir = bindings::debugfs_create_dir(dir.as_char_ptr(), core::ptr::null_mut());
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                dir,
                core::ptr::null_mut(),
                core::ptr::null(),
                const { &Self::OPS },
            );
            dir
        };
        // INVARIANT: Made just now.
        Self {
            dir,
            _text: PhantomData,
        }
    }
}

impl<T: Show> Drop for File<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; the function does nothing with errors.
        unsafe { bindings::debugfs_remove(self.dir) };
    }
}

/// # Safety
///
/// debugfs calls it for a file that is being opened.
unsafe extern "C" fn open<T: Show>(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: As the caller promises.
    unsafe { bindings::single_open(file, Some(show::<T>), core::ptr::null_mut()) }
}

/// # Safety
///
/// Called for a sequential file that is being read.
unsafe extern "C" fn show<T: Show>(seq: *mut bindings::seq_file, _data: *mut c_void) -> c_int {
    // SAFETY: As the caller promises.
    let seq = unsafe { SeqFile::from_raw(seq) };
    seq_print!(seq, "{}", Text::<T>(PhantomData));
    0
}
