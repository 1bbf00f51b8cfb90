//! What the gateway knows of its server: which trunks live, who may knock, when it was last heard. Pure.

use branchline_protocol::{
    hash::Hash,
    time::{Millis, Mono, Now},
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Without an answer for so long, the server is shown as unreachable (GW-11 allows 10 s): a ping every 5 s, its answer,
/// and slack, so that a lost network shows before the trunk is given up at 15 s.
const REACHABLE_MS: u64 = 9_000;

/// Whether a child that shows a token may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// There is a trunk and the token is known.
    Known,
    /// The token is not, or none was shown: the answer is any stranger's.
    Stranger,
    /// No trunk lives, or the server has not yet said who may knock.
    NoServer,
}

/// The state of the trunks. `H` opens streams of one.
#[derive(Debug)]
pub struct Board<H> {
    live: BTreeMap<usize, Live<H>>,
    /// The trunk used last.
    last: usize,
    /// Empty until the server has said.
    tokens: BTreeSet<Hash>,
    server_build: Option<String>,
    last_good: Option<Millis>,
}

#[derive(Debug)]
struct Live<H> {
    handle: H,
    heard: Mono,
}

/// The part of `/getstatus` that is about the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerStatus {
    /// Whether it answered lately.
    pub server: Reach,
    /// Its build, as it said last.
    pub server_build: Option<String>,
    /// When it answered last, RFC 3339.
    pub last_good: Option<String>,
    /// Trunks that live.
    pub trunks: usize,
}

/// Whether gateway and server talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// They do.
    Reachable,
    /// They do not.
    Unreachable,
}

impl<H> Default for Board<H> {
    fn default() -> Self {
        Board { live: BTreeMap::new(), last: 0, tokens: BTreeSet::new(), server_build: None, last_good: None }
    }
}

impl<H: Clone> Board<H> {
    /// A trunk was established and its server answered.
    pub fn up(&mut self, trunk: usize, handle: H, build: String, now: Now) {
        self.live.insert(trunk, Live { handle, heard: now.mono });
        self.heard(trunk, build, now);
    }

    /// The server answered on a live trunk.
    pub fn heard(&mut self, trunk: usize, build: String, now: Now) {
        if let Some(live) = self.live.get_mut(&trunk) {
            live.heard = now.mono;
            self.server_build = Some(build);
            self.last_good = Some(now.wall);
        }
    }

    /// A trunk has ended.
    pub fn down(&mut self, trunk: usize) {
        self.live.remove(&trunk);
    }

    /// The server said who may knock. All trunks lead to one server, so the newest word counts.
    pub fn allow(&mut self, tokens: impl IntoIterator<Item = Hash>) {
        self.tokens = tokens.into_iter().collect();
    }

    /// Whether a child with this token may come in.
    pub fn admit(&self, token: Option<&str>) -> Admission {
        if self.live.is_empty() || self.tokens.is_empty() {
            return Admission::NoServer;
        }
        match token {
            Some(token) if self.tokens.contains(&Hash::of(token.as_bytes())) => Admission::Known,
            _ => Admission::Stranger,
        }
    }

    /// The next trunk in turn.
    pub fn take_turn(&mut self) -> Option<H> {
        let after = self.live.range(self.last + 1..).next();
        let (&trunk, live) = after.or_else(|| self.live.iter().next())?;
        self.last = trunk;
        Some(live.handle.clone())
    }

    /// How many trunks live.
    pub fn trunks(&self) -> usize {
        self.live.len()
    }

    /// For `/getstatus` and `tree`.
    pub fn status(&self, now: Mono) -> ServerStatus {
        let reachable = self.live.values().any(|live| now.since(live.heard) < REACHABLE_MS);
        ServerStatus {
            server: if reachable { Reach::Reachable } else { Reach::Unreachable },
            server_build: self.server_build.clone(),
            last_good: self.last_good.and_then(rfc_3339),
            trunks: self.live.len(),
        }
    }
}

fn rfc_3339(time: Millis) -> Option<String> {
    let time = jiff::Timestamp::from_millisecond(time.0).ok()?;
    Some(format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Now {
        Now { mono: Mono(ms), wall: Millis(1_790_000_000_000 + ms as i64), node: Millis(0) }
    }

    #[test]
    fn trunks_take_turns_and_the_dead_are_left_out() {
        let mut board = Board::default();
        assert_eq!(board.take_turn(), None);
        for trunk in 1..=3 {
            board.up(trunk, trunk, "1".into(), at(0));
        }
        let turns = |board: &mut Board<usize>, n: usize| (0..n).map(|_| board.take_turn().unwrap()).collect::<Vec<_>>();
        assert_eq!(turns(&mut board, 4), [1, 2, 3, 1]);
        board.down(2);
        assert_eq!(turns(&mut board, 3), [3, 1, 3]);
        board.down(1);
        board.down(3);
        assert_eq!((board.take_turn(), board.trunks()), (None, 0));
    }

    #[test]
    fn known_tokens_come_in_strangers_do_not_and_without_a_server_nobody() {
        let mut board = Board::default();
        assert_eq!(board.admit(Some("a")), Admission::NoServer);
        board.up(1, (), "1".into(), at(0));
        assert_eq!(board.admit(Some("a")), Admission::NoServer, "the server has not said who may knock");
        board.allow([Hash::of(b"a"), Hash::of(b"b")]);
        assert_eq!(board.admit(Some("a")), Admission::Known);
        for stranger in [None, Some(""), Some("A"), Some("a ")] {
            assert_eq!(board.admit(stranger), Admission::Stranger, "{stranger:?}");
        }
        board.allow([Hash::of(b"b")]);
        assert_eq!(board.admit(Some("a")), Admission::Stranger, "revoked");
        board.down(1);
        assert_eq!(board.admit(Some("b")), Admission::NoServer);
    }

    #[test]
    fn gw_11_a_silent_server_is_unreachable_within_ten_seconds() {
        let mut board = Board::default();
        let never = board.status(Mono(0));
        assert_eq!((never.server, never.server_build, never.last_good), (Reach::Unreachable, None, None));
        board.up(1, (), "7".into(), at(0));
        board.up(2, (), "7".into(), at(0));
        board.heard(2, "7".into(), at(500));
        assert_eq!(board.status(Mono(9_499)).server, Reach::Reachable);
        let silent = board.status(Mono(9_500));
        assert_eq!((silent.server, silent.trunks), (Reach::Unreachable, 2));
        assert_eq!(silent.last_good.as_deref(), Some("2026-09-21T14:13:20.500Z"));
        board.down(1);
        board.down(2);
        board.heard(2, "8".into(), at(9_600));
        assert_eq!(board.status(Mono(9_600)).server_build.as_deref(), Some("7"), "a late word of a dead trunk");
        assert_eq!(board.status(Mono(9_600)).last_good, silent.last_good);
    }

    #[test]
    fn gw_11_the_words_of_the_status_are_stable() {
        let mut board = Board::default();
        board.up(1, (), "7".into(), at(0));
        let text = serde_json::to_string(&board.status(Mono(0))).unwrap();
        let expected = r#"{"server":"reachable","server_build":"7","last_good":"2026-09-21T14:13:20.000Z","trunks":1}"#;
        assert_eq!(text, expected);
    }
}
