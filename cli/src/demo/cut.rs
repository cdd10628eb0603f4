//! Which nodes are cut off from which: groups of node numbers, such as `1,2|3`.

use crate::exit::Usage;

/// Reads groups: numbers separated by commas, groups by `|`, at least two of them, none empty, no number
/// twice.
pub(crate) fn parse(text: &str) -> Result<Vec<Vec<u16>>, Usage> {
    let refused = |why: &str| {
        Usage(format!(
            "`{text}` {why}: give groups of node numbers, such as '1,2|3' (quoted, because of the bar)"
        ))
    };
    let mut seen = Vec::new();
    let mut groups = Vec::new();
    for part in text.split('|') {
        let mut group = Vec::new();
        for word in part.split(',') {
            let number: u16 = word
                .trim()
                .parse()
                .map_err(|_| refused("is no list of groups"))?;
            if seen.contains(&number) {
                return Err(refused("names a node twice"));
            }
            seen.push(number);
            group.push(number);
        }
        groups.push(group);
    }
    if groups.len() < 2 {
        return Err(refused("is one group only"));
    }
    Ok(groups)
}

/// The nodes that this one cannot reach: those of other groups, if it is in any.
pub(crate) fn cut_off_from(number: usize, groups: &[Vec<u16>]) -> Vec<usize> {
    let is_own = |group: &&Vec<u16>| group.iter().any(|&other| usize::from(other) == number);
    if !groups.iter().any(|group| is_own(&group)) {
        return Vec::new();
    }
    let others = groups.iter().filter(|group| !is_own(group));
    others.flatten().map(|&other| usize::from(other)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_and_say_who_is_cut_off() {
        let groups = parse("1,2|3").expect("two groups");
        assert_eq!(groups, [vec![1, 2], vec![3]]);
        assert_eq!(cut_off_from(1, &groups), [3]);
        assert_eq!(cut_off_from(3, &groups), [1, 2]);
        assert_eq!(cut_off_from(4, &groups), [] as [usize; 0]);
    }

    #[test]
    fn what_makes_no_partition_is_refused() {
        for bad in ["", "1", "1,2", "1|", "a|b", "1|1", "1,2|2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
