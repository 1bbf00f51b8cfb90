//! What relay and gateway do with an `enrol` stream: copy it blindly to their own upstream, within bounds.

use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    time::timeout,
};

/// Enrolments a node passes on at once.
pub const SPLICES_AT_ONCE: usize = 8;
/// Bytes an enrolment may have in each direction.
pub const SPLICE_BYTES_MAX: usize = 64 * 1024;
/// Seconds an enrolment may take.
pub const SPLICE_S: u64 = 30;

/// Copies both directions until either ends, a bound is passed or the time is up. Answers the bytes (up, down).
pub async fn splice(
    child: impl AsyncRead + AsyncWrite,
    parent: impl AsyncRead + AsyncWrite,
) -> io::Result<(usize, usize)> {
    let ((mut from_child, mut to_child), (mut from_parent, mut to_parent)) = (split(child), split(parent));
    let both = async { tokio::try_join!(copy(&mut from_child, &mut to_parent), copy(&mut from_parent, &mut to_child)) };
    match timeout(Duration::from_secs(SPLICE_S), both).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("an enrolment took over {SPLICE_S} s"))),
    }
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<usize> {
    let mut buffer = vec![0; 4096];
    let mut sum = 0;
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            to.shutdown().await?;
            return Ok(sum);
        }
        sum += n;
        if sum > SPLICE_BYTES_MAX {
            return Err(io::Error::other(format!("an enrolment of over {SPLICE_BYTES_MAX} bytes")));
        }
        to.write_all(&buffer[..n]).await?;
        to.flush().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pass(bytes: usize) -> io::Result<(usize, usize)> {
        let (mut child, relay_low) = tokio::io::duplex(1024);
        let (relay_high, mut parent) = tokio::io::duplex(1024);
        let child = async move {
            let _ = child.write_all(&vec![1; bytes]).await;
            let _ = child.shutdown().await;
        };
        let parent = async move {
            let mut all = Vec::new();
            let _ = parent.read_to_end(&mut all).await;
            all.len()
        };
        let (answer, (), _) = tokio::join!(splice(relay_low, relay_high), child, async {
            let n = parent.await;
            assert!(n <= SPLICE_BYTES_MAX);
        });
        answer
    }

    #[actix_rt::test]
    async fn the_bound_passes_and_one_byte_more_does_not() {
        assert_eq!(pass(SPLICE_BYTES_MAX).await.unwrap(), (SPLICE_BYTES_MAX, 0));
        assert!(pass(SPLICE_BYTES_MAX + 1).await.is_err());
    }
}
