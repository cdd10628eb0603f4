//! The next owners of all partitions as a small change of the present ones.
//!
//! 1. What cannot stay goes: owners that are no members any more, owners above n, and second owners in one
//!    zone where another zone must have its turn.
//! 2. Gaps are filled by the nodes that hold least in comparison with their fair share.
//! 3. Nodes whose fair share has grown take that much from those that hold most; nodes whose fair share has
//!    shrunk, and nodes above their bound, give to those that hold least.
//! 4. The order of preference stays, as far as each zone is met first and first owners are spread evenly.
//!
//! Invariant: the outcome depends on the present owners and on both sets of members, and on no order in
//! which they are listed. Whoever plans a change computes it once; everybody else reads it in the config.
//!
//! Every step of 3 brings two nodes nearer to their fair shares, so that loads stay within a replica of
//! them and the next change finds room. Distinct zones come before loads.

use std::collections::BTreeSet;

use crate::fair::{ONE, fair_shares};
use crate::placement::Site;
use crate::walk::die;

/// A replica, in the fixed point of shares here.
const REPLICA: i64 = 1 << 32;
/// Fair shares are exact to this much of a replica.
const ROUNDING: i64 = REPLICA / 1000;
const NOBODY: u32 = u32::MAX;
/// Pairs of nodes that all searches for a way down look at together: a bound on their time.
const TRIES_MAX: usize = 1 << 16;
/// Rounds in which first owners change places.
const ROUNDS_MAX: usize = 32;

/// Who owns what at present.
pub(crate) struct Present<'a> {
    pub(crate) sites: &'a [Site],
    /// Owners of each partition as positions in `sites`, in order of preference.
    pub(crate) rows: &'a [u32],
    /// Owners of each partition.
    pub(crate) each: usize,
    /// Whether there is nothing to be copied: then everybody's load becomes even.
    pub(crate) is_empty: bool,
}

/// The owners of each partition among `sites`, `n` each or as many as there are sites.
pub(crate) fn rebalance(present: &Present<'_>, sites: &[Site], n: usize, bits: u8) -> Vec<u32> {
    let mut shift = Shift::new(present, sites, n, bits);
    shift.drop_what_cannot_stay();
    shift.fill_gaps();
    shift.take();
    shift.give();
    shift.relieve();
    shift.zones_first();
    shift.spread_firsts();
    shift.rows
}

/// Owners that a partition can keep, where `owners` of them are members still and stand in `zones` zones.
pub(crate) fn kept_most(owners: usize, zones: usize, each: usize, zones_each: usize) -> usize {
    owners.min(each - zones_each.saturating_sub(zones).min(each))
}

struct Shift<'a> {
    sites: &'a [Site],
    each: usize,
    zones_each: usize,
    /// `each` places for each partition; before step 1 as many as there were, if those are more.
    rows: Vec<u32>,
    partitions: usize,
    /// Whether that place of `rows` has got a new owner.
    is_new: Vec<bool>,
    /// How many have.
    moved: usize,
    /// How many may have in the end, unless somebody is above its bound.
    budget: usize,
    /// Whether nothing has to be copied.
    is_free: bool,
    /// The partitions of each site.
    held: Vec<Vec<u32>>,
    /// Fair shares, in replicas.
    fair: Vec<i64>,
    /// What the fair share was, in replicas.
    fair_before: Vec<i64>,
    ties: Vec<u32>,
    /// Sites by replicas above the fair share.
    levels: BTreeSet<Level>,
}

/// Replicas above the fair share, then a number drawn from the id, then the site.
type Level = (i64, u32, u32);

impl<'a> Shift<'a> {
    fn new(present: &Present<'_>, sites: &'a [Site], n: usize, bits: u8) -> Self {
        let each = n.min(sites.len());
        let partitions = 1_usize << bits;
        let zones = sites.iter().map(|site| site.zone + 1).max().unwrap_or(0);
        let place = |old: &u32| {
            let id = present.sites[*old as usize].id;
            let found = sites.binary_search_by_key(&id, |site| site.id);
            found.map_or(NOBODY, |at| at as u32)
        };
        let width = each.max(present.each);
        let mut rows = vec![NOBODY; partitions * width];
        for (row, old) in rows
            .chunks_mut(width.max(1))
            .zip(present.rows.chunks(present.each.max(1)))
        {
            let stay = old.iter().map(place).filter(|&site| site != NOBODY);
            row.iter_mut().zip(stay).for_each(|(to, site)| *to = site);
        }
        let in_replicas = |share: u64| {
            (u128::from(share) * partitions as u128 * REPLICA as u128 / u128::from(ONE)) as i64
        };
        let fair = fair_shares(sites, each);
        let before = fair_shares(present.sites, present.each);
        let fair_before = sites.iter().map(|site| {
            match present.sites.binary_search_by_key(&site.id, |old| old.id) {
                Ok(at) if !present.is_empty => in_replicas(before[at].share),
                _ => 0,
            }
        });
        Self {
            sites,
            each,
            zones_each: zones.min(each),
            rows,
            partitions,
            is_new: Vec::new(),
            moved: 0,
            budget: 0,
            is_free: present.is_empty,
            held: vec![Vec::new(); sites.len()],
            fair: fair.iter().map(|fair| in_replicas(fair.share)).collect(),
            fair_before: fair_before.collect(),
            ties: sites.iter().map(|site| die(site.id) as u32).collect(),
            levels: BTreeSet::new(),
        }
    }

