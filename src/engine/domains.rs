//! The I/O domains that weights are spread over.
//!
//! A domain serves about 3.9 GB of addresses (source: `docs/facts.md`), for weights, scratch and contexts together. A
//! weight belongs to one domain, and so does every memory that is bound beside it. The domains are filled in the
//! order in which they were named; each is opened when it is first needed, since what is not used cannot disturb
//! another process. One that refuses earlier, fragmented or in others' use, counts as full from then on.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::Arc;

use rknn_sys::{Arena, Context, Library, Memory, Operand};

use super::arenas::{Known, Sizes};
use super::domain_lock::DomainLock;
use super::scratch::Scratch;
use super::{smallest_context, Error};
use crate::chip::Chip;
use crate::log;
use crate::observe::{Held, Stats};

/// The most bytes of weights in a domain: the rest of its addresses is for scratch memory and contexts.
const WEIGHT_BYTES_MAX: usize = 3_300_000_000;

/// Where products find no room in a domain, such a part of its weights goes to another one; nor is there room where there
/// are not as many bytes left for scratch memory and contexts.
const CROWDED: usize = 16;

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
    /// The most bytes of weights, as far as is known.
    most: usize,
    /// What weights are taken from, by numbers that all domains share.
    arenas: Vec<(u64, Arena, Held)>,
    stats: Arc<Stats>,
    _held: Held,
}

impl Domain {
    /// Memory of `bytes` bytes for a weight from an arena with room, if there is one, and the arena's number.
    fn take(&mut self, bytes: usize) -> Result<Option<(Memory, u64)>, Error> {
        for (number, arena, _) in self.arenas.iter_mut().rev() {
            if let Some(memory) = arena.take(bytes, PIECE_ALIGN)? {
                return Ok(Some((memory, *number)));
            }
        }
        Ok(None)
    }

    /// The same from a new arena of `wanted` bytes, number `number`.
    ///
    /// # Errors
    /// The vendor's refusal of more memory or addresses.
    fn take_anew(
        &mut self,
        (bytes, wanted): (usize, usize),
        number: u64,
        mut tester: Tester,
    ) -> Result<Memory, Error> {
        self.release_arenas();
        let mut make = |wanted| -> Result<(Arena, Memory), Error> {
            let mut arena = Arena::allocate(&self.keeper, wanted)?;
            let memory =
                arena.take(bytes, PIECE_ALIGN)?.ok_or(Error::Lost { what: "room in a new arena" })?;
            tester.reaches(&memory)?;
            Ok((arena, memory))
        };
        let (arena, memory) = match make(wanted) {
            // Near the end of the memory there may be room for this one still.
            Err(_) if wanted > bytes => make(bytes),
            made => made,
        }?;
        let held = Held::allocation(&self.stats, arena.bytes());
        self.arenas.push((number, arena, held));
        Ok(memory)
    }

    /// Whether there are addresses for `bytes` more.
    fn has_room(&self, bytes: usize, mut tester: Tester) -> bool {
        let tested = self.keeper.allocate(bytes).and_then(|memory| tester.reaches(&memory));
        !tested.is_err_and(|error| error.is_no_memory())
    }

    /// Counts it as full, and names its youngest arenas that make up a part of it.
    fn give_up_arenas(&mut self) -> Vec<u64> {
        let (mut left, mut numbers) = (self.arena_bytes(), Vec::new());
        let least = left - left / CROWDED;
        for (number, arena, _) in self.arenas.iter().rev() {
            if left <= least {
                break;
            }
            left -= arena.bytes();
            numbers.push(*number);
        }
        self.most = left;
        numbers
    }

    /// Bytes of its arenas.
    fn arena_bytes(&self) -> usize {
        self.arenas.iter().map(|(_, arena, _)| arena.bytes()).sum()
    }

    /// Gives back the arenas that no weight is in. Without any weight it is no longer known to be full.
    pub fn release(&mut self) {
        self.release_arenas();
        if self.bytes.load(Relaxed) == 0 {
            self.most = WEIGHT_BYTES_MAX;
        }
    }

    fn release_arenas(&mut self) {
        self.arenas.retain(|(_, arena, _)| !arena.is_free());
    }
}

/// A context that memories are bound to for a moment: only then is it known whether the domain has addresses for them.
struct Tester {
    context: Context,
    _held: Held,
}

