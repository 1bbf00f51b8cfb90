//! What a device says when it stops in good order: a notice beside its link's goodbye (ADM-18), so that its parent knows at
//! once even where the link does not carry any more. Whether it is heard nobody knows.

use super::Parts;
use branchline_protocol::{
    datagram::{DATAGRAM_BYTES, Datagram, DatagramKey, Kind},
    id::AttachmentKey,
};
use std::{io, net::SocketAddr, time::Duration};
use tokio::net::UdpSocket;

/// Times it is sent: one may be lost.
const COPIES: u64 = 3;
/// Milliseconds until the first: where the link carries, its goodbye comes before, with what else is on it.
const FIRST_MS: u64 = 100;
/// Milliseconds to the next.
const COPY_MS: u64 = 50;

/// Whom to tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Farewell {
    /// Where the parent hears it.
    pub to: SocketAddr,
    /// The link's key.
    pub key: DatagramKey,
    /// The last link.
    pub link: AttachmentKey,
}

/// The notice with this counter as of now, and where it goes.
pub(crate) fn notice(parts: &Parts, counter: u64) -> Option<(SocketAddr, [u8; DATAGRAM_BYTES])> {
    let Farewell { to, key, link } = (*parts.wake.farewell.borrow())?;
    let at = parts.time.now().shown();
    let notice = Datagram { kind: Kind::Notice, device: parts.me.node, key: link, counter, at };
    Some((to, notice.seal(&key)))
}

/// Says it, if there is somebody to hear it.
pub(crate) async fn say_farewell(parts: &Parts) {
    if parts.wake.farewell.borrow().is_none() {
        return;
    }
    let said = async {
        let socket = UdpSocket::bind((parts.wake.own, 0)).await?;
        for counter in 1..=COPIES {
            tokio::time::sleep(Duration::from_millis(if counter == 1 { FIRST_MS } else { COPY_MS })).await;
            let Some((to, notice)) = notice(parts, counter) else { break };
            socket.send_to(&notice, to).await?;
        }
        io::Result::Ok(())
    };
    if let Err(error) = said.await {
        tracing::debug!(%error, "the notice was not sent");
    }
}
