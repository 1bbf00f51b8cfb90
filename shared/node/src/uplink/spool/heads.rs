//! What this node signs of its own streams: where they stand at a greeting, and heads among the records (DESIGN 6), so
//! that the server finds out when somebody between altered one.

use super::{Kind, Mark, Slot, Spool, stream::StreamState};
use crate::store::Batch;
use branchline_protocol::{
    chain::Position,
    id::TenantId,
    order::Signer,
    receipt::{HEADS_MAX, Head, seal_head},
    record::{Lane, Record, StreamId, class},
    time::Millis,
};
use bytes::Bytes;
use std::sync::Arc;

/// Milliseconds of node time for which records of a stream may go unsigned (DESIGN 6). No record of a stream is dated
/// further than this after the first one that follows the newest head.
pub const HEADS_EVERY_MS: i64 = 300_000;

/// What is signed, and with what.
#[derive(Default)]
pub(super) struct Heads {
    /// None: nothing is signed.
    key: Option<(TenantId, Arc<Signer>)>,
    /// By lane: the date of the first record after the newest head.
    since: [Option<Millis>; 5],
    /// Streams of earlier openings of the store, as they ended.
    past: Vec<Head>,
}

impl Heads {
    /// A stream of the node's own as an earlier opening of its store left it.
    pub fn ended(&mut self, stream: &StreamId, at: Position) {
        self.past.push(Head::of(stream, at.upto, at.head));
    }

    /// The streams that grow are new ones, with nothing to sign.
    pub fn begin_anew(&mut self) {
        self.since = Default::default();
    }
}

impl Spool {
    /// The same, with heads of its own streams signed as they grow.
    pub fn with_signer(mut self, tenant: TenantId, signer: Arc<Signer>) -> Self {
        self.heads.key = Some((tenant, signer));
        self
    }

    /// Where the node's own streams stand on disk, those that ended with an earlier opening included, and whether that
    /// is all of them. Streams with records that are not settled are named first.
    pub fn own_heads(&self) -> (Vec<Head>, bool) {
        let first = StreamId { node: self.node, epoch: 0, incarnation: 0, lane: Lane::Control };
        let own = self.streams.range(first..).take_while(|(stream, _)| stream.node == self.node);
        let (mut heads, mut settled) = (Vec::new(), Vec::new());
        for (stream, state) in own {
            let at = durable(state);
            let named = Head::of(stream, at.upto, at.head);
            if state.is_settled() { settled.push(named) } else { heads.push(named) }
        }
        let complete = heads.len() <= HEADS_MAX;
        heads.append(&mut settled);
        let known = |past: &Head| heads.iter().any(|head| head.stream(self.node) == past.stream(self.node));
        let over: Vec<Head> = self.heads.past.iter().filter(|past| !known(past)).copied().collect();
        heads.extend(over);
        heads.truncate(HEADS_MAX);
        (heads, complete)
    }

    /// Whether records follow the newest signed head of a stream.
    pub fn has_unsigned(&self) -> bool {
        self.heads.key.is_some() && self.heads.since.iter().any(Option::is_some)
    }

    /// Milliseconds of node time until a head is due; none while everything is signed.
    pub fn heads_due_in(&self, now: Millis) -> Option<u64> {
        self.heads.key.as_ref()?;
        let wait = |since: &Millis| match is_due(*since, now) {
            true => 0,
            false => since.plus(HEADS_EVERY_MS).0.saturating_sub(now.0).max(0) as u64,
        };
        self.heads.since.iter().flatten().map(wait).min()
    }

    /// Signs the heads that are due; at a goodbye all that are not signed.
    pub fn sign_heads(&mut self, now: Millis, goodbye: bool, batch: &mut Batch) -> Option<Mark> {
        let mut mark = Mark::default();
        for lane in Lane::ALL {
            let unsigned = self.heads.since[lane as usize];
            if unsigned.is_some_and(|since| goodbye || is_due(since, now))
                && let Some(signed) = self.sign_head(now, lane, batch)
            {
                mark.0.push(signed);
            }
        }
        (!mark.0.is_empty()).then_some(mark)
    }

