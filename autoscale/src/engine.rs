//! The Docker engine: containers like those of Compose, with other names, networks' aliases and volumes.
//!
//! What is made here carries labels ([`PROJECT`], [`KIND`], [`NAME`]) and nothing else is ever touched. A node
//! is its data volume: while that is there, the node is.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::errors::Error as Bollard;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerSummaryStateEnum, EndpointSettings,
    HostConfig, NetworkConnectRequest, NetworkingConfig, RestartPolicy, RestartPolicyNameEnum,
    VolumeCreateRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder, WaitContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt as _;
use tokio::time::timeout;

use crate::chores::Container;

/// Label: the Compose project that it belongs to.
const PROJECT: &str = "torc.project";
/// Label: `node` or `worker`.
const KIND: &str = "torc.added";
/// Label: the node's name.
const NAME: &str = "torc.name";
/// Label: seconds since 1970 when it was made.
const CREATED: &str = "torc.created";
/// Label of every worker's container, in compose.yaml too.
const ROLE: &str = "torc.role";
const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// Names that Nginx and Prometheus ask the network for.
const NODES_ALIAS: &str = "torc-nodes";
const ADDED_NODES_ALIAS: &str = "torc-added-nodes";
const ADDED_WORKERS_ALIAS: &str = "torc-added-workers";

/// For one call; a stop may take as long as it is allowed to.
const CALL_SECONDS_MAX: u64 = 60;
/// Above what a node needs to stop in order.
const STOP_SECONDS_MAX: i32 = 20;
/// For a certificate to be issued.
const ISSUE_MAX: Duration = Duration::from_secs(60);

/// The engine, and which containers are the patterns for new ones.
#[derive(Debug)]
pub(crate) struct Engine {
    docker: Docker,
    project: String,
    node: String,
    worker: String,
}

/// A node or worker that was added here.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    pub(crate) name: String,
    pub(crate) container: Container,
    /// Time since it was made.
    pub(crate) age: Duration,
}

/// Why the engine did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It refused, or does not answer.
    #[error("the Docker engine cannot {what} {name}: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// On what.
        name: String,
        /// What it said.
        source: Bollard,
    },
    /// There is nothing to make a new one like.
    #[error(
        "the project {project} has no container of the service {service} to make another one like it"
    )]
    NoTemplate {
        /// The Compose project.
        project: String,
        /// The service.
        service: String,
    },
    /// It is not known which containers are the cluster's.
    #[error("this is no container of a Compose project ({host}): name the project with --project")]
    NoProject {
        /// Its host name.
        host: String,
    },
    /// The one-shot container that issues certificates did not do it.
    #[error("no certificate was issued for {name} within {ISSUE_MAX:?}")]
    NoCertificate {
        /// Of the node.
        name: String,
    },
}

fn failed(what: &'static str, name: &str) -> impl FnOnce(Bollard) -> EngineError {
    let name = name.to_owned();
    move |source| EngineError::Refused { what, name, source }
}

impl Engine {
    /// Connects, and finds out the project if it is not named.
    pub(crate) async fn connect(
        socket: &str,
        project: Option<&str>,
        (node, worker): (&str, &str),
    ) -> Result<Self, EngineError> {
        let docker = Docker::connect_with_socket(socket, CALL_SECONDS_MAX, API_DEFAULT_VERSION)
            .map_err(failed("be reached at", socket))?;
        let docker = docker
            .negotiate_version()
            .await
            .map_err(failed("be reached at", socket))?;
        let project = match project {
            Some(project) => project.to_owned(),
            None => own_project(&docker).await?,
        };
        Ok(Self {
            docker,
            project,
            node: node.to_owned(),
            worker: worker.to_owned(),
        })
    }

    /// Nodes that were added here, the oldest first.
    pub(crate) async fn nodes(&self) -> Result<Vec<Added>, EngineError> {
        let containers = self.containers("node").await?;
        let filters = self.filters("node");
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listed = self.docker.list_volumes(Some(options)).await;
        let listed = listed.map_err(failed("list the volumes of", &self.project))?;
        let mut added: Vec<Added> = Vec::new();
        for volume in listed.volumes.unwrap_or_default() {
            let (Some(name), created) = (volume.labels.get(NAME), volume.labels.get(CREATED))
            else {
                continue;
            };
            if added.iter().any(|node| node.name == *name) {
                continue;
            }
            let container = containers.iter().find(|(other, _)| other == name);
            added.push(Added {
                name: name.clone(),
                container: container.map_or(Container::Missing, |(_, state)| *state),
                age: age(created),
            });
        }
        added.sort_by(|a, b| b.age.cmp(&a.age).then(a.name.cmp(&b.name)));
        Ok(added)
    }

