// SPDX-License-Identifier: GPL-2.0

//! Requests for connections, until there is one: who may wait for how long, and what the device allows.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_ib_passive)]
mod tests {
    use super::super::trial::*;
    use crate::{
        bindings,
        ib::{
            kunit::{
                count,
                counter,
                fake::{
                    Asked,
                    Fake, //
                }, //
            },
            passive::{
                conn::ServerConn,
                limits::{
                    ServerLimits,
                    ServerParams,
                    SPARE, //
                },
                listen::MAX_WAITING, //
            },
        },
        rt::completion::Completion, //
    };
    use kernel::{
        prelude::*,
        sync::atomic::Relaxed, //
    };

    #[test]
    fn requests_for_connections_wait_up_to_a_limit() -> Result {
        let (fake, alive) = (Fake::new()?, counter()?);
        let (listener, rings) = listener(&fake.net(), &alive)?;
        let request = Request {
            private: &[],
            reads: 1,
        };
        for _ in 0..MAX_WAITING {
            assert!(ask(&listener, &fake, &request)?.is_some());
        }
        assert!(ask(&listener, &fake, &request)?.is_none());
        assert_eq!(rings.load(Relaxed) as usize, MAX_WAITING);
        let (first, more) = listener.accept();
        assert!(first.is_some() && more);
        assert!(ask(&listener, &fake, &request)?.is_some());
        drop(first);
        // All that still wait keep the port.
        listener.stop();
        assert!(ask(&listener, &fake, &request)?.is_none());
        assert!(listener.accept().0.is_none());
        drop(listener);
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn request_whose_peer_goes_does_not_wait() -> Result {
        let (fake, alive) = (Fake::new()?, counter()?);
        let (listener, _) = listener(&fake.net(), &alive)?;
        let mut ids = KVec::new();
        for n in 0..3 {
            let request = Request {
                private: &[n; 4],
                reads: 1,
            };
            ids.push(ask(&listener, &fake, &request)?, GFP_KERNEL)?;
        }
        let Some(&Some(second)) = ids.get(1) else {
            return Err(EINVAL);
        };
        // SAFETY: It waits, and nobody accepts it.
        unsafe {
            happens(
                second,
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_DISCONNECTED,
            )
        };
        let never = KBox::pin_init(Completion::new(), GFP_KERNEL)?;
        for _ in 0..200 {
            if listener.port.waiting.lock().as_ref().map(KVec::len) == Some(2) {
                break;
            }
            never.wait_msecs(10);
        }
        for n in [0, 2] {
            let (incoming, more) = listener.accept();
            assert!(incoming.is_some_and(|incoming| incoming.private() == [n; 4]));
            assert_eq!(more, n == 0);
        }
        Ok(())
    }

    #[test]
    fn request_that_is_lost_before_it_is_accepted_makes_no_connection() -> Result {
        let fake = Fake::new()?;
        let (seen, alive) = service()?;
        let incoming = fake.incoming(&[])?;
        // SAFETY: See above.
        unsafe {
            happens(
                incoming.id.as_ptr(),
                bindings::rdma_cm_event_type_RDMA_CM_EVENT_DISCONNECTED,
            )
        };
        let conn = accepted_from(incoming, &seen, &alive);
        assert!(conn.err() == Some(ENODEV));
        assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::CreateQp), 0);
        // One without RDMA Reads is of no use.
        let none = Request {
            private: &[],
            reads: 0,
        };
        let none = request(&fake, &none)?;
        assert!(accepted_from(none, &seen, &alive).err() == Some(EINVAL));
        Ok(())
    }

    #[test]
    fn connection_has_what_fits_into_the_queues_of_the_device() -> Result {
        let fake = Fake::new()?;
        let (seen, alive) = service()?;
        let mut last = 0;
        for entries in [9u32, 10, 19, 40, 80, 4096] {
            fake.limit_queues(entries as c_int);
            let conn = accepted(&fake, &seen, &alive);
            // Two requests, two answers and room for as many transfers, a probe, the end.
            assert_eq!(conn.is_ok(), entries >= 10);
            let Ok(conn) = conn else { continue };
            let limits = *conn.limits();
            assert!(limits.requests >= last.max(PARAMS.min_requests));
            assert!(limits.recv_wr <= entries && limits.send_wr + SPARE <= entries);
            assert!(limits.recv_wr > limits.messages);
            assert!(2 * (limits.requests + PARAMS.extra) <= limits.send_wr);
            last = limits.requests;
        }
        assert_eq!(last, PARAMS.requests);
        Ok(())
    }

    /// What a device makes of so many requests.
    fn limits_of(fake: &Fake, requests: u32) -> Result<ServerLimits> {
        let params = ServerParams { requests, ..PARAMS };
        let mut found = None;
        let refused = ServerConn::<Host>::new(fake.incoming(&[])?, &params, |limits| {
            found = Some(*limits);
            Err(EAGAIN)
        });
        assert!(refused.is_err());
        found.ok_or(EINVAL)
    }

    #[test]
    fn many_requests_are_what_a_device_with_long_queues_takes() -> Result {
        let mut fake = Fake::new()?;
        // As rxe has them.
        fake.limit_queues(32767);
        for (requests, granted) in [
            (4, 4),
            (128, 128),
            (2046, 2046),
            (2047, 2047),
            (4096, 4096),
            (16384, 4096),
        ] {
            let limits = limits_of(&fake, requests)?;
            assert_eq!(limits.requests, granted);
            let sends = granted + PARAMS.extra;
            assert!(limits.send_wr >= sends + sends.min(1100));
            assert!(limits.send_wr + SPARE <= 32767 && limits.recv_wr <= 32767);
        }
        // Regions for as many would take all memory there is.
        fake.be_iwarp();
        let limits = limits_of(&fake, 16384)?;
        assert!(limits.requests >= 1024 && (1..=16384).contains(&limits.regions));
        assert!(limits_of(&fake, 128)?.requests == 128);
        // No more than fit.
        fake.limit_queues(4096);
        let limits = limits_of(&fake, 16384)?;
        assert!(
            limits.requests >= 1024 && limits.send_wr + SPARE <= 4096 && limits.recv_wr <= 4096
        );
        Ok(())
    }
}
