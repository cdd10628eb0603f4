//! Counting answers: when a quorum is met, and when it cannot be met any more.
//!
//! Invariant: a node counts once, however often its answer arrives; in a joint config the current and the
//! target owners are counted separately (Ongaro, "Consensus: Bridging Theory and Practice", section 4.3).

use torc_ring::{NodeId, Owners};

/// What the answers so far amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Some are missing, and enough may still come.
    Pending,
    /// As many as required, in each ring.
    Met,
    /// So many refused that the rest cannot be enough.
    Unreachable,
}

/// Who is asked about a partition, and how many of them must answer, in each ring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    owners: Vec<NodeId>,
    required: usize,
    target: Option<(Vec<NodeId>, usize)>,
}

impl Need {
    /// Of so many owners, `required` says how many must answer; asked for each ring's actual number.
    #[must_use]
    pub fn new(owners: Owners<'_>, required: impl Fn(usize) -> usize) -> Self {
        let target = owners
            .target
            .map(|target| (target.to_vec(), required(target.len())));
        Self {
            owners: owners.current.to_vec(),
            required: required(owners.current.len()),
            target,
        }
    }

    /// Nothing has been answered yet.
    #[must_use]
    pub fn tally(&self) -> Tally {
        match &self.target {
            None => Tally::new(&self.owners, self.required),
            Some((target, required)) => {
                Tally::joint(&self.owners, self.required, target, *required)
            }
        }
    }

    /// The same number of answers from fewer owners: those that `may` answer.
    #[must_use]
    pub fn only(mut self, may: impl Fn(NodeId) -> bool) -> Self {
        self.owners.retain(|&node| may(node));
        if let Some((target, _)) = &mut self.target {
            target.retain(|&node| may(node));
        }
        self
    }

    /// The owners of both rings.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.tally().nodes
    }

    /// Whether the partition has two sets of owners.
    #[must_use]
    pub fn is_joint(&self) -> bool {
        self.target.is_some()
    }

    /// How many are required and how many there are of `able`, in the ring that lacks most; `None` when
    /// they suffice.
    #[must_use]
    pub fn shortage(&self, able: impl Fn(NodeId) -> bool, extra: usize) -> Option<(u8, u8)> {
        let mut tally = self.tally();
        let (fit, unfit): (Vec<NodeId>, Vec<NodeId>) =
            tally.nodes().iter().partition(|node| able(**node));
        for node in fit.into_iter().chain(unfit.into_iter().take(extra)) {
            tally.ack(node);
        }
        let lacks = tally.verdict() != Verdict::Met || tally.nodes.is_empty();
        lacks.then(|| (tally.required().max(1), tally.received()))
    }

    /// One answer fewer in each ring: what a deliberate bug is content with.
    pub(crate) fn lessened(mut self) -> Self {
        let lessen = |required: usize| required - usize::from(required > 1);
        self.required = lessen(self.required);
        if let Some((_, required)) = &mut self.target {
            *required = lessen(*required);
        }
        self
    }
}

/// Answers of the owners of one partition.
#[derive(Clone, Debug)]
pub struct Tally {
    nodes: Vec<NodeId>,
    current: Group,
    target: Option<Group>,
    acked: u32,
    failed: u32,
}

#[derive(Clone, Copy, Debug)]
struct Group {
    members: u32,
    required: u32,
}

/// Owners that a tally can hold: two rings of the greatest n.
const NODES_MAX: usize = 2 * torc_ring::config::REPLICAS_MAX as usize;
const _: () = assert!(NODES_MAX <= u32::BITS as usize);

impl Tally {
    /// Waits for `required` of `owners`.
    #[must_use]
    pub fn new(owners: &[NodeId], required: usize) -> Self {
        assert!(
            owners.len() <= NODES_MAX,
            "a partition has at most {NODES_MAX} owners"
        );
        let members = mask(owners.len());
        Self {
            nodes: owners.to_vec(),
            current: Group {
                members,
                required: required as u32,
            },
            target: None,
            acked: 0,
            failed: 0,
        }
    }

    /// Waits for `required` of the current owners and, separately, for `required_target` of `target`.
    #[must_use]
    pub fn joint(
        owners: &[NodeId],
        required: usize,
        target: &[NodeId],
        required_target: usize,
    ) -> Self {
        let mut tally = Self::new(owners, required);
        let mut members = 0;
        for &node in target {
            let at = tally
                .nodes
                .iter()
                .position(|&n| n == node)
                .unwrap_or_else(|| {
                    tally.nodes.push(node);
                    tally.nodes.len() - 1
                });
            members |= 1 << at;
        }
        assert!(
            tally.nodes.len() <= NODES_MAX,
            "a partition has at most {NODES_MAX} owners"
        );
        tally.target = Some(Group {
            members,
            required: required_target as u32,
        });
        tally
    }

    /// All owners, of both rings.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// The owner did what it was asked. Answers whether that is news.
    pub fn ack(&mut self, node: NodeId) -> bool {
        let Some(bit) = self.bit(node) else {
            return false;
        };
        let news = self.acked & bit == 0;
        self.acked |= bit;
        self.failed &= !bit;
        news
    }

