//! One verdict on a cluster, from what one of its nodes sees.

use serde::{Deserialize, Serialize};

use crate::change::ChangeView;
use crate::ring::{RingView, Routes};

/// `GET /cluster`, as far as the verdict needs it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ClusterView {
    pub(crate) seen_from: SeenFrom,
    pub(crate) not_ready: Option<String>,
    pub(crate) disk_full: bool,
    pub(crate) clock_trusted: Option<bool>,
    pub(crate) nodes: Vec<ClusterNode>,
}

/// The node that answered, which alone knows of its disk and its clock.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct SeenFrom {
    pub(crate) name: String,
}

/// A node in [`ClusterView`].
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ClusterNode {
    pub(crate) id: String,
    pub(crate) alive: Option<bool>,
    pub(crate) hints_waiting: u64,
    pub(crate) hint_bytes: u64,
}

/// Whether the cluster does what it promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every member is alive, and nothing waits.
    Healthy,
    /// Every key can be read and written with r = w = quorum, but something is amiss.
    Degraded,
    /// Some keys cannot be read or written with r = w = quorum.
    Unavailable,
}

/// What `torc status` shows. Its JSON is an interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// In one word.
    pub verdict: Verdict,
    /// Why it is not healthy; whole sentences.
    pub reasons: Vec<String>,
    /// How many further nodes may fail, whichever, with every key still read and written at
    /// r = w = quorum.
    pub failures_survived: u32,
    /// The node that this was seen from.
    pub seen_from: String,
    /// Version of the configuration.
    pub config_version: u64,
    /// What moves, while the ring changes.
    pub change: Option<ChangeStatus>,
    /// Seconds since which the least verified copy of the node that answered is known to agree with its
    /// other owners'.
    pub agreement_age_seconds: Option<f64>,
    /// Members, in order of their names.
    pub nodes: Vec<NodeStatus>,
}

/// A change of the ring that is running, in a [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeStatus {
    /// `proposing`, `moving` or `switching`.
    pub phase: String,
    /// Partitions that are complete, all nodes together.
    pub done: u64,
    /// Partitions that have to be.
    pub total: u64,
    /// Bytes received.
    pub bytes: u64,
    /// Names of the nodes that are not complete.
    pub waits_for: Vec<String>,
}

impl From<&ChangeView> for ChangeStatus {
    fn from(seen: &ChangeView) -> Self {
        let progress = seen.progress();
        Self {
            phase: seen.phase.clone(),
            done: progress.done,
            total: progress.total,
            bytes: progress.bytes,
            waits_for: seen.incomplete().map(str::to_owned).collect(),
        }
    }
}

/// A member in a [`Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Identity.
    pub id: String,
    /// Failure domain.
    pub zone: String,
    /// Data listener.
    pub http: String,
    /// Whether it is believed to be alive.
    pub alive: bool,
    /// Share of all replicas, 0..=1.
    pub share: f64,
    /// Writes that the node which answered keeps for it.
    pub hints_waiting: u64,
    /// Their bytes.
    pub hint_bytes: u64,
}

