//! A value that a user gave, as it is shown in a line about it.

/// More characters of a value are not shown.
const SHOWN_MAX: usize = 120;

/// `text` in quotes, on one line and of a length that can be read, whatever it is.
pub fn quoted(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_short_line() {
        assert_eq!(quoted("rk9999"), "\"rk9999\"");
        assert_eq!(quoted("a\n\"b\""), "\"a\\n\\\"b\\\"\"");
        assert_eq!(quoted("ä".repeat(120).as_str()).chars().count(), 122);
        assert_eq!(quoted("ä".repeat(1000).as_str()).chars().count(), 123);
    }
}
