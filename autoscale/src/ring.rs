//! The ring, as most of the nodes that are always there see it.

use std::time::Duration;

use tokio::time::Instant;
use torc_client::{Admin, Change, Error, RingMember};

use crate::LOOK_EVERY;
use crate::chores::Place;

/// For one answer of a node.
const PATIENCE: Duration = Duration::from_secs(5);
/// A change is decided by a majority: longer than looking.
const DECIDE_MAX: Duration = Duration::from_secs(20);

/// The nodes that are always there.
#[derive(Debug)]
pub(crate) struct Ring {
    each: Vec<Admin>,
    all: Admin,
}

/// What the newest of their answers shows.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    version: u64,
    pub(crate) changing: bool,
    pub(crate) members: Vec<RingMember>,
}

/// Why nothing is known of the ring, or it was not changed.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// An address is none.
    #[error("admin address: {0}")]
    Address(Error),
    /// Too few answer to be sure that none knows of something newer.
    #[error("{answered} of {asked} nodes say how the ring is, which is no majority")]
    Minority {
        /// Nodes that answered.
        answered: usize,
        /// Nodes asked.
        asked: usize,
    },
    /// The change was refused, or its fate is unknown.
    #[error("the ring was not changed: {0}")]
    Refused(Error),
    /// It was taken back.
    #[error("the change of the ring was taken back ({end})")]
    TakenBack {
        /// How it ended.
        end: String,
    },
    /// It goes on.
    #[error("the change of the ring is not over yet")]
    Late,
}

impl Ring {
    pub(crate) fn new(addresses: &[String]) -> Result<Self, RingError> {
        let one = |address: &String| Admin::new(vec![address.clone()], PATIENCE);
        let each: Result<Vec<_>, _> = addresses.iter().map(one).collect();
        Ok(Self {
            each: each.map_err(RingError::Address)?,
            all: Admin::new(addresses.to_vec(), DECIDE_MAX).map_err(RingError::Address)?,
        })
    }

    /// What is not known to a majority may be old: who takes a member for a stranger would throw its data
    /// away.
    pub(crate) async fn look(&self) -> Result<Sight, RingError> {
        let mut newest: Option<Sight> = None;
        let mut answered = 0;
        for admin in &self.each {
            let (Ok(ring), Ok(change)) = (admin.ring().await, admin.change().await) else {
                continue;
            };
            answered += 1;
            let sight = Sight {
                version: ring.config_version.min(change.config_version),
                changing: ring.changing || !change.is_idle(),
                members: ring.members,
            };
            match &mut newest {
                Some(present) if present.version >= sight.version => {
                    present.changing |= sight.changing;
                }
                present => *present = Some(sight),
            }
        }
        let asked = self.each.len();
        let minority = RingError::Minority { answered, asked };
        newest.filter(|_| answered * 2 > asked).ok_or(minority)
    }

    /// Has a member leave, and waits until it has.
    pub(crate) async fn leave(&self, name: &str, until: Instant) -> Result<(), RingError> {
        let change = Change::Leave {
            node: name.to_owned(),
        };
        let decided = self.all.commit(&[change], None).await;
        let joint = decided.map_err(RingError::Refused)?.ring_version;
        while Instant::now() < until {
            tokio::time::sleep(LOOK_EVERY).await;
            let Ok(seen) = self.all.change().await else {
                continue;
            };
            if !seen.is_idle() || seen.ring_version < joint {
                continue;
            }
            if let Some(last) = seen.last
                && last.ring_version == joint
                && last.end != "switched"
            {
                return Err(RingError::TakenBack { end: last.end });
            }
            if let Ok(sight) = self.look().await
                && sight.place(name) == Place::Stranger
            {
                return Ok(());
            }
        }
        Err(RingError::Late)
    }
}

impl Sight {
    pub(crate) fn place(&self, name: &str) -> Place {
        if self.members.iter().any(|member| member.name == name) {
            Place::Member
        } else {
            Place::Stranger
        }
    }

    /// The failure domain with the fewest members.
    pub(crate) fn emptiest_zone(&self) -> Option<&str> {
        let of = |zone: &str| {
            self.members
                .iter()
                .filter(|member| member.zone == zone)
                .count()
        };
        let mut zones: Vec<_> = self
            .members
            .iter()
            .map(|member| member.zone.as_str())
            .collect();
        zones.sort_unstable();
        zones.into_iter().min_by_key(|zone| of(zone))
    }
}
