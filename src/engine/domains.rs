//! The I/O domains that weights are spread over.
//!
//! A domain serves about 3.9 GB of addresses (source: `docs/facts.md`), for weights, scratch and contexts together. A
//! weight belongs to one domain, and so does every memory that is bound beside it. The domains are filled in the
//! order in which they were named; each is opened when it is first needed, since what is not used cannot disturb
//! another process.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use rknn_sys::{Arena, Context, Library, Memory};

use super::arenas::{Known, Sizes};
use super::domain_lock::DomainLock;
use super::scratch::Scratch;
use super::{smallest_context, Error};
use crate::chip::Chip;
use crate::log;
use crate::observe::{Held, Stats};

/// The most bytes of weights in a domain: the rest of its addresses is for scratch memory and contexts.
const WEIGHT_BYTES_MAX: usize = 3_300_000_000;

/// Weights begin at multiples of this in their arena: a page, so that no two share a cache line or a mapping.
const PIECE_ALIGN: usize = 4096;

/// One domain.
pub struct Domain {
    /// Its number, 0 to 15.
    pub id: u8,
    /// The context that all memories of the domain are allocated through; it lives as long as they do.
    pub keeper: Arc<Context>,
    /// Memories of activations and results.
    pub scratch: Scratch,
    bytes: Arc<AtomicUsize>,
    /// What weights are taken from.
    arenas: Vec<(Arena, Held)>,
    stats: Arc<Stats>,
    _held: Held,
}

impl Domain {
    /// Memory of `bytes` bytes for a weight from an arena with room, if there is one.
    fn take(&mut self, bytes: usize) -> Result<Option<Memory>, Error> {
        for (arena, _) in self.arenas.iter_mut().rev() {
            if let Some(memory) = arena.take(bytes, PIECE_ALIGN)? {
                return Ok(Some(memory));
            }
        }
        Ok(None)
    }

    /// The same from a new arena of `wanted` bytes.
    ///
    /// # Errors
    /// The vendor's refusal of more memory.
    fn take_anew(&mut self, bytes: usize, wanted: usize) -> Result<Memory, Error> {
        self.release();
        let arena = match Arena::allocate(&self.keeper, wanted) {
            // Near the end of the memory there may be room for this one still.
            Err(_) if wanted > bytes => Arena::allocate(&self.keeper, bytes),
            arena => arena,
        };
        let mut arena = arena?;
        let memory = arena.take(bytes, PIECE_ALIGN)?.ok_or(Error::Unusable)?;
        let held = Held::allocation(&self.stats, arena.bytes());
        self.arenas.push((arena, held));
        Ok(memory)
    }

    /// Bytes of its arenas.
    fn arena_bytes(&self) -> usize {
        self.arenas.iter().map(|(arena, _)| arena.bytes()).sum()
    }

    /// Gives back the arenas that no weight is in.
    pub fn release(&mut self) {
        self.arenas.retain(|(arena, _)| !arena.is_free());
    }
}

/// A weight's share of its domain; given back on drop.
pub struct Share {
    /// The domain's place in [`Domains`].
    pub domain: usize,
    bytes: usize,
    of: Arc<AtomicUsize>,
    source: usize,
    read: Arc<AtomicUsize>,
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.fetch_sub(self.bytes, Relaxed);
        self.read.fetch_sub(self.source, Relaxed);
    }
}

/// The domains that may be used, the first of them open.
pub struct Domains {
    ids: Vec<u8>,
    open: Vec<Domain>,
    library: Library,
    chip: &'static Chip,
    cores: usize,
    /// Whether scratch memories are used through windows.
    windows: bool,
    /// The right to use others than domain 0, once it was needed.
    lock: Option<DomainLock>,
    stats: Arc<Stats>,
    /// Bytes of the sources of all weights that there are.
    read: Arc<AtomicUsize>,
    /// Bytes of the sources of all weights of the models that are being loaded, as far as that is known.
    models: usize,
    /// The sizes of those that came last.
    sizes: Sizes,
}

impl Domains {
    /// Around an open context of the first domain of `ids`, for `cores` cores.
    pub fn new(
        library: &Library,
        chip: &'static Chip,
        ids: &[u8],
        keeper: Arc<Context>,
        cores: usize,
        windows: bool,
        stats: &Arc<Stats>,
    ) -> Self {
        let mut domains = Self {
            ids: ids.to_vec(),
            open: Vec::new(),
            library: library.clone(),
            chip,
            cores,
            windows,
            lock: None,
            stats: stats.clone(),
            read: Arc::default(),
            models: 0,
            sizes: Sizes::default(),
        };
        domains.add(keeper);
        domains
    }