    /// Before a record of this lane: the head of those before it, if it would come too late after them.
    pub(super) fn before_append(&mut self, at: Millis, lane: Lane, batch: &mut Batch) {
        match self.heads.since[lane as usize] {
            Some(since) if is_due(since, at) => {
                self.sign_head(at, lane, batch);
                self.heads.since[lane as usize] = Some(at);
            }
            Some(_) => {}
            None => self.heads.since[lane as usize] = Some(at),
        }
    }

    fn sign_head(&mut self, at: Millis, lane: Lane, batch: &mut Batch) -> Option<(StreamId, u64)> {
        let (tenant, signer) = self.heads.key.as_ref()?;
        let stream = self.current(lane);
        let before = self.streams.get(&stream)?.at;
        let body = seal_head(tenant, self.node, Head::of(&stream, before.upto, before.head), signer);
        self.heads.since[lane as usize] = None;
        let number = self.push_own(at, stream, class::HEAD, None, body, batch);
        self.bound(Kind::of(lane), batch);
        Some((stream, number))
    }

    pub(super) fn current(&self, lane: Lane) -> StreamId {
        StreamId { node: self.node, epoch: self.epoch, incarnation: self.incarnation, lane }
    }

    pub(super) fn push_own(
        &mut self,
        at: Millis,
        stream: StreamId,
        class: u16,
        trace: Option<branchline_protocol::id::TraceId>,
        body: Bytes,
        batch: &mut Batch,
    ) -> u64 {
        let before = self.streams.entry(stream).or_default().at;
        let record = Record { number: before.upto + 1, prev: before.head, class, trace, at, body };
        let (number, head) = (record.number, record.hash(&stream));
        self.push(stream, Slot::of(record, number, head), batch);
        number
    }
}

/// Also when node time went back: a clock that was ahead, put right by the first statement.
fn is_due(since: Millis, now: Millis) -> bool {
    now < since || now.0.saturating_sub(since.0) >= HEADS_EVERY_MS
}

