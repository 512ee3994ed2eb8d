//! Patterns of tensor names: `blk.*.ffn_*.weight`.

use wildmatch::WildMatch;

/// A pattern that stands for all names it fits as a whole: `*` is any run of characters, `?` one character.
///
/// Matching takes at most pattern length × name length steps. Names of tensors are told apart by case.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern(WildMatch);

impl Pattern {
    /// What a pattern may be, for error messages. Brackets and braces are left out on purpose: who writes
    /// `blk.[0-3]` means more by them than their being in the name.
    pub const ALLOWED: &'static str =
        "letters, digits, . _ - : / and the wildcards * (any run) and ? (one character)";

    /// The pattern that is written so; `None` for an empty one or one with other characters than are allowed.
    pub fn new(text: &str) -> Option<Self> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-:/*?".contains(c);
        (!text.is_empty() && text.chars().all(allowed)).then(|| Self(WildMatch::new(text)))
    }

    /// Whether it fits `name`.
    pub fn fits(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the two wildcards mean, word by word; exponential.
    fn fits(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], _) => name.is_empty(),
            (['*', rest @ ..], _) => (0..=name.len()).any(|taken| fits(rest, &name[taken..])),
            (_, []) => false,
            ([first, rest @ ..], [c, others @ ..]) => (*first == '?' || first == c) && fits(rest, others),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(4000) })]

        #[test]
        fn it_fits_what_its_words_say(pattern in "[ab*?]{1,8}", name in "[abß*]{0,9}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                Pattern::new(&pattern).unwrap().fits(&name),
                fits(&chars(&pattern), &chars(&name))
            );
        }
    }

    #[test]
    fn names_of_tensors_are_found() {
        let pattern = Pattern::new("blk.*.ffn_*.weight").unwrap();
        assert!(pattern.fits("blk.0.ffn_down.weight") && pattern.fits("blk.31.ffn_gate.weight"));
        assert!(!pattern.fits("blk.0.attn_q.weight") && !pattern.fits("BLK.0.ffn_down.weight"));
        assert!(!pattern.fits("blk.0.ffn_down.weight2") && !pattern.fits(""));
        assert!(Pattern::new("*").unwrap().fits(""));
        let layer = Pattern::new("blk.?.*").unwrap();
        assert!(layer.fits("blk.7.attn_q.weight") && !layer.fits("blk.17.attn_q.weight"));
    }

    #[test]
    fn a_hard_pattern_is_quick() {
        // Exponential matchers never come back from this.
        let pattern = Pattern::new(&"*a".repeat(200)).unwrap();
        let begun = std::time::Instant::now();
        assert!(!pattern.fits(&format!("{}b", "a".repeat(2000))));
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn characters_with_other_meanings_elsewhere_are_refused() {
        for text in ["", "blk.[0-3].*", "a{b,c}", "a\\*", "a b", "^a$", "ä", "a\n"] {
            assert_eq!(Pattern::new(text), None, "{text:?}");
        }
    }
}
