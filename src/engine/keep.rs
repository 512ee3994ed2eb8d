//! Converted weights from the disk, and onto it: an entry holds the very bytes and scales that a conversion gives.

use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use rknn_sys::Memory;

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
        Some(self.pool.install(|| Fingerprint::of(source, &recipe)))
    }

    /// Fills parts and scales from the disk; false when there is no such entry, or a damaged one.
    pub(super) fn restore(
        &self,
        fingerprint: Fingerprint,
        plan: &WeightPlan,
        parts: &mut [Memory],
        scales: &mut [f32],
    ) -> Result<bool, super::Error> {
        let Some(store) = &self.store else { return Ok(false) };
        let bytes: Vec<usize> = plan.all_part_bytes().collect();
        let shape = Shape { scales: scales.len(), parts: &bytes };
        let Some(entry) = store.load(fingerprint, &shape) else { return Ok(false) };
        scales.copy_from_slice(entry.scales());
        for (index, (part, bytes)) in parts.iter_mut().zip(bytes).enumerate() {
            let copied = self.pool.install(|| entry.copy_part(index, &mut part.as_mut_slice()[..bytes]));
            // What is damaged was told and removed; the conversion writes over what was copied so far.
            if copied.is_err() {
                return Ok(false);
            }
            part.sync_to_device()?;
        }
        self.stats.weights_loaded.fetch_add(1, Relaxed);
        Ok(true)
    }

    /// Puts parts and scales onto the disk; a failure is said once and costs nothing else.
    pub(super) fn keep(&self, fingerprint: Fingerprint, plan: &WeightPlan, parts: &[Memory], scales: &[f32]) {
        let Some(store) = self.store.as_ref().filter(|store| store.saves()) else { return };
        let parts: Vec<&[u8]> =
            parts.iter().zip(plan.all_part_bytes()).map(|(part, bytes)| &part.as_slice()[..bytes]).collect();
        let contents = Contents { scales, metadata: "", parts: &parts };
        if let Err(error) = self.pool.install(|| store.save(fingerprint, &contents)) {
            log!(Warn, "converted weights are not kept on disk any more: {error}");
        }
    }
}