    /// The owner refused, or will not answer. A later [`Self::ack`] overrules it, it never overrules an ack.
    pub fn fail(&mut self, node: NodeId) {
        if let Some(bit) = self.bit(node) {
            self.failed |= bit & !self.acked;
        }
    }

    /// Forgets all answers: the operation starts again.
    pub fn reset(&mut self) {
        self.acked = 0;
        self.failed = 0;
    }

    /// What the answers amount to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let groups = [Some(self.current), self.target];
        let mut verdict = Verdict::Met;
        for group in groups.into_iter().flatten() {
            if (self.acked & group.members).count_ones() >= group.required {
                continue;
            }
            if (group.members & !self.failed).count_ones() < group.required {
                return Verdict::Unreachable;
            }
            verdict = Verdict::Pending;
        }
        verdict
    }

    /// Whether an answer of that owner would help: it belongs to a ring that lacks answers.
    #[must_use]
    pub fn helps(&self, node: NodeId) -> bool {
        let Some(bit) = self.bit(node).filter(|bit| self.acked & bit == 0) else {
            return false;
        };
        let lacks = |group: Group| {
            group.members & bit != 0 && (self.acked & group.members).count_ones() < group.required
        };
        lacks(self.current) || self.target.is_some_and(lacks)
    }

    /// Answers required, in the ring that lacks more.
    #[must_use]
    pub fn required(&self) -> u8 {
        self.tightest().0 as u8
    }

    /// Answers that came, in the ring that lacks more.
    #[must_use]
    pub fn received(&self) -> u8 {
        self.tightest().1 as u8
    }

    /// Whether that owner has done it.
    #[must_use]
    pub fn has(&self, node: NodeId) -> bool {
        self.bit(node).is_some_and(|bit| self.acked & bit != 0)
    }

    /// Whether all owners have done it.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.acked.count_ones() as usize == self.nodes.len()
    }

    /// Whether any owner has done it.
    #[must_use]
    pub fn any(&self) -> bool {
        self.acked != 0
    }

    /// Owners that have not done it, in order.
    pub fn missing(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.nodes
            .iter()
            .enumerate()
            .filter(|(at, _)| self.acked & (1 << at) == 0)
            .map(|(_, &node)| node)
    }

    /// Whether answers are still awaited: owners that neither did it nor refused.
    #[must_use]
    pub fn waiting(&self) -> bool {
        (self.acked | self.failed).count_ones() as usize != self.nodes.len()
    }

    fn tightest(&self) -> (u32, u32) {
        let count = |group: Group| (group.required, (self.acked & group.members).count_ones());
        let current = count(self.current);
        match self.target.map(count) {
            Some(target)
                if target.0.saturating_sub(target.1) > current.0.saturating_sub(current.1) =>
            {
                target
            }
            _ => current,
        }
    }

    fn bit(&self, node: NodeId) -> Option<u32> {
        self.nodes.iter().position(|&n| n == node).map(|at| 1 << at)
    }
}

fn mask(len: usize) -> u32 {
    if len >= 32 { u32::MAX } else { (1 << len) - 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const D: NodeId = NodeId(4);
    const E: NodeId = NodeId(5);

    #[test]
    fn a_duplicate_ack_counts_once() {
        let mut tally = Tally::new(&[A, B, C], 2);
        assert!(tally.ack(A));
        assert!(!tally.ack(A));
        assert_eq!(tally.verdict(), Verdict::Pending);
        tally.ack(B);
        assert_eq!(tally.verdict(), Verdict::Met);
    }

    #[test]
    fn a_stranger_does_not_count() {
        let mut tally = Tally::new(&[A, B, C], 1);
        assert!(!tally.ack(D));
        assert_eq!(tally.verdict(), Verdict::Pending);
    }

    #[test]
    fn refusals_make_it_unreachable_and_a_late_ack_mends_that() {
        let mut tally = Tally::new(&[A, B, C], 2);
        tally.fail(A);
        assert_eq!(tally.verdict(), Verdict::Pending);
        tally.fail(B);
        assert_eq!(tally.verdict(), Verdict::Unreachable);
        tally.ack(B);
        assert_eq!(tally.verdict(), Verdict::Pending);
        tally.fail(B);
        tally.ack(C);
        assert_eq!(tally.verdict(), Verdict::Met);
        assert_eq!(tally.missing().collect::<Vec<_>>(), vec![A]);
    }

    #[test]
    fn a_joint_quorum_is_counted_in_each_ring() {
        // ABC -> ADE: a majority of the union is no majority of each.
        let mut tally = Tally::joint(&[A, B, C], 2, &[A, D, E], 2);
        tally.ack(B);
        tally.ack(C);
        tally.ack(A);
        assert_eq!(
            tally.verdict(),
            Verdict::Pending,
            "three of five, but one of the target's"
        );
        assert_eq!((tally.required(), tally.received()), (2, 1));
        tally.ack(E);
        assert_eq!(tally.verdict(), Verdict::Met);
    }
}
