// SPDX-License-Identifier: GPL-2.0

//! Connections, on a device that does what the test says: credits, the way of completions, what the next
//! connection gets, and the order of the end.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_ib)]
mod tests {
    use super::super::trial::*;
    use crate::{
        bindings,
        ib::{
            device::{
                self,
                DeviceLease, //
            },
            dma::{
                Direction,
                MESSAGE_BYTES, //
            },
            kunit::{
                count,
                fake::Asked,
                order,
                FAILED,
                OK, //
            },
            lost::Lost, //
        },
        rt::{
            completion::Completion,
            err,
            queue, //
        },
    };
    use kernel::{
        prelude::*,
        sync::{
            atomic::Relaxed,
            Arc, //
        }, //
    };

    #[test]
    fn receives_for_all_credits_are_posted_and_posted_again() -> Result {
        let (fake, seen, _, conn) = trial()?;
        let (all, batch) = (
            conn.inner.limits.rx_count as usize,
            conn.inner.limits.rx_batch as usize,
        );
        assert!(all >= REQUESTS as usize + 2 && batch > 1);
        assert_eq!(fake.receives(), all);
        for n in 1..=50 {
            assert!(fake.receive(b"message", None));
            assert_eq!(seen.lock().messages, n);
            // No more than a batch is missing, ever.
            assert!(fake.receives() + batch > all);
        }
        // What is kept is not the device's, and comes back.
        seen.lock().then = Then::Keep;
        for _ in 0..REQUESTS {
            assert!(fake.receive(b"kept", None));
        }
        let missing = all - fake.receives();
        assert!(missing >= REQUESTS as usize && missing < REQUESTS as usize + batch);
        let kept = core::mem::replace(&mut seen.lock().kept, KVec::new());
        assert!(kept.iter().all(|msg| msg.bytes() == b"kept"));
        drop(kept);
        seen.lock().then = Then::Drop;
        assert!(fake.receive(b"message", None));
        assert!(fake.receives() + batch > all);
        assert_eq!(seen.lock().lost, 0);
        Ok(())
    }

