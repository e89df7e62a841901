// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of replies, from the completion of their Receive to that of their call, over a device that does
//! what the test says: whose they are, when the peer can reach the call's memory no more, and what becomes of
//! those that no honest server sends.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_reply)]
mod tests {
    use super::super::{
        super::{
            slot::Memory,
            Rdma, //
        },
        trial::{
            connect,
            REQUESTS, //
        },
    };
    use crate::{
        ib::{
            Asked,
            Fake, //
        },
        sunrpc::{
            TrialClient,
            TrialTask, //
        }, //
    };
    use kernel::{
        page::PAGE_SIZE,
        prelude::*, //
    };

    type Client = TrialClient<Rdma>;
    type Task<'x> = TrialTask<'x, Rdma>;

    const OK: u32 = 0;
    const FAILED: u32 = 10;
    /// Room for a reply that fits into a message, and for those that take one memory region and two.
    const SHORT: usize = 200;
    const ONE: usize = 2 * PAGE_SIZE;
    const TWO: usize = 5 * PAGE_SIZE;
    /// Where the keys of the first and the second region are in the header of a call, in words.
    const KEYS: [usize; 2] = [8, 12];
    /// The bytes of a reply that is in two regions.
    const LEN: usize = 4 * PAGE_SIZE + 100;

    fn trial() -> Result<(Fake, Client)> {
        let (fake, xprt) = (Fake::new()?, Client::new()?);
        connect(&fake, &xprt)?;
        Ok((fake, xprt))
    }

    fn message(words: &[u32], rest: &[u8]) -> Result<KVec<u8>> {
        let mut all = KVec::new();
        for word in words {
            all.extend_from_slice(&word.to_be_bytes(), GFP_KERNEL)?;
        }
        all.extend_from_slice(rest, GFP_KERNEL)?;
        Ok(all)
    }

    /// A reply that is all in its message.
    fn short(xid: u32, rest: &[u8]) -> Result<KVec<u8>> {
        message(&[xid, 1, REQUESTS, 0, 0, 0, 0], rest)
    }

