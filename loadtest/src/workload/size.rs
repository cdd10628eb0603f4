//! Sizes of values, as one names them: `1KiB`, `100B-10KiB`, `zipf:100B-10KiB`, `1KiB*9,64KiB*1`.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::Serialize;

use super::zipf::Zipfian;
use crate::error::Error;

/// Largest value in bytes: the greatest that a node can be set to.
pub const VALUE_BYTES_MAX: u64 = 64 << 20;
/// Sizes in a list.
const CHOICES_MAX: usize = 64;

/// How large values are.
#[derive(Clone, Debug)]
pub struct ValueSize {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Fixed(u64),
    Uniform(u64, u64),
    /// Small ones are frequent.
    Zipfian(u64, Zipfian),
    /// Sizes with cumulated weights.
    Weighted(Vec<(u64, u32)>),
}

impl ValueSize {
    /// The size of one value in bytes.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> usize {
        let size = match &self.kind {
            Kind::Fixed(size) => *size,
            Kind::Uniform(least, most) => rng.random_range(*least..=*most),
            Kind::Zipfian(least, zipfian) => least + zipfian.draw(rng),
            Kind::Weighted(choices) => {
                let total = choices.last().map_or(1, |(_, upto)| *upto);
                let at = rng.random_range(0..total);
                let chosen = choices.iter().find(|(_, upto)| at < *upto);
                chosen.map_or(0, |(size, _)| *size)
            }
        };
        size as usize
    }

    /// The largest that can be drawn, in bytes.
    pub(crate) fn most(&self) -> usize {
        let most = match &self.kind {
            Kind::Fixed(size) => *size,
            Kind::Uniform(_, most) => *most,
            Kind::Zipfian(least, zipfian) => least + zipfian.items() - 1,
            Kind::Weighted(choices) => choices.iter().map(|(size, _)| *size).max().unwrap_or(0),
        };
        most as usize
    }
}

impl FromStr for ValueSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::BadValueSize {
            given: text.chars().take(100).collect(),
        };
        let range = |text: &str| {
            let (least, most) = text.split_once('-').ok_or_else(bad)?;
            let (least, most) = (bytes(least).ok_or_else(bad)?, bytes(most).ok_or_else(bad)?);
            if least <= most {
                Ok((least, most))
            } else {
                Err(bad())
            }
        };
        let kind = if let Some(sizes) = text.strip_prefix("zipf:") {
            let (least, most) = range(sizes)?;
            Kind::Zipfian(least, Zipfian::new(most - least + 1))
        } else if text.contains('*') {
            let mut upto = 0_u32;
            let mut choices = Vec::new();
            for part in text.split(',') {
                let (size, weight) = part.split_once('*').ok_or_else(bad)?;
                let weight: u32 = weight.trim().parse().map_err(|_| bad())?;
                upto = upto.checked_add(weight).ok_or_else(bad)?;
                choices.push((bytes(size).ok_or_else(bad)?, upto));
            }
            if upto == 0 || choices.len() > CHOICES_MAX {
                return Err(bad());
            }
            Kind::Weighted(choices)
        } else if text.contains('-') {
            let (least, most) = range(text)?;
            Kind::Uniform(least, most)
        } else {
            Kind::Fixed(bytes(text).ok_or_else(bad)?)
        };
        Ok(Self {
            text: text.to_owned(),
            kind,
        })
    }
}

impl fmt::Display for ValueSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for ValueSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `100`, `100B`, `1KiB`, `2MiB`.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("B", 1)];
    let (number, unit) = units
        .into_iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
        .unwrap_or((text, 1));
    let size = number.trim().parse::<u64>().ok()?.checked_mul(unit)?;
    (size <= VALUE_BYTES_MAX).then_some(size)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn sizes_stay_in_their_range_and_reach_its_ends() {
        let mut rng = SmallRng::seed_from_u64(3);
        for (text, least, most) in [
            ("1KiB", 1024, 1024),
            ("7-9", 7, 9),
            ("zipf:10B-12B", 10, 12),
            ("1B*9, 2KiB*1", 1, 2048),
            ("0", 0, 0),
        ] {
            let size: ValueSize = text.parse().expect(text);
            let drawn: Vec<usize> = (0..2_000).map(|_| size.draw(&mut rng)).collect();
            assert_eq!(drawn.iter().min(), Some(&least), "{text}");
            assert_eq!(drawn.iter().max(), Some(&most), "{text}");
            assert_eq!(size.most(), most, "{text}");
        }
    }

    #[test]
    fn weights_are_kept() {
        let mut rng = SmallRng::seed_from_u64(4);
        let size: ValueSize = "1*3,100*1".parse().expect("valid");
        let large = (0..40_000).filter(|_| size.draw(&mut rng) == 100).count();
        assert!((9_000..11_000).contains(&large), "{large}");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in [
            "", "KiB", "1GiB", "9-7", "1*0", "1*x", "1*1,2", "zipf:5", "-1", "65MiB",
        ] {
            assert!(bad.parse::<ValueSize>().is_err(), "{bad}");
        }
    }
}
