//! Lists of small numbers, as `RKNPU_CORES` and `RKNPU_DOMAINS` have them: `0,2-3`.

/// Numbers in the order in which they were listed, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbers {
    /// The list as it was written.
    pub text: String,
    /// What it lists; never empty.
    pub list: Vec<usize>,
}

impl Numbers {
    /// Reads numbers up to and with `max`, and ranges of them, separated by commas. A number that is listed again
    /// changes nothing.
    pub fn parse(text: &str, max: usize) -> Option<Self> {
        let number = |text: &str| {
            let digits = text.trim();
            // `parse` alone would take "+1".
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            digits.parse::<usize>().ok().filter(|number| plain && *number <= max)
        };
        let mut list = Vec::new();
        for item in text.split(',') {
            let (first, last) = match item.split_once('-') {
                None => (number(item)?, number(item)?),
                Some((first, last)) => (number(first)?, number(last)?),
            };
            if first > last {
                return None;
            }
            for number in first..=last {
                if !list.contains(&number) {
                    list.push(number);
                }
            }
        }
        Some(Self { text: text.to_owned(), list })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> Option<Vec<usize>> {
        Numbers::parse(text, 15).map(|numbers| numbers.list)
    }

    #[test]
    fn numbers_and_ranges_are_listed_in_their_order() {
        for (text, want) in [
            ("0", &[0][..]),
            (" 1 ", &[1]),
            ("0,2-3", &[0, 2, 3]),
            ("3, 0 - 1", &[3, 0, 1]),
            ("15,007", &[15, 7]),
            ("2-2", &[2]),
            ("1,0-2,1", &[1, 0, 2]),
        ] {
            assert_eq!(list(text).as_deref(), Some(want), "{text:?}");
        }
        assert_eq!(Numbers::parse(" 1 ", 1).unwrap().text, " 1 ");
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            " ",
            ",",
            "0,",
            ",0",
            "0,,1",
            "a",
            "0x1",
            "1.5",
            "16",
            "99",
            "0-16",
            "3-1",
            "-1",
            "1-",
            "-",
            "0-1-2",
            "+1",
            "1 2",
            "0;1",
            "18446744073709551616",
            "0-18446744073709551615",
        ] {
            assert_eq!(list(text), None, "{text:?}");
        }
        // However often a number is listed, there are no more of them.
        assert_eq!(list(&vec!["0-15"; 1000].join(",")).unwrap().len(), 16);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in "[0-9a,\\- ]{0,12}") {
            for number in list(&text).unwrap_or_default() {
                prop_assert!(number <= 15);
            }
        }
    }
}
