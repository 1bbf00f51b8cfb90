//! The actor that carries out what `family` decides: calls factories, asks, cuts, reports. One per node, no statics.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, MailboxError, Message, MessageResult, ResponseFuture};
use branchline_protocol::time::Mono;
use metrics::Counter;
use tokio::sync::{oneshot, watch};

use super::error::{AddError, AdoptError};
use super::exit::Exit;
use super::family::{Effect, Family, Plan};
use super::guard::{ChildId, ExitGuard, Exited, Generation, Shared};
use super::intensity::{Limit, OnFault, PastIntensity};
use super::report::{NodeEnd, Snapshot, StopReport};
use super::run::panic_text;
use super::workers::WorkerLimits;
use crate::time::Clock;

/// The mailbox bound for requests: a relay's 300 devices dialling at once after a restart ask for 300 adoptions, and
/// past the bound a request waits (`send`) instead of being refused. Reports of ends pass over it.
const MAILBOX: usize = 512;

/// Exit code for a supervisor that went away itself: a defect, so the process ends and is started again. 70 is
/// EX_SOFTWARE of sysexits.h.
pub const EXIT_CODE_LOST: i32 = 70;

/// Builds a fresh value of a child and starts it, usually with [`run`](super::run::run) and a
/// [`ChildAddr`](super::address::ChildAddr) to renew. It runs on the supervisor's arbiter and must not block. An error
/// or a panic is a fault of that generation.
pub type Factory = Box<dyn FnMut(ExitGuard) -> Result<(), String> + Send>;

/// A child that its parent restarts.
pub struct ChildSpec {
    name: String,
    needs: Vec<String>,
    limit: Limit,
    on_fault: OnFault,
    past: PastIntensity,
    factory: Factory,
}

impl ChildSpec {
    /// A child that is restarted after a fault and parked at the fifth in 60 s.
    pub fn new(
        name: impl Into<String>,
        factory: impl FnMut(ExitGuard) -> Result<(), String> + Send + 'static,
    ) -> ChildSpec {
        ChildSpec {
            name: name.into(),
            needs: Vec::new(),
            limit: Limit::default(),
            on_fault: OnFault::Restart,
            past: PastIntensity::Park,
            factory: Box::new(factory),
        }
    }

    /// Names a child added before, on which this one is built: it starts after it, and when that one faults this one is
    /// stopped and rebuilt after it.
    pub fn needs(mut self, name: impl Into<String>) -> Self {
        self.needs.push(name.into());
        self
    }

    /// What follows past the intensity.
    pub fn past(mut self, past: PastIntensity) -> Self {
        self.past = past;
        self
    }

    /// Whether it is restarted after a fault. With `Never`, the first fault parks it.
    pub fn on_fault(mut self, on_fault: OnFault) -> Self {
        self.on_fault = on_fault;
        self
    }

    /// Another intensity than five in 60 s.
    pub fn limit(mut self, limit: Limit) -> Self {
        self.limit = limit;
        self
    }
}

/// A kind of worker: children that come from outside and are not restarted.
#[derive(Clone, Debug)]
pub struct WorkerSpec {
    /// The kind's name, such as `session`.
    pub kind: String,
    /// Children without which these workers cannot be: when one of them faults, all these workers are asked to stop.
    pub needs: Vec<String>,
    /// Their bounds.
    pub limits: WorkerLimits,
}

/// A handle on a node's supervisor.
#[derive(Clone, Debug)]
pub struct Supervision {
    addr: Addr<Supervisor>,
    end: watch::Receiver<Watched>,
}

/// Why a request to a supervisor failed.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The child was not taken on.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The worker may not begin.
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// The supervisor has ended.
    #[error("supervisor has ended")]
    Gone(#[from] MailboxError),
}

impl Supervision {
    /// Adds a child and starts it as soon as what it needs lives; usually at once.
    ///
    /// # Errors
    /// The name is taken, a need is unknown, or the node is ending. A factory that fails is a fault, not an error.
    pub async fn start_child(&self, spec: ChildSpec) -> Result<(), SuperviseError> {
        Ok(self.addr.send(StartChild(spec)).await??)
    }

