// SPDX-License-Identifier: GPL-2.0

//! Memory that a peer may reach: regions of a set, and their fences, on a device that does what the test
//! says.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_expose)]
mod tests {
    use super::super::trial::*;
    use crate::{
        ib::{
            active::patience::Patience,
            kunit::{
                count,
                counter,
                fake::{
                    Asked,
                    Fake, //
                },
                FAILED,
                OK, //
            },
            lost::Lost, //
        },
        rt::{
            completion::Completion,
            err,
            queue,
            ticker::Tick, //
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
    fn region_of_a_set_that_is_not_sent_is_idle_again() -> Result {
        let (fake, _, alive, mut conn) = trial()?;
        let before = idle(&conn);
        fake.asked()?;
        let (first, keys) = set(&mut conn, &alive)?;
        assert_eq!(keys.len(), TWO);
        assert_eq!(idle(&conn), before - TWO);
        let lease = first.cancel();
        assert_eq!(idle(&conn), before);
        assert_eq!(alive.load(Relaxed), 1);
        drop(lease);
        assert_eq!(alive.load(Relaxed), 0);
        // No key comes twice in a row.
        let (second, again) = set(&mut conn, &alive)?;
        assert!(again.iter().all(|key| !keys.contains(key)));
        assert!(again
            .iter()
            .all(|key| keys.iter().any(|old| old >> 8 == key >> 8)));
        drop(second.cancel());
        // Nothing of all this has reached the device.
        assert_eq!(fake.asked()?.len(), 0);
        assert_eq!(fake.sends(), 0);
        Ok(())
    }

    /// Where pieces of pages begin, and how long they are: as from `writev` with odd addresses; at
    /// last with a gap in the page; more than a region can have.
    const PIECES: [&[(u32, u32)]; 3] = [
        &[(100, 1000), (512, 2048), (0, 4096), (0, 100)],
        &[(96, 4000), (0, 4096), (0, 100), (200, 50)],
        &[(1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 4085)],
    ];

    #[test]
    fn gaps_divide_regions() -> Result {
        let (_fake, _, alive, mut conn) = trial()?;
        let wanted: [&[u32]; 3] = [&[1000, 2048, 4196], &[8196, 50], &[2, 4, 6, 8, 10, 4085]];
        for (pieces, wanted) in PIECES.iter().zip(wanted) {
            assert!(cut(&mut conn, &alive, pieces)?.as_slice() == wanted);
        }
        Ok(())
    }

    #[test]
    fn regions_have_gaps_where_the_device_can() -> Result {
        let (fake, seen, alive) = (Fake::new()?, Proto::seen()?, counter()?);
        fake.allow_gaps();
        let mut conn = next_connection(&fake, &seen, None)?;
        let wanted: [&[u32]; 3] = [&[7244], &[8246], &[20, 4095]];
        for (pieces, wanted) in PIECES.iter().zip(wanted) {
            assert!(cut(&mut conn, &alive, pieces)?.as_slice() == wanted);
        }
        Ok(())
    }

    #[test]
    fn regions_are_registered_before_their_message() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        fake.asked()?;
        fake.posts();
        let keys = send_set(&mut conn, &seen, &alive)?;
        // All in one chain.
        assert_eq!(fake.posts(), 1);
        let asked = fake.asked()?;
        assert_eq!(asked.len(), TWO + 1);
        for key in &keys {
            let at = asked
                .iter()
                .position(|asked| *asked == Asked::Register(*key));
            assert!(at.is_some_and(|at| at < TWO));
        }
        assert!(
            asked.last() == Some(&Asked::Send(true)) || asked.last() == Some(&Asked::Send(false))
        );
        let proof = conn.shutdown();
        let set = take_set(&seen)?;
        assert!(set.reclaim(&proof).is_ok());
        Ok(())
    }

    #[test]
    fn peer_ends_a_set_by_the_keys_of_all_its_regions() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        let before = idle(&conn);
        let keys = send_set(&mut conn, &seen, &alive)?;
        let (Some(&first), Some(&second)) = (keys.first(), keys.last()) else {
            return Err(EINVAL);
        };
        // A key of nobody; then one of the two, twice.
        for key in [0xdead_0000, first, first] {
            assert!(fake.receive(b"reply", Some(key)));
        }
        assert!(seen.lock().remote.as_slice() == [false, true, false]);
        assert_eq!(idle(&conn), before - 1);
        let half = match take_set(&seen)?.fenced() {
            Ok(_) => None,
            Err(set) => Some(set),
        };
        assert!(half.is_some());
        assert_eq!(alive.load(Relaxed), 1);
        seen.lock().set = half;
        assert!(fake.receive(b"reply", Some(second)));
        assert_eq!(idle(&conn), before);
        let lease = take_set(&seen)?.fenced();
        assert!(lease.is_ok());
        // Whatever is left of it goes without a word to the device.
        drop(lease);
        assert_eq!(alive.load(Relaxed), 0);
        assert_eq!(
            count(&fake.asked()?, |asked| matches!(
                asked,
                Asked::Invalidate(..)
            )),
            0
        );
        assert_eq!(seen.lock().lost, 0);
        Ok(())
    }

