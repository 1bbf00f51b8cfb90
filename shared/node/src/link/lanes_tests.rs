//! Lanes: fairness, credit, cut-off messages.

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
