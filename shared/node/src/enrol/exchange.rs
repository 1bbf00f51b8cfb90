//! One message each way: u32 length, then MessagePack with field names.

use branchline_protocol::wire::ENROL_BYTES_MAX;
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Writes one message.
pub async fn write_message<T: Serialize>(stream: &mut (impl AsyncWrite + Unpin), message: &T) -> io::Result<()> {
    let body = rmp_serde::to_vec_named(message).map_err(io::Error::other)?;
    if body.len() > ENROL_BYTES_MAX {
        return Err(io::Error::other(format!(
            "an enrolment message of {} bytes, {ENROL_BYTES_MAX} are allowed",
            body.len()
        )));
    }
    stream.write_all(&(body.len() as u32).to_be_bytes()).await?;
    stream.write_all(&body).await?;
    stream.flush().await
}

/// Reads one message; a longer one than [`ENROL_BYTES_MAX`] is refused before any byte of it is read.
pub async fn read_message<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let length = stream.read_u32().await? as usize;
    if length > ENROL_BYTES_MAX {
        return Err(io::Error::other(format!("an enrolment message of {length} bytes, {ENROL_BYTES_MAX} are allowed")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    rmp_serde::from_slice(&body).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn a_message_over_the_bound_is_refused_unread() {
        let (mut a, mut b) = tokio::io::duplex(64);
        a.write_u32(ENROL_BYTES_MAX as u32 + 1).await.unwrap();
        let answer: io::Result<String> = read_message(&mut b).await;
        assert!(answer.unwrap_err().to_string().contains("allowed"));
        let big = "x".repeat(ENROL_BYTES_MAX);
        assert!(write_message(&mut a, &big).await.is_err());
    }
}
