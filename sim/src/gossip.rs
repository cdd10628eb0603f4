//! What gossip tells each node: late, partly, differently, and now and then wrongly.

use torc_protocol::cluster_io::ClusterInput;
use torc_protocol::shard_io::Input;
use torc_protocol::time::MS;
use torc_ring::NodeId;

use crate::world::{Ev, World};

impl World {
    /// A node looks at what gossip tells it: who is alive, and who knows which config.
    pub(crate) fn gossip(&mut self, node: usize) {
        let after = self.rng.between(50 * MS, 150 * MS);
        self.schedule(after, Ev::Gossip { node });
        if !self.nodes[node].is_up() {
            return;
        }
        if self.nodes[node].latest().is_none() {
            if self.rng.chance(200) {
                self.name_contacts(node);
            }
            return;
        }
        if !self.nodes[node].serving && self.rng.chance(50) {
            // The nodes that it is started with may be others than those that it remembers.
            self.name_contacts(node);
        }
        self.look_who_lives(node);
        self.look_at_news(node);
    }

    fn look_who_lives(&mut self, node: usize) {
        let members: Vec<NodeId> = self.nodes[node]
            .latest()
            .into_iter()
            .flat_map(|config| config.all_members())
            .map(|member| member.id)
            .filter(|id| *id != self.nodes[node].member.id)
            .collect();
        let mut believed = self.nodes[node].believed_dead.clone();
        believed.retain(|id| members.contains(id));
        for id in members {
            let gone = self.index_of(id).is_none_or(|other| {
                !self.nodes[other].is_up()
                    || self.nodes[other].paused_until > self.now
                    || self.cuts.contains(&(other, node))
            });
            let lie = self.rng.chance(self.faults.lies);
            if lie {
                self.count("fault: wrong belief");
            }
            if lie || self.rng.chance(600) {
                if gone ^ lie {
                    believed.insert(id);
                } else {
                    believed.remove(&id);
                }
            }
        }
        if believed != self.nodes[node].believed_dead {
            self.nodes[node].believed_dead.clone_from(&believed);
            self.mail_all(node, || Input::Liveness(believed.iter().copied().collect()));
        }
    }

    fn look_at_news(&mut self, node: usize) {
        let other = self.rng.below(self.nodes.len() as u64) as usize;
        let known = self.nodes[node].latest().map(|config| config.version);
        let theirs = self.nodes[other].latest().map(|config| config.version);
        if other == node || self.cuts.contains(&(other, node)) || !self.rng.chance(300) {
            return;
        }
        if let Some(version) = theirs.filter(|version| Some(*version) > known) {
            let id = self.nodes[other].member.id;
            self.mail_cluster(node, ClusterInput::NewerConfig(id, version));
        }
    }
}
