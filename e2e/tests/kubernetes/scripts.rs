//! The scripts of the pods and of operators, run with real nodes: `start.sh` and `pki.sh` as the pod's
//! containers run them, `bring-up.sh` and `scale.sh` with a stand-in of kubectl that has torc's commands carried
//! out.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use torc_e2e::http::{self, Request};
use torc_e2e::process::{bound, spawn, torc};
use torc_e2e::{alone, binary, ports, wait};

use crate::agree::{self, script};
use crate::manifests::folder;

/// Unoptimised nodes on a busy machine.
const READY_MAX: Duration = Duration::from_secs(60);
const CHANGE_MAX: Duration = Duration::from_secs(180);
const REQUEST_MAX: Duration = Duration::from_secs(5);

/// Four pods of which three are there at first.
struct Pods {
    folder: TempDir,
    pods: Vec<Pod>,
}

struct Pod {
    name: String,
    http: SocketAddr,
    admin: SocketAddr,
    peer: SocketAddr,
    child: Option<Child>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Pods {
    fn new() -> Self {
        let folder = TempDir::new().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["torc.toml", "start.sh"] {
            fs::write(at(name), script(name)).expect("write");
        }
        fs::create_dir(at("bin")).expect("a folder");
        std::os::unix::fs::symlink(binary::torc(), at("bin/torc")).expect("link");
        let made = torc(folder.path())
            .args(["pki", "init", "--out"])
            .arg(at("ca"))
            .output()
            .expect("run torc");
        assert!(made.status.success(), "{made:?}");
        let pod = |number: usize| Pod {
            name: format!("torc-{number}"),
            http: ports::free(),
            admin: ports::free(),
            peer: ports::free(),
            child: None,
        };
        let pods = (0..4).map(pod).collect();
        Self { folder, pods }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where commands are looked for: the tested binary and the stand-in of kubectl first.
    fn path(&self) -> String {
        let others = std::env::var("PATH").unwrap_or_default();
        format!("{}:{others}", self.at("bin").display())
    }

    /// A command without the caller's own settings.
    fn command(&self, program: &Path) -> Command {
        let mut command = bound(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TORC_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.folder.path())
            .env("PATH", self.path())
            .stdin(Stdio::null());
        command
    }

    /// What the init container does, with this pod's folders in place of the container's.
    fn issue(&self, number: usize) {
        let name = &self.pods[number].name;
        let (issue, pki) = (
            self.at(&format!("{name}-issue")),
            self.at(&format!("{name}-pki")),
        );
        for folder in [&issue, &pki] {
            // Empty again, as the folders in memory of a new pod are; the first time there is none.
            let _ = fs::remove_dir_all(folder);
            fs::create_dir(folder).expect("a folder");
        }
        let text = script("pki.sh")
            .replace("/ca/", &format!("{}/", self.at("ca").display()))
            .replace("/issue", &issue.display().to_string())
            .replace("/pki/", &format!("{}/", pki.display()));
        let path = self.at(&format!("{name}-pki.sh"));
        fs::write(&path, text).expect("write");
        let output = self
            .command(Path::new("/bin/sh"))
            .arg(&path)
            .env("TORC_NAME", name)
            .output()
            .expect("run sh");
        assert!(output.status.success(), "{output:?}");
        let entries = fs::read_dir(&pki).expect("a folder");
        let mut left: Vec<String> = entries
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        left.sort();
        assert_eq!(
            left,
            [
                "ca.pem".to_owned(),
                format!("{name}.key"),
                format!("{name}.pem")
            ]
        );
        assert!(
            !issue.join("ca.key").exists(),
            "the authority's key is not left behind"
        );
    }

    fn start(&mut self, number: usize, bootstrap: &str) {
        self.issue(number);
        let seeds: Vec<String> = self.pods[..3]
            .iter()
            .map(|pod| pod.peer.to_string())
            .collect();
        let pod = &self.pods[number];
        let log = File::create(self.at(&format!("{}.log", pod.name))).expect("a log");
        let mut command = self.command(Path::new("/bin/sh"));
        command
            .arg(self.at("start.sh"))
            .env("TORC_CONFIG", self.at("torc.toml"))
            .env("TORC_NAME", &pod.name)
            .env("TORC_DATA", self.at(&format!("{}-data", pod.name)))
            .env("TORC_PKI", self.at(&format!("{}-pki", pod.name)))
            .env("TORC_HTTP", pod.http.to_string())
            .env("TORC_ADMIN", pod.admin.to_string())
            .env("TORC_PEER", pod.peer.to_string())
            .env("TORC_ADVERTISE_PEER", pod.peer.to_string())
            .env("TORC_ADVERTISE_HTTP", pod.http.to_string())
            .env("TORC_STORAGE_BLOCK_CACHE", "8MiB")
            .env("POD_ZONE", ["zone-a", "zone-b", "zone-c", ""][number])
            .env("SEEDS", seeds.join(" "))
            .env("BOOTSTRAP_POD", bootstrap)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        let child = spawn(command);
        self.pods[number].child = Some(child);
    }

    fn wait_ready(&self, number: usize) {
        let pod = &self.pods[number];
        let what = format!(
            "{} to be ready ({})",
            pod.name,
            self.at(&format!("{}.log", pod.name)).display()
        );
        wait::until(&what, READY_MAX, || {
            match http::send(pod.http, &Request::get("/health/ready"), REQUEST_MAX) {
                Ok(response) if response.status == 200 => Ok(()),
                Ok(response) => Err(format!("{} {}", response.status, response.text())),
                Err(error) => Err(error.to_string()),
            }
        });
    }

    fn wait_exit(&mut self, number: usize) -> ExitStatus {
        let pod = &mut self.pods[number];
        let mut child = pod.child.take().expect("it runs");
        wait::until(&format!("{} to end", pod.name), READY_MAX, || {
            match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("it runs".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn ring(&self) -> serde_json::Value {
        let answer =
            http::send(self.pods[0].admin, &Request::get("/ring"), REQUEST_MAX).expect("an answer");
        serde_json::from_str(&answer.text()).expect("JSON")
    }

    fn members(&self) -> Vec<String> {
        let ring = self.ring();
        let members = ring["members"].as_array().expect("members").iter();
        let mut names: Vec<String> = members
            .map(|member| member["name"].as_str().expect("a name").to_owned())
            .collect();
        names.sort();
        names
    }
}

/// `kubectl` that remembers what it was asked and what there is, and has the commands of `exec` carried out here.
const KUBECTL: &str = r#"#!/bin/sh
set -eu
[ "$1" != --namespace ] || shift 2
echo "$*" >>"$FAKE/log"
ready() {
  tries=0
  until torc health --node "$1" >/dev/null 2>&1; do
    tries=$((tries + 1)); [ "$tries" -lt 600 ]; sleep 0.1
  done
}
case "$1 $2" in
  "get statefulset") cat "$FAKE/replicas" ;;
  "get persistentvolumeclaim") [ ! -e "$FAKE/claims/$3" ] || echo "persistentvolumeclaim/$3" ;;
  "get persistentvolumeclaims") ls "$FAKE/claims" ;;
  "get configmap") [ ! -e "$FAKE/bootstrap" ] || cat "$FAKE/bootstrap" ;;
  "get secret") [ ! -e "$FAKE/secret" ] || echo secret/torc-ca ;;
  "create secret") touch "$FAKE/secret" ;;
  "create configmap") printf %s "${4#--from-literal=pod=}" >"$FAKE/bootstrap" ;;
  "patch configmap") printf none >"$FAKE/bootstrap" ;;
  "apply --filename") [ -s "$3" ] ;;
  "apply --kustomize") [ -s "$3/kustomization.yaml" ]; touch "$FAKE/applied" ;;
  "rollout status") for node in $FAKE_NODES; do ready "$node"; done ;;
  "exec torc-0") while [ "$1" != -- ]; do shift; done; shift; exec "$@" ;;
  "scale statefulset")
    [ "$4" = "--current-replicas=$(cat "$FAKE/replicas")" ]
    printf %s "${5#--replicas=}" >"$FAKE/replicas" ;;
  "wait --for=create" | "wait --for=delete") ;;
  "wait --for=condition=Ready") ready "$FAKE_NEW" ;;
  "delete persistentvolumeclaim") rm "$FAKE/claims/$3" ;;
  *) echo "kubectl was asked for $*" >&2; exit 1 ;;
