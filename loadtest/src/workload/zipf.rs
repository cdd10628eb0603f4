//! The zipfian generators of YCSB.
//!
//! Sources: Gray et al., "Quickly generating billion-record synthetic databases" (SIGMOD 1994), for the
//! algorithm; Cooper et al., "Benchmarking cloud serving systems with YCSB" (SoCC 2010), and its
//! `ZipfianGenerator`, `ScrambledZipfianGenerator` and `SkewedLatestGenerator` for the constants.

use rand::Rng;

/// Skew of YCSB's workloads.
const THETA: f64 = 0.99;
/// Items that the scrambled generator draws from before it hashes, and their zeta: as published, so that
/// the popular keys stay popular however many records there are.
const SCRAMBLED_ITEMS: u64 = 10_000_000_000;
const SCRAMBLED_ZETA: f64 = 26.469_028_201_783_02;

/// Draws ranks from 0 (most popular) to `items - 1`.
#[derive(Clone, Debug)]
pub(crate) struct Zipfian {
    items: u64,
    zeta: f64,
    zeta_of_two: f64,
    eta: f64,
}

impl Zipfian {
    /// Of `items`, at least one. Takes time in proportion to them, once.
    pub(crate) fn new(items: u64) -> Self {
        let items = items.max(1);
        Self::with_zeta(items, zeta(0, items, 0.0))
    }

    fn with_zeta(items: u64, zeta_of_items: f64) -> Self {
        let zeta_of_two = zeta(0, 2, 0.0);
        let mut zipfian = Self {
            items,
            zeta: zeta_of_items,
            zeta_of_two,
            eta: 0.0,
        };
        zipfian.set_eta();
        zipfian
    }

    fn set_eta(&mut self) {
        let share = (2.0 / self.items as f64).powf(1.0 - THETA);
        self.eta = (1.0 - share) / (1.0 - self.zeta_of_two / self.zeta);
    }

    /// How many there are.
    pub(crate) fn items(&self) -> u64 {
        self.items
    }

    /// Takes notice that there are more items now; never of fewer.
    pub(crate) fn grow(&mut self, items: u64) {
        if items > self.items {
            self.zeta = zeta(self.items, items, self.zeta);
            self.items = items;
            self.set_eta();
        }
    }

    /// The next rank.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> u64 {
        let u: f64 = rng.random();
        let uz = u * self.zeta;
        if uz < 1.0 {
            return 0;
        }
        if uz < 1.0 + 0.5_f64.powf(THETA) {
            return 1.min(self.items - 1);
        }
        let alpha = 1.0 / (1.0 - THETA);
        let rank = self.items as f64 * (self.eta * u - self.eta + 1.0).powf(alpha);
        (rank as u64).min(self.items - 1)
    }
}

/// Zipfian, with the popular items strewn over the whole range.
#[derive(Clone, Debug)]
pub(crate) struct Scrambled(Zipfian);

impl Scrambled {
    pub(crate) fn new() -> Self {
        Self(Zipfian::with_zeta(SCRAMBLED_ITEMS, SCRAMBLED_ZETA))
    }

    /// One of `items` items.
    pub(crate) fn draw(&self, rng: &mut impl Rng, items: u64) -> u64 {
        hash(self.0.draw(rng)) % items.max(1)
    }
}

/// Sum of 1/i^theta for i from `from + 1` to `to`, on top of `sum`.
fn zeta(from: u64, to: u64, sum: f64) -> f64 {
    (from..to).fold(sum, |sum, i| sum + 1.0 / ((i + 1) as f64).powf(THETA))
}

/// YCSB's 64-bit FNV hash of a number, made positive as there.
pub(crate) fn hash(number: u64) -> u64 {
    let mut hash = 0xCBF2_9CE4_8422_2325_u64;
    for byte in number.to_le_bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(1_099_511_628_211);
    }
    hash.cast_signed().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn keys_are_those_of_ycsb() {
        // The first keys that any load of YCSB with hashed order writes.
        assert_eq!(hash(0), 6_284_781_860_667_377_211);
        assert_eq!(hash(1), 8_517_097_267_634_966_620);
    }

    #[test]
    fn the_published_zeta_belongs_to_the_published_number_of_items() {
        // Euler and Maclaurin: the sum beyond 1000 is the integral and half of the first term.
        let below = zeta(0, 1_000, 0.0);
        let integral = |x: f64| x.powf(1.0 - THETA) / (1.0 - THETA);
        let beyond = integral(SCRAMBLED_ITEMS as f64) - integral(1_000.0);
        let correction = 0.5 * 1_000.0_f64.powf(-THETA);
        assert!((below + beyond - correction - SCRAMBLED_ZETA).abs() < 1e-5);
    }

    #[test]
    fn ranks_are_drawn_as_often_as_zipf_says() {
        let mut rng = SmallRng::seed_from_u64(7);
        let zipfian = Zipfian::new(1_000);
        let draws = 200_000;
        let mut counts = vec![0_u32; 1_000];
        for _ in 0..draws {
            counts[zipfian.draw(&mut rng) as usize] += 1;
        }
        // The first two ranks are exact in this algorithm, the others an approximation.
        for rank in [0, 1] {
            let expected = 1.0 / ((rank + 1) as f64).powf(THETA) / zipfian.zeta;
            let seen = f64::from(counts[rank]) / f64::from(draws);
            assert!(
                (seen / expected - 1.0).abs() < 0.05,
                "rank {rank}: {seen} of {expected}"
            );
        }
        let expected = zeta(0, 100, 0.0) / zipfian.zeta;
        let seen = f64::from(counts[..100].iter().sum::<u32>()) / f64::from(draws);
        assert!(
            (seen / expected - 1.0).abs() < 0.05,
            "first hundred: {seen} of {expected}"
        );
    }

    #[test]
    fn growing_gives_what_starting_anew_gives() {
        let mut grown = Zipfian::new(10);
        grown.grow(5_000);
        let new = Zipfian::new(5_000);
        assert!((grown.zeta - new.zeta).abs() < 1e-9 && (grown.eta - new.eta).abs() < 1e-9);
    }

    #[test]
    fn few_items_are_enough() {
        let mut rng = SmallRng::seed_from_u64(1);
        for items in 1..4 {
            let zipfian = Zipfian::new(items);
            assert!((0..1_000).all(|_| zipfian.draw(&mut rng) < items));
        }
    }
}
