//! What is measured, in which order: each reference right before what it is held against.

use crate::{
    Outcome,
    certs::Certs,
    machine, mqtt,
    nats::Nats,
    product::{Product, figure},
    proxy::{Kind, Proxy},
    stats::Sample,
    storage,
    table::{Figure, Row, Table, Target},
};
use serde_json::Value;
use std::{path::PathBuf, time::Duration};

/// How it is called.
pub const USAGE: &str = "usage: branchline-bench --product FILE [--json] [--quick] [--only WORD]
  --product FILE  the branchline command that is measured
  --json          for programs
  --quick         a tenth of the rounds, to see that it works: its figures say nothing
  --only WORD     only the groups whose name holds this word: fanout, tree, links, gateway, storm, inventory, lines";

/// Longest wait for a quiet machine before each piece of work.
const QUIET_WITHIN: Duration = Duration::from_secs(60);
/// Agents below the measured relay.
const AGENTS: usize = 300;

/// What was asked for.
pub struct Plan {
    /// JSON instead of a table.
    pub json: bool,
    quick: bool,
    only: Option<String>,
    product: Product,
}

/// One run.
struct Run<'p> {
    plan: &'p Plan,
    folder: tempfile::TempDir,
    certs: Certs,
    rows: Vec<Row>,
    noisy: usize,
}

impl Plan {
    /// From the command line.
    pub fn read(args: impl Iterator<Item = String>) -> Result<Plan, String> {
        let (mut json, mut quick, mut only, mut exe) = (false, false, None, None);
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg.as_str() {
                "--json" => json = true,
                "--quick" => quick = true,
                "--only" => only = Some(value()?),
                "--product" => exe = Some(PathBuf::from(value()?)),
                other => return Err(format!("{other} is no option")),
            }
        }
        let exe = exe.ok_or("--product is missing")?;
        let exe = exe.canonicalize().map_err(|e| format!("--product {}: {e}", exe.display()))?;
        Ok(Plan { json, quick, only, product: Product { exe } })
    }

    fn wants(&self, group: &str) -> bool {
        self.only.as_ref().is_none_or(|word| group.contains(word.as_str()))
    }

    /// So many, or a tenth.
    fn rounds(&self, full: u64) -> u64 {
        if self.quick { (full / 10).max(2) } else { full }
    }

    /// All of it. A piece that fails is a row that says why.
    pub async fn measure(&self) -> Outcome<Table> {
        let folder = tempfile::tempdir()?;
        let certs = Certs::make(folder.path())?;
        let mut run = Run { plan: self, folder, certs, rows: Vec::new(), noisy: 0 };
        if self.wants("fanout") {
            run.fan_out().await;
        }
        if self.wants("tree") {
            run.tree().await;
        }
        if self.wants("links") {
            run.links().await;
        }
        if self.wants("gateway") {
            run.gateway().await;
        }
        if self.wants("storm") {
            run.storm().await;
        }
        if self.wants("inventory") {
            run.inventory().await;
        }
        if self.wants("lines") {
            run.lines().await;
        }
        let about = vec![
            ("machine", format!("{} x {}", machine::cores(), machine::processor())),
            ("rounds", if self.quick { "a tenth (--quick): these figures say nothing" } else { "full" }.into()),
            ("not quiet", format!("before {} measurements the machine was not 85 % idle within a minute", run.noisy)),
        ];
        Ok(Table { about, rows: run.rows })
    }
}

fn told<T>(outcome: Outcome<T>) -> Result<T, String> {
    outcome.map_err(|e| e.to_string())
}

fn of(told: &Result<Value, String>, path: &str) -> Figure {
    told.as_ref().map_err(String::clone).and_then(|value| figure(value, path).map_err(|e| e.to_string()))
}

