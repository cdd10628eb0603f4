//! What the manifests say about torc, and about each other, against what is so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use torc_e2e::process::torc;

use crate::manifests::{find, folder};

const ROUTES: [&str; 3] = ["/health/live", "/health/ready", "/metrics"];

fn pod() -> Value {
    find("StatefulSet", "torc")["spec"]["template"].clone()
}

fn node(pod: &Value) -> Value {
    pod["spec"]["containers"][0].clone()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value} is no text"))
}

pub(crate) fn script(name: &str) -> String {
    text(&find("ConfigMap", "torc")["data"][name]).to_owned()
}

/// What a command of torc prints.
fn says(arguments: &[&str]) -> String {
    let home = TempDir::new().expect("a folder");
    let output = torc(home.path())
        .args(arguments)
        .output()
        .expect("run torc");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

/// A port of the pod by name or number.
fn port(wanted: &Value) -> (String, u64, String) {
    let pod = pod();
    let node = node(&pod);
    let found = list(&node["ports"])
        .iter()
        .find(|port| port["name"] == *wanted || port["containerPort"] == *wanted);
    let found = found.unwrap_or_else(|| panic!("the pod has no port {wanted}"));
    (
        text(&found["name"]).to_owned(),
        found["containerPort"].as_u64().expect("a number"),
        text(&found["protocol"]).to_owned(),
    )
}

/// Port of a listener in torc.toml.
fn listener(name: &str) -> u64 {
    let settings = script("torc.toml");
    let line = settings
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} = \"0.0.0.0:")));
    let line = line.unwrap_or_else(|| panic!("torc.toml does not set {name}"));
    line.trim_end_matches('"').parse().expect("a port")
}

#[test]
fn the_settings_are_valid_and_the_variables_are_settings() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("torc.toml");
    let pod = pod();
    let node = node(&pod);
    // What the variables add has a say in whether the file is right.
    let advertised = list(&node["env"]).iter().filter_map(|variable| {
        let name = text(&variable["name"]).strip_prefix("TORC_ADVERTISE_")?;
        let value = text(&variable["value"]).replace("$(TORC_NAME)", "torc-0");
        Some(format!(
            "advertise_{} = \"{value}\"\n",
            name.to_ascii_lowercase()
        ))
    });
    let whole = script("torc.toml") + &advertised.collect::<String>();
    fs::write(&file, whole).expect("write");
    says(&["config", "check", file.to_str().expect("a path")]);

    let settings = says(&["config", "default"]);
    let known: BTreeSet<&str> = settings
        .lines()
        .filter_map(|line| line.trim_start_matches(['#', ' ']).split_once(" = "))
        .map(|(name, _)| name)
        .collect();
    let containers = [
        &pod["spec"]["containers"][0],
        &pod["spec"]["initContainers"][0],
    ];
    for variable in containers
        .iter()
        .flat_map(|container| list(&container["env"]))
    {
        let name = text(&variable["name"]);
        if let Some(setting) = name.strip_prefix("TORC_")
            && name != "TORC_CONFIG"
        {
            let setting = setting.to_ascii_lowercase();
            assert!(known.contains(setting.as_str()), "{name} is no setting");
        }
    }
    // The image sets it too, and a variable hides what the file says.
    assert!(image().contains("ENV TORC_DATA="));
    assert!(
        list(&node["env"])
            .iter()
            .any(|variable| variable["name"] == "TORC_DATA")
    );
}

fn image() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/Dockerfile");
    fs::read_to_string(path).expect("the Dockerfile")
}

/// The commands of torc in a script: the words that name each, and what follows on its line.
fn commands(script: &str) -> Vec<(Vec<&str>, Vec<&str>)> {
    let is_word = |word: &&&str| word.chars().all(|c| c.is_ascii_lowercase());
    let code = script
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let mut found = Vec::new();
    for line in code {
        let words: Vec<&str> = line
            .split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '"'))
            .filter(|word| !word.is_empty())
            .collect();
        for (at, word) in words.iter().enumerate() {
            let rest = &words[at + 1..];
            // `on` is what scale.sh calls `kubectl exec torc-0 … -- torc` by.
            let named: Vec<&str> = rest.iter().take_while(is_word).copied().collect();
            let is_namespace = at > 0 && words[at - 1] == "--namespace";
            if matches!(*word, "torc" | "on") && !is_namespace && !named.is_empty() {
                found.push((named, rest.to_vec()));
            }
        }
    }
    found
}

