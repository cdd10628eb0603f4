//! What is to be done with a node that was added here, whatever happened to it or to the autoscaler: nothing
//! is remembered but what the engine and the ring know, so a restart goes on where it was. Pure.

use std::time::Duration;

/// What the ring says of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It owns keys, or will, or gives them up right now.
    Member,
    /// The ring does not know it: not yet, or not any more.
    Stranger,
}

/// What the engine says of its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    Running,
    Stopped,
    Missing,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    Nothing,
    /// A member must run: it has data.
    Start,
    /// It is no member: container and volumes go.
    Remove,
}

/// `age` is the time since it was made; within `join_max` it has to be taken in.
pub(crate) fn chore(
    place: Place,
    container: Container,
    age: Duration,
    join_max: Duration,
) -> Chore {
    use Container::{Missing, Running, Stopped};
    match (place, container) {
        (Place::Member, Running) => Chore::Nothing,
        (Place::Member, Stopped | Missing) => Chore::Start,
        (Place::Stranger, Running) if age < join_max => Chore::Nothing,
        // A node that has left the ring ends by itself; one that fails is started again by the engine.
        (Place::Stranger, _) => Chore::Remove,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_run_and_what_is_no_member_goes() {
        let max = Duration::from_secs(600);
        let (young, old) = (Duration::from_secs(1), Duration::from_secs(601));
        for age in [young, old] {
            use Container::{Missing, Running, Stopped};
            assert_eq!(chore(Place::Member, Running, age, max), Chore::Nothing);
            assert_eq!(chore(Place::Member, Stopped, age, max), Chore::Start);
            assert_eq!(chore(Place::Member, Missing, age, max), Chore::Start);
            assert_eq!(chore(Place::Stranger, Stopped, age, max), Chore::Remove);
            assert_eq!(chore(Place::Stranger, Missing, age, max), Chore::Remove);
        }
        let joining = |age| chore(Place::Stranger, Container::Running, age, max);
        assert_eq!(joining(young), Chore::Nothing);
        assert_eq!(joining(old), Chore::Remove);
    }
}
