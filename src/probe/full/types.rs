//! Which matmul types the library takes on this chip.

use super::{source, Bench, Check, Seen, Stop};
use crate::chip::Chip;

/// What is believed of a type on a chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// A context can be made.
    Accepted,
    /// A context is refused.
    Refused,
    /// Reports disagree, or there are none: whatever is found is news, not a fault.
    Disputed,
}

/// The vendor's numbers that are asked for, with what they compute.
const ASKED: [(i32, &str); 7] = [
    (1, "f16 × f16 → f32"),
    (2, "i8 × i8 → i32"),
    (3, "i8 × i8 → i8"),
    (4, "f16 × f16 → f16"),
    (5, "f16 × i8 → f32"),
    (7, "f16 × i4 → f32"),
    (10, "i4 × i4 → i16"),
];

/// What is believed of the vendor's type `code` on `chip`.
pub fn belief(chip: &Chip, code: i32) -> Belief {
    match (chip.name, code) {
        (_, 1 | 2) | ("rk3588", 3 | 4 | 10) | ("rk3576", 5 | 7) => Belief::Accepted,
        ("rk3576", 3 | 4 | 10) => Belief::Disputed,
        _ => Belief::Refused,
    }
}

pub(super) fn checks(chip: &Chip) -> Vec<Check> {
    ASKED
        .into_iter()
        .map(|(code, what)| {
            let belief = belief(chip, code);
            let believed = match belief {
                Belief::Accepted => format!("{what} is taken"),
                Belief::Refused => format!("{what} is refused"),
                Belief::Disputed => format!("{what}: reports disagree"),
            };
            let advice = match code {
                1 | 2 => "update librknnrt to 2.3.2: the plugin needs this type",
                5 | 7 | 10 => "the plugin goes on without it; please send the report",
                _ => "nothing depends on it today; please send the report",
            };
            let from = if code <= 2 { source::HEADER } else { source::REPORTS };
            Check::new(format!("type.{code}"), believed, from, advice, move |bench| run(bench, code, belief))
        })
        .collect()
}

fn run(bench: &Bench, code: i32, belief: Belief) -> Seen {
    // A multiple of every alignment that is known.
    let result = bench.library.try_type(code, 4, 128, 128);
    match (belief, result) {
        (Belief::Accepted, Ok(())) => Ok("taken".to_owned()),
        (Belief::Accepted, Err(error)) => Err(Stop::Fail(format!("refused: {error}"))),
        (Belief::Refused, Err(_)) => Ok("refused".to_owned()),
        (Belief::Refused, Ok(())) => Err(Stop::Fail("taken".to_owned())),
        (Belief::Disputed, Ok(())) => Err(Stop::Unknown("taken here".to_owned())),
        (Belief::Disputed, Err(_)) => Err(Stop::Unknown("refused here".to_owned())),
    }
}