#[test]
fn the_scripts_give_commands_and_flags_that_exist() {
    let read = |name: &str| fs::read_to_string(folder().join(name)).expect(name);
    let scripts = [
        script("start.sh"),
        script("pki.sh"),
        read("bring-up.sh"),
        read("scale.sh"),
    ];
    let mut given = BTreeSet::new();
    for (words, rest) in scripts.iter().flat_map(|script| commands(script)) {
        let help = says(&[words.as_slice(), &["--help"]].concat());
        for flag in rest.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{words:?} has no {flag}");
        }
        given.insert(words.join(" "));
    }
    let expected = [
        "pki init",
        "pki issue",
        "ring follow",
        "ring leave",
        "ring show",
        "serve",
        "status",
    ];
    assert_eq!(given, expected.map(str::to_owned).into());
}

#[test]
fn ports_agree_from_the_listener_to_the_policy() {
    for (name, protocol) in [("http", "TCP"), ("admin", "TCP"), ("peer", "UDP")] {
        let (_, number, found) = port(&json!(name));
        assert_eq!(
            (number, found.as_str()),
            (listener(name), protocol),
            "{name}"
        );
    }
    for service in ["torc", "torc-peers"] {
        let service = find("Service", service);
        for open in list(&service["spec"]["ports"]) {
            let (_, number, protocol) = port(&open["targetPort"]);
            assert_eq!(open["port"], number);
            assert_eq!(open["protocol"], protocol);
        }
    }
    let policy = find("NetworkPolicy", "torc");
    let inward: Vec<_> = list(&policy["spec"]["ingress"])
        .iter()
        .flat_map(|rule| list(&rule["ports"]))
        .map(|open| {
            let (name, _, protocol) = port(&open["port"]);
            assert_eq!(open["protocol"], protocol);
            name
        })
        .collect();
    assert_eq!(inward, ["peer", "http", "admin"]);
    let outward = &policy["spec"]["egress"][0]["ports"][0];
    assert_eq!(outward["port"], listener("peer"));
    assert_eq!(outward["protocol"], "UDP");
    let annotations = &pod()["metadata"]["annotations"];
    assert_eq!(
        annotations["prometheus.io/port"],
        listener("admin").to_string()
    );
    assert_eq!(annotations["prometheus.io/path"], ROUTES[2]);
}

