//! What the files of `docker/` promise, read off the files: no engine is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use serde_json::Value;
use tempfile::TempDir;

use crate::stack::docker_folder;

/// Whoever may be reached from outside.
const PUBLISHED: [(&str, &str); 3] = [
    (
        "nginx",
        "${TORC_BIND:-127.0.0.1}:${TORC_HTTP_PORT:-8080}:8080",
    ),
    (
        "prometheus",
        "${TORC_BIND:-127.0.0.1}:${TORC_PROMETHEUS_PORT:-9090}:9090",
    ),
    (
        "grafana",
        "${TORC_BIND:-127.0.0.1}:${TORC_GRAFANA_PORT:-3000}:3000",
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `compose.yaml` as it stands: variables are not filled in, fields of merged maps are.
fn compose() -> Value {
    let text = read(&docker_folder().join("compose.yaml"));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("compose.yaml: {error}"))
}

fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn texts(value: &Value) -> Vec<&str> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

#[test]
fn only_nginx_prometheus_and_grafana_are_published_and_on_loopback_unless_told_otherwise() {
    let file = compose();
    let mut published = BTreeMap::new();
    let mut inside = BTreeSet::new();
    for (name, service) in fields(&file["services"]) {
        assert!(
            service["network_mode"].is_null() || service["network_mode"] == "none",
            "{name} has a network of its own kind: {}",
            service["network_mode"]
        );
        let ports = texts(&service["ports"]);
        if !ports.is_empty() {
            published.insert(name.as_str(), ports);
        }
        let networks = match &service["networks"] {
            Value::Object(map) => map.keys().map(String::as_str).collect(),
            list => texts(list),
        };
        if networks.contains(&"front") {
            inside.insert(name.as_str());
        }
    }
    let wanted: BTreeMap<_, _> = PUBLISHED
        .iter()
        .map(|&(name, port)| (name, vec![port]))
        .collect();
    assert_eq!(published, wanted);
    // All others are only on networks that have no way out, and none in.
    assert_eq!(inside, published.keys().copied().collect());
    for (name, network) in fields(&file["networks"]) {
        assert_eq!(network["internal"] == true, name != "front", "{name}");
    }
}

#[test]
fn no_service_has_a_password_in_the_file_or_by_default() {
    let file = compose();
    let mut secrets = BTreeSet::new();
    for (name, service) in fields(&file["services"]) {
        for (variable, value) in fields(&service["environment"]) {
            let value = value.as_str().unwrap_or_default();
            let is_secret = ["PASSWORD", "SECRET", "TOKEN", "COOKIE"]
                .iter()
                .any(|word| variable.contains(word));
            if is_secret {
                let is_file = variable.ends_with("_FILE")
                    && (value.starts_with("/run/secrets/")
                        || value == format!("${{{variable}:-}}"));
                assert!(is_file, "{name}: {variable}={value}");
            }
        }
        secrets.extend(texts(&service["secrets"]).into_iter().map(str::to_owned));
    }
    let defined: BTreeSet<String> = fields(&file["secrets"])
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(secrets, defined, "each is used, and none is missing");
    // Each comes out of secrets.sh, which draws it; git never sees it.
    let script = read(&docker_folder().join("secrets.sh"));
    for name in &defined {
        assert!(
            script.contains(&format!("make {name} \"$(random)\"")),
            "{name}"
        );
        let place = &file["secrets"][name]["file"];
        assert_eq!(*place, format!("./secrets/{name}"), "{name}");
    }
    assert!(
        read(&root().join(".gitignore"))
            .lines()
            .any(|line| line == "/docker/secrets")
    );
    // RabbitMQ's `guest` is not made where another user is named.
    let rabbit = read(&docker_folder().join("rabbitmq/rabbitmq.conf"));
    assert!(rabbit.contains("default_user = torc"));
    assert!(!rabbit.contains("default_pass"));
}

/// The files that the image is built from, where the build would see them.
fn context() -> TempDir {
    let into = TempDir::with_prefix("torc-context-").expect("a folder");
    let rules = read(&root().join(".dockerignore"));
    let mut rules = rules.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(rules.next(), Some("*"), "nothing is in unless it is named");
    for rule in rules {
        let path = rule
            .strip_prefix('!')
            .unwrap_or_else(|| panic!("not an exception: {rule}"));
        copy(&root().join(path), &into.path().join(path));
    }
    into
}

/// Copies a file or a folder; what is not there is passed over, as Docker does.
fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in fs::read_dir(from).expect("a folder") {
            let name = entry.expect("an entry").file_name();
            copy(&from.join(&name), &to.join(&name));
        }
    } else if from.is_file() {
        fs::create_dir_all(to.parent().expect("a parent")).expect("a folder");
        fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
}

#[test]
fn the_build_context_holds_every_crate_and_nothing_secret() {
    let context = context();
    // Cargo wants the manifests of all members, and a source for each target.
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--locked",
            "--format-version",
            "1",
        ])
        .current_dir(context.path())
        .output()
        .expect("run cargo");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Every file that the sources take in is there. Tests come along, and are not built.
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = found["packages"].as_array().expect("packages");
    assert!(packages.len() > 8, "{} packages", packages.len());
    for (given, made) in included(&root(), context.path()) {
        assert!(made.is_file(), "{} is not in the context", given.display());
    }
    for secret in ["docker/secrets", ".git", "target"] {
        assert!(!context.path().join(secret).exists(), "{secret}");
    }
}

/// Where `include_str!` and `include_bytes!` of the sources in the context point: here, and there.
fn included(here: &Path, there: &Path) -> Vec<(PathBuf, PathBuf)> {
    let (mut found, mut folders) = (Vec::new(), vec![there.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                if !path.ends_with("e2e") && !path.ends_with("tests") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|end| end == "rs") {
                for part in read(&path).split("include_").skip(1) {
                    let quoted = part
                        .strip_prefix("str!(\"")
                        .or(part.strip_prefix("bytes!(\""));
                    if let Some((name, _)) = quoted.and_then(|rest| rest.split_once('"')) {
                        let made = folder.join(name);
                        let of = made.strip_prefix(there).unwrap_or(&made);
                        found.push((here.join(of), made.clone()));
                    }
                }
            }
        }
    }
    assert!(!found.is_empty(), "the console's page is one of them");
    found
}
