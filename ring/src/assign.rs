//! Owners of each partition from the walks, with bounded loads.
//!
//! 1. Each partition takes the first members that its walk meets: distinct nodes, and distinct zones as
//!    long as any are left.
//! 2. A node that has more than its bound keeps its nearest partitions and gives up the rest.
//! 3. What was given up walks on, all partitions at the same pace, to nodes below their bound.
//!
//! Steps 2 and 3 touch only what is over the bound, because each replica that they touch is one more that
//! a change of the members may move. Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with
//! Bounded Loads" (2016); unlike there, a node that is full keeps what is nearest, not what came first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::fair::{Fair, ONE, fair_shares};
use crate::placement::Site;
use crate::walk::{Stop, Walks, die};

/// Owners and stand-ins of each partition as positions in the list of sites, in order of preference.
pub(crate) struct Assignment {
    pub(crate) owners_each: usize,
    pub(crate) owners: Vec<u32>,
    pub(crate) stand_ins_each: usize,
    pub(crate) stand_ins: Vec<u32>,
    pub(crate) fair: Vec<Fair>,
}

/// A walk did not go far enough to answer.
#[derive(Debug)]
struct Short;

/// Assigns `n` owners (as many as there are sites, if those are fewer) to each partition.
pub(crate) fn assign(sites: &[Site], n: usize, bits: u8) -> Assignment {
    let owners_each = n.min(sites.len());
    let stand_ins_each = n.min(sites.len() - owners_each);
    let fair = fair_shares(sites, owners_each);
    let partitions = 1_usize << bits;
    let bounds: Vec<u32> = sites
        .iter()
        .zip(&fair)
        .map(|(site, fair)| bound(site, fair.share, partitions))
        .collect();
    let mut walks = Walks::new(sites, &fair, bits, stops_wanted(owners_each), owners_each);
    loop {
        let mut pass = Pass::new(sites, &walks, &bounds, owners_each);
        let done = pass.run().and_then(|()| {
            let owners = pass.in_order_of_preference(&fair);
            let stand_ins = stand_ins(&walks, &owners, owners_each, stand_ins_each)?;
            Ok((owners, stand_ins))
        });
        match done {
            Ok((owners, stand_ins)) => {
                return Assignment {
                    owners_each,
                    owners,
                    stand_ins_each,
                    stand_ins,
                    fair,
                };
            }
            Err(Short) => walks.extend(),
        }
    }
}

/// The assignment whose owners are given, `n` for each partition or as many as there are sites: stand-ins
/// follow them on the walks.
pub(crate) fn assigned(sites: &[Site], n: usize, bits: u8, owners: Vec<u32>) -> Assignment {
    let owners_each = n.min(sites.len());
    let stand_ins_each = n.min(sites.len() - owners_each);
    let fair = fair_shares(sites, owners_each);
    let wanted = stops_wanted(owners_each);
    let mut walks = Walks::new(sites, &fair, bits, wanted, owners_each);
    let stand_ins = loop {
        match stand_ins(&walks, &owners, owners_each, stand_ins_each) {
            Ok(stand_ins) => break stand_ins,
            Err(Short) => walks.extend(),
        }
    };
    Assignment {
        owners_each,
        owners,
        stand_ins_each,
        stand_ins,
        fair,
    }
}

/// The nodes that follow the owners in each walk, whatever their zone or load.
fn stand_ins(
    walks: &Walks,
    owners: &[u32],
    owners_each: usize,
    each: usize,
) -> Result<Vec<u32>, Short> {
    let mut stand_ins = Vec::with_capacity(each * walks.partitions());
    for (partition, owners) in owners.chunks(owners_each.max(1)).enumerate() {
        let before = stand_ins.len();
        let sites = walks.stops(partition).iter().map(|stop| stop.site);
        let others = sites.filter(|site| !owners.contains(site));
        stand_ins.extend(others.take(each));
        if stand_ins.len() < before + each {
            return Err(Short);
        }
    }
    Ok(stand_ins)
}

/// Members that a walk should meet, so that it seldom has to be prolonged: owners and stand-ins, as many
/// again that are full or in the wrong zone, and some for chance.
fn stops_wanted(owners_each: usize) -> usize {
    4 * owners_each + 16
}

