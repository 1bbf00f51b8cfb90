//! The head of each trunk stream: u16 length, big-endian, then [`StreamHeader`] as MessagePack with field names.

use branchline_protocol::wire::StreamHeader;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest header without its length: an address, and a token of at most 512 bytes, with room for new fields.
pub const STREAM_HEADER_BYTES_MAX: usize = 1_024;

/// Why a stream has no header.
#[derive(Debug, thiserror::Error)]
pub enum HeaderFault {
    /// It is longer than [`STREAM_HEADER_BYTES_MAX`].
    #[error("a stream header of {0} bytes, {STREAM_HEADER_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// It is no header.
    #[error("malformed stream header: {0}")]
    Malformed(String),
    /// The stream ended or failed.
    #[error("transfer a stream header")]
    Io(#[from] std::io::Error),
}

/// Writes a header, followed by `then` in the same write: the preface that follows it should not wait for a second one.
pub async fn write_header<W>(stream: &mut W, header: &StreamHeader, then: &[u8]) -> Result<(), HeaderFault>
where
    W: AsyncWrite + Unpin,
{
    let body = rmp_serde::to_vec_named(header).expect("a header is plain data");
    if body.len() > STREAM_HEADER_BYTES_MAX {
        return Err(HeaderFault::TooLarge(body.len()));
    }
    let mut bytes = Vec::with_capacity(2 + body.len() + then.len());
    bytes.extend_from_slice(&(body.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes.extend_from_slice(then);
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    Ok(())
}

/// Reads a header and not a byte more.
pub async fn read_header<R>(stream: &mut R) -> Result<StreamHeader, HeaderFault>
where
    R: AsyncRead + Unpin,
{
    let length = usize::from(stream.read_u16().await?);
    if length > STREAM_HEADER_BYTES_MAX {
        return Err(HeaderFault::TooLarge(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    rmp_serde::from_slice(&body).map_err(|e| HeaderFault::Malformed(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_header_comes_back_and_the_bytes_after_it_stay() {
        let header = StreamHeader { source: Some("192.0.2.7:40000".parse().unwrap()), token: Some("knock".into()) };
        let mut bytes = Vec::new();
        write_header(&mut bytes, &header, b"L").await.unwrap();
        let mut rest = &bytes[..];
        assert_eq!(read_header(&mut rest).await.unwrap(), header);
        assert_eq!(rest, b"L");
    }

    #[tokio::test]
    async fn a_header_at_the_bound_passes_and_one_byte_more_is_refused() {
        let of = |token: usize| StreamHeader { source: None, token: Some("x".repeat(token)) };
        let overhead = rmp_serde::to_vec_named(&of(600)).unwrap().len() - 600;
        let fits = of(STREAM_HEADER_BYTES_MAX - overhead);
        let mut bytes = Vec::new();
        write_header(&mut bytes, &fits, b"").await.unwrap();
        assert_eq!(bytes.len(), 2 + STREAM_HEADER_BYTES_MAX);
        assert_eq!(read_header(&mut &bytes[..]).await.unwrap(), fits);
        let over = of(STREAM_HEADER_BYTES_MAX - overhead + 1);
        let fault = write_header(&mut Vec::new(), &over, b"").await;
        assert!(matches!(fault, Err(HeaderFault::TooLarge(n)) if n == STREAM_HEADER_BYTES_MAX + 1));
        let mut sent = (STREAM_HEADER_BYTES_MAX as u16 + 1).to_be_bytes().to_vec();
        sent.extend(vec![0; STREAM_HEADER_BYTES_MAX + 1]);
        assert!(matches!(read_header(&mut &sent[..]).await, Err(HeaderFault::TooLarge(_))));
    }

    #[tokio::test]
    async fn what_is_no_header_is_a_fault() {
        assert!(matches!(read_header(&mut &b"\0\x03\xc1\xc1\xc1"[..]).await, Err(HeaderFault::Malformed(_))));
        assert!(matches!(read_header(&mut &b"\0\x00"[..]).await, Err(HeaderFault::Malformed(_))));
        assert!(matches!(read_header(&mut &b"\0\x09\x80"[..]).await, Err(HeaderFault::Io(_))));
    }
}