/// How far a stream is on this disk.
fn durable(state: &StreamState) -> Position {
    match state.slots.get(state.after_number(state.committed)) {
        Some(pending) => Position { upto: pending.first - 1, head: pending.prev },
        None => state.at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::{id::NodeId, receipt::open_head, wire::Ack};
    use uuid::Uuid;

    const NODE: NodeId = NodeId(Uuid::from_u128(1));

    fn tenant() -> TenantId {
        "acme".parse().unwrap()
    }

    fn signer() -> Arc<Signer> {
        Arc::new(Signer::from_seed(&[3; 32]))
    }

    fn spool() -> Spool {
        Spool::new(NODE, 1, 9).with_signer(tenant(), signer())
    }

    fn append(spool: &mut Spool, at: i64) -> Mark {
        spool.append(Millis(at), Lane::Work, class::LOG, None, Bytes::from_static(b"x"), &mut Batch::new())
    }

    fn classes(spool: &mut Spool) -> Vec<u16> {
        spool.link_up(NodeId(Uuid::from_u128(2)), 1);
        let runs = std::iter::from_fn(|| spool.take()).flat_map(|(_, runs)| runs);
        runs.flat_map(|run| run.records).map(|record| record.class).collect()
    }

    #[test]
    fn a_stream_goes_unsigned_for_five_minutes_and_not_for_a_millisecond_more() {
        let mut spool = spool();
        assert_eq!(spool.heads_due_in(Millis(0)), None, "nothing to sign");
        append(&mut spool, 1_000);
        assert_eq!(spool.heads_due_in(Millis(2_000)), Some(299_000));
        assert_eq!(spool.sign_heads(Millis(300_999), false, &mut Batch::new()), None);
        assert_eq!(spool.heads_due_in(Millis(301_000)), Some(0));
        let mark = spool.sign_heads(Millis(301_000), false, &mut Batch::new()).unwrap();
        assert!(!spool.has_unsigned());
        assert_eq!(spool.heads_due_in(Millis(400_000)), None, "a head is not signed again");
        spool.committed(&mark);
        assert_eq!(classes(&mut spool), [class::LOG, class::HEAD]);
    }

    #[test]
    fn in_another_epoch_nothing_of_the_earlier_one_is_due() {
        let mut spool = spool();
        append(&mut spool, 0);
        spool.set_epoch(2);
        assert_eq!(spool.heads_due_in(Millis(HEADS_EVERY_MS)), None);
        assert!(spool.own_heads().0.iter().any(|head| head.epoch == 1), "a greeting signs it");
        append(&mut spool, HEADS_EVERY_MS);
        assert!(spool.sign_heads(Millis(2 * HEADS_EVERY_MS), false, &mut Batch::new()).is_some());
    }

    #[test]
    fn a_clock_that_was_ahead_does_not_put_heads_off() {
        let mut spool = spool();
        append(&mut spool, 1_000_000_000);
        assert_eq!(spool.heads_due_in(Millis(5_000)), Some(0));
        assert!(spool.sign_heads(Millis(5_000), false, &mut Batch::new()).is_some());
        assert!(!spool.has_unsigned());
    }

    #[test]
    fn a_machine_that_slept_signs_before_it_goes_on() {
        let mut spool = spool();
        append(&mut spool, 0);
        append(&mut spool, HEADS_EVERY_MS - 1);
        let mark = append(&mut spool, HEADS_EVERY_MS);
        assert_eq!(spool.heads_due_in(Millis(HEADS_EVERY_MS)), Some(300_000), "the new one is not signed");
        spool.committed(&mark);
        assert_eq!(classes(&mut spool), [class::LOG, class::LOG, class::HEAD, class::LOG]);
    }

    #[test]
    fn a_goodbye_signs_what_is_left_and_the_head_is_that_of_the_record_before() {
        let mut spool = spool();
        append(&mut spool, 0);
        let mark = spool.sign_heads(Millis(1), true, &mut Batch::new()).unwrap();
        assert_eq!(spool.sign_heads(Millis(2), true, &mut Batch::new()), None);
        spool.committed(&mark);
        spool.link_up(NodeId(Uuid::from_u128(2)), 1);
        let run = spool.take().unwrap().1.remove(0);
        let head = open_head(&run.records[1].body, &tenant(), NODE, &signer().public()).unwrap();
        assert_eq!((head.number, head.hash), (1, run.records[1].prev));
    }

    #[test]
    fn a_greeting_tells_what_is_on_disk_and_how_earlier_openings_ended() {
        let mut spool = spool();
        let mut old = Spool::new(NODE, 1, 8);
        let mut batch = Batch::new();
        let mark = old.append(Millis(0), Lane::Work, class::LOG, None, Bytes::new(), &mut batch);
        old.committed(&mark);
        let before = old.own_heads().0[0];
        assert_eq!(before.number, 1);
        let stream = before.stream(NODE);
        spool
            .recover_meta(&super::super::meta_key(&stream), &rmp_serde::to_vec(&(1u64, before.hash, 1u64)).unwrap())
            .unwrap();
        let mark = append(&mut spool, 0);
        let pending = spool.own_heads();
        assert!(pending.0.contains(&before), "although it is settled and forgotten: {pending:?}");
        let current = |spool: &Spool| spool.own_heads().0.into_iter().find(|head| head.incarnation == 9).unwrap();
        assert_eq!((current(&spool).number, current(&spool).hash), (0, branchline_protocol::hash::Hash::ZERO));
        spool.committed(&mark);
        assert_eq!(current(&spool).number, 1);
        assert!(spool.own_heads().1);
        let ack = Ack { stream: spool.current(Lane::Work), stored: 0, settled: 0, refused: vec![] };
        spool.acked(&ack, &mut Batch::new()).unwrap();
    }

    #[test]
    fn more_heads_than_a_receipt_takes_are_not_told_as_all() {
        let mut spool = spool();
        for n in 0..HEADS_MAX as u64 + 1 {
            let mut old = Spool::new(NODE, 1, 100 + n);
            let mut batch = Batch::new();
            let mark = old.append(Millis(0), Lane::Work, class::LOG, None, Bytes::new(), &mut batch);
            old.committed(&mark);
            old.link_up(NODE, 1);
            let run = old.take().unwrap().1.remove(0);
            spool.carry(run, &mut Batch::new());
            let (heads, complete) = spool.own_heads();
            assert_eq!((heads.len(), complete), ((n as usize + 1).min(HEADS_MAX), n < HEADS_MAX as u64));
        }
    }
}
