//! The lines a bench prints, and the little statistics behind them.

use serde::Serialize;

/// What a figure is held to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// Measured only to be seen beside others.
    None,
}

/// One measured figure.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    /// What it is compared with, measured in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
    /// `value` over the figure named by `beside`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// Least and greatest of the runs behind a median.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<[f64; 2]>,
}

impl Line {
    /// The median of `runs`, held to `goal`.
    ///
    /// # Panics
    /// When there are no runs: a set-up that failed is an error, never a zero.
    pub fn median(name: impl Into<String>, unit: &'static str, runs: &[f64], goal: Goal) -> Line {
        let value = percentile(runs, 50.0);
        let spread = [percentile(runs, 0.0), percentile(runs, 100.0)].map(round);
        Line { spread: (runs.len() > 1).then_some(spread), ..Line::single(name, unit, value, goal) }
    }

    /// A figure that is no median.
    pub fn single(name: impl Into<String>, unit: &'static str, value: f64, goal: Goal) -> Line {
        let (goal, met) = held(value, goal);
        Line { name: name.into(), value: round(value), unit, beside: None, ratio: None, goal, met, spread: None }
    }

    /// Puts the figure beside another; with a goal for the ratio, that is what the line is held to.
    pub fn beside(mut self, what: impl Into<String>, other: f64, goal: Goal) -> Line {
        let ratio = self.value / other;
        if goal != Goal::None {
            (self.goal, self.met) = held(ratio, goal);
            self.goal = self.goal.map(|g| format!("ratio {g}"));
        }
        self.beside = Some(format!("{} {}", what.into(), round(other)));
        self.ratio = Some(round(ratio));
        self
    }

    /// Prints the line.
    pub fn print(&self) {
        println!("{}", serde_json::to_string(self).expect("plain data is always JSON"));
    }
}

fn held(value: f64, goal: Goal) -> (Option<String>, Option<bool>) {
    match goal {
        Goal::AtMost(most) => (Some(format!("<= {most}")), Some(value <= most)),
        Goal::AtLeast(least) => (Some(format!(">= {least}")), Some(value >= least)),
        Goal::None => (None, None),
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// The `p`-th percentile, 0 to 100, by nearest rank.
///
/// # Panics
/// When there are no values.
pub fn percentile(values: &[f64], p: f64) -> f64 {
    assert!(!values.is_empty(), "nothing was measured");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted[rank.min(sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 50.0, 99.0, 100.0].map(|p| percentile(&values, p)), [1.0, 3.0, 5.0, 5.0]);
        assert_eq!(percentile(&[7.0], 50.0), 7.0);
    }

    #[test]
    fn a_line_is_held_to_its_goal_or_its_ratio() {
        let line = Line::median("x", "s", &[0.4, 0.2, 0.6], Goal::AtMost(0.5));
        assert_eq!((line.value, line.met, line.spread), (0.4, Some(true), Some([0.2, 0.6])));
        let line = line.beside("y", 0.5, Goal::AtLeast(0.98));
        assert_eq!((line.ratio, line.met, line.goal.as_deref()), (Some(0.8), Some(false), Some("ratio >= 0.98")));
        let text = serde_json::to_value(&line).unwrap();
        assert_eq!(text["beside"], "y 0.5");
    }
}
