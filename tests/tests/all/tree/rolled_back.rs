//! A device whose disk is put back to an older state goes on in another epoch (DESIGN 5).

use super::{MAIN, SHIM};
use branchline_agent::platform::host;
use branchline_tests::tree::{RelayWish, Tree, count, eventually, holds, logs, row, scenario, script};
use std::path::Path;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => copy(&entry.path(), &target),
            kind if kind.is_file() => drop(std::fs::copy(entry.path(), target).unwrap()),
            _ => {}
        }
    }
}

#[test]
fn job_13_a_rolled_back_device_answers_unknown_for_what_it_forgot_and_goes_on_in_another_epoch() {
    scenario(async {
        let mut tree = Tree::start(SHIM, &[MAIN]).await;
        tree.relay(MAIN, "osaka", "server", RelayWish::default()).await;
        for (name, parent) in [("pc-01", "osaka"), ("pc-02", "server")] {
            tree.agent(MAIN, name, parent, host()).await;
            tree.online(MAIN, [name]).await;
            assert_eq!(count(&tree.run(MAIN, &format!("device:{name}"), &["true"]).await, "succeeded"), 1);
            tree.stop_agent(name).await;
            let (folder, older) = (tree.folder(name), tree.folder(&format!("{name}-older")));
            copy(&folder, &older);
            tree.start_agent(name).await;
            tree.online(MAIN, [name]).await;
            let id = tree.id(name);
            let marks = tree.folder(&format!("{name}-marks"));
            let text = format!("echo begun >> {}; sleep 20", marks.display());
            let job = tree.order(MAIN, &format!("device:{name}"), script(&text), 60).await;
            eventually("it runs", async || holds(marks.exists(), &marks)).await;
            let known = job["id"].as_str().unwrap().to_string();
            eventually("the server knows that the device has it", async || {
                let job = tree.api(MAIN).get(format!("/api/v1/jobs/{known}")).await.good();
                holds(count(&job, "queued") == 0, &job["counts"])
            })
            .await;
            tree.stop_agent(name).await;
            std::fs::remove_dir_all(&folder).unwrap();
            copy(&older, &folder);
            tree.start_agent(name).await;
            let job = tree.completed(MAIN, &job).await;
            let row = row(&job, id);
            assert_eq!(
                (&row["state"], &row["reason"]),
                (&"outcome_unknown".into(), &"rolled_back".into()),
                "{name}: {job}"
            );
            // It is told so by its first link, and reads it although it has something to say itself.
            let told = logs::lines_with(&["an older link came up late", &id.to_string()]).len();
            assert_eq!(told, 1, "{name}: as often as one link is refused");
            let rows = tree.server().store().nodes().await.expect("the store answers");
            assert_eq!(rows.iter().find(|row| row.id == id).map(|row| row.epoch), Some(2), "{name}");
            tree.online(MAIN, [name]).await;
            let next = tree.run(MAIN, &format!("device:{name}"), &["true"]).await;
            assert_eq!(count(&next, "succeeded"), 1, "{name}: {next}");
            assert_eq!(std::fs::read_to_string(&marks).unwrap(), "begun\n", "{name}: it ran once");
            // Its epoch is on its disk.
            tree.stop_agent(name).await;
            tree.start_agent(name).await;
            tree.online(MAIN, [name]).await;
            assert_eq!(count(&tree.run(MAIN, &format!("device:{name}"), &["true"]).await, "succeeded"), 1, "{name}");
        }
        tree.stop().await;
    });
}
