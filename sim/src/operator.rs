//! What operators do to a cluster while it runs. Each act goes to one node, which may be down, cut off or
//! busy: then nothing comes of it.

use std::sync::Arc;

use torc_protocol::cluster_io::ClusterInput;
use torc_ring::{Bucket, Config};

use crate::world::World;

impl World {
    /// A new config with the same members: a new ring version, or another bucket.
    pub(crate) fn new_config(&mut self, node: usize) {
        let this = &self.nodes[node];
        let Some(latest) = this.latest().filter(|_| this.serving).cloned() else {
            return;
        };
        if self.rng.chance(700) {
            self.count("fault: new ring version");
            let config = Arc::new(latest.reissued());
            self.cluster_input(node, ClusterInput::Propose(config));
            return;
        }
        let mut config = Config::clone(&latest);
        config.version.0 += 1;
        let id = config.next_bucket;
        config.next_bucket.0 += 1;
        let name = format!("x{}-{}", id.0, self.rng.below(1 << 20));
        config.buckets.truncate(1);
        let mut bucket = Bucket::new(id, &name);
        // With fewer owners it could be without a majority from the start, where members are lost.
        let first = &config.buckets[0];
        (bucket.n, bucket.r, bucket.w) = (first.n, first.r, first.w);
        config.buckets.push(bucket);
        self.count("fault: new config");
        self.cluster_input(node, ClusterInput::Propose(Arc::new(config)));
    }

    /// Several operators want something else at the same time, each of another node.
    pub(crate) fn new_configs(&mut self, node: usize) {
        self.new_config(node);
        for other in 0..self.nodes.len() {
            if other != node && self.rng.chance(500) {
                self.new_config(other);
            }
        }
    }
}
