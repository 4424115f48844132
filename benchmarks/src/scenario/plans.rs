//! The plans that a dispatcher's own sessions use, on a table that was never analysed and holds messages for later
//! and of a topic nobody serves: the server writes each plan with its actual row counts to its log.

use std::time::Duration;

use sea_orm::sqlx::{AssertSqlSafe, query, query_scalar};
use serde_json::{Value, json};

use crate::error::Result;
use crate::load::{BATCH, TOPIC, UNSERVED};
use crate::options::Options;
use crate::ours::Ours;
use crate::report::{Bound, Line, rounded};
use crate::side::{Side, fill, fill_with};
use crate::site::{PLANS, PostgresSite, Site, head};
use crate::stats::median;

const LATER: Duration = Duration::from_secs(24 * 60 * 60);
const SETTINGS: [(&str, &str); 5] = [
    ("session_preload_libraries", "auto_explain"),
    ("auto_explain.log_min_duration", "0"),
    ("auto_explain.log_analyze", "on"),
    ("auto_explain.log_buffers", "on"),
    ("auto_explain.log_format", "json"),
];

pub(crate) async fn run(site: &Site, options: &Options) -> Result<Line> {
    let n_messages = options.n_messages(20_000);
    let n_neighbours = options.n_neighbours(20_000);
    let postgres = site.postgres()?;
    // a producer's session is not what is looked at, and its plans would fill the log
    let ours = Ours::create_at(site, PLANS).await?;
    fill_with(&ours, UNSERVED, n_neighbours, Duration::ZERO).await?;
    fill_with(&ours, TOPIC, n_neighbours, LATER).await?;
    fill(&ours, n_messages).await?;
    explain_new_sessions(postgres).await?;
    let from = log_length(postgres).await?;
    ours.drain(n_messages).await?;
    let plans = plans(&read_log(postgres, from).await?);
    ours.remove().await?;
    Ok(line(site, &plans).with("messages", n_messages).with("neighbours", 2 * n_neighbours))
}

fn line(site: &Site, plans: &[Plan]) -> Line {
    let claims: Vec<&Plan> = plans.iter().filter(|plan| plan.is_claim()).collect();
    let n_claimed = |plan: &Plan| plan.root("Actual Rows").max(1.0);
    let read: Vec<f64> = claims.iter().map(|plan| plan.rows_read() / n_claimed(plan)).collect();
    let buffers: Vec<f64> = claims.iter().map(|plan| plan.buffers() / n_claimed(plan)).collect();
    let most = |figure: fn(&Plan) -> f64| plans.iter().map(figure).fold(0.0, f64::max);
    let without_index = claims.iter().filter(|plan| !plan.uses_index("_ready")).count();
    let slowest = plans.iter().max_by(|a, b| a.milliseconds().total_cmp(&b.milliseconds()));
    Line::new("plans", site.kind())
        .with("statements", plans.len())
        .with("claims", claims.len())
        .figure("rows_read_per_claimed_message_max", read.iter().copied().fold(0.0, f64::max))
        .figure("buffers_per_claimed_message", median(&buffers))
        .with("slowest", slowest.map_or(Value::Null, Plan::summary))
        .with("kinds", kinds(plans))
        .exact_gate("claims that do not walk the ready index", without_index as f64, Bound::AtMost(0.0))
        .exact_gate("most rows sorted by a statement", most(Plan::rows_sorted), Bound::AtMost(BATCH as f64))
        .exact_gate("sequential scans of the table", most(Plan::n_sequential), Bound::AtMost(0.0))
        .exact_gate("rows read per claimed message", median(&read), Bound::AtMost(1.1))
}

/// For each kind of statement: how often, and the median and longest time.
fn kinds(plans: &[Plan]) -> Value {
    let mut heads: Vec<String> = plans.iter().map(Plan::head).collect();
    heads.sort_unstable();
    heads.dedup();
    let of = |head: &String| {
        let times: Vec<f64> =
            plans.iter().filter(|plan| plan.head() == *head).map(Plan::milliseconds).collect();
        let longest = times.iter().copied().fold(0.0, f64::max);
        json!({ "statement": head, "n": times.len(), "median_ms": rounded(median(&times)), "max_ms": rounded(longest) })
    };
    heads.iter().map(of).collect()
}

async fn explain_new_sessions(site: &PostgresSite) -> Result<()> {
    for (name, value) in SETTINGS {
        let alter = format!("ALTER DATABASE {PLANS} SET {name} = '{value}'");
        query(AssertSqlSafe(alter)).execute(site.admin()).await?;
    }
    Ok(())
}

