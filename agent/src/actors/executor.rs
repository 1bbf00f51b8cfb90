//! Starts jobs, waits for their ends, tells the keeper. How many there are at once is the core's decision; a job outlives
//! this actor, and the next one finds it again by its folder.

use super::keeper::{Happened, Joined, Keeper};
use crate::{
    decide::{Event, JobStart},
    platform::{JobHandle, JobLeft, JobSpec, Platform},
};
use actix::prelude::*;
use branchline_node::supervise::{Drain, Exit, ExitGuard};
use branchline_protocol::{id::OrderNumber, job::Runnable};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What the core asks of the executor.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) enum Command {
    /// Once per order.
    Start(Box<JobStart>),
    /// A job of an earlier executor or process.
    Resume(OrderNumber),
    /// Its end comes all the same.
    Kill(OrderNumber),
    /// Its result is durable.
    Remove(OrderNumber),
    /// Only these folders stay.
    Keep(Vec<OrderNumber>),
}

/// What an executor works with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub platform: Arc<dyn Platform>,
    /// One folder per job below this one.
    pub jobs: PathBuf,
    /// The executable that answers to [`crate::shim::main`], and its leading arguments.
    pub shim: PathBuf,
    pub shim_args: Vec<String>,
}

impl Tools {
    fn folder(&self, order: OrderNumber) -> PathBuf {
        self.jobs.join(order.to_string())
    }
}

/// See the module.
pub(crate) struct Executor {
    guard: ExitGuard,
    tools: Tools,
    keeper: Addr<Keeper>,
    running: BTreeMap<OrderNumber, Arc<JobHandle>>,
    /// To be ended as soon as they are known to run.
    to_kill: BTreeSet<OrderNumber>,
}

/// What became of a start or of a look at a folder.
enum Begun {
    Runs(JobHandle),
    Over(Event),
}

impl Executor {
    pub(crate) fn new(guard: ExitGuard, tools: Tools, keeper: Addr<Keeper>) -> Self {
        Executor { guard, tools, keeper, running: BTreeMap::new(), to_kill: BTreeSet::new() }
    }

    fn begin(
        &mut self,
        order: OrderNumber,
        ctx: &mut Context<Self>,
        work: impl FnOnce(&Tools, &Path) -> Begun + Send + 'static,
    ) {
        let tools = self.tools.clone();
        if !tools.platform.uses_folders() {
            return match work(&tools, &tools.folder(order)) {
                Begun::Runs(handle) => self.wait(order, handle, ctx),
                Begun::Over(event) => self.tell(order, event, ctx),
            };
        }
        let work = async move {
            let folder = tools.folder(order);
            let begun = tokio::task::spawn_blocking(move || work(&tools, &folder)).await;
            // A panic tells nothing of the job: unknown is the honest answer, and its number is never started again.
            begun.unwrap_or(Begun::Over(Event::JobEnded { order, left: JobLeft::Cut }))
        };
        ctx.spawn(work.into_actor(self).map(move |begun, actor, ctx| match begun {
            Begun::Runs(handle) => actor.wait(order, handle, ctx),
            Begun::Over(event) => actor.tell(order, event, ctx),
        }));
    }

    fn wait(&mut self, order: OrderNumber, handle: JobHandle, ctx: &mut Context<Self>) {
        let handle = Arc::new(handle);
        self.running.insert(order, handle.clone());
        if self.to_kill.remove(&order) {
            self.kill(order, ctx);
        }
        let work = async move { handle.wait().await };
        ctx.spawn(work.into_actor(self).map(move |left, actor, ctx| {
            actor.running.remove(&order);
            tracing::debug!(%order, "job over");
            actor.tell(order, Event::JobEnded { order, left }, ctx);
        }));
    }

    fn tell(&mut self, order: OrderNumber, event: Event, ctx: &mut Context<Self>) {
        self.to_kill.remove(&order);
        let keeper = self.keeper.clone();
        let work = async move {
            // Without its keeper this executor is about to be rebuilt, and the next one finds the job again.
            let _ = keeper.send(Happened(event)).await;
        };
        ctx.spawn(work.into_actor(self));
    }

