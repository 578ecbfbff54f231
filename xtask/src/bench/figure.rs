//! Figures: what was measured, how it spreads, and how it stands to its goal.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::surroundings::Surroundings;

/// Measurements of one quantity, in order of size; never empty.
#[derive(Clone, Debug)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub fn new(mut values: Vec<f64>) -> Result<Self> {
        values.sort_by(f64::total_cmp);
        anyhow::ensure!(!values.is_empty(), "nothing was measured");
        Ok(Self(values))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn median(&self) -> f64 {
        let half = self.0.len() / 2;
        if self.0.len().is_multiple_of(2) { f64::midpoint(self.0[half - 1], self.0[half]) } else { self.0[half] }
    }

    /// The smallest value that `percent` of all do not exceed.
    pub fn percentile(&self, percent: usize) -> f64 {
        self.0[(self.0.len() * percent).div_ceil(100).max(1) - 1]
    }
}

/// What the median should be.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Goal {
    /// One bell for a sleep. A side that is rung for while it falls asleep finds the reason itself, and
    /// counts no sleep: hence the hundredth.
    pub const ONE_BELL: Self = Self::AtMost(1.01);

    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

/// One quantity.
#[derive(Clone, Debug)]
pub struct Figure {
    name: String,
    unit: &'static str,
    samples: Samples,
    goal: Option<Goal>,
    note: String,
}

impl Figure {
    pub fn new(name: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Result<Self> {
        let name = name.into();
        let samples = Samples::new(values).with_context(|| name.clone())?;
        Ok(Self { name, unit, samples, goal: None, note: String::new() })
    }

    pub fn goal(mut self, goal: Goal) -> Self {
        self.goal = Some(goal);
        self
    }

    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Whether the goal is met; `None` where there is none.
    pub fn met(&self) -> Option<bool> {
        self.goal.map(|goal| goal.met(self.samples.median()))
    }

    pub fn to_text(&self) -> String {
        let Self { name, unit, samples, goal, note } = self;
        let at = |percent| number(samples.percentile(percent));
        let spread = format!("{}–{}, worst {}", at(10), at(90), number(self.worst()));
        let verdict = match goal {
            None => String::new(),
            Some(goal) => {
                let (sign, limit) = match goal {
                    Goal::AtMost(limit) => ('≤', limit),
                    Goal::AtLeast(limit) => ('≥', limit),
                };
                let met = if goal.met(samples.median()) { "met" } else { "MISSED" };
                format!("goal {sign} {limit} {unit}: {met}")
            }
        };
        let median = format!("{} {unit}", number(samples.median()));
        let line = format!("  {name:<44} {median:>12}  {spread:<30} n {:<4} {verdict}", samples.len());
        let line = line.trim_end();
        if note.is_empty() { line.to_owned() } else { format!("{line}\n      {note}") }
    }

    /// The value furthest on the side that the goal is not on.
    fn worst(&self) -> f64 {
        match self.goal {
            Some(Goal::AtLeast(_)) => self.samples.percentile(0),
            _ => self.samples.percentile(100),
        }
    }

    fn to_json(&self) -> Value {
        let Self { name, unit, samples, goal, note } = self;
        let (at_most, at_least) = match *goal {
            Some(Goal::AtMost(limit)) => (Some(limit), None),
            Some(Goal::AtLeast(limit)) => (None, Some(limit)),
            None => (None, None),
        };
        json!({
            "name": name, "unit": unit, "n": samples.len(), "median": samples.median(),
            "p10": samples.percentile(10), "p90": samples.percentile(90), "worst": self.worst(),
            "at_most": at_most, "at_least": at_least, "met": self.met(), "note": note,
        })
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// All of it as one line.
pub fn to_json(surroundings: &Surroundings, quick: bool, figures: &[Figure]) -> Result<String> {
    let figures: Vec<Value> = figures.iter().map(Figure::to_json).collect();
    let all = json!({ "machine": surroundings, "quick": quick, "figures": figures });
    Ok(serde_json::to_string(&all)?)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "the values are small integers and halves, which are exact")]
mod tests {
    use super::*;

    fn samples(count: u32) -> Vec<f64> {
        (1..=count).rev().map(f64::from).collect()
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let ten = Samples::new(samples(10)).expect("samples");
        assert_eq!([0, 10, 50, 90, 100].map(|percent| ten.percentile(percent)), [1.0, 1.0, 5.0, 9.0, 10.0]);
        let one = Samples::new(samples(1)).expect("samples");
        assert_eq!([0, 10, 100].map(|percent| one.percentile(percent)), [1.0; 3]);
        assert!(Samples::new(Vec::new()).is_err());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_two() {
        assert_eq!(Samples::new(samples(4)).expect("samples").median(), 2.5);
        assert_eq!(Samples::new(samples(5)).expect("samples").median(), 3.0);
    }

    #[test]
    fn a_goal_is_judged_by_the_median() {
        let figure = Figure::new("f", "ms", vec![1.0, 2.0, 90.0]).expect("a figure");
        assert_eq!(figure.met(), None);
        assert_eq!(figure.clone().goal(Goal::AtMost(2.0)).met(), Some(true));
        assert_eq!(figure.clone().goal(Goal::AtMost(1.9)).met(), Some(false));
        assert_eq!(figure.clone().goal(Goal::AtLeast(2.0)).met(), Some(true));
        let missed = figure.goal(Goal::AtLeast(2.1));
        assert_eq!(missed.met(), Some(false));
        assert!(missed.to_text().ends_with("MISSED"), "{}", missed.to_text());
    }
}
