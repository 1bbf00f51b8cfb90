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

/// A figure, or why there is none.
pub type Figure = Result<f64, String>;

/// One piece of work.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is measured.
    pub work: String,
    /// Of what.
    pub unit: &'static str,
    /// Ours.
    pub ours: Figure,
    /// Smallest and largest of ours, where it was measured several times.
    pub range: Option<(f64, f64)>,
    /// Others', by name, from the same run.
    pub references: Vec<(&'static str, Figure)>,
    /// What is wanted.
    pub target: Target,
}

impl Row {
    /// Ours against the first reference.
    fn ratio(&self) -> Option<f64> {
        let (ours, (_, reference)) = (self.ours.as_ref().ok()?, self.references.first()?);
        reference.as_ref().ok().filter(|reference| **reference > 0.0).map(|reference| ours / reference)
    }

    /// Whether the target is met; `None` if nobody can say.
    fn met(&self) -> Option<bool> {
        let ours = *self.ours.as_ref().ok()?;
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

fn shown(figure: &Figure) -> String {
    match figure {
        Ok(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Ok(value) if value.abs() >= 1.0 => format!("{value:.1}"),
        Ok(value) => format!("{value:.4}"),
        Err(_) => "not measured".into(),
    }
}

impl Table {
    /// For people.
    pub fn text(&self) -> String {
        let mut text: String = self.about.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
        let head = ["work", "unit", "ours", "min to max", "references", "ratio", "target", "met"].map(str::to_owned);
        let mut rows = vec![head];
        for row in &self.rows {
            let references = row.references.iter().map(|(name, figure)| format!("{name} {}", shown(figure)));
            let range = row.range.map(|(low, high)| format!("{} to {}", shown(&Ok(low)), shown(&Ok(high))));
            rows.push([
                row.work.clone(),
                row.unit.to_owned(),
                shown(&row.ours),
                range.unwrap_or_else(|| "-".into()),
                references.collect::<Vec<_>>().join(", "),
                row.ratio().map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
                row.target(),
                row.met().map_or("-", |met| if met { "yes" } else { "no" }).to_owned(),
            ]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..8).map(width).collect();
        for row in &rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            text += "\n";
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
        }
        text += "\n\n";
        for row in &self.rows {
            let others = row.references.iter().map(|(name, figure)| (*name, figure));
            for (whose, figure) in [("ours", &row.ours)].into_iter().chain(others) {
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
            Ok(value) => json!(value),
            Err(why) => json!({ "not_measured": why }),
        };
        let about: serde_json::Map<_, _> = self.about.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        let rows = self.rows.iter().map(|row| {
            let references: serde_json::Map<String, Value> =
                row.references.iter().map(|(name, value)| ((*name).to_owned(), figure(value))).collect();
            json!({
                "work": row.work, "unit": row.unit, "ours": figure(&row.ours),
                "min": row.range.map(|r| r.0), "max": row.range.map(|r| r.1), "reference": references,
                "ratio": row.ratio(), "target": row.target(), "met": row.met(),
            })
        });
        json!({ "about": about, "rows": rows.collect::<Vec<_>>() }).to_string() + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: Figure, reference: Figure, target: Target) -> Row {
        Row { work: "w".into(), unit: "ms", ours, range: None, references: vec![("NATS", reference)], target }
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
    }
}