    #[test]
    fn receive_that_fails_ends_the_connection_once() -> Result {
        let (fake, seen, _, conn) = trial()?;
        fake.take_only(0);
        let batch = conn.inner.limits.rx_batch as usize;
        for _ in 0..batch + 1 {
            assert!(fake.receive(b"message", None));
        }
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::PostFailed));
        drop(conn);
        assert_eq!(seen.lock().messages, batch + 1);
        assert_eq!(seen.lock().lost, 1);
        Ok(())
    }

    #[test]
    fn receive_that_completes_twice_is_one_message() -> Result {
        for then in [Then::Keep, Then::Drop] {
            let (fake, seen, _, conn) = trial()?;
            seen.lock().then = then;
            fake.stutter();
            assert!(fake.receive(b"message", None));
            assert_eq!(seen.lock().messages, 1);
            assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::CompletedTwice));
            drop(conn);
            let kept = core::mem::replace(&mut seen.lock().kept, KVec::new());
            assert!(kept.iter().all(|msg| msg.bytes() == b"message"));
        }
        Ok(())
    }

    #[test]
    fn write_with_immediate_is_no_message() -> Result {
        for by_flag in [false, true] {
            let (fake, seen, _, _conn) = trial()?;
            for _ in 0..fake.receives() {
                assert!(fake.receive(b"message", None));
            }
            let before = seen.lock().messages;
            assert!(fake.receive_immediate(7, by_flag));
            assert_eq!(seen.lock().messages, before);
            assert_eq!(seen.lock().lost, 1);
        }
        Ok(())
    }

    #[test]
    fn sends_make_room_when_a_later_one_is_complete() -> Result {
        let (fake, seen, _, mut conn) = trial()?;
        let all = conn.inner.limits.tx_count as usize;
        for round in 0..5 {
            let mut sent = 0;
            fake.asked()?;
            while let Some(tx) = conn.reserve() {
                tx.send(16)?;
                sent += 1;
                assert!(sent <= all);
            }
            assert!(round > 0 || sent == all);
            // No buffer is used while the device has it.
            assert!(fake.sends() <= all);
            let asked = fake.asked()?;
            let last = asked.iter().rposition(|asked| *asked == Asked::Send(true));
            let Some(last) = last else {
                return Err(EINVAL);
            };
            // One in an eighth of the ring.
            let signalled = count(&asked, |asked| *asked == Asked::Send(true));
            assert!(signalled <= sent.div_ceil((all / 8).max(1)));
            // Those after the last signalled one have to wait for the next.
            let told = seen.lock().writable;
            let rest = sent - last - 1;
            fake.complete(fake.sends() - rest, OK);
            assert!(seen.lock().writable > told);
            assert!(conn.has_room());
        }
        assert_eq!(seen.lock().lost, 0);
        Ok(())
    }

    #[test]
    fn room_that_came_before_somebody_waits_is_told() -> Result {
        let (fake, seen, _, mut conn) = trial()?;
        while let Some(tx) = conn.reserve() {
            tx.send(16)?;
        }
        conn.recheck_room();
        assert_eq!(seen.lock().writable, 0);
        // The completions come between the look for room and the wait for more.
        fake.complete(fake.sends(), OK);
        let told = seen.lock().writable;
        conn.recheck_room();
        assert_eq!(seen.lock().writable, told + 1);
        Ok(())
    }

    #[test]
    fn regions_that_came_before_somebody_waits_are_told() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        fake.be_prompt();
        let mut sets = KVec::with_capacity(8, GFP_KERNEL)?;
        while idle(&conn) > 0 {
            send_set(&mut conn, &seen, &alive)?;
            sets.push(take_set(&seen)?, GFP_KERNEL)?;
        }
        // Nothing is found.
        assert!(send_set(&mut conn, &seen, &alive).is_err());
        let Some(first) = sets.pop() else {
            return Err(EINVAL);
        };
        drop(first.invalidate_sync());
        assert_eq!(idle(&conn), TWO);
        let told = seen.lock().writable;
        conn.region_shortage();
        assert!(seen.lock().writable > told);
        // Now they come back after that. (A worker tells of it too, most of the time a little later: who has been told
        // does not wait any more.)
        send_set(&mut conn, &seen, &alive)?;
        sets.push(take_set(&seen)?, GFP_KERNEL)?;
        assert!(send_set(&mut conn, &seen, &alive).is_err());
        let told = seen.lock().writable;
        conn.region_shortage();
        drop(sets.pop().ok_or(EINVAL)?.invalidate_sync());
        assert!(seen.lock().writable > told);
        let proof = conn.shutdown();
        while let Some(set) = sets.pop() {
            assert!(set.reclaim(&proof).is_ok());
        }
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn completion_leads_to_its_owner() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        // An unsignalled work request that fails is one nobody owns: it ends the connection, once.
        send_set(&mut conn, &seen, &alive)?;
        fake.complete(TWO, FAILED);
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::CompletionError(FAILED)));
        fake.complete(1, FAILED);
        assert_eq!(seen.lock().lost, 1);
        assert_eq!(seen.lock().messages, 0);
        assert_eq!(seen.lock().fenced.len(), 0);
        assert_eq!(alive.load(Relaxed), 1);
        let proof = conn.shutdown();
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        Ok(())
    }

    #[test]
    fn teardown_has_its_order() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        fake.asked()?;
        let proof = conn.shutdown();
        let asked = fake.asked()?;
        let wanted = [
            Asked::DrainRq,
            Asked::DrainSq,
            Asked::DestroyQp,
            Asked::DestroyCq,
            Asked::DeregMr,
        ];
        assert!(order(&asked)?.as_slice() == wanted);
        assert_eq!(count(&asked, |asked| *asked == Asked::DestroyCq), 2);
        assert_eq!(alive.load(Relaxed), 1);
        // The regions of the set keep the protection domain, and so does the proof.
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        let asked = fake.asked()?;
        assert_eq!(asked.len(), TWO);
        assert_eq!(count(&asked, |asked| *asked == Asked::DeregMr), TWO);
        drop(proof);
        assert!(fake.asked()?.as_slice() == [Asked::DeallocPd]);
        // What was flushed was no news.
        assert_eq!(seen.lock().lost, 0);
        assert_eq!(seen.lock().messages, 0);
        Ok(())
    }

    #[test]
    fn teardown_takes_back_what_a_failed_device_keeps() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        fake.fail();
        let proof = conn.shutdown();
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        drop(proof);
        // The protection domain is gone, so every buffer of the rings is.
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn removal_of_the_device_waits_for_the_last_region() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        let removed = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let raw = fake.as_raw().expose_provenance();
        let end = removed.clone();
        queue::module_queue().try_spawn(GFP_KERNEL, move || {
            let dev = core::ptr::with_exposed_provenance_mut(raw);
            // SAFETY: The device stays: the test waits for this.
            unsafe { device::remove(dev, core::ptr::null_mut()) };
            end.complete_all();
        })?;
        for _ in 0..100 {
            if seen.lock().lost != 0 || removed.wait_msecs(20) {
                break;
            }
        }
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::DeviceRemoved));
        // Nobody begins to use it now.
        assert!(DeviceLease::new(fake.as_raw()).err() == Some(err::enotconn()));
        let proof = conn.shutdown();
        assert!(!removed.wait_msecs(100));
        let lease = take_set(&seen)?.reclaim(&proof);
        assert!(lease.is_ok() && !removed.wait_msecs(100));
        drop(proof);
        removed.wait();
        assert_eq!(seen.lock().lost, 1);
        Ok(())
    }

    #[test]
    fn next_connection_has_what_the_last_one_left() -> Result {
        let (fake, seen, _, conn) = trial()?;
        let before = idle(&conn);
        let (proof, spare) = conn.retire();
        drop(proof);
        assert!(spare.is_some());
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::DeregMr), 0);
        assert_eq!(count(&asked, |asked| *asked == Asked::DeallocPd), 0);
        let conn = next_connection(&fake, &seen, spare)?;
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::AllocPd), 0);
        let new = count(&asked, |asked| *asked == Asked::AllocMr);
        assert_eq!(idle(&conn), before + new);
        drop(conn.shutdown());
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        Ok(())
    }

    #[test]
    fn next_connection_has_buffers_of_its_own_size() -> Result {
        let (fake, _, _, conn) = trial()?;
        let (proof, spare) = conn.retire();
        drop(proof);
        let lease = DeviceLease::new(fake.as_raw())?;
        let mut parts = spare.and_then(|spare| spare.open(&lease)).ok_or(EINVAL)?;
        for way in [Direction::FromDevice, Direction::ToDevice] {
            // The last one's have 256 bytes.
            assert_eq!(parts.buffer(256, way)?.len(), 256);
            assert_eq!(parts.buffer(512, way)?.len(), 512);
            assert_eq!(parts.buffer(128, way)?.len(), 128);
        }
        Ok(())
    }

    #[test]
    fn nothing_is_left_to_the_next_while_a_region_of_the_last_is_out() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        let (proof, spare) = conn.retire();
        let set = take_set(&seen)?;
        fake.asked()?;
        // The peer could reach that set once.
        let next = next_connection(&fake, &seen, spare)?;
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::AllocPd), 1);
        assert!(set.reclaim(&proof).is_ok());
        drop(next.shutdown());
        drop(proof);
        assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::DeallocPd), 2);
        Ok(())
    }

    #[test]
    fn nothing_is_left_to_the_next_of_what_the_device_keeps() -> Result {
        let (fake, seen, _, conn) = trial()?;
        conn.domain.pd().taint();
        let (proof, spare) = conn.retire();
        drop(proof);
        fake.asked()?;
        let next = next_connection(&fake, &seen, spare)?;
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::AllocPd), 1);
        // Its number is not given to the next one.
        assert_eq!(count(&asked, |asked| *asked == Asked::DeallocPd), 0);
        drop(next.shutdown());
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        Ok(())
    }

    #[test]
    fn region_that_a_device_keeps_is_out_of_reach_for_the_next_peer() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        let proof = conn.shutdown();
        fake.asked()?;
        fake.refuse(0, 1);
        // No queue pair can use it.
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        assert_eq!(alive.load(Relaxed), 0);
        drop(proof);
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::DeregMr), TWO);
        assert_eq!(count(&asked, |asked| *asked == Asked::DeallocPd), 0);
        // It goes with the device.
        // SAFETY: The device stays, and nobody else uses it.
        unsafe { device::remove(fake.as_raw(), core::ptr::null_mut()) };
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        Ok(())
    }

    #[test]
    fn queue_pair_that_stops_late_is_waited_for() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        // It does not want to fail, but can be reset; then not even that, at first.
        for stops in [1, 2] {
            fake.refuse(stops, 0);
            let (proof, spare) = conn.retire();
            assert!(fake.refusals() == (0, 0) && spare.is_some());
            if let Ok(set) = take_set(&seen) {
                assert!(set.reclaim(&proof).is_ok());
            }
            drop(proof);
            fake.asked()?;
            conn = next_connection(&fake, &seen, spare)?;
            // Nothing was lost.
            assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::AllocPd), 0);
        }
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn queue_pair_that_has_stopped_by_itself_need_not_be_stopped() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        fake.refuse(usize::MAX, 0);
        for state in [
            bindings::ib_qp_state_IB_QPS_SQE,
            bindings::ib_qp_state_IB_QPS_ERR,
        ] {
            send_set(&mut conn, &seen, &alive)?;
            fake.claim(state);
            let (proof, spare) = conn.retire();
            assert!(spare.is_some() && take_set(&seen)?.reclaim(&proof).is_ok());
            drop(proof);
            fake.asked()?;
            conn = next_connection(&fake, &seen, spare)?;
            // Nothing was lost.
            assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::AllocPd), 0);
        }
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn what_a_queue_pair_that_does_not_stop_may_use_is_not_given_back() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        let before = MESSAGE_BYTES.get();
        fake.refuse(usize::MAX, 0);
        let (proof, spare) = conn.retire();
        drop(spare);
        // All message buffers are there still.
        assert_eq!(MESSAGE_BYTES.get(), before);
        // What the peer can reach is given back when its regions have gone.
        fake.refuse(0, 0);
        fake.asked()?;
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        assert_eq!(alive.load(Relaxed), 0);
        drop(proof);
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::DeregMr), TWO);
        assert_eq!(count(&asked, |asked| *asked == Asked::DeallocPd), 0);
        Ok(())
    }

    #[test]
    fn removal_of_the_device_takes_what_was_left() -> Result {
        let (fake, _, _, conn) = trial()?;
        let (proof, spare) = conn.retire();
        drop(proof);
        assert!(spare.is_some());
        // SAFETY: The device stays, and nobody else uses it.
        unsafe { device::remove(fake.as_raw(), core::ptr::null_mut()) };
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        drop(spare);
        Ok(())
    }
}
