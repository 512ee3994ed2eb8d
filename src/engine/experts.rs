//! The rows of a mixture of experts, gathered by expert: which rows of the activations each expert multiplies, and
//! which rows of the output they become.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Tells one gathering from another: rows of the same number are the same rows.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The rows of all experts; its room is kept from one product to the next.
#[derive(Default)]
pub struct Experts {
    /// Where each expert's rows begin in the lists below, and where the last one's end.
    starts: Vec<u32>,
    from: Vec<u32>,
    to: Vec<u32>,
    /// Rows that there are.
    of: usize,
    /// Whether some row goes to several experts.
    shared: bool,
    number: u64,
}

/// Some rows of the activations, in an expert's order. No two become the same row of the output.
#[derive(Debug, Clone, Copy)]
pub struct Picks<'a> {
    from: &'a [u32],
    to: &'a [u32],
    of: usize,
    shared: bool,
    key: (u64, usize),
}

impl Experts {
    /// Gathers the rows of `experts` experts. `ids` names the expert of each row of the output, `used` for a token; a token
    /// has `rows` rows of activations, 1 or `used`, which its experts take in turn.
    ///
    /// # Errors
    /// The first id that is no expert's.
    pub fn gather(
        &mut self,
        experts: usize,
        used: usize,
        rows: usize,
        ids: impl Iterator<Item = i32> + Clone,
    ) -> Result<(), i32> {
        self.starts.clear();
        self.starts.resize(experts + 1, 0);
        let mut count = 0;
        for id in ids.clone() {
            let expert = usize::try_from(id).ok().filter(|expert| *expert < experts).ok_or(id)?;
            self.starts[expert + 1] += 1;
            count += 1;
        }
        for expert in 0..experts {
            self.starts[expert + 1] += self.starts[expert];
        }
        for list in [&mut self.from, &mut self.to] {
            list.clear();
            list.resize(count, 0);
        }
        // Each start moves to its expert's end, which is where the next one's was.
        for (index, id) in ids.enumerate() {
            let place = &mut self.starts[id as usize];
            let (token, turn) = (index / used, index % used);
            self.from[*place as usize] = (token * rows + turn % rows) as u32;
            self.to[*place as usize] = index as u32;
            *place += 1;
        }
        self.starts.rotate_right(1);
        self.starts[0] = 0;
        self.of = count / used.max(1) * rows;
        self.shared = rows < used;
        // Each expert's rows have a number of their own.
        self.number = NEXT.fetch_add(experts as u64, Relaxed);
        Ok(())
    }

    /// The rows of an expert.
    pub fn picks(&self, expert: usize) -> Picks<'_> {
        let range = self.starts[expert] as usize..self.starts[expert + 1] as usize;
        let (from, to) = (&self.from[range.clone()], &self.to[range]);
        Picks { from, to, of: self.of, shared: self.shared, key: (self.number + expert as u64, 0) }
    }
}

impl<'a> Picks<'a> {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.from.len()
    }

    /// Which row of the activations becomes each of the rows `range`.
    pub fn from(&self, range: Range<usize>) -> &'a [u32] {
        &self.from[range]
    }

    /// Which row of the output each of the rows `range` becomes; all of them are different.
    pub fn to(&self, range: Range<usize>) -> &'a [u32] {
        &self.to[range]
    }

    /// How many rows they are picked from.
    pub fn of(&self) -> usize {
        self.of
    }

    /// Whether others pick the same rows.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// What stands for these rows: equal for the same rows of the same gathering.
    pub fn key(&self) -> (u64, usize) {
        self.key
    }

    /// The rows of the output, of which there are `of`, as rows of activations of a product with the same experts: each comes
    /// once, and becomes the row that it is.
    pub fn again(&self, of: usize) -> Self {
        Self { from: self.to, of, shared: false, ..*self }
    }

    /// The same rows one after the other: the first becomes the first, and so on, as `numbers` count.
    pub fn in_order(&self, numbers: &'a [u32]) -> Self {
        Self { to: &numbers[..self.count()], ..*self }
    }

    /// Those from `first` on.
    pub fn after(&self, first: usize) -> Self {
        let key = (self.key.0, self.key.1 + first);
        Self { from: &self.from[first..], to: &self.to[first..], key, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tokens_share_their_row_or_have_one_for_each_expert() {
        let mut experts = Experts::default();
        let ids = [2, 0, 2, 1];
        experts.gather(4, 2, 1, ids.into_iter()).unwrap();
        let of = |expert| {
            let picks = experts.picks(expert);
            (picks.from(0..picks.count()).to_vec(), picks.to(0..picks.count()).to_vec())
        };
        assert_eq!(of(2), (vec![0, 1], vec![0, 2]));
        assert_eq!(of(0), (vec![0], vec![1]));
        assert_eq!(of(3), (vec![], vec![]));
        assert!(experts.picks(0).is_shared() && experts.picks(0).of() == 2);
        assert_eq!(experts.gather(2, 2, 1, ids.into_iter()), Err(2));
        assert_eq!(experts.gather(2, 1, 1, [0, -1].into_iter()), Err(-1));
    }

    proptest! {
        #[test]
        fn every_row_of_the_output_comes_once_and_from_its_tokens_row(
            experts in 1usize..9,
            used in 1usize..5,
            tokens in 0usize..20,
            own in any::<bool>(),
            seed in any::<u32>(),
        ) {
            let id = |index: usize| (seed.rotate_left(index as u32 * 7) as usize % experts) as i32;
            let rows = if own { used } else { 1 };
            let mut gathered = Experts::default();
            gathered.gather(experts, used, rows, (0..used * tokens).map(id)).unwrap();
            let mut seen = vec![None; used * tokens];
            for expert in 0..experts {
                let picks = gathered.picks(expert);
                for (from, to) in picks.from(0..picks.count()).iter().zip(picks.to(0..picks.count())) {
                    prop_assert_eq!(id(*to as usize) as usize, expert);
                    prop_assert!(seen[*to as usize].replace(*from).is_none());
                }
            }
            for (index, from) in seen.into_iter().enumerate() {
                let expected = if own { index } else { index / used };
                prop_assert_eq!(from, Some(expected as u32));
            }
        }
    }
}
