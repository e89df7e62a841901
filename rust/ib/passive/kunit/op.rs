// SPDX-License-Identifier: GPL-2.0

//! Operations of an accepted connection, on a device that does what the test says: places in the send
//! queue, what operations hold, and when they let go of it.

use kernel::prelude::*;

#[kunit_tests(rpcrdma_ib_op)]
mod tests {
    use super::super::trial::*;
    use crate::{
        bindings,
        ib::{
            dma::MESSAGE_BYTES,
            kunit::{
                count,
                fake::{
                    Asked,
                    Fake, //
                },
                FAILED,
                OK, //
            },
            lost::Lost,
            passive::{
                op::IDLE_RWS,
                probe::Watch, //
            },
        },
        rt::{
            err,
            pagevec::PageVec,
            ticker::Tick, //
        },
    };
    use kernel::{
        page::PAGE_SIZE,
        prelude::*,
        sync::atomic::Relaxed, //
    };

    const FLUSHED: u32 = bindings::ib_wc_status_IB_WC_WR_FLUSH_ERR;
    const PAGE: u32 = PAGE_SIZE as u32;
    /// Work requests of a reply with [`WRITES`].
    const LONG: usize = WRITES + 1;

    #[test]
    fn places_in_the_send_queue_are_taken_whole_and_come_back_whole() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let depth = conn.limits().send_wr;
        assert_eq!(room(&conn), depth);
        fake.posts();
        assert!(!reply(&conn, &alive, 3)?.post(16, Some(KEY))?);
        assert_eq!(fake.posts(), 1);
        assert_eq!(room(&conn), depth - 4);
        let write = Asked::Write(KEY, PAGE);
        // The Send comes last: what was written is there when the peer has the reply.
        assert!(fake.asked()?.as_slice() == [write, write, write, Asked::SendInvalidate(KEY)]);
        let (pages, _) = pages(5)?;
        assert!(!post_read(&conn, &alive, pages, 1)?);
        assert!(fake.asked()?.as_slice() == [Asked::Read(KEY, 4 * PAGE), Asked::Read(KEY, PAGE)]);
        assert_eq!(fake.posts(), 1);
        assert_eq!(room(&conn), depth - 6);
        // A part of a chain is nothing.
        fake.complete(3, OK);
        assert_eq!(room(&conn), depth - 6);
        assert_eq!(alive.load(Relaxed), 2);
        fake.complete(1, OK);
        assert_eq!(room(&conn), depth - 2);
        assert_eq!(alive.load(Relaxed), 1);
        fake.complete(2, OK);
        assert_eq!(room(&conn), depth);
        assert_eq!(alive.load(Relaxed), 0);
        assert!(!conn.shared.sq.lock().in_use());
        assert_eq!(seen.lock().lost, 0);
        Ok(())
    }

    #[test]
    fn operation_without_room_waits_in_line_and_is_posted_whole() -> Result {
        let (fake, _, alive, conn) = server()?;
        let depth = conn.limits().send_wr;
        assert!(!post_reply(&conn, &alive, WRITES)?);
        assert!(post_reply(&conn, &alive, WRITES)?);
        // There would be room for this one, but it is not its turn.
        assert!(post_reply(&conn, &alive, 0)?);
        assert_eq!(fake.sends(), LONG);
        assert_eq!(room(&conn), depth - LONG as u32);
        fake.asked()?;
        fake.complete(LONG, OK);
        assert_eq!(fake.sends(), LONG + 1);
        assert_eq!(room(&conn), depth - LONG as u32 - 1);
        let asked = fake.asked()?;
        let (writes, sends) = asked.split_at(WRITES);
        assert_eq!(
            count(writes, |asked| *asked == Asked::Write(KEY, PAGE)),
            WRITES
        );
        assert!(sends == [Asked::Send(true), Asked::Send(true)]);
        fake.complete(LONG + 1, OK);
        assert_eq!(room(&conn), depth);
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn operation_in_line_waits_until_there_is_room_for_all_of_it() -> Result {
        let (fake, _, alive, conn) = server()?;
        let depth = conn.limits().send_wr as usize;
        assert!(!post_reply(&conn, &alive, 0)?);
        assert!(!post_reply(&conn, &alive, depth - 2)?);
        assert!(post_reply(&conn, &alive, WRITES)?);
        assert_eq!(fake.sends(), depth);
        fake.complete(1, OK);
        assert_eq!(fake.sends(), depth - 1);
        assert_eq!(room(&conn), 1);
        fake.complete(depth - 1, OK);
        assert_eq!(fake.sends(), LONG);
        fake.complete(LONG, OK);
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn operation_longer_than_the_send_queue_is_refused() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let depth = conn.limits().send_wr;
        for _ in 0..3 {
            let long = reply(&conn, &alive, depth as usize)?;
            assert!(long.post(16, None).err() == Some(err::emsgsize()));
            assert_eq!(alive.load(Relaxed), 0);
        }
        assert_eq!(room(&conn), depth);
        assert_eq!(fake.asked()?.len(), 0);
        assert!(!post_reply(&conn, &alive, depth as usize - 1)?);
        assert_eq!(room(&conn), 0);
        assert_eq!(seen.lock().lost, 0);
        Ok(())
    }

    #[test]
    fn operation_that_is_dropped_gives_all_back() -> Result {
        let (fake, _, alive, conn) = server()?;
        let depth = conn.limits().send_wr;
        // More often than there are operations.
        for _ in 0..100 {
            drop(reply(&conn, &alive, 3)?);
            let (pages, first) = pages(5)?;
            let mut read = conn.read(pages)?;
            read.add(KEY, 0, 0, 5 * PAGE_SIZE)?;
            assert!(!first.is_alone());
            drop(read);
            assert!(first.is_alone());
            assert_eq!(alive.load(Relaxed), 0);
        }
        for reply in [true, false] {
            let ops = conn.shared.ops(reply).lock();
            assert!(ops.idle.len() == 1 && ops.idle.top().is_some_and(|op| op.rws.is_empty()));
        }
        // The reads had one of the three.
        assert_eq!(conn.shared.rws.lock().len(), 3);
        assert_eq!(room(&conn), depth);
        assert_eq!(fake.asked()?.len(), 0);
        Ok(())
    }

    #[test]
    fn operations_are_not_more_than_a_peer_can_cause() -> Result {
        let (fake, _, alive, conn) = server()?;
        let limits = *conn.limits();
        for _ in 0..limits.max_replies {
            post_reply(&conn, &alive, 0)?;
        }
        assert!(conn.reply().err() == Some(EBUSY));
        for n in 0..limits.max_reads {
            post_read(&conn, &alive, pages(1)?.0, n)?;
        }
        assert!(conn.read(pages(1)?.0).err() == Some(EBUSY));
        fake.complete(1, OK);
        assert!(!post_reply(&conn, &alive, 0)?);
        assert!(conn.reply().err() == Some(EBUSY));
        Ok(())
    }

    #[test]
    fn many_replies_congest_until_enough_are_complete() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let many = conn.limits().max_replies / 2;
        for n in 1..many + 2 {
            post_reply(&conn, &alive, 0)?;
            assert_eq!(seen.lock().congested.len(), usize::from(n >= many));
        }
        fake.complete(1, OK);
        assert!(seen.lock().congested.as_slice() == [true] && seen.lock().writable == 0);
        fake.complete(1, OK);
        assert!(seen.lock().congested.as_slice() == [true, false] && seen.lock().writable == 1);
        fake.complete(fake.sends(), OK);
        assert!(seen.lock().congested.len() == 2 && seen.lock().writable == 1);
        Ok(())
    }

    #[test]
    fn peer_that_nothing_is_known_of_has_one_request_read_at_a_time() -> Result {
        let (fake, seen, alive, conn) = server()?;
        seen.lock().known = false;
        post_read(&conn, &alive, pages(1)?.0, 1)?;
        assert!(seen.lock().congested.as_slice() == [true] && seen.lock().writable == 0);
        fake.complete(1, OK);
        assert!(seen.lock().congested.as_slice() == [true, false] && seen.lock().writable == 1);
        // What was read is in the service's hands before it takes up the next request.
        assert_eq!(seen.lock().read_before, 1);
        // What it is told by messages alone takes none of its memory.
        conn.reply()?.post(8, None)?;
        assert_eq!(seen.lock().congested.len(), 2);
        fake.complete(1, OK);
        post_read(&conn, &alive, pages(1)?.0, 2)?;
        assert_eq!(seen.lock().congested.len(), 3);
        post_read(&conn, &alive, pages(1)?.0, 2)?;
        // From the next completion on.
        seen.lock().known = true;
        fake.complete(1, OK);
        assert!(seen.lock().congested.len() == 4 && seen.lock().writable == 2);
        fake.complete(1, OK);
        post_read(&conn, &alive, pages(1)?.0, 3)?;
        post_read(&conn, &alive, pages(1)?.0, 4)?;
        assert_eq!(seen.lock().congested.len(), 4);
        fake.complete(2, OK);
        Ok(())
    }

    #[test]
    fn many_pages_congest_whether_written_from_or_read_into() -> Result {
        let (fake, seen, alive, conn) = server()?;
        conn.shared.sq.lock().many_pages = 2 * PAGES + 1;
        post_reply(&conn, &alive, 0)?;
        post_reply(&conn, &alive, 0)?;
        assert!(seen.lock().congested.is_empty());
        post_read(&conn, &alive, pages(1)?.0, 1)?;
        assert!(seen.lock().congested.as_slice() == [true]);
        fake.complete(1, OK);
        assert!(seen.lock().congested.as_slice() == [true, false] && seen.lock().writable == 1);
        post_reply(&conn, &alive, 0)?;
        assert!(seen.lock().congested.as_slice() == [true, false, true]);
        fake.complete(fake.sends(), OK);
        assert!(seen.lock().congested.len() == 4 && seen.lock().writable == 2);
        assert_eq!(conn.shared.sq.lock().pages, 0);
        Ok(())
    }

    #[test]
    fn idle_memory_is_bounded_and_goes() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let limits = *conn.limits();
        let watch = Watch::new(&conn.shared, &conn.incoming.events);
        post_reply(&conn, &alive, WRITES)?;
        post_read(&conn, &alive, pages(1)?.0, 1)?;
        // Not while something is posted.
        watch.tick();
        assert_eq!(seen.lock().idle, 0);
        fake.complete(LONG + 1, OK);
        assert_eq!(conn.shared.rws.lock().len(), IDLE_RWS);
        watch.tick();
        assert_eq!(seen.lock().idle, 1);
        assert_eq!(conn.shared.rws.lock().len(), 0);
        for (reply, all) in [(true, limits.max_replies), (false, limits.max_reads)] {
            let ops = conn.shared.ops(reply).lock();
            assert!(ops.idle.is_empty() && ops.numbers.len() == all as usize);
        }
        Ok(())
    }

    #[test]
    fn pages_that_were_read_come_with_their_job() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let (first_pages, first) = pages(5)?;
        let (second_pages, second) = pages(2)?;
        post_read(&conn, &alive, first_pages, 7)?;
        post_read(&conn, &alive, second_pages, 8)?;
        fake.complete(1, OK);
        assert_eq!(seen.lock().read.len(), 0);
        fake.complete(1, OK);
        assert!(seen.lock().read.as_slice() == [(5, 7)]);
        assert!(first.is_alone() && !second.is_alone());
        fake.complete(1, OK);
        assert!(seen.lock().read.as_slice() == [(5, 7), (2, 8)]);
        assert!(second.is_alone());
        assert_eq!(alive.load(Relaxed), 0);
        Ok(())
    }

    #[test]
    fn read_that_fails_is_not_told_as_done() -> Result {
        for status in [FAILED, FLUSHED] {
            let (fake, seen, alive, conn) = server()?;
            let depth = conn.limits().send_wr;
            let (pages, first) = pages(5)?;
            post_read(&conn, &alive, pages, 7)?;
            post_reply(&conn, &alive, 1)?;
            fake.complete(4, status);
            assert_eq!(seen.lock().read.len(), 0);
            assert!(first.is_alone());
            assert_eq!(alive.load(Relaxed), 0);
            assert_eq!(room(&conn), depth);
            assert!(
                seen.lock().lost == 1 && seen.lock().why == Some(Lost::CompletionError(status))
            );
        }
        Ok(())
    }

    #[test]
    fn chain_that_is_not_taken_whole_keeps_its_memory_until_the_queue_is_drained() -> Result {
        for taken in 0..4 {
            let (fake, seen, alive, conn) = server()?;
            fake.take_only(taken);
            assert!(post_reply(&conn, &alive, 3).is_err());
            assert!(seen.lock().lost == 1 && seen.lock().why == Some(Lost::PostFailed));
            assert_eq!(fake.sends(), taken);
            // The device may be reading.
            assert_eq!(alive.load(Relaxed), 1);
            fake.complete(taken, OK);
            assert_eq!(alive.load(Relaxed), 1);
            drop(conn);
            assert!(seen.lock().ended == 1 && seen.lock().left == 0);
            assert_eq!(alive.load(Relaxed), 0);
            assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        }
        Ok(())
    }

    #[test]
    fn what_a_device_neither_refuses_nor_completes_comes_back_at_the_end() -> Result {
        let (fake, seen, alive, conn) = server()?;
        // One that it has, one of which it does not say whether it has it.
        post_reply(&conn, &alive, 0)?;
        fake.take_only_vaguely(0);
        assert!(post_reply(&conn, &alive, 0).is_err());
        assert_eq!(seen.lock().lost, 1);
        fake.fail();
        assert_eq!(alive.load(Relaxed), 2);
        drop(conn);
        assert!(seen.lock().ended == 1 && seen.lock().left == 0);
        assert_eq!(alive.load(Relaxed), 0);
        assert!(fake.asked()?.last() == Some(&Asked::DeallocPd));
        Ok(())
    }

    #[test]
    fn regions_of_operations_that_a_device_forgets_go_with_the_queue_pair() -> Result {
        let mut fake = Fake::new()?;
        fake.be_iwarp();
        let (seen, alive) = service()?;
        let conn = accepted(&fake, &seen, &alive)?;
        let regions = count(&fake.asked()?, |asked| *asked == Asked::AllocMr);
        assert!(regions > 0);
        let (pages, first) = pages(5)?;
        post_read(&conn, &alive, pages, 7)?;
        assert!(fake.sends() > 0);
        fake.fail();
        drop(conn);
        assert!(first.is_alone());
        assert!(seen.lock().ended == 1 && seen.lock().left == 0 && seen.lock().read.is_empty());
        let asked = fake.asked()?;
        assert_eq!(count(&asked, |asked| *asked == Asked::DeregMr), regions);
        assert!(asked.last() == Some(&Asked::DeallocPd));
        Ok(())
    }

    #[test]
    fn what_a_device_does_not_stop_using_is_not_given_back() -> Result {
        // Posted whole, and in part.
        for taken in [usize::MAX, 1] {
            let (fake, seen, alive, conn) = server()?;
            let (pages, first) = pages(5)?;
            fake.take_only(taken);
            assert_eq!(post_read(&conn, &alive, pages, 1).is_ok(), taken != 1);
            fake.take_only(usize::MAX);
            // This one waits, and the device knows nothing of it.
            conn.shared.sq.lock().room = 0;
            assert!(post_reply(&conn, &alive, WRITES)?);
            let before = MESSAGE_BYTES.get();
            fake.refuse(usize::MAX, 0);
            drop(conn);
            assert!(!first.is_alone());
            assert!(seen.lock().ended == 1 && seen.lock().left == 0);
            assert!(MESSAGE_BYTES.get() == before);
            assert_eq!(count(&fake.asked()?, |asked| *asked == Asked::DeallocPd), 0);
        }
        Ok(())
    }

    #[test]
    fn parts_of_pages_that_do_not_adjoin_are_read_apart() -> Result {
        let mut fake = Fake::new()?;
        fake.be_iwarp();
        let (seen, alive) = service()?;
        let conn = accepted(&fake, &seen, &alive)?;
        fake.asked()?;
        let job = |number| Job::new(number, &alive);
        // From the middle of a page to the middle of another one.
        let (from, len) = (300, 3 * PAGE_SIZE);
        for (number, bends) in [(1, false), (2, true)] {
            if bends {
                fake.bend();
            }
            let (pages, first) = pages(4)?;
            let mut read = conn.read(pages)?;
            assert_eq!(read.add(KEY, 0, from, len)?, if bends { 3 } else { 1 });
            assert!(!read.post(job(number))?);
            let asked = fake.asked()?;
            let sizes = |asked: &Asked| match asked {
                Asked::Read(KEY, bytes) => Some(*bytes),
                _ => None,
            };
            let mut sizes = asked.iter().filter_map(sizes);
            if bends {
                assert!(sizes.next() == Some(PAGE - 300) && sizes.next() == Some(2 * PAGE));
                assert!(sizes.next() == Some(300));
            } else {
                assert!(sizes.next() == Some(3 * PAGE));
            }
            assert!(sizes.next().is_none());
            fake.complete(fake.sends(), OK);
            assert!(seen.lock().read.last() == Some(&(4, number)));
            assert!(first.is_alone());
        }
        assert!(!conn.shared.sq.lock().in_use());
        Ok(())
    }

    #[test]
    fn pages_that_are_one_piece_of_memory_are_one_piece_for_the_device() -> Result {
        let (fake, seen, alive, conn) = server()?;
        let mut number = 0;
        let mut pieces = |pages: PageVec, from, len| -> Result<usize> {
            number += 1;
            let mut read = conn.read(pages)?;
            read.add(KEY, 0, from, len)?;
            assert!(!read.post(Job::new(number, &alive))?);
            let bytes = fake.asked()?.iter().fold(0, |sum, asked| match asked {
                Asked::Read(KEY, bytes) => sum + *bytes,
                _ => sum,
            });
            // CAST: A few pages.
            assert_eq!(bytes, len as u32);
            fake.complete(fake.sends(), OK);
            assert!(seen
                .lock()
                .read
                .pop()
                .is_some_and(|(_, last)| last == number));
            Ok(fake.pieces())
        };
        assert_eq!(pieces(pages(4)?.0, 0, 4 * PAGE_SIZE)?, 4);
        assert_eq!(pieces(block(2)?, 0, 4 * PAGE_SIZE)?, 1);
        // From the middle of one to the middle of another.
        assert_eq!(pieces(block(2)?, 300, 3 * PAGE_SIZE)?, 1);
        // One mapping is not of more than 64 KiB.
        assert_eq!(pieces(block(5)?, 0, 32 * PAGE_SIZE)?, 2);
        assert!(!conn.shared.sq.lock().in_use());
        Ok(())
    }

    #[test]
    fn nothing_is_posted_once_the_end_has_begun() -> Result {
        let (fake, seen, alive, conn) = server()?;
        post_reply(&conn, &alive, WRITES)?;
        assert!(post_reply(&conn, &alive, WRITES)?);
        // As at the beginning of the teardown.
        conn.shared.sq.lock().closed = true;
        assert!(post_reply(&conn, &alive, 0).err() == Some(err::enotconn()));
        fake.asked()?;
        fake.complete(LONG, OK);
        assert_eq!(fake.sends(), 0);
        assert_eq!(fake.asked()?.len(), 0);
        assert_eq!(alive.load(Relaxed), 2);
        drop(conn);
        assert_eq!(
            count(&fake.asked()?, |asked| *asked == Asked::Send(true)),
            0
        );
        assert!(seen.lock().ended == 1 && seen.lock().left == 0);
        Ok(())
    }
}