    /// Makes a kind of worker known.
    ///
    /// # Errors
    /// As for [`Supervision::start_child`].
    pub async fn add_workers(&self, spec: WorkerSpec) -> Result<(), SuperviseError> {
        Ok(self.addr.send(AddWorkers(spec)).await??)
    }

    /// Takes on a worker about to begin: the guard goes to [`run`](super::run::run). `name` says whose faults are
    /// counted together, usually the device's id.
    ///
    /// # Errors
    /// The name is parked, the kind is at its bound or unknown, a needed child is down, or the node is ending.
    pub async fn adopt(&self, kind: &str, name: &str) -> Result<ExitGuard, SuperviseError> {
        Ok(self.addr.send(Adopt { kind: kind.to_owned(), name: name.to_owned() }).await??)
    }

    /// What everyone is doing.
    ///
    /// # Errors
    /// The supervisor has ended.
    pub async fn snapshot(&self) -> Result<Snapshot, SuperviseError> {
        Ok(self.addr.send(TakeSnapshot).await?)
    }

    /// Makes the next turn of a child or worker of that name panic; false if none of that name lives.
    ///
    /// # Errors
    /// The supervisor has ended.
    #[cfg(feature = "fault_points")]
    pub async fn inject_fault(&self, name: &str) -> Result<bool, SuperviseError> {
        Ok(self.addr.send(InjectFault(name.to_owned())).await?)
    }

    /// Releases a parked child or worker name with a clean record; false if none of that name is parked.
    ///
    /// # Errors
    /// The supervisor has ended.
    pub async fn release(&self, name: &str) -> Result<bool, SuperviseError> {
        Ok(self.addr.send(Release(name.to_owned())).await?)
    }

    /// Stops everyone in order: workers first, then children in reverse order of their addition. Those that do not end
    /// in time are cut. A second call waits for the first one's result.
    ///
    /// # Errors
    /// The supervisor has ended.
    pub async fn stop(&self, within: Duration) -> Result<StopReport, SuperviseError> {
        self.addr.send(StopAll(within)).await?.map_err(|_gone| SuperviseError::Gone(MailboxError::Closed))
    }

    /// Waits until the process has to end; the owner then stops what is left and ends with that code. After an orderly
    /// stop this waits for ever.
    pub async fn must_end(&self) -> NodeEnd {
        let mut watched = self.end.clone();
        loop {
            let seen = watched.borrow_and_update().clone();
            match seen {
                Watched::MustEnd(end) => return end,
                Watched::Stopped => std::future::pending::<()>().await,
                Watched::Living if watched.changed().await.is_err() => {
                    return NodeEnd { exit_code: EXIT_CODE_LOST, child: "supervisor".to_owned(), first_fault: None };
                }
                Watched::Living => {}
            }
        }
    }
}

/// What the owner may wait for.
#[derive(Clone, Debug)]
enum Watched {
    Living,
    MustEnd(NodeEnd),
    Stopped,
}

/// The parent of one node's actors. Reached through [`Supervision`].
pub struct Supervisor {
    family: Family,
    factories: BTreeMap<ChildId, Factory>,
    /// What the newest generation of each child and each worker shares with us.
    shared: BTreeMap<ChildId, (Generation, Arc<Shared>)>,
    clock: Arc<dyn Clock>,
    restarts: Option<Counter>,
    end: watch::Sender<Watched>,
    asked_to_stop: Vec<oneshot::Sender<StopReport>>,
    stopped: Option<StopReport>,
    /// The earliest timer that is set.
    timer: Option<Mono>,
}

impl Supervisor {
    /// Starts a node's supervisor on the calling thread's arbiter. `restarts` counts fresh values built after the first
    /// (`branchline_restarts_total`).
    pub fn start(clock: Arc<dyn Clock>, restarts: Option<Counter>) -> Supervision {
        let (end, watched) = watch::channel(Watched::Living);
        let supervisor = Supervisor {
            family: Family::new(),
            factories: BTreeMap::new(),
            shared: BTreeMap::new(),
            clock,
            restarts,
            end,
            asked_to_stop: Vec::new(),
            stopped: None,
            timer: None,
        };
        Supervision { addr: Actor::start(supervisor), end: watched }
    }

