//! The lanes of one link (pure): which frame is written next, and which frames may be received.
//!
//! Each direction of each lane has a credit window in bytes. The receiver grants bytes anew only when its store has
//! committed them, so a slow store slows its children and drops nothing. A message larger than the window is granted
//! on as its fragments arrive, except for its last window's worth. What a lost link cut off may be gone on with on the
//! next one, if it is the same message.

use branchline_protocol::{
    hash::Hash,
    record::Lane,
    wire::{CREDIT_START, Frame, MESSAGE_BYTES_MAX, Resume},
};
use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;

/// Why a frame is against the rules: closes the link, counts as a protocol error.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LaneFault {
    /// More bytes than were granted.
    #[error("out of credit on lane {lane:?}: {sent} bytes sent, {granted} granted")]
    OutOfCredit {
        /// The lane.
        lane: Lane,
        /// Bytes of the frame.
        sent: u32,
        /// Bytes the sender had left.
        granted: u32,
    },
    /// A fragment that does not continue what came before.
    #[error("fragment out of order on lane {0:?}")]
    OutOfOrder(Lane),
    /// A message over the bound.
    #[error("a message of {0} bytes, {MESSAGE_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// More credit than any window can hold.
    #[error("credit beyond every window on lane {0:?}")]
    CreditOverflow(Lane),
}

/// A whole message, and the bytes of credit its receiver owes once the content is durable.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    /// On which lane.
    pub lane: Lane,
    /// The message.
    pub bytes: Bytes,
    /// To be given back by [`Lanes::release`].
    pub credit: u32,
}

/// The received beginning of a message that a lost link cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Its lane.
    pub lane: Lane,
    /// Its whole length.
    pub total: u32,
    /// What is here of it.
    pub bytes: Bytes,
}

impl Partial {
    /// What its sender is told.
    pub fn resume(&self) -> Resume {
        let (lane, total) = (self.lane, self.total);
        Resume { lane, total, held: self.bytes.len() as u32, hash: Hash::of(&self.bytes) }
    }
}

#[derive(Default)]
struct Out {
    queue: VecDeque<Bytes>,
    message: u64,
    /// Whether a frame of the first message was taken.
    begun: bool,
    offset: usize,
    credit: u32,
    bytes: usize,
    /// A message that the peer holds the beginning of.
    resume: Option<Resume>,
}

#[derive(Default)]
struct In {
    message: u64,
    total: usize,
    partial: BytesMut,
    /// Of the message under way: bytes not granted anew yet.
    owed: u32,
    /// Released and not told yet.
    freed: u32,
    /// What the peer may still send.
    granted: u32,
    /// The beginning of a message, from an earlier link.
    held: Option<Partial>,
}

/// Both directions of all lanes of one link.
pub struct Lanes {
    out: [Out; 5],
    inn: [In; 5],
}

impl Default for Lanes {
    fn default() -> Self {
        Lanes {
            out: std::array::from_fn(|_| Out { credit: CREDIT_START, ..Out::default() }),
            inn: std::array::from_fn(|_| In { granted: CREDIT_START, ..In::default() }),
        }
    }
}

/// A message beyond this is granted on while it arrives.
const GRANT_ON_ABOVE: usize = CREDIT_START as usize / 2;
/// Credit is told once there is so much: a frame for each short message would cost both ends more than the message. What is
/// held back leaves the peer seven eighths of its window.
const GRANT_FROM: u32 = CREDIT_START / 8;

