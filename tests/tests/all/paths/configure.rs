//! `relay configure` on a running relay.

use super::{MAIN, world};
use branchline_node::identity::Identity;
use branchline_relay::{
    configure::{Configure, command, configure},
    upstream::UpstreamSettings,
};
use branchline_tests::tree::{RelayWish, Tree, eventually, holds, platform, row, scenario, ways::Impostor};
use serde_json::Value;
use std::{net::SocketAddr, path::Path};

/// As a process of its own would: off this thread, with a runtime of its own.
async fn set(config: &Path, settings: &[String]) -> Result<Option<UpstreamSettings>, (&'static str, String)> {
    let asked = Configure { config: config.to_path_buf(), settings: settings.to_vec(), ..Configure::default() };
    let done = tokio::task::spawn_blocking(move || configure(&asked)).await.expect("it ends");
    done.map_err(|mistakes| (mistakes.first().expect("a mistake").code, mistakes.to_string()))
}

fn direct(address: SocketAddr) -> Vec<String> {
    vec![format!("host={}", address.ip()), format!("port={}", address.port()), "via_gateway=false".into()]
}

async fn standing(tree: &Tree) -> (Value, Value) {
    let status = tree.status("osaka").await;
    (status["set"].clone(), status["uplink"]["address"].clone())
}

#[test]
fn rly_2_a_running_relay_follows_and_every_bad_input_leaves_it_where_it_is() {
    scenario(async {
        let (mut tree, inside, outer) = world().await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        tree.agent(MAIN, "pc", "osaka", platform::simulated(1, "ran")).await;
        tree.online(MAIN, ["pc"]).await;
        let config = tree.relay_config_file("osaka");
        let kept = UpstreamSettings::file(&tree.folder("osaka"));

        let https = [format!("host={}", outer.address().ip()), format!("port={}", outer.address().port())];
        let done = set(&config, &https).await.expect("the gateway leads to the server");
        assert_eq!(done.map(|set| set.via_gateway), Some(true), "unless told otherwise");
        tree.stands("osaka", "connected", Some("gateway")).await;
        eventually("the server sees the way", async || {
            let device = tree.devices(MAIN).await.remove("pc").unwrap_or_default();
            holds(device["path"] == serde_json::json!(["dmz", "osaka"]) && device["state"] == "online", device)
        })
        .await;
        let (good, text) = (standing(&tree).await, std::fs::read_to_string(&kept).unwrap());

        let stolen = Identity::load(&tree.folder("pc").join("identity")).unwrap();
        let (impostor, there) = Impostor::start("127.0.0.1:0".parse().unwrap(), &stolen).await;
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nobody = closed.local_addr().unwrap();
        drop(closed);
        let words = |list: &[&str]| list.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        let strangers = "upstream=0190f0e0-0000-7000-8000-0000000000aa".to_string();
        for (settings, code) in [
            (words(&["host=gw", "prot=443"]), "unknown_key"),
            (words(&["port=443"]), "missing"),
            (words(&["host=gw", "port=99999"]), "out_of_range"),
            (words(&["host=gw", "ca=/nonexistent/ca.pem"]), "unreadable"),
            (words(&["host=nobody.invalid"]), "unreachable"),
            (direct(nobody), "unreachable"),
            (direct(there), "other_identity"),
            // Nothing of the product is there.
            (
                vec!["via_gateway=true".into(), format!("host={}", there.ip()), format!("port={}", there.port())],
                "unreachable",
            ),
            ([direct(inside.address()), vec![strangers]].concat(), "not_listed"),
        ] {
            let told = set(&config, &settings).await.expect_err("it is no good");
            assert_eq!(told.0, code, "{settings:?}: {}", told.1);
            assert_eq!(std::fs::read_to_string(&kept).unwrap(), text, "{settings:?}");
        }
        assert_eq!(impostor.seen().1, 0, "nothing was said to the impostor");
        assert_eq!(standing(&tree).await, good, "the former settings are in use");
        let job = tree.run(MAIN, "all", &["true"]).await;
        assert_eq!(row(&job, tree.id("pc"))["state"], "succeeded");

        set(&config, &direct(inside.address())).await.expect("the server is there");
        tree.stands("osaka", "connected", Some("direct")).await;
        // A damaged file changes nothing either.
        std::fs::write(&kept, "host = 3").unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
        let now = standing(&tree).await;
        assert!(now.0.as_str().unwrap_or_default().contains(&inside.address().to_string()), "{now:?}");
        let reset = Configure { config: config.clone(), reset: true, ..Configure::default() };
        tokio::task::spawn_blocking(move || configure(&reset)).await.unwrap().unwrap();
        eventually("nothing is set any more", async || holds(standing(&tree).await.0.is_null(), standing(&tree).await))
            .await;
        impostor.stop().await;
        tree.stop().await;
    });
}

#[test]
fn rly_2_the_command_ends_with_2_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("relay.toml");
    let state = folder.path().join("state");
    std::fs::write(&config, format!("name = 'r'\nstate_dir = {state:?}\nbundle = '/nonexistent'\n")).unwrap();
    let config = config.display().to_string();
    for (args, told) in [
        (vec!["--config", &config, "host=gw", "prot=1"], "prot: no such key; did you mean \"port\"? (unknown_key)"),
        (
            vec!["--config", &config, "port=99999"],
            "host: it is required (missing)\nport: 99999 is not within 1 to 65535",
        ),
        (vec!["--config", &config, "host=gw"], "(bad_bundle)"),
        (vec!["--config", &config], "(bad_usage)"),
        (vec!["--config", &config, "--reset", "host=gw"], "(bad_usage)"),
        (vec!["--config", &config, "--frm", "x"], "(bad_usage)"),
        (vec!["--config", "/nonexistent", "host=gw"], "(unreadable)"),
    ] {
        let (text, code) = command(args.iter().map(|a| a.to_string()));
        assert_eq!(code, 2, "{args:?}");
        assert!(text.contains(told), "{args:?}: {text}");
    }
    assert!(!state.exists(), "nothing is left behind");
}
