//! Moves one link's bytes: reads and writes in one task, so that neither end can wait for the other's reading.

use super::{
    codec::{CodecFault, FrameCodec},
    lanes::{Lanes, Received},
};
use crate::time::timer_now;
use branchline_protocol::{
    order::Envelope,
    record::Lane,
    refusal::Refusal,
    wire::{DEAD_AFTER_S, Frame, Goodbye, HEARTBEAT_S, Lease},
};
use bytes::{Bytes, BytesMut};
use futures_util::{Sink, Stream as _, StreamExt};
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
    Refuse(Box<Refusal>),
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
    /// The poll's bounds are reached: begin nothing new, then say that we are done.
    Continue,
    /// The spread of reconnects, in milliseconds, has changed.
    Spread(u64),
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
        /// The spread of reconnects as it is now, in milliseconds: a change is told 5 s after the welcome, and with
        /// a heartbeat's answer.
        spread: Box<dyn Fn() -> u64 + Send>,
        /// Whether the link is a poll: the child's goodbye is an event then, and 60 s or 8 MiB are the end.
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

/// A poll is asked to end after so many seconds (DESIGN 3).
const POLL_S: u64 = 60;
/// It is asked to end when it has carried more payload than this, both directions together (DESIGN 3).
pub const POLL_BYTES_MAX: u64 = 8 << 20;
/// Whoever comes in a crowd is welcomed before the crowd is counted: so long after it its spread is looked at again.
const CROWD_IN: Duration = Duration::from_secs(5);
/// How long a stream that takes nothing more is still read: what its peer said last is here already, or nearly.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Seconds that it then has for what is under way, at most one message of 16 MiB at 256 kbit/s: what is cut in the
/// middle is sent whole again.
const POLL_GRACE_S: u64 = 540;

/// Runs a greeted link to its end.
pub async fn run<S: super::Stream>(
    framed: Framed<S, FrameCodec>,
    commands: mpsc::Receiver<LinkCommand>,
    side: Side,
    counters: LinkCounters,
    sink: &mut impl LinkSink,
) -> LinkEnd {
    run_on(&mut Lanes::default(), framed, commands, side, counters, sink).await
}

