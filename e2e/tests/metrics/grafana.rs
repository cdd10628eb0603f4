//! What Grafana would not show, or show wrongly, though every query finds something. Grafana itself is not
//! packaged by Debian, so its files are checked for what it asks of them.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::queries::docker;

/// Kinds of panels that come with Grafana.
const KINDS: [&str; 8] = [
    "timeseries",
    "stat",
    "gauge",
    "bargauge",
    "table",
    "heatmap",
    "state-timeline",
    "text",
];
/// Columns of Grafana's grid.
const COLUMNS: u64 = 24;
/// Grafana's limit of a uid, in bytes.
const UID_MAX: usize = 40;

fn parse(path: &str) -> Value {
    let text =
        fs::read_to_string(docker().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    let found = value[name].as_str().filter(|text| !text.is_empty());
    found.unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn number(value: &Value, name: &str) -> u64 {
    value[name]
        .as_u64()
        .unwrap_or_else(|| panic!("no number {name} in {value}"))
}

/// The one data source that is provisioned: that of the Prometheus of `compose.yaml`.
fn source() -> Value {
    let file = parse("grafana/provisioning/datasources/prometheus.yml");
    assert_eq!(number(&file, "apiVersion"), 1);
    let [source] = list(&file["datasources"]) else {
        panic!("one data source: {file}")
    };
    assert_eq!(source["isDefault"], true);
    let compose = parse("compose.yaml");
    let address = text(source, "url").strip_prefix("http://").expect("a URL");
    let (host, port) = address.split_once(':').expect("a port");
    let ports = compose["services"][host]["ports"].to_string();
    assert!(ports.contains(&format!(":{port}\"")), "{host} has {ports}");
    source.clone()
}

fn check_panel(of: &str, panel: &Value, source: &Value, taken: &mut BTreeSet<(u64, u64)>) {
    let title = text(panel, "title");
    let at = format!("{of} / {title}");
    assert!(
        KINDS.contains(&text(panel, "type")),
        "{at}: {}",
        panel["type"]
    );
    let mut names = BTreeSet::new();
    for asker in list(&panel["targets"]).iter().chain([panel]) {
        let uses = &asker["datasource"];
        assert_eq!(uses["uid"], source["uid"], "{at}");
        assert_eq!(uses["type"], source["type"], "{at}");
    }
    for target in list(&panel["targets"]) {
        assert!(names.insert(text(target, "refId")), "{at}: {target}");
    }
    assert!(!names.is_empty(), "{at} asks nothing");
    let place = &panel["gridPos"];
    let (x, y) = (number(place, "x"), number(place, "y"));
    let (width, height) = (number(place, "w"), number(place, "h"));
    assert!(
        width > 0 && height > 0 && x + width <= COLUMNS,
        "{at}: {place}"
    );
    for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
        assert!(taken.insert(cell), "{at} lies upon another panel: {place}");
    }
}

#[test]
fn dashboards_are_as_grafana_wants_them_and_ask_the_provisioned_source() {
    let source = source();
    let (mut uids, mut titles) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(docker().join("grafana/dashboards")).expect("the folder") {
        let path = entry.expect("an entry").path();
        let read = fs::read_to_string(&path).expect("read");
        let dashboard: Value = serde_json::from_str(&read).expect("JSON");
        let title = text(&dashboard, "title");
        let uid = text(&dashboard, "uid");
        assert!(uid.len() <= UID_MAX && uids.insert(uid.to_owned()), "{uid}");
        assert!(titles.insert(title.to_owned()), "{title}");
        assert!(number(&dashboard, "schemaVersion") >= 36, "{title}");
        // A dashboard that is provisioned brings no id: it would be another one's.
        assert!(dashboard["id"].is_null(), "{title}");
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in list(&dashboard["panels"]) {
            assert!(ids.insert(number(panel, "id")), "{title}: {}", panel["id"]);
            check_panel(title, panel, &source, &mut taken);
        }
        assert!(!ids.is_empty(), "{title} has no panel");
        let mut variables = BTreeSet::new();
        for variable in list(&dashboard["templating"]["list"]) {
            assert_eq!(variable["datasource"]["uid"], source["uid"], "{title}");
            assert!(variables.insert(text(variable, "name")), "{title}");
        }
        // Each variable that a query uses is there; those with two underscores are Grafana's own.
        for part in read
            .split('$')
            .skip(1)
            .filter(|part| !part.starts_with("__"))
        {
            let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let name = &part[..end.unwrap_or(part.len())];
            assert!(variables.contains(name), "{title}: ${name}");
        }
    }
    assert!(uids.len() >= 5, "{uids:?}");
}

#[test]
fn grafana_finds_the_dashboards_where_compose_puts_them() {
    let provider = parse("grafana/provisioning/dashboards/torc.yml");
    let [provider] = list(&provider["providers"]) else {
        panic!("one provider")
    };
    assert_eq!(provider["type"], "file");
    let path = text(&provider["options"], "path");
    let compose = parse("compose.yaml");
    let mounts = &compose["services"]["grafana"]["volumes"];
    for mount in [
        format!("./grafana/dashboards:{path}:ro"),
        "./grafana/provisioning:/etc/grafana/provisioning:ro".to_owned(),
    ] {
        assert!(
            list(mounts).contains(&Value::from(mount.as_str())),
            "{mount}: {mounts}"
        );
    }
}
