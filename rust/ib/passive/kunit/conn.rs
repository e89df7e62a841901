// SPDX-License-Identifier: GPL-2.0

//! Accepted connections, on a device that does what the test says: the receive ring, what tells of the
//! end, and its order.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_ib_server)]
mod tests {
    use super::super::trial::*;
    use crate::{
        bindings,
        ib::{
            device::{
                self,
                Link, //
            },
            kunit::{
                count,
                fake::Asked,
                order,
                FAILED,
                OK, //
            },
            lost::Lost,
            passive::probe::Watch, //
        },
        rt::{
            completion::Completion,
            queue,
            ticker::Tick, //
        },
    };
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    #[test]
    fn receives_for_all_credits_are_posted_before_there_is_an_answer() -> Result {
        let (fake, _, _, conn) = server()?;
        let limits = *conn.limits();
        let wanted = PARAMS.requests + 2 * PARAMS.extra + limits.rx_batch;
        assert_eq!(limits.messages, wanted);
        assert_eq!(fake.receives(), wanted as usize);
        Ok(())
    }

    #[test]
    fn receive_is_posted_again_by_whoever_drops_its_message() -> Result {
        let (fake, seen, _, conn) = server()?;
        let limits = *conn.limits();
        let (all, batch) = (limits.messages as usize, limits.rx_batch as usize);
        for n in 1..=50 {
            assert!(fake.receive(b"message", None));
            assert_eq!(seen.lock().received, n);
            // No more than a batch is missing, ever.
            assert!(fake.receives() + batch > all);
        }
        // A peer that respects its credits finds a Receive, whatever the service does.
        seen.lock().keep = true;
        for n in 0..PARAMS.requests + PARAMS.extra {
            assert!(fake.receive(&[n as u8; 8], None));
        }
        let kept = take_kept(&seen);
        assert_eq!(kept.len(), (PARAMS.requests + PARAMS.extra) as usize);
        assert!(fake.receives() + kept.len() <= all);
        // What is kept is nobody else's.
        seen.lock().keep = false;
        for _ in 0..5 {
            fake.receive(b"message", None);
        }
        let mut messages = (0u8..).zip(kept.iter());
        assert!(messages.all(|(n, msg)| msg.bytes() == [n; 8]));
        drop(kept);
        assert!(fake.receives() + batch > all && fake.receives() <= all);
        assert_eq!(seen.lock().lost, 0);
        Ok(())
    }

