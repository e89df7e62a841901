// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the client's transport without a server: who gets its slots, how many credits there
//! are, which requests a reply can be to, and what becomes of callbacks. Those of replies are in `reply.rs`.

mod reply;
#[cfg(CONFIG_KUNIT = "y")]
mod trial;

use kernel::prelude::*;

#[kunit_tests(rpcrdma_client)]
mod tests {
    use super::super::{
        endpoint::Endpoint,
        first::FirstGrant,
        slot::Memory,
        stats::Stats,
        Rdma, //
    };
    use super::trial;
    use crate::{
        ib::Fake,
        rt::err,
        sunrpc::{
            ClientTransport,
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

    /// There is room for so many callbacks.
    const CALLBACKS: u32 = 2 * Rdma::BC_SLOTS;

    /// Tasks that have all slots.
    fn all_slots(xprt: &Client) -> Result<KVec<Task<'_>>> {
        let mut tasks = KVec::new();
        for _ in 0..xprt.max_reqs() {
            tasks.push(TrialTask::new(xprt)?, GFP_KERNEL)?;
        }
        Ok(tasks)
    }

    /// How many different slots these tasks have.
    fn different(xprt: &Client, tasks: &[Task<'_>]) -> usize {
        (0..xprt.max_reqs() as usize)
            .filter(|number| tasks.iter().any(|task| task.slot() == Some(*number)))
            .count()
    }

    /// A callback.
    fn message(xid: u32, len: usize) -> Result<KVec<u8>> {
        // CAST: The low byte is meant.
        let mut bytes = KVec::from_elem(xid as u8, len, GFP_KERNEL)?;
        for (to, from) in bytes.iter_mut().zip(xid.to_be_bytes()) {
            *to = from;
        }
        Ok(bytes)
    }

    #[test]
    fn no_slot_has_two_users_and_all_come_back() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        let count = xprt.max_reqs() as usize;
        // Again with what has come back, in another order.
        for round in 0..3 {
            let mut tasks = all_slots(&xprt)?;
            assert_eq!(different(&xprt, &tasks), count);
            assert!(tasks.iter().all(|task| task.status() == 0 && !task.waits()));
            assert!(tasks.iter().all(|task| task.is_clean()));
            for (task, xid) in tasks.iter().zip(0..) {
                task.send(xid)?;
            }
            for n in 0..round * count / 4 {
                drop(tasks.remove(n % tasks.len()));
            }
        }
        Ok(())
    }

    #[test]
    fn slot_is_given_again_while_it_is_warm() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        let (first, second) = (Task::new(&xprt)?, Task::new(&xprt)?);
        let (one, two) = (first.slot(), second.slot());
        assert!(one.is_some() && two.is_some() && one != two);
        drop(first);
        drop(second);
        let (first, second) = (Task::new(&xprt)?, Task::new(&xprt)?);
        assert!(first.slot() == two && second.slot() == one);
        Ok(())
    }