    /// Step 1. Rows have `each` places afterwards, some of them perhaps empty.
    fn drop_what_cannot_stay(&mut self) {
        let width = self.rows.len() / self.partitions;
        let mut loads = vec![0_i64; self.sites.len()];
        for &site in self.rows.iter().filter(|&&site| site != NOBODY) {
            loads[site as usize] += REPLICA;
        }
        let mut rows = Vec::with_capacity(self.rows.len());
        for row in self.rows.chunks(width.max(1)) {
            let mut row: Vec<u32> = row.iter().copied().filter(|&s| s != NOBODY).collect();
            while row.len() > kept_most(row.len(), self.zones_of(&row), self.each, self.zones_each)
            {
                // Somebody whose zone is met twice, if there is such a zone; of those who holds most.
                let is_second = |site: u32| {
                    let zone = self.zone(site);
                    row.iter()
                        .filter(|&&other| self.zone(other) == zone)
                        .count()
                        > 1
                };
                let repeats = self.zones_of(&row) < row.len();
                let goes = (0..row.len())
                    .filter(|&at| !repeats || is_second(row[at]))
                    .max_by_key(|&at| {
                        let site = row[at] as usize;
                        (loads[site] - self.fair[site], self.ties[site])
                    });
                let Some(goes) = goes else { break };
                loads[row.remove(goes) as usize] -= REPLICA;
            }
            row.resize(self.each, NOBODY);
            rows.append(&mut row);
        }
        self.rows = rows;
        self.is_new = vec![false; self.rows.len()];
        let gaps = whole(self.rows.iter().filter(|&&site| site == NOBODY).count());
        let gains = self.fair.iter().zip(&self.fair_before);
        let gains: i64 = gains.map(|(after, before)| (after - before).max(0)).sum();
        let unavoidable = gains.max(gaps * REPLICA);
        self.budget = floor(unavoidable + unavoidable / 10).max(0) as usize;
        for (partition, row) in self.rows.chunks(self.each.max(1)).enumerate() {
            for &site in row.iter().filter(|&&site| site != NOBODY) {
                self.held[site as usize].push(partition as u32);
            }
        }
        self.levels = (0..self.sites.len()).map(|site| self.level(site)).collect();
    }

    /// Step 2.
    fn fill_gaps(&mut self) {
        for partition in 0..self.partitions {
            while self.row(partition).contains(&NOBODY) {
                let lowest = self
                    .levels
                    .iter()
                    .map(|&(.., site)| site)
                    .find(|&site| self.admits(partition, NOBODY, site));
                // A site outside the row, in a zone that is missing, is there as long as a place is empty.
                let Some(site) = lowest else { break };
                self.put(partition, NOBODY, site);
            }
        }
    }

    /// Step 3, the nodes whose share has grown, lowest first.
    fn take(&mut self) {
        let wanted = |site: usize| {
            let missing = floor(self.fair[site]) - self.load(site);
            missing.min(floor(self.fair[site] - self.fair_before[site]))
        };
        let mut wants: Vec<i64> = (0..self.sites.len()).map(wanted).collect();
        let mut takers: BTreeSet<Level> = self
            .levels
            .iter()
            .copied()
            .filter(|&(.., site)| wants[site as usize] > 0)
            .collect();
        while let Some((level, _, taker)) = takers.pop_first() {
            if self.moved >= self.budget {
                return;
            }
            let donors = self
                .levels
                .iter()
                .rev()
                .take_while(|donor| donor.0 - level > REPLICA);
            let found = donors
                .map(|&(.., donor)| donor)
                .find_map(|donor| Some((donor, self.passes(donor, taker)?)));
            let Some((donor, partition)) = found else {
                continue;
            };
            self.put(partition, donor, taker);
            let left = &mut wants[taker as usize];
            *left -= 1;
            if *left > 0 {
                takers.insert(self.level(taker as usize));
            }
        }
    }

