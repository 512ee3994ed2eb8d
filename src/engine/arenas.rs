//! How large the next arena is: numbers alone, no memory.
//!
//! Arenas are few, since each is a file descriptor, and are filled, since what lies idle in them is the board's memory.
//! So an arena is a fixed part of what the model is expected to take, and ends where one of its layers does: their weights
//! have the same sizes in the same order, so that the last layer's last weight fills the last arena.

use std::collections::VecDeque;

/// The least and the most bytes of an arena, if a weight is not larger; the last one of a model may have fewer.
const ARENA_MIN: usize = 8 << 20;
const LAST_MIN: usize = 1 << 20;
const ARENA_MAX: usize = 1 << 30;
/// About as many arenas a model has: one a layer, where there are not many more of them.
const ARENAS: usize = 32;
/// The same until its layers are known.
const ARENAS_AT_FIRST: usize = 16;
/// The same where nothing is known of the model: a new arena is a tenth of all that there are.
const GROWTH: usize = 10;
/// Weights whose sizes are remembered: those of all layers of a dense model, so that the first is among them.
const RECENT: usize = 2048;
/// As many sizes must have come again in the same order before they are taken for those of layers.
const PROOF: usize = 16;

/// What is known when an arena is made; the weight that it is made for counts everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// Bytes of the weight, whole pages.
    pub bytes: usize,
    /// Bytes of all arenas.
    pub arenas: usize,
    /// Bytes that the weights took so far.
    pub taken: usize,
    /// Bytes of their sources.
    pub read: usize,
    /// Bytes of the sources of all weights, as far as their models are known; 0 if none is.
    pub models: usize,
}

impl Known {
    /// Bytes that all weights of the models will take, as those so far did of theirs; 0 where no model is known.
    pub fn whole(&self) -> usize {
        (self.models as f64 * self.taken as f64 / self.read.max(1) as f64) as usize
    }
}

/// The sizes of the weights, the last one last.
#[derive(Default)]
pub struct Sizes(VecDeque<usize>);

impl Sizes {
    /// Remembers the size of a weight, whole pages.
    pub fn note(&mut self, bytes: usize) {
        if self.0.len() == RECENT {
            self.0.pop_front();
        }
        self.0.push_back(bytes);
    }

    /// The layers, if the sizes have come in turns and `next` is in its place; of the shortest turn.
    fn layers(&self, next: usize) -> Option<Layers> {
        let sizes = &self.0;
        let is_as_before = |at: usize, period: usize| sizes[at] == sizes[at - period];
        let comes_again = |period: &usize| {
            let proof = PROOF.max(*period);
            sizes.len() >= period + proof
                && sizes[sizes.len() - period] == next
                && (sizes.len() - proof..sizes.len()).all(|at| is_as_before(at, *period))
        };
        let period = (1..=sizes.len() / 2).find(comes_again)?;
        let again = (period..sizes.len()).rev().take_while(|at| is_as_before(*at, period)).count();
        // The weights of the last whole layers, and those that came of the one at work.
        let come = again % period;
        let turn = sizes.range(sizes.len() - period..);
        Some(Layers { bytes: turn.clone().sum(), left: turn.take(period - come).sum() })
    }

    /// Bytes of the arena that is made now, at least those of the weight.
    pub fn next_arena(&self, known: &Known) -> usize {
        let Known { bytes, arenas, taken, .. } = *known;
        let whole = known.whole();
        let is_known = whole > taken;
        let layers = self.layers(bytes).filter(|layers| (1..ARENA_MAX).contains(&layers.bytes));
        if let Some(Layers { bytes: layer, left }) = layers {
            let wanted = if is_known { whole / ARENAS } else { arenas / GROWTH };
            let more = (wanted.min(ARENA_MAX) + layer / 2) / layer;
            return left + more.saturating_sub(1) * layer;
        }
        let to_come = whole.saturating_add(bytes).saturating_sub(taken);
        let (wanted, least) = if is_known {
            ((whole / ARENAS_AT_FIRST).min(to_come), ARENA_MIN.min(to_come).max(LAST_MIN))
        } else {
            (arenas / GROWTH, ARENA_MIN)
        };
        wanted.clamp(least, ARENA_MAX).max(bytes)
    }
}

