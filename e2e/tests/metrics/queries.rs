//! The queries of dashboards and rules, and the series that an expression reads.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A query and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) origin: String,
    pub(crate) expression: String,
}

pub(crate) fn docker() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker")
}

/// Every query of every panel of every dashboard, with Grafana's variables replaced.
pub(crate) fn of_dashboards() -> Vec<Query> {
    let folder = docker().join("grafana/dashboards");
    let mut all = Vec::new();
    for entry in fs::read_dir(&folder).expect("the folder of dashboards") {
        let path = entry.expect("an entry").path();
        let text = fs::read_to_string(&path).expect("read a dashboard");
        let dashboard: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let title = dashboard["title"].as_str().expect("a title");
        let before = all.len();
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                let expression = target["expr"].as_str().expect("a query");
                all.push(Query {
                    origin: format!("{title} / {}", panel["title"].as_str().expect("a title")),
                    expression: expression
                        .replace("$__rate_interval", "30s")
                        .replace("$node", ".+"),
                });
            }
        }
        assert!(all.len() > before, "{} has no query", path.display());
        for variable in dashboard["templating"]["list"]
            .as_array()
            .expect("variables")
        {
            let query = variable["query"]["query"].as_str().expect("a query");
            let inner = query
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')'))
                .and_then(|rest| rest.rsplit_once(", "));
            let (series, label) =
                inner.unwrap_or_else(|| panic!("{title}: not understood: {query}"));
            all.push(Query {
                origin: format!("{title} / variable"),
                expression: format!("count by ({label}) ({series})"),
            });
        }
    }
    all
}

/// The series that an expression reads, with their selectors: `torc_ready{job="torc"}`. Names of labels and
/// functions are told apart by what our metrics' names begin with.
pub(crate) fn selectors(expression: &str) -> Vec<String> {
    const BEGINNINGS: [&str; 6] = [
        "torc_",
        "job:torc_",
        "job_op:",
        "job_target:",
        "instance:",
        "process_",
    ];
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    let mut all = Vec::new();
    let mut rest = expression;
    while let Some(begin) = rest.find(is_name) {
        rest = &rest[begin..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if name != "up"
            && !BEGINNINGS
                .iter()
                .any(|beginning| name.starts_with(beginning))
        {
            continue;
        }
        let mut selector = name.to_owned();
        if let Some(close) = rest.strip_prefix('{').and_then(|labels| labels.find('}')) {
            let (labels, after) = rest.split_at(close + 2);
            selector.push_str(labels);
            rest = after;
        }
        all.push(selector);
    }
    all
}

#[test]
fn the_series_of_an_expression_are_found() {
    assert_eq!(
        selectors(
            r#"sum by (job, le) (rate(torc_x_total{outcome=~"a|b"}[5m])) / up > 0.5 and job:torc_y:rate1m"#
        ),
        [r#"torc_x_total{outcome=~"a|b"}"#, "up", "job:torc_y:rate1m"]
    );
    assert_eq!(selectors("time() > 3"), [""; 0]);
}