esac
"#;

impl Pods {
    fn kubectl(&self) {
        let fake = self.at("fake");
        fs::create_dir_all(fake.join("claims")).expect("a folder");
        fs::write(fake.join("replicas"), "3").expect("write");
        fs::write(fake.join("log"), "").expect("write");
        let program = self.at("bin/kubectl");
        fs::write(&program, KUBECTL).expect("write");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    }

    fn claim(&self, name: &str) -> PathBuf {
        self.at("fake/claims").join(name)
    }

    /// A script of operators; what it says goes into `script.log`.
    fn operator(&self, script: &str, argument: &str) -> Child {
        let log = File::create(self.at("script.log")).expect("a log");
        let nodes: Vec<String> = self.pods[..3]
            .iter()
            .map(|pod| pod.http.to_string())
            .collect();
        let mut command = self.command(&folder().join(script));
        command
            .arg(argument)
            .env("FAKE", self.at("fake"))
            .env("FAKE_NODES", nodes.join(" "))
            .env("FAKE_NEW", self.pods[3].http.to_string())
            .env("TORC_ADMIN_URL", self.pods[0].admin.to_string())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log);
        spawn(command)
    }

    /// Waits for its end; answers whether it succeeded and what it said.
    fn ended(&self, mut script: Child) -> (bool, String) {
        let said = || fs::read_to_string(self.at("script.log")).unwrap_or_default();
        let status = wait::until("a script to end", CHANGE_MAX, || match script.try_wait() {
            Ok(Some(status)) => Ok(status),
            Ok(None) => Err(said()),
            Err(error) => Err(error.to_string()),
        });
        (status.success(), said())
    }

    /// Waits until a script has had kubectl do something.
    fn wait_for(&self, what: &str, look: impl Fn() -> bool) {
        wait::until(what, CHANGE_MAX, || {
            let said = fs::read_to_string(self.at("script.log")).unwrap_or_default();
            if look() { Ok(()) } else { Err(said) }
        });
    }

    /// `bring-up.sh`, and pods as the StatefulSet starts them: all at once.
    fn bring_up(&mut self) {
        let ca = self.at("ca").display().to_string();
        let script = self.operator("bring-up.sh", &ca);
        let applied = self.at("fake/applied");
        self.wait_for("the manifests to be applied", || applied.exists());
        let bootstrap = fs::read_to_string(self.at("fake/bootstrap")).expect("the ConfigMap");
        for number in 0..3 {
            fs::write(self.claim(&format!("data-torc-{number}")), "").expect("write");
            self.start(number, &bootstrap);
        }
        let (succeeded, said) = self.ended(script);
        assert!(succeeded, "{said}");
        let bootstrap = fs::read_to_string(self.at("fake/bootstrap")).expect("the ConfigMap");
        assert_eq!(bootstrap, "none", "nobody may bootstrap any more");
        let (succeeded, said) = self.ended(self.operator("bring-up.sh", &ca));
        assert!(
            !succeeded && said.contains("was brought up already"),
            "{said}"
        );
    }

    fn asked(&self) -> Vec<String> {
        let log = fs::read_to_string(self.at("fake/log")).expect("a log");
        log.lines().map(str::to_owned).collect()
    }
}

