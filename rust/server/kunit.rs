// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the server's transport: a connection over a device that does what the test says, a
//! transport and requests that no service has. What comes in, what is kept for the reply, what goes
//! out, and what becomes of it when something fails.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_server)]
mod tests {
    use super::super::{
        conn::{
            Connection,
            Peer,
            Work, //
        },
        ctxt::{
            CallCtxt,
            Pool, //
        },
        recv,
        send,
        RdmaServer, //
    };
    use crate::{
        ib::{
            Asked,
            Fake,
            ServerConn, //
        },
        rt::{
            completion::Completion,
            err, //
        },
        sunrpc::{
            take,
            ServiceLimits,
            TrialRqst,
            TrialXprt, //
        },
        wire::{
            self,
            Call,
            CallLimits,
            PrivateData, //
        },
    };
    use kernel::{
        page::PAGE_SIZE,
        prelude::*, //
    };

    const OK: u32 = 0;
    const FAILED: u32 = 10;
    const XID: u32 = 0x1234;
    const KEY: u32 = 0x55aa_0000;
    const MAX_PAGES: usize = 16;
    const PAGE: u32 = PAGE_SIZE as u32;
    /// A call with empty credential and verifier; its arguments begin with a word.
    const BODY: &[u8] = b"twenty-four bytes, words\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\
        args and what is behind them";
    /// Behind that word.
    const AT: usize = 44;
    const LIMITS: CallLimits = CallLimits {
        max_segs: 64,
        max_read_bytes: 1 << 20,
        empty_chunks: false,
    };

    /// A message: words of the header, then the rest.
    fn message(words: &[u32], rest: &[u8]) -> Result<KVec<u8>> {
        let mut all = KVec::new();
        for word in [&[XID, 1, 32], words].iter().copied().flatten() {
            all.extend_from_slice(&word.to_be_bytes(), GFP_KERNEL)?;
        }
        all.extend_from_slice(rest, GFP_KERNEL)?;
        Ok(all)
    }

    /// A call without chunks.
    fn plain() -> Result<KVec<u8>> {
        message(&[0, 0, 0, 0], BODY)
    }

    /// A call with so many bytes to be read behind the first word of its arguments.
    fn with_read(len: u32) -> Result<KVec<u8>> {
        message(&[0, 1, AT as u32, KEY, len, 0, 0x1000, 0, 0, 0], BODY)
    }

    /// A call with a Write chunk of so many segments of a page.
    fn with_write(segments: u32) -> Result<KVec<u8>> {
        with_writes(segments, PAGE)
    }

    /// The same, with segments of so many bytes.
    fn with_writes(segments: u32, bytes: u32) -> Result<KVec<u8>> {
        let mut words = KVec::new();
        words.extend_from_slice(&[0, 0, 1, segments], GFP_KERNEL)?;
        for n in 0..segments {
            words.extend_from_slice(&[KEY, bytes, 0, n * PAGE], GFP_KERNEL)?;
        }
        words.extend_from_slice(&[0, 0], GFP_KERNEL)?;
        message(&words, BODY)
    }

