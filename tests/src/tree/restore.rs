//! A server that is backed up, lost, and restored.

use super::Tree;
use branchline_node::{node::Ambient, process::RunningNode, time::SystemClock};
use branchline_server::{
    Server,
    backup::{back_up, restore},
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