/// The most replicas that a site may hold: 1.10 of its fair share, rounded to a whole number by the node's
/// die, but never below the fair share rounded up.
///
/// If all bounds were rounded alike, they would all fall by one with the same join, and each full node
/// would move a replica at once; so the rounding is spread over half a replica. From [`ROOMY`] replicas on it
/// is spread over the lower half, and no load exceeds 1.10 of the fair share. A node with few replicas is
/// at its bound so often that this would cost more movement than it is worth: down to [`TIGHT`] the spread
/// rises to the upper half, and loads stay at most `ceil(1.10 * fair)`.
fn bound(site: &Site, fair: u64, partitions: usize) -> u32 {
    let one = u128::from(ONE);
    let replicas = u128::from(fair) * partitions as u128;
    let spread = u128::from(die(site.id) * (ONE >> 33));
    let roomy = replicas.clamp(TIGHT * one, ROOMY * one) - TIGHT * one;
    let rounded = replicas * 11 / 10 + one / 2 + spread - roomy / (ROOMY - TIGHT);
    let bound = rounded / one;
    bound.max(replicas.div_ceil(one)).min(partitions as u128) as u32
}

/// Fair shares, in replicas, between which the rounding of bounds goes from up to down.
const TIGHT: u128 = 40;
const ROOMY: u128 = 80;

struct Pass<'a> {
    sites: &'a [Site],
    walks: &'a Walks,
    bounds: &'a [u32],
    owners_each: usize,
    zones_each: usize,
    /// Owners of each partition as positions in its walk; the first `held[partition]` of each row count.
    picks: Vec<u32>,
    held: Vec<u8>,
    loads: Vec<u32>,
}

impl<'a> Pass<'a> {
    fn new(sites: &'a [Site], walks: &'a Walks, bounds: &'a [u32], owners_each: usize) -> Self {
        let zones = sites.iter().map(|site| site.zone + 1).max().unwrap_or(0);
        let partitions = walks.partitions();
        Self {
            sites,
            walks,
            bounds,
            owners_each,
            zones_each: zones.min(owners_each),
            picks: vec![0; partitions * owners_each],
            held: vec![0; partitions],
            loads: vec![0; sites.len()],
        }
    }

    fn run(&mut self) -> Result<(), Short> {
        for partition in 0..self.held.len() {
            self.take_nearest(partition)?;
        }
        self.give_up_excess();
        let stuck = self.walk_on()?;
        for partition in stuck {
            self.settle(partition);
        }
        Ok(())
    }

    /// Step 1.
    fn take_nearest(&mut self, partition: usize) -> Result<(), Short> {
        for at in 0..self.walks.stops(partition).len() {
            if self.missing(partition) == 0 {
                break;
            }
            if self.admits(partition, at) {
                self.pick(partition, at);
            }
        }
        if self.missing(partition) == 0 {
            Ok(())
        } else {
            Err(Short)
        }
    }

    /// Step 2.
    fn give_up_excess(&mut self) {
        let mut over: Vec<(u32, u64, usize)> = Vec::new();
        for partition in 0..self.held.len() {
            for &at in self.picks_of(partition) {
                let stop = self.walks.stops(partition)[at as usize];
                if self.loads[stop.site as usize] > self.bounds[stop.site as usize] {
                    over.push((stop.site, stop.distance, partition));
                }
            }
        }
        over.sort_unstable();
        for &(site, _, partition) in over.iter().rev() {
            if self.loads[site as usize] > self.bounds[site as usize] {
                self.drop(partition, site);
            }
        }
    }

    /// Step 3. Returns the partitions that found no node below its bound, once for each missing owner.
    fn walk_on(&mut self) -> Result<Vec<usize>, Short> {
        let mut stuck = Vec::new();
        let mut next = BinaryHeap::new();
        for partition in 0..self.held.len() {
            if self.missing(partition) > 0 {
                let first = self.walks.stops(partition)[0].distance;
                next.push(Reverse((first, partition, 0)));
            }
        }
        while let Some(Reverse((_, partition, at))) = next.pop() {
            let stop = self.walks.stops(partition)[at];
            if self.has_room(stop) && self.admits(partition, at) {
                self.pick(partition, at);
            }
            let missing = self.missing(partition);
            match self.walks.stops(partition).get(at + 1) {
                _ if missing == 0 => {}
                Some(following) => next.push(Reverse((following.distance, partition, at + 1))),
                None if self.walks.complete() || self.walks.long() => {
                    stuck.extend(std::iter::repeat_n(partition, missing));
                }
                None => return Err(Short),
            }
        }
        Ok(stuck)
    }

    /// Finds an owner for a partition whose walk met only nodes at their bound: one of them swaps another
    /// of its partitions against this one, with a node that has room. Where no single swap does it, the
    /// least loaded node takes the partition above its bound.
    fn settle(&mut self, partition: usize) {
        let walks = self.walks;
        let candidates: Vec<usize> = (0..walks.stops(partition).len())
            .filter(|&at| self.admits(partition, at))
            .collect();
        for &at in &candidates {
            let full = walks.stops(partition)[at].site;
            if let Some((other, instead)) = self.swap(full) {
                self.drop(other, full);
                self.pick(other, instead);
                self.pick(partition, at);
                return;
            }
        }
        let load = |at: &usize| {
            let site = walks.stops(partition)[*at].site as usize;
            // Replicas above the bound in proportion to it.
            (u64::from(self.loads[site]) << 32) / u64::from(self.bounds[site].max(1))
        };
        if let Some(&at) = candidates.iter().min_by_key(|at| load(at)) {
            self.pick(partition, at);
        }
    }

