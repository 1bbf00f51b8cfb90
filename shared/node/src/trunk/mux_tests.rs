use super::{super::gather::GATHER_BYTES, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::timeout,
};

const SOON: Duration = Duration::from_secs(20);

struct Ends {
    client: MuxHandle,
    server: MuxHandle,
    incoming: mpsc::Receiver<TrunkStream>,
}

fn ends(limits: MuxLimits) -> Ends {
    let (left, right): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
    let (client, _) = Mux::client(left, limits);
    let (server, incoming) = Mux::server(right, limits);
    Ends { client, server, incoming }
}

async fn pair(ends: &mut Ends) -> (TrunkStream, TrunkStream) {
    let mut opened = ends.client.open().await.unwrap();
    opened.write_all(b"?").await.unwrap();
    let mut accepted = timeout(SOON, ends.incoming.recv()).await.unwrap().unwrap();
    assert_eq!(accepted.read_u8().await.unwrap(), b'?');
    accepted.write_all(b"+").await.unwrap();
    assert_eq!(timeout(SOON, opened.read_u8()).await.unwrap().unwrap(), b'+');
    (opened, accepted)
}

#[tokio::test]
async fn both_directions_at_once_from_two_tasks_arrive_whole() {
    let mut ends = ends(MuxLimits::default());
    let (opened, accepted) = pair(&mut ends).await;
    let bytes: Arc<Vec<u8>> =
        Arc::new((0..4_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect());
    let mut tasks = Vec::new();
    for stream in [opened, accepted] {
        let (mut read, mut write) = tokio::io::split(stream);
        let (sent, expected) = (Arc::clone(&bytes), Arc::clone(&bytes));
        tasks.push(tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        }));
        tasks.push(tokio::spawn(async move {
            let mut received = Vec::new();
            read.read_to_end(&mut received).await.unwrap();
            assert!(received == *expected, "{} bytes differ", received.len());
        }));
    }
    for task in tasks {
        timeout(SOON, task).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_stops_its_writer_and_nobody_else() {
    let mut ends = ends(MuxLimits::default());
    let (mut stuck, _unread) = pair(&mut ends).await;
    let flood = tokio::spawn(async move {
        let mut sent = 0;
        while let Ok(Ok(n)) = timeout(Duration::from_millis(300), stuck.write(&[7; 16_384])).await {
            sent += n;
        }
        (sent, stuck)
    });
    let (sent, _stuck) = timeout(SOON, flood).await.unwrap().unwrap();
    // The window, what yamux queues for a stream (10 frames of 16 KiB) and what the driver holds and gathers.
    assert!(sent <= 256 * 1024 + 12 * 16_384 + GATHER_BYTES, "{sent}");
    pair(&mut ends).await;
}

#[tokio::test]
async fn streams_at_the_bound_open_one_more_is_full_and_the_trunk_lives() {
    let limits = MuxLimits { opened_max: 3, ..MuxLimits::default() };
    let mut ends = ends(limits);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pair(&mut ends).await);
    }
    assert_eq!(ends.client.open().await.unwrap_err(), MuxFault::Full);
    // Twenty generations: places of dropped streams come back, at yamux's count, too.
    for _ in 0..20 {
        held.pop();
        held.push(pair(&mut ends).await);
    }
    assert!(ends.client.is_live() && ends.server.is_live());
}

#[tokio::test]
async fn a_full_queue_resets_the_newcomer_and_the_trunk_lives() {
    let limits = MuxLimits { incoming_max: 2, ..MuxLimits::default() };
    let mut ends = ends(limits);
    let mut opened = Vec::new();
    for _ in 0..3 {
        let mut stream = ends.client.open().await.unwrap();
        stream.write_all(b"?").await.unwrap();
        opened.push(stream);
    }
    let mut byte = [0; 1];
    let end = timeout(SOON, opened[2].read(&mut byte)).await.unwrap();
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    for stream in &mut opened[..2] {
        let mut accepted = ends.incoming.recv().await.unwrap();
        accepted.write_all(b"+").await.unwrap();
        assert_eq!(timeout(SOON, stream.read_u8()).await.unwrap().unwrap(), b'+');
    }
    pair(&mut ends).await;
}

#[tokio::test]
async fn the_257th_unanswered_stream_waits_and_one_answer_lets_it_in() {
    let mut ends = ends(MuxLimits::default());
    let mut silent = Vec::new();
    for _ in 0..256 {
        silent.push(timeout(SOON, ends.client.open()).await.unwrap().unwrap());
    }
    let next = ends.client.open();
    tokio::pin!(next);
    assert!(timeout(Duration::from_millis(100), &mut next).await.is_err(), "yamux's bound of 256");
    silent[0].write_all(b"?").await.unwrap();
    let mut accepted = ends.incoming.recv().await.unwrap();
    accepted.write_all(b"+").await.unwrap();
    timeout(SOON, next).await.unwrap().unwrap();
}

#[tokio::test]
async fn one_who_gave_up_waiting_does_not_hold_up_the_next() {
    let ends = ends(MuxLimits::default());
    let mut silent = Vec::new();
    for _ in 0..256 {
        silent.push(ends.client.open().await.unwrap());
    }
    assert!(timeout(Duration::from_millis(50), ends.client.open()).await.is_err());
    silent.pop();
    timeout(SOON, ends.client.open()).await.unwrap().unwrap();
}

#[tokio::test]
async fn closing_one_end_tells_the_other_and_ends_every_stream() {
    let mut ends = ends(MuxLimits::default());
    let (mut opened, mut accepted) = pair(&mut ends).await;
    ends.client.close();
    assert_eq!(timeout(SOON, ends.client.ended()).await.unwrap(), "closed at this end");
    timeout(SOON, ends.server.ended()).await.unwrap();
    let mut byte = [0; 1];
    for stream in [&mut opened, &mut accepted] {
        let end = timeout(SOON, stream.read(&mut byte)).await.unwrap();
        assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    }
    assert_eq!(ends.client.open().await.unwrap_err(), MuxFault::Ended);
    assert!(!ends.client.is_live());
    assert!(timeout(SOON, ends.incoming.recv()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_cut_connection_ends_both_and_dropping_the_handles_closes() {
    let (left, right) = tokio::io::duplex(1_024);
    let (client, _incoming) = Mux::client(left, MuxLimits::default());
    drop(right);
    timeout(SOON, client.ended()).await.unwrap();

    let ends = ends(MuxLimits::default());
    drop(ends.client);
    timeout(SOON, ends.server.ended()).await.unwrap();
}

#[tokio::test]
async fn garbage_ends_the_trunk_without_a_panic() {
    let (mut left, right) = tokio::io::duplex(1_024);
    let (server, _incoming) = Mux::server(right, MuxLimits::default());
    left.write_all(&[0xff; 64]).await.unwrap();
    timeout(SOON, server.ended()).await.unwrap();
}
