//! Mosquitto: what a broker in C needs for an idle client over TLS.

use crate::{
    Outcome,
    certs::{Certs, localhost},
    daemon::{Daemon, free_port, local},
    machine,
};
use std::{path::Path, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// KiB that the broker grew by for each of so many clients that are connected and subscribed, RSS and PSS.
pub async fn idle(certs: &Certs, folder: &Path, clients: usize) -> Outcome<(f64, f64)> {
    let port = free_port()?;
    let file = folder.join("mosquitto.conf");
    let text = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nmax_connections -1\ncertfile {}\nkeyfile {}\n",
        certs.chain.display(),
        certs.key.display()
    );
    std::fs::write(&file, text)?;
    let broker = Daemon::start("mosquitto", &["-c", &file.display().to_string()], folder, &[port])?;
    let connector = certs.connector(false)?;
    let before = machine::read(&broker.pids());
    let mut open = Vec::new();
    for n in 0..clients {
        let tcp = TcpStream::connect(local(port)).await?;
        let mut stream = connector.connect(localhost(), tcp).await?;
        let id = format!("bench{n:06}");
        // CONNECT of MQTT 3.1.1 with a clean session and an hour of patience, then SUBSCRIBE to one topic.
        let mut packet =
            vec![0x10, 12 + id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0x0e, 0x10, 0, id.len() as u8];
        packet.extend_from_slice(id.as_bytes());
        packet.extend_from_slice(&[0x82, 8, 0, 1, 0, 3, b'j', b'o', b'b', 0]);
        stream.write_all(&packet).await?;
        stream.flush().await?;
        let mut answers = [0; 9];
        tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answers)).await??;
        if answers[0] != 0x20 || answers[3] != 0 || answers[4] != 0x90 {
            return Err(format!("Mosquitto answers {answers:?}").into());
        }
        open.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = machine::read(&broker.pids());
    drop(open);
    Ok(after.grown_kib(&before, clients))
}
