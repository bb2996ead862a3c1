//! Sets of indexes as a Job's status writes them: "0,2-4,7".

use std::collections::BTreeSet;

/// Reads the text; what is no number is left out, nothing at or above `limit` is taken.
pub fn parse(text: &str, limit: i32) -> BTreeSet<i32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(from), Ok(to)) = (from.parse::<i32>(), to.parse::<i32>()) {
            set.extend(from.max(0)..=to.min(limit - 1));
        }
    }
    set
}

/// Writes the text; two neighbours are listed, three or more become a range.
pub fn format(set: &BTreeSet<i32>) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut iter = set.iter().copied().peekable();
    while let Some(first) = iter.next() {
        let mut last = first;
        while let Some(next) = iter.next_if_eq(&(last + 1)) {
            last = next;
        }
        match last - first {
            0 => parts.push(first.to_string()),
            1 => parts.push(format!("{first},{last}")),
            _ => parts.push(format!("{first}-{last}")),
        }
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_as_upstream_writes_them() {
        assert_eq!(format(&[0, 2, 3, 5, 6, 7].into()), "0,2,3,5-7");
        assert_eq!(parse("0,2-4,9", 9), [0, 2, 3, 4].into());
        assert_eq!(parse("", 5), [].into());
        assert_eq!(parse("x,1-y,3", 5), [3].into());
    }

    proptest! {
        #[test]
        fn text_round_trips(set: BTreeSet<u8>) {
            let set: BTreeSet<i32> = set.into_iter().map(i32::from).collect();
            prop_assert_eq!(parse(&format(&set), 256), set);
        }
    }
}