    fn now(&self) -> Mono {
        self.clock.mono()
    }

    fn guard(&mut self, id: ChildId, generation: Generation, ctx: &Context<Self>) -> ExitGuard {
        let shared = Arc::new(Shared::default());
        self.shared.insert(id, (generation, Arc::clone(&shared)));
        let name = self.family.name(id).unwrap_or_default().to_owned();
        ExitGuard::new(id, generation, name, shared, ctx.address().recipient())
    }

    /// Carries out effects in order. A factory that fails at once is an end like any other, which brings new effects.
    fn perform(&mut self, effects: Vec<Effect>, ctx: &mut Context<Self>) {
        let mut queue = VecDeque::from(effects);
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Start(id, generation) => {
                    if let Some(exit) = self.build(id, generation, ctx) {
                        queue.extend(self.family.exited(id, generation, Some(exit), self.now()));
                    }
                }
                Effect::Ask(id) => {
                    if let Some((_, shared)) = self.shared.get(&id) {
                        shared.ask();
                    }
                }
                Effect::Cut(id, name) => {
                    let cut = self.shared.remove(&id).is_some_and(|(_, shared)| shared.cut());
                    tracing::warn!(child = %name, cut, "child did not stop in time");
                }
                Effect::Parked(name) => {
                    tracing::error!(child = %name, "child faulted too often and is parked until it is released");
                }
                Effect::End(end) => {
                    tracing::error!(child = %end.child, exit_code = end.exit_code, first_fault = ?end.first_fault,
                        "a child the node cannot do without faulted too often: the process has to end");
                    self.end.send_replace(Watched::MustEnd(end));
                }
                Effect::Stopped(report) => self.finish(report, ctx),
            }
        }
        self.set_timer(ctx);
    }

    /// Calls a child's factory; the end of that generation if it failed.
    fn build(&mut self, id: ChildId, generation: Generation, ctx: &Context<Self>) -> Option<Exit> {
        if generation > 1
            && let Some(restarts) = &self.restarts
        {
            restarts.increment(1);
        }
        let guard = self.guard(id, generation, ctx);
        let factory = self.factories.get_mut(&id)?;
        // A factory must not take the whole node with it; its state after a panic is its author's, and the intensity
        // bounds how often it is tried again.
        let exit = match catch_unwind(AssertUnwindSafe(|| factory(guard))) {
            Ok(Ok(())) => return None,
            Ok(Err(cause)) => Exit::failed(cause),
            Err(payload) => Exit::panicked(panic_text(&*payload)),
        };
        // Its guard's own report finds that generation ended and changes nothing.
        tracing::warn!(child = self.family.name(id), generation, %exit, "child could not be built");
        Some(exit)
    }

    fn finish(&mut self, report: StopReport, ctx: &mut Context<Self>) {
        for asker in self.asked_to_stop.drain(..) {
            // The asker may have stopped waiting, which is its own affair.
            let _unheard = asker.send(report.clone());
        }
        // One that had to end is still owed its exit code.
        self.end.send_if_modified(|watched| {
            let living = matches!(watched, Watched::Living);
            if living {
                *watched = Watched::Stopped;
            }
            living
        });
        self.stopped = Some(report);
        self.factories.clear();
        self.shared.clear();
        actix::ActorContext::stop(ctx);
    }

    fn set_timer(&mut self, ctx: &mut Context<Self>) {
        let Some(due) = self.family.next_due() else { return };
        if self.timer.is_some_and(|set| set <= due) {
            return;
        }
        self.timer = Some(due);
        // A millisecond more than the difference: the timer and the clock may round differently.
        let wait = Duration::from_millis(due.since(self.now()).saturating_add(1));
        ctx.run_later(wait, move |this, ctx| {
            if this.timer == Some(due) {
                this.timer = None;
            }
            let now = this.now();
            let effects = this.family.tick(now);
            this.perform(effects, ctx);
        });
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
    }
}

#[derive(Message)]
#[rtype(result = "Result<(), AddError>")]
struct StartChild(ChildSpec);

impl Handler<StartChild> for Supervisor {
    type Result = Result<(), AddError>;

