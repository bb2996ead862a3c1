//! One line of a CRI log: `2016-10-06T00:17:09.669794202Z stdout F message`.

use jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    pub time: Timestamp,
    /// The time as the runtime wrote it: what `timestamps` shows.
    pub time_text: &'a str,
    pub stream: Stream,
    /// What the container wrote, with its newline unless the runtime cut the line.
    pub content: &'a [u8],
}

/// Parses a line with or without its newline. The error names what is wrong with it.
pub fn entry(line: &[u8]) -> Result<Entry<'_>, &'static str> {
    let (time_text, rest) = split(line).ok_or("no timestamp")?;
    let (stream, rest) = split(rest).ok_or("no stream")?;
    let (tags, content) = split(rest).ok_or("no tag")?;
    let time_text = std::str::from_utf8(time_text).map_err(|_| "timestamp is not text")?;
    let time = time_text.parse().map_err(|_| "timestamp does not parse")?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err("unknown stream"),
    };
    // The first of the colon-separated tags says whether the line is whole (F) or cut (P).
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    let content = match content.strip_suffix(b"\n") {
        Some(cut) if partial => cut,
        Some(_) | None => content,
    };
    Ok(Entry { time, time_text, stream, content })
}

fn split(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == b' ')?;
    Some((&text[..at], &text[at + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whole_and_partial() {
        let whole = entry(b"2016-10-06T00:17:09.669794202Z stdout F a b\n").unwrap();
        assert_eq!((whole.stream, whole.content), (Stream::Stdout, &b"a b\n"[..]));
        let partial = entry(b"2016-10-06T00:17:09.669794202+02:00 stderr P:x cut\n").unwrap();
        assert_eq!((partial.stream, partial.content), (Stream::Stderr, &b"cut"[..]));
        assert_eq!(entry(b"2016-10-06T00:17:09Z stdout F \n").unwrap().content, b"\n");
        for bad in [&b""[..], b"x", b"2016-10-06T00:17:09Z stdout", b"2016-10-06T00:17:09Z nowhere F x\n", b"then stdout F x\n"] {
            assert!(entry(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn content_round_trips(content in "[^\n]{0,80}", whole in any::<bool>()) {
            let tag = if whole { "F" } else { "P" };
            let line = format!("2016-10-06T00:17:09.1Z stdout {tag} {content}\n");
            let parsed = entry(line.as_bytes()).unwrap();
            let expected = if whole { format!("{content}\n") } else { content };
            prop_assert_eq!(parsed.content, expected.as_bytes());
        }
        #[test]
        fn never_panics(line in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = entry(&line);
        }
    }
}
