//! Control messages of a trunk: u32 length, big-endian, then [`TrunkControl`] as MessagePack with field names.

use branchline_protocol::wire::{TRUNK_CONTROL_BYTES_MAX, TrunkControl};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

/// Why a control stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ControlFault {
    /// A message over [`TRUNK_CONTROL_BYTES_MAX`].
    #[error("a control message of {0} bytes, {TRUNK_CONTROL_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// The bytes are no control message of any kind.
    #[error("malformed control message: {0}")]
    Malformed(String),
    /// The stream failed; also a received message over the bound.
    #[error("transfer a control message")]
    Io(#[from] std::io::Error),
}

/// The receiving half. Reading may be cancelled at any time; nothing is lost.
pub struct ControlReader<S>(FramedRead<ReadHalf<S>, LengthDelimitedCodec>);

/// The sending half.
pub struct ControlWriter<S>(FramedWrite<WriteHalf<S>, LengthDelimitedCodec>);

/// Makes a control stream of a stream whose header has passed.
pub fn control<S: AsyncRead + AsyncWrite>(stream: S) -> (ControlReader<S>, ControlWriter<S>) {
    let (read, write) = tokio::io::split(stream);
    (ControlReader(FramedRead::new(read, codec())), ControlWriter(FramedWrite::new(write, codec())))
}

impl<S: AsyncRead> ControlReader<S> {
    /// The next message; `None` once the peer has ended the stream. A kind this build does not know comes as
    /// [`TrunkControl::Unknown`], whatever it carries.
    pub async fn read(&mut self) -> Result<Option<TrunkControl>, ControlFault> {
        match self.0.next().await {
            None => Ok(None),
            Some(bytes) => decode(&bytes?).map(Some),
        }
    }
}

impl<S: AsyncWrite> ControlWriter<S> {
    /// Sends a message and waits until it is handed over.
    pub async fn write(&mut self, message: &TrunkControl) -> Result<(), ControlFault> {
        let bytes = rmp_serde::to_vec_named(message).expect("control messages are plain data");
        if bytes.len() > TRUNK_CONTROL_BYTES_MAX {
            return Err(ControlFault::TooLarge(bytes.len()));
        }
        Ok(self.0.send(Bytes::from(bytes)).await?)
    }
}

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder()
        .big_endian()
        .length_field_type::<u32>()
        .max_frame_length(TRUNK_CONTROL_BYTES_MAX)
        .new_codec()
}

/// serde takes an unknown kind for [`TrunkControl::Unknown`] only when it carries nothing; a newer peer's may.
fn decode(bytes: &BytesMut) -> Result<TrunkControl, ControlFault> {
    let fault = match rmp_serde::from_slice(bytes) {
        Ok(message) => return Ok(message),
        Err(fault) => fault,
    };
    const KNOWN: [&str; 3] = ["ping", "pong", "link_tokens"];
    match rmp_serde::from_slice::<BTreeMap<String, IgnoredAny>>(bytes) {
        Ok(map) if map.len() == 1 && map.keys().all(|kind| !KNOWN.contains(&kind.as_str())) => {
            Ok(TrunkControl::Unknown)
        }
        _ => Err(ControlFault::Malformed(fault.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use branchline_protocol::{hash::Hash, time::Millis};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn every_kind_comes_back_as_it_went() {
        let (left, right) = tokio::io::duplex(4_096);
        let (_, mut writer) = control(left);
        let (mut reader, _) = control(right);
        let messages = [
            TrunkControl::Ping { build: "0.1.0".into(), links: 7 },
            TrunkControl::Pong { build: "0.1.0".into(), time: Millis(5), uptime_s: 9 },
            TrunkControl::LinkTokens(vec![Hash::of(b"a"), Hash::of(b"b")]),
        ];
        for message in &messages {
            writer.write(message).await.unwrap();
            assert_eq!(reader.read().await.unwrap().as_ref(), Some(message));
        }
        drop(writer);
    }

    #[tokio::test]
    async fn an_unknown_kind_is_passed_over_and_a_broken_known_one_is_a_fault() {
        async fn sent(value: &serde_json::Value) -> Result<Option<TrunkControl>, ControlFault> {
            let (mut left, right) = tokio::io::duplex(4_096);
            let bytes = rmp_serde::to_vec_named(value).unwrap();
            left.write_u32(bytes.len() as u32).await.unwrap();
            left.write_all(&bytes).await.unwrap();
            let (mut reader, _writer) = control(right);
            reader.read().await
        }
        for newer in [
            serde_json::json!({"policy": {"minimum": "1.3", "suites": [1, 2]}}),
            serde_json::json!({"farewell": 3}),
            serde_json::json!("farewell"),
        ] {
            assert_eq!(sent(&newer).await.unwrap(), Some(TrunkControl::Unknown), "{newer}");
        }
        for broken in [
            serde_json::json!({"ping": {"build": 3}}),
            serde_json::json!([1, 2]),
            serde_json::json!({"a": 1, "b": 2}),
            serde_json::json!(null),
        ] {
            assert!(matches!(sent(&broken).await, Err(ControlFault::Malformed(_))), "{broken}");
        }
    }

    #[tokio::test]
    async fn a_message_at_the_bound_passes_and_one_byte_more_is_refused() {
        let of = |length: usize| TrunkControl::Ping { build: "x".repeat(length), links: 0 };
        let overhead = rmp_serde::to_vec_named(&of(100_000)).unwrap().len() - 100_000;
        let (left, right) = tokio::io::duplex(2 * TRUNK_CONTROL_BYTES_MAX);
        let (_, mut writer) = control(left);
        let (mut reader, _) = control(right);
        let fits = of(TRUNK_CONTROL_BYTES_MAX - overhead);
        writer.write(&fits).await.unwrap();
        assert_eq!(reader.read().await.unwrap(), Some(fits));
        let over = of(TRUNK_CONTROL_BYTES_MAX - overhead + 1);
        assert!(matches!(writer.write(&over).await, Err(ControlFault::TooLarge(_))));

        let (mut left, right) = tokio::io::duplex(64);
        left.write_u32(TRUNK_CONTROL_BYTES_MAX as u32 + 1).await.unwrap();
        let (mut reader, _writer) = control(right);
        assert!(matches!(reader.read().await, Err(ControlFault::Io(_))));
    }
}