#[test]
fn pods_form_a_cluster_that_grows_and_shrinks_without_losing_a_key() {
    let _alone = alone();
    let mut pods = Pods::new();
    pods.kubectl();
    pods.bring_up();
    assert_eq!(pods.members(), ["torc-0", "torc-1", "torc-2"]);
    let ring = pods.ring();
    let zones = ring["members"]
        .as_array()
        .expect("members")
        .iter()
        .map(|m| m["zone"].clone());
    let mut zones: Vec<_> = zones
        .map(|zone| zone.as_str().expect("a zone").to_owned())
        .collect();
    zones.sort();
    assert_eq!(zones, ["zone-a", "zone-b", "zone-c"]);
    for (path, port) in agree::asked() {
        let address = if port == "admin" {
            pods.pods[1].admin
        } else {
            pods.pods[1].http
        };
        let answer = http::send(address, &Request::get(&path), REQUEST_MAX).expect("an answer");
        assert_eq!(answer.status, 200, "{path} on {port}");
    }
    let key = |number: usize| format!("/kv/default/key-{number}");
    for number in 0..50 {
        let put = Request::put(&key(number), format!("value {number}"));
        let http = pods.pods[number % 3].http;
        // On a busy machine a node may refuse a request early, and says so; then it is made again.
        wait::until("a value to be stored", CHANGE_MAX, || {
            let answer = http::send(http, &put, REQUEST_MAX).map_err(|error| error.to_string())?;
            match answer.status {
                204 => Ok(()),
                status => Err(format!("{status} {}", answer.text())),
            }
        });
    }

    let growing = pods.operator("scale.sh", "4");
    let replicas = pods.at("fake/replicas");
    let are_four = || fs::read_to_string(&replicas).is_ok_and(|text| text == "4");
    pods.wait_for("the fourth pod to be asked for", are_four);
    fs::write(pods.claim("data-torc-3"), "").expect("write");
    pods.start(3, "none");
    let (succeeded, said) = pods.ended(growing);
    assert!(succeeded, "{said}");
    assert_eq!(pods.members(), ["torc-0", "torc-1", "torc-2", "torc-3"]);

    let shrinking = pods.operator("scale.sh", "3");
    assert!(
        pods.wait_exit(3).success(),
        "a node that has left ends with 0"
    );
    let (succeeded, said) = pods.ended(shrinking);
    assert!(succeeded, "{said}");
    assert_eq!(pods.members(), ["torc-0", "torc-1", "torc-2"]);
    assert!(!pods.claim("data-torc-3").exists(), "its volume goes");
    let asked = pods.asked();
    let at = |wanted: &str| {
        let found = asked.iter().position(|line| line.contains(wanted));
        found.unwrap_or_else(|| panic!("kubectl was not asked to {wanted}: {asked:#?}"))
    };
    let order = [
        at("torc ring leave torc-3 --yes"),
        at("--replicas=3"),
        at("delete persistentvolumeclaim data-torc-3"),
    ];
    assert!(order.is_sorted(), "{asked:#?}");
    for number in 0..50 {
        let http = pods.pods[(number + 1) % 3].http;
        let get = Request::get(&key(number));
        let found = wait::until("a value to be read", CHANGE_MAX, || {
            let answer = http::send(http, &get, REQUEST_MAX).map_err(|error| error.to_string())?;
            match answer.status {
                503 => Err(answer.text()),
                _ => Ok(answer.text()),
            }
        });
        assert_eq!(found, format!("value {number}"));
    }

    // A second command finds nothing to do; a hand that took a pod away without leaving is noticed.
    let (succeeded, said) = pods.ended(pods.operator("scale.sh", "3"));
    assert!(succeeded, "{said}");
    fs::write(&replicas, "2").expect("write");
    let (succeeded, said) = pods.ended(pods.operator("scale.sh", "3"));
    assert!(
        !succeeded && said.contains("torc-2 was taken away without having left the ring"),
        "{said}"
    );
    assert!(pods.claim("data-torc-2").exists());
}

#[test]
fn a_pod_without_its_volume_makes_no_second_cluster() {
    let _alone = alone();
    let mut pods = Pods::new();
    pods.start(0, "torc-0");
    pods.wait_ready(0);
    // bring-up.sh says "none" when it is done; the pod comes back with an empty volume.
    drop(
        pods.pods[0]
            .child
            .take()
            .map(|mut child| (child.kill(), child.wait())),
    );
    fs::remove_dir_all(pods.at("torc-0-data")).expect("remove");
    pods.start(0, "none");
    wait::until("the pod to look for others", READY_MAX, || {
        let log = fs::read_to_string(pods.at("torc-0.log")).unwrap_or_default();
        if log.contains("cannot reach a node to join") || log.contains("does not answer") {
            Ok(())
        } else {
            Err(log)
        }
    });
    let ready = http::send(
        pods.pods[0].http,
        &Request::get("/health/ready"),
        REQUEST_MAX,
    );
    assert_eq!(ready.expect("an answer").status, 503);
}