/// The same on lanes that know of an earlier link; afterwards they hold what this one cut off.
pub async fn run_on<S: super::Stream>(
    lanes: &mut Lanes,
    mut framed: Framed<S, FrameCodec>,
    mut commands: mpsc::Receiver<LinkCommand>,
    side: Side,
    counters: LinkCounters,
    sink: &mut impl LinkSink,
) -> LinkEnd {
    let mut frames: std::collections::VecDeque<Frame> = Default::default();
    let mut ending: Option<LinkEnd> = None;
    let mut unflushed = false;
    let dead_after = Duration::from_secs(DEAD_AFTER_S);
    let beat_every = Duration::from_secs(HEARTBEAT_S);
    let mut dead = Box::pin(tokio::time::sleep(dead_after));
    let is_child = matches!(side, Side::Child);
    let is_poll = matches!(side, Side::Parent { poll: true, .. });
    let first_timer = match is_poll {
        true => Duration::from_secs(POLL_S),
        false if is_child => beat_every,
        false => CROWD_IN,
    };
    let mut timer: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(first_timer));
    // Resetting a timer for every frame costs more than the frame: life is noted here and looked at when it fires.
    let mut heard_at = dead.deadline() - dead_after;
    let mut spread_told = if let Side::Parent { spread, .. } = &side { spread() } else { 0 };
    // Payload of both directions, and whether the poll was asked to end.
    let (mut carried, mut asked_to_end) = (0u64, false);
    let mut displaced = false;

    enum Step {
        Frame(Option<Frame>),
        Fault(CodecFault),
        Unwritable(CodecFault),
        Eof,
        Command(LinkCommand),
        Orphaned,
        Timer,
        Full,
        Dead,
        Flushed,
    }

    loop {
        let step = std::future::poll_fn(|cx| {
            // Write first: it frees memory.
            let written = loop {
                match Pin::new(&mut framed).poll_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(e)) => return Poll::Ready(Step::Unwritable(e)),
                    Poll::Pending => break false,
                }
                let Some(frame) = frames.pop_front().or_else(|| lanes.next_frame()) else { break true };
                unflushed = true;
                carried += payload(&frame);
                if let Err(e) = Pin::new(&mut framed).start_send(frame) {
                    return Poll::Ready(Step::Unwritable(e));
                }
            };
            if is_poll && carried > POLL_BYTES_MAX && !asked_to_end && ending.is_none() {
                return Poll::Ready(Step::Full);
            }
            // What waits is written before the stream is flushed: an acknowledgement and what follows it are one write.
            if ending.is_none()
                && let Poll::Ready(command) = commands.poll_recv(cx)
            {
                return Poll::Ready(command.map_or(Step::Orphaned, Step::Command));
            }
            if written && unflushed {
                match Pin::new(&mut framed).poll_flush(cx) {
                    Poll::Ready(Ok(())) => unflushed = false,
                    Poll::Ready(Err(e)) => return Poll::Ready(Step::Unwritable(e)),
                    Poll::Pending => {}
                }
            }
            if ending.is_some() && written && !unflushed {
                return Poll::Ready(Step::Flushed);
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
            shrink(framed.read_buffer_mut());
            shrink(framed.write_buffer_mut());
            if frames.is_empty() && frames.capacity() > 0 {
                frames = Default::default();
            }
            Poll::Pending
        })
        .await;

        match step {
            Step::Flushed => return ending.unwrap_or(LinkEnd::Orphaned),
            Step::Unwritable(CodecFault::Io(e)) if ending.is_none() => {
                let last = tokio::time::timeout(LAST_WORD, last_word(&mut framed, is_child)).await;
                return last.ok().flatten().unwrap_or(LinkEnd::Lost(e.to_string()));
            }
            Step::Fault(CodecFault::Io(e)) | Step::Unwritable(CodecFault::Io(e)) => {
                return ending.unwrap_or(LinkEnd::Lost(e.to_string()));
            }
            Step::Eof => return ending.unwrap_or(LinkEnd::Lost("the peer closed the stream".into())),
            Step::Fault(CodecFault::Frame(e)) | Step::Unwritable(CodecFault::Frame(e)) => {
                counters.protocol_errors.increment(1);
                return LinkEnd::Protocol(e.to_string());
            }
            Step::Orphaned => ending = Some(LinkEnd::Orphaned),
            Step::Dead if heard_at + dead_after > dead.deadline() => dead.as_mut().reset(heard_at + dead_after),
            Step::Dead => return LinkEnd::Silent,
            Step::Timer if asked_to_end => return ending.unwrap_or(LinkEnd::Closed(Goodbye::Continue)),
            Step::Full => ask_to_end(&mut frames, &mut asked_to_end, timer.as_mut()),
            Step::Timer if is_poll || displaced => ask_to_end(&mut frames, &mut asked_to_end, timer.as_mut()),
            Step::Timer => {
                if is_child {
                    frames.push_back(Frame::Heartbeat);
                }
                tell_spread(&side, &mut spread_told, &mut frames);
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
                LinkCommand::Lease(lease) => {
                    frames.push_back(Frame::Lease(lease));
                    // What it has under way may end; for longer than a poll it does not stay (ADM-6).
                    displaced = true;
                    timer.as_mut().reset(timer_now() + Duration::from_secs(POLL_S));
                }
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
                    frames.push_back(Frame::Refused(Refusal::clone(&refusal)));
                    ending = Some(LinkEnd::RefusedPeer(*refusal));
                }
            },
            Step::Frame(frame) => {
                heard_at = timer_now();
                if ending.is_some() {
                    continue;
                }
                match frame {
                    Some(Frame::Data { lane, message, offset, total, bytes }) => {
                        carried += bytes.len() as u64;
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
                            tell_spread(&side, &mut spread_told, &mut frames);
                            sink.deliver(LinkEvent::Heard).await;
                        }
                    }
                    Some(Frame::Alive(statement)) => sink.deliver(LinkEvent::Alive(statement)).await,
                    Some(Frame::Spread(ms)) if is_child => sink.deliver(LinkEvent::Spread(ms)).await,
                    Some(Frame::Lease(lease)) if is_child => sink.deliver(LinkEvent::Lease(lease)).await,
                    Some(Frame::Goodbye(Goodbye::Done)) if is_poll => sink.deliver(LinkEvent::ChildDone).await,
                    Some(Frame::Goodbye(Goodbye::Continue)) if is_child => sink.deliver(LinkEvent::Continue).await,
                    Some(Frame::Goodbye(goodbye)) => return LinkEnd::Goodbye(goodbye),
                    Some(Frame::Refused(refusal)) if is_child => return LinkEnd::Refused(refusal),
                    Some(Frame::Refused(refusal)) => sink.deliver(LinkEvent::Refused(refusal)).await,
                    Some(
                        Frame::Greeting(_) | Frame::Welcome(_) | Frame::Lease(_) | Frame::Spread(_) | Frame::Resume(_),
                    ) => {
                        counters.protocol_errors.increment(1);
                        return LinkEnd::Protocol("a greeting on a greeted link".into());
                    }
                    None => counters.unknown.increment(1),
                }
            }
        }
    }
}

/// What an idle link keeps for its next frame, in each direction: most links are idle most of the time, and a node may have
/// thousands.
const IDLE_BYTES: usize = 1024;

/// Gives back what a larger frame needed.
fn shrink(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > IDLE_BYTES {
        *buffer = BytesMut::with_capacity(IDLE_BYTES);
    }
}

/// A child is told the spread of reconnects when it has changed since it was told last.
fn tell_spread(side: &Side, told: &mut u64, frames: &mut std::collections::VecDeque<Frame>) {
    if let Side::Parent { spread, .. } = side {
        let spread_ms = spread();
        if spread_ms != *told {
            frames.push_back(Frame::Spread(spread_ms));
            *told = spread_ms;
        }
    }
}

/// What the peer said before it closed the stream: whoever writes first meets a broken pipe and would never read why.
/// What it sent besides was never answered, and comes again.
async fn last_word<S: super::Stream>(framed: &mut Framed<S, FrameCodec>, is_child: bool) -> Option<LinkEnd> {
    while let Some(Ok(frame)) = framed.next().await {
        match frame {
            Some(Frame::Refused(refusal)) if is_child => return Some(LinkEnd::Refused(refusal)),
            Some(Frame::Goodbye(Goodbye::Done | Goodbye::Continue)) => {}
            Some(Frame::Goodbye(goodbye)) => return Some(LinkEnd::Goodbye(goodbye)),
            _ => {}
        }
    }
    None
}

/// Tells a polling child once to finish what is under way, and gives it time for that.
fn ask_to_end(frames: &mut std::collections::VecDeque<Frame>, asked: &mut bool, timer: Pin<&mut Sleep>) {
    *asked = true;
    frames.push_back(Frame::Goodbye(Goodbye::Continue));
    timer.reset(timer_now() + Duration::from_secs(POLL_GRACE_S));
}

fn payload(frame: &Frame) -> u64 {
    if let Frame::Data { bytes, .. } = frame { bytes.len() as u64 } else { 0 }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
