use super::*;
use crate::office::eventually;
use branchline_node::time::SystemClock;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream as Plain},
};

const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A proxy in front of a plain listener, and one connection through it: the proxy, who dialled, who answered.
fn bench() -> (Proxy, std::net::TcpListener, Plain, Plain) {
    let listener = std::net::TcpListener::bind(NOBODY).unwrap();
    let proxy = Proxy::start(NOBODY, listener.local_addr().unwrap()).unwrap();
    let child = Plain::connect(proxy.address()).unwrap();
    let (parent, _) = listener.accept().unwrap();
    for end in [&child, &parent] {
        end.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    }
    (proxy, listener, child, parent)
}

fn read(from: &mut Plain, bytes: usize) -> Vec<u8> {
    let mut all = vec![0; bytes];
    from.read_exact(&mut all).unwrap();
    all
}

/// What a read says within a short time: none if nothing came.
fn soon(from: &mut Plain) -> Option<io::Result<usize>> {
    from.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let got = from.read(&mut [0; 64]);
    from.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    match got {
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => None,
        other => Some(other),
    }
}

fn all() -> Whom {
    Whom::All
}

#[test]
fn bytes_pass_unchanged_both_ways_and_are_counted() {
    let (proxy, _listener, mut child, mut parent) = bench();
    let much: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    let sent = much.clone();
    let mut writer = child.try_clone().unwrap();
    let sending = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    assert_eq!(read(&mut parent, much.len()), much);
    sending.join().unwrap();
    parent.write_all(b"answer").unwrap();
    assert_eq!(read(&mut child, 6), b"answer");
    let Figures { carried, open, up, down, .. } = proxy.figures();
    assert_eq!((carried, open, up, down), (1, 1, 3_000_000, 6));
}

#[test]
fn an_end_of_one_direction_leaves_the_other_open() {
    let (_proxy, _listener, mut child, mut parent) = bench();
    child.write_all(b"last").unwrap();
    child.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(read(&mut parent, 4), b"last");
    assert_eq!(parent.read(&mut [0; 1]).unwrap(), 0);
    parent.write_all(b"more").unwrap();
    assert_eq!(read(&mut child, 4), b"more");
}

#[test]
fn the_parent_sees_the_peer_that_dialled() {
    let listener = std::net::TcpListener::bind(NOBODY).unwrap();
    let proxy = Proxy::start(NOBODY, listener.local_addr().unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let source = IpAddr::from([127, 5, 6, 7]);
    let child = runtime.block_on(dial(source, proxy.address())).unwrap();
    assert_eq!(listener.accept().unwrap().1.ip(), source);
    eventually("the connection is counted by its source", 10, || (proxy.open(Whom::From(source)) == 1).then_some(()));
    assert_eq!(proxy.cut(Whom::From(IpAddr::from([127, 5, 6, 8])), Cut::Reset), 0, "it is not that one's");
    assert_eq!(proxy.cut(Whom::From(source), Cut::Reset), 1);
    drop(child);
}

#[test]
fn a_held_link_is_silent_both_ways_and_goes_on_with_every_byte() {
    let (proxy, _listener, mut child, mut parent) = bench();
    proxy.both(all(), Flow::Hold);
    child.write_all(b"up").unwrap();
    parent.write_all(b"down").unwrap();
    assert!(soon(&mut parent).is_none() && soon(&mut child).is_none());
    assert_eq!((proxy.figures().up, proxy.figures().down, proxy.figures().open), (0, 0, 1));
    proxy.pass(all());
    assert_eq!((read(&mut parent, 2), read(&mut child, 4)), (b"up".to_vec(), b"down".to_vec()));
}

#[test]
fn one_direction_alone_is_held_and_not_even_its_end_is_noticed() {
    let (proxy, _listener, mut child, mut parent) = bench();
    proxy.flow(all(), Way::Up, Flow::Hold);
    child.write_all(b"lost").unwrap();
    parent.write_all(b"heard").unwrap();
    assert_eq!(read(&mut child, 5), b"heard");
    drop(child);
    assert!(soon(&mut parent).is_none(), "half-open");
    assert_eq!(proxy.cut(all(), Cut::Reset), 1);
    assert_eq!(soon(&mut parent).unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_cut_is_seen_by_both_ends_as_what_it_is() {
    for (how, end) in [(Cut::Finish, None), (Cut::Reset, Some(io::ErrorKind::ConnectionReset))] {
        let (proxy, _listener, mut child, mut parent) = bench();
        child.write_all(b"x").unwrap();
        read(&mut parent, 1);
        assert_eq!(proxy.cut(all(), how), 1);
        for side in [&mut child, &mut parent] {
            match (side.read(&mut [0; 1]), end) {
                (Ok(0), None) => {}
                (Err(e), Some(kind)) if e.kind() == kind => {}
                (other, _) => panic!("{how:?}: {other:?}"),
            }
        }
        eventually("nothing is open", 10, || (proxy.figures().open == 0).then_some(()));
        assert!(Plain::connect(proxy.address()).is_ok(), "new connections are taken");
    }
}

#[test]
fn a_stranded_link_is_silent_and_the_next_one_is_not() {
    let (proxy, listener, mut child, mut parent) = bench();
    assert_eq!(proxy.cut(all(), Cut::Strand), 1);
    eventually("it is stranded", 10, || (proxy.figures().open == 0).then_some(()));
    child.write_all(b"x").unwrap();
    drop(child);
    assert!(soon(&mut parent).is_none(), "it learns nothing");
    let mut again = Plain::connect(proxy.address()).unwrap();
    let (mut fresh, _) = listener.accept().unwrap();
    again.write_all(b"y").unwrap();
    assert_eq!(read(&mut fresh, 1), b"y");
}

#[test]
fn a_link_is_reset_in_the_middle_of_a_message() {
    let (proxy, _listener, mut child, mut parent) = bench();
    proxy.flow(all(), Way::Up, Flow::ResetAfter(5));
    child.write_all(b"123456789").unwrap();
    assert_eq!(read(&mut parent, 5), b"12345", "exactly so much arrives");
    assert_eq!(parent.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(child.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_refusing_proxy_keeps_what_is_open_and_takes_nothing_new() {
    let (proxy, listener, mut child, mut parent) = bench();
    proxy.refuse(true);
    assert_eq!(Plain::connect(proxy.address()).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    child.write_all(b"x").unwrap();
    assert_eq!(read(&mut parent, 1), b"x");
    proxy.refuse(false);
    let _again = Plain::connect(proxy.address()).unwrap();
    assert!(listener.accept().is_ok());
    drop(listener);
    let mut unanswered = Plain::connect(proxy.address()).unwrap();
    assert!(unanswered.read(&mut [0; 1]).is_err(), "nothing listens behind it");
    eventually("it is counted", 10, || (proxy.figures().unanswered == 1).then_some(()));
}

#[test]
fn late_and_slow_bytes_take_their_time_and_all_arrive() {
    let clock = SystemClock::shared();
    let (proxy, _listener, mut child, mut parent) = bench();
    proxy.flow(all(), Way::Up, Flow::Delay(Duration::from_millis(150)));
    let begun = clock.mono();
    child.write_all(b"late").unwrap();
    assert_eq!(read(&mut parent, 4), b"late");
    assert!(clock.mono().since(begun) >= 150);
    proxy.flow(all(), Way::Up, Flow::Throttle(10_000));
    let begun = clock.mono();
    child.write_all(&[7; 3_000]).unwrap();
    assert_eq!(read(&mut parent, 3_000), [7; 3_000]);
    // Five pauses lie between six pieces.
    assert!(clock.mono().since(begun) >= 250);
}