impl Lanes {
    /// Queues a whole message. The caller bounds how much it queues; [`Lanes::queued`] tells.
    pub fn queue(&mut self, lane: Lane, message: Bytes) -> Result<(), LaneFault> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(LaneFault::TooLarge(message.len()));
        }
        let out = &mut self.out[lane as usize];
        out.bytes += message.len();
        out.queue.push_back(message);
        Ok(())
    }

    /// Bytes queued on all lanes and not yet taken by [`Lanes::next_frame`].
    pub fn queued(&self) -> usize {
        self.out.iter().map(|o| o.bytes).sum()
    }

    /// Beginnings from an earlier link: their messages may be gone on with.
    pub fn hold(&mut self, partials: Vec<Partial>) {
        for partial in partials {
            let lane = partial.lane as usize;
            self.inn[lane].held = Some(partial);
        }
    }

    /// The peer holds these beginnings.
    pub fn resume(&mut self, list: Vec<Resume>) {
        for resume in list {
            self.out[resume.lane as usize].resume = Some(resume);
        }
    }

    /// What the link's end cut off.
    pub fn into_partials(self) -> Vec<Partial> {
        let cut = |(lane, inn): (Lane, In)| match inn.partial.is_empty() {
            true => inn.held,
            false => Some(Partial { lane, total: inn.total as u32, bytes: inn.partial.freeze() }),
        };
        Lane::ALL.into_iter().zip(self.inn).filter_map(cut).collect()
    }

    /// The next frame to write: of the most pressing lane that has something and credit for it.
    pub fn next_frame(&mut self) -> Option<Frame> {
        for lane in Lane::ALL {
            let out = &mut self.out[lane as usize];
            let Some(head) = out.queue.front() else { continue };
            let begins = !out.begun;
            if begins && let Some(resume) = out.resume.take_if(|r| is_beginning_of(r, head)) {
                out.offset = resume.held as usize;
                out.bytes -= resume.held as usize;
            }
            let left = head.len() - out.offset;
            let take = left.min(Frame::DATA_MAX).min(out.credit as usize);
            if take == 0 && left > 0 {
                continue;
            }
            let (total, offset) = (head.len() as u32, out.offset as u32);
            let bytes = head.slice(out.offset..out.offset + take);
            if begins {
                out.message += 1;
                out.begun = true;
            }
            out.credit -= take as u32;
            out.bytes -= take;
            out.offset += take;
            if out.offset == head.len() {
                out.queue.pop_front();
                out.offset = 0;
                out.begun = false;
            }
            return Some(Frame::Data { lane, message: out.message, offset, total, bytes });
        }
        None
    }

    /// The peer granted more.
    pub fn credited(&mut self, lane: Lane, bytes: u32) -> Result<(), LaneFault> {
        let out = &mut self.out[lane as usize];
        out.credit =
            out.credit.checked_add(bytes).filter(|c| *c <= CREDIT_START).ok_or(LaneFault::CreditOverflow(lane))?;
        Ok(())
    }

    /// A fragment arrived. Answers the message it completes, and bytes to grant anew at once.
    pub fn receive(
        &mut self,
        lane: Lane,
        message: u64,
        offset: u32,
        total: u32,
        bytes: Bytes,
    ) -> Result<(Option<Received>, u32), LaneFault> {
        let inn = &mut self.inn[lane as usize];
        let length = bytes.len() as u32;
        if length > inn.granted {
            return Err(LaneFault::OutOfCredit { lane, sent: length, granted: inn.granted });
        }
        inn.granted -= length;
        if total as usize > MESSAGE_BYTES_MAX {
            return Err(LaneFault::TooLarge(total as usize));
        }
        let begins_anew = offset > 0 && inn.partial.is_empty() && message == inn.message + 1;
        let fits = |held: &mut Partial| held.total == total && held.bytes.len() == offset as usize;
        if begins_anew && let Some(held) = inn.held.take_if(fits) {
            inn.message = message;
            inn.total = total as usize;
            inn.partial = BytesMut::from(held.bytes);
        }
        if offset == 0 {
            if !inn.partial.is_empty() || message != inn.message + 1 {
                return Err(LaneFault::OutOfOrder(lane));
            }
            inn.message = message;
            inn.total = total as usize;
        }
        let fits = message == inn.message && offset as usize == inn.partial.len() && total as usize == inn.total;
        if !fits || inn.partial.len() + bytes.len() > inn.total || (bytes.is_empty() && total > 0) {
            return Err(LaneFault::OutOfOrder(lane));
        }
        inn.owed += length;
        if bytes.len() == inn.total {
            // The common case, one frame: no copy.
            let credit = std::mem::take(&mut inn.owed);
            return Ok((Some(Received { lane, bytes, credit }), 0));
        }
        inn.partial.extend_from_slice(&bytes);
        if inn.partial.len() == inn.total {
            let credit = std::mem::take(&mut inn.owed);
            let bytes = std::mem::take(&mut inn.partial).freeze();
            return Ok((Some(Received { lane, bytes, credit }), 0));
        }
        let grant = (inn.owed as usize).saturating_sub(GRANT_ON_ABOVE) as u32;
        inn.owed -= grant;
        inn.granted += grant;
        Ok((None, grant))
    }

    /// The receiver's store has committed: the frame that says so, once it is worth one.
    pub fn release(&mut self, lane: Lane, bytes: u32) -> Option<Frame> {
        let inn = &mut self.inn[lane as usize];
        inn.freed = inn.freed.saturating_add(bytes).min(CREDIT_START - inn.granted);
        if inn.freed < GRANT_FROM {
            return None;
        }
        let bytes = std::mem::take(&mut inn.freed);
        inn.granted += bytes;
        Some(Frame::Credit { lane, bytes })
    }
}

