//! Whether something is added or removed: a pure machine, told what is seen and the time.
//!
//! Invariants, whatever the load does: the count stays within its bounds; between two changes lies the
//! cooldown; nothing is removed that was not added here; nothing is changed while the cluster is changing or
//! somebody is missing; nothing is removed if the rest would be nearer to too much than to too little.
//! Reads no clock and does no I/O.

use std::fmt;
use std::time::Duration;

/// What is scaled, and when. Loads are those of one member on average.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    /// Never fewer.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// Load from which on one more is wanted.
    pub high: f64,
    /// Load below which one less would do; below `high`.
    pub low: f64,
    /// For how long a load has to last before it counts.
    pub sustain: Duration,
    /// Least time between two changes.
    pub cooldown: Duration,
}

/// What is seen at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// How many there are.
    pub count: u32,
    /// How many of them were added here, and may be removed.
    pub added: u32,
    /// Load of one of them on average; `None` when nobody can say.
    pub load: Option<f64>,
    /// Why nothing may be changed now.
    pub blocked: Option<Block>,
}

/// Why nothing may be changed, whatever the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// The ring is changing.
    ChangeRunning,
    /// A member is not alive: that is to be mended first.
    MemberMissing,
    /// Nobody can say how the cluster is.
    Unknown,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// One more.
    Add,
    /// One less.
    Remove,
    /// Nothing.
    Hold,
}

/// A step and its reason.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// What is to be done.
    pub step: Step,
    /// Why.
    pub why: Why,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Why {
    /// Nothing may be changed.
    Blocked(Block),
    /// There are fewer than there must be.
    BelowMin(Rule),
    /// There are more than there may be.
    AboveMax(Rule),
    /// Nobody can say what the load is.
    NoFigures,
    /// The load has been high for long enough.
    High(f64, Rule),
    /// The load is high, but not for long enough yet.
    HighSince(f64, Duration, Rule),
    /// The load is high, and there are as many as there may be.
    AtMax(f64, Rule),
    /// The load has been low for long enough.
    Low(f64, Rule),
    /// The load is low, but not for long enough yet.
    LowSince(f64, Duration, Rule),
    /// The load is low, and there are as few as there must be.
    AtMin(f64, Rule),
    /// The load is low, but those that are left were not added here.
    NotAdded(f64, Rule),
    /// The load is low, but would not be for those that are left.
    Fewer(f64, f64, Rule),
    /// The last change was a moment ago.
    CoolingDown(Duration),
    /// The load is neither high nor low.
    Fine(f64, Rule),
}

/// Decides about one kind of thing.
#[derive(Clone, Debug)]
pub struct Scaler {
    rule: Rule,
    high_since: Option<Duration>,
    low_since: Option<Duration>,
    changed_at: Option<Duration>,
}

impl Scaler {
    /// A machine that has seen nothing yet.
    #[must_use]
    pub fn new(rule: Rule) -> Self {
        Self {
            rule,
            high_since: None,
            low_since: None,
            changed_at: None,
        }
    }

    /// What is to be done. `now` is the time since some fixed moment, and never goes back.
    pub fn decide(&mut self, seen: &Seen, now: Duration) -> Decision {
        let why = self.judge(seen, now);
        let step = match why {
            Why::High(..) | Why::BelowMin(_) => Step::Add,
            Why::Low(..) | Why::AboveMax(_) => Step::Remove,
            _ => Step::Hold,
        };
        Decision { step, why }
    }

    /// A change was begun, or has ended, well or not: the load that was seen before says nothing any more.
    pub fn on_change(&mut self, now: Duration) {
        self.changed_at = Some(now);
        (self.high_since, self.low_since) = (None, None);
    }

    fn judge(&mut self, seen: &Seen, now: Duration) -> Why {
        let rule = self.rule;
        self.remember(seen, now);
        if let Some(block) = seen.blocked {
            return Why::Blocked(block);
        }
        if let Some(changed) = self.changed_at {
            let passed = now.saturating_sub(changed);
            if passed < rule.cooldown {
                return Why::CoolingDown(rule.cooldown.saturating_sub(passed));
            }
        }
        if seen.count < rule.min {
            return Why::BelowMin(rule);
        }
        if seen.count > rule.max && seen.added > 0 {
            return Why::AboveMax(rule);
        }
        let Some(load) = seen.load else {
            return Why::NoFigures;
        };
        if let Some(since) = self.high_since {
            return self.judge_high(seen, load, now.saturating_sub(since));
        }
        if let Some(since) = self.low_since {
            return self.judge_low(seen, load, now.saturating_sub(since));
        }
        Why::Fine(load, rule)
    }

    /// For how long the load has been what it is.
    fn remember(&mut self, seen: &Seen, now: Duration) {
        let is = |holds: bool, since: Option<Duration>| holds.then(|| since.unwrap_or(now));
        let high = seen.load.is_some_and(|load| load >= self.rule.high);
        let low = seen.load.is_some_and(|load| load < self.rule.low);
        self.high_since = is(high, self.high_since);
        self.low_since = is(low, self.low_since);
    }

