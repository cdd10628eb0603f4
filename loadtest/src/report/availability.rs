//! How a run went from moment to moment: what failed, for how long nothing was answered, and when it was
//! well again.

use serde::Serialize;

use crate::record::{MOMENT, Moment};

/// A moment is well again when it answers this part of what the moments before the failures answered.
const WELL: f64 = 0.9;
/// Answers of a moment from which on a silent one is an outage.
const BUSY: u32 = 5;
/// So many moments must be well, one after the other.
const WELL_MOMENTS: usize = 5;

/// Availability of one run, judged by moments of a tenth of a second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Availability {
    /// Part of the operations that were answered, from 0 to 1.
    pub answered: f64,
    /// Part of the moments in which more was answered than failed, from 0 to 1.
    pub moments_up: f64,
    /// Longest time in which nothing was answered, in seconds; a tenth is the least that can be seen.
    pub longest_silence_seconds: f64,
    /// When the first operation failed, or the first moment was silent, in seconds from the beginning.
    pub first_trouble_seconds: Option<f64>,
    /// From then until nothing failed any more and throughput was back at 90 % of what it was before, for
    /// half a second; `None` when there was no trouble, or no end of it within the run.
    pub recovery_seconds: Option<f64>,
}

impl Availability {
    /// Of these moments. The last one is left out: it is cut off anywhere.
    pub(crate) fn of(moments: &[Moment]) -> Self {
        let moments = &moments[..moments.len().saturating_sub(1)];
        let total = |of: fn(&Moment) -> u32| {
            moments
                .iter()
                .map(|moment| u64::from(of(moment)))
                .sum::<u64>()
        };
        let (answered, failed) = (
            total(|moment| moment.answered),
            total(|moment| moment.failed),
        );
        let part = |some: u64, others: u64| {
            if some + others == 0 {
                1.0
            } else {
                some as f64 / (some + others) as f64
            }
        };
        let up = moments
            .iter()
            .filter(|moment| moment.answered > moment.failed)
            .count() as u64;
        let silent = |moment: &Moment| moment.answered == 0;
        // Where little is asked for, a moment without an answer is none.
        let mut usual: Vec<u32> = moments.iter().map(|moment| moment.answered).collect();
        usual.sort_unstable();
        let is_busy = usual
            .get(usual.len() * 3 / 4)
            .is_some_and(|answered| *answered >= BUSY);
        let longest = moments
            .split(|moment| !silent(moment))
            .map(<[Moment]>::len)
            .max()
            .unwrap_or(0);
        let trouble = moments
            .iter()
            .position(|moment| (is_busy && silent(moment)) || moment.failed > 0);
        Self {
            answered: part(answered, failed),
            moments_up: part(up, moments.len() as u64 - up),
            longest_silence_seconds: seconds(longest),
            first_trouble_seconds: trouble.map(seconds),
            recovery_seconds: trouble.and_then(|at| recovery(moments, at)).map(seconds),
        }
    }
}

impl Availability {
    /// For tables: part answered, part of the time up, longest silence, time to recover.
    #[must_use]
    pub fn cells(&self) -> Vec<String> {
        let recovered = match (self.first_trouble_seconds, self.recovery_seconds) {
            (None, _) => "no trouble".to_owned(),
            (_, None) => "not".to_owned(),
            (_, Some(seconds)) => format!("{seconds:.1}"),
        };
        let silence = self.longest_silence_seconds;
        vec![
            percent(self.answered),
            percent(self.moments_up),
            if silence > 0.0 {
                format!("{silence:.1}")
            } else {
                "-".to_owned()
            },
            recovered,
        ]
    }
}

/// Never rounded up to a whole that it is not.
fn percent(part: f64) -> String {
    format!("{:.3} %", (part * 100_000.0).floor() / 1_000.0)
}

fn seconds(moments: usize) -> f64 {
    moments as f64 * MOMENT.as_secs_f64()
}

/// Moments from `trouble` to the first of a row that is well, after the last that is not.
fn recovery(moments: &[Moment], trouble: usize) -> Option<usize> {
    let mut before: Vec<u32> = moments[..trouble]
        .iter()
        .map(|moment| moment.answered)
        .collect();
    before.sort_unstable();
    // Without a time before, what is well is only that something is answered and nothing fails.
    let usual = before.get(before.len() / 2).copied().unwrap_or(0);
    let well = |moment: &Moment| {
        moment.failed == 0
            && moment.answered > 0
            && f64::from(moment.answered) >= f64::from(usual) * WELL
    };
    let mut row = 0;
    for (at, moment) in moments.iter().enumerate().skip(trouble) {
        row = if well(moment) { row + 1 } else { 0 };
        if row == WELL_MOMENTS {
            let failures_follow = moments[at..].iter().any(|moment| moment.failed > 0);
            if failures_follow {
                row = 0;
                continue;
            }
            return Some(at + 1 - WELL_MOMENTS - trouble);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(text: &str) -> Vec<Moment> {
        let mut moments: Vec<Moment> = text
            .chars()
            .map(|c| match c {
                '#' => Moment {
                    answered: 100,
                    failed: 0,
                },
                'x' => Moment {
                    answered: 10,
                    failed: 90,
                },
                'e' => Moment {
                    answered: 99,
                    failed: 1,
                },
                '-' => Moment {
                    answered: 50,
                    failed: 0,
                },
                _ => Moment::default(),
            })
            .collect();
        moments.push(Moment::default());
        moments
    }

    #[test]
    fn without_trouble_all_is_available() {
        let seen = Availability::of(&moments("##########"));
        assert_eq!((seen.answered, seen.moments_up), (1.0, 1.0));
        assert_eq!(
            (seen.first_trouble_seconds, seen.recovery_seconds),
            (None, None)
        );
    }

    #[test]
    fn silence_and_recovery_are_measured() {
        let seen = Availability::of(&moments("####xx....xx--##########"));
        assert_eq!(
            seen.first_trouble_seconds.map(|at| (at * 10.0).round()),
            Some(4.0)
        );
        assert!((seen.longest_silence_seconds - 0.4).abs() < 1e-9);
        // Failures, silence, failures, half the throughput: ten moments.
        assert_eq!(
            seen.recovery_seconds.map(|at| (at * 10.0).round()),
            Some(10.0)
        );
        assert!(seen.answered < 1.0 && seen.moments_up < 1.0);
    }

    #[test]
    fn silence_between_few_requests_is_no_outage() {
        let rare = Moment {
            answered: 1,
            failed: 0,
        };
        let seen = Availability::of(&[rare, Moment::default(), rare, Moment::default(), rare]);
        assert_eq!(seen.first_trouble_seconds, None);
    }

    #[test]
    fn what_fails_until_the_end_has_not_recovered() {
        assert_eq!(
            Availability::of(&moments("####xx#######x###")).recovery_seconds,
            None
        );
        assert_eq!(
            Availability::of(&moments("####....")).recovery_seconds,
            None
        );
    }

    #[test]
    fn single_failures_count_as_trouble_but_not_as_an_outage() {
        let seen = Availability::of(&moments("####e########"));
        assert!(seen.moments_up >= 1.0);
        assert_eq!(
            seen.recovery_seconds.map(|at| (at * 10.0).round()),
            Some(1.0)
        );
    }
}
