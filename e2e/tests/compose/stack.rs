//! The platform of `docker/compose.yaml`, started and ended by the scripts that `make up` and `make down` run.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs, thread};

use serde_json::Value;
use torc_e2e::{binary, ports};

/// Which Compose: users have either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compose {
    /// docker-compose 1.29, which Debian packages.
    One,
    /// The plugin of docker, from version 2 on: the machine's, or that which `scripts/compose.sh` has fetched.
    Two,
}

impl Compose {
    /// Those that this machine has.
    pub(crate) fn all() -> Vec<Self> {
        let all: Vec<_> = [Self::Two, Self::One]
            .into_iter()
            .filter(|compose| compose.is_there())
            .collect();
        assert!(!all.is_empty(), "no Compose: run scripts/services.sh");
        all
    }

    /// This one if the machine has it, else the other one.
    pub(crate) fn or_other(self) -> Self {
        let all = Self::all();
        if all.contains(&self) {
            return self;
        }
        eprintln!("NOT TESTED: with {self:?}, which this machine lacks");
        all[0]
    }

    fn is_there(self) -> bool {
        let mut command = self.command();
        let answer = command.arg("version").output();
        answer.is_ok_and(|output| output.status.success())
    }

    /// The program, without arguments.
    pub(crate) fn command(self) -> Command {
        let mut command = match self {
            Self::One => Command::new("docker-compose"),
            Self::Two => {
                let mut command = Command::new("docker");
                command.arg("compose");
                command
            }
        };
        command.envs(self.variables());
        command
    }

    /// By which the scripts take this one.
    fn variables(self) -> Vec<(&'static str, String)> {
        match self {
            Self::One => vec![("TORC_COMPOSE", "1".to_owned())],
            Self::Two => {
                let mut variables = vec![("TORC_COMPOSE", "2".to_owned())];
                if let Some(fetched) = fetched() {
                    variables.push(("DOCKER_CONFIG", fetched.display().to_string()));
                }
                variables
            }
        }
    }
}

/// Where `scripts/compose.sh` has put the plugin.
fn fetched() -> Option<PathBuf> {
    let cache = env::var_os("TORC_CACHE_DIR")
        .map(PathBuf::from)
        .or_else(|| {
            let of_user = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            let base =
                of_user.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?;
            Some(base.join("torc"))
        })?;
    let folder = cache.join("compose");
    let plugin = folder.join("cli-plugins/docker-compose");
    plugin.is_file().then_some(folder)
}

/// A name of our own, so that nothing of a user's own platform is touched.
const IMAGE: &str = "torc:e2e";

pub(crate) fn docker_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker")
}

