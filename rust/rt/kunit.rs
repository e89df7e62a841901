// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of this layer: they run when the module is loaded by a kernel with `CONFIG_KUNIT=y`,
//! which Debian's is not. [`include/kunit/test.h`](srctree/include/kunit/test.h).

use kernel::prelude::*;

#[kunit_tests(rpcrdma_rt)]
mod tests {
    use super::super::{
        completion::Completion,
        fifo::{
            Fifo,
            Ring, //
        },
        kbuf::{
            KBuf,
            RawGfp, //
        },
        ratelimit::RateLimit,
        stack::{
            Linked,
            Stack, //
        }, //
    };
    use kernel::{
        prelude::*,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    /// An element that counts those of its kind that exist.
    struct Item<'a> {
        number: u32,
        alive: &'a Atomic<u32>,
        link: Option<KBox<Self>>,
    }

    impl<'a> Item<'a> {
        fn new(number: u32, alive: &'a Atomic<u32>) -> Result<KBox<Self>> {
            let item = Self {
                number,
                alive,
                link: None,
            };
            let item = KBox::new(item, GFP_KERNEL)?;
            alive.fetch_add(1, Relaxed);
            Ok(item)
        }
    }

    impl Drop for Item<'_> {
        fn drop(&mut self) {
            self.alive.fetch_sub(1, Relaxed);
        }
    }

    impl Linked for Item<'_> {
        fn link(&mut self) -> &mut Option<KBox<Self>> {
            &mut self.link
        }
    }

    fn number(item: Option<KBox<Item<'_>>>) -> Option<u32> {
        item.map(|item| item.number)
    }

    #[test]
    fn stack_gives_back_the_newest() -> Result {
        let alive = Atomic::new(0);
        let mut stack = Stack::new();
        for n in 0..3 {
            stack.push(Item::new(n, &alive)?);
        }
        assert_eq!(stack.len(), 3);
        assert_eq!(stack.top().map(|item| item.number), Some(2));
        assert_eq!(number(stack.pop()), Some(2));
        assert_eq!(number(stack.pop()), Some(1));
        assert_eq!(stack.len(), 1);
        let rest = stack.take();
        assert!(stack.is_empty() && stack.pop().is_none());
        assert_eq!(alive.load(Relaxed), 1);
        drop(rest);
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn stack_takes_one_from_the_middle() -> Result {
        let alive = Atomic::new(0);
        let mut stack = Stack::new();
        for n in 0..5 {
            stack.push(Item::new(n, &alive)?);
        }
        assert_eq!(number(stack.remove_if(|item| item.number == 2)), Some(2));
        assert!(stack.remove_if(|item| item.number == 2).is_none());
        let mut order = 0;
        stack.for_each(|item| order = order * 10 + item.number);
        assert_eq!(order, 4310);
        assert_eq!(stack.len(), 4);
        Ok(())
    }

    #[test]
    fn stack_of_any_length_can_be_dropped() -> Result {
        // With one frame of 32 bytes for each, the kernel's stack of 16 KiB would not do.
        let alive = Atomic::new(0);
        let mut stack = Stack::new();
        for n in 0..5000 {
            stack.push(Item::new(n, &alive)?);
        }
        drop(stack);
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn fifo_keeps_the_order() -> Result {
        let alive = Atomic::new(0);
        let mut fifo = Fifo::new();
        let (mut put, mut got) = (0, 0);
        for round in 0..20 {
            for _ in 0..round % 5 {
                fifo.push(Item::new(put, &alive)?);
                put += 1;
            }
            for _ in 0..round % 3 {
                if let Some(item) = fifo.pop() {
                    assert_eq!(item.number, got);
                    got += 1;
                }
            }
            assert_eq!(alive.load(Relaxed), put - got);
            assert_eq!(fifo.is_empty(), put == got);
        }
        assert!(put > got && got > 0);
        drop(fifo);
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn fifo_keeps_what_is_not_wanted_first() -> Result {
        let alive = Atomic::new(0);
        let mut fifo = Fifo::new();
        for n in 0..3 {
            fifo.push(Item::new(n, &alive)?);
        }
        assert!(fifo.pop_if(|item| item.number > 0).is_none());
        assert_eq!(number(fifo.pop_if(|item| item.number == 0)), Some(0));
        fifo.push(Item::new(3, &alive)?);
        let mut rest = fifo.take();
        assert!(fifo.pop_if(|_| true).is_none());
        for n in 1..4 {
            assert_eq!(number(rest.pop()), Some(n));
        }
        assert!(rest.is_empty());
        Ok(())
    }

    #[test]
    fn ring_refuses_what_has_no_room() -> Result {
        let mut ring = Ring::new(3)?;
        // Around the end several times.
        for round in 0..7 {
            for n in 0..3 {
                assert!(ring.push(round * 3 + n).is_ok());
            }
            assert_eq!(ring.push(99), Err(99));
            assert_eq!(ring.pop(), Some(round * 3));
            assert!(ring.push(1000).is_ok());
            assert_eq!(ring.pop(), Some(round * 3 + 1));
            assert_eq!(ring.pop(), Some(round * 3 + 2));
            assert_eq!(ring.pop(), Some(1000));
            assert_eq!(ring.pop(), None);
        }
        let mut none = Ring::new(0)?;
        assert_eq!(none.push(1), Err(1));
        assert_eq!(none.pop(), None);
        Ok(())
    }

    #[test]
    fn buffer_is_zeroed_and_has_its_size() -> Result {
        assert!(KBuf::new(0, RawGfp::KERNEL, -1).is_err());
        for size in [1, 7, 4096, 4097, 1 << 16] {
            let mut buffer = KBuf::new(size, RawGfp::NOIO, -1)?;
            assert_eq!(buffer.len(), size);
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
            // KASAN sees a size that is not what was allocated.
            buffer.as_mut_slice().fill(0x5a);
            assert_eq!(
                buffer
                    .as_slice()
                    .iter()
                    .filter(|byte| **byte == 0x5a)
                    .count(),
                size
            );
        }
        Ok(())
    }

    #[test]
    fn completion_lets_one_or_all_go_on() -> Result {
        let event = KBox::pin_init(Completion::new(), GFP_KERNEL)?;
        assert!(!event.is_done());
        assert!(!event.wait_msecs(1));
        event.complete();
        assert!(event.is_done());
        assert!(event.wait_msecs(1));
        assert!(!event.wait_msecs(1));
        event.complete_all();
        event.wait();
        event.wait();
        event.reinit();
        assert!(!event.is_done());
        Ok(())
    }

    #[test]
    fn messages_are_ten_in_an_interval() {
        let limit = RateLimit::new();
        assert_eq!((0..50).filter(|_| limit.pass().is_some()).count(), 10);
    }
}
