//! What the server says became of an order, held against what the world saw of it.

use super::{jobs::Truth, place::Place, world::World};
use branchline_agent::decide::journal_key;
use branchline_node::store::Table;
use branchline_protocol::{
    id::OrderNumber,
    job::{CANCEL, Cancel, State, cancel},
    order::Payload,
    wire::Message,
};
use branchline_server::store::{JobDeviceRow, JobRow};

/// The first byte of a message with orders.
const ORDERS: u8 = 3;
/// The reason of a device whose job was ended by its cancel.
const CANCELLED: &str = "cancelled";
/// The reason of an order that everybody below gave back, or that never went out.
const NOT_FETCHED: &str = "not_fetched";

/// Whether a device's end is what the world saw.
pub(super) fn agrees(job: &JobRow, device: &JobDeviceRow, truth: Truth) -> bool {
    let exit = device.result.as_ref().and_then(|r| r.exit_code);
    match device.state {
        // A steering order runs nothing.
        _ if job.verb == CANCEL => truth.starts == 0,
        State::Succeeded => truth.starts == 1 && truth.exit == Some(0) && exit == Some(0),
        State::Failed if device.reason.as_deref() == Some(CANCELLED) => truth.starts == 1 && truth.cut,
        State::Failed => truth.starts == 1 && truth.exit.is_some_and(|code| code != 0) && exit == truth.exit,
        State::OutcomeUnknown => truth.exit.is_none(),
        _ => truth.starts == 0,
    }
}

impl World {
    /// What a device answered to a cancel, if its order says something else.
    pub(super) fn contradicts(&self, job: &JobRow, answer: &JobDeviceRow, n: usize) -> Option<String> {
        let said = answer.reason.as_deref().filter(|_| job.verb == CANCEL && answer.state == State::Succeeded)?;
        let Ok(Cancel { target }) = rmp_serde::from_slice(&job.args) else { return Some("no arguments".into()) };
        let job =
            self.server.rows.jobs.values().find(|job| job.row.number == target && !self.is_excluded(target, n))?;
        let row = job.devices.iter().find(|row| row.device == answer.device)?;
        let fits = match said {
            cancel::CANCELLED => row.state == State::Cancelled,
            cancel::RUNNING => row.state != State::Cancelled,
            _ => true,
        };
        (!fits).then(|| format!("the cancel of {target} found it {said}, and it is {}", row.state))
    }

    /// Orders that come too late by the device's own time, and that it does not have: it must not begin them (JOB-4).
    pub(super) fn note_late(&mut self, n: usize, bytes: &[u8]) {
        if bytes.first() != Some(&ORDERS) {
            return;
        }
        let Ok(Message::Orders(orders)) = Message::decode(bytes) else { return };
        let place = Place::Agent(n);
        let now = self.now_of(place).node;
        let told = self.agents[n].process.as_ref().is_some_and(|p| p.driver.core().documents().time().is_some());
        for order in orders.iter().filter(|_| told) {
            let Ok(payload) = rmp_serde::from_slice::<Payload>(&order.envelope.payload) else { continue };
            let has = || self.machines[&place].disk.get(Table::Journal, &journal_key(payload.number)).is_some();
            // What came in time may be in a batch that is on its way to the disk.
            let late = now > payload.fetch_by && !has();
            self.agents[n].late.entry(payload.number).or_insert(late);
        }
    }

    /// What the server has told of an order that begins on a device, if it may not begin any more.
    pub(super) fn ended_before(&self, n: usize, order: OrderNumber) -> Option<String> {
        let job = self.server.rows.jobs.values().find(|job| job.row.number == order)?;
        let row = job.devices.iter().find(|row| row.device == Ok(Place::Agent(n).id()))?;
        let over = match row.state {
            State::Cancelled => true,
            State::Expired => row.reason.as_deref() == Some(NOT_FETCHED),
            _ => false,
        };
        over.then(|| row.state.to_string())
    }
}