    #[test]
    fn receive_that_completes_twice_is_one_message() -> Result {
        for keep in [true, false] {
            let (fake, seen, _, conn) = server()?;
            seen.lock().keep = keep;
            fake.stutter();
            assert!(fake.receive(b"message", None));
            assert_eq!(seen.lock().received, 1);
            assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::CompletedTwice));
            drop(conn);
            assert!(take_kept(&seen).iter().all(|msg| msg.bytes() == b"message"));
        }
        Ok(())
    }

    #[test]
    fn write_with_immediate_is_no_message() -> Result {
        let (fake, seen, _, conn) = server()?;
        for _ in 0..conn.limits().messages {
            assert!(fake.receive(b"message", None));
        }
        let before = seen.lock().received;
        assert!(fake.receive_immediate(7, false));
        assert_eq!(seen.lock().received, before);
        assert_eq!(seen.lock().lost, 1);
        Ok(())
    }

    #[test]
    fn receive_that_cannot_be_posted_ends_the_connection() -> Result {
        for (taken, vague) in [(0, false), (1, false), (0, true), (1, true)] {
            let (fake, seen, _, conn) = server()?;
            let batch = conn.limits().rx_batch as usize;
            if vague {
                fake.take_only_vaguely(taken);
            } else {
                fake.take_only(taken);
            }
            for _ in 0..batch {
                assert!(fake.receive(b"message", None));
            }
            assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::PostFailed));
            // A device that does not say what it took may have taken all of it.
            let back = if vague { 0 } else { batch - taken };
            assert_eq!(conn.shared.rx.lock().free.len(), back);
            drop(conn);
            assert_eq!(seen.lock().received, batch);
            // The protection domain is gone, so every buffer is.
            assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        }
        Ok(())
    }

    #[test]
    fn message_that_outlives_its_connection_is_not_posted() -> Result {
        let (fake, seen, _, conn) = server()?;
        seen.lock().keep = true;
        assert!(fake.receive(b"late", None));
        drop(conn);
        assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::DeallocPd), 0);
        let kept = take_kept(&seen);
        assert!(kept.iter().all(|msg| msg.bytes() == b"late") && kept.len() == 1);
        drop(kept);
        assert!(fake.asked()?.as_slice() == [Asked::DeallocPd]);
        assert_eq!(seen.lock().received, 1);
        Ok(())
    }

    #[test]
    fn teardown_has_its_order() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let (pages, first) = pages(3)?;
        post_read(&conn, &alive, pages, 1)?;
        post_reply(&conn, &alive, WRITES)?;
        assert!(post_reply(&conn, &alive, WRITES)?);
        let domain = conn.domain.clone();
        assert!(fake.receive(b"message", None));
        fake.asked()?;
        assert!(!domain.is_quiesced());
        drop(conn);
        assert!(domain.is_quiesced());
        let asked = fake.asked()?;
        let wanted = [
            Asked::DrainRq,
            Asked::DrainSq,
            Asked::DestroyQp,
            Asked::DestroyCq,
        ];
        assert!(order(&asked)?.as_slice() == wanted);
        assert_eq!(count(&asked, |asked| *asked == Asked::DestroyCq), 2);
        // Of what was posted, or waited, nothing is left when the service is told, and it was told
        // of nothing but the end.
        assert!(seen.lock().ended == 1 && seen.lock().left == 0);
        assert!(seen.lock().received == 1 && seen.lock().read.is_empty());
        assert!(first.is_alone());
        drop(domain);
        assert!(fake.asked()?.as_slice() == [Asked::DeallocPd]);
        Ok(())
    }

    #[test]
    fn loss_is_told_once_and_removal_of_the_device_besides() -> Result {
        let (fake, seen, alive, conn) = server()?;
        post_reply(&conn, &alive, 0)?;
        post_reply(&conn, &alive, 0)?;
        fake.complete(2, FAILED);
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::CompletionError(FAILED)));
        let id = conn.incoming.id.as_ptr();
        // SAFETY: The identifier is that of the connection.
        unsafe { happens(id, bindings::rdma_cm_event_type_RDMA_CM_EVENT_DISCONNECTED) };
        assert_eq!(seen.lock().lost, 1);
        // The connection manager and the RDMA core both say so.
        for _ in 0..2 {
            // SAFETY: As above.
            unsafe {
                happens(
                    id,
                    bindings::rdma_cm_event_type_RDMA_CM_EVENT_DEVICE_REMOVAL,
                )
            };
            conn.shared.lost(Lost::DeviceRemoved);
        }
        assert!(seen.lock().lost == 2 && seen.lock().why == Some(Lost::DeviceRemoved));
        Ok(())
    }

    #[test]
    fn loss_is_told_by_whatever_means_that_there_is_no_connection() -> Result {
        for (event, why) in [
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_DISCONNECTED,
                Some(Lost::Disconnected),
            ),
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_UNREACHABLE,
                Some(Lost::Disconnected),
            ),
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_CONNECT_ERROR,
                Some(Lost::Disconnected),
            ),
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_REJECTED,
                Some(Lost::Disconnected),
            ),
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_ADDR_CHANGE,
                Some(Lost::AddressChange),
            ),
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_DEVICE_REMOVAL,
                Some(Lost::DeviceRemoved),
            ),
            (bindings::rdma_cm_event_type_RDMA_CM_EVENT_ESTABLISHED, None),
            (
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_TIMEWAIT_EXIT,
                None,
            ),
        ] {
            let (_fake, seen, _, conn) = server()?;
            // SAFETY: The identifier is that of the connection.
            unsafe { happens(conn.incoming.id.as_ptr(), event) };
            assert!(seen.lock().why == why);
            assert_eq!(seen.lock().lost, usize::from(why.is_some()));
        }
        Ok(())
    }

    #[test]
    fn removal_of_the_device_waits_for_the_last_message() -> Result {
        let (fake, seen, _, conn) = server()?;
        seen.lock().keep = true;
        assert!(fake.receive(b"message", None));
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
        drop(conn);
        assert!(!removed.wait_msecs(100));
        drop(take_kept(&seen));
        removed.wait();
        Ok(())
    }

    #[test]
    fn silent_peer_is_asked_once_and_given_up_in_the_end() -> Result {
        let (fake, seen, _, conn) = server()?;
        let watch = Watch::new(&conn.shared, &conn.incoming.events);
        // Nobody is there yet who could answer.
        watch.tick();
        assert_eq!(fake.asked()?.len(), 0);
        assert!(fake.receive(b"message", None));
        watch.tick();
        assert_eq!(fake.asked()?.len(), 0);
        watch.tick();
        assert!(fake.asked()?.as_slice() == [Asked::Write(0, 0)]);
        watch.tick();
        assert_eq!(fake.asked()?.len(), 0);
        // It has answered.
        fake.complete(1, OK);
        watch.tick();
        assert_eq!(fake.asked()?.len(), 0);
        for n in 1..=4 {
            assert_eq!(seen.lock().lost, 0);
            watch.tick();
            assert_eq!(fake.asked()?.len(), usize::from(n == 1));
        }
        assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::Silent));
        Ok(())
    }
}