    fn handle(&mut self, StartChild(spec): StartChild, ctx: &mut Self::Context) -> Self::Result {
        let ChildSpec { name, needs, limit, on_fault, past, factory } = spec;
        let now = self.now();
        let id = self.family.add(Plan { name, needs, limit, on_fault, past }, now)?;
        self.factories.insert(id, factory);
        let effects = self.family.tick(now);
        self.perform(effects, ctx);
        Ok(())
    }
}

#[derive(Message)]
#[rtype(result = "Result<(), AddError>")]
struct AddWorkers(WorkerSpec);

impl Handler<AddWorkers> for Supervisor {
    type Result = Result<(), AddError>;

    fn handle(&mut self, AddWorkers(spec): AddWorkers, _ctx: &mut Self::Context) -> Self::Result {
        self.family.add_workers(&spec.kind, &spec.needs, spec.limits)
    }
}

#[derive(Message)]
#[rtype(result = "Result<ExitGuard, AdoptError>")]
struct Adopt {
    kind: String,
    name: String,
}

impl Handler<Adopt> for Supervisor {
    type Result = Result<ExitGuard, AdoptError>;

    fn handle(&mut self, Adopt { kind, name }: Adopt, ctx: &mut Self::Context) -> Self::Result {
        let adopted = self.family.adopt(&kind, &name, self.now())?;
        if adopted.generation > 1
            && let Some(restarts) = &self.restarts
        {
            restarts.increment(1);
        }
        Ok(self.guard(adopted.id, adopted.generation, ctx))
    }
}

impl Handler<Exited> for Supervisor {
    type Result = ();

    fn handle(&mut self, Exited { id, generation, exit }: Exited, ctx: &mut Self::Context) {
        if let Some(exit) = exit.as_ref().filter(|exit| exit.is_fault()) {
            tracing::warn!(child = self.family.name(id), generation, %exit, "child faulted");
        }
        if self.shared.get(&id).is_some_and(|(newest, _)| *newest == generation) {
            self.shared.remove(&id);
        }
        let now = self.now();
        let effects = self.family.exited(id, generation, exit, now);
        self.perform(effects, ctx);
    }
}

#[derive(Message)]
#[rtype(result = "Snapshot")]
struct TakeSnapshot;

impl Handler<TakeSnapshot> for Supervisor {
    type Result = MessageResult<TakeSnapshot>;

    fn handle(&mut self, TakeSnapshot: TakeSnapshot, _ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.family.snapshot())
    }
}

#[derive(Message)]
#[rtype(result = "bool")]
struct Release(String);

impl Handler<Release> for Supervisor {
    type Result = bool;

    fn handle(&mut self, Release(name): Release, ctx: &mut Self::Context) -> bool {
        let now = self.now();
        let (found, effects) = self.family.release(&name, now);
        self.perform(effects, ctx);
        found
    }
}

#[derive(Message)]
#[rtype(result = "Result<StopReport, oneshot::error::RecvError>")]
struct StopAll(Duration);

impl Handler<StopAll> for Supervisor {
    type Result = ResponseFuture<Result<StopReport, oneshot::error::RecvError>>;

    fn handle(&mut self, StopAll(within): StopAll, ctx: &mut Self::Context) -> Self::Result {
        if let Some(report) = self.stopped.clone() {
            return Box::pin(std::future::ready(Ok(report)));
        }
        let (asker, told) = oneshot::channel();
        self.asked_to_stop.push(asker);
        let now = self.now();
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let effects = self.family.stop(within_ms, now);
        self.perform(effects, ctx);
        Box::pin(told)
    }
}

#[cfg(feature = "fault_points")]
#[derive(Message)]
#[rtype(result = "bool")]
struct InjectFault(String);

#[cfg(feature = "fault_points")]
impl Handler<InjectFault> for Supervisor {
    type Result = bool;

    fn handle(&mut self, InjectFault(name): InjectFault, _ctx: &mut Self::Context) -> Self::Result {
        let named = self.shared.iter().rfind(|(id, _)| self.family.name(**id) == Some(&name));
        named.inspect(|(_, (_, shared))| shared.inject_fault()).is_some()
    }
}