    fn judge_high(&self, seen: &Seen, load: f64, lasted: Duration) -> Why {
        if seen.count >= self.rule.max {
            Why::AtMax(load, self.rule)
        } else if lasted < self.rule.sustain {
            Why::HighSince(load, lasted, self.rule)
        } else {
            Why::High(load, self.rule)
        }
    }

    fn judge_low(&self, seen: &Seen, load: f64, lasted: Duration) -> Why {
        let rule = self.rule;
        if seen.count <= rule.min || seen.count <= 1 {
            return Why::AtMin(load, rule);
        }
        if seen.added == 0 {
            return Why::NotAdded(load, rule);
        }
        let then = load * f64::from(seen.count) / f64::from(seen.count - 1);
        if then >= f64::midpoint(rule.low, rule.high) {
            return Why::Fewer(load, then, rule);
        }
        if lasted < rule.sustain {
            return Why::LowSince(load, lasted, rule);
        }
        Why::Low(load, rule)
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ChangeRunning => "the ring is changing",
            Self::MemberMissing => "a member is not alive, which is to be mended first",
            Self::Unknown => "no node says how the cluster is",
        })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Hold => "hold",
        })
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = |time: &Duration| time.as_secs_f64().round();
        match self {
            Self::Blocked(block) => write!(f, "{block}"),
            Self::BelowMin(rule) => write!(f, "there must be at least {}", rule.min),
            Self::AboveMax(rule) => write!(f, "there may be at most {}", rule.max),
            Self::NoFigures => f.write_str("Prometheus has no figures of the load"),
            Self::High(load, rule) => write!(
                f,
                "the load of each is {load:.2}, at least {} for {} s",
                rule.high,
                s(&rule.sustain)
            ),
            Self::HighSince(load, lasted, rule) => write!(
                f,
                "the load of each is {load:.2}, at least {} since {} s, which counts after {} s",
                rule.high,
                s(lasted),
                s(&rule.sustain)
            ),
            Self::AtMax(load, rule) => write!(
                f,
                "the load of each is {load:.2}, at least {}, but there may be at most {}",
                rule.high, rule.max
            ),
            Self::Low(load, rule) => write!(
                f,
                "the load of each is {load:.2}, below {} for {} s",
                rule.low,
                s(&rule.sustain)
            ),
            Self::LowSince(load, lasted, rule) => write!(
                f,
                "the load of each is {load:.2}, below {} since {} s, which counts after {} s",
                rule.low,
                s(lasted),
                s(&rule.sustain)
            ),
            Self::AtMin(load, rule) => write!(
                f,
                "the load of each is {load:.2}, below {}, but there must be at least {}",
                rule.low,
                rule.min.max(1)
            ),
            Self::NotAdded(load, rule) => write!(
                f,
                "the load of each is {load:.2}, below {}, but none of them was added by the autoscaler",
                rule.low
            ),
            Self::Fewer(load, then, rule) => write!(
                f,
                "the load of each is {load:.2}, below {}, but with one less it would be {then:.2}",
                rule.low
            ),
            Self::CoolingDown(left) => write!(
                f,
                "the last change was a moment ago; the next one is possible in {} s",
                s(left)
            ),
            Self::Fine(load, rule) => write!(
                f,
                "the load of each is {load:.2}, between {} and {}",
                rule.low, rule.high
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule = Rule {
        min: 3,
        max: 5,
        high: 10.0,
        low: 4.0,
        sustain: Duration::from_secs(20),
        cooldown: Duration::from_secs(60),
    };

    fn seen(count: u32, load: f64) -> Seen {
        Seen {
            count,
            added: count.saturating_sub(RULE.min),
            load: Some(load),
            blocked: None,
        }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// What was decided at each moment, in words.
    fn transcript(events: &[(u64, Seen)]) -> Vec<String> {
        let mut scaler = Scaler::new(RULE);
        let mut said = Vec::new();
        for (second, seen) in events {
            let decision = scaler.decide(seen, at(*second));
            said.push(format!("{second}: {} — {}", decision.step, decision.why));
            if decision.step != Step::Hold {
                scaler.on_change(at(*second));
            }
        }
        said
    }

    #[test]
    fn a_load_that_lasts_adds_one_and_then_there_is_a_pause() {
        let said = transcript(&[
            (0, seen(3, 12.0)),
            (10, seen(3, 12.0)),
            (20, seen(3, 12.0)),
            (30, seen(4, 12.0)),
            (79, seen(4, 12.0)),
            (80, seen(4, 12.0)),
            (140, seen(5, 12.0)),
        ]);
        assert_eq!(
            said,
            [
                "0: hold — the load of each is 12.00, at least 10 since 0 s, which counts after 20 s",
                "10: hold — the load of each is 12.00, at least 10 since 10 s, which counts after 20 s",
                "20: add — the load of each is 12.00, at least 10 for 20 s",
                "30: hold — the last change was a moment ago; the next one is possible in 50 s",
                "79: hold — the last change was a moment ago; the next one is possible in 1 s",
                "80: add — the load of each is 12.00, at least 10 for 20 s",
                "140: hold — the load of each is 12.00, at least 10, but there may be at most 5",
            ]
        );
    }

    #[test]
    fn a_load_that_falls_removes_what_was_added_and_nothing_else() {
        let said = transcript(&[
            (0, seen(4, 3.9)),
            (10, seen(4, 5.0)),
            (20, seen(4, 3.0)),
            (40, seen(4, 3.0)),
            (100, seen(3, 0.0)),
            (
                120,
                Seen {
                    added: 0,
                    ..seen(4, 0.0)
                },
            ),
        ]);
        assert_eq!(
            said,
            [
                "0: hold — the load of each is 3.90, below 4 since 0 s, which counts after 20 s",
                "10: hold — the load of each is 5.00, between 4 and 10",
                "20: hold — the load of each is 3.00, below 4 since 0 s, which counts after 20 s",
                "40: remove — the load of each is 3.00, below 4 for 20 s",
                "100: hold — the load of each is 0.00, below 4, but there must be at least 3",
                "120: hold — the load of each is 0.00, below 4, but none of them was added by the autoscaler",
            ]
        );
    }

    #[test]
    fn nothing_is_removed_if_the_rest_would_be_busy() {
        let narrow = Rule {
            min: 1,
            low: 9.0,
            ..RULE
        };
        let mut scaler = Scaler::new(narrow);
        let two = Seen {
            added: 1,
            ..seen(2, 8.0)
        };
        let decision = scaler.decide(&two, at(0));
        assert_eq!(decision.step, Step::Hold);
        assert_eq!(
            decision.why.to_string(),
            "the load of each is 8.00, below 9, but with one less it would be 16.00"
        );
    }

    #[test]
    fn a_cluster_that_changes_or_lacks_somebody_is_left_alone_and_figures_must_be_fresh() {
        let mut scaler = Scaler::new(RULE);
        for block in [Block::ChangeRunning, Block::MemberMissing, Block::Unknown] {
            let blocked = Seen {
                blocked: Some(block),
                ..seen(3, 99.0)
            };
            let decision = scaler.decide(&blocked, at(0));
            assert_eq!(
                decision,
                Decision {
                    step: Step::Hold,
                    why: Why::Blocked(block)
                }
            );
        }
        // Without figures nothing is known, not even how long it was so before.
        let blind = Seen {
            load: None,
            ..seen(3, 0.0)
        };
        assert_eq!(scaler.decide(&blind, at(30)).why, Why::NoFigures);
        let after = scaler.decide(&seen(3, 99.0), at(31));
        assert_eq!(after.step, Step::Hold, "{}", after.why);
        // Too few are too few, whatever the figures say.
        let few = Seen {
            count: 2,
            added: 0,
            ..blind
        };
        assert_eq!(scaler.decide(&few, at(32)).step, Step::Add);
    }

    proptest! {
        #[test]
        fn counts_stay_in_bounds_and_changes_apart(
            rounds in proptest::collection::vec((0.0..30.0_f64, 1_u64..40, any::<bool>(), 0_u8..10), 1..200)
        ) {
            let mut scaler = Scaler::new(RULE);
            let (mut count, mut now) = (RULE.min, 0);
            let mut last: Option<u64> = None;
            for (load, pause, blocked, blind) in rounds {
                now += pause;
                let what = Seen {
                    blocked: blocked.then_some(Block::ChangeRunning),
                    load: (blind > 0).then_some(load),
                    ..seen(count, load)
                };
                let step = scaler.decide(&what, at(now)).step;
                match step {
                    Step::Hold => continue,
                    Step::Add => {
                        prop_assert!(load >= RULE.high);
                        count += 1;
                    }
                    Step::Remove => {
                        prop_assert!(load < RULE.low);
                        count -= 1;
                    }
                }
                prop_assert!(!blocked && blind > 0);
                prop_assert!((RULE.min..=RULE.max).contains(&count));
                prop_assert!(last.is_none_or(|last| now - last >= RULE.cooldown.as_secs()));
                last = Some(now);
                scaler.on_change(at(now));
            }
        }

        #[test]
        fn a_load_that_stays_ends_in_rest(total in 0.0..200.0_f64) {
            // The same total load, shared by whoever is there: the scaler must find a count and stay there.
            let mut scaler = Scaler::new(RULE);
            let (mut count, mut changes) = (RULE.min, 0);
            for round in 0..400_u64 {
                let step = scaler.decide(&seen(count, total / f64::from(count)), at(round * 10)).step;
                match step {
                    Step::Hold => continue,
                    Step::Add => count += 1,
                    Step::Remove => count -= 1,
                }
                changes += 1;
                scaler.on_change(at(round * 10));
            }
            prop_assert!(changes <= RULE.max - RULE.min, "{changes} changes, {count} at the end");
        }
    }
}
