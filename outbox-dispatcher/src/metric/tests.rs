//! The page, the dashboard and the alerts say what the code does.

use std::collections::BTreeSet;
use std::time::Duration;

use outbox_core::{Error, ErrorKind};
use serde_json::Value;
use uuid::Uuid;

use super::*;
use crate::{CallEnd, Report};

fn read(name: &str) -> String {
    let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cells of the table under a heading, without the head.
fn table(page: &str, heading: &str) -> Vec<Vec<String>> {
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("the heading");
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// What stands in backquotes.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// One event of each kind.
fn each_event(mut tell: impl FnMut(&Event<'_>)) {
    let (id, topic, attempt, error) = (Uuid::nil(), "t", 1, "no");
    let (storage, second) = (Error::new(ErrorKind::Timeout, "claim"), Duration::from_secs(1));
    for event in [
        Event::Claimed { n_messages: 1, n_dead: 0, recovered: false },
        Event::Started { id, topic, attempt },
        Event::Handled { id, topic, attempt, outcome: "ok", took: second, age: second },
        Event::Delivered { id, topic, attempt },
        Event::Retried { id, topic, attempt, after: second, error },
        Event::Dead { id, topic, attempt, error },
        Event::Released { id, topic },
        Event::LeaseLost { id, topic, attempt },
        Event::Unconfirmed { id, topic, attempt },
        Event::Paused { topic, pause: second, error, n_paused: 1 },
        Event::Resumed { topic, n_paused: 0 },
        Event::StorageUnavailable { operation: "claim", error: &storage },
        Event::StorageRecovered { operation: "claim" },
        Event::WakeupReady { again: false },
        Event::WakeupLost { error: &storage },
        Event::WakeupDeaf,
        Event::Stopping,
        Event::Stopped { report: &Report::default() },
        Event::Called { operation: "claim", took: second, end: CallEnd::Ok },
        Event::Enqueued { topic, n_messages: 1 },
        Event::Depth { topic, stats: &TopicStats::default(), is_estimate: false },
        Event::HeldBack { n_numbers: 1, open_for: second, by: Some("session 1") },
        Event::SlotLag { slot: Some("s"), n_retained: 2, n_unconfirmed: 1, is_active: true },
    ] {
        tell(&event);
    }
}

fn measured(event: &Event<'_>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    measure(event, |id, labels, _| {
        assert_eq!(labels.len(), id.metric().labels.len(), "{id:?}");
        names.insert(id.metric().prometheus_name());
    });
    names
}

#[test]
fn the_page_has_every_event_and_its_metrics() {
    let expected: Vec<_> = table(&read("observability.md"), "Events")
        .iter()
        .map(|cells| (quoted(&cells[0]), quoted(&cells[3]).into_iter().collect::<BTreeSet<_>>()))
        .collect();
    let mut actual = Vec::new();
    each_event(|event| actual.push((vec![event.name().to_owned()], measured(event))));
    assert_eq!(actual, expected);
    assert_eq!(actual.iter().map(|(name, _)| &*name[0]).collect::<Vec<_>>(), Event::NAMES);
}

#[test]
fn the_page_has_every_metric() {
    let rows = table(&read("observability.md"), "Metrics");
    let expected: Vec<_> = METRICS
        .iter()
        .map(|metric| {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let or_none = |text: &str| if text.is_empty() { "–".to_owned() } else { text.to_owned() };
            vec![
                format!("`{}`", metric.prometheus_name()),
                format!("`{}`", metric.name),
                metric.kind.name().to_owned(),
                or_none(metric.unit),
                or_none(&labels.join(" ")),
                metric.description.to_owned(),
            ]
        })
        .collect();
    assert_eq!(rows, expected);
}

#[test]
fn every_metric_is_measured_by_an_event() {
    let mut names = BTreeSet::new();
    each_event(|event| names.extend(measured(event)));
    assert_eq!(names, METRICS.iter().map(Metric::prometheus_name).collect());
}

/// The metrics in a query, each with the labels that it is selected by.
fn selected(query: &str) -> Vec<(&'static Metric, Vec<&str>)> {
    let mut selected = Vec::new();
    for (start, _) in query.match_indices("outbox_") {
        let name = words(&query[start..]).next().unwrap_or_default();
        let rest = &query[start + name.len()..];
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        let labels = matchers.split(',').filter_map(|matcher| words(matcher).next()).collect();
        selected.push((metric(name), labels));
    }
    selected
}

fn metric(name: &str) -> &'static Metric {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    let known = METRICS.iter().find(|metric| metric.prometheus_name() == base);
    known.unwrap_or_else(|| panic!("there is no metric {name}"))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The labels in `by (…)` and `on (…)`.
fn grouped(query: &str) -> Vec<&str> {
    let lists =
        ["by (", "on ("].map(|open| query.split(open).skip(1).filter_map(|rest| rest.split(')').next()));
    lists.into_iter().flatten().flat_map(words).collect()
}

/// The metrics of a query, all of them ours, with labels that they have.
#[track_caller]
fn checked(query: &str) -> Vec<String> {
    let selected = selected(query);
    assert!(!selected.is_empty(), "{query}");
    let has = |metric: &Metric, label| ["table", "le"].contains(&label) || metric.labels.contains(&label);
    for (metric, labels) in &selected {
        assert!(labels.iter().all(|label| has(metric, label)), "{} has no such label: {query}", metric.name);
    }
    for label in grouped(query) {
        assert!(selected.iter().any(|(metric, _)| has(metric, label)), "no metric has {label}: {query}");
    }
    selected.into_iter().map(|(metric, _)| metric.prometheus_name()).collect()
}

#[test]
fn the_dashboard_shows_every_metric_by_its_labels() {
    let dashboard: Value = serde_json::from_str(&read("observability/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().expect("a query"));
    let used: BTreeSet<_> = queries.flat_map(checked).collect();
    assert_eq!(used, METRICS.iter().map(Metric::prometheus_name).collect());
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
    assert_eq!(ids.len(), panels.len(), "the numbers of the panels must differ");
}

#[test]
fn alerts_use_our_metrics_and_have_a_heading() {
    let (page, alerts) = (read("observability.md"), read("observability/alerts.yml"));
    let rules: Vec<_> = alerts.split("- alert: ").skip(1).collect();
    let headings = rules.iter().map(|rule| format!("### {}", rule.lines().next().unwrap_or_default()));
    let page_headings: Vec<_> = page.lines().filter(|line| line.starts_with("### Outbox")).collect();
    assert_eq!(headings.collect::<Vec<_>>(), page_headings);
    for rule in rules {
        let (_, expression) = rule.split_once("expr: >-").expect("an expression");
        let (expression, _) = expression.split_once("for:").expect("a duration");
        checked(expression);
    }
}

#[test]
fn prometheus_names_are_those_that_exporters_make() {
    let name = |id: Id| id.metric().prometheus_name();
    assert_eq!(name(Id::ClaimDead), "outbox_claim_dead_total");
    assert_eq!(name(Id::Latency), "outbox_latency_seconds");
    assert_eq!(name(Id::Attempts), "outbox_attempts");
    assert_eq!(name(Id::OldestAge), "outbox_oldest_age_seconds");
    assert_eq!(name(Id::SlotLag), "outbox_slot_lag_bytes");
}
