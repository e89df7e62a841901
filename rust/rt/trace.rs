// SPDX-License-Identifier: GPL-2.0

//! Tracepoints: a function for each, which costs one instruction that does nothing while nobody
//! looks, and computes what it shows only when somebody does.
//!
//! The kernel crate's macro for this knows the kernel's own tracepoints alone.
//!
//! C header: [include/linux/tracepoint.h](srctree/include/linux/tracepoint.h)

use crate::{
    bindings,
    rt::net::{
        SockAddr,
        Text, //
    }, //
};
use kernel::{
    prelude::*,
    str::CStr, //
};

/// What a tracepoint can be called with.
///
/// # Safety
///
/// What [`Self::raw`] returns may be passed to a C function that does not keep it, and that reads
/// from pointers to the type that they point to, as long as `self` is borrowed and an RCU read-side
/// critical section lasts.
pub(crate) unsafe trait Value {
    /// The C type.
    type Raw;

    /// The value for C.
    fn raw(&self) -> Self::Raw;
}

macro_rules! plain {
    ($($ty:ty),*) => {$(
        // SAFETY: Not a pointer.
        unsafe impl Value for $ty {
            type Raw = $ty;

            #[inline]
            fn raw(&self) -> $ty {
                *self
            }
        }
    )*};
}

plain!(bool, i32, u32, i64, u64, usize, isize);

// SAFETY: A string that ends with 0.
unsafe impl Value for &CStr {
    type Raw = *const c_char;

    fn raw(&self) -> *const c_char {
        self.as_char_ptr()
    }
}

/// C copies as many bytes as IPv6 addresses have, whatever the family.
///
// SAFETY: The storage is as large as addresses can be, and initialised.
unsafe impl Value for SockAddr {
    type Raw = *const bindings::sockaddr;

    fn raw(&self) -> *const bindings::sockaddr {
        self.as_ptr()
    }
}

// SAFETY: A string that ends with 0.
unsafe impl Value for Text {
    type Raw = *const c_char;

    fn raw(&self) -> *const c_char {
        self.as_c_str().as_char_ptr()
    }
}

/// Makes functions for tracepoints of `c/trace.h`.
///
/// `fn event(argument: Type)` becomes `event(|| (argument,))`, which calls its argument only if
/// the tracepoint is on. A mark `[each]` makes it `event(|show| show((argument,)))`, for any number
/// of events. That types and number of arguments are what C expects is checked by the compiler:
/// bindgen has the prototypes from the same header.
macro_rules! tracepoints {
    ($(
        $(#[doc = $doc:literal])*
        fn $name:ident $([$each:ident])? $(<$life:lifetime>)? ($($arg:ident: $ty:ty),+ $(,)?);
    )*) => {$(
        $crate::rt::trace::tracepoint! {
            [$($each)?] $(#[doc = $doc])* fn $name [$($life)?] ($($arg: $ty),+);
        }
    )*};
}

macro_rules! tracepoint {
    (
        [] $(#[$doc:meta])* fn $name:ident [$($life:lifetime)?] ($($arg:ident: $ty:ty),+);
    ) => {
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name<$($life)?>(args: impl FnOnce() -> ($($ty,)+)) {
            #[cold]
            #[inline(never)]
            fn show<$($life,)? F: FnOnce() -> ($($ty,)+)>(args: F) {
                let ($($arg,)+) = args();
                $crate::rt::trace::emit!($name($($arg),+));
            }
            if $crate::rt::trace::is_on!($name) {
                show(args);
            }
        }
    };
    (
        [each] $(#[$doc:meta])* fn $name:ident [$($life:lifetime)?] ($($arg:ident: $ty:ty),+);
    ) => {
        $(#[$doc])*
        #[inline]
        pub(crate) fn $name<$($life)?>(all: impl FnOnce(&dyn Fn(($($ty,)+)))) {
            #[cold]
            #[inline(never)]
            fn show<$($life,)? F: FnOnce(&dyn Fn(($($ty,)+)))>(all: F) {
                all(&|($($arg,)+)| $crate::rt::trace::emit!($name($($arg),+)));
            }
            if $crate::rt::trace::is_on!($name) {
                show(all);
            }
        }
    };
}

/// Whether somebody looks at a tracepoint.
macro_rules! is_on {
    ($name:ident) => {{
        #[cfg(CONFIG_TRACEPOINTS)]
        // SAFETY: A static key that C has made, as part of a tracepoint.
        let is_on = unsafe {
            ::kernel::macros::paste! {
                ::kernel::jump_label::static_branch_unlikely!(
                    $crate::bindings::[<__tracepoint_ $name>],
                    $crate::bindings::tracepoint,
                    key
                )
            }
        };
        #[cfg(not(CONFIG_TRACEPOINTS))]
        let is_on = false;
        is_on
    }};
}

/// Calls a tracepoint.
macro_rules! emit {
    ($name:ident($($arg:expr),+)) => {{
        let _rcu = ::kernel::sync::rcu::read_lock();
        #[cfg(CONFIG_TRACEPOINTS)]
        // SAFETY: The function takes these values, does not keep them, and may be called in any
        // context. `Value` promises that it may look at them.
        unsafe {
            ::kernel::macros::paste! {
                $crate::bindings::[<rust_do_trace_ $name>](
                    $($crate::rt::trace::Value::raw(&$arg)),+
                )
            }
        };
        #[cfg(not(CONFIG_TRACEPOINTS))]
        let _ = ($(&$arg),+,);
    }};
}

pub(crate) use {
    emit,
    is_on,
    tracepoint,
    tracepoints, //
};