    #[test]
    fn who_has_waited_longest_gets_the_slot() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        let mut tasks = all_slots(&xprt)?;
        let (first, second) = (Task::new(&xprt)?, Task::new(&xprt)?);
        for task in [&first, &second] {
            assert!(task.waits() && task.slot().is_none());
            assert_eq!(task.status(), EAGAIN.to_errno());
        }
        let last = tasks.pop().ok_or(ENOENT)?;
        last.send(1)?;
        let slot = last.slot();
        drop(last);
        assert!(first.slot() == slot && first.is_clean() && !first.waits());
        assert!(second.waits() && second.slot().is_none());
        // It is not in the pool as well.
        let third = Task::new(&xprt)?;
        assert!(third.waits() && third.slot().is_none());
        drop(first);
        assert!(second.slot() == slot && third.waits());
        drop(second);
        assert!(third.slot() == slot && !third.waits());
        // Nobody waits: it is the next one's.
        drop(third);
        let fourth = Task::new(&xprt)?;
        assert!(fourth.slot() == slot && fourth.status() == 0);
        Ok(())
    }

    #[test]
    fn credit_of_a_call_that_was_given_up_is_the_servers() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        xprt.set_window(3);
        let tasks = all_slots(&xprt)?;
        let [a, b, c, ..] = tasks.as_slice() else {
            return Err(EINVAL);
        };
        for (task, xid) in [a, b, c].into_iter().zip(1..) {
            task.send(xid)?;
        }
        assert_eq!((xprt.window(), xprt.used()), (3, 3));
        a.give_up()?;
        assert_eq!((xprt.window(), xprt.used()), (2, 2));
        // A call counts once.
        a.give_up()?;
        assert_eq!((xprt.window(), xprt.used()), (2, 2));
        // This one's reply is there before it is given up.
        assert!(xprt.late_reply(2));
        b.give_up()?;
        assert_eq!((xprt.window(), xprt.used()), (2, 1));
        c.give_up()?;
        assert_eq!((xprt.window(), xprt.used()), (1, 0));
        // The server answers these, and then what nobody has asked.
        assert!(xprt.late_reply(1));
        assert_eq!(xprt.window(), 2);
        assert!(xprt.late_reply(3));
        assert_eq!(xprt.window(), 3);
        assert!(!xprt.late_reply(3));
        assert_eq!((xprt.window(), xprt.used()), (3, 0));
        // sunrpc needs a credit to go on, also when the server has all.
        for (task, xid) in [a, b, c].into_iter().zip(4..) {
            task.send(xid)?;
            task.give_up()?;
        }
        assert_eq!(xprt.window(), 1);
        xprt.set_window(5);
        assert_eq!(xprt.window(), 2);
        // Another connection owes nothing.
        xprt.reset_window();
        assert!(!xprt.late_reply(4));
        assert_eq!((xprt.window(), xprt.used()), (1, 0));
        Ok(())
    }

    #[test]
    fn who_waits_for_a_reply_has_nothing_locked() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        xprt.set_window(3);
        let (task, other) = (Task::new(&xprt)?, Task::new(&xprt)?);
        task.send(1)?;
        other.send(2)?;
        // Somebody else sent it, and it was given the lock then.
        task.lock()?;
        assert!(xprt.is_locked());
        // That is its own affair.
        other.wait()?;
        assert!(xprt.is_locked());
        task.wait()?;
        assert!(!xprt.is_locked());
        Ok(())
    }

    #[test]
    fn grant_is_one_at_least_and_what_was_asked_for_at_most() -> Result {
        let (fake, xprt) = (Fake::new()?, TrialClient::<Rdma>::new()?);
        let limits = trial::with_params(&fake, &xprt, |params| fake.limits(params))?;
        let endpoint = Endpoint::new(xprt.handle(), Stats::new()?, &limits);
        // Before the first reply there is one.
        xprt.reset_window();
        assert_eq!(xprt.window(), 1);
        for (grant, window) in [
            (16, 16),
            (0, 1),
            (15, 15),
            (17, 16),
            (1, 1),
            (u32::MAX, 16),
            (7, 7),
        ] {
            endpoint.grant(grant);
            assert_eq!(xprt.window(), window);
        }
        // Whether anybody waits for its answer or not: who waits for a credit is woken by the one to the connection's
        // own call.
        for gives_up in [false, true] {
            endpoint.grant(1);
            endpoint.first.set_asked(7);
            if gives_up {
                assert!(!endpoint.first.gives_up() && endpoint.first.gives_up());
            }
            xprt.wait_for_credit();
            assert!(xprt.awaits_credit());
            endpoint.admit_all(7);
            assert!(xprt.window() == 7 && xprt.used() == 0 && !xprt.awaits_credit());
        }
        // The same again does not give back what the server has.
        let task = Task::new(&xprt)?;
        task.send(1)?;
        task.give_up()?;
        endpoint.grant(7);
        assert_eq!(xprt.window(), 6);
        Ok(())
    }

    #[test]
    fn first_grant_is_asked_for_once_and_not_waited_for_for_ever() {
        // A reply to a call is there before anybody asks.
        let first = FirstGrant::new();
        assert!(!first.is_known() && !first.is_answer(0) && !first.gives_up() && !first.gives_up());
        first.set_known();
        assert!(first.is_known() && !first.is_answer(0));
        // There is an answer, and no other one.
        let first = FirstGrant::new();
        first.set_asked(7);
        assert!(!first.is_known() && !first.gives_up());
        assert!(!first.is_answer(8) && first.is_answer(7) && !first.is_answer(7));
        first.set_known();
        assert!(!first.is_answer(7) && !first.gives_up() && first.is_known());
        // There is none; or it comes late.
        let first = FirstGrant::new();
        first.set_asked(7);
        assert!(!first.gives_up() && !first.is_known());
        assert!(first.gives_up() && first.is_known() && !first.gives_up());
        assert!(first.is_answer(7) && !first.is_answer(7));
    }

    #[test]
    fn without_a_connection_nothing_is_sent_and_nothing_to_close() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        xprt.set_window(3);
        let task = Task::new(&xprt)?;
        task.allocate(100, 100)?;
        for _ in 0..3 {
            let cookie = xprt.cookie();
            assert_eq!(task.transmit(7)?, err::enotconn().to_errno());
            assert_eq!((xprt.window(), xprt.used()), (3, 0));
            assert_eq!(xprt.cookie(), cookie);
            xprt.close()?;
            assert!(xprt.cookie() != cookie);
        }
        Ok(())
    }

    #[test]
    fn callbacks_are_bounded_and_their_slots_come_back() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        // Nobody has asked for them.
        assert!(xprt.bc_call(&message(1, 64)?).is_err());
        xprt.setup_callbacks()?;
        assert!(!xprt.has_bc_service());
        // What no service takes is gone, however many there are.
        for xid in 0..3 * CALLBACKS {
            assert!(xprt.bc_call(&message(xid, 64)?).is_ok());
        }
        assert_eq!((xprt.callbacks(), xprt.references()), (0, 1));

        xprt.serve_callbacks();
        assert!(xprt.has_bc_service());
        assert!(xprt.bc_call(&message(1, 3)?).is_err());
        assert!(xprt.bc_call(&message(1, PAGE_SIZE + 1)?).is_err());
        assert_eq!((xprt.callbacks(), xprt.references()), (0, 1));
        let len = |xid: u32| PAGE_SIZE - xid as usize % 200;
        for xid in 1000..1000 + CALLBACKS {
            assert!(xprt.bc_call(&message(xid, len(xid))?).is_ok());
        }
        // One more, and another session, do not touch those that are there.
        assert!(xprt.bc_call(&message(2000, 64)?).is_err());
        xprt.setup_callbacks()?;
        assert!(xprt.bc_call(&message(2000, 64)?).is_err());
        for xid in 1000..1000 + CALLBACKS {
            let bytes = xprt.callback_bytes(xid)?;
            assert!(bytes.as_slice() == message(xid, len(xid))?.as_slice());
        }
        // CAST: A small number.
        let all = CALLBACKS as c_int;
        assert_eq!((xprt.callbacks(), xprt.references()), (all, 1 + all));
        // Whichever ends makes room for one.
        for n in 0..CALLBACKS {
            xprt.end_callback(1000 + n * 5 % CALLBACKS)?;
            assert!(xprt.bc_call(&message(3000 + n, 8)?).is_ok());
            assert!(xprt.bc_call(&message(2000, 64)?).is_err());
        }
        for xid in 3000..3000 + CALLBACKS {
            assert!(xprt.callback_bytes(xid)?.as_slice() == message(xid, 8)?.as_slice());
            xprt.end_callback(xid)?;
        }
        assert_eq!((xprt.callbacks(), xprt.references()), (0, 1));
        Ok(())
    }

    #[test]
    fn what_was_not_sent_has_no_reply() -> Result {
        let xprt = TrialClient::<Rdma>::new()?;
        let mut seen = 0;
        xprt.for_each_slot(|slot| {
            // The peer can foresee XIDs, but not have the memory before the call is sent.
            let unsent = slot.take_exposed().is_err();
            slot.lock().sent = true;
            let sent = matches!(slot.take_exposed(), Ok(None));
            // While somebody is at the memory, nobody else gets it.
            let memory = slot.take();
            let away = slot.take_exposed().is_err() && matches!(slot.take(), Memory::Away);
            slot.put(memory);
            let back = matches!(slot.take_exposed(), Ok(None));
            seen += u32::from(unsent && sent && away && back);
        });
        assert_eq!(seen, xprt.max_reqs());
        // The next call of the slot was not sent.
        let task = Task::new(&xprt)?;
        task.allocate(100, 100)?;
        let number = task.slot().ok_or(ENOENT)?;
        let mut sent = KVec::new();
        xprt.for_each_slot(|slot| {
            // Not under the lock: it may sleep.
            let flag = slot.lock().sent;
            let _ = sent.push(flag, GFP_KERNEL);
        });
        assert_eq!(sent.get(number), Some(&false));
        Ok(())
    }
}