/// Whether there is a Docker engine. Without one these tests cannot say anything: a failure where that must
/// not pass unnoticed (`CI=true`), unless `TORC_WITHOUT_DOCKER=1` says that it is known.
pub(crate) fn has_engine() -> bool {
    let answer = Command::new("docker").arg("info").output();
    let reason = match answer {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let given_up = env::var("TORC_WITHOUT_DOCKER").is_ok_and(|value| value == "1");
    let message = format!("NOT TESTED: Compose. No Docker engine answers ({reason}).");
    assert!(
        given_up || env::var_os("CI").is_none(),
        "{message} TORC_WITHOUT_DOCKER=1 lets this pass."
    );
    eprintln!("{message}");
    false
}

#[track_caller]
pub(crate) fn succeed(command: &mut Command) -> String {
    let output: Output = command
        .output()
        .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

#[track_caller]
pub(crate) fn docker(arguments: &[&str]) -> String {
    succeed(Command::new("docker").args(arguments))
}

pub(crate) struct Stack {
    project: String,
    compose: Compose,
    pub(crate) http: SocketAddr,
    pub(crate) prometheus: SocketAddr,
    grafana: SocketAddr,
    /// Further variables of the scripts.
    pub(crate) variables: Vec<(&'static str, &'static str)>,
    down: bool,
}

impl Stack {
    pub(crate) fn new(compose: Compose) -> Self {
        Self {
            project: format!("torc-e2e-{}", std::process::id()),
            compose,
            http: ports::free(),
            prometheus: ports::free(),
            grafana: ports::free(),
            variables: Vec::new(),
            down: false,
        }
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(docker_folder().join(name));
        for (variable, _) in env::vars_os() {
            if variable.to_string_lossy().starts_with("TORC_") {
                command.env_remove(variable);
            }
        }
        if let Some(cache) = env::var_os("TORC_CACHE_DIR") {
            command.env("TORC_CACHE_DIR", cache);
        }
        command
            .envs(self.variables.iter().copied())
            .envs(self.compose.variables())
            .env("COMPOSE_PROJECT_NAME", &self.project)
            .env("TORC_IMAGE", IMAGE)
            .env("TORC_HTTP_PORT", self.http.port().to_string())
            .env("TORC_PROMETHEUS_PORT", self.prometheus.port().to_string())
            .env("TORC_GRAFANA_PORT", self.grafana.port().to_string())
            // Two of these at a time, or one beside a user's own, must not want the same addresses.
            .env("TORC_SIDE_NET", format!("172.31.{}", std::process::id() % 250));
        command
    }

    /// `make up PROFILE=...`, with the tested binary and without asking a registry. Returns what it said.
    #[track_caller]
    pub(crate) fn up(&self, profile: &str) -> String {
        let mut command = self.script("up.sh");
        command
            .arg(profile)
            .env("TORC_OFFLINE", "1")
            .env("TORC_BIN", binary::torc())
            .env("TORC_HEALTHY_SECONDS_MAX", "900");
        succeed(&mut command)
    }

    /// `make down DATA=1`.
    #[track_caller]
    pub(crate) fn down(&mut self) {
        self.down = true;
        succeed(self.script("down.sh").arg("--data"));
    }

    /// What is there of this project: containers, volumes, networks, those that were added too.
    pub(crate) fn left(&self) -> Vec<String> {
        let of_compose = format!("label=com.docker.compose.project={}", self.project);
        let mut left = self.added();
        let lists: [&[&str]; 3] = [
            &["ps", "-a", "--format", "container {{.Names}}"],
            &["volume", "ls", "--format", "volume {{.Name}}"],
            &["network", "ls", "--format", "network {{.Name}}"],
        ];
        left.extend(lists.iter().flat_map(|list| {
            let text = docker(&[list, &["--filter", of_compose.as_str()][..]].concat());
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        }));
        left
    }

    /// Containers and volumes that the autoscaler has added.
    pub(crate) fn added(&self) -> Vec<String> {
        let label = format!("label=torc.project={}", self.project);
        let lists: [&[&str]; 2] = [
            &["ps", "-a", "--format", "container {{.Names}}"],
            &["volume", "ls", "--format", "volume {{.Name}}"],
        ];
        lists
            .iter()
            .flat_map(|list| {
                let text = docker(&[list, &["--filter", label.as_str()][..]].concat());
                text.lines().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }

    /// Name of the container of a service; both versions of Compose put a label on it.
    pub(crate) fn container(&self, service: &str) -> String {
        let project = format!("label=com.docker.compose.project={}", self.project);
        let label = format!("label=com.docker.compose.service={service}");
        let name = docker(&[
            "ps",
            "-a",
            "--filter",
            &project,
            "--filter",
            &label,
            "--format",
            "{{.Names}}",
        ]);
        assert_eq!(name.lines().count(), 1, "containers of {service}: {name:?}");
        name.trim().to_owned()
    }

    /// `docker inspect` of every container.
    pub(crate) fn inspect(&self) -> Vec<Value> {
        let label = format!("label=com.docker.compose.project={}", self.project);
        let ids = docker(&["ps", "-aq", "--filter", &label]);
        let mut arguments = vec!["inspect"];
        arguments.extend(ids.split_whitespace());
        let all: Value = serde_json::from_str(&docker(&arguments)).expect("docker prints JSON");
        all.as_array().expect("a list").clone()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if thread::panicking() {
            for container in self
                .left()
                .iter()
                .filter_map(|what| what.strip_prefix("container "))
            {
                let log = Command::new("docker")
                    .args(["logs", "--tail", "15", container])
                    .output();
                let log = log
                    .map(|log| [log.stdout, log.stderr].concat())
                    .unwrap_or_default();
                let state = Command::new("docker")
                    .args(["inspect", "--format", "{{json .State}}", container])
                    .output()
                    .map(|output| output.stdout)
                    .unwrap_or_default();
                eprintln!(
                    "---- {container}: {}{}",
                    String::from_utf8_lossy(&state),
                    String::from_utf8_lossy(&log)
                );
            }
        }
        if !self.down {
            let ended = self.script("down.sh").arg("--data").output();
            if !ended.is_ok_and(|output| output.status.success()) {
                eprintln!("the platform {} could not be taken down", self.project);
            }
        }
        // The layers below stay in the builder's cache.
        let _ = Command::new("docker")
            .args(["rmi", "--no-prune", IMAGE])
            .output();
        let _ = fs::remove_file(docker_folder().join("build/torc"));
    }
}
