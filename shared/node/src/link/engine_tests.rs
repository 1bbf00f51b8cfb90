use super::*;
use futures_util::SinkExt;

struct Into(mpsc::UnboundedSender<LinkEvent>);
impl LinkSink for Into {
    async fn deliver(&mut self, event: LinkEvent) {
        let _ = self.0.send(event);
    }
}

fn counters() -> LinkCounters {
    LinkCounters { protocol_errors: Counter::noop(), unknown: Counter::noop() }
}

fn parent() -> Side {
    Side::Parent { statement: watch::channel(None).1, spread: Box::new(|| 0), poll: false }
}

fn poll() -> Side {
    Side::Parent { statement: watch::channel(None).1, spread: Box::new(|| 0), poll: true }
}

fn framed(io: tokio::io::DuplexStream) -> Framed<tokio::io::DuplexStream, FrameCodec> {
    Framed::new(io, FrameCodec)
}

#[actix_rt::test]
async fn both_ends_may_write_more_than_the_pipe_holds_at_once() {
    let (a, b) = tokio::io::duplex(1024);
    let mut ends = Vec::new();
    for (io, side) in [(a, Side::Child), (b, parent())] {
        let (commands, rx) = mpsc::channel(8);
        let (events, mut got) = mpsc::unbounded_channel();
        commands.send(LinkCommand::Send(Lane::Work, Bytes::from(vec![1; 200_000]))).await.unwrap();
        let task = actix_rt::spawn(async move { run(framed(io), rx, side, counters(), &mut Into(events)).await });
        ends.push((commands, task, async move { got.recv().await }));
    }
    let mut kept = Vec::new();
    for (commands, task, got) in ends {
        let event = tokio::time::timeout(Duration::from_secs(20), got).await.expect("no deadlock");
        assert!(matches!(event, Some(LinkEvent::Message(m)) if m.bytes.len() == 200_000));
        kept.push((commands, task));
    }
}

#[actix_rt::test]
async fn adm_4_a_silent_peer_is_dead_after_90_s_and_a_heartbeat_keeps_it_alive() {
    tokio::time::pause();
    let (a, b) = tokio::io::duplex(1024);
    let (_commands, rx) = mpsc::channel(8);
    let (events, _got) = mpsc::unbounded_channel();
    let link = actix_rt::spawn(async move { run(framed(a), rx, parent(), counters(), &mut Into(events)).await });
    let mut child = framed(b);
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        child.send(Frame::Heartbeat).await.unwrap();
        assert!(matches!(child.next().await, Some(Ok(Some(Frame::Alive(None))))));
    }
    assert!(!link.is_finished());
    let heard = timer_now();
    assert_eq!(link.await.unwrap(), LinkEnd::Silent);
    let silent = timer_now() - heard;
    assert!((Duration::from_secs(90)..Duration::from_millis(90_010)).contains(&silent), "{silent:?}");
}

const PIECE: usize = 32 << 10;

/// A poll's parent, and a child that is nothing but frames.
struct Polled {
    child: Framed<tokio::io::DuplexStream, FrameCodec>,
    sent: u64,
    commands: mpsc::Sender<LinkCommand>,
    events: mpsc::UnboundedReceiver<LinkEvent>,
    link: actix_rt::task::JoinHandle<LinkEnd>,
}

impl Polled {
    fn begin() -> Polled {
        let (a, b) = tokio::io::duplex(1 << 20);
        let (commands, rx) = mpsc::channel(8);
        let (sink, events) = mpsc::unbounded_channel();
        let link = actix_rt::spawn(async move { run(framed(a), rx, poll(), counters(), &mut Into(sink)).await });
        Polled { child: framed(b), sent: 0, commands, events, link }
    }

    async fn up(&mut self, length: usize) {
        self.sent += 1;
        let bytes = Bytes::from(vec![7; length]);
        let (message, total) = (self.sent, length as u32);
        self.child.send(Frame::Data { lane: Lane::Work, message, offset: 0, total, bytes }).await.unwrap();
        let credit = loop {
            match self.events.recv().await.expect("the link lives") {
                LinkEvent::Message(m) => break LinkCommand::Release(m.lane, m.credit),
                other => assert!(matches!(other, LinkEvent::Heard), "{other:?}"),
            }
        };
        self.commands.send(credit).await.unwrap();
    }

