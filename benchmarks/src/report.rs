//! What is printed: one JSON line a scenario and, at the end, a table of the gates.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::meter::Rounds;
use crate::proc;

/// The figures of one scenario on one database.
#[derive(Debug)]
pub(crate) struct Line {
    fields: Map<String, Value>,
    gates: Vec<Gate>,
}

impl Line {
    pub(crate) fn new(scenario: &str, database: impl fmt::Display) -> Self {
        let mut line = Self { fields: Map::new(), gates: Vec::new() };
        line.put("scenario", scenario);
        line.put("database", database.to_string());
        line
    }

    fn put(&mut self, name: &str, value: impl Into<Value>) {
        self.fields.insert(name.to_owned(), value.into());
    }

    /// Adds a figure, or an object of figures.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.put(name, value);
        self
    }

    /// Adds a measured number.
    #[must_use]
    pub(crate) fn figure(self, name: &str, figure: f64) -> Self {
        self.with(name, rounded(figure))
    }

    /// Adds both sides of a comparison and their ratio.
    #[must_use]
    pub(crate) fn compare(self, floor: &Rounds, ours: &Rounds) -> Self {
        self.with("ours", ours.json())
            .with("floor", floor.json())
            .with("rates", ours.rates().into_iter().map(rounded).collect::<Vec<_>>())
            .with("floor_rates", floor.rates().into_iter().map(rounded).collect::<Vec<_>>())
            .figure("ratio", ours.ratio_to(floor))
    }

    /// Adds a gate and its figure.
    #[must_use]
    pub(crate) fn gate(self, name: &'static str, figure: f64, bound: Bound) -> Self {
        self.with_gate(name, figure, bound, false)
    }

    /// Adds a gate whose figure does not depend on how busy the machine is.
    #[must_use]
    pub(crate) fn exact_gate(self, name: &'static str, figure: f64, bound: Bound) -> Self {
        self.with_gate(name, figure, bound, true)
    }

    fn with_gate(mut self, name: &'static str, figure: f64, bound: Bound, is_exact: bool) -> Self {
        let scenario = format!("{} {}", self.text("scenario"), self.text("database"));
        self.gates.push(Gate { scenario, name, figure, bound, is_exact });
        self
    }

    fn text(&self, name: &str) -> &str {
        self.fields.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// Prints the line and returns its gates.
    pub(crate) fn print(mut self) -> Vec<Gate> {
        if !self.gates.is_empty() {
            let gates: Vec<Value> = self.gates.iter().map(Gate::json).collect();
            self.put("gates", gates);
        }
        self.put("load_average", rounded(proc::load_average()));
        println!("{}", Value::Object(self.fields));
        self.gates
    }
}

/// What a figure must reach, inclusive.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
    Exactly(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::Exactly(bound) => write!(f, "= {bound}"),
        }
    }
}

/// A figure beside its target.
#[derive(Debug)]
pub(crate) struct Gate {
    scenario: String,
    name: &'static str,
    figure: f64,
    bound: Bound,
    is_exact: bool,
}

impl Gate {
    /// Whether noise cannot move it.
    pub(crate) fn is_exact(&self) -> bool {
        self.is_exact
    }

    /// Not a number never passes.
    pub(crate) fn passes(&self) -> bool {
        match self.bound {
            Bound::AtLeast(bound) => self.figure >= bound,
            Bound::AtMost(bound) => self.figure <= bound,
            Bound::Exactly(bound) => (self.figure - bound).abs() < 1e-6,
        }
    }

    fn verdict(&self) -> &'static str {
        if self.passes() { "pass" } else { "FAIL" }
    }

    fn json(&self) -> Value {
        let target = self.bound.to_string();
        json!({ "gate": self.name, "target": target, "figure": rounded(self.figure), "pass": self.passes() })
    }
}

/// Prints the table of all gates to standard error, so that standard output stays JSON lines. Returns
/// whether all pass.
pub(crate) fn table(gates: &[Gate]) -> bool {
    eprintln!("{:<28} {:<46} {:>10} {:>12}  verdict", "scenario", "gate", "target", "figure");
    for gate in gates {
        let figure = rounded(gate.figure);
        let target = gate.bound.to_string();
        eprintln!("{:<28} {:<46} {target:>10} {figure:>12}  {}", gate.scenario, gate.name, gate.verdict());
    }
    let n_failed = gates.iter().filter(|gate| !gate.passes()).count();
    eprintln!("{} gates, {n_failed} failed", gates.len());
    n_failed == 0
}

/// Four significant digits: nothing measured here is more exact.
pub(crate) fn rounded(value: f64) -> Value {
    if !value.is_finite() {
        return Value::Null;
    }
    if value == 0.0 {
        return json!(0);
    }
    let digits = 3 - value.abs().log10().floor() as i32;
    let scale = 10f64.powi(digits.max(0));
    let value = (value * scale).round() / scale;
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_four_digits() {
        let text = |value| rounded(value).to_string();
        assert_eq!(
            [123_456.7, 12.345_6, 0.123_456, 2.0, 0.0, f64::NAN].map(text),
            ["123457", "12.35", "0.1235", "2", "0", "null"]
        );
    }

    #[test]
    fn a_missing_figure_fails_its_gate() {
        let passes = |figure, bound| {
            Gate { scenario: String::new(), name: "", figure, bound, is_exact: true }.passes()
        };
        assert!(passes(0.7, Bound::AtLeast(0.7)) && passes(2.2, Bound::AtMost(2.2)));
        assert!(!passes(f64::NAN, Bound::AtLeast(0.7)) && !passes(f64::NAN, Bound::AtMost(0.7)));
    }
}
