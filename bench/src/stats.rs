//! Medians with their range: one figure alone says nothing of how much it varies.

use crate::table::Measured;

/// What was measured several times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Of these.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Sample {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Sample(values)
    }

    /// The value that this part of all did not exceed, always one that was measured; 0 without any.
    pub fn at(&self, part: f64) -> f64 {
        let rank = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or(0.0)
    }

    /// The one in the middle.
    pub fn median(&self) -> f64 {
        self.at(0.5)
    }

    /// The median with the smallest and the largest.
    pub fn measured(&self) -> Measured {
        Measured { value: self.median(), range: Some((self.at(0.0), self.at(1.0))) }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_measured_value() {
        let sample = Sample::of((1..=100).rev().map(f64::from));
        assert_eq!((sample.median(), sample.at(0.99), sample.len()), (50.0, 99.0, 100));
        assert_eq!(sample.measured(), Measured { value: 50.0, range: Some((1.0, 100.0)) });
        assert_eq!((Sample::of([7.0]).median(), Sample::default().median()), (7.0, 0.0));
    }
}
