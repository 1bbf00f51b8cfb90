//! Moves one link's bytes: reads and writes in one task, so that neither end can wait for the other's reading.

use super::{
    codec::{CodecFault, FrameCodec},
    lanes::{Lanes, Received},
};
use branchline_protocol::{
    order::Envelope,
    record::Lane,
    refusal::Refusal,
    wire::{DEAD_AFTER_S, Frame, Goodbye, HEARTBEAT_S, Lease},
};
use bytes::Bytes;
use futures_util::{Sink, Stream as _};
use metrics::Counter;
use std::{future::Future, pin::Pin, sync::Arc, task::Poll, time::Duration};
use tokio::{sync::mpsc, sync::watch, time::Sleep};
use tokio_util::codec::Framed;

/// What a link's owner asks of it.
#[derive(Debug)]
pub enum LinkCommand {
    /// Send a message.
    Send(Lane, Bytes),
    /// So many bytes of received messages are durable.
    Release(Lane, u32),
    /// Tell the child that it lost its slot.
    Lease(Lease),
    /// Say goodbye. The parent's ends the link; a polling child's says that it has nothing more.
    Goodbye(Goodbye),
    /// Refuse and end the link.
    Refuse(Refusal),
}

/// What a link tells its owner while it lives.
#[derive(Debug)]
pub enum LinkEvent {
    /// A whole message; its credit is owed.
    Message(Received),
    /// The parent turned the link to polling.
    Lease(Lease),
    /// The parent's newest time statement.
    Alive(Option<Box<Envelope>>),
    /// The peer would not do something; the link goes on.
    Refused(Refusal),
    /// A polling child has nothing more to send.
    ChildDone,
    /// The child's heartbeat.
    Heard,
}

/// Takes a link's events one after the other; the link reads on when it returns.
pub trait LinkSink {
    /// Handles one event.
    fn deliver(&mut self, event: LinkEvent) -> impl Future<Output = ()>;
}

/// How a link ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEnd {
    /// The peer said goodbye.
    Goodbye(Goodbye),
    /// We did.
    Closed(Goodbye),
    /// The peer refused us.
    Refused(Refusal),
    /// We refused it.
    RefusedPeer(Refusal),
    /// The stream ended or failed.
    Lost(String),
    /// The peer broke the rules.
    Protocol(String),
    /// No byte for 90 s.
    Silent,
    /// Our owner is gone.
    Orphaned,
}

/// Which end of the link this is.
pub enum Side {
    /// The child: sends heartbeats.
    Child,
    /// The parent: answers them with the newest time statement.
    Parent {
        /// Newest statement.
        statement: watch::Receiver<Option<Arc<Envelope>>>,
        /// Whether the link is a poll: the child's goodbye is an event then, and 60 s are the end.
        poll: bool,
    },
}

/// Counts of one node's links.
#[derive(Clone)]
pub struct LinkCounters {
    /// `branchline_protocol_errors_total`.
    pub protocol_errors: Counter,
    /// Frames or messages of an unknown kind.
    pub unknown: Counter,
}

/// A poll ends after so many seconds with `continue` (DESIGN 3).
const POLL_S: u64 = 60;

