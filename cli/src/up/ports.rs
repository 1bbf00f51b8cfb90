//! Which address each node has: chosen at its first start, the same ever after, since its children's upstream lists
//! name it.

use crate::failure::Failure;
use branchline_node::node::{Addresses, write_whole};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The book of addresses, kept in `ports.json`.
#[derive(Debug)]
pub struct Book {
    file: PathBuf,
    pages: Pages,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pages {
    schema: u32,
    /// 127.`octet`.x.y: two states on one machine rarely share addresses.
    octet: u8,
    nodes: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    ip: Ipv4Addr,
    #[serde(default)]
    ports: BTreeMap<String, u16>,
}

impl Book {
    /// Opens the book of a state folder, or begins one.
    pub fn open(folder: &Path) -> Result<Book, Failure> {
        let file = folder.join("ports.json");
        let pages = match std::fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| {
                Failure::wrong("bad_state", format!("{} is no use: {e}; remove the state folder", file.display()))
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let mut hasher = DefaultHasher::new();
                folder.hash(&mut hasher);
                Pages { schema: 1, octet: 64 + (hasher.finish() % 128) as u8, nodes: BTreeMap::new() }
            }
            Err(e) => return Err(Failure::wrong("bad_state", format!("cannot read {}: {e}", file.display()))),
        };
        Ok(Book { file, pages })
    }

    /// The node's own address in 127.0.0.0/8, to listen on and to dial from.
    pub fn ip(&mut self, node: &str) -> Ipv4Addr {
        if let Some(entry) = self.pages.nodes.get(node) {
            return entry.ip;
        }
        let taken: Vec<Ipv4Addr> = self.pages.nodes.values().map(|e| e.ip).collect();
        // 250 × 250 addresses; a topology has at most some thousand nodes.
        let nth = |n: u32| Ipv4Addr::new(127, self.pages.octet, (1 + n / 250) as u8, (1 + n % 250) as u8);
        let ip = (0..62_500).map(nth).find(|ip| !taken.contains(ip)).expect("more addresses than nodes");
        self.pages.nodes.insert(node.to_string(), Entry { ip, ports: BTreeMap::new() });
        ip
    }

    /// Where a node's listener is to be: the port of its first start, 0 before it.
    pub fn listen(&mut self, node: &str, listener: &str) -> SocketAddr {
        let ip = self.ip(node);
        let port = self.pages.nodes.get(node).and_then(|e| e.ports.get(listener)).copied().unwrap_or(0);
        SocketAddr::from((ip, port))
    }

    /// Remembers where a node really listens.
    pub fn learn(&mut self, node: &str, addresses: &Addresses) -> Result<(), Failure> {
        self.ip(node);
        let entry = self.pages.nodes.get_mut(node).expect("entered by the line above");
        entry.ports = addresses.iter().map(|(listener, address)| (listener.clone(), address.port())).collect();
        self.save()
    }

    /// Writes the book.
    pub fn save(&self) -> Result<(), Failure> {
        let text = serde_json::to_string(&self.pages).expect("plain data");
        write_whole(&self.file, text.as_bytes())
            .map_err(|e| Failure::ended("unwritable", format!("cannot write {}: {e}", self.file.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_ports_are_the_same_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = Book::open(folder.path()).unwrap();
        let (hq, pc) = (book.ip("hq"), book.ip("pc"));
        assert_ne!(hq, pc);
        assert_eq!(book.listen("hq", "link"), SocketAddr::from((hq, 0)));
        book.learn("hq", &Addresses::from([("link".to_string(), SocketAddr::from((hq, 40_001)))])).unwrap();
        let mut again = Book::open(folder.path()).unwrap();
        assert_eq!(again.listen("hq", "link"), SocketAddr::from((hq, 40_001)));
        assert_eq!((again.ip("pc"), again.ip("hq")), (pc, hq));
        assert!(![hq, pc].contains(&again.ip("new")));
    }

    #[test]
    fn a_thousand_nodes_have_a_thousand_loopback_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let mut book = Book::open(folder.path()).unwrap();
        let all: std::collections::BTreeSet<Ipv4Addr> = (0..1_000).map(|n| book.ip(&format!("n{n}"))).collect();
        assert_eq!(all.len(), 1_000);
        assert!(all.iter().all(|ip| ip.is_loopback() && ip.octets()[3] != 0 && ip.octets()[3] != 255));
    }

    #[test]
    fn a_spoiled_book_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ports.json"), "{").unwrap();
        assert_eq!(Book::open(folder.path()).unwrap_err().code, "bad_state");
    }
}
