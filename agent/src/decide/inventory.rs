//! What was sent of the inventory, and what is to be collected next (pure; INV-1, INV-4 … INV-6).
//!
//! The base of the next difference is what the last report led to, journalled in the same batch as that report.

use branchline_node::store::{Batch, Table};
use branchline_protocol::{
    id::OrderNumber,
    inventory::{CLOCK_SKEW_MS, INVENTORY_BYTES_MAX, Items, Report, ReportKind, Snapshot},
    time::Millis,
};
use bytes::Bytes;
use std::collections::VecDeque;

/// When the last report was dated; also says that something was sent, whatever sections it had.
const BASE: &[u8] = b"base";
/// First bytes of a section's key.
const SECTION: &[u8] = b"section/";

/// Why a collection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The order that asked, if one did.
    pub order: Option<OrderNumber>,
    /// Whether everything is sent.
    pub full: bool,
}

/// A report that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// What the server will hold once it has every report.
    base: Option<Snapshot>,
    /// When the last report was dated.
    dated: Millis,
    /// The first is under way.
    requests: VecDeque<Request>,
    /// Whether the first was given to a collector.
    collecting: bool,
    /// Reports made since the core was built.
    reports: u64,
}

/// A row that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row of the inventory is unreadable")]
pub struct Unreadable;

impl Inventory {
    /// A row of [`Table::Inventory`].
    pub fn recover(&mut self, key: &[u8], value: &[u8]) -> Result<(), Unreadable> {
        let base = self.base.get_or_insert_default();
        if let Some(name) = key.strip_prefix(SECTION) {
            let name = String::from_utf8(name.to_vec()).map_err(|_| Unreadable)?;
            let items: Items = serde_json::from_slice(value).map_err(|_| Unreadable)?;
            base.sections.insert(name, items);
        } else if key == BASE {
            self.dated = Millis(i64::from_be_bytes(value.try_into().map_err(|_| Unreadable)?));
        }
        Ok(())
    }

    /// Whether nothing was ever sent.
    pub fn is_new(&self) -> bool {
        self.base.is_none()
    }

    /// Reports made since this process recovered its disk.
    pub fn reports(&self) -> u64 {
        self.reports
    }

    /// Asks for a collection. One that no order waits for is not asked for twice.
    pub fn request(&mut self, request: Request) {
        let waiting = self.requests.iter().skip(usize::from(self.collecting));
        if request.order.is_none() && waiting.into_iter().any(|r| r.order.is_none() && (r.full || !request.full)) {
            return;
        }
        self.requests.push_back(request);
    }

    /// The next collection, if none is under way.
    pub fn begin(&mut self) -> Option<Request> {
        if self.collecting {
            return None;
        }
        let first = self.requests.front().copied()?;
        self.collecting = true;
        Some(first)
    }

    /// The collector is gone: what was under way is to be begun again.
    pub fn interrupted(&mut self) {
        self.collecting = false;
    }

    /// The collection under way is done; answers who asked for it.
    pub fn finished(&mut self) -> Option<Request> {
        if !std::mem::take(&mut self.collecting) {
            return None;
        }
        self.requests.pop_front()
    }

    /// The report of a collection: whole if it was asked for or nothing was sent before, else the difference. The new
    /// base goes into the batch that will hold the report.
    ///
    /// # Errors
    /// It is over [`INVENTORY_BYTES_MAX`]; nothing changed.
    pub fn report(
        &mut self,
        request: Request,
        found: Snapshot,
        at: Millis,
        settings_version: u64,
        batch: &mut Batch,
    ) -> Result<Bytes, TooLarge> {
        let (kind, changes) = match &self.base {
            Some(base) if !request.full => (ReportKind::Diff, found.difference(base)),
            _ => (ReportKind::Full, found.full()),
        };
        let digest = found.digest();
        // The server takes a report that is dated before another for the older one, unless the other's clock was wrong.
        let collected_at = if self.dated.0 > at.0.saturating_add(CLOCK_SKEW_MS) { at } else { at.max(self.dated) };
        let report = Report { kind, collected_at, settings_version, order: request.order, changes, digest };
        let body = rmp_serde::to_vec_named(&report).expect("a report is plain data");
        if body.len() > INVENTORY_BYTES_MAX {
            return Err(TooLarge);
        }
        self.dated = collected_at;
        self.reports += 1;
        self.remember(found, batch);
        Ok(body.into())
    }

    fn remember(&mut self, found: Snapshot, batch: &mut Batch) {
        let old = self.base.get_or_insert_default();
        batch.put(Table::Inventory, BASE, self.dated.0.to_be_bytes().to_vec());
        for (name, items) in found.sections.iter().filter(|(name, items)| old.sections.get(*name) != Some(items)) {
            batch.put(Table::Inventory, key(name), serde_json::to_vec(items).expect("items are plain data"));
        }
        for name in old.sections.keys().filter(|name| !found.sections.contains_key(*name)) {
            batch.delete(Table::Inventory, key(name));
        }
        *old = found;
    }
}

fn key(section: &str) -> Vec<u8> {
    [SECTION, section.as_bytes()].concat()
}