impl Status {
    /// Judges what a node shows.
    pub(crate) fn judge(
        ring: &RingView,
        cluster: &ClusterView,
        change: Option<&ChangeView>,
        agreement_age_seconds: Option<f64>,
    ) -> Self {
        let change = change.filter(|seen| !seen.is_idle()).map(Into::into);
        let mut nodes: Vec<NodeStatus> = ring
            .members
            .iter()
            .map(|member| {
                let seen = cluster.nodes.iter().find(|node| node.id == member.id);
                NodeStatus {
                    name: member.name.clone(),
                    id: member.id.clone(),
                    zone: member.zone.clone(),
                    http: member.http.clone(),
                    alive: seen.and_then(|node| node.alive).unwrap_or(member.alive),
                    share: member.share,
                    hints_waiting: seen.map_or(0, |node| node.hints_waiting),
                    hint_bytes: seen.map_or(0, |node| node.hint_bytes),
                }
            })
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        let spare = spare(ring, &nodes);
        let mut reasons = Vec::new();
        for node in nodes.iter().filter(|node| !node.alive) {
            reasons.push(format!("{} ({}) is not alive.", node.name, node.http));
        }
        let recovering = ring.members.iter().filter(|m| m.state == RECOVERING);
        for member in recovering {
            reasons.push(format!(
                "{} may have lost writes in a power cut: it gets them back from the others, and counts for no read until then.",
                member.name
            ));
        }
        if spare.is_none_or(|spare| spare < 0) {
            reasons.push("Some keys have too few live replicas for a quorum.".to_owned());
        }
        let few = ring
            .buckets
            .iter()
            .filter(|bucket| usize::from(bucket.n) > nodes.len());
        for bucket in few {
            reasons.push(format!(
                "Bucket `{}` asks for {} replicas, and there are {} nodes.",
                bucket.name,
                bucket.n,
                nodes.len()
            ));
        }
        let waiting: u64 = nodes.iter().map(|node| node.hints_waiting).sum();
        if waiting > 0 {
            reasons.push(format!(
                "{waiting} writes wait to be handed to nodes that missed them."
            ));
        }
        let here = &cluster.seen_from.name;
        if let Some(reason) = &cluster.not_ready {
            reasons.push(format!("{here} is not ready: {reason}."));
        }
        if cluster.disk_full {
            reasons.push(format!("The disk of {here} is full: it refuses writes."));
        }
        if cluster.clock_trusted == Some(false) {
            reasons.push(format!(
                "The clock of {here} is outside the allowed drift: it takes no fresh writes."
            ));
        }
        if ring.changing {
            reasons.push(moving(change.as_ref()));
        }
        let verdict = match spare {
            Some(0..) if reasons.is_empty() => Verdict::Healthy,
            Some(0..) => Verdict::Degraded,
            _ => Verdict::Unavailable,
        };
        Self {
            verdict,
            reasons,
            failures_survived: spare
                .and_then(|spare| u32::try_from(spare).ok())
                .unwrap_or(0),
            seen_from: here.clone(),
            config_version: ring.config_version,
            change,
            agreement_age_seconds,
            nodes,
        }
    }
}

/// What a member is said to be that may have lost records, and has not got them back yet.
const RECOVERING: &str = "recovering";

/// One sentence about a change that is running.
fn moving(change: Option<&ChangeStatus>) -> String {
    let Some(change) = change else {
        return "The ring is changing.".to_owned();
    };
    let waits = if change.waits_for.is_empty() {
        String::new()
    } else {
        format!("; it waits for {}", change.waits_for.join(", "))
    };
    format!(
        "The ring is changing: {}, {} of {} partitions are complete, {:.1} MiB received{waits}.",
        change.phase,
        change.done,
        change.total,
        change.bytes as f64 / f64::from(1 << 20)
    )
}