    /// Step 3, the nodes whose share has shrunk, highest first.
    fn give(&mut self) {
        let owed = |site: usize| {
            let over = self.load(site) - ceil(self.fair[site]);
            if self.is_free {
                over
            } else {
                over.min(floor(self.fair_before[site] - self.fair[site]))
            }
        };
        let mut owes: Vec<i64> = (0..self.sites.len()).map(owed).collect();
        let mut givers: BTreeSet<Level> = self
            .levels
            .iter()
            .copied()
            .filter(|&(.., site)| owes[site as usize] > 0)
            .collect();
        while let Some((level, _, giver)) = givers.pop_last() {
            if self.moved >= self.budget {
                return;
            }
            let takers = self
                .levels
                .iter()
                .take_while(|taker| level - taker.0 > REPLICA);
            let found = takers
                .map(|&(.., taker)| taker)
                .find_map(|taker| Some((taker, self.passes(giver, taker)?)));
            let Some((taker, partition)) = found else {
                continue;
            };
            self.put(partition, giver, taker);
            let left = &mut owes[giver as usize];
            *left -= 1;
            if *left > 0 {
                givers.insert(self.level(giver as usize));
            }
        }
    }

    /// Step 3, the nodes above their bound, highest first: each gives to the lowest node that can take, or by
    /// way of others that pass one on, where zones allow it in no other way.
    fn relieve(&mut self) {
        let mut tries = TRIES_MAX;
        let highest: Vec<u32> = self.levels.iter().rev().map(|&(.., site)| site).collect();
        for giver in highest {
            while self.load(giver as usize) > self.bound(giver as usize) {
                let Some(steps) = self.way_down(giver, &mut tries) else {
                    break;
                };
                for (partition, from, to) in steps {
                    self.put(partition, from, to);
                }
            }
        }
    }

    /// The shortest way from `giver` to a node with room: who passes which partition on to whom.
    fn way_down(&self, giver: u32, tries: &mut usize) -> Option<Vec<(usize, u32, u32)>> {
        let mut from: Vec<Option<(usize, u32)>> = vec![None; self.sites.len()];
        let mut queue = vec![giver];
        let mut next = 0;
        while let Some(&donor) = queue.get(next) {
            next += 1;
            for &(.., taker) in &self.levels {
                if taker == giver || from[taker as usize].is_some() {
                    continue;
                }
                *tries = tries.checked_sub(1)?;
                let Some(partition) = self.passes(donor, taker) else {
                    continue;
                };
                from[taker as usize] = Some((partition, donor));
                queue.push(taker);
                if self.load(taker as usize) < self.bound(taker as usize) {
                    return way_to(taker, giver, &from);
                }
            }
        }
        None
    }

    /// The most that a site may hold: 1.10 of its fair share, or that rounded up to a whole replica.
    fn bound(&self, site: usize) -> i64 {
        let fair = self.fair[site];
        floor(fair + fair / 10).max(ceil(fair))
    }

    /// A partition that `donor` can leave to `taker`. The search begins at a place drawn from both, so that
    /// a newcomer does not meet the same neighbours everywhere.
    fn passes(&self, donor: u32, taker: u32) -> Option<usize> {
        let held = &self.held[donor as usize];
        let salt = self.ties[taker as usize] ^ self.ties[donor as usize].rotate_left(16);
        let turn = (salt as usize).wrapping_add(self.held[taker as usize].len().wrapping_mul(7919));
        let start = turn % held.len().max(1);
        let mut around = held[start..].iter().chain(&held[..start]);
        around
            .find(|&&partition| self.admits(partition as usize, donor, taker))
            .map(|&partition| partition as usize)
    }

    /// Whether `new` may stand in the place of `old` (or in an empty one): it is no owner yet, and every
    /// zone still gets its turn.
    fn admits(&self, partition: usize, old: u32, new: u32) -> bool {
        let row = self.row(partition);
        if row.contains(&new) {
            return false;
        }
        let mut zones = 1;
        let mut empty = 0;
        let mut replaced = false;
        for (at, &site) in row.iter().enumerate() {
            if site == old && !replaced {
                replaced = true;
            } else if site == NOBODY {
                empty += 1;
            } else {
                let zone = self.zone(site);
                let is_known = zone == self.zone(new)
                    || row[..at]
                        .iter()
                        .any(|&other| other != NOBODY && other != old && self.zone(other) == zone);
                zones += usize::from(!is_known);
            }
        }
        replaced && zones + empty >= self.zones_each
    }