    /// The same with the right to use others than domain 0, if it was needed already.
    pub fn with(self, lock: Option<DomainLock>) -> Self {
        Self { lock, ..self }
    }

    fn add(&mut self, keeper: Arc<Context>) {
        self.open.push(Domain {
            id: keeper.spec().domain,
            scratch: Scratch::new(&keeper, self.cores, self.windows, &self.stats),
            keeper,
            bytes: Arc::default(),
            arenas: Vec::new(),
            stats: self.stats.clone(),
            _held: Held::context(&self.stats),
        });
    }

    /// Gives back the memory that no weight is in.
    pub fn release(&mut self) {
        self.open.iter_mut().for_each(Domain::release);
    }

    /// The domain at `place`, which a [`Share`] names.
    pub fn get(&self, place: usize) -> &Domain {
        &self.open[place]
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, place: usize) -> &mut Domain {
        &mut self.open[place]
    }

    /// Memory for a weight whose share of a domain is `share`, from an arena with room, or from a new one. The models that
    /// are being loaded have `models` bytes of sources, as far as that is known.
    ///
    /// # Errors
    /// The vendor's refusal of more memory.
    pub fn take(&mut self, share: &Share, models: usize) -> Result<Memory, Error> {
        self.models = models;
        let (bytes, domain) = (share.bytes, &mut self.open[share.domain]);
        let pages = bytes.next_multiple_of(PIECE_ALIGN);
        let memory = match domain.take(bytes)? {
            Some(memory) => memory,
            None => {
                let room = WEIGHT_BYTES_MAX.saturating_sub(domain.bytes.load(Relaxed)) + bytes;
                let wanted = self.sizes.next_arena(&self.known(pages)).min(room);
                self.open[share.domain].take_anew(bytes, wanted)?
            }
        };
        self.sizes.note(pages);
        Ok(memory)
    }

    /// What is known when a weight of `bytes` comes.
    fn known(&self, bytes: usize) -> Known {
        Known {
            bytes,
            arenas: self.open.iter().map(Domain::arena_bytes).sum(),
            taken: self.open.iter().map(|domain| domain.bytes.load(Relaxed)).sum(),
            read: self.read.load(Relaxed),
            models: self.models,
        }
    }

    /// Bytes that all weights are expected to take.
    pub fn expected(&self) -> usize {
        let known = self.known(0);
        known.whole().max(known.taken)
    }

    /// Room for a weight of `bytes`, made of `source` bytes: in the first domain that has it, or else in the last there is,
    /// whose library then has the last word.
    ///
    /// # Errors
    /// A new domain that cannot be opened.
    pub fn share(&mut self, bytes: usize, source: usize) -> Result<Share, Error> {
        let fits = |domain: &Domain| domain.bytes.load(Relaxed) + bytes <= WEIGHT_BYTES_MAX;
        let place = match self.open.iter().position(fits) {
            Some(place) => place,
            None => {
                if let Some(id) = self.ids.get(self.open.len()).copied() {
                    if self.may_use(id) {
                        let keeper = smallest_context(&self.library, self.chip, id)?;
                        self.add(Arc::new(keeper));
                    }
                }
                self.open.len() - 1
            }
        };
        let of = self.open[place].bytes.clone();
        of.fetch_add(bytes, Relaxed);
        self.read.fetch_add(source, Relaxed);
        Ok(Share { domain: place, bytes, of, source, read: self.read.clone() })
    }

    /// Whether a domain may be used; where another process has the lock, no further one is, which is said once.
    fn may_use(&mut self, id: u8) -> bool {
        if id == 0 || self.lock.is_some() {
            return true;
        }
        match DomainLock::take() {
            Ok(Some(lock)) => {
                self.lock = Some(lock);
                return true;
            }
            Ok(None) => log!(
                Warn,
                "another process uses I/O domains other than 0: weights that do not fit into {} stay with the CPU",
                self.open.iter().map(|domain| domain.id.to_string()).collect::<Vec<_>>().join(", ")
            ),
            Err(error) => log!(Warn, "only one I/O domain is used: {error}"),
        }
        self.ids.truncate(self.open.len());
        false
    }
}
