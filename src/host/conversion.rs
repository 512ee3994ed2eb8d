//! The device's weights: which are converted and how, when that is done, and when the copies are let go of.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use ggml_sys::RowReader;

use super::device::Device;
use super::pages;
use super::weight::{is_alone, layer, upload, HostWeight, Weight};
use crate::engine::{Engine, NpuWeight, Request, Wanted};
use crate::log;
use crate::observe::Choice;
use crate::policy::decide::Decision;
use crate::policy::scheme::{Placement, Rotate, Scheme};
use crate::policy::Pipeline;
use crate::weights::cache::Key;

impl Device {
    /// Whether the weight of that name is the CPU's by what the user wants: the host then places it as without us, in the
    /// layout that its own kernels like best.
    pub fn leaves_to_cpu(&self, name: &str) -> bool {
        self.policy.is_for_cpu(name)
    }

    /// How a weight is to be converted, by what the user wants; `None` leaves it to the CPU.
    fn request(&self, weight: &HostWeight) -> Option<Request> {
        if weight.computed {
            // No weight that a user could name; its own digits are kept.
            let scheme = Scheme { pipeline: Pipeline::W16A16, rotate: Rotate::Off };
            return Some(Request {
                wanted: Wanted::Scheme(scheme),
                layer: None,
                is_alone: false,
                signs: self.signs,
                calibration: self.calibration,
                keep: false,
                models: 0,
            });
        }
        let wanted = match self.policy.of(weight.name) {
            Decision::Fixed(Placement::Cpu) => return None,
            Decision::Fixed(Placement::Npu(scheme)) => Wanted::Scheme(scheme),
            Decision::Choose(goal) => Wanted::Best(goal),
        };
        Some(Request {
            wanted,
            layer: layer(weight.name),
            is_alone: is_alone(weight.name),
            signs: self.signs,
            calibration: self.calibration,
            keep: weight.constant,
            models: self.models(weight),
        })
    }

    /// Bytes of the buffers that weights were seen in, this one's among them.
    fn models(&self, weight: &HostWeight) -> usize {
        let mut models = self.models.lock();
        if let Some(buffer) = weight.buffer.filter(|buffer| weight.constant && !models.contains(buffer)) {
            models.push(buffer);
        }
        models.iter().map(|(start, end)| end - start).sum()
    }

    /// The converted weight: the kept one, or a new one, which is kept if the host's bytes stay.
    pub(super) fn weight(&self, engine: &mut Engine, host: &HostWeight) -> Option<Arc<Weight>> {
        let key = Key::of(&host.source);
        if host.constant {
            if let Some(known) = self.weights.lock().get(&key) {
                // The model has come round: all its weights were seen.
                self.show_choices();
                return known;
            }
        }
        let started = Instant::now();
        let npu = match self.request(host) {
            Some(request) => upload(engine, host, &request),
            None => {
                log!(Debug, "{} stays with the CPU, as was asked for", host.name);
                None
            }
        };
        let weight = npu.map(|npu| {
            let kept = if host.constant { self.copies.of(&host.source, npu.bytes) } else { None };
            Arc::new(Weight { npu, kept })
        });
        if host.constant {
            if let Some(Weight { npu, kept }) = weight.as_deref() {
                self.note_choice(host, npu);
                self.progress.lock().note(started, npu.bytes);
                // The host's bytes are read again only if the CPU has to step in.
                if host.lent && !kept.as_ref().is_some_and(|kept| kept.copy.is_original()) {
                    pages::give_back(host.source.data);
                }
            }
            let mut weights = self.weights.lock();
            weights.insert(key, weight.clone());
            if let Some((start, end)) = host.buffer.filter(|_| host.watched) {
                weights.watch(start..end);
                self.watches.store(true, Relaxed);
            }
        }
        weight
    }

    fn note_choice(&self, host: &HostWeight, weight: &NpuWeight) {
        self.stats.set_bytes(host.name, weight.bytes);
        self.choices.lock().add(&Choice {
            name: host.name,
            ggml_type: host.source.reader.name(),
            pipeline: (weight.pipeline.name(), weight.rotation.is_some()),
            error: weight.error,
            elements: host.source.k * host.source.n,
            bytes: weight.bytes,
        });
        // What the user named is no news.
        let chosen = matches!(self.policy.of(host.name), Decision::Choose(_));
        if chosen && weight.error > weight.level && !self.cost_is_said.swap(true, Relaxed) {
            let percent = |error: f64| error.sqrt() * 100.0;
            log!(
                Warn,
                "accuracy is lost: products of {} as {} are off by about {:.1} %, on the CPU by {:.1} %; \
                 RKNPU_MODE=accurate, the default, stays at the CPU's level",
                host.name,
                weight.pipeline.name(),
                percent(weight.error),
                percent(weight.level)
            );
        }
    }

    /// Shows what was chosen since the last time, if that is asked for.
    pub fn show_choices(&self) {
        let mut choices = self.choices.lock();
        if !choices.is_empty() {
            for line in std::mem::take(&mut *choices).table().lines() {
                log!(Info, "{line}");
            }
            let kept = self.stats.kept_bytes.now();
            if kept > 0 {
                log!(Info, "copies for the host's kernels, RKNPU_KEEP: {:.1} MB", kept as f64 / 1e6);
            }
        }
    }

    /// Bytes that the copies of a weight will take, of so many `elements` and, in the file, `bytes`: about, since its
    /// pipeline is known only when its values are. At least as much as `RKNPU_MODE` comes to.
    pub fn copies_take(&self, name: &str, reader: &RowReader, elements: usize, bytes: usize) -> usize {
        let pipeline = match self.policy.of(name) {
            Decision::Fixed(Placement::Cpu) => return 0,
            Decision::Fixed(Placement::Npu(scheme)) => scheme.pipeline,
            Decision::Choose(_) => Pipeline::of(reader.is_quantized()),
        };
        let kept = if self.copies.are_all_made(reader, elements, bytes) { bytes } else { 0 };
        pipeline.dtype().b().bytes(elements).saturating_add(kept)
    }

    /// Notes that the host makes a buffer: it may be loading a model.
    pub fn a_model_comes(&self) {
        self.copies.a_model_comes();
    }

    /// Drops the converted copies of what lies in the addresses `range`, which the host wrote or frees;
    /// whether there were any.
    pub fn invalidate(&self, range: &Range<usize>) -> bool {
        self.models.lock().retain(|(start, end)| *start < range.start || range.end < *end);
        // Two statements: a product locks the engine first and the weights within.
        let dropped = self.weights.lock().invalidate(range);
        if dropped {
            self.engine.lock().release();
        }
        dropped
    }

    /// Notes that a graph writes to the addresses `range`.
    pub fn wrote(&self, range: &Range<usize>) {
        if self.watches.load(Relaxed) && self.weights.lock().is_watched(range) {
            self.invalidate(range);
        }
    }
}