    /// Names of workers that were added here, and how many workers run, those of Compose included.
    pub(crate) async fn workers(&self) -> Result<(Vec<String>, u32), EngineError> {
        let added = self.containers("worker").await?;
        let mut names: Vec<_> = added.into_iter().map(|(name, _)| name).collect();
        names.sort();
        let filters = HashMap::from([("label", vec![format!("{ROLE}=worker")])]);
        let running = self.list(&filters).await?;
        let ours = |labels: &HashMap<String, String>| {
            [COMPOSE_PROJECT, PROJECT]
                .iter()
                .any(|label| labels.get(*label) == Some(&self.project))
        };
        let count = running
            .iter()
            .filter(|(labels, state)| ours(labels) && *state == Container::Running);
        Ok((names, count.count() as u32))
    }

    /// Makes and starts a node: volumes, a certificate, a container.
    pub(crate) async fn add_node(&self, name: &str, zone: Option<&str>) -> Result<(), EngineError> {
        for what in ["pki", "data"] {
            let labels = self.labels("node", name);
            let volume = VolumeCreateRequest {
                name: Some(self.volume(name, what)),
                labels: Some(labels),
                ..VolumeCreateRequest::default()
            };
            let made = self.docker.create_volume(volume).await;
            made.map_err(failed("make a volume for", name))?;
        }
        self.issue(name).await?;
        self.start_node(name, zone).await
    }

    /// Starts a node on its volumes; makes its container first if that is not there.
    pub(crate) async fn start_node(
        &self,
        name: &str,
        zone: Option<&str>,
    ) -> Result<(), EngineError> {
        let exists = self.containers("node").await?;
        if !exists.iter().any(|(other, _)| other == name) {
            let template = self.template(&self.node).await?;
            let volumes = [
                (self.volume(name, "data"), "/data"),
                (self.volume(name, "pki"), "/pki"),
            ];
            let mut body = like(&template, &volumes);
            body.labels
                .get_or_insert_default()
                .extend(self.labels("node", name));
            body.env = Some(environment(body.env.take().unwrap_or_default(), name, zone));
            if let Some(host) = &mut body.host_config {
                // One that has left the ring ends with 0, and must not be started again.
                host.restart_policy = Some(RestartPolicy {
                    name: Some(RestartPolicyNameEnum::ON_FAILURE),
                    maximum_retry_count: None,
                });
            }
            let aliases = |present: &[String]| {
                let mut aliases = vec![name.to_owned()];
                if present.iter().any(|alias| alias == NODES_ALIAS) {
                    aliases.extend([NODES_ALIAS, ADDED_NODES_ALIAS].map(str::to_owned));
                }
                aliases
            };
            self.create(name, &template, body, aliases).await?;
        }
        self.start(name).await
    }

    /// Makes and starts a worker.
    pub(crate) async fn add_worker(&self, name: &str) -> Result<(), EngineError> {
        let template = self.template(&self.worker).await?;
        let mut body = like(&template, &[]);
        body.labels
            .get_or_insert_default()
            .extend(self.labels("worker", name));
        let aliases = |_: &[String]| vec![name.to_owned(), ADDED_WORKERS_ALIAS.to_owned()];
        self.create(name, &template, body, aliases).await?;
        self.start(name).await
    }

