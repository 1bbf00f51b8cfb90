//! The table: a row for each piece of work, ours beside the references.

use serde_json::{Value, json};

/// How a figure of ours relates to what is wanted of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
    /// At most so many times the first reference.
    Times(f64),
    /// Neither more nor less than this part away from the first reference.
    Within(f64),
    /// Nothing is asked; it is shown.
    None,
}

/// A median, with the smallest and largest where it was measured several times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// What counts.
    pub value: f64,
    /// Smallest and largest.
    pub range: Option<(f64, f64)>,
}

impl Measured {
    /// A figure measured once.
    pub fn once(value: f64) -> Measured {
        Measured { value, range: None }
    }

    fn shown(&self) -> String {
        let range = self.range.map(|(low, high)| format!(" ({} to {})", number(low), number(high)));
        number(self.value) + &range.unwrap_or_default()
    }

    fn json(&self) -> Value {
        json!({ "value": self.value, "min": self.range.map(|r| r.0), "max": self.range.map(|r| r.1) })
    }
}

/// A figure, or why there is none.
pub type Figure = Result<Measured, String>;

/// One piece of work.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is measured.
    pub work: String,
    /// Of what.
    pub unit: &'static str,
    /// Ours; none where only others are shown.
    pub ours: Option<Figure>,
    /// Others', by name, from the same run.
    pub references: Vec<(&'static str, Figure)>,
    /// What is wanted.
    pub target: Target,
}

impl Row {
    fn own(&self) -> Option<f64> {
        self.ours.as_ref()?.as_ref().ok().map(|measured| measured.value)
    }

    /// Ours against the first reference.
    fn ratio(&self) -> Option<f64> {
        let (ours, (_, reference)) = (self.own()?, self.references.first()?);
        reference.as_ref().ok().filter(|reference| reference.value > 0.0).map(|reference| ours / reference.value)
    }

    /// Whether the target is met; `None` if nobody can say.
    fn met(&self) -> Option<bool> {
        let ours = self.own()?;
        match self.target {
            Target::AtMost(bound) => Some(ours <= bound),
            Target::AtLeast(bound) => Some(ours >= bound),
            Target::Times(times) => Some(self.ratio()? <= times),
            Target::Within(part) => Some((self.ratio()? - 1.0).abs() <= part),
            Target::None => None,
        }
    }

    fn target(&self) -> String {
        match self.target {
            Target::AtMost(bound) => format!("at most {bound}"),
            Target::AtLeast(bound) => format!("at least {bound}"),
            Target::Times(times) => format!("at most {times} x {}", self.references.first().map_or("", |r| r.0)),
            Target::Within(part) => format!("within {:.0} %", part * 100.0),
            Target::None => "-".into(),
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Where and how it was measured.
    pub about: Vec<(&'static str, String)>,
    /// What.
    pub rows: Vec<Row>,
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.4}"),
    }
}

fn shown(figure: &Figure) -> String {
    figure.as_ref().map_or("not measured".into(), Measured::shown)
}

impl Table {
    /// For people.
    pub fn text(&self) -> String {
        let mut text: String = self.about.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let head = ["work", "unit", "ours", "references", "ratio", "target", "met"].map(str::to_owned);
        let mut rows = vec![head];
        for row in &self.rows {
            let references = row.references.iter().map(|(name, figure)| format!("{name} {}", shown(figure)));
            rows.push([
                row.work.clone(),
                row.unit.to_owned(),
                row.ours.as_ref().map_or("-".into(), shown),
                references.collect::<Vec<_>>().join(", "),
                row.ratio().map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
                row.target(),
                row.met().map_or("-", |met| if met { "yes" } else { "no" }).to_owned(),
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text += "\n";
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
        }
        text += "\n\n";
        for row in &self.rows {
            let others = row.references.iter().map(|(name, figure)| (*name, figure));
            for (whose, figure) in row.ours.iter().map(|ours| ("ours", ours)).chain(others) {
                if let Err(why) = figure {
                    text += &format!("not measured: {}, {whose}: {why}\n", row.work);
                }
            }
        }
        text
    }

    /// For programs.
    pub fn json(&self) -> String {
        let figure = |figure: &Figure| match figure {
            Ok(measured) => measured.json(),
            Err(why) => json!({ "not_measured": why }),
        };
        let about: serde_json::Map<_, _> = self.about.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let rows = self.rows.iter().map(|row| {
            let references: serde_json::Map<String, Value> =
                row.references.iter().map(|(name, value)| ((*name).to_owned(), figure(value))).collect();
            json!({
                "work": row.work, "unit": row.unit, "ours": row.ours.as_ref().map(figure), "reference": references,
                "ratio": row.ratio(), "target": row.target(), "met": row.met(),
            })
        });
        json!({ "about": about, "rows": rows.collect::<Vec<_>>() }).to_string() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: Result<f64, String>, reference: Result<f64, String>, target: Target) -> Row {
        let (ours, reference) = (ours.map(Measured::once), reference.map(Measured::once));
        Row { work: "w".into(), unit: "ms", ours: Some(ours), references: vec![("NATS", reference)], target }
    }

    #[test]
    fn a_target_is_met_at_its_bound_and_not_past_it() {
        let met = |ours, target| row(Ok(ours), Ok(2.0), target).met();
        assert_eq!((met(3.0, Target::AtMost(3.0)), met(3.1, Target::AtMost(3.0))), (Some(true), Some(false)));
        assert_eq!((met(3.0, Target::AtLeast(3.0)), met(2.9, Target::AtLeast(3.0))), (Some(true), Some(false)));
        assert_eq!((met(8.0, Target::Times(4.0)), met(8.1, Target::Times(4.0))), (Some(true), Some(false)));
        let within = |ours| row(Ok(ours), Ok(100.0), Target::Within(0.15)).met();
        assert_eq!([84.9, 85.1, 114.9, 115.1].map(within), [Some(false), Some(true), Some(true), Some(false)]);
        assert_eq!(row(Err("x".into()), Ok(2.0), Target::Times(4.0)).met(), None);
        assert_eq!(row(Ok(1.0), Err("x".into()), Target::Times(4.0)).met(), None, "nobody can say");
    }

    #[test]
    fn what_was_not_measured_says_why() {
        let table = Table { about: vec![], rows: vec![row(Err("no such mode".into()), Ok(2.0), Target::None)] };
        assert!(table.text().contains("not measured: w, ours: no such mode"), "{}", table.text());
        let json: Value = serde_json::from_str(&table.json()).unwrap();
        assert_eq!(json["rows"][0]["ours"]["not_measured"], "no such mode");
        assert_eq!(json["rows"][0]["reference"]["NATS"]["value"], 2.0);
    }

    #[test]
    fn a_range_is_shown_beside_its_median_and_others_stand_alone() {
        let measured = Measured { value: 120.4, range: Some((99.0, 1_000.2)) };
        assert_eq!(measured.shown(), "120 (99.0 to 1000)");
        let row = Row {
            work: "w".into(),
            unit: "s",
            ours: None,
            references: vec![("NATS", Ok(measured))],
            target: Target::AtMost(1.0),
        };
        assert_eq!((row.met(), row.ratio()), (None, None));
        let table = Table { about: vec![], rows: vec![row] };
        assert!(table.text().contains("NATS 120 (99.0 to 1000)") && !table.text().contains("not measured"));
    }
}
