//! Placements in turn: the first weight takes the first, the next the second, and so on, over and over.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use parking_lot::Mutex;

use super::scheme::Placement;

/// No more names are remembered: models have thousands of weights, a host that makes up names could make any
/// number of them.
const NAMES_MAX: usize = 1 << 16;

/// A cycle of placements over the weights in the order in which they are first seen.
#[derive(Debug)]
pub struct Hybrid {
    cycle: Vec<Placement>,
    /// Place in the cycle by the hash of a tensor's name, which is bounded where names are not.
    seen: Mutex<HashMap<u64, usize>>,
}

/// Two are the same when they cycle through the same; what they saw does not count.
impl PartialEq for Hybrid {
    fn eq(&self, other: &Self) -> bool {
        self.cycle == other.cycle
    }
}

impl Hybrid {
    /// The cycle that `text` lists, separated by commas.
    ///
    /// # Errors
    /// The entry that is no placement's name.
    pub fn new(text: &str) -> Result<Self, &str> {
        let cycle = text
            .split(',')
            .map(str::trim)
            .map(|name| Placement::by_name(name).ok_or(name))
            .collect::<Result<_, _>>()?;
        Ok(Self { cycle, seen: Mutex::default() })
    }

    /// All placements of the cycle.
    pub fn placements(&self) -> impl Iterator<Item = Placement> + '_ {
        self.cycle.iter().copied()
    }

    /// The placement of the weight called `tensor`: the next one at its first sight, the same one ever after.
    pub fn of(&self, tensor: &str) -> Placement {
        let mut hasher = DefaultHasher::new();
        tensor.hash(&mut hasher);
        let key = hasher.finish();
        let mut seen = self.seen.lock();
        let turn = match seen.get(&key) {
            Some(turn) => *turn,
            // Out of turn, but still the same one every time.
            None if seen.len() >= NAMES_MAX => key as usize % self.cycle.len(),
            None => {
                let turn = seen.len() % self.cycle.len();
                seen.insert(key, turn);
                turn
            }
        };
        self.cycle[turn]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_take_turns_and_keep_theirs() {
        let hybrid = Hybrid::new("W8A8_STANDARD, cpu,W16A16").unwrap();
        let of = |name: &str| hybrid.of(name).to_string();
        assert_eq!([of("a"), of("b"), of("a"), of("c")], ["W8A8_STANDARD", "CPU", "W8A8_STANDARD", "W16A16"]);
        assert_eq!([of("d"), of("c"), of("b")], ["W8A8_STANDARD", "W16A16", "CPU"]);
    }

    #[test]
    fn the_wrong_entry_is_told() {
        assert_eq!(Hybrid::new("W8A8,W4,CPU").unwrap_err(), "W4");
        assert_eq!(Hybrid::new("W8A8,").unwrap_err(), "");
        assert_eq!(Hybrid::new("").unwrap_err(), "");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let hybrid = Hybrid::new("W8A8,CPU").unwrap();
        for i in 0..NAMES_MAX + 100 {
            hybrid.of(&format!("node_{i}"));
        }
        assert_eq!(hybrid.seen.lock().len(), NAMES_MAX);
        assert_eq!(hybrid.of("node_1"), Placement::Cpu);
        let late: Vec<_> = (0..100).map(|i| hybrid.of(&format!("late_{i}"))).collect();
        let again: Vec<_> = (0..100).map(|i| hybrid.of(&format!("late_{i}"))).collect();
        assert_eq!(late, again);
        assert!(late.contains(&Placement::Cpu) && late.iter().any(|placement| *placement != Placement::Cpu));
    }
}