    /// Stops it in order, then removes its container and its volumes. What is gone already is no error.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let container = self.container(name);
        let options = StopContainerOptionsBuilder::new()
            .t(STOP_SECONDS_MAX)
            .build();
        let stopped = self.docker.stop_container(&container, Some(options)).await;
        gone_is_fine(stopped).map_err(failed("stop", &container))?;
        self.discard(&container).await?;
        // Left by somebody who was killed while a certificate was issued.
        let issuing = format!("{container}-pki");
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let removed = self.docker.remove_container(&issuing, Some(options)).await;
        gone_is_fine(removed).map_err(failed("remove", &issuing))?;
        for what in ["pki", "data"] {
            let volume = self.volume(name, what);
            let none = None::<bollard::query_parameters::RemoveVolumeOptions>;
            let removed = self.docker.remove_volume(&volume, none).await;
            gone_is_fine(removed).map_err(failed("remove the volume", &volume))?;
        }
        Ok(())
    }

    /// Has a container like the project's `pki` issue a certificate into the node's own volume: the key of
    /// the certificate authority stays in the volume that it is in.
    async fn issue(&self, name: &str) -> Result<(), EngineError> {
        let template = self.template("pki").await?;
        let mut body = like(&template, &[(self.volume(name, "pki"), "/issued/added")]);
        body.labels
            .get_or_insert_default()
            .extend(self.labels("pki", name));
        body.cmd = Some(vec![format!("{name}=added")]);
        if let Some(host) = &mut body.host_config {
            host.restart_policy = None;
        }
        let container = format!("{}-{name}-pki", self.project);
        let options = CreateContainerOptionsBuilder::new()
            .name(&container)
            .build();
        let made = self.docker.create_container(Some(options), body).await;
        made.map_err(failed("make", &container))?;
        let issued = async {
            self.docker
                .start_container(
                    &container,
                    None::<bollard::query_parameters::StartContainerOptions>,
                )
                .await
                .map_err(failed("start", &container))?;
            let mut ends = self
                .docker
                .wait_container(&container, None::<WaitContainerOptions>);
            while let Some(end) = ends.next().await {
                end.map_err(failed("issue a certificate in", &container))?;
            }
            Ok(())
        };
        let issued = timeout(ISSUE_MAX, issued).await.unwrap_or_else(|_| {
            Err(EngineError::NoCertificate {
                name: name.to_owned(),
            })
        });
        let discarded = self.discard(&container).await;
        issued.and(discarded)
    }

    /// Removes a container and its volumes, running or not. What is gone already is no error.
    async fn discard(&self, container: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let removed = self.docker.remove_container(container, Some(options)).await;
        gone_is_fine(removed).map_err(failed("remove", container))
    }

    async fn create(
        &self,
        name: &str,
        template: &ContainerInspectResponse,
        mut body: ContainerCreateBody,
        aliases: impl Fn(&[String]) -> Vec<String>,
    ) -> Result<(), EngineError> {
        let container = self.container(name);
        let networks = template
            .network_settings
            .as_ref()
            .and_then(|settings| settings.networks.clone())
            .unwrap_or_default();
        let endpoint = |settings: &EndpointSettings| EndpointSettings {
            aliases: Some(aliases(settings.aliases.as_deref().unwrap_or_default())),
            ..EndpointSettings::default()
        };
        // An older engine takes one network with the container, and the others one by one.
        let first = body
            .host_config
            .as_ref()
            .and_then(|host| host.network_mode.clone());
        let (with, after): (Vec<_>, Vec<_>) = networks
            .iter()
            .partition(|(network, _)| Some(*network) == first.as_ref());
        let endpoints: HashMap<_, _> = with
            .into_iter()
            .map(|(network, settings)| (network.clone(), endpoint(settings)))
            .collect();
        body.networking_config = Some(NetworkingConfig {
            endpoints_config: Some(endpoints),
        });
        let options = CreateContainerOptionsBuilder::new()
            .name(&container)
            .build();
        let made = self.docker.create_container(Some(options), body).await;
        made.map_err(failed("make", &container))?;
        for (network, settings) in after {
            let request = NetworkConnectRequest {
                container: container.clone(),
                endpoint_config: Some(endpoint(settings)),
            };
            let connected = self.docker.connect_network(network, request).await;
            connected.map_err(failed("connect to its networks", &container))?;
        }
        Ok(())
    }

    async fn start(&self, name: &str) -> Result<(), EngineError> {
        let container = self.container(name);
        let none = None::<bollard::query_parameters::StartContainerOptions>;
        let started = self.docker.start_container(&container, none).await;
        started.map_err(failed("start", &container))
    }

    async fn template(&self, service: &str) -> Result<ContainerInspectResponse, EngineError> {
        let labels = vec![
            format!("{COMPOSE_PROJECT}={}", self.project),
            format!("{COMPOSE_SERVICE}={service}"),
        ];
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        let found = self.docker.list_containers(Some(options)).await;
        let found = found.map_err(failed("list the containers of", service))?;
        let id = found.into_iter().find_map(|container| container.id);
        let Some(id) = id else {
            return Err(EngineError::NoTemplate {
                project: self.project.clone(),
                service: service.to_owned(),
            });
        };
        let none = None::<bollard::query_parameters::InspectContainerOptions>;
        let seen = self.docker.inspect_container(&id, none).await;
        seen.map_err(failed("look at", service))
    }

    /// Names and states of the containers that were added here.
    async fn containers(&self, kind: &str) -> Result<Vec<(String, Container)>, EngineError> {
        let listed = self.list(&self.filters(kind)).await?;
        let named = |(labels, state): (HashMap<String, String>, Container)| {
            Some((labels.get(NAME)?.clone(), state))
        };
        Ok(listed.into_iter().filter_map(named).collect())
    }

    async fn list(
        &self,
        filters: &HashMap<&str, Vec<String>>,
    ) -> Result<Vec<(HashMap<String, String>, Container)>, EngineError> {
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(filters)
            .build();
        let found = self.docker.list_containers(Some(options)).await;
        let found = found.map_err(failed("list the containers of", &self.project))?;
        let state = |state| match state {
            Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::RESTARTING) => {
                Container::Running
            }
            _ => Container::Stopped,
        };
        let one = |container: bollard::models::ContainerSummary| {
            (container.labels.unwrap_or_default(), state(container.state))
        };
        Ok(found.into_iter().map(one).collect())
    }

    fn filters(&self, kind: &str) -> HashMap<&'static str, Vec<String>> {
        let labels = vec![
            format!("{PROJECT}={}", self.project),
            format!("{KIND}={kind}"),
        ];
        HashMap::from([("label", labels)])
    }

    fn labels(&self, kind: &str, name: &str) -> HashMap<String, String> {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        HashMap::from([
            (PROJECT.to_owned(), self.project.clone()),
            (KIND.to_owned(), kind.to_owned()),
            (NAME.to_owned(), name.to_owned()),
            (CREATED.to_owned(), created.to_string()),
        ])
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.project)
    }

    fn volume(&self, name: &str, what: &str) -> String {
        format!("{}_{name}-{what}", self.project)
    }
}