/// Runs a greeted link to its end.
pub async fn run<S: super::Stream>(
    mut framed: Framed<S, FrameCodec>,
    mut commands: mpsc::Receiver<LinkCommand>,
    side: Side,
    counters: LinkCounters,
    sink: &mut impl LinkSink,
) -> LinkEnd {
    let mut lanes = Lanes::default();
    let mut frames: std::collections::VecDeque<Frame> = Default::default();
    let mut ending: Option<LinkEnd> = None;
    let mut unflushed = false;
    let dead_after = Duration::from_secs(DEAD_AFTER_S);
    let beat_every = Duration::from_secs(HEARTBEAT_S);
    let mut dead = Box::pin(tokio::time::sleep(dead_after));
    let is_child = matches!(side, Side::Child);
    let is_poll = matches!(side, Side::Parent { poll: true, .. });
    let first_timer = if is_poll { Duration::from_secs(POLL_S) } else { beat_every };
    let mut timer: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(first_timer));
    // Resetting a timer for every frame costs more than the frame: life is noted here and looked at when it fires.
    let mut heard = false;

    enum Step {
        Frame(Option<Frame>),
        Fault(CodecFault),
        Eof,
        Command(LinkCommand),
        Orphaned,
        Timer,
        Dead,
        Flushed,
    }

    loop {
        let step = std::future::poll_fn(|cx| {
            // Write first: it frees memory.
            let written = loop {
                match Pin::new(&mut framed).poll_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(e)) => return Poll::Ready(Step::Fault(e)),
                    Poll::Pending => break false,
                }
                let Some(frame) = frames.pop_front().or_else(|| lanes.next_frame()) else { break true };
                unflushed = true;
                if let Err(e) = Pin::new(&mut framed).start_send(frame) {
                    return Poll::Ready(Step::Fault(e));
                }
            };
            if written && unflushed {
                match Pin::new(&mut framed).poll_flush(cx) {
                    Poll::Ready(Ok(())) => unflushed = false,
                    Poll::Ready(Err(e)) => return Poll::Ready(Step::Fault(e)),
                    Poll::Pending => {}
                }
            }
            if ending.is_some() {
                if written && !unflushed {
                    return Poll::Ready(Step::Flushed);
                }
            } else if let Poll::Ready(command) = commands.poll_recv(cx) {
                return Poll::Ready(command.map_or(Step::Orphaned, Step::Command));
            }
            match Pin::new(&mut framed).poll_next(cx) {
                Poll::Ready(Some(Ok(frame))) => return Poll::Ready(Step::Frame(frame)),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Step::Fault(e)),
                Poll::Ready(None) => return Poll::Ready(Step::Eof),
                Poll::Pending => {}
            }
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Step::Timer);
            }
            if dead.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Step::Dead);
            }
            Poll::Pending
        })
        .await;

        let now = dead.deadline();
        match step {
            Step::Flushed => return ending.unwrap_or(LinkEnd::Orphaned),
            Step::Fault(CodecFault::Io(e)) => return ending.unwrap_or(LinkEnd::Lost(e.to_string())),
            Step::Eof => return ending.unwrap_or(LinkEnd::Lost("the peer closed the stream".into())),
            Step::Fault(CodecFault::Frame(e)) => {
                counters.protocol_errors.increment(1);
                return LinkEnd::Protocol(e.to_string());
            }
            Step::Orphaned => ending = Some(LinkEnd::Orphaned),
            Step::Dead if heard => {
                heard = false;
                dead.as_mut().reset(now + dead_after);
            }
            Step::Dead => return LinkEnd::Silent,
            Step::Timer if is_poll => {
                frames.push_back(Frame::Goodbye(Goodbye::Continue));
                ending = Some(LinkEnd::Closed(Goodbye::Continue));
                timer.as_mut().reset(now + dead_after);
            }
            Step::Timer => {
                if is_child {
                    frames.push_back(Frame::Heartbeat);
                }
                let fired = timer.deadline();
                timer.as_mut().reset(fired + beat_every);
            }
            Step::Command(command) => match command {
                LinkCommand::Send(lane, bytes) => {
                    if let Err(fault) = lanes.queue(lane, bytes) {
                        tracing::error!(%fault, "a message of ours is over the bound");
                    }
                }
                LinkCommand::Release(lane, bytes) => frames.extend(lanes.release(lane, bytes)),
                LinkCommand::Lease(lease) => frames.push_back(Frame::Lease(lease)),
                LinkCommand::Goodbye(goodbye) => {
                    // What is queued goes first: frames are written before lanes, so it waits behind them.
                    while let Some(frame) = lanes.next_frame() {
                        frames.push_back(frame);
                    }
                    frames.push_back(Frame::Goodbye(goodbye.clone()));
                    if !(is_child && goodbye == Goodbye::Done) {
                        ending = Some(LinkEnd::Closed(goodbye));
                    }
                }
                LinkCommand::Refuse(refusal) => {
                    frames.push_back(Frame::Refused(refusal.clone()));
                    ending = Some(LinkEnd::RefusedPeer(refusal));
                }
            },
            Step::Frame(frame) => {
                heard = true;
                if ending.is_some() {
                    continue;
                }
                match frame {
                    Some(Frame::Data { lane, message, offset, total, bytes }) => {
                        match lanes.receive(lane, message, offset, total, bytes) {
                            Ok((message, grant)) => {
                                if grant > 0 {
                                    frames.push_back(Frame::Credit { lane, bytes: grant });
                                }
                                if let Some(message) = message {
                                    sink.deliver(LinkEvent::Message(message)).await;
                                }
                            }
                            Err(fault) => {
                                counters.protocol_errors.increment(1);
                                return LinkEnd::Protocol(fault.to_string());
                            }
                        }
                    }
                    Some(Frame::Credit { lane, bytes }) => {
                        if let Err(fault) = lanes.credited(lane, bytes) {
                            counters.protocol_errors.increment(1);
                            return LinkEnd::Protocol(fault.to_string());
                        }
                    }
                    Some(Frame::Heartbeat) => {
                        if let Side::Parent { statement, .. } = &side {
                            let newest = statement.borrow().as_deref().cloned().map(Box::new);
                            frames.push_back(Frame::Alive(newest));
                            sink.deliver(LinkEvent::Heard).await;
                        }
                    }
                    Some(Frame::Alive(statement)) => sink.deliver(LinkEvent::Alive(statement)).await,
                    Some(Frame::Lease(lease)) if is_child => sink.deliver(LinkEvent::Lease(lease)).await,
                    Some(Frame::Goodbye(Goodbye::Done)) if is_poll => sink.deliver(LinkEvent::ChildDone).await,
                    Some(Frame::Goodbye(goodbye)) => return LinkEnd::Goodbye(goodbye),
                    Some(Frame::Refused(refusal)) if is_child => return LinkEnd::Refused(refusal),
                    Some(Frame::Refused(refusal)) => sink.deliver(LinkEvent::Refused(refusal)).await,
                    Some(Frame::Greeting(_) | Frame::Welcome(_) | Frame::Lease(_)) => {
                        counters.protocol_errors.increment(1);
                        return LinkEnd::Protocol("a greeting on a greeted link".into());
                    }
                    None => counters.unknown.increment(1),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{SinkExt, StreamExt};

    struct Into(mpsc::UnboundedSender<LinkEvent>);
    impl LinkSink for Into {
        async fn deliver(&mut self, event: LinkEvent) {
            let _ = self.0.send(event);
        }
    }

    fn counters() -> LinkCounters {
        LinkCounters { protocol_errors: Counter::noop(), unknown: Counter::noop() }
    }

    fn parent() -> Side {
        Side::Parent { statement: watch::channel(None).1, poll: false }
    }

    fn framed(io: tokio::io::DuplexStream) -> Framed<tokio::io::DuplexStream, FrameCodec> {
        Framed::new(io, FrameCodec)
    }

    #[actix_rt::test]
    async fn both_ends_may_write_more_than_the_pipe_holds_at_once() {
        let (a, b) = tokio::io::duplex(1024);
        let mut ends = Vec::new();
        for (io, side) in [(a, Side::Child), (b, parent())] {
            let (commands, rx) = mpsc::channel(8);
            let (events, mut got) = mpsc::unbounded_channel();
            commands.send(LinkCommand::Send(Lane::Work, Bytes::from(vec![1; 200_000]))).await.unwrap();
            let task = actix_rt::spawn(async move { run(framed(io), rx, side, counters(), &mut Into(events)).await });
            ends.push((commands, task, async move { got.recv().await }));
        }
        let mut kept = Vec::new();
        for (commands, task, got) in ends {
            let event = tokio::time::timeout(Duration::from_secs(20), got).await.expect("no deadlock");
            assert!(matches!(event, Some(LinkEvent::Message(m)) if m.bytes.len() == 200_000));
            kept.push((commands, task));
        }
    }

    #[actix_rt::test]
    async fn adm_4_a_silent_peer_is_dead_after_90_s_and_a_heartbeat_keeps_it_alive() {
        tokio::time::pause();
        let (a, b) = tokio::io::duplex(1024);
        let (_commands, rx) = mpsc::channel(8);
        let (events, _got) = mpsc::unbounded_channel();
        let link = actix_rt::spawn(async move { run(framed(a), rx, parent(), counters(), &mut Into(events)).await });
        let mut child = framed(b);
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            child.send(Frame::Heartbeat).await.unwrap();
            assert!(matches!(child.next().await, Some(Ok(Some(Frame::Alive(None))))));
        }
        assert!(!link.is_finished());
        let ended = tokio::time::timeout(Duration::from_secs(181), link).await.expect("dead in time").unwrap();
        assert_eq!(ended, LinkEnd::Silent);
    }

    #[actix_rt::test]
    async fn a_frame_out_of_credit_or_over_the_bound_closes_the_link() {
        use tokio::io::AsyncWriteExt;
        let (a, mut b) = tokio::io::duplex(1 << 20);
        let (_commands, rx) = mpsc::channel(8);
        let (events, _got) = mpsc::unbounded_channel();
        let link = actix_rt::spawn(async move { run(framed(a), rx, parent(), counters(), &mut Into(events)).await });
        b.write_all(&70_000u32.to_be_bytes()).await.unwrap();
        assert!(matches!(link.await.unwrap(), LinkEnd::Protocol(_)));
    }
}
