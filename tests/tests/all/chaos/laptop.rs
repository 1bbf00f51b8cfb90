//! S-3's job part between processes: a laptop leaves the branch and comes back while its job runs, and the other way round.

use super::*;
use branchline_tests::{
    chaos::{Ordered, Work},
    office::until,
    proxy::{Cut, Whom},
};
use serde_json::Value;

struct Journey {
    plant: Plant,
    effects: PathBuf,
    gates: PathBuf,
    laptop: String,
    ordered: Vec<Ordered>,
}

impl Journey {
    /// Below the branch's relay, beside a machine that stays.
    fn begins() -> Journey {
        let plant = Plant::start(exe(), &topology(&[("branch", "dmz")], &[("pc", 2, "branch")]));
        let laptop = plant.of("agent").next().expect("two were started").name.clone();
        plant.let_roam(&laptop);
        let (effects, gates) = (effects(&plant), plant.folder().join("gates"));
        std::fs::create_dir(&gates).expect("a folder for gates");
        let journey = Journey { plant, effects, gates, laptop, ordered: Vec::new() };
        journey.is_reached(&["dmz", "branch"]);
        journey
    }

    /// The server shows it there, online.
    fn is_reached(&self, path: &[&str]) {
        until(&format!("{} is reached by {path:?}", self.laptop), 120, || {
            let device = self.plant.ask(&format!("/devices/{}", self.laptop)).unwrap_or_default();
            let by: Vec<&str> = device["path"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let there = device["state"] == "online" && by == path;
            if there { Ok(()) } else { Err(format!("{} by {by:?}", device["state"])) }
        });
    }

    /// The branch's network is gone; outside there is the gateway.
    fn goes_out(&self) {
        self.plant.proxy("branch").refuse(true);
        self.plant.proxy("branch").cut(self.whom(), Cut::Reset);
        self.is_reached(&["dmz"]);
    }

    /// It is in the branch again, and what it had outside is dead.
    fn comes_in(&self) {
        self.plant.proxy("branch").refuse(false);
        self.is_reached(&["dmz", "branch"]);
        self.plant.proxy("dmz").cut(self.whom(), Cut::Reset);
    }

    fn whom(&self) -> Whom {
        Whom::From(self.plant.node(&self.laptop).ip)
    }

    /// Orders a job that ends when its gate is opened, and waits until it has begun.
    fn order(&mut self, key: &str) -> String {
        let wait = format!("while [ ! -e {}/{key} ]; do sleep 0.05; done", self.gates.display());
        let work = Work { then: wait, ..Work::plain(key, &format!("device:{}", self.laptop), 0, 0) };
        let (status, job) = self.plant.tell("/jobs", &work.body(&self.effects)).expect("the server answers");
        assert_eq!(status, 201, "{job}");
        let id = job["id"].as_str().expect("an id").to_string();
        self.ordered.push(Ordered { key: key.into(), id: Some(id.clone()) });
        let marks = self.effects.join(&self.plant.node(&self.laptop).id);
        until("it has begun", 60, || {
            let lines = std::fs::read_to_string(&marks).unwrap_or_default();
            if lines.lines().any(|line| line == key) { Ok(()) } else { Err(lines) }
        });
        id
    }

    /// It is under way still; its gate is opened; it comes to one result.
    fn ends(&self, key: &str, job: &str) {
        let open = self.plant.ask(&format!("/jobs/{job}")).expect("the server answers");
        assert_eq!(open["complete"], false, "nobody has ended it: {open}");
        std::fs::write(self.gates.join(key), "").expect("a gate");
        let done = self.plant.completed(job, 120);
        let result = &done["results"][0];
        assert_eq!((&result["state"], &result["stdout"]), (&"succeeded".into(), &format!("{key}\n").into()), "{done}");
        assert_ne!(result["late"], true, "{done}");
    }
}

#[test]
fn s_3_top_7_a_laptop_that_moves_while_its_jobs_run_brings_one_result_of_each() {
    let _alone = alone();
    let mut journey = Journey::begins();
    let inside = journey.order("inside");
    journey.goes_out();
    journey.comes_in();
    journey.ends("inside", &inside);

    journey.goes_out();
    let outside = journey.order("outside");
    journey.comes_in();
    journey.goes_out();
    journey.ends("outside", &outside);

    journey.plant.proxy("branch").refuse(false);
    journey.plant.all_online(120);
    let done = Done { ordered: std::mem::take(&mut journey.ordered), ..Done::default() };
    let found = accounts(&mut journey.plant, &done, &journey.effects, "a laptop that moves");
    assert_eq!(found.pairs.iter().map(|p| p.lines).collect::<Vec<_>>(), [1, 1], "each ran once");
}