async fn log_length(site: &PostgresSite) -> Result<i64> {
    let length = query_scalar("SELECT size FROM pg_stat_file(pg_current_logfile())").fetch_one(site.admin());
    Ok(length.await.map_err(|error| format!("the server keeps no log of its own: {error}"))?)
}

async fn read_log(site: &PostgresSite, from: i64) -> Result<String> {
    // the collector writes with a delay
    tokio::time::sleep(Duration::from_millis(500)).await;
    let text = query_scalar(
        "SELECT convert_from(pg_read_binary_file(file, $1, (SELECT size FROM pg_stat_file(file)) - $1), 'UTF8')
           FROM pg_current_logfile() AS file",
    );
    Ok(text.bind(from).fetch_one(site.admin()).await?)
}

/// One statement that was executed.
struct Plan(Value);

/// The log indents what belongs to an entry with a tab.
fn plans(log: &str) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.ends_with("plan:") {
            continue;
        }
        let mut text = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
            text.push_str(line);
        }
        plans.extend(serde_json::from_str(&text).map(Plan));
    }
    plans
}

impl Plan {
    fn text(&self) -> &str {
        self.0["Query Text"].as_str().unwrap_or_default()
    }

    fn is_claim(&self) -> bool {
        self.text().contains("UPDATE")
            && self.text().contains("row_number()")
            && !self.text().contains("WITH head")
    }

    fn root(&self, field: &str) -> f64 {
        self.0["Plan"][field].as_f64().unwrap_or(0.0)
    }

    fn milliseconds(&self) -> f64 {
        self.root("Actual Total Time")
    }

    fn buffers(&self) -> f64 {
        self.root("Shared Hit Blocks") + self.root("Shared Read Blocks")
    }

    fn nodes(&self) -> Vec<&Value> {
        let mut nodes = vec![&self.0["Plan"]];
        let mut next = 0;
        while let Some(node) = nodes.get(next) {
            nodes.extend(node["Plans"].as_array().into_iter().flatten());
            next += 1;
        }
        nodes
    }

    fn of_type<'a>(&'a self, words: &'a str) -> impl Iterator<Item = &'a Value> {
        self.nodes()
            .into_iter()
            .filter(move |node| node["Node Type"].as_str().is_some_and(|kind| kind.contains(words)))
    }

    fn uses_index(&self, suffix: &str) -> bool {
        self.of_type("Index")
            .any(|node| node["Index Name"].as_str().is_some_and(|name| name.ends_with(suffix)))
    }

    fn rows_sorted(&self) -> f64 {
        self.of_type("Sort").map(|node| number(node, "Actual Rows")).fold(0.0, f64::max)
    }

    fn n_sequential(&self) -> f64 {
        self.of_type("Seq Scan").filter(|node| number(node, "Actual Loops") > 0.0).count() as f64
    }

    /// By index scans, those that a filter threw away included.
    fn rows_read(&self) -> f64 {
        let rows = |node: &Value| number(node, "Actual Rows") + number(node, "Rows Removed by Filter");
        self.of_type("Index").map(|node| rows(node) * number(node, "Actual Loops")).sum()
    }

    fn head(&self) -> String {
        head(self.text())
    }

    fn summary(&self) -> Value {
        let nodes: Vec<String> = self.nodes().into_iter().map(describe).collect();
        json!({ "statement": self.head(), "ms": rounded(self.milliseconds()), "nodes": nodes })
    }
}

fn describe(node: &Value) -> String {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let index = node["Index Name"].as_str().unwrap_or_default();
    let (rows, removed) = (number(node, "Actual Rows"), number(node, "Rows Removed by Filter"));
    format!("{kind} {index} rows={rows} removed={removed}")
}

fn number(node: &Value, field: &str) -> f64 {
    node[field].as_f64().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_found_between_other_lines_of_a_log() {
        let log = "x LOG:  checkpoint\nx LOG:  duration: 1 ms  plan:\n\t{\n\t  \"Query Text\": \"SELECT 1\",\n\t  \
                   \"Plan\": { \"Node Type\": \"Sort\", \"Actual Rows\": 7, \"Plans\": [ { \"Node Type\": \"Seq Scan\", \
                   \"Actual Loops\": 1 } ] }\n\t}\nx LOG:  checkpoint";
        let plans = plans(log);
        assert_eq!((plans.len(), plans[0].text()), (1, "SELECT 1"));
        assert_eq!((plans[0].rows_sorted(), plans[0].n_sequential()), (7.0, 1.0));
    }
}
