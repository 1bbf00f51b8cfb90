//! What is measured, in which order: each reference right before what it is held against.

use crate::{
    Outcome, bulk,
    certs::Certs,
    machine, mqtt,
    nats::Nats,
    product::{Product, figure},
    proxy::{Kind, Links, Proxy},
    stats::Sample,
    storage,
    table::{Figure, Measured, Row, Table, Target},
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
/// MiB of one transfer.
const BULK_MIB: u32 = 400;

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

/// One of the others by its name, with what came of it.
type Named<T> = (&'static str, Result<T, String>);
/// RSS or PSS of both.
type Taken = fn(&(f64, f64)) -> f64;

fn told<T>(outcome: Outcome<T>) -> Result<T, String> {
    outcome.map_err(|e| e.to_string())
}

fn of(told: &Result<Value, String>, path: &str) -> Figure {
    let found = told.as_ref().map_err(String::clone);
    found.and_then(|value| figure(value, path).map(Measured::once).map_err(|e| e.to_string()))
}

/// The figure with the range of all rounds.
fn of_rounds(told: &Result<Value, String>, path: &str) -> Figure {
    let range = of(told, "min_ms").ok().zip(of(told, "max_ms").ok()).map(|(low, high)| (low.value, high.value));
    of(told, path).map(|measured| Measured { range, ..measured })
}

fn times(figure: Figure, factor: f64) -> Figure {
    let scale =
        |m: Measured| Measured { value: m.value * factor, range: m.range.map(|(a, b)| (a * factor, b * factor)) };
    figure.map(scale)
}

/// What is taken from an outcome, or why there is none.
fn from<T>(told: &Result<T, String>, take: impl FnOnce(&T) -> f64) -> Figure {
    told.as_ref().map(|outcome| Measured::once(take(outcome))).map_err(String::clone)
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
            ours.as_ref().map_or_else(String::clone, |m| format!("{:.3} {unit}", m.value))
        );
        self.rows.push(Row { work: work.into(), unit, ours: Some(ours), references, target });
    }

    /// What others do where there is nothing of ours to hold against it.
    fn others(&mut self, work: &str, unit: &'static str, references: Vec<(&'static str, Figure)>) {
        self.rows.push(Row { work: work.into(), unit, ours: None, references, target: Target::None });
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

    fn nats(&self) -> Result<Nats, String> {
        told(Nats::start(&self.certs, self.folder.path()))
    }

    fn proxy(&self, kind: Kind, asks: bool) -> Result<Proxy, String> {
        told(Proxy::start(kind, &self.certs, self.folder.path(), asks))
    }

    /// Row 1 and 2: a question to 300, its answers durable at the server.
    async fn fan_out(&mut self) {
        self.quiet().await;
        let synced = told(storage::synced_writes(self.folder.path(), 200));
        let synced = synced.map(|sample| sample.measured());
        self.others("a write of 4 KiB and its sync", "ms", vec![("this disk", synced)]);
        let rounds = self.plan.rounds(200);
        let nats = match self.nats() {
            Ok(nats) => told(nats.fan_out(AGENTS, rounds).await),
            Err(why) => Err(why),
        };
        let range = |n: &crate::nats::FanOut| Some((n.ms.at(0.0), n.ms.at(1.0)));
        let ms = [0.5, 0.99].map(|part| {
            nats.as_ref().map(|n| Measured { value: n.ms.at(part), range: range(n) }).map_err(String::clone)
        });
        let cpu = from(&nats, |n| n.cpu_s_per_1000);
        let rounds = self.plan.rounds(100);
        for (who, more, bound) in [
            ("agents that neither check nor journal", " --unverified-agents --volatile-agents", 1.2),
            ("whole agents", "", 4.0),
        ] {
            let load = self.load(&format!("--mode fanout --relays 1 --agents {AGENTS} --rounds {rounds}{more}")).await;
            for (name, path, reference) in [("p50", "p50_ms", &ms[0]), ("p99", "p99_ms", &ms[1])] {
                let work = format!("fanout, 300 {who}, {name}");
                self.row(&work, "ms", of_rounds(&load, path), vec![("NATS", reference.clone())], Target::Times(bound));
            }
            let work = format!("fanout, 300 {who}, p50 until the client has a row of each");
            self.row(&work, "ms", of(&load, "read_p50_ms"), vec![], Target::None);
            let parts = ["server", "gateway", "relay"].map(|part| of(&load, &format!("cpu_s_per_1000.{part}")));
            let values = parts.iter().map(|part| part.as_ref().map(|m| m.value).map_err(String::clone));
            let sum = values.sum::<Result<f64, String>>().map(Measured::once);
            let work = format!("fanout, 300 {who}, CPU of server, gateway and relay");
            self.row(&work, "s/1000 results", sum, vec![("NATS", cpu.clone())], Target::AtMost(0.020));
            for (part, figure) in ["server", "gateway", "relay"].into_iter().zip(parts) {
                self.row(&format!("  of it the {part}"), "s/1000 results", figure, vec![], Target::None);
            }
            let agents = of(&load, "cpu_s_per_1000.agents");
            self.row("  beside it the agents", "s/1000 results", agents, vec![], Target::None);
        }
        let loaded = from(&nats, |n| n.rss_kib_per_link);
        self.others("a link of 300 after load", "KiB RSS", vec![("NATS", loaded)]);
    }

    /// Rows 3 and 4: trees of many relays.
    async fn tree(&mut self) {
        self.quiet().await;
        let gathered = match self.nats() {
            Ok(nats) => told(nats.gather(AGENTS, AGENTS).await),
            Err(why) => Err(why),
        };
        let seconds = from(&gathered, |g| g.0);
        self.others("90,000 answers of 512 B to one subscriber, wall", "s", vec![("NATS", seconds)]);
        let mut at_300: Option<Figure> = None;
        for relays in [1, 30, 300] {
            let devices = relays * 300;
            let rounds = if relays == 1 { 20 } else { 3 };
            let load = self
                .load(&format!(
                    "--mode fanout --relays {relays} --agents 300 --rounds {rounds} --volatile-agents --unverified-agents"
                ))
                .await;
            for (what, path) in [("all results durable", "p50_ms"), ("the client has a row of each", "read_p50_ms")] {
                let figure = times(of(&load, path), 1e-3);
                self.row(&format!("fanout to {devices}, until {what}"), "s", figure, vec![], Target::None);
            }
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
                let nats = from(&gathered, |g| g.1);
                let cpu = times(server, 90.0);
                self.row("fanout to 90,000, server CPU", "s", cpu, vec![("NATS", nats)], Target::AtMost(1.0));
                let rss = times(of(&load, "rss_bytes.server"), 1e-6);
                self.row("fanout to 90,000, server memory", "MB RSS", rss, vec![], Target::AtMost(300.0));
            }
        }
    }

    /// Rows 5 and 6, memory of idle links, and what new ones cost the gateway.
    async fn links(&mut self) {
        let count = if self.plan.quick { 200 } else { 2_000 };
        self.quiet().await;
        let mosquitto = told(mqtt::idle(&self.certs, self.folder.path(), count).await);
        let nats = match self.nats() {
            Ok(nats) => told(nats.idle(count).await),
            Err(why) => Err(why),
        };
        let mut proxies: Vec<Named<Links>> = Vec::new();
        for (name, kind, asks) in [
            ("HAProxy", Kind::Haproxy, false),
            ("nginx", Kind::Nginx, false),
            ("nginx, client certificates", Kind::Nginx, true),
        ] {
            let links = match self.proxy(kind, asks) {
                Ok(proxy) => told(proxy.links(count).await),
                Err(why) => Err(why),
            };
            proxies.push((name, links));
        }
        let load =
            self.load(&format!("--mode links --relays 1 --agents {count} --volatile-agents --timeout 900s")).await;
        let kinds: [(&'static str, &str, Taken); 2] =
            [("KiB RSS", "rss", |kib| kib.0), ("KiB PSS", "pss", |kib| kib.1)];
        for (unit, key, take) in kinds {
            let ours = |part: &str| times(of(&load, &format!("{key}_per_link_bytes.{part}")), 1.0 / 1_024.0);
            let bound = |bound| if key == "rss" { Target::AtMost(bound) } else { Target::None };
            let outer: Vec<(&'static str, Figure)> =
                proxies[..2].iter().map(|(name, links)| (*name, from(links, |l| take(&l.kib)))).collect();
            let brokers = vec![("Mosquitto", from(&mosquitto, take)), ("NATS", from(&nats, take))];
            let relay = [brokers, outer.clone()].concat();
            self.row("relay, an idle device link", unit, ours("relay"), relay, bound(12.0));
            let idle = |part: &str| vec![("idle", ours(part))];
            let again = Target::Times(1.2);
            self.row("relay, an idle device link after load", unit, ours("relay_after_load"), idle("relay"), again);
            self.row("gateway, an idle link", unit, ours("gateway"), outer, bound(22.0));
            self.row("gateway, an idle link after load", unit, ours("gateway_after_load"), idle("gateway"), again);
            self.row("server, an idle device link", unit, ours("server"), vec![], Target::None);
            self.row("server, a device behind a relay", unit, ours("server_behind_relay"), vec![], Target::None);
        }
        let agents = if self.plan.quick { 100 } else { 1_000 };
        let load = self.load(&format!("--mode storm --below gateway --agents {agents} --volatile-agents")).await;
        let ours = of(&load, "cpu_s_per_1000.gateway");
        let cpu = proxies.iter().map(|(name, links)| (*name, from(links, |l| l.cpu_s_per_1000))).collect();
        self.row("gateway, CPU of 1,000 new links", "s", ours, cpu, Target::AtMost(0.30));
    }

    /// Row 7: bulk.
    async fn gateway(&mut self) {
        let runs = if self.plan.quick { 2 } else { 7 };
        let mut others: Vec<Named<(Sample, f64)>> = Vec::new();
        for (name, kind) in [("nginx", Kind::Nginx), ("HAProxy", Kind::Haproxy)] {
            self.quiet().await;
            let told = match self.proxy(kind, false) {
                Ok(proxy) => told(proxy.bulk(runs, BULK_MIB as usize).await),
                Err(why) => Err(why),
            };
            others.push((name, told));
        }
        let rates =
            others.iter().map(|(name, told)| (*name, told.as_ref().map(|(s, _)| s.measured()).map_err(String::clone)));
        let rates: Vec<(&'static str, Figure)> = rates.collect();
        let cpu: Vec<(&'static str, Figure)> = others.iter().map(|(name, told)| (*name, from(told, |t| t.1))).collect();
        for (way, towards) in [(bulk::Way::Down, "to the child"), (bulk::Way::Up, "to the server")] {
            self.quiet().await;
            let gateway = self.plan.product.exe.with_file_name("branchline-gateway");
            let ours = told(bulk::through(&gateway, self.folder.path(), way, runs, BULK_MIB).await);
            let rate = ours.as_ref().map(|b| b.rates.measured()).map_err(String::clone);
            let work = format!("bulk through the gateway {towards}");
            self.row(&work, "MB/s", rate, rates.clone(), Target::AtLeast(1_000.0));
            let own = from(&ours, |b| b.gateway_cpu_s);
            self.row("  CPU of the gateway for it", "s/GB", own, cpu.clone(), Target::None);
        }
    }

    /// Row 8: everybody comes back at once.
    async fn storm(&mut self) {
        let agents = if self.plan.quick { 300 } else { 3_000 };
        let load =
            self.load(&format!("--mode storm --relays 1 --agents {agents} --volatile-agents --timeout 1800s")).await;
        let seconds = times(of(&load, "total_ms"), 1e-3);
        let target = if self.plan.quick { Target::None } else { Target::AtMost(4.0) };
        self.row(&format!("storm, {agents} agents lost and back"), "s", seconds, vec![], target);
    }

    /// Row 9: inventory.
    async fn inventory(&mut self) {
        self.quiet().await;
        let agents = if self.plan.quick { 100 } else { 1_000 };
        let sqlite = Sample::of((0..5).filter_map(|_| storage::sqlite(self.folder.path(), agents, 200).ok()));
        let alone = if sqlite.len() == 5 { Ok(sqlite.measured()) } else { Err("SQLite alone failed".to_owned()) };
        let mode = format!("--mode inventory --relays 1 --agents {agents} --timeout 1800s");
        let load = self.load(&format!("{mode} --volatile-agents")).await;
        let full = times(of(&load, "first_full.total_ms"), 1e-3);
        let work = format!("inventory, {agents} x 200 packages, first full");
        let target = if self.plan.quick { Target::None } else { Target::AtMost(1.0) };
        self.row(&work, "s", full, vec![("SQLite", alone)], target);
        // In a company each agent has a disk of its own.
        let load = self.load(&mode).await;
        let full = times(of(&load, "first_full.total_ms"), 1e-3);
        self.row("  the same, all agents' journals on this disk", "s", full, vec![], Target::None);
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
            for (name, path) in [("p50", "p50_ms"), ("p99", "p99_ms")] {
                self.row(&format!("{work}, {name}"), "ms", of_rounds(&load, path), vec![], Target::None);
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