    fn put(&mut self, partition: usize, old: u32, new: u32) {
        let start = partition * self.each;
        let row = &mut self.rows[start..start + self.each];
        let Some(place) = row.iter().position(|&site| site == old) else {
            return;
        };
        row[place] = new;
        self.moved += usize::from(!self.is_new[start + place]);
        self.is_new[start + place] = true;
        if old != NOBODY {
            self.levels.remove(&self.level(old as usize));
            let held = &mut self.held[old as usize];
            if let Some(at) = held.iter().position(|&p| p as usize == partition) {
                held.swap_remove(at);
            }
            self.levels.insert(self.level(old as usize));
        }
        self.levels.remove(&self.level(new as usize));
        self.held[new as usize].push(partition as u32);
        self.levels.insert(self.level(new as usize));
    }

    /// Step 4: the first owner of each zone goes before all second ones.
    fn zones_first(&mut self) {
        for row in self.rows.chunks_mut(self.each.max(1)) {
            let zone = |site: u32| self.sites[site as usize].zone;
            let old = row.to_vec();
            let is_second = |at: usize| old[..at].iter().any(|&s| zone(s) == zone(old[at]));
            let firsts = (0..old.len()).filter(|&at| !is_second(at));
            let seconds = (0..old.len()).filter(|&at| is_second(at));
            let order: Vec<u32> = firsts.chain(seconds).map(|at| old[at]).collect();
            row.copy_from_slice(&order);
        }
    }

    /// Step 4: who is first too often changes places with a later owner.
    fn spread_firsts(&mut self) {
        let each = self.each.max(1);
        let firsts = |fair: &i64| -(fair / whole(each));
        let mut levels: Vec<i64> = self.fair.iter().map(firsts).collect();
        for row in self.rows.chunks(each) {
            levels[row[0] as usize] += REPLICA;
        }
        let zones_each = self.zones_each.max(1);
        // Each change brings two nodes nearer to each other; a few rounds are enough in practice.
        for _ in 0..ROUNDS_MAX {
            let mut settled = true;
            for row in self.rows.chunks_mut(each) {
                let zone = |at: usize| self.sites[row[at] as usize].zone;
                // Only the first owner of a zone may be first of all.
                let may_lead = |at: &usize| *at < zones_each || zone(*at) == zone(0);
                let lowest = (1..each)
                    .filter(may_lead)
                    .min_by_key(|&at| (levels[row[at] as usize], row[at]));
                let Some(at) = lowest else { continue };
                let (first, next) = (row[0] as usize, row[at] as usize);
                if levels[first] - levels[next] > REPLICA {
                    levels[first] -= REPLICA;
                    levels[next] += REPLICA;
                    row.swap(0, at);
                    settled = false;
                }
            }
            if settled {
                return;
            }
        }
    }

    fn row(&self, partition: usize) -> &[u32] {
        &self.rows[partition * self.each..][..self.each]
    }

    fn zone(&self, site: u32) -> usize {
        self.sites[site as usize].zone
    }

    fn zones_of(&self, row: &[u32]) -> usize {
        let is_new = |at: &usize| {
            !row[..*at]
                .iter()
                .any(|&s| self.zone(s) == self.zone(row[*at]))
        };
        (0..row.len()).filter(is_new).count()
    }

    fn load(&self, site: usize) -> i64 {
        whole(self.held[site].len())
    }

    fn level(&self, site: usize) -> Level {
        let above = self.load(site) * REPLICA - self.fair[site];
        (above, self.ties[site], site as u32)
    }
}

/// The steps that end at `taker`; `None` if two of them are about the same partition, where the second might
/// not be possible after the first.
fn way_to(taker: u32, giver: u32, from: &[Option<(usize, u32)>]) -> Option<Vec<(usize, u32, u32)>> {
    let mut steps: Vec<(usize, u32, u32)> = Vec::new();
    let mut at = taker;
    while at != giver {
        let (partition, donor) = from[at as usize]?;
        if steps.iter().any(|&(other, ..)| other == partition) {
            return None;
        }
        steps.push((partition, donor, at));
        at = donor;
    }
    Some(steps)
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Whole replicas in that many, rounded down.
fn floor(replicas: i64) -> i64 {
    (replicas + ROUNDING).div_euclid(REPLICA)
}

/// Whole replicas in that many, rounded up.
fn ceil(replicas: i64) -> i64 {
    -(ROUNDING - replicas).div_euclid(REPLICA)
}
