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
    resume: Option<Box<Resume>>,
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
    held: Option<Box<Partial>>,
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
            self.inn[lane].held = Some(Box::new(partial));
        }
    }

    /// The peer holds these beginnings.
    pub fn resume(&mut self, list: Vec<Resume>) {
        for resume in list {
            self.out[resume.lane as usize].resume = Some(Box::new(resume));
        }
    }

    /// What the link's end cut off.
    pub fn into_partials(self) -> Vec<Partial> {
        let cut = |(lane, inn): (Lane, In)| match inn.partial.is_empty() {
            true => inn.held.map(|held| *held),
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
        let fits = |held: &mut Box<Partial>| held.total == total && held.bytes.len() == offset as usize;
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
#[path = "lanes_tests.rs"]
mod tests;