fn is_beginning_of(resume: &Resume, message: &Bytes) -> bool {
    let same_length = resume.total as usize == message.len() && resume.held < resume.total;
    same_length && Hash::of(&message[..resume.held as usize]) == resume.hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pump(from: &mut Lanes, to: &mut Lanes) -> Vec<Received> {
        let mut got = Vec::new();
        while let Some(Frame::Data { lane, message, offset, total, bytes }) = from.next_frame() {
            let (message, grant) = to.receive(lane, message, offset, total, bytes).unwrap();
            from.credited(lane, grant).unwrap();
            got.extend(message);
        }
        got
    }

    #[test]
    fn a_16_mib_message_passes_and_an_urgent_one_overtakes_it() {
        let (mut a, mut b) = (Lanes::default(), Lanes::default());
        a.queue(Lane::Inventory, Bytes::from(vec![7; 16 << 20])).unwrap();
        for _ in 0..3 {
            assert!(matches!(a.next_frame(), Some(Frame::Data { lane: Lane::Inventory, .. })));
        }
        let mut c = Lanes::default();
        c.queue(Lane::Inventory, Bytes::from(vec![7; 16 << 20])).unwrap();
        c.queue(Lane::Urgent, Bytes::from_static(b"lock")).unwrap();
        let got = pump(&mut c, &mut b);
        assert_eq!(got[0].bytes, "lock");
        assert_eq!(got[1].bytes.len(), 16 << 20);
        assert!(got[1].credit as usize <= CREDIT_START as usize);
    }

    #[test]
    fn without_commits_the_window_is_the_end_and_a_release_goes_on() {
        let (mut a, mut b) = (Lanes::default(), Lanes::default());
        for _ in 0..10 {
            a.queue(Lane::Work, Bytes::from(vec![1; 64 << 10])).unwrap();
        }
        let got = pump(&mut a, &mut b);
        assert_eq!(got.len(), 4, "256 KiB of credit are four messages of 64 KiB");
        let Some(Frame::Credit { lane, bytes }) = b.release(Lane::Work, got[0].credit) else { panic!("credit") };
        a.credited(lane, bytes).unwrap();
        assert_eq!(pump(&mut a, &mut b).len(), 1);
    }

    #[test]
    fn credit_of_short_messages_is_told_together_and_the_window_never_closes_for_it() {
        let (mut a, mut b) = (Lanes::default(), Lanes::default());
        assert_eq!(b.release(Lane::Work, GRANT_FROM), None, "nothing was sent, nothing can be granted");
        a.queue(Lane::Work, Bytes::from(vec![1; GRANT_FROM as usize - 1])).unwrap();
        let got = pump(&mut a, &mut b);
        assert_eq!(b.release(Lane::Work, got[0].credit), None, "one byte less than it is worth a frame");
        a.queue(Lane::Work, Bytes::from_static(b"x")).unwrap();
        a.queue(Lane::Control, Bytes::from_static(b"y")).unwrap();
        for got in pump(&mut a, &mut b) {
            let told = b.release(got.lane, got.credit);
            let all = Frame::Credit { lane: Lane::Work, bytes: GRANT_FROM };
            assert_eq!(told, (got.lane == Lane::Work).then_some(all), "each lane for itself");
        }
        // One message after another, each released: what is held back never is the last of the window.
        for bytes in [1, 1_000, 31_999, 200_000, 300_000] {
            a.queue(Lane::Logs, Bytes::from(vec![2; bytes])).unwrap();
            let got = pump(&mut a, &mut b);
            assert_eq!(got.iter().map(|got| got.bytes.len()).collect::<Vec<_>>(), [bytes]);
            if let Some(Frame::Credit { lane, bytes }) = b.release(Lane::Logs, got[0].credit) {
                a.credited(lane, bytes).unwrap();
            }
        }
    }

    #[test]
    fn one_byte_past_the_credit_is_refused() {
        let mut lanes = Lanes::default();
        let mut sent = 0;
        for message in 1.. {
            let length = (CREDIT_START - sent).min(60_000);
            if length == 0 {
                break;
            }
            lanes.receive(Lane::Work, message, 0, length, Bytes::from(vec![0; length as usize])).unwrap();
            sent += length;
        }
        assert_eq!(sent, CREDIT_START);
        let fault = lanes.receive(Lane::Work, 99, 0, 1, Bytes::from_static(b"x")).unwrap_err();
        assert_eq!(fault, LaneFault::OutOfCredit { lane: Lane::Work, sent: 1, granted: 0 });
    }

    #[test]
    fn a_message_at_the_bound_is_queued_and_one_past_it_is_not() {
        let mut lanes = Lanes::default();
        assert!(lanes.queue(Lane::Work, Bytes::from(vec![0; MESSAGE_BYTES_MAX])).is_ok());
        assert!(lanes.queue(Lane::Work, Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1])).is_err());
        let past = MESSAGE_BYTES_MAX as u32 + 1;
        let fault = lanes.receive(Lane::Logs, 1, 0, past, Bytes::from_static(b"x")).unwrap_err();
        assert_eq!(fault, LaneFault::TooLarge(MESSAGE_BYTES_MAX + 1));
    }

    /// Sends frames of `message` until more than `bytes` of it have arrived; answers what the receiver is left with.
    fn cut_off(message: &Bytes, bytes: usize) -> Vec<Partial> {
        let (mut a, mut b) = (Lanes::default(), Lanes::default());
        a.queue(Lane::Inventory, message.clone()).unwrap();
        let mut sent = 0;
        while sent < bytes {
            let Some(Frame::Data { lane, message, offset, total, bytes }) = a.next_frame() else { panic!("credit") };
            sent += bytes.len();
            let (whole, grant) = b.receive(lane, message, offset, total, bytes).unwrap();
            assert_eq!(whole, None);
            a.credited(lane, grant).unwrap();
        }
        b.into_partials()
    }

    /// The next link: what arrives, and in how many payload bytes.
    fn next_link(partials: Vec<Partial>, messages: &[Bytes]) -> (Vec<Bytes>, usize) {
        let (mut a, mut b) = (Lanes::default(), Lanes::default());
        a.resume(partials.iter().map(Partial::resume).collect());
        b.hold(partials);
        messages.iter().for_each(|m| a.queue(Lane::Inventory, m.clone()).unwrap());
        let (mut got, mut carried) = (Vec::new(), 0);
        while let Some(Frame::Data { lane, message, offset, total, bytes }) = a.next_frame() {
            carried += bytes.len();
            let (whole, grant) = b.receive(lane, message, offset, total, bytes).unwrap();
            a.credited(lane, grant).unwrap();
            if let Some(whole) = whole {
                if let Some(Frame::Credit { lane, bytes }) = b.release(lane, whole.credit) {
                    a.credited(lane, bytes).unwrap();
                }
                got.push(whole.bytes);
            }
        }
        assert_eq!(a.queued(), 0);
        (got, carried)
    }

    fn noise(length: usize, seed: u64) -> Bytes {
        (0..length as u64).map(|n| (n * n + seed) as u8 ^ (n >> 8) as u8).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_message_that_a_lost_link_cut_off_is_gone_on_with_on_the_next() {
        let (small, large) = (noise(1_000, 1), noise(5 << 20, 2));
        let partials = cut_off(&large, 3 << 20);
        assert!(partials[0].bytes.len() >= 3 << 20);
        let missing = large.len() - partials[0].bytes.len();
        let (got, carried) = next_link(partials.clone(), std::slice::from_ref(&large));
        assert_eq!((got.as_slice(), carried), (&[large.clone()][..], missing));
        // Another one may come first.
        let (got, carried) = next_link(partials, &[small.clone(), large.clone(), small.clone()]);
        assert_eq!(got, [small.clone(), large, small]);
        assert_eq!(carried, missing + 2_000);
    }

    #[test]
    fn another_message_of_the_same_length_is_sent_whole() {
        let (one, other) = (noise(1 << 20, 1), noise(1 << 20, 2));
        let (got, carried) = next_link(cut_off(&one, 500_000), std::slice::from_ref(&other));
        assert_eq!((got, carried), (vec![other.clone()], other.len()));
    }

    #[test]
    fn a_message_cut_off_twice_is_gone_on_with_from_the_second_cut() {
        let large = noise(5 << 20, 3);
        let first = cut_off(&large, 1 << 20);
        let (mut a, mut b) = (Lanes::default(), Lanes::default());
        a.resume(first.iter().map(Partial::resume).collect());
        b.hold(first.clone());
        assert_eq!(b.into_partials(), first, "a link on which it was not touched");
        let mut b = Lanes::default();
        b.hold(first.clone());
        a.queue(Lane::Inventory, large.clone()).unwrap();
        let Some(Frame::Data { lane, message, offset, total, bytes }) = a.next_frame() else { panic!("a frame") };
        assert_eq!(offset as usize, first[0].bytes.len());
        b.receive(lane, message, offset, total, bytes).unwrap();
        let second = b.into_partials();
        assert_eq!(second[0].bytes.len(), first[0].bytes.len() + Frame::DATA_MAX);
        assert_eq!(next_link(second, std::slice::from_ref(&large)).0, [large]);
    }

    #[test]
    fn nobody_goes_on_with_what_is_not_held() {
        let held = || Partial { lane: Lane::Work, total: 10, bytes: Bytes::from_static(b"abcd") };
        let told = |offset, total| {
            let mut lanes = Lanes::default();
            lanes.hold(vec![held()]);
            lanes.receive(Lane::Work, 1, offset, total, Bytes::from_static(b"x")).map(|(whole, _)| whole)
        };
        assert_eq!(told(4, 10), Ok(None));
        for (offset, total) in [(3, 10), (5, 10), (4, 11), (4, 5)] {
            assert_eq!(told(offset, total), Err(LaneFault::OutOfOrder(Lane::Work)), "{offset} of {total}");
        }
    }

    #[test]
    fn strange_fragments_and_endless_credit_are_refused() {
        let fragment = |message, offset, total, n: usize| {
            Lanes::default().receive(Lane::Work, message, offset, total, Bytes::from(vec![0; n]))
        };
        assert_eq!(fragment(2, 0, 4, 2), Err(LaneFault::OutOfOrder(Lane::Work)), "message 1 comes first");
        assert_eq!(fragment(1, 2, 4, 2), Err(LaneFault::OutOfOrder(Lane::Work)), "the start comes first");
        assert_eq!(fragment(1, 0, 1, 2), Err(LaneFault::OutOfOrder(Lane::Work)), "longer than it said");
        assert_eq!(fragment(1, 0, 4, 0), Err(LaneFault::OutOfOrder(Lane::Work)), "an empty fragment of something");
        assert!(Lanes::default().credited(Lane::Work, 1).is_err(), "nothing was sent, nothing can be granted");
    }

    proptest! {
        #[test]
        fn whatever_is_queued_arrives_whole_and_in_order_per_lane(
            messages in prop::collection::vec((0u8..5, 0usize..200_000), 0..12)
        ) {
            let (mut a, mut b) = (Lanes::default(), Lanes::default());
            for (i, (lane, n)) in messages.iter().enumerate() {
                a.queue(Lane::from_number(*lane).unwrap(), Bytes::from(vec![i as u8; *n])).unwrap();
            }
            let mut got: Vec<Received> = Vec::new();
            loop {
                let some = pump(&mut a, &mut b);
                if some.is_empty() { break; }
                for r in &some {
                    if let Some(Frame::Credit { lane, bytes }) = b.release(r.lane, r.credit) {
                        a.credited(lane, bytes).unwrap();
                    }
                }
                got.extend(some);
            }
            for lane in Lane::ALL {
                let sent: Vec<(u8, usize)> = messages.iter().enumerate()
                    .filter(|(_, (l, _))| *l == lane.number()).map(|(i, (_, n))| (i as u8, *n)).collect();
                let arrived: Vec<(u8, usize)> = got.iter().filter(|r| r.lane == lane)
                    .map(|r| (r.bytes.first().copied().unwrap_or(0), r.bytes.len())).collect();
                prop_assert_eq!(sent.len(), arrived.len());
                for (s, r) in sent.iter().zip(&arrived) {
                    prop_assert_eq!(s.1, r.1);
                    if s.1 > 0 { prop_assert_eq!(s.0, r.0); }
                }
            }
        }
    }
}