/// The project of the container that this runs in.
async fn own_project(docker: &Docker) -> Result<String, EngineError> {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    let none = None::<bollard::query_parameters::InspectContainerOptions>;
    let labels = match docker.inspect_container(host, none).await {
        Ok(seen) => seen
            .config
            .and_then(|config| config.labels)
            .unwrap_or_default(),
        Err(_) => HashMap::new(),
    };
    labels
        .get(COMPOSE_PROJECT)
        .cloned()
        .ok_or_else(|| EngineError::NoProject {
            host: host.to_owned(),
        })
}

/// A container like this one: its image, command, limits and files, but not its name, its place in Compose,
/// or what it has mounted where the new one has volumes of its own.
fn like(template: &ContainerInspectResponse, volumes: &[(String, &str)]) -> ContainerCreateBody {
    let config = template.config.clone().unwrap_or_default();
    let mut labels = config.labels.unwrap_or_default();
    labels.retain(|label, _| !label.starts_with("com.docker.compose."));
    let mut host: HostConfig = template.host_config.clone().unwrap_or_default();
    let own = |target: &str| {
        volumes.iter().any(|(_, at)| {
            target == *at || (at.starts_with("/issued/") && target.starts_with("/issued/"))
        })
    };
    let binds = host.binds.get_or_insert_default();
    binds.retain(|bind| !own(bind.split(':').nth(1).unwrap_or_default()));
    binds.extend(
        volumes
            .iter()
            .map(|(volume, at)| format!("{volume}:{at}:rw")),
    );
    if let Some(mounts) = &mut host.mounts {
        mounts.retain(|mount| !own(mount.target.as_deref().unwrap_or_default()));
    }
    ContainerCreateBody {
        image: config.image,
        user: config.user,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        env: config.env,
        labels: Some(labels),
        healthcheck: config.healthcheck,
        working_dir: config.working_dir,
        stop_signal: config.stop_signal,
        stop_timeout: config.stop_timeout,
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// The environment of a node like that one, under another name: it joins through that one and its peers.
fn environment(template: Vec<String>, name: &str, zone: Option<&str>) -> Vec<String> {
    let of = |wanted: &str| {
        let found = template.iter().find_map(|pair| {
            let (variable, value) = pair.split_once('=')?;
            (variable == wanted).then(|| value.to_owned())
        });
        found.unwrap_or_default()
    };
    let port = |address: String, usual: &str| match address.rsplit_once(':') {
        Some((_, port)) => port.to_owned(),
        None => usual.to_owned(),
    };
    let peers = [of("TORC_ADVERTISE_PEER"), of("TORC_JOIN")];
    let peers: Vec<_> = peers.into_iter().filter(|peer| !peer.is_empty()).collect();
    let mut own = vec![
        ("TORC_NAME", name.to_owned()),
        (
            "TORC_ADVERTISE_HTTP",
            format!("{name}:{}", port(of("TORC_HTTP"), "8081")),
        ),
        (
            "TORC_ADVERTISE_PEER",
            format!("{name}:{}", port(of("TORC_PEER"), "7081")),
        ),
        ("TORC_JOIN", peers.join(",")),
    ];
    own.extend(zone.map(|zone| ("TORC_ZONE", zone.to_owned())));
    let kept = template.into_iter().filter(|pair| {
        let variable = pair.split('=').next().unwrap_or_default();
        own.iter().all(|(name, _)| *name != variable)
    });
    let own = own.iter().map(|(name, value)| format!("{name}={value}"));
    kept.chain(own).collect()
}

fn age(created: Option<&String>) -> Duration {
    let created = created.and_then(|text| text.parse().ok()).unwrap_or(0);
    let then = UNIX_EPOCH + Duration::from_secs(created);
    SystemTime::now().duration_since(then).unwrap_or_default()
}

fn gone_is_fine(outcome: Result<(), Bollard>) -> Result<(), Bollard> {
    match outcome {
        Err(Bollard::DockerResponseServerError {
            status_code: 404 | 304,
            ..
        }) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::{ContainerConfig, Mount};

    use super::*;

    #[test]
    fn a_node_like_another_has_its_own_name_and_joins_through_it() {
        let of = [
            "TORC_NAME=node-1",
            "TORC_ADVERTISE_PEER=node-1:7081",
            "TORC_JOIN=node-2:7081",
            "TORC_ZONE=a",
            "X=1",
        ];
        let made = environment(of.map(str::to_owned).to_vec(), "added-1", Some("b"));
        assert_eq!(
            made,
            [
                "X=1",
                "TORC_NAME=added-1",
                "TORC_ADVERTISE_HTTP=added-1:8081",
                "TORC_ADVERTISE_PEER=added-1:7081",
                "TORC_JOIN=node-1:7081,node-2:7081",
                "TORC_ZONE=b",
            ]
        );
    }

    #[test]
    fn a_container_like_another_shares_its_files_but_not_its_data_nor_its_place_in_compose() {
        let text = |text: &str| text.to_owned();
        let template = ContainerInspectResponse {
            config: Some(ContainerConfig {
                image: Some(text("torc:local")),
                hostname: Some(text("abc")),
                labels: Some(HashMap::from([
                    (text("com.docker.compose.service"), text("node-1")),
                    (text("torc.role"), text("node")),
                ])),
                ..ContainerConfig::default()
            }),
            host_config: Some(HostConfig {
                binds: Some(vec![
                    text("/x/start.sh:/etc/torc/start.sh:ro"),
                    text("p_node-1-data:/data:rw"),
                ]),
                mounts: Some(vec![Mount {
                    target: Some(text("/pki")),
                    ..Mount::default()
                }]),
                ..HostConfig::default()
            }),
            ..ContainerInspectResponse::default()
        };
        let volumes = [(text("p_n-data"), "/data"), (text("p_n-pki"), "/pki")];
        let body = like(&template, &volumes);
        let host = body.host_config.expect("limits");
        assert_eq!(
            host.binds.expect("files"),
            [
                "/x/start.sh:/etc/torc/start.sh:ro",
                "p_n-data:/data:rw",
                "p_n-pki:/pki:rw"
            ]
        );
        assert_eq!(host.mounts.expect("mounts"), []);
        assert_eq!(
            (body.hostname, body.image.as_deref()),
            (None, Some("torc:local"))
        );
        let labels = body.labels.expect("labels");
        assert_eq!(labels.keys().collect::<Vec<_>>(), ["torc.role"]);
    }
}
