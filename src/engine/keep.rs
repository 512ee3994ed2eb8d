//! Converted weights from the disk, and onto it: an entry holds the very bytes and scales that a conversion gives.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use super::Engine;
use crate::log;
use crate::plan::WeightPlan;
use crate::policy::Pipeline;
use crate::weights::store::{Contents, Fingerprint, Shape};
use crate::weights::{Form, Source};

impl Engine {
    /// The key of `source` in this form; `None` where nothing is kept.
    pub(super) fn fingerprint(&self, source: &Source, pipeline: Pipeline, form: Form) -> Option<Fingerprint> {
        self.store.as_ref()?;
        let rotation = form.rotation.map_or_else(|| "none".to_owned(), |rotation| rotation.describe());
        let mut recipe = format!(
            "{} {} rotation {rotation} layout {:?} scales {:?}",
            self.chip.name,
            pipeline.name(),
            form.layout,
            form.calibration
        );
        let WeightPlan { segments, slices, .. } = form.plan;
        // Writing to a string never fails.
        for segment in segments {
            let _ = write!(recipe, " k {}+{}/{}", segment.start, segment.len, segment.padded);
        }
        for slice in slices {
            let _ = write!(recipe, " n {}+{}/{}", slice.start, slice.len, slice.padded);
        }
        Some(self.converter.install(|| Fingerprint::of(source, &recipe)))
    }

    /// Fills parts and scales from the disk; false when there is no such entry, or a damaged one.
    pub(super) fn restore(
        &self,
        fingerprint: Fingerprint,
        parts: &mut [&mut [u8]],
        scales: &mut [f32],
    ) -> bool {
        let Some(store) = &self.store else { return false };
        let bytes: Vec<usize> = parts.iter().map(|part| part.len()).collect();
        let shape = Shape { scales: scales.len(), parts: &bytes };
        let Some(entry) = store.load(fingerprint, &shape) else { return false };
        scales.copy_from_slice(entry.scales());
        for (index, part) in parts.iter_mut().enumerate() {
            // What is damaged was told and removed; the conversion writes over what was copied so far.
            if self.converter.install(|| entry.copy_part(index, part)).is_err() {
                return false;
            }
        }
        self.stats.weights_loaded.fetch_add(1, Relaxed);
        true
    }

    /// Puts parts and scales onto the disk; a failure is said once and costs nothing else.
    pub(super) fn keep(&self, fingerprint: Fingerprint, parts: &[&mut [u8]], scales: &[f32]) {
        let Some(store) = self.store.as_ref().filter(|store| store.saves()) else { return };
        let parts: Vec<&[u8]> = parts.iter().map(|part| &**part).collect();
        let contents = Contents { scales, metadata: "", parts: &parts };
        if let Err(error) = self.converter.install(|| store.save(fingerprint, &contents)) {
            log!(Warn, "converted weights are not kept on disk any more: {error}");
        }
    }
}
