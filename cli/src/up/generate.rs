//! The configuration file of each node under `up`.

use super::{ports::Book, state::State};
use crate::{
    failure::Failure,
    topology::{AcceptFrom, Plan, PlannedNode},
};
use branchline_node::config::LinkRate;
use branchline_protocol::id::Role;
use std::{net::SocketAddr, path::Path};

/// Text of a node's configuration. `server_trunk` is where gateways dial; unknown until the server listens. `also`: where a
/// gateway's children meet it besides its own listener.
pub fn config(
    plan: &Plan,
    node: &PlannedNode,
    state: &State,
    book: &mut Book,
    server_trunk: Option<SocketAddr>,
    also: Option<SocketAddr>,
) -> Result<String, Failure> {
    let mut file = File::default();
    file.text("name", &node.name);
    file.path("state_dir", &state.node(&node.name))?;
    match node.role {
        Role::Server => {
            for listener in ["link", "trunk", "api"] {
                file.text(listener, &book.listen(&node.name, listener).to_string());
            }
            let accepted: Vec<String> = match plan.accept_from {
                AcceptFrom::Any => vec![],
                AcceptFrom::Gateway => plan.of(Role::Gateway).map(|g| book.ip(&g.name).to_string()).collect(),
            };
            file.texts("accept_from", &accepted);
            file.port("notice_port", book.listen(&node.name, "notice"));
            file.slots(node);
            file.plain("init_if_new", "true");
            for tenant in &plan.tenants {
                file.0 += "\n[[tenants]]\n";
                file.text("name", tenant.name.as_str());
                file.texts("sites", &tenant.sites);
            }
        }
        Role::Gateway => {
            let ip = book.ip(&node.name).to_string();
            file.text("public", &book.listen(&node.name, "public").to_string());
            file.text("private", &book.listen(&node.name, "private").to_string());
            let names: Vec<String> = [ip.clone()].into_iter().chain(also.map(|end| end.to_string())).collect();
            file.texts("public_names", &names);
            let trunk = server_trunk.ok_or_else(|| Failure::ended("no_trunk", "the server told no trunk address"))?;
            file.text("server_trunk", &trunk.to_string());
            file.path("bundle", &state.bundle(&node.name))?;
            file.text("bind_source", &ip);
        }
        Role::Relay => {
            file.text("link", &book.listen(&node.name, "link").to_string());
            file.text("private", &book.listen(&node.name, "private").to_string());
            file.port("notice_port", book.listen(&node.name, "notice"));
            file.slots(node);
            file.child(node, state, book)?;
        }
        Role::Agent => {
            file.text("private", &book.listen(&node.name, "private").to_string());
            file.child(node, state, book)?;
            file.port("wake_port", book.listen(&node.name, "wake"));
            // It is everybody's machine here.
            file.plain("restart", "false");
        }
    }
    Ok(file.0)
}

#[derive(Default)]
struct File(String);

impl File {
    fn plain(&mut self, key: &str, value: &str) {
        self.0 += &format!("{key} = {value}\n");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.plain(key, &quoted(value));
    }

    fn port(&mut self, key: &str, listener: SocketAddr) {
        self.plain(key, &listener.port().to_string());
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let values: Vec<String> = values.iter().map(|v| quoted(v)).collect();
        self.plain(key, &format!("[{}]", values.join(", ")));
    }

    fn path(&mut self, key: &str, path: &Path) -> Result<(), Failure> {
        let text = path.to_str().ok_or_else(|| {
            Failure::wrong("bad_state", format!("{} is not UTF-8; use another --state", path.display())).field("state")
        })?;
        self.text(key, text);
        Ok(())
    }

    fn slots(&mut self, node: &PlannedNode) {
        self.plain("slots", &node.slots.to_string());
        if node.allow_above_300 {
            self.plain("allow_above_300", "true");
        }
        if node.link_rate != LinkRate::default() {
            self.plain("links_per_second", &node.link_rate.per_second.to_string());
            self.plain("links_burst", &node.link_rate.burst.to_string());
        }
    }

    fn child(&mut self, node: &PlannedNode, state: &State, book: &mut Book) -> Result<(), Failure> {
        self.path("bundle", &state.bundle(&node.name))?;
        self.text("bind_source", &book.ip(&node.name).to_string());
        self.text("reach", node.reach.as_str());
        Ok(())
    }
}

/// A TOML basic string. JSON's escapes are TOML's too; DEL alone is raw in JSON and forbidden in TOML.
pub fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    #[test]
    fn texts_read_back_as_they_were() {
        for text in ["plain", "a\"b\\c", "tab\tline\nret\r", "\u{0}\u{1f}\u{7f}\u{8}\u{c}", "ü/日本"] {
            let table: toml::Table = format!("x = {}", quoted(text)).parse().unwrap();
            assert_eq!(table["x"].as_str(), Some(text));
        }
    }

    #[test]
    fn every_role_gets_the_keys_it_reads() {
        let plan = topology::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../topology-examples/satellite-office"))
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path(), folder.path()).unwrap();
        let mut book = Book::open(folder.path()).unwrap();
        let trunk = Some("127.0.0.1:7".parse().unwrap());
        let mut keys_of = |name: &str| {
            let text = config(&plan, plan.node(name).unwrap(), &state, &mut book, trunk, None).unwrap();
            let table: toml::Table = text.parse().unwrap();
            (table.keys().cloned().collect::<Vec<_>>(), table)
        };
        let (keys, server) = keys_of("hq");
        assert_eq!(
            keys,
            [
                "accept_from",
                "api",
                "init_if_new",
                "link",
                "name",
                "notice_port",
                "slots",
                "state_dir",
                "tenants",
                "trunk"
            ]
        );
        let (keys, gateway) = keys_of("dmz");
        assert_eq!(
            keys,
            ["bind_source", "bundle", "name", "private", "public", "public_names", "server_trunk", "state_dir"]
        );
        assert_eq!(server["accept_from"].as_array().unwrap(), &[gateway["bind_source"].clone()]);
        let (keys, relay) = keys_of("osaka");
        assert_eq!(
            keys,
            ["bind_source", "bundle", "link", "name", "notice_port", "private", "reach", "slots", "state_dir"]
        );
        assert_eq!(relay["reach"].as_str(), Some("gateway"));
        let (keys, agent) = keys_of("osaka-pc-01");
        assert_eq!(keys, ["bind_source", "bundle", "name", "private", "reach", "restart", "state_dir", "wake_port"]);
        assert_eq!(agent["reach"].as_str(), Some("direct"));
    }
}