    /// The header of the call that was sent last, in words.
    fn sent(fake: &Fake) -> [u32; 16] {
        let mut words = [0; 16];
        for (to, from) in words.iter_mut().zip(fake.sent().chunks_exact(4)) {
            *to = from
                .iter()
                .fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        words
    }

    /// The reply to a call with two regions, of which `last` bytes are in the second one.
    fn long(call: &[u32; 16], last: u32) -> Result<KVec<u8>> {
        let mut words = *call;
        // The message is in the Reply chunk.
        words[3] = 1;
        words[KEYS[1] + 1] = last;
        message(&words, &[])
    }

    /// The keys that were to be invalidated since this was asked last.
    fn invalidated(fake: &Fake) -> Result<KVec<u32>> {
        let mut keys = KVec::new();
        for asked in &fake.asked()? {
            if let Asked::Invalidate(key, _) = asked {
                keys.push(*key, GFP_KERNEL)?;
            }
        }
        Ok(keys)
    }

    /// Whether nobody else can reach the memory of the task's call.
    fn is_home(xprt: &Client, task: &Task<'_>) -> bool {
        let (mut number, mut home) = (0, false);
        xprt.for_each_slot(|slot| {
            home |= task.slot() == Some(number) && matches!(slot.lock().memory, Memory::Home(_));
            number += 1;
        });
        home
    }

    #[test]
    fn reply_completes_the_call_that_it_names() -> Result {
        let (fake, xprt) = trial()?;
        let tasks = [Task::new(&xprt)?, Task::new(&xprt)?, Task::new(&xprt)?];
        for (task, xid) in tasks.iter().zip(1..) {
            task.call(xid, SHORT)?;
        }
        let [first, second, third] = &tasks;
        assert!(fake.receive(&short(2, b"second")?, None));
        assert!(second.outcome() == Some(Ok(6)) && second.reply(6)?.as_slice() == b"second");
        assert!(first.outcome().is_none() && third.outcome().is_none());
        assert!(fake.receive(&short(3, b"the third")?, None));
        assert!(third.outcome() == Some(Ok(9)) && third.reply(9)?.as_slice() == b"the third");
        assert!(fake.receive(&short(1, b"one")?, None));
        assert!(first.outcome() == Some(Ok(3)) && first.reply(3)?.as_slice() == b"one");
        // None of them has a credit any more, and the server has none either.
        for task in &tasks {
            task.give_up()?;
        }
        assert_eq!((xprt.window(), xprt.used()), (REQUESTS as usize, 0));
        // Nothing was there to be invalidated.
        assert_eq!(invalidated(&fake)?.len(), 0);
        assert!(!xprt.is_to_close());
        Ok(())
    }

    #[test]
    fn call_is_complete_when_its_fence_is() -> Result {
        let (fake, xprt) = trial()?;
        let (task, other) = (Task::new(&xprt)?, Task::new(&xprt)?);
        other.call(1, TWO)?;
        task.call(2, TWO)?;
        let call = sent(&fake);
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        assert!(!is_home(&xprt, &task));
        assert!(fake.receive(&long(&call, 100)?, None));
        let keys = invalidated(&fake)?;
        assert!(keys.len() == 2 && KEYS.iter().all(|at| keys.contains(&call[*at])));
        // The first of the two.
        fake.complete(1, OK);
        assert!(task.outcome().is_none() && !is_home(&xprt, &task));
        fake.complete(1, OK);
        assert!(task.outcome() == Some(Ok(LEN)) && is_home(&xprt, &task));
        assert!(other.outcome().is_none() && !is_home(&xprt, &other));
        assert!(!xprt.is_to_close());
        Ok(())
    }

    #[test]
    fn what_the_server_has_invalidated_needs_no_fence() -> Result {
        let (fake, xprt) = trial()?;
        let (task, other) = (Task::new(&xprt)?, Task::new(&xprt)?);
        task.call(1, ONE)?;
        let call = sent(&fake);
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        // A reply in few words, as an error is, leaves the chunk alone.
        assert!(fake.receive(&short(1, b"reply")?, Some(call[KEYS[0]])));
        assert!(task.outcome() == Some(Ok(5)) && is_home(&xprt, &task));
        assert_eq!(invalidated(&fake)?.len(), 0);
        // It can name one of two.
        other.call(2, TWO)?;
        let call = sent(&fake);
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        assert!(fake.receive(&long(&call, 100)?, Some(call[KEYS[0]])));
        assert!(other.outcome().is_none());
        assert!(invalidated(&fake)?.as_slice() == [call[KEYS[1]]]);
        fake.complete(1, OK);
        assert!(other.outcome() == Some(Ok(LEN)) && is_home(&xprt, &other));
        assert!(!xprt.is_to_close());
        Ok(())
    }

    #[test]
    fn replies_to_nothing_change_nothing_until_there_are_too_many() -> Result {
        let (fake, xprt) = trial()?;
        let (task, other) = (Task::new(&xprt)?, Task::new(&xprt)?);
        task.call(1, TWO)?;
        let call = sent(&fake);
        other.call(2, SHORT)?;
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        for xid in 100..100 + REQUESTS {
            assert!(fake.receive(&short(xid, b"reply")?, None));
        }
        assert!(!xprt.is_to_close());
        // One that is a reply begins the count anew. Not all of those that are none have an XID.
        assert!(fake.receive(&short(2, b"reply")?, None));
        assert!(other.outcome() == Some(Ok(5)));
        for n in 0..REQUESTS {
            let version = if n % 2 == 0 { 1 } else { 2 };
            let stray = message(&[100, version, REQUESTS, 0, 0, 0, 0], &[])?;
            let len = if n % 3 == 0 { 15 } else { stray.len() };
            assert!(fake.receive(stray.get(..len).ok_or(EINVAL)?, None));
        }
        assert!(!xprt.is_to_close());
        assert!(fake.receive(&short(100, b"reply")?, None));
        assert!(xprt.is_to_close());
        assert!(task.outcome().is_none() && !is_home(&xprt, &task));
        assert_eq!(invalidated(&fake)?.len(), 0);
        // The grant of none of them counts.
        assert_eq!(xprt.window(), REQUESTS as usize);
        // Until it is closed the connection is one.
        assert!(fake.receive(&long(&call, 100)?, None));
        fake.complete(2, OK);
        assert!(task.outcome() == Some(Ok(LEN)));
        Ok(())
    }

    #[test]
    fn second_reply_is_none_while_the_first_waits_for_its_fence_and_later() -> Result {
        let (fake, xprt) = trial()?;
        let task = Task::new(&xprt)?;
        task.call(1, TWO)?;
        let call = sent(&fake);
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        assert!(fake.receive(&long(&call, 100)?, None));
        for _ in 0..2 {
            assert!(fake.receive(&long(&call, 200)?, None));
            assert!(fake.receive(&short(1, b"reply")?, None));
        }
        // There is one fence, and it is not over.
        assert_eq!(invalidated(&fake)?.len(), 2);
        assert_eq!(fake.sends(), 2);
        assert!(task.outcome().is_none() && !is_home(&xprt, &task));
        fake.complete(2, OK);
        assert!(task.outcome() == Some(Ok(LEN)) && is_home(&xprt, &task));
        assert!(fake.receive(&long(&call, 200)?, None));
        assert!(fake.receive(&short(1, b"reply")?, None));
        assert!(task.outcome() == Some(Ok(LEN)) && task.reply(5)?.as_slice() != b"reply");
        assert_eq!(invalidated(&fake)?.len(), 0);
        assert!(!xprt.is_to_close());
        Ok(())
    }

    #[test]
    fn reply_to_a_call_that_was_not_sent_ends_the_connection() -> Result {
        let (fake, xprt) = trial()?;
        let task = Task::new(&xprt)?;
        task.encode(1, SHORT)?;
        assert!(fake.receive(&short(1, b"reply")?, None));
        assert!(task.outcome().is_none() && xprt.is_to_close());
        // It is sent by the next one.
        xprt.close()?;
        connect(&fake, &xprt)?;
        assert_eq!(task.transmit(1)?, 0);
        assert!(fake.receive(&short(1, b"reply")?, None));
        assert!(task.outcome() == Some(Ok(5)) && !xprt.is_to_close());
        Ok(())
    }

    #[test]
    fn key_that_is_not_the_calls_ends_the_connection() -> Result {
        // The key of another call, one that nobody has, and one with a reply to a call without memory.
        for case in 0..3 {
            let (fake, xprt) = trial()?;
            let tasks = [Task::new(&xprt)?, Task::new(&xprt)?, Task::new(&xprt)?];
            let [task, other, plain] = &tasks;
            other.call(2, TWO)?;
            let key = sent(&fake)[KEYS[0]];
            task.call(1, TWO)?;
            let call = sent(&fake);
            plain.call(3, SHORT)?;
            fake.complete(fake.sends(), OK);
            fake.asked()?;
            let (reply, key) = match case {
                0 => (long(&call, 100)?, key),
                1 => (long(&call, 100)?, 0xdead_0000),
                _ => (short(3, b"reply")?, key),
            };
            assert!(fake.receive(&reply, Some(key)));
            assert!(xprt.is_to_close());
            assert!(tasks.iter().all(|task| task.outcome().is_none()));
            assert_eq!(invalidated(&fake)?.len(), 0);
            assert!(!is_home(&xprt, task) && !is_home(&xprt, other));
            xprt.close()?;
            assert!(tasks.iter().all(|task| is_home(&xprt, task)));
            assert!(tasks.iter().all(|task| task.outcome().is_none()));
        }
        Ok(())
    }

    #[test]
    fn reply_without_a_fence_is_none_and_the_next_connection_has_another() -> Result {
        // The invalidation fails, cannot be posted, and is forgotten by the device.
        for case in 0..3 {
            let (fake, xprt) = trial()?;
            let task = Task::new(&xprt)?;
            task.call(1, TWO)?;
            let call = sent(&fake);
            fake.complete(fake.sends(), OK);
            if case == 1 {
                fake.take_only(0);
            }
            assert!(fake.receive(&long(&call, 100)?, None));
            if case == 0 {
                fake.complete(2, FAILED);
            }
            assert_eq!(xprt.is_to_close(), case != 2);
            assert!(task.outcome().is_none() && !is_home(&xprt, &task));
            if case == 2 {
                fake.fail();
            }
            fake.take_only(usize::MAX);
            xprt.close()?;
            assert!(task.outcome().is_none() && is_home(&xprt, &task));
            connect(&fake, &xprt)?;
            assert_eq!(task.transmit(1)?, 0);
            let again = sent(&fake);
            // What could be reached by the last connection cannot be by the same keys.
            assert!(KEYS.iter().all(|at| again[*at] != call[*at]));
            fake.complete(fake.sends(), OK);
            assert!(fake.receive(&long(&again, 200)?, None));
            fake.complete(2, OK);
            assert!(task.outcome() == Some(Ok(LEN + 100)) && is_home(&xprt, &task));
        }
        Ok(())
    }

    #[test]
    fn call_whose_reply_makes_no_sense_fails_behind_its_fence() -> Result {
        let (fake, xprt) = trial()?;
        let tasks = [Task::new(&xprt)?, Task::new(&xprt)?, Task::new(&xprt)?];
        for (task, xid) in tasks.iter().zip(1..) {
            task.call(xid, TWO)?;
            let mut call = sent(&fake);
            fake.complete(fake.sends(), OK);
            fake.asked()?;
            // More than there was room for, memory of nobody, a header that has no end.
            match xid {
                1 => call[KEYS[1] + 1] += 1,
                2 => call[KEYS[1]] += 1,
                _ => {}
            }
            let last = call[KEYS[1] + 1];
            let mut reply = long(&call, last)?;
            if xid == 3 {
                reply.truncate(20);
            }
            assert!(fake.receive(&reply, None));
            assert_eq!(invalidated(&fake)?.len(), 2);
            fake.complete(1, OK);
            assert!(task.outcome().is_none() && !is_home(&xprt, task));
            fake.complete(1, OK);
            assert!(task.outcome() == Some(Err(EIO)) && is_home(&xprt, task));
        }
        assert!(!xprt.is_to_close());
        Ok(())
    }

    #[test]
    fn reply_to_a_call_that_was_given_up_gives_its_credit_back() -> Result {
        let (fake, xprt) = trial()?;
        let task = Task::new(&xprt)?;
        task.call(1, ONE)?;
        let call = sent(&fake);
        fake.be_prompt();
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        task.end()?;
        assert!(invalidated(&fake)?.as_slice() == [call[KEYS[0]]]);
        assert!(is_home(&xprt, &task));
        assert_eq!(xprt.window() + 1, REQUESTS as usize);
        // The server has not heard of it, and names the key, too.
        assert!(fake.receive(&short(1, b"reply")?, Some(call[KEYS[0]])));
        assert_eq!((xprt.window(), xprt.used()), (REQUESTS as usize, 0));
        assert!(!xprt.is_to_close());
        // Once.
        assert!(fake.receive(&short(1, b"reply")?, None));
        assert_eq!(xprt.window(), REQUESTS as usize);
        Ok(())
    }
}
