//! The faults that were measured on the alternatives, with ten agents each: Salt's syndic killed in mid-returns lost 6
//! of 10 results and killed while minions answered 10 of 10; a job sent while its link was refused never ran and nobody
//! was told; MeshCentral's server killed in mid-job lost 10 of 10.

use super::*;
use branchline_tests::{
    chaos::{Ordered, Work},
    office::until,
    proxy::{Cut, Whom},
};
use serde_json::Value;
use std::time::Duration;

const AGENTS: usize = 10;

/// A branch of ten behind one relay, and one job whose runs go on until each one's gate is opened.
struct Branch {
    plant: Plant,
    effects: PathBuf,
    gates: PathBuf,
    job: String,
}

impl Branch {
    /// Started, with nothing ordered.
    fn start() -> Branch {
        let plant = Plant::start(exe(), &topology(&[("branch", "dmz")], &[("pc", AGENTS, "branch")]));
        let (effects, gates) = (effects(&plant), plant.folder().join("gates"));
        std::fs::create_dir(&gates).expect("a folder for gates");
        Branch { plant, effects, gates, job: String::new() }
    }

    fn order(&mut self) {
        let wait = format!("while [ ! -e {}/$BRANCHLINE_DEVICE ]; do sleep 0.05; done", self.gates.display());
        let work = Work { then: wait, ..Work::plain("measured", "all", 0, 0) };
        let (status, job) = self.plant.tell("/jobs", &work.body(&self.effects)).expect("the server answers");
        assert_eq!(status, 201, "{job}");
        self.job = job["id"].as_str().expect("an id").to_string();
    }

    /// Ordered, and begun by all ten.
    fn all_in_mid_job() -> Branch {
        let mut branch = Branch::start();
        branch.order();
        until("all ten have begun", 120, || {
            let begun = branch.plant.of("agent").filter(|agent| branch.effects.join(&agent.id).exists()).count();
            if begun == AGENTS { Ok(()) } else { Err(format!("{begun} have")) }
        });
        branch
    }

    /// Lets these end.
    fn open_gates(&self, agents: std::ops::Range<usize>) {
        let ids: Vec<String> = self.plant.of("agent").map(|agent| agent.id.clone()).collect();
        ids[agents].iter().for_each(|id| std::fs::write(self.gates.join(id), "").expect("a gate"));
    }

    fn shown(&self) -> Value {
        self.plant.ask(&format!("/jobs/{}", self.job)).unwrap_or_default()
    }

    /// All ten came, and each ran once.
    fn ten_of_ten(mut self, fault: &str) {
        let shown = self.plant.completed(&self.job, 240);
        assert_eq!(shown["counts"]["succeeded"], AGENTS, "{fault}: {shown}");
        self.plant.all_online(120);
        let ordered = vec![Ordered { key: "measured".into(), id: Some(self.job.clone()) }];
        let done = Done { ordered, ..Done::default() };
        let found = accounts(&mut self.plant, &done, &self.effects, fault);
        assert_eq!((found.pairs.len(), found.pairs.iter().map(|p| p.lines).sum::<usize>()), (AGENTS, AGENTS));
        println!("measured: {fault}: 0 of {AGENTS} lost");
    }
}

#[test]
fn a_relay_killed_in_mid_returns_loses_0_of_10() {
    let _alone = alone();
    let branch = Branch::all_in_mid_job();
    branch.open_gates(0..4);
    until("the first returns came", 120, || {
        let told = branch.shown()["counts"]["succeeded"].as_u64().unwrap_or(0);
        if told >= 1 { Ok(()) } else { Err(told.to_string()) }
    });
    branch.open_gates(4..AGENTS);
    assert!(branch.plant.process("branch").signal(libc::SIGKILL));
    branch.ten_of_ten("relay killed in mid-returns");
}

#[test]
fn a_relay_killed_while_agents_answer_loses_0_of_10() {
    let _alone = alone();
    let branch = Branch::all_in_mid_job();
    branch.open_gates(0..AGENTS);
    assert!(branch.plant.process("branch").hold_down());
    // All ten end meanwhile, and find nobody to tell.
    std::thread::sleep(Duration::from_secs(2));
    branch.plant.process("branch").let_start(vec![]);
    branch.ten_of_ten("relay killed while agents answer");
}

#[test]
fn a_job_sent_while_the_link_is_refused_loses_0_of_10() {
    let _alone = alone();
    let mut branch = Branch::start();
    let (proxy, _) = branch.plant.link("branch");
    proxy.refuse(true);
    assert!(proxy.cut(Whom::All, Cut::Reset) >= 1);
    branch.order();
    branch.open_gates(0..AGENTS);
    std::thread::sleep(Duration::from_secs(2));
    // Whoever asks is told that nobody has it yet.
    assert_eq!(branch.shown()["counts"]["queued"], AGENTS, "{}", branch.shown());
    branch.plant.link("branch").0.refuse(false);
    branch.ten_of_ten("job sent while the link is refused");
}

#[test]
fn a_server_killed_in_mid_job_loses_0_of_10() {
    let _alone = alone();
    let branch = Branch::all_in_mid_job();
    assert!(branch.plant.process("hq").hold_down());
    branch.open_gates(0..AGENTS);
    std::thread::sleep(Duration::from_secs(1));
    branch.plant.process("hq").let_start(vec![]);
    branch.ten_of_ten("server killed in mid-job");
}
