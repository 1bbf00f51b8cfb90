//! Which way nodes go up, on real nodes in one process, with links that fail on command.

mod configure;
mod group;
mod laptop;
mod names;
mod routes;

use branchline_tests::{
    proxy::{Cut, Proxy, Whom},
    tree::{Tree, eventually, holds},
};
use serde_json::{Value, json};

/// What agents start for each job.
const SHIM: &str = env!("CARGO_BIN_EXE_shim");
/// The tenant of scenarios that need only one.
const MAIN: &str = "main";

/// A server and a gateway, each behind a proxy: the direct way and the way outside.
async fn world() -> (Tree, Proxy, Proxy) {
    let mut tree = Tree::start(SHIM, &[MAIN]).await;
    let direct = tree.server_behind_proxy(None).await;
    let outer = tree.gateway_behind_proxy("dmz").await;
    (tree, direct, outer)
}

/// Nobody gets through there any more, as behind a firewall that resets.
fn block(way: &Proxy) {
    way.refuse(true);
    way.cut(Whom::All, Cut::Reset);
}

/// Connections that anybody tried there.
fn tried(way: &Proxy) -> u64 {
    let figures = way.figures();
    figures.carried + figures.unanswered
}

/// Waits until the server shows a device as it is reached now: `direct`, or `gateway` by the only one there is.
async fn shown(tree: &Tree, device: &str, reached: &str) -> Value {
    let path = if reached == "direct" { json!([]) } else { json!(["dmz"]) };
    eventually(&format!("the server shows {device} as {reached}"), async || {
        let device = tree.devices(MAIN).await.remove(device).unwrap_or_default();
        let good = device["reached"] == reached && device["path"] == path && device["state"] == "online";
        holds(good, &device).map(|()| device)
    })
    .await
}