/// Live owners beyond what reads and writes need, of the partition that has the fewest of them; below zero
/// where a quorum is missing; `None` when the ring makes no sense.
fn spare(ring: &RingView, nodes: &[NodeStatus]) -> Option<i64> {
    let routes = Routes::compute(ring).ok()?;
    let tables = routes.ring();
    let alive = |id: &torc_ring::NodeId| {
        let id = id.to_string();
        nodes.iter().any(|node| node.alive && node.id == id)
    };
    let living: Vec<_> = routes
        .config()
        .current
        .iter()
        .map(|member| member.id)
        .filter(alive)
        .collect();
    let recovers = |id: &torc_ring::NodeId| {
        let id = id.to_string();
        let mut members = ring.members.iter();
        members.any(|m| m.id == id && m.state == RECOVERING)
    };
    let mut least = None;
    for bucket in &routes.config().buckets {
        for index in 0..tables.partitions() {
            let owners = tables.owners(bucket.n, torc_ring::PartitionId(index as u16));
            let live = owners.iter().filter(|id| living.contains(id));
            let readable = live.clone().filter(|id| !recovers(id)).count();
            // At most as many as there are replicas: 16.
            let over =
                |there: usize, required: usize| i64::from(there as u8) - i64::from(required as u8);
            let reads = over(readable, bucket.r.required(owners.len()));
            let writes = over(live.count(), bucket.w.required(owners.len()));
            let spare = reads.min(writes);
            least = Some(least.map_or(spare, |least: i64| least.min(spare)));
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::tests::view;

    #[test]
    fn a_whole_cluster_is_healthy_and_survives_what_its_quorums_allow() {
        let status = Status::judge(&view(3), &ClusterView::default(), None, None);
        assert_eq!(
            (status.verdict, status.failures_survived),
            (Verdict::Healthy, 1)
        );
        assert!(status.reasons.is_empty());
    }

    #[test]
    fn a_dead_node_degrades_and_a_second_one_stops_some_keys() {
        let mut ring = view(3);
        ring.members[1].alive = false;
        let status = Status::judge(&ring, &ClusterView::default(), None, None);
        assert_eq!(
            (status.verdict, status.failures_survived),
            (Verdict::Degraded, 0)
        );
        assert_eq!(status.reasons, ["node-2 (127.0.0.1:8082) is not alive."]);
        ring.members[2].alive = false;
        let status = Status::judge(&ring, &ClusterView::default(), None, None);
        assert_eq!(status.verdict, Verdict::Unavailable);
        assert!(
            status
                .reasons
                .iter()
                .any(|reason| reason.contains("too few live replicas"))
        );
    }

    #[test]
    fn a_node_that_recovers_is_named_and_counts_for_no_read() {
        let mut ring = view(3);
        ring.members[1].state = RECOVERING.into();
        let status = Status::judge(&ring, &ClusterView::default(), None, None);
        assert_eq!(
            (status.verdict, status.failures_survived),
            (Verdict::Degraded, 0)
        );
        assert!(
            status.reasons[0].starts_with("node-2 may have lost writes"),
            "{:?}",
            status.reasons
        );
        ring.members[0].state = RECOVERING.into();
        let status = Status::judge(&ring, &ClusterView::default(), None, None);
        assert_eq!(status.verdict, Verdict::Unavailable);
    }

    #[test]
    fn waiting_hints_and_too_few_nodes_are_named() {
        let cluster = ClusterView {
            nodes: vec![ClusterNode {
                id: format!("{:016x}", 1),
                hints_waiting: 3,
                ..ClusterNode::default()
            }],
            ..ClusterView::default()
        };
        let status = Status::judge(&view(2), &cluster, None, None);
        assert_eq!(status.verdict, Verdict::Degraded);
        assert!(status.reasons[0].contains("asks for 3 replicas, and there are 2 nodes"));
        assert!(status.reasons[1].contains("3 writes wait"));
    }

    #[test]
    fn a_running_change_is_told_with_what_it_waits_for() {
        let text = r#"{"phase":"moving","config_version":4,"ring_version":4,"plan":null,"last":null,"waiting":[],
            "nodes":[{"id":"4","name":"node-4","role":"joins","silent_ms":3,"config_version":4,
               "progress":{"covered":false,"done":5,"total":15,"bytes":1572864}}]}"#;
        let change: ChangeView = serde_json::from_str(text).expect("a change");
        let mut ring = view(3);
        ring.changing = true;
        let status = Status::judge(&ring, &ClusterView::default(), Some(&change), Some(2.5));
        assert_eq!(status.verdict, Verdict::Degraded);
        assert_eq!(
            status.reasons,
            [
                "The ring is changing: moving, 5 of 15 partitions are complete, 1.5 MiB received; it waits for node-4."
            ]
        );
        assert_eq!(status.change.map(|change| change.done), Some(5));
    }

    #[test]
    fn the_json_of_a_status_is_an_interface() {
        let status = Status::judge(&view(1), &ClusterView::default(), None, None);
        let expected = concat!(
            r#"{"verdict":"degraded","reasons":["Bucket `default` asks for 3 replicas, and there are 1 nodes."],"#,
            r#""failures_survived":0,"seen_from":"","config_version":3,"change":null,"#,
            r#""agreement_age_seconds":null,"nodes":[{"name":"node-1","id":"0000000000000001","#,
            r#""zone":"a","http":"127.0.0.1:8081","alive":true,"share":0.2,"hints_waiting":0,"hint_bytes":0}]}"#
        );
        assert_eq!(
            serde_json::to_string(&status).ok().as_deref(),
            Some(expected)
        );
    }
}