    async fn down(&mut self, length: usize) {
        self.commands.send(LinkCommand::Send(Lane::Work, Bytes::from(vec![7; length]))).await.unwrap();
        self.until(|frame| matches!(frame, Frame::Data { .. })).await;
    }

    /// Whether the child was asked to end, by everything the parent has done so far.
    async fn asked_to_end(&mut self) -> bool {
        self.child.send(Frame::Heartbeat).await.unwrap();
        self.until(|frame| matches!(frame, Frame::Alive(_))).await
    }

    async fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> bool {
        let mut asked = false;
        loop {
            let frame = self.child.next().await.expect("the link lives").unwrap().expect("a known kind");
            asked |= frame == Frame::Goodbye(Goodbye::Continue);
            if wanted(&frame) {
                return asked;
            }
        }
    }
}

#[actix_rt::test]
async fn a_poll_of_8_mib_both_ways_together_goes_on_and_one_byte_more_asks_it_to_end() {
    let mut polled = Polled::begin();
    let pieces = POLL_BYTES_MAX as usize / PIECE;
    for _ in 0..pieces - 1 {
        polled.up(PIECE).await;
    }
    polled.down(PIECE).await;
    assert!(!polled.asked_to_end().await, "at the bound");
    polled.up(1).await;
    assert!(polled.asked_to_end().await, "one byte past it");
    // What is under way still passes; then the child says that it is done, and the owner ends the poll.
    polled.up(PIECE).await;
    polled.down(PIECE).await;
    assert!(!polled.asked_to_end().await, "it is said once");
    polled.child.send(Frame::Goodbye(Goodbye::Done)).await.unwrap();
    while !matches!(polled.events.recv().await, Some(LinkEvent::ChildDone)) {}
    polled.commands.send(LinkCommand::Goodbye(Goodbye::Done)).await.unwrap();
    assert_eq!(polled.link.await.unwrap(), LinkEnd::Closed(Goodbye::Done));
}