impl Tester {
    fn new(library: &Library, chip: &Chip, domain: &Domain) -> Result<Self, Error> {
        let context = smallest_context(library, chip, domain.id)?;
        Ok(Self { context, _held: Held::context(&domain.stats) })
    }

    /// # Errors
    /// No addresses; what else may be wrong, runs will tell.
    fn reaches(&mut self, memory: &Memory) -> Result<(), rknn_sys::Error> {
        let bound = self.context.bind(Operand::B, &memory.binding());
        bound.or_else(|error| if error.is_no_memory() { Err(error) } else { Ok(()) })
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
    /// Arenas that were made.
    arenas: u64,
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
            arenas: 0,
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
            most: WEIGHT_BYTES_MAX,
            arenas: Vec::new(),
            stats: self.stats.clone(),
            _held: Held::context(&self.stats),
        });
        self.stats.domains.fetch_max(self.open.len() as u64, Relaxed);
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

    /// Memory for a weight of `bytes`, made of `source` bytes, by `take`, and its share of the domain that it is in: the
    /// first one with room that does not refuse it.
    ///
    /// # Errors
    /// What the last domain's library said, or a new domain that cannot be opened.
    pub fn place<T>(
        &mut self,
        bytes: usize,
        source: usize,
        mut take: impl FnMut(&mut Self, &Share) -> Result<T, Error>,
    ) -> Result<(Share, T), Error> {
        let mut refused = None;
        loop {
            let share = match (self.share(bytes, source), refused) {
                (Ok(share), _) => share,
                // What the last one said tells more than that there is no further one.
                (Err(_), Some(error)) | (Err(error), None) => return Err(error),
            };
            match take(self, &share) {
                Ok(taken) => return Ok((share, taken)),
                Err(error) if error.is_no_memory() => {
                    let domain = &mut self.open[share.domain];
                    domain.most = domain.bytes.load(Relaxed) - bytes;
                    let (id, most) = (domain.id, domain.most);
                    log!(Info, "I/O domain {id} has no room beside {most} bytes of weights: {error}");
                    refused = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Memory for a weight whose share of a domain is `share`, from an arena with room, or from a new one, and the arena's
    /// number. The models that are being loaded have `models` bytes of sources, as far as that is known.
    ///
    /// # Errors
    /// The vendor's refusal of more memory or addresses.
    pub fn take(&mut self, share: &Share, models: usize) -> Result<(Memory, u64), Error> {
        self.models = models;
        let (bytes, domain) = (share.bytes, &mut self.open[share.domain]);
        let pages = bytes.next_multiple_of(PIECE_ALIGN);
        let taken = match domain.take(bytes)? {
            Some(taken) => taken,
            None => {
                let tester = Tester::new(&self.library, self.chip, domain)?;
                let room = domain.most.saturating_sub(domain.bytes.load(Relaxed)) + bytes;
                let wanted = self.sizes.next_arena(&self.known(pages)).min(room);
                self.arenas += 1;
                let number = self.arenas;
                (self.open[share.domain].take_anew((bytes, wanted), number, tester)?, number)
            }
        };
        self.sizes.note(pages);
        Ok(taken)
    }

    /// After a product found no room: the arenas whose weights are to go, so that the domains have some for scratch memory and
    /// contexts again. These count as full from then on.
    pub fn crowded(&mut self) -> Vec<u64> {
        let (library, chip) = (&self.library, self.chip);
        let is_crowded = |domain: &&mut Domain| {
            let room = domain.arena_bytes() / CROWDED;
            let has_room =
                || Tester::new(library, chip, domain).is_ok_and(|tester| domain.has_room(room, tester));
            domain.most < WEIGHT_BYTES_MAX || !has_room()
        };
        self.open.iter_mut().filter(is_crowded).flat_map(Domain::give_up_arenas).collect()
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
    /// A new domain that cannot be opened; no room, where the library has said so already.
    fn share(&mut self, bytes: usize, source: usize) -> Result<Share, Error> {
        let fits = |domain: &Domain| domain.bytes.load(Relaxed) + bytes <= domain.most;
        let place = match self.open.iter().position(fits) {
            Some(place) => place,
            None => {
                if let Some(id) = self.ids.get(self.open.len()).copied() {
                    if self.may_use(id) {
                        let keeper = smallest_context(&self.library, self.chip, id)?;
                        self.add(Arc::new(keeper));
                    }
                }
                let last = &self.open[self.open.len() - 1];
                if last.most < WEIGHT_BYTES_MAX && !fits(last) {
                    return Err(Error::NoRoom { bytes });
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