    /// A partition of `full` that a node with room could own instead, and that node's place in its walk.
    fn swap(&mut self, full: u32) -> Option<(usize, usize)> {
        (0..self.held.len()).find_map(|other| {
            let place = self.place_of(other, full)?;
            self.remove(other, place);
            let walks = self.walks;
            let instead = (0..walks.stops(other).len()).find(|&at| {
                let stop = walks.stops(other)[at];
                stop.site != full && self.has_room(stop) && self.admits(other, at)
            });
            let back = walks.stops(other).iter().position(|stop| stop.site == full);
            if let Some(back) = back {
                self.pick(other, back);
            }
            instead.map(|instead| (other, instead))
        })
    }

    /// The owners of each partition: the nearest of each zone first, then the others, each by the distance
    /// that it would have if its pace were its share, so that each is first as often as its share says.
    fn in_order_of_preference(&mut self, fair: &[Fair]) -> Vec<u32> {
        let mut owners = Vec::with_capacity(self.picks.len());
        for partition in 0..self.held.len() {
            let start = partition * self.owners_each;
            let row = &mut self.picks[start..start + self.owners_each];
            let stops = self.walks.stops(partition);
            row.sort_unstable_by_key(|&at| {
                let stop = stops[at as usize];
                let Fair { share, pace } = fair[stop.site as usize];
                (
                    u128::from(stop.distance) * u128::from(pace) / u128::from(share),
                    at,
                )
            });
            let first = owners.len();
            let zone = |site: u32| self.sites[site as usize].zone;
            let mut again = Vec::new();
            for &at in row.iter() {
                let site = stops[at as usize].site;
                if owners[first..]
                    .iter()
                    .any(|&owner| zone(owner) == zone(site))
                {
                    again.push(site);
                } else {
                    owners.push(site);
                }
            }
            owners.append(&mut again);
        }
        owners
    }

    /// Whether the stop at that place of the walk may become an owner: it is none yet, and enough owners
    /// are missing that each zone still gets its turn.
    fn admits(&self, partition: usize, at: usize) -> bool {
        let stops = self.walks.stops(partition);
        let owned = self.picks_of(partition);
        if owned.contains(&(at as u32)) {
            return false;
        }
        let zone = |at: u32| self.sites[stops[at as usize].site as usize].zone;
        let wanted = zone(at as u32);
        let mut zones_held = 0;
        for (count, &pick) in owned.iter().enumerate() {
            let repeated = owned[..count]
                .iter()
                .any(|&earlier| zone(earlier) == zone(pick));
            zones_held += usize::from(!repeated);
        }
        let fresh = !owned.iter().any(|&pick| zone(pick) == wanted);
        fresh || self.missing(partition) > self.zones_each.saturating_sub(zones_held)
    }

    fn has_room(&self, stop: Stop) -> bool {
        self.loads[stop.site as usize] < self.bounds[stop.site as usize]
    }

    fn missing(&self, partition: usize) -> usize {
        self.owners_each - usize::from(self.held[partition])
    }

    fn picks_of(&self, partition: usize) -> &[u32] {
        let start = partition * self.owners_each;
        &self.picks[start..start + usize::from(self.held[partition])]
    }

    fn pick(&mut self, partition: usize, at: usize) {
        let held = usize::from(self.held[partition]);
        assert!(
            held < self.owners_each,
            "a partition never has more owners than n"
        );
        self.picks[partition * self.owners_each + held] = at as u32;
        self.held[partition] += 1;
        self.loads[self.walks.stops(partition)[at].site as usize] += 1;
    }

    fn drop(&mut self, partition: usize, site: u32) {
        if let Some(place) = self.place_of(partition, site) {
            self.remove(partition, place);
        }
    }

    fn place_of(&self, partition: usize, site: u32) -> Option<usize> {
        let stops = self.walks.stops(partition);
        self.picks_of(partition)
            .iter()
            .position(|&at| stops[at as usize].site == site)
    }

    fn remove(&mut self, partition: usize, place: usize) {
        let start = partition * self.owners_each;
        let last = start + usize::from(self.held[partition]) - 1;
        let at = self.picks[start + place];
        self.picks.swap(start + place, last);
        self.held[partition] -= 1;
        self.loads[self.walks.stops(partition)[at as usize].site as usize] -= 1;
    }
}