#[actix_rt::test]
async fn a_poll_is_asked_to_end_after_60_s_and_ended_when_it_does_not() {
    tokio::time::pause();
    let mut polled = Polled::begin();
    let from = timer_now();
    assert!(polled.until(|frame| *frame == Frame::Goodbye(Goodbye::Continue)).await);
    let asked = timer_now() - from;
    assert!((Duration::from_secs(60)..Duration::from_millis(60_010)).contains(&asked), "{asked:?}");
    while !polled.link.is_finished() {
        let _ended = polled.child.send(Frame::Heartbeat).await;
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let ended = (timer_now() - from).as_secs();
    assert!((600..660).contains(&ended), "{ended} s, looked at every 30 s");
    assert_eq!(polled.link.await.unwrap(), LinkEnd::Closed(Goodbye::Continue));
}

#[actix_rt::test]
async fn rly_11_a_changed_spread_is_told_with_the_next_heartbeat_and_once() {
    let (a, b) = tokio::io::duplex(1024);
    let (_commands, rx) = mpsc::channel(8);
    let (sink, _events) = mpsc::unbounded_channel();
    let (children, seen) = watch::channel(1u64);
    let spread = Box::new(move || *seen.borrow() * 150);
    let side = Side::Parent { statement: watch::channel(None).1, spread, poll: false };
    actix_rt::spawn(async move { run(framed(a), rx, side, counters(), &mut Into(sink)).await });
    let mut child = framed(b);
    let mut told = Vec::new();
    for n in [1, 300, 300] {
        children.send_replace(n);
        child.send(Frame::Heartbeat).await.unwrap();
        child.send(Frame::Heartbeat).await.unwrap();
        let mut answers = 0;
        while answers < 2 {
            match child.next().await.unwrap().unwrap().unwrap() {
                Frame::Alive(_) => answers += 1,
                other => told.push(other),
            }
        }
    }
    assert_eq!(told, [Frame::Spread(45_000)]);
}

#[actix_rt::test]
async fn rly_11_who_came_in_a_crowd_is_told_its_spread_when_the_crowd_is_in() {
    tokio::time::pause();
    let (a, b) = tokio::io::duplex(1024);
    let (_commands, rx) = mpsc::channel(8);
    let (sink, _events) = mpsc::unbounded_channel();
    let (children, seen) = watch::channel(0u64);
    let spread = Box::new(move || *seen.borrow() * 150);
    let side = Side::Parent { statement: watch::channel(None).1, spread, poll: false };
    actix_rt::spawn(async move { run(framed(a), rx, side, counters(), &mut Into(sink)).await });
    let mut child = framed(b);
    let from = timer_now();
    tokio::task::yield_now().await;
    children.send(300).unwrap();
    assert!(matches!(child.next().await, Some(Ok(Some(Frame::Spread(45_000))))));
    let told = timer_now() - from;
    assert!((Duration::from_secs(5)..Duration::from_millis(5_010)).contains(&told), "{told:?}");
}

#[actix_rt::test]
async fn a_frame_out_of_credit_or_over_the_bound_closes_the_link() {
    use tokio::io::AsyncWriteExt;
    let (a, mut b) = tokio::io::duplex(1 << 20);
    let (_commands, rx) = mpsc::channel(8);
    let (events, _got) = mpsc::unbounded_channel();
    let link = actix_rt::spawn(async move { run(framed(a), rx, parent(), counters(), &mut Into(events)).await });
    b.write_all(&70_000u32.to_be_bytes()).await.unwrap();
    assert!(matches!(link.await.unwrap(), LinkEnd::Protocol(_)));
}

/// How a link ends whose peer says this and closes the stream while there is something to be written.
async fn written_into_a_closed_stream(side: Side, said: Option<Frame>) -> LinkEnd {
    let (a, b) = tokio::io::duplex(1 << 20);
    let mut peer = framed(b);
    if let Some(frame) = said {
        peer.send(frame).await.unwrap();
    }
    drop(peer);
    let (commands, rx) = mpsc::channel(8);
    commands.send(LinkCommand::Send(Lane::Work, Bytes::from_static(b"news"))).await.unwrap();
    let (events, _got) = mpsc::unbounded_channel();
    // Both are ready at once, and writing comes first.
    let mut sink = Into(events);
    let link = run(framed(a), rx, side, counters(), &mut sink);
    tokio::time::timeout(Duration::from_secs(20), link).await.expect("it ends")
}

#[actix_rt::test]
async fn rly_12_what_the_peer_said_before_it_closed_is_the_end_and_not_that_it_takes_nothing_more() {
    let refusal = Refusal::new(409, "stale_attachment", "a newer attachment of this node is here");
    let refused = || Some(Frame::Refused(refusal.clone()));
    assert_eq!(written_into_a_closed_stream(Side::Child, refused()).await, LinkEnd::Refused(refusal.clone()));
    for side in [Side::Child, parent()] {
        let goodbye = Some(Frame::Goodbye(Goodbye::Stopping));
        assert_eq!(written_into_a_closed_stream(side, goodbye).await, LinkEnd::Goodbye(Goodbye::Stopping));
    }
    assert!(matches!(written_into_a_closed_stream(parent(), refused()).await, LinkEnd::Lost(_)), "it refuses nobody");
    assert!(matches!(written_into_a_closed_stream(Side::Child, None).await, LinkEnd::Lost(_)));
}

/// Counts what is written to a pipe.
struct Counted(tokio::io::DuplexStream, Arc<std::sync::atomic::AtomicUsize>);

impl tokio::io::AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[actix_rt::test]
async fn what_waits_together_is_written_at_once() {
    let (a, b) = tokio::io::duplex(65_536);
    let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (commands, rx) = mpsc::channel(8);
    for text in ["one", "two", "three"] {
        commands.send(LinkCommand::Send(Lane::Work, Bytes::from_static(text.as_bytes()))).await.unwrap();
    }
    let (events, _got) = mpsc::unbounded_channel();
    let stream = Framed::new(Counted(a, writes.clone()), FrameCodec);
    let _link = actix_rt::spawn(async move { run(stream, rx, parent(), counters(), &mut Into(events)).await });
    let mut child = framed(b);
    for text in ["one", "two", "three"] {
        let frame = tokio::time::timeout(Duration::from_secs(20), child.next()).await.expect("it comes");
        assert!(matches!(frame, Some(Ok(Some(Frame::Data { bytes, .. }))) if bytes == text), "{text}");
    }
    assert_eq!(writes.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn an_idle_link_gives_back_what_a_large_frame_took_and_never_what_is_in_use() {
    let mut idle = BytesMut::with_capacity(IDLE_BYTES + 1);
    shrink(&mut idle);
    assert!(idle.capacity() <= IDLE_BYTES);
    let mut used = BytesMut::from(&[7; IDLE_BYTES + 1][..]);
    shrink(&mut used);
    assert_eq!(used.len(), IDLE_BYTES + 1);
}
