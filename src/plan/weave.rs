//! The order in which batches of gate and up, and of down, go to the NPU where down is woven into the two.

use super::schedule::{Batch, Schedule};
use super::WeightPlan;

/// A batch whose turn it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// The same one of each of the two products.
    Pair(Batch),
    /// One of the third product. Its part of K is made by the batches of the two before the one under way.
    Woven(Batch),
    /// The first of those that need the two's last batch, which is under way: its results have to be read before.
    Last(Batch),
}

/// All batches of `rows` rows: those of two products, `pair`, and those of the third, `fed`, each as soon as its part of K is
/// made.
pub fn turns<'a>(
    (pair, of_pair): (&Schedule, &'a WeightPlan),
    (fed, of_fed): (&Schedule, &'a WeightPlan),
    rows: usize,
) -> impl Iterator<Item = Turn> + 'a {
    let (pair, fed) = (*pair, *fed);
    let mut pairs = pair.batches(of_pair, rows);
    let mut fed = fed.batches(of_fed, rows).peekable();
    // Columns that are made, and that will be when the batch under way is read.
    let (mut made, mut given) = (0, 0);
    std::iter::from_fn(move || {
        if let Some(next) = fed.next_if(|next| next.k(of_fed).end <= made) {
            // What is given has the results of the batch under way read.
            made = given;
            return Some(Turn::Woven(next));
        }
        match pairs.next() {
            Some(batch) => {
                (made, given) = (batch.columns.start, batch.columns.end);
                Some(Turn::Pair(batch))
            }
            None => {
                made = given;
                fed.next().map(Turn::Last)
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::Chip;
    use crate::plan::Cut;
    use proptest::prelude::*;
    use rknn_sys::MatmulType;

    proptest! {
        /// Each batch comes once and in its order, and none before what it reads: of the two's columns, those of the batches
        /// before the one under way, which is read when another is given.
        #[test]
        fn nothing_is_read_before_it_is_made(
            k in 32usize..600, n in 512usize..6000, segment_max in 32usize..2000, parts in 1usize..8, batch in 1usize..5,
        ) {
            let chip = Chip::by_name("rk3588").unwrap();
            let plan = |k, n, most| WeightPlan::new(chip, 3, MatmulType::I8, (k, n), most);
            let (Some(of_pair), Some(of_fed)) = (plan(k, n, k), plan(n, k, segment_max)) else { return Ok(()) };
            let rows = 64;
            let schedule = |parts, batch| Schedule { cut: Cut::Columns(1), tile: rows, parts, batch, ns: 0.0 };
            let (pair, fed) = (schedule(parts, of_pair.segments.len()), schedule(1, batch));
            let (mut of_two, mut of_third, mut made, mut under_way) = (Vec::new(), Vec::new(), 0, None);
            for turn in turns((&pair, &of_pair), (&fed, &of_fed), rows) {
                let (given, is_last) = match turn {
                    Turn::Pair(batch) => {
                        made = under_way.replace(batch.columns.end).unwrap_or(made);
                        of_two.push(batch);
                        continue;
                    }
                    Turn::Woven(batch) => (batch, false),
                    Turn::Last(batch) => (batch, true),
                };
                if is_last {
                    prop_assert!(under_way.is_some(), "what is under way is the two's");
                    made = under_way.take().unwrap_or(made);
                }
                prop_assert!(given.k(&of_fed).end <= made, "{given:?} after {made} columns");
                made = under_way.take().unwrap_or(made);
                of_third.push(given);
            }
            prop_assert_eq!(of_two, pair.batches(&of_pair, rows).collect::<Vec<_>>());
            prop_assert_eq!(of_third, fed.batches(&of_fed, rows).collect::<Vec<_>>());
        }
    }
}
