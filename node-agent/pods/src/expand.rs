//! `$(VAR)` references in commands, arguments, environment and subPathExpr.

/// Replaces `$(NAME)` by what `lookup` knows, `$$` by `$`, and leaves unknown references as they
/// are; the second value lists them.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> (String, Vec<String>) {
    let mut out = String::with_capacity(text.len());
    let mut missing = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                    missing.push(name.to_owned());
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    (out, missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(text: &str) -> String {
        let vars = |name: &str| match name {
            "A" => Some("1".to_owned()),
            "B" => Some("$(A)".to_owned()),
            "" => Some("empty".to_owned()),
            _ => None,
        };
        expand(text, vars).0
    }

    #[test]
    fn as_upstream() {
        for (input, output) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(", "$("),
            ("$(A", "$(A"),
            ("$$", "$"),
            ("$(A)$(A)", "11"),
            ("a$", "a$"),
            ("$()", "empty"),
            ("$$$$(A)", "$$(A)"),
        ] {
            assert_eq!(run(input), output, "{input}");
        }
        assert_eq!(expand("$(C) $(D)", |_| None).1, ["C", "D"]);
    }

    proptest! {
        #[test]
        fn text_without_dollar_is_untouched(text in "[^$]{0,60}") {
            prop_assert_eq!(run(&text), text);
        }
        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            run(&text);
        }
        #[test]
        fn doubled_dollars_come_out_verbatim(text in "\\PC{0,60}") {
            prop_assert_eq!(run(&text.replace('$', "$$")), text);
        }
    }
}