    #[test]
    fn soft_device_that_says_a_region_is_invalid_is_not_believed() -> Result {
        let (fake, seen, alive) = (Fake::new()?, Proto::seen()?, counter()?);
        fake.be_soft();
        let mut conn = connection_with(&fake, &seen, None, false)?;
        let before = idle(&conn);
        let keys = send_set(&mut conn, &seen, &alive)?;
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        // A key of nobody is none here either.
        assert!(fake.receive(b"reply", Some(0xdead_0000)));
        seen.lock().then = Then::Invalidate(5);
        assert!(fake.receive(b"reply", keys.first().copied()));
        assert!(seen.lock().remote.as_slice() == [false, true]);
        // All of the set is invalidated, as if the peer had said nothing, before it is given back.
        let asked = fake.asked()?;
        for key in &keys {
            let named = |asked: &Asked| matches!(asked, Asked::Invalidate(of, _) if of == key);
            assert_eq!(count(&asked, named), 1);
        }
        assert_eq!(idle(&conn), before - TWO);
        assert_eq!(alive.load(Relaxed), 1);
        fake.complete(TWO, OK);
        assert!(seen.lock().fenced.as_slice() == [(5, Some(TWO))]);
        assert_eq!(idle(&conn), before);
        drop(seen.lock().lease.take());
        assert_eq!(alive.load(Relaxed), 0);
        drop(conn.shutdown());
        // Who trusts the peer believes the device.
        let mut conn = connection_with(&fake, &seen, None, true)?;
        seen.lock().then = Then::Drop;
        for key in &send_set(&mut conn, &seen, &alive)? {
            assert!(fake.receive(b"reply", Some(*key)));
        }
        assert!(take_set(&seen)?.fenced().is_ok());
        drop(conn.shutdown());
        Ok(())
    }