#[test]
fn every_selector_selects_the_pods() {
    let labels = pod()["metadata"]["labels"].clone();
    let set = find("StatefulSet", "torc")["spec"].clone();
    let spread = &set["template"]["spec"]["topologySpreadConstraints"][0];
    let apart = &set["template"]["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [0];
    let policy = find("NetworkPolicy", "torc")["spec"].clone();
    let selectors = [
        set["selector"]["matchLabels"].clone(),
        find("Service", "torc")["spec"]["selector"].clone(),
        find("Service", "torc-peers")["spec"]["selector"].clone(),
        find("PodDisruptionBudget", "torc")["spec"]["selector"]["matchLabels"].clone(),
        spread["labelSelector"]["matchLabels"].clone(),
        apart["labelSelector"]["matchLabels"].clone(),
        policy["podSelector"]["matchLabels"].clone(),
        policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"].clone(),
        policy["egress"][0]["to"][0]["podSelector"]["matchLabels"].clone(),
    ];
    for selector in selectors {
        let selector = selector.as_object().expect("labels");
        assert!(!selector.is_empty());
        for (name, value) in selector {
            assert_eq!(labels.get(name), Some(value), "{name}");
        }
    }
}

#[test]
fn a_pod_is_found_under_the_name_that_it_gives() {
    let set = find("StatefulSet", "torc");
    let service = find("Service", text(&set["spec"]["serviceName"]));
    assert_eq!(service["spec"]["clusterIP"], "None");
    assert_eq!(
        service["spec"]["publishNotReadyAddresses"], true,
        "a node is ready only when it has found the others"
    );
    let domain = format!(
        "{}.{}.svc.cluster.local",
        text(&service["metadata"]["name"]),
        text(&set["metadata"]["namespace"])
    );
    let pod = pod();
    let node = node(&pod);
    let value = |name: &str| {
        let found = list(&node["env"]).iter().find(|v| v["name"] == name);
        text(&found.unwrap_or_else(|| panic!("no {name}"))["value"]).to_owned()
    };
    let (peer, http) = (listener("peer"), listener("http"));
    assert_eq!(
        value("TORC_ADVERTISE_PEER"),
        format!("$(TORC_NAME).{domain}:{peer}")
    );
    assert_eq!(
        value("TORC_ADVERTISE_HTTP"),
        format!("$(TORC_NAME).{domain}:{http}")
    );
    let replicas = set["spec"]["replicas"].as_u64().expect("a number");
    let seeds: Vec<String> = (0..replicas)
        .map(|number| format!("torc-{number}.{domain}:{peer}"))
        .collect();
    let given = value("SEEDS");
    assert_eq!(given.split_whitespace().collect::<Vec<_>>(), seeds);
    assert_eq!(
        set["spec"]["podManagementPolicy"], "Parallel",
        "one after the other would wait for the first one, which waits for a majority"
    );
}

#[test]
fn what_is_mounted_is_there_and_the_data_outlives_the_pod() {
    let set = find("StatefulSet", "torc")["spec"].clone();
    let pod = &set["template"]["spec"];
    let claims = list(&set["volumeClaimTemplates"]);
    let mut there: BTreeSet<&str> = list(&pod["volumes"])
        .iter()
        .map(|volume| text(&volume["name"]))
        .collect();
    there.extend(claims.iter().map(|claim| text(&claim["metadata"]["name"])));
    let containers = [&pod["initContainers"][0], &pod["containers"][0]];
    for container in containers {
        for mount in list(&container["volumeMounts"]) {
            assert!(there.contains(text(&mount["name"])), "{mount}");
        }
        let command = text(&container["command"][1]);
        let name = command
            .strip_prefix("/etc/torc/")
            .expect("a script of the config");
        assert!(!script(name).is_empty());
    }
    let mounts = |container: &Value, name: &str| {
        list(&container["volumeMounts"])
            .iter()
            .any(|mount| mount["name"] == name)
    };
    assert!(mounts(containers[0], "ca") && !mounts(containers[1], "ca"));
    assert!(mounts(containers[1], "data"));
    let kept = &set["persistentVolumeClaimRetentionPolicy"];
    assert_eq!(
        (&kept["whenDeleted"], &kept["whenScaled"]),
        (&json!("Retain"), &json!("Retain"))
    );
}

#[test]
fn the_pods_are_confined_and_run_as_the_user_of_the_image() {
    let image = image();
    let pod = pod()["spec"].clone();
    let context = &pod["securityContext"];
    let user = context["runAsUser"].as_u64().expect("a number");
    assert!(image.contains(&format!("useradd --uid {user} ")));
    assert_eq!(context["runAsNonRoot"], true);
    for container in [&pod["initContainers"][0], &pod["containers"][0]] {
        let confined = &container["securityContext"];
        assert_eq!(confined["allowPrivilegeEscalation"], false);
        assert_eq!(confined["readOnlyRootFilesystem"], true);
        assert_eq!(confined["capabilities"]["drop"], json!(["ALL"]));
        assert!(!container["resources"]["limits"]["memory"].is_null());
    }
    assert_eq!(pod["automountServiceAccountToken"], false);
}

#[test]
fn a_pod_has_the_time_that_it_needs_to_stop_in_order() {
    let pod = pod()["spec"].clone();
    let sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
        .as_u64()
        .expect("a number");
    let grace = pod["terminationGracePeriodSeconds"]
        .as_u64()
        .expect("a number");
    let settings = says(&["config", "default"]);
    let shutdown: u64 = settings
        .lines()
        .find_map(|line| {
            line.trim_start_matches(['#', ' '])
                .strip_prefix("shutdown = \"")
        })
        .and_then(|rest| rest.split('s').next()?.parse().ok())
        .expect("limits.shutdown");
    // Requests in work, the shards' last words, and RocksDB's flush.
    assert!(
        grace >= sleep + 2 * shutdown,
        "{grace} s for {sleep} s and {shutdown} s"
    );
    let not_ready = &pod["containers"][0]["readinessProbe"];
    assert!(not_ready["periodSeconds"].as_u64() <= Some(sleep));
}

/// Paths that probes and Prometheus ask, in the order of [`ROUTES`].
pub(crate) fn asked() -> Vec<(String, String)> {
    let pod = pod();
    let node = node(&pod);
    let probe = |name: &str| {
        let asks = &node[name]["httpGet"];
        (text(&asks["path"]).to_owned(), port(&asks["port"]).0)
    };
    let mut asked: Vec<_> = ["startupProbe", "livenessProbe", "readinessProbe"]
        .map(probe)
        .into();
    asked.push((ROUTES[2].to_owned(), "admin".to_owned()));
    asked
}