    fn kill(&mut self, order: OrderNumber, ctx: &mut Context<Self>) {
        let Some(handle) = self.running.get(&order).cloned() else {
            self.to_kill.insert(order);
            return;
        };
        let work = async move { tokio::task::spawn_blocking(move || handle.kill()).await };
        ctx.spawn(work.into_actor(self).map(move |result, _, _| {
            if let Ok(Err(error)) = result {
                tracing::warn!(%order, %error, "a job could not be ended");
            }
        }));
    }

    fn blocking(
        &mut self,
        ctx: &mut Context<Self>,
        then_go_on: bool,
        work: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) {
        let work = async move { tokio::task::spawn_blocking(work).await };
        let work = work.into_actor(self).map(|result, _, _| {
            if let Ok(Err(error)) = result {
                tracing::warn!(%error, "a job's folder could not be removed");
            }
        });
        if then_go_on {
            ctx.wait(work)
        } else {
            ctx.spawn(work);
        }
    }
}

fn start(tools: &Tools, folder: &Path, start: JobStart) -> Begun {
    let JobStart { order, mut args, env, restarts, .. } = start;
    if restarts {
        // A platform that lost it since it declared it: nothing is found to run.
        args.run = Runnable::Argv(tools.platform.restart_command().unwrap_or_default());
    }
    let mut spec = JobSpec::of(folder.to_owned(), tools.shim.clone(), tools.shim_args.clone(), args);
    spec.env = env;
    tracing::debug!(%order, "job starts");
    match tools.platform.start_job(spec) {
        Ok(handle) => {
            tracing::debug!(%order, "job started");
            Begun::Runs(handle)
        }
        Err(fault) => {
            let (end, reason) = fault.verdict();
            tracing::warn!(%order, fault = %fault, "a job was not started");
            Begun::Over(Event::JobNotStarted { order, end, reason })
        }
    }
}

fn resume(tools: &Tools, folder: &Path, order: OrderNumber) -> Begun {
    match tools.platform.inspect_job(folder) {
        JobLeft::Running { .. } => Begun::Runs(tools.platform.attach_job(folder)),
        left => Begun::Over(Event::JobEnded { order, left }),
    }
}

fn remove(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn keep(jobs: &Path, kept: &BTreeSet<String>) -> io::Result<()> {
    let folders = match std::fs::read_dir(jobs) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for folder in folders {
        let folder = folder?;
        if !folder.file_name().to_str().is_some_and(|name| kept.contains(name)) {
            remove(&folder.path())?;
        }
    }
    Ok(())
}

impl Actor for Executor {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Self::Context) {
        // Once per generation.
        self.keeper.do_send(Joined::Executor(ctx.address()));
    }
}

impl Handler<Command> for Executor {
    type Result = ();
    fn handle(&mut self, command: Command, ctx: &mut Self::Context) {
        match command {
            Command::Start(job) => self.begin(job.order, ctx, |tools, folder| start(tools, folder, *job)),
            Command::Resume(order) => self.begin(order, ctx, move |tools, folder| resume(tools, folder, order)),
            Command::Kill(order) => self.kill(order, ctx),
            Command::Remove(_) if !self.tools.platform.uses_folders() => {}
            Command::Remove(order) => {
                let folder = self.tools.folder(order);
                self.blocking(ctx, false, move || remove(&folder));
            }
            Command::Keep(orders) => {
                let (jobs, kept) = (self.tools.jobs.clone(), orders.iter().map(OrderNumber::to_string).collect());
                // Nothing is started meanwhile: a new folder would not be among those that stay.
                self.blocking(ctx, true, move || keep(&jobs, &kept));
            }
        }
    }
}

impl Handler<Drain> for Executor {
    type Result = ();
    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) {
        self.guard.set(Exit::Stopped);
        ctx.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_no_open_order_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let jobs = home.path().join("jobs");
        keep(&jobs, &BTreeSet::new()).unwrap();
        for name in ["1.5", "1.6", "stray"] {
            std::fs::create_dir_all(jobs.join(name)).unwrap();
        }
        keep(&jobs, &BTreeSet::from(["1.6".to_owned()])).unwrap();
        let left: Vec<_> = std::fs::read_dir(&jobs).unwrap().map(|f| f.unwrap().file_name()).collect();
        assert_eq!(left, ["1.6"]);
        remove(&jobs.join("1.6")).unwrap();
        remove(&jobs.join("1.6")).unwrap();
    }
}
