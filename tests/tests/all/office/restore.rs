//! A server's state lost on a running installation, and restored by the command (OPS-7).

use super::*;
use branchline_tests::office::{eventually, until};

#[test]
fn ops_7_a_killed_servers_state_is_restored_and_no_job_runs_twice() {
    let office = start("satellite-office");
    let ids = device_ids(&office);
    let effects = office.folder().join("effects");
    std::fs::create_dir(&effects).unwrap();
    let script = office.folder().join("work.sh");
    let work = format!("echo started >> {}/$BRANCHLINE_DEVICE\necho done\n", effects.display());
    std::fs::write(&script, work).unwrap();
    let starts = |id: &str| std::fs::read_to_string(effects.join(id)).unwrap_or_default().lines().count();
    let run = |on: &str| office.json(&["run", "--on", on, "--script", script.to_str().unwrap()]);

    // Waits in the backup for a device that is away, and is run after it.
    office.hold_down("osaka-pc-03");
    let waits = text_of(&run(&format!("device:{}", ids["osaka-pc-03"])), "id");
    let made = office.json(&["backup", "--out", "hq.backup"]);
    assert_eq!((&made["term"], &made["name"]), (&1.into(), &"hq".into()), "{made}");
    let again = office.command(&["--json", "backup", "--out", "hq.backup"]);
    assert_eq!((again.code, again.json()["code"].clone()), (2, "already_exists".into()));
    office.let_start("osaka-pc-03");
    assert_eq!(office.completed(&waits, 90)["counts"]["succeeded"], 1);
    let gap = text_of(&run("site:roaming"), "id");
    assert_eq!(office.completed(&gap, 60)["counts"]["succeeded"], 2);
    let revoked = &ids["osaka-pc-05"];
    office.json(&["revoke", revoked]);
    // What nobody below has heard of dies with the server.
    eventually("its relay keeps the revoked device out", 60, || {
        office.log("osaka-pc-05").contains("revoked").then_some(())
    });

    office.hold_down("hq");
    let state = office.node_state("hq");
    let onto = office.command(&["--json", "restore", "hq.backup", "--state", state.to_str().unwrap()]);
    assert_eq!((onto.code, onto.json()["code"].clone()), (2, "state_not_empty".into()), "{onto:?}");
    std::fs::rename(&state, state.with_extension("lost")).unwrap();
    office.json(&["restore", "hq.backup", "--state", state.to_str().unwrap()]);
    office.let_start("hq");

    until("the restored server has listened", 120, || {
        let ran = office.command(&["--json", "recovery"]);
        let over = ran.code == 0 && ran.json()["recovering"].is_null();
        if over { Ok(()) } else { Err(format!("{ran:?}")) }
    });
    assert_eq!(office.json(&["recovery"])["term"], 2);
    office.online("all", 21, 120);
    assert_eq!(text(&office.device(revoked), "state_reason"), "revoked");
    assert_eq!(office.completed(&waits, 120)["counts"]["succeeded"], 1);
    assert_eq!(starts(&ids["osaka-pc-03"]), 1, "it ran in the gap, and not again");
    until("the job of the gap is back", 120, || {
        let ran = office.command(&["--json", "job", &gap]);
        let back = ran.code == 0 && ran.json()["counts"]["succeeded"] == 2;
        if back { Ok(()) } else { Err(ran.stdout) }
    });
    let new = text_of(&run("all"), "id");
    assert_eq!(office.completed(&new, 90)["counts"]["succeeded"], 21);
    assert_eq!((starts(revoked), starts(&ids["osaka-pc-03"]), starts(&ids["roaming-01"])), (0, 2, 2));
}

fn text_of(value: &Value, key: &str) -> String {
    text(value, key).to_string()
}