impl Run<'_> {
    fn row(
        &mut self,
        work: &str,
        unit: &'static str,
        ours: Figure,
        references: Vec<(&'static str, Figure)>,
        target: Target,
    ) {
        // Whoever breaks off a run of hours has what was measured.
        eprintln!(
            "measured: {work}: {}",
            ours.as_ref().map_or_else(String::clone, |figure| format!("{figure:.3} {unit}"))
        );
        self.rows.push(Row { work: work.into(), unit, ours, range: None, references, target });
    }

    async fn quiet(&mut self) {
        if !machine::quiet(QUIET_WITHIN).await {
            self.noisy += 1;
        }
    }

    /// Our own command, on a quiet machine.
    async fn load(&mut self, args: &str) -> Result<Value, String> {
        self.quiet().await;
        let args: Vec<&str> = args.split(' ').collect();
        told(self.plan.product.load(self.folder.path(), &args))
    }

    /// Row 1 and 2: a question to 300, its answers durable at the server.
    async fn fan_out(&mut self) {
        self.quiet().await;
        let rounds = self.plan.rounds(200);
        let nats = match told(Nats::start(&self.certs, self.folder.path())) {
            Ok(nats) => told(nats.fan_out(AGENTS, rounds).await),
            Err(why) => Err(why),
        };
        let nats_of = |take: &dyn Fn(&crate::nats::FanOut) -> f64| nats.as_ref().map(take).map_err(String::clone);
        let ms: [Figure; 2] = [nats_of(&|n| n.ms.median()), nats_of(&|n| n.ms.at(0.99))];
        let cpu = nats_of(&|n| n.cpu_s_per_1000);
        let (idle, loaded) = (nats_of(&|n| n.rss_kib_per_link.0), nats_of(&|n| n.rss_kib_per_link.1));
        let rounds = self.plan.rounds(100);
        for (who, more, times) in [
            ("agents that neither check nor journal", " --unverified-agents --volatile-agents", 1.2),
            ("whole agents", "", 4.0),
        ] {
            let load = self.load(&format!("--mode fanout --relays 1 --agents {AGENTS} --rounds {rounds}{more}")).await;
            let range = of(&load, "min_ms").ok().zip(of(&load, "max_ms").ok());
            for (name, path, reference) in [("p50", "p50_ms", &ms[0]), ("p99", "p99_ms", &ms[1])] {
                let work = format!("fanout, 300 {who}, {name}");
                self.row(&work, "ms", of(&load, path), vec![("NATS", reference.clone())], Target::Times(times));
                self.rows.last_mut().expect("just added").range = range;
            }
            let parts = ["server", "gateway", "relay"].map(|part| of(&load, &format!("cpu_s_per_1000.{part}")));
            let sum = parts.iter().cloned().sum::<Figure>();
            let work = format!("fanout, 300 {who}, CPU of server, gateway and relay");
            self.row(&work, "s/1000 results", sum, vec![("NATS", cpu.clone())], Target::AtMost(0.020));
            for (part, figure) in ["server", "gateway", "relay"].into_iter().zip(parts) {
                self.row(&format!("  of it the {part}"), "s/1000 results", figure, vec![], Target::None);
            }
            let agents = of(&load, "cpu_s_per_1000.agents");
            self.row("  beside it the agents", "s/1000 results", agents, vec![], Target::None);
        }
        self.row("NATS leaf, a link before and after load", "KiB RSS", loaded, vec![("before", idle)], Target::None);
    }

    /// Rows 3 and 4: trees of many relays.
    async fn tree(&mut self) {
        self.quiet().await;
        let gathered = match told(Nats::start(&self.certs, self.folder.path())) {
            Ok(nats) => told(nats.gather(AGENTS, AGENTS).await),
            Err(why) => Err(why),
        };
        let nats = |take: fn(&(f64, f64)) -> f64| gathered.as_ref().map(take).map_err(String::clone);
        let seconds = nats(|g| g.0);
        self.row("NATS, 90,000 answers of 512 B to one subscriber, wall", "s", seconds, vec![], Target::None);
        let mut at_300: Option<Figure> = None;
        for relays in [1, 30, 300] {
            let devices = relays * 300;
            let rounds = if relays == 1 { 20 } else { 3 };
            let load = self
                .load(&format!(
                    "--mode fanout --relays {relays} --agents 300 --rounds {rounds} --volatile-agents --unverified-agents"
                ))
                .await;
            let server = of(&load, "cpu_s_per_1000.server");
            let work = format!("server CPU a result, {devices} devices");
            match &at_300 {
                None => self.row(&work, "s/1000 results", server.clone(), vec![], Target::None),
                Some(first) => {
                    let references = vec![("300 devices", Figure::clone(first))];
                    self.row(&work, "s/1000 results", server.clone(), references, Target::Within(0.15));
                }
            }
            at_300.get_or_insert_with(|| server.clone());
            if relays == 300 {
                let cpu = server.map(|s| s * 90.0);
                self.row("fanout to 90,000, server CPU", "s", cpu, vec![("NATS", nats(|g| g.1))], Target::AtMost(1.0));
                let rss = of(&load, "rss_bytes.server").map(|bytes| bytes / 1e6);
                self.row("fanout to 90,000, server memory", "MB RSS", rss, vec![], Target::AtMost(300.0));
            }
        }
    }

    /// Rows 5 and 6, memory of idle links.
    async fn links(&mut self) {
        self.quiet().await;
        let (folder, certs) = (self.folder.path().to_owned(), &self.certs);
        let count = if self.plan.quick { 200 } else { 2_000 };
        let mosquitto = told(mqtt::idle(certs, &folder, count).await);
        let mut proxies = Vec::new();
        for kind in [Kind::Haproxy, Kind::Nginx] {
            let links = match told(Proxy::start(kind, certs, &folder, false)) {
                Ok(proxy) => told(proxy.links(count).await),
                Err(why) => Err(why),
            };
            proxies.push(links);
        }
        let rss = |n: usize| proxies[n].as_ref().map(|l| l.rss_kib).map_err(String::clone);
        let cpu = |n: usize| proxies[n].as_ref().map(|l| l.cpu_s_per_1000).map_err(String::clone);
        let (rss, cpu) = ([rss(0), rss(1)], [cpu(0), cpu(1)]);
        let load =
            self.load(&format!("--mode links --relays 1 --agents {count} --volatile-agents --timeout 900s")).await;
        let kib = |part: &str| of(&load, &format!("rss_per_link_bytes.{part}")).map(|bytes| bytes / 1024.0);
        let relay = vec![("Mosquitto", mosquitto), ("HAProxy", rss[0].clone()), ("nginx", rss[1].clone())];
        let (of_relay, of_gateway, of_server) = (kib("relay"), kib("gateway"), kib("server"));
        self.row("relay, an idle device link", "KiB RSS", of_relay, relay, Target::AtMost(12.0));
        let gateway = vec![("HAProxy", rss[0].clone()), ("nginx", rss[1].clone())];
        self.row("gateway, an idle link", "KiB RSS", of_gateway, gateway, Target::AtMost(22.0));
        self.row("server, an idle device link", "KiB RSS", of_server, vec![], Target::None);
        let cpu = vec![("HAProxy", cpu[0].clone()), ("nginx", cpu[1].clone())];
        let load = self.load("--mode storm --below gateway --agents 1000 --volatile-agents").await;
        let ours = of(&load, "cpu_s_per_1000.gateway");
        self.row("gateway, CPU of 1,000 new links", "s", ours, cpu, Target::AtMost(0.30));
    }

    /// Row 7: bulk.
    async fn gateway(&mut self) {
        let folder = self.folder.path().to_owned();
        let mut rates: Vec<Result<Sample, String>> = Vec::new();
        for kind in [Kind::Nginx, Kind::Haproxy] {
            self.quiet().await;
            let rate = match told(Proxy::start(kind, &self.certs, &folder, false)) {
                Ok(proxy) => told(proxy.bulk(if self.plan.quick { 2 } else { 7 }, 400).await),
                Err(why) => Err(why),
            };
            rates.push(rate);
        }
        let median = |n: usize| rates[n].as_ref().map(Sample::median).map_err(String::clone);
        let references = vec![("nginx", median(0)), ("HAProxy", median(1))];
        let why = "bulk links carry nothing yet: content is not built".to_owned();
        self.row("bulk through the gateway", "MB/s", Err(why), references, Target::AtLeast(1_000.0));
    }

    /// Row 8: everybody comes back at once.
    async fn storm(&mut self) {
        let agents = if self.plan.quick { 300 } else { 3_000 };
        let load =
            self.load(&format!("--mode storm --relays 1 --agents {agents} --volatile-agents --timeout 1800s")).await;
        let seconds = of(&load, "total_ms").map(|ms| ms / 1_000.0);
        let target = if self.plan.quick { Target::None } else { Target::AtMost(4.0) };
        self.row(&format!("storm, {agents} agents lost and back"), "s", seconds, vec![], target);
    }

    /// Row 9: inventory.
    async fn inventory(&mut self) {
        self.quiet().await;
        let agents = if self.plan.quick { 100 } else { 1_000 };
        let sqlite = Sample::of((0..5).filter_map(|_| storage::sqlite(self.folder.path(), agents, 200).ok()));
        let alone = if sqlite.len() == 5 { Ok(sqlite.median()) } else { Err("SQLite alone failed".to_owned()) };
        let load = self.load(&format!("--mode inventory --relays 1 --agents {agents} --timeout 1800s")).await;
        let full = of(&load, "first_full.total_ms").map(|ms| ms / 1_000.0);
        self.row(
            "inventory, 1,000 x 200 packages, first full",
            "s",
            full,
            vec![("SQLite", alone)],
            Target::AtMost(1.0),
        );
        let bytes = |part: &str| of(&load, &format!("{part}.branch_line_bytes_per_device"));
        let (again, changed) = (bytes("reconnect"), bytes("one_changed"));
        self.row("inventory, unchanged reconnect, a device", "B", again, vec![], Target::AtMost(200.0));
        self.row("inventory, one package changed, a device", "B", changed, vec![], Target::AtMost(1_000.0));
    }

    /// What users see on lines that are not loopback.
    async fn lines(&mut self) {
        for (work, more) in [
            ("fanout, 300 agents, 5 % of the chunks 50 ms late", "--late 5%:50ms"),
            ("fanout, 300 agents, branch line of 10 Mbit/s", "--branch-line 10mbit"),
        ] {
            let rounds = self.plan.rounds(50);
            let load = self.load(&format!("--mode fanout --relays 1 --agents {AGENTS} --rounds {rounds} {more}")).await;
            let range = of(&load, "min_ms").ok().zip(of(&load, "max_ms").ok());
            for (name, path) in [("p50", "p50_ms"), ("p99", "p99_ms")] {
                self.row(&format!("{work}, {name}"), "ms", of(&load, path), vec![], Target::None);
                self.rows.last_mut().expect("just added").range = range;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Plan, String> {
        Plan::read(args.iter().map(|arg| arg.to_string()))
    }

    #[test]
    fn a_command_line_is_understood_or_refused_by_its_word() {
        let Ok(plan) = read(&["--product", "/proc/self/exe", "--quick", "--only", "fan"]) else { panic!("a good one") };
        assert!(plan.quick && !plan.json && plan.wants("fanout") && !plan.wants("links"));
        assert_eq!((plan.rounds(200), plan.rounds(5)), (20, 2));
        for (args, word) in
            [(&["--fast"][..], "--fast"), (&["--only"], "--only"), (&[], "--product"), (&["--product", "/x"], "/x")]
        {
            let wrong = read(args).err().expect("a bad one");
            assert!(wrong.contains(word), "{wrong}");
        }
    }
}