    #[test]
    fn fence_gives_the_lease_when_the_last_invalidation_is_complete() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        let before = idle(&conn);
        let keys = send_set(&mut conn, &seen, &alive)?;
        fake.complete(fake.sends(), OK);
        fake.asked()?;
        seen.lock().then = Then::Invalidate(42);
        assert!(fake.receive(b"reply", None));
        let asked = fake.asked()?;
        assert_eq!(
            count(&asked, |asked| matches!(asked, Asked::Invalidate(..))),
            TWO
        );
        // The last one alone is signalled, and each key is named.
        assert_eq!(
            count(&asked, |asked| matches!(asked, Asked::Invalidate(_, true))),
            1
        );
        assert!(matches!(asked.last(), Some(Asked::Invalidate(_, true))));
        for key in &keys {
            let named = |asked: &Asked| matches!(asked, Asked::Invalidate(of, _) if of == key);
            assert_eq!(count(&asked, named), 1);
        }
        fake.complete(1, OK);
        assert_eq!(seen.lock().fenced.len(), 0);
        assert_eq!(idle(&conn), before - TWO);
        fake.complete(1, OK);
        assert!(seen.lock().fenced.as_slice() == [(42, Some(TWO))]);
        assert_eq!(idle(&conn), before);
        let lease = seen.lock().lease.take();
        assert!(lease.is_some() && seen.lock().set.is_none());
        Ok(())
    }

    #[test]
    fn completion_leads_to_its_own_fence() -> Result {
        // The last one completes, or the device forgets it.
        for ends in [true, false] {
            let (fake, seen, alive, mut conn) = trial()?;
            let before = idle(&conn);
            for number in 1..=2 {
                send_set(&mut conn, &seen, &alive)?;
                seen.lock().then = Then::Invalidate(number);
                assert!(fake.receive(b"reply", None));
                // What else the connection does is no fence.
                seen.lock().then = Then::Drop;
                assert!(fake.receive(b"message", None));
                conn.reserve().ok_or_else(err::enobufs)?.send(16)?;
            }
            // Of each: registrations and their message, invalidations, a message.
            let each = TWO + 1 + TWO + 1;
            assert_eq!(fake.sends(), 2 * each);
            fake.complete(each - 2, OK);
            assert_eq!(seen.lock().fenced.len(), 0);
            fake.complete(1, OK);
            assert!(seen.lock().fenced.as_slice() == [(1, Some(TWO))]);
            assert!(idle(&conn) == before - TWO && alive.load(Relaxed) == 2);
            fake.complete(each - 1, OK);
            assert_eq!(seen.lock().fenced.len(), 1);
            if ends {
                fake.complete(1, OK);
                assert!(seen.lock().fenced.as_slice() == [(1, Some(TWO)), (2, Some(TWO))]);
                assert_eq!(idle(&conn), before);
            } else {
                fake.fail();
            }
            let proof = conn.shutdown();
            if !ends {
                assert!(seen.lock().fenced.as_slice() == [(1, Some(TWO)), (2, None)]);
                assert!(take_set(&seen)?.reclaim(&proof).is_ok());
            }
            drop(seen.lock().lease.take());
            assert_eq!(alive.load(Relaxed), 0);
            assert_eq!(seen.lock().messages, 4);
        }
        Ok(())
    }

    #[test]
    fn fence_that_fails_gives_the_set_back_for_the_end_of_its_connection() -> Result {
        let (_other_fake, _, _, other) = trial()?;
        let other = other.shutdown();
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        fake.complete(fake.sends(), OK);
        seen.lock().then = Then::Invalidate(1);
        assert!(fake.receive(b"reply", None));
        fake.complete(TWO, FAILED);
        assert!(seen.lock().fenced.as_slice() == [(1, None)]);
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::CompletionError(FAILED)));
        let proof = conn.shutdown();
        // Another connection's end says nothing.
        let set = match take_set(&seen)?.reclaim(&other) {
            Ok(_) => None,
            Err(set) => Some(set),
        };
        assert!(set.is_some());
        assert_eq!(alive.load(Relaxed), 1);
        let lease = set.ok_or(ENOENT)?.reclaim(&proof);
        assert!(lease.is_ok());
        drop(lease);
        assert_eq!(alive.load(Relaxed), 0);
        assert_eq!(seen.lock().lost, 1);
        Ok(())
    }

    #[test]
    fn fence_that_cannot_be_posted_gives_the_set_back() -> Result {
        // None of the chain is taken, and a part of it.
        for taken in 0..TWO {
            let (fake, seen, alive, mut conn) = trial()?;
            send_set(&mut conn, &seen, &alive)?;
            fake.take_only(taken);
            seen.lock().then = Then::Invalidate(1);
            assert!(fake.receive(b"reply", None));
            assert_eq!(seen.lock().refused, 1);
            assert_eq!(seen.lock().fenced.len(), 0);
            assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::PostFailed));
            assert_eq!(conn.inner.mrs.lock().fences.len(), 0);
            let proof = conn.shutdown();
            assert!(take_set(&seen)?.reclaim(&proof).is_ok());
            assert_eq!(seen.lock().fenced.len(), 0);
        }
        Ok(())
    }

    #[test]
    fn fence_that_the_device_forgets_ends_with_the_connection() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        seen.lock().then = Then::Invalidate(9);
        assert!(fake.receive(b"reply", None));
        fake.fail();
        let proof = conn.shutdown();
        assert!(seen.lock().fenced.as_slice() == [(9, None)]);
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn fences_that_do_not_end_in_time_end_the_connection() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        fake.complete(fake.sends(), OK);
        let patience = Patience::new(&conn.inner, &conn.domain);
        // Nothing is pending.
        for _ in 0..10 {
            patience.tick();
        }
        seen.lock().then = Then::Invalidate(1);
        assert!(fake.receive(b"reply", None));
        patience.tick();
        patience.tick();
        // One ends in time, and the next one has all of the time again.
        fake.complete(TWO, OK);
        send_set(&mut conn, &seen, &alive)?;
        fake.complete(fake.sends(), OK);
        seen.lock().then = Then::Invalidate(2);
        assert!(fake.receive(b"reply", None));
        for _ in 0..3 {
            patience.tick();
        }
        assert_eq!(seen.lock().lost, 0);
        patience.tick();
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::InvalidateFailed));
        // Nobody need close the connection for it to end.
        fake.complete(0, OK);
        assert!(seen.lock().fenced.last() == Some(&(2, None)));
        let proof = conn.shutdown();
        assert!(take_set(&seen)?.reclaim(&proof).is_ok());
        Ok(())
    }

    #[test]
    fn waiting_for_a_fence_that_does_not_end_in_time_ends_the_connection() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        let set = take_set(&seen)?;
        let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
        let end = done.clone();
        queue::module_queue().try_spawn(GFP_KERNEL, move || {
            drop(set.invalidate_within(1));
            end.complete_all();
        })?;
        for _ in 0..100 {
            if seen.lock().lost != 0 || done.wait_msecs(50) {
                break;
            }
        }
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::InvalidateFailed));
        // The memory is the peer's to reach as long as there is a queue pair.
        assert!(!done.wait_msecs(100));
        assert_eq!(alive.load(Relaxed), 1);
        // The device may be late, and nobody believes it.
        fake.complete(fake.sends(), OK);
        assert!(!done.wait_msecs(100));
        assert_eq!(alive.load(Relaxed), 1);
        drop(conn.shutdown());
        done.wait();
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn waiting_for_a_fence_ends_with_it_or_with_the_connection() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        let before = idle(&conn);
        send_set(&mut conn, &seen, &alive)?;
        fake.be_prompt();
        drop(take_set(&seen)?.invalidate_sync());
        assert_eq!(alive.load(Relaxed), 0);
        assert_eq!(idle(&conn), before);
        // Nothing is posted when the connection has ended.
        send_set(&mut conn, &seen, &alive)?;
        let proof = conn.shutdown();
        fake.asked()?;
        drop(take_set(&seen)?.invalidate_sync());
        assert_eq!(alive.load(Relaxed), 0);
        let asked = fake.asked()?;
        assert_eq!(asked.len(), TWO);
        assert_eq!(count(&asked, |asked| *asked == Asked::DeregMr), TWO);
        drop(proof);
        Ok(())
    }

    #[test]
    fn set_that_is_dropped_keeps_its_memory_until_the_end() -> Result {
        let (fake, seen, alive, mut conn) = trial()?;
        send_set(&mut conn, &seen, &alive)?;
        fake.asked()?;
        let set = take_set(&seen)?;
        let buf = set.lease().buf.clone();
        drop(set);
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::InvalidateFailed));
        assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::DeregMr), 0);
        assert_eq!(conn.inner.mrs.lock().orphans.len(), TWO);
        drop(conn);
        assert!(count(&fake.asked()?, |asked| *asked == Asked::DeregMr) > TWO);
        // Never given back, rather than used twice.
        assert_eq!(alive.load(Relaxed), 1);
        // SAFETY: The references of the lease, which nobody has any more.
        unsafe {
            drop(Arc::from_raw(Arc::as_ptr(&buf)));
            drop(Arc::from_raw(Arc::as_ptr(&alive)));
        }
        Ok(())
    }
}
