//! A server that is backed up, lost, and restored.

use super::Tree;
use branchline_node::{node::Ambient, process::RunningNode, time::SystemClock};
use branchline_server::{
    Server,
    backup::{DATABASE, back_up, restore},
    store::SqliteStore,
};
use std::path::{Path, PathBuf};

impl Tree {
    /// A backup of the running server.
    pub async fn back_up_server(&self) -> PathBuf {
        let out = self.folder("server.backup");
        let now = SystemClock::shared().wall();
        back_up(&self.server_config.state_dir, &out, now).await.expect("the server is backed up");
        out
    }

    /// The server is gone, and a restored one stands in its place: in a new folder, with the same addresses.
    pub async fn lose_server(&mut self, backup: &Path) {
        self.server.take().expect("a running server").stop().await;
        let state = self.folder("server-restored");
        restore(backup, &state, SystemClock::shared().wall()).expect("the backup is restored");
        self.server_config.state_dir = state;
        self.start_server().await;
    }

    /// The stopped server's database as it is, to be put back by hand.
    pub async fn copy_database(&self) -> Vec<u8> {
        let copy = self.folder("database");
        let database = self.server_config.state_dir.join(DATABASE);
        SqliteStore::snapshot(&database, &copy).await.expect("the database can be copied");
        std::fs::read(copy).expect("the copy is there")
    }

    /// Puts an older database in the place of the stopped server's, as whoever restores a disk's snapshot does.
    pub fn put_back(&self, database: &[u8]) {
        let path = self.server_config.state_dir.join(DATABASE);
        for log in ["-wal", "-shm"] {
            let mut name = path.as_os_str().to_owned();
            name.push(log);
            let _ = std::fs::remove_file(name);
        }
        std::fs::write(path, database).expect("the folder can be written");
    }

    /// Restarts the server with children told to dial it there.
    pub async fn advertise(&mut self, link: std::net::SocketAddr) {
        self.stop_server().await;
        self.server_config.advertise_link = vec![link.to_string()];
        self.start_server().await;
    }

    /// Starts the server that was stopped.
    pub async fn start_server(&mut self) {
        let server = Server::start(self.server_config.clone(), Ambient::system()).await.expect("the server starts");
        self.server = Some(server);
    }

    /// Stops the server in good order.
    pub async fn stop_server(&mut self) {
        self.server.take().expect("a running server").stop().await;
    }
}
