//! A device's inventory: sections that changed, and what lists show of them.

use super::{Done, Many, ManySql, Values, rows};
use crate::store::{
    codec::{json_text, signed},
    summary::{Summary, summary},
};
use branchline_protocol::{
    hash::Hash,
    id::{NodeId, TenantId},
    inventory::Items,
    time::Millis,
};
use sqlx::{SqliteConnection, query};
use std::collections::{BTreeMap, BTreeSet};

const SECTIONS: ManySql = ManySql {
    before: "INSERT INTO inventory_section (tenant, device, section, items) VALUES ",
    values: 4,
    after: " ON CONFLICT DO UPDATE SET items = excluded.items",
};

/// A column changes only with the section it is taken from: of one that did not come, the row's own value stays.
const SHOWN: ManySql = ManySql {
    before: "WITH v (tenant, device, digest, collected_at, settings_version, clock_skew, os, cpu, memory_bytes, packages, \
             of_os, of_hardware, of_software) AS (VALUES ",
    values: 13,
    after: ") INSERT INTO inventory (tenant, device, digest, collected_at, settings_version, clock_skew, os, cpu, \
            memory_bytes, packages) SELECT v.tenant, v.device, v.digest, v.collected_at, v.settings_version, v.clock_skew, \
            iif(v.of_os OR i.device IS NULL, v.os, i.os), iif(v.of_hardware OR i.device IS NULL, v.cpu, i.cpu), \
            iif(v.of_hardware OR i.device IS NULL, v.memory_bytes, i.memory_bytes), \
            iif(v.of_software OR i.device IS NULL, v.packages, i.packages) \
            FROM v LEFT JOIN inventory i ON i.tenant = v.tenant AND i.device = v.device WHERE true \
            ON CONFLICT DO UPDATE SET digest = excluded.digest, collected_at = excluded.collected_at, \
            settings_version = excluded.settings_version, clock_skew = excluded.clock_skew, os = excluded.os, \
            cpu = excluded.cpu, memory_bytes = excluded.memory_bytes, packages = excluded.packages",
};

const NOT_WANTED: ManySql =
    ManySql { before: "DELETE FROM inventory_wanted WHERE (tenant, device) IN (VALUES ", values: 2, after: ")" };

/// What lists show of a device.
struct Shown {
    digest: Hash,
    collected_at: Millis,
    settings_version: u64,
    clock_skew: bool,
    summary: Summary,
    /// Whether its sections `os`, `hardware` and `software` came or went.
    touched: [bool; 3],
}

/// Inventories of a batch, a device at most once each.
#[derive(Default)]
pub(super) struct Inventories {
    sections: BTreeMap<(TenantId, NodeId, String), String>,
    shown: BTreeMap<(TenantId, NodeId), Shown>,
    not_wanted: BTreeSet<(TenantId, NodeId)>,
}

impl Inventories {
    /// Writes them.
    pub(super) async fn write(&mut self, connection: &mut SqliteConnection) -> Done {
        let sections = std::mem::take(&mut self.sections).into_iter();
        rows(connection, SECTIONS, sections, |((tenant, device, section), items), values: &mut Values| {
            values.text(tenant.as_str()).blob(device.bytes()).text(&section).text(&items);
        })
        .await?;
        let shown = std::mem::take(&mut self.shown).into_iter();
        rows(connection, SHOWN, shown, |((tenant, device), of), values| {
            values.text(tenant.as_str()).blob(device.bytes()).blob(&of.digest.0).add(of.collected_at.0);
            values.add(signed(of.settings_version)).add(of.clock_skew).text(&of.summary.os).text(&of.summary.cpu);
            values.add(of.summary.memory_bytes.map(signed)).add(signed(of.summary.packages));
            of.touched.into_iter().for_each(|touched| {
                values.add(touched);
            });
        })
        .await?;
        let not_wanted = std::mem::take(&mut self.not_wanted).into_iter();
        rows(connection, NOT_WANTED, not_wanted, |(tenant, device), values| {
            values.text(tenant.as_str()).blob(device.bytes());
        })
        .await
    }
}

/// Gathers what came of a device; what it has no more is deleted at once.
pub(super) async fn inventory(
    connection: &mut SqliteConnection,
    many: &mut Many,
    (tenant, device): (TenantId, NodeId),
    put: BTreeMap<String, Items>,
    gone: Vec<String>,
    (digest, collected_at, settings_version, clock_skew): (Hash, Millis, u64, bool),
) -> Done {
    // A second one of the same device finds the first written; and what is deleted was put before.
    if !gone.is_empty() || many.inventories.shown.contains_key(&(tenant.clone(), device)) {
        many.write(connection).await?;
    }
    for section in &gone {
        query("DELETE FROM inventory_section WHERE tenant = ? AND device = ? AND section = ?")
            .bind(tenant.as_str())
            .bind(&device.bytes()[..])
            .bind(section)
            .execute(&mut *connection)
            .await?;
    }
    let touched = ["os", "hardware", "software"].map(|name| put.contains_key(name) || gone.iter().any(|g| g == name));
    let summary = summary(&put);
    let of = Shown { digest, collected_at, settings_version, clock_skew, summary, touched };
    let inventories = &mut many.inventories;
    inventories.shown.insert((tenant.clone(), device), of);
    for (section, items) in put {
        inventories.sections.insert((tenant.clone(), device, section), json_text(&items));
    }
    Ok(())
}

/// Whether a device's inventory is asked for anew.
pub(super) async fn wanted(
    connection: &mut SqliteConnection,
    many: &mut Many,
    (tenant, device): (TenantId, NodeId),
    wanted: bool,
) -> Done {
    if !wanted {
        many.inventories.not_wanted.insert((tenant, device));
        return Ok(());
    }
    many.write(connection).await?;
    query("INSERT INTO inventory_wanted (tenant, device) VALUES (?, ?) ON CONFLICT DO NOTHING")
        .bind(tenant.as_str())
        .bind(&device.bytes()[..])
        .execute(connection)
        .await?;
    Ok(())
}
