//! Fair shares: how many replicas each member would hold if replicas could be cut at will.
//!
//! A share is proportional to weight, except where that cannot be: no node holds a partition twice, and
//! each partition wants as many zones as there are. What such a limit takes from one node is spread over
//! the others by weight (water-filling). Whole numbers only, so that every machine gets the same result.

use crate::placement::Site;

/// One replica of each partition, in the fixed point that shares are computed in.
pub(crate) const ONE: u64 = 1 << 48;

/// What a site gets, in units of [`ONE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fair {
    /// Fair share in replicas per partition, 0..=`ONE`. All shares add up to `n`, less a rounding below one
    /// millionth.
    pub(crate) share: u64,
    /// Virtual nodes per distance, of which only the proportions matter: as the weights, but at least the
    /// share and at most a fixed multiple of it, so that small zones and light nodes are met in time.
    pub(crate) pace: u64,
}

const HASTE_MAX: u64 = 8;
const HASTE_OF_ALL: u64 = 64;

/// The fair share of each site, where each partition has `n` owners, at most as many as there are sites.
pub(crate) fn fair_shares(sites: &[Site], n: usize) -> Vec<Fair> {
    let zones = sites.iter().map(|site| site.zone + 1).max().unwrap_or(0);
    let mut weights = vec![Vec::new(); zones];
    for site in sites {
        weights[site.zone].push(u64::from(site.weight));
    }
    let limits: Vec<(u64, u64)> = weights
        .iter()
        .map(|zone| limits(zone.len(), zones, n))
        .collect();
    let level = fill(n as u64 * ONE, |level| {
        let zone_share = |(zone, limits): (&Vec<u64>, &(u64, u64))| {
            volume(zone, level).clamp(limits.0, limits.1)
        };
        weights.iter().zip(&limits).map(zone_share).sum()
    });
    let zone_level = |(zone, limits): (&Vec<u64>, &(u64, u64))| {
        let unlimited = volume(zone, level);
        let limited = unlimited.clamp(limits.0, limits.1);
        if unlimited == limited {
            level
        } else {
            fill(limited, |level| volume(zone, level))
        }
    };
    let levels: Vec<u64> = weights.iter().zip(&limits).map(zone_level).collect();
    let fair = |site: &Site| {
        let weight = u64::from(site.weight);
        let share = ONE.min(levels[site.zone] * weight).max(1);
        // With a place for each zone, how fast zones are met in comparison decides nothing.
        let common = if zones <= n { levels[site.zone] } else { level };
        // Who holds everything has but one virtual node in each partition to place, however fast.
        let haste = if share == ONE {
            HASTE_OF_ALL
        } else {
            HASTE_MAX
        };
        let pace = (common * weight).clamp(share, haste * share);
        Fair { share, pace }
    };
    sites.iter().map(fair).collect()
}

/// Least and greatest number of replicas of one partition that a zone of `size` nodes can hold.
fn limits(size: usize, zones: usize, n: usize) -> (u64, u64) {
    if zones >= n {
        (0, ONE)
    } else {
        (ONE, size as u64 * ONE)
    }
}

/// What nodes of these weights hold when the water stands at `level` per unit of weight.
fn volume(weights: &[u64], level: u64) -> u64 {
    weights.iter().map(|weight| ONE.min(level * weight)).sum()
}

/// The highest level, up to one that fills a node of weight 1, at which `volume` is at most `wanted`.
fn fill(wanted: u64, volume: impl Fn(u64) -> u64) -> u64 {
    let (mut low, mut high) = (0, ONE);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if volume(middle) <= wanted {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeId;

    fn shares(weights_and_zones: &[(u32, usize)], n: usize) -> Vec<f64> {
        let sites: Vec<Site> = (0..)
            .zip(weights_and_zones)
            .map(|(id, &(weight, zone))| Site {
                id: NodeId(id),
                weight,
                zone,
            })
            .collect();
        let round = |share: u64| (share as f64 / ONE as f64 * 1000.0).round() / 1000.0;
        fair_shares(&sites, n)
            .into_iter()
            .map(|fair| round(fair.share))
            .collect()
    }

    #[test]
    fn shares_follow_the_weights() {
        assert_eq!(shares(&[(100, 0); 10], 3), vec![0.3; 10]);
        assert_eq!(
            shares(&[(100, 0), (200, 0), (300, 0)], 1),
            vec![0.167, 0.333, 0.5]
        );
    }

    #[test]
    fn no_node_holds_a_partition_twice() {
        assert_eq!(shares(&[(100, 0); 3], 3), vec![1.0; 3]);
        assert_eq!(
            shares(&[(10_000, 0), (1, 0), (1, 0), (2, 0)], 3),
            vec![1.0, 0.5, 0.5, 1.0]
        );
    }

    #[test]
    fn a_small_zone_carries_what_its_zone_must() {
        // Three zones for three replicas: each zone holds one, however many nodes it has.
        assert_eq!(
            shares(&[(100, 0), (100, 1), (100, 1), (100, 2), (100, 2)], 3),
            vec![1.0, 0.5, 0.5, 0.5, 0.5]
        );
        // Two zones for three replicas: at least one in each, and no node twice.
        assert_eq!(
            shares(&[(100, 0), (100, 1), (100, 1), (100, 1)], 3),
            vec![1.0, 0.667, 0.667, 0.667]
        );
        // Four zones: the heavy one holds at most one of three.
        assert_eq!(
            shares(&[(300, 0), (100, 1), (100, 2), (100, 3)], 3),
            vec![1.0, 0.667, 0.667, 0.667]
        );
    }
}
