//! How many bytes of each kind of matter a spool holds (RLY-10).

use crate::config::Reader;
use branchline_protocol::record::Lane;

/// What is counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Results, alerts, facts, progress: never dropped.
    Results,
    /// Reports: dropped when a newer full one makes them needless.
    Inventory,
    /// Operation logs and telemetry: the oldest are dropped first.
    Logs,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Results, Kind::Inventory, Kind::Logs];

    /// By the lane they travel on.
    pub fn of(lane: Lane) -> Kind {
        match lane {
            Lane::Control | Lane::Urgent | Lane::Work => Kind::Results,
            Lane::Inventory => Kind::Inventory,
            Lane::Logs => Kind::Logs,
        }
    }

    /// The word in alerts and figures.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Results => "results",
            Kind::Inventory => "inventory",
            Kind::Logs => "logs",
        }
    }
}

/// Bytes of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// Of [`Kind::Results`].
    pub results: u64,
    /// Of [`Kind::Inventory`].
    pub inventory: u64,
    /// Of [`Kind::Logs`].
    pub logs: u64,
}

const MIB: u64 = 1 << 20;

impl Quotas {
    /// A device's own: a day of results of the usual size, two largest inventories (INV-13), some logs.
    pub const AGENT: Quotas = Quotas { results: 64 * MIB, inventory: 40 * MIB, logs: 16 * MIB };
    /// A branch of 300 devices that is cut off for long.
    pub const RELAY: Quotas = Quotas { results: 512 * MIB, inventory: 512 * MIB, logs: 128 * MIB };

    /// Reads `quota_results_mib`, `quota_inventory_mib` and `quota_logs_mib`: 1 MiB to 1 TiB each.
    pub fn read(reader: &mut Reader<'_>, usual: Quotas) -> Quotas {
        let mut mib = |key, usual: u64| reader.number_or(key, usual / MIB, 1..=MIB) * MIB;
        Quotas {
            results: mib("quota_results_mib", usual.results),
            inventory: mib("quota_inventory_mib", usual.inventory),
            logs: mib("quota_logs_mib", usual.logs),
        }
    }

    /// Of one kind.
    pub fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Results => self.results,
            Kind::Inventory => self.inventory,
            Kind::Logs => self.logs,
        }
    }

    /// Where dropping stops and taking begins again: an eighth below, so that not every record is at the bound.
    pub fn low(&self, kind: Kind) -> u64 {
        self.of(kind) - self.of(kind) / 8
    }
}

impl Default for Quotas {
    fn default() -> Self {
        Quotas::AGENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Mistakes;

    fn read(text: &str) -> Result<Quotas, String> {
        let table = text.parse().unwrap();
        let mut mistakes = Mistakes::default();
        let mut reader = Reader::new(&table, "", &mut mistakes);
        let quotas = Quotas::read(&mut reader, Quotas::RELAY);
        reader.finish();
        mistakes.guard(quotas).map_err(|m| m.to_string())
    }

    #[test]
    fn rly_10_quotas_are_settable_within_bounds() {
        assert_eq!(read(""), Ok(Quotas::RELAY));
        let set = read("quota_results_mib = 1\nquota_inventory_mib = 1048576\nquota_logs_mib = 7").unwrap();
        assert_eq!(set, Quotas { results: MIB, inventory: MIB * MIB, logs: 7 * MIB });
        for (key, value) in [("quota_results_mib", 0), ("quota_inventory_mib", 1_048_577), ("quota_logs_mib", -1)] {
            let told = read(&format!("{key} = {value}")).unwrap_err();
            assert!(told.starts_with(&format!("{key}: {value} is not within 1 to 1048576")), "{told}");
        }
    }

    #[test]
    fn what_is_dropped_down_to_is_an_eighth_below() {
        let quotas = Quotas { results: 800, inventory: 7, logs: 0 };
        assert_eq!((quotas.low(Kind::Results), quotas.low(Kind::Inventory), quotas.low(Kind::Logs)), (700, 7, 0));
    }
}
