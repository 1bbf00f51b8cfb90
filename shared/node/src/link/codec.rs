//! Length-delimited frames: u32 length, big-endian, then the frame.

use branchline_protocol::wire::{FRAME_BYTES_MAX, Frame, FrameFault};
use bytes::{Buf, BufMut, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// Why reading frames ended.
#[derive(Debug, thiserror::Error)]
pub enum CodecFault {
    /// The bytes are no frame: the peer is broken or hostile.
    #[error(transparent)]
    Frame(#[from] FrameFault),
    /// The stream failed.
    #[error("link stream: {0}")]
    Io(#[from] std::io::Error),
}

/// Frames over bytes. Unknown kinds come out as `None`.
#[derive(Default)]
pub struct FrameCodec;

impl Decoder for FrameCodec {
    type Item = Option<Frame>;
    type Error = CodecFault;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Option<Frame>>, CodecFault> {
        if src.len() < 4 {
            return Ok(None);
        }
        let length = u32::from_be_bytes(src[..4].try_into().expect("four bytes")) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameFault::TooLarge(length).into());
        }
        if src.len() < 4 + length {
            src.reserve(4 + length - src.len());
            return Ok(None);
        }
        src.advance(4);
        let body = src.split_to(length).freeze();
        Ok(Some(Frame::decode(body)?))
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = CodecFault;

    fn encode(&mut self, frame: Frame, out: &mut BytesMut) -> Result<(), CodecFault> {
        let head = out.len();
        out.put_u32(0);
        frame.encode(out);
        let length = out.len() - head - 4;
        if length > FRAME_BYTES_MAX {
            out.truncate(head);
            return Err(FrameFault::TooLarge(length).into());
        }
        out[head..head + 4].copy_from_slice(&(length as u32).to_be_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_at_the_bound_waits_and_one_past_it_is_refused_before_any_byte_of_it() {
        let mut at = BytesMut::from(&(FRAME_BYTES_MAX as u32).to_be_bytes()[..]);
        assert!(FrameCodec.decode(&mut at).unwrap().is_none());
        let mut past = BytesMut::from(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes()[..]);
        assert!(matches!(FrameCodec.decode(&mut past), Err(CodecFault::Frame(FrameFault::TooLarge(_)))));
    }

    #[test]
    fn frames_come_out_one_by_one_from_split_bytes() {
        let mut wire = BytesMut::new();
        FrameCodec.encode(Frame::Heartbeat, &mut wire).unwrap();
        FrameCodec.encode(Frame::Alive(None), &mut wire).unwrap();
        let mut got = Vec::new();
        let mut src = BytesMut::new();
        for byte in wire {
            src.put_u8(byte);
            while let Some(frame) = FrameCodec.decode(&mut src).unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, vec![Some(Frame::Heartbeat), Some(Frame::Alive(None))]);
    }
}