    fn decode(bytes: &[u8]) -> Result<Call<'_>> {
        wire::decode_call(bytes, &LIMITS).map_err(|_| EINVAL)
    }

    type Trial = (Fake, TrialXprt<RdmaServer>, TrialRqst, Connection);

    /// A device that has noted nothing yet, a transport, a request and a connection.
    fn trial() -> Result<Trial> {
        let fake = Fake::new()?;
        let xprt = TrialXprt::new(&fake.net())?;
        let rqst = TrialRqst::new(&xprt, MAX_PAGES)?;
        let private = PrivateData {
            remote_invalidation: true,
            send_size: 4096,
            recv_size: 4096,
        };
        let incoming = fake.incoming(&private.encode())?;
        let params = Connection::params(ServiceLimits {
            max_pages: MAX_PAGES as u32,
        });
        let new = Peer::new(incoming.remote(), xprt.handle());
        let rdma = ServerConn::unanswered(incoming, &params, new)?;
        let conn = Connection::of(rdma, Some(private), params);
        fake.asked()?;
        Ok((fake, xprt, rqst, conn))
    }

    /// What a thread of the service makes of the next work.
    fn receive(conn: &Connection, rqst: &mut TrialRqst) -> Result<Option<KBox<CallCtxt>>> {
        let work: Work = take(conn.inbox()).ok_or(ENOENT)?;
        recv::receive(conn, work, &mut rqst.call()?)
    }

    /// The procedure and the error of the message that was sent last.
    fn sent(fake: &Fake) -> [u32; 4] {
        let bytes = fake.sent();
        let word = |at: usize| {
            let bytes = bytes.get(4 * at..).and_then(|rest| rest.first_chunk());
            bytes.map_or(u32::MAX, |bytes| u32::from_be_bytes(*bytes))
        };
        [word(0), word(3), word(4), word(5)]
    }

    #[test]
    fn contexts_are_bounded_and_go() -> Result {
        let pool = Pool::new()?;
        let bytes = plain()?;
        let call = decode(&bytes)?;
        let mut used = KVec::new();
        for _ in 0..100 {
            used.push(pool.take(&call, &bytes, true)?, GFP_KERNEL)?;
        }
        while let Some(ctxt) = used.pop() {
            pool.put(ctxt);
        }
        assert_eq!(pool.idle.lock().len(), 64);
        // One with a long header does not stay.
        let long = with_write(64)?;
        let ctxt = pool.take(&decode(&long)?, &long, true)?;
        assert_eq!(pool.idle.lock().len(), 63);
        pool.put(ctxt);
        assert_eq!(pool.idle.lock().len(), 63);
        pool.trim();
        assert_eq!(pool.idle.lock().len(), 0);
        Ok(())
    }

    #[test]
    fn context_of_one_call_says_nothing_about_the_next() -> Result {
        let pool = Pool::new()?;
        let bytes = with_write(2)?;
        let mut ctxt = pool.take(&decode(&bytes)?, &bytes, true)?;
        assert!(ctxt.invalidate == Some(KEY) && ctxt.slots.len() == 1);
        ctxt.result_payload(4, 2 * PAGE + 1);
        assert!(ctxt.too_short == Some((0, 2 * PAGE + 1)));
        pool.put(ctxt);
        let bytes = plain()?;
        let ctxt = pool.take(&decode(&bytes)?, &bytes, true)?;
        assert!(ctxt.invalidate.is_none() && ctxt.slots.is_empty());
        assert!(ctxt.too_short.is_none() && ctxt.header.is_empty());
        pool.put(ctxt);
        // The first chunk is the first again.
        let bytes = with_write(2)?;
        let mut ctxt = pool.take(&decode(&bytes)?, &bytes, false)?;
        assert!(ctxt.invalidate.is_none());
        ctxt.result_payload(8, PAGE);
        assert!(ctxt
            .slots
            .iter()
            .all(|slot| (slot.at, slot.len) == (8, PAGE)));
        Ok(())
    }

    #[test]
    fn call_without_chunks_is_copied_and_its_receive_goes_back() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        let all = fake.receives();
        assert!(!xprt.has_data());
        assert!(fake.receive(&plain()?, None));
        assert!(xprt.has_data() && fake.receives() == all - 1);
        let ctxt = receive(&conn, &mut rqst)?;
        assert!(!xprt.has_data());
        assert!(ctxt.as_ref().is_some_and(|ctxt| ctxt.xid == XID));
        assert!(rqst.message()?.as_slice() == BODY);
        // It is the ring's: the next ones post it.
        for _ in 0..conn.rdma().limits().messages {
            assert!(fake.receive(&plain()?, None));
            assert!(receive(&conn, &mut rqst)?.is_some());
        }
        assert!(fake.receives() <= all && fake.receives() + 16 > all);
        assert!(!xprt.is_closing());
        Ok(())
    }

    #[test]
    fn call_with_a_read_chunk_waits_for_it() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&with_read(PAGE + 100)?, None));
        assert!(receive(&conn, &mut rqst)?.is_none());
        assert_eq!(rqst.taken(), 3);
        assert!(fake.asked()?.as_slice() == [Asked::Read(KEY, PAGE + 100)]);
        assert!(!xprt.has_data());
        // Calls that came later overtake it, until it is there.
        assert!(fake.receive(&plain()?, None));
        fake.complete(1, OK);
        assert!(xprt.has_data());
        let ctxt = receive(&conn, &mut rqst)?;
        assert!(ctxt.is_some());
        let message = rqst.message()?;
        assert_eq!(message.len(), BODY.len() + PAGE_SIZE + 100);
        assert!(message.get(..AT) == BODY.get(..AT));
        assert!(message.get(AT + PAGE_SIZE + 100..) == BODY.get(AT..));
        assert!(xprt.has_data() && receive(&conn, &mut rqst)?.is_some());
        assert!(!xprt.has_data() && !xprt.is_closing());
        Ok(())
    }

    #[test]
    fn padding_that_the_client_leaves_out_is_zeroes() -> Result {
        let (fake, _xprt, mut rqst, conn) = trial()?;
        for len in [1, 2, 3, PAGE - 3, PAGE + 1] {
            assert!(fake.receive(&with_read(len)?, None));
            assert!(receive(&conn, &mut rqst)?.is_none());
            fake.complete(1, OK);
            assert!(receive(&conn, &mut rqst)?.is_some());
            let message = rqst.message()?;
            let end = len.next_multiple_of(4) as usize;
            assert_eq!(message.len(), BODY.len() + end);
            let mut pad = message
                .iter()
                .skip(AT + len as usize)
                .take(end - len as usize);
            assert!(pad.all(|byte| *byte == 0));
            assert!(message.get(AT + end..) == BODY.get(AT..));
        }
        Ok(())
    }

    #[test]
    fn who_forgets_the_tail_finds_the_same_bytes() -> Result {
        let (fake, _xprt, mut rqst, conn) = trial()?;
        // With the last one there is no room for the tail behind it.
        for len in [4, PAGE - 8, PAGE, PAGE + 4, 14 * PAGE, 15 * PAGE] {
            assert!(fake.receive(&with_read(len)?, None));
            assert!(receive(&conn, &mut rqst)?.is_none());
            fake.complete(fake.sends(), OK);
            assert!(receive(&conn, &mut rqst)?.is_some());
            assert_eq!(rqst.message()?.len(), BODY.len() + len as usize);
            assert!(rqst.message()?.as_slice() == rqst.message_without_tail()?.as_slice());
        }
        Ok(())
    }

    #[test]
    fn call_that_cannot_be_served_is_answered_and_costs_nothing() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        for (bytes, error) in [
            // More than there are pages, another version, a procedure that there is not, nothing.
            (with_read(PAGE * MAX_PAGES as u32)?, [XID, 4, 2, u32::MAX]),
            (message(&[9, 0, 0, 0], BODY)?, [XID, 4, 2, u32::MAX]),
            (message(&[0, 0, 0, 0], &[])?, [XID, 4, 2, u32::MAX]),
        ] {
            assert!(fake.receive(&bytes, None));
            assert!(receive(&conn, &mut rqst)?.is_none());
            assert_eq!(rqst.taken(), 0);
            assert!(fake.asked()?.as_slice() == [Asked::Send(true)]);
            assert!(sent(&fake).get(..3) == error.get(..3));
            fake.complete(1, OK);
        }
        // A message of no call at all is not answered.
        assert!(fake.receive(b"what", None));
        assert!(receive(&conn, &mut rqst)?.is_none());
        assert_eq!(fake.asked()?.len(), 0);
        assert!(!xprt.is_closing());
        assert!(fake.receive(&plain()?, None));
        assert!(receive(&conn, &mut rqst)?.is_some());
        Ok(())
    }

    #[test]
    fn reply_is_one_chain_and_has_its_pages_until_it_is_sent() -> Result {
        let (fake, _xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&with_write(2)?, None));
        let Some(mut ctxt) = receive(&conn, &mut rqst)? else {
            return Err(EINVAL);
        };
        ctxt.result_payload(100, PAGE + 8);
        fake.posts();
        send::send(&conn, &mut ctxt, &mut rqst.reply(100, PAGE_SIZE + 8)?)?;
        assert_eq!(fake.posts(), 1);
        // The thread goes on without them.
        assert_eq!(rqst.taken_of_reply(), 3);
        let asked = fake.asked()?;
        let bytes = asked.iter().map(|asked| match asked {
            Asked::Write(KEY, len) => *len,
            _ => 0,
        });
        assert_eq!(bytes.sum::<u32>(), PAGE + 8);
        assert!(asked.last() == Some(&Asked::SendInvalidate(KEY)));
        assert!(sent(&fake).get(..2) == Some(&[XID, 0]));
        conn.put_ctxt(ctxt);
        // Without chunks nothing is taken, nor invalidated.
        assert!(fake.receive(&plain()?, None));
        let Some(mut ctxt) = receive(&conn, &mut rqst)? else {
            return Err(EINVAL);
        };
        send::send(&conn, &mut ctxt, &mut rqst.reply(100, 0)?)?;
        assert!(fake.asked()?.as_slice() == [Asked::Send(true)]);
        fake.complete(fake.sends(), OK);
        Ok(())
    }

    #[test]
    fn message_that_is_not_answered_needs_no_room_for_an_answer() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        let mut held = KVec::new();
        while let Ok(reply) = conn.rdma().reply() {
            held.push(reply, GFP_KERNEL)?;
        }
        assert!(held.len() > 1);
        for bytes in [message(&[4, 2], &[])?, message(&[3, 0, 0, 0], &[])?] {
            assert!(fake.receive(&bytes, None));
            assert!(receive(&conn, &mut rqst)?.is_none());
        }
        // One that has to be answered cannot be.
        assert!(fake.receive(&message(&[9, 0, 0, 0], BODY)?, None));
        assert!(receive(&conn, &mut rqst).err() == Some(EBUSY));
        drop(held);
        assert!(fake.receive(&plain()?, None));
        assert!(receive(&conn, &mut rqst)?.is_some());
        assert!(!xprt.is_closing());
        Ok(())
    }

    #[test]
    fn reply_that_does_not_fit_is_an_error_of_the_call_alone() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        // Payload that is longer than its chunk, and a reply longer than a message.
        for (bytes, head, payload) in [(with_writes(2, 8)?, 100, 20), (plain()?, 4096, 0)] {
            assert!(fake.receive(&bytes, None));
            let Some(mut ctxt) = receive(&conn, &mut rqst)? else {
                return Err(EINVAL);
            };
            ctxt.result_payload(100, payload);
            send::send(&conn, &mut ctxt, &mut rqst.reply(head, payload as usize)?)?;
            assert!(fake.asked()?.as_slice() == [Asked::Send(true)]);
            assert!(sent(&fake).get(..3) == Some(&[XID, 4, 2]));
            conn.put_ctxt(ctxt);
        }
        assert!(!xprt.is_closing());
        Ok(())
    }

    #[test]
    fn reply_that_cannot_be_posted_closes_the_connection() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&plain()?, None));
        let Some(mut ctxt) = receive(&conn, &mut rqst)? else {
            return Err(EINVAL);
        };
        fake.take_only(0);
        assert!(send::send(&conn, &mut ctxt, &mut rqst.reply(100, 0)?).is_err());
        assert!(xprt.is_closing());
        Ok(())
    }

    #[test]
    fn pages_of_a_reply_are_taken_before_it_is_posted() -> Result {
        let (fake, _xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&with_write(2)?, None));
        let mut ctxt = receive(&conn, &mut rqst)?.ok_or(EINVAL)?;
        ctxt.result_payload(100, PAGE);
        fake.take_only(0);
        assert!(send::send(&conn, &mut ctxt, &mut rqst.reply(100, PAGE_SIZE)?).is_err());
        assert_eq!(rqst.taken_of_reply(), 2);
        Ok(())
    }

    #[test]
    fn read_that_fails_closes_the_connection_and_is_no_call() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&with_read(100)?, None));
        assert!(receive(&conn, &mut rqst)?.is_none());
        fake.complete(1, FAILED);
        assert!(xprt.is_closing() && !xprt.has_data());
        assert!(take(conn.inbox()).is_none());
        Ok(())
    }

    #[test]
    fn congestion_keeps_calls_where_they_are() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        let mut replies = 0;
        while xprt.has_room() {
            assert!(fake.receive(&plain()?, None));
            let Some(mut ctxt) = receive(&conn, &mut rqst)? else {
                return Err(EINVAL);
            };
            send::send(&conn, &mut ctxt, &mut rqst.reply(100, 0)?)?;
            conn.put_ctxt(ctxt);
            replies += 1;
            assert!(replies <= 2 * conn.rdma().limits().messages);
        }
        // Those that a client may have outstanding do not congest.
        assert!(replies >= conn.rdma().limits().requests);
        fake.complete(1, OK);
        assert!(xprt.has_room());
        Ok(())
    }

    #[test]
    fn work_that_nobody_takes_goes_with_the_connection() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&with_read(100)?, None));
        assert!(receive(&conn, &mut rqst)?.is_none());
        fake.complete(1, OK);
        for _ in 0..5 {
            assert!(fake.receive(&plain()?, None));
        }
        fake.asked()?;
        drop(conn);
        // The protection domain is gone, so every message is.
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        assert!(!xprt.has_data());
        Ok(())
    }

    #[test]
    fn there_is_work_until_the_last_of_either_kind_is_taken() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        assert!(fake.receive(&with_read(100)?, None));
        assert!(receive(&conn, &mut rqst)?.is_none());
        fake.complete(1, OK);
        for _ in 0..2 {
            assert!(fake.receive(&plain()?, None));
        }
        for left in [2, 1, 0] {
            assert!(xprt.has_data());
            let Some(ctxt) = receive(&conn, &mut rqst)? else {
                return Err(EINVAL);
            };
            conn.put_ctxt(ctxt);
            assert!(xprt.has_data() == (left != 0));
        }
        assert!(!xprt.is_closing());
        Ok(())
    }

    #[test]
    fn client_has_one_call_read_at_a_time_until_it_names_a_file() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        let bytes = with_read(PAGE)?;
        for known in [false, true] {
            assert!(fake.receive(&bytes, None));
            assert!(receive(&conn, &mut rqst)?.is_none());
            assert!(xprt.has_room() == known);
            fake.complete(fake.sends(), OK);
            assert!(xprt.has_room());
            assert!(receive(&conn, &mut rqst)?.is_some());
            xprt.set_peer_valid();
        }
        Ok(())
    }

    /// Whether something becomes true within so many hundredths of a second.
    fn within(times: u32, mut what: impl FnMut() -> Result<bool>) -> Result<bool> {
        let never = KBox::pin_init(Completion::new(), GFP_KERNEL)?;
        for _ in 0..times {
            if what()? {
                return Ok(true);
            }
            never.wait_msecs(10);
        }
        Ok(false)
    }

    /// All that the connection had of the device was given back.
    fn is_gone(fake: &Fake) -> Result<bool> {
        Ok(fake.asked()?.last() == Some(&Asked::DeallocPd))
    }

    #[test]
    fn connection_whose_device_goes_ends_when_nobody_uses_it() -> Result {
        let (fake, xprt, mut rqst, conn) = trial()?;
        let bytes = plain()?;
        assert!(fake.receive(&bytes, None));
        let mut ctxt = receive(&conn, &mut rqst)?.ok_or(EINVAL)?;
        xprt.set_conn(conn);
        let handle = xprt.handle();
        let waited = xprt.with_conn(|conn| {
            handle.close_now();
            handle.close_now();
            // Nobody comes to use it, but it stays for those who do.
            assert!(within(200, || Ok(xprt.with_conn(|_| ()).is_none()))?);
            assert!(xprt.is_closing() && !is_gone(&fake)?);
            send::send(conn, &mut ctxt, &mut rqst.reply(64, 0)?)
        });
        assert!(waited == Some(Ok(())));
        // No thread closes the transport, and the call still is there.
        assert!(within(200, || is_gone(&fake))?);
        assert!(xprt.with_conn(|_| ()).is_none());
        drop(ctxt);
        Ok(())
    }

    #[test]
    fn service_does_not_wait_for_the_end_of_a_connection_that_it_closes() -> Result {
        let (fake, xprt, _rqst, conn) = trial()?;
        xprt.set_conn(conn);
        let gone = xprt.with_conn(|_| {
            xprt.detach();
            is_gone(&fake)
        });
        assert!(gone == Some(Ok(false)));
        assert!(within(200, || is_gone(&fake))?);
        Ok(())
    }

    #[test]
    fn callbacks_are_refused_to_who_does_not_keep_the_connection() -> Result {
        let refused = TrialXprt::<RdmaServer>::callbacks_without_reference();
        assert!(refused == Err(err::eopnotsupp()));
        Ok(())
    }

    #[test]
    fn who_comes_when_a_connection_ends_is_not_counted() -> Result {
        let (_fake, xprt, _rqst, conn) = trial()?;
        xprt.set_conn(conn);
        assert_eq!(xprt.late_user(), (false, 0));
        Ok(())
    }

    #[test]
    fn connection_whose_device_goes_first_ends_when_it_is_told_of() -> Result {
        let (fake, xprt, _rqst, conn) = trial()?;
        xprt.handle().close_now();
        assert!(!within(20, || is_gone(&fake))?);
        xprt.set_conn(conn);
        assert!(is_gone(&fake)? && xprt.is_closing());
        assert!(xprt.with_conn(|_| ()).is_none());
        Ok(())
    }
}