/// A model's layers, by the sizes of their weights.
#[derive(Debug, PartialEq)]
struct Layers {
    /// Bytes of one.
    bytes: usize,
    /// Those of the layer at work that are still to come.
    left: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a model makes of it: descriptors, and bytes that lie idle over those that are taken. Weights go to the first arena
    /// with room, as in [`super::super::domains`], each a page at least; the file has 17 bytes for 16.
    fn load(first: usize, layers: usize, layer: &[usize], last: usize, is_known: bool) -> (usize, f64) {
        let layers = (0..layers).flat_map(|_| layer.iter().copied());
        let weights: Vec<usize> =
            [first].into_iter().chain(layers).chain([last]).filter(|bytes| *bytes > 0).collect();
        let source = |bytes: usize| bytes / 16 * 17;
        let models = if is_known { weights.iter().copied().map(source).sum() } else { 0 };
        let (mut sizes, mut arenas) = (Sizes::default(), Vec::<(usize, usize)>::new());
        let (mut taken, mut read) = (0, 0);
        for bytes in weights {
            (taken, read) = (taken + bytes, read + source(bytes));
            match arenas.iter_mut().rev().find(|(size, used)| size - used >= bytes) {
                Some((_, used)) => *used += bytes,
                None => {
                    let all = arenas.iter().map(|(size, _)| size).sum();
                    let known = Known { bytes, arenas: all, taken, read, models };
                    arenas.push((sizes.next_arena(&known), bytes));
                }
            }
            sizes.note(bytes);
        }
        let all: usize = arenas.iter().map(|(size, _)| size).sum();
        (arenas.len(), all as f64 / taken as f64 - 1.0)
    }

    /// Q, K, V, output, gate, up, down.
    fn layer(width: usize, keys: usize, wide: usize) -> [usize; 7] {
        [width, keys, keys, width, wide, wide, wide].map(|n| width * n)
    }

    #[test]
    fn models_lie_in_few_arenas_that_are_full() {
        for (name, layers, layer, last) in [
            ("qwen2.5-1.5b", 28, layer(1536, 256, 8960), 1536 * 151_936),
            ("gemma3-1b", 26, layer(1152, 256, 6912), 1152 * 262_144),
            ("granite-350m", 28, layer(1024, 256, 2048), 1024 * 100_352),
            ("smollm2-135m", 30, layer(576, 192, 1536), 576 * 49_152),
            ("qwen3-4b", 36, layer(2560, 1024, 9728), 2560 * 151_936),
            ("llama3-8b", 32, layer(4096, 1024, 14_336), 4096 * 128_256),
            ("qwen3-14b", 40, layer(5120, 1024, 17_408), 5120 * 151_936),
            ("gemma3-12b", 48, layer(3840, 2048, 15_360), 3840 * 262_208),
            ("gemma3-27b", 62, layer(5376, 2048, 21_504), 5376 * 262_208),
        ] {
            // The output matrix comes last, or first as the embedding that it is too.
            for first in [0, last] {
                let last = last - first;
                let (count, idle) = load(first, layers, &layer, last, true);
                assert!(count <= 48 && idle < 0.03, "{name}: {count} arenas, {idle} idle");
                let (count, idle) = load(first, layers, &layer, last, false);
                assert!(count <= 48 && idle < 0.16, "{name}, nothing known: {count} arenas, {idle} idle");
            }
        }
    }

    #[test]
    fn a_layer_is_known_when_its_sizes_have_come_again() {
        let mut sizes = Sizes::default();
        sizes.note(100);
        for index in 0..23 {
            assert_eq!(sizes.layers(1 + index % 7), None);
            sizes.note(1 + index % 7);
        }
        let layers = Some(Layers { bytes: 28, left: 25 });
        assert_eq!((sizes.layers(3), sizes.layers(4)), (layers, None), "two of the fourth turn have come");
        (2..7).for_each(|index| sizes.note(1 + index));
        assert_eq!(sizes.layers(1), Some(Layers { bytes: 28, left: 28 }), "a turn is over");
        sizes.note(100);
        assert_eq!(sizes.layers(1), None);
        (0..3000).for_each(|_| sizes.note(5));
        assert_eq!((sizes.layers(5), sizes.0.len()), (Some(Layers { bytes: 5, left: 5 }), RECENT));
    }

    #[test]
    fn a_weight_always_fits_and_numbers_of_any_size_do() {
        let known = Known { bytes: 3 << 30, arenas: 0, taken: 3 << 30, read: 0, models: usize::MAX };
        assert_eq!(Sizes::default().next_arena(&known), 3 << 30);
        let known = Known { bytes: 1, arenas: usize::MAX, taken: usize::MAX, read: 1, models: 0 };
        assert_eq!(Sizes::default().next_arena(&known), ARENA_MAX);
        let known = Known { bytes: 1, arenas: 0, taken: 1, read: 1, models: 1 };
        assert_eq!(Sizes::default().next_arena(&known), ARENA_MIN);
    }
}
