//! A matmul context, from create to run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use parking_lot::{Mutex, MutexGuard, RwLock};
use rknn_sys::sys;

use crate::chip::{Chip, TypeRow, MOST_CORES};
use crate::clock::cost::{Shape, Timing};
use crate::clock::pace;
use crate::dtype::Element;
use crate::faults::quirks::Altered;
use crate::layout::{b_to_native, BShape, Layout};
use crate::memory::{Share, View, DOMAINS};
use crate::operand::{BoundB, Product, Scratch};
use crate::quant::Quantisation;
use crate::status::{refuse, Result, Status};

/// The cores; a run holds one from start to end. As many as the largest chip has.
static CORES: [Mutex<()>; MOST_CORES] = [const { Mutex::new(()) }; MOST_CORES];

/// Live contexts by handle. Handles are never used twice, so that a stale one is found out.
static CONTEXTS: LazyLock<RwLock<HashMap<u64, Arc<Context>>>> = LazyLock::new(RwLock::default);

/// The first handle; not a small number, so that a handle is not mistaken for an index.
const FIRST: u64 = 0x5259_0001;

/// The next handle.
static NEXT: AtomicU64 = AtomicU64::new(FIRST);

/// One product on one chip, of one M or of several.
pub struct Context {
    chip: &'static Chip,
    /// That of the largest M, which is what the operands must hold.
    product: Product,
    /// Every M that it was made for.
    shapes: Vec<usize>,
    b_layout: Layout,
    domain: usize,
    /// Its own part of the domain, for as long as it lives.
    _share: Share,
    /// Held by every call on the context: the vendor's contexts are not for two threads at once.
    state: Mutex<State>,
}

impl Drop for Context {
    fn drop(&mut self) {
        crate::clock::ended(self);
    }
}

#[derive(Default)]
struct State {
    /// The pinned core; `None` lets a run take any that is free.
    core: Option<usize>,
    /// M of the next run, the first one until another is set.
    rows: usize,
    a: Option<View>,
    b: Option<BoundB>,
    c: Option<View>,
    quant: Quantisation,
    scratch: Scratch,
}

/// Registers a new context for `info`; its handle and what the caller must bind.
///
/// # Errors
/// -3 without a chip, -5 for a shape, type, layout, quantisation or domain that the chip refuses, -4 when the domain
/// has no room for another context.
pub fn create(info: &sys::rknn_matmul_info) -> Result<(u64, sys::rknn_matmul_io_attr)> {
    let (handle, context) = register(info, &[sys::rknn_matmul_shape { M: info.M, K: info.K, N: info.N }])?;
    Ok((handle, context.attrs(context.shapes[0])))
}

/// Registers a new context for `info` with these shapes in place of its M, K and N; its handle and, for each
/// shape, what the caller must bind. A memory must hold the largest. The first shape is the current one.
///
/// # Errors
/// As [`create`]; also -5 for no shape at all, or one that differs from the first in more than M.
pub fn create_dynamic(
    info: &sys::rknn_matmul_info,
    shapes: &[sys::rknn_matmul_shape],
) -> Result<(u64, Vec<sys::rknn_matmul_io_attr>)> {
    let (handle, context) = register(info, shapes)?;
    Ok((handle, context.shapes.iter().map(|rows| context.attrs(*rows)).collect()))
}

fn register(info: &sys::rknn_matmul_info, shapes: &[sys::rknn_matmul_shape]) -> Result<(u64, Arc<Context>)> {
    let Some(chip) = Chip::chosen() else {
        return refuse(Status::NO_DEVICE, format_args!("no chip to create a context on"));
    };
    let context = Arc::new(Context::new(chip, info, shapes)?);
    let handle = NEXT.fetch_add(1, Ordering::Relaxed);
    CONTEXTS.write().insert(handle, context.clone());
    Ok((handle, context))
}

/// Refuses a handle that is no live context's.
fn missing<T>(handle: u64) -> Result<T> {
    let was = if (FIRST..NEXT.load(Ordering::Relaxed)).contains(&handle) { ": it was destroyed" } else { "" };
    refuse(Status::CONTEXT, format_args!("{handle:#x} is no live context{was}"))
}

/// The context of a handle.
///
/// # Errors
/// -7 when it is not, or no longer, a context's.
pub fn find(handle: u64) -> Result<Arc<Context>> {
    let found = CONTEXTS.read().get(&handle).cloned();
    match found {
        Some(context) => Ok(context),
        None => missing(handle),
    }
}

/// Forgets a context; a run that is under way ends first.
///
/// # Errors
/// As [`find`].
pub fn destroy(handle: u64) -> Result<()> {
    let context = CONTEXTS.write().remove(&handle);
    match context {
        Some(context) => {
            drop(context.state.lock());
            Ok(())
        }
        None => missing(handle),
    }
}

/// A positive dimension.
fn dimension(what: &str, value: i32) -> Result<usize> {
    match usize::try_from(value) {
        Ok(value) if value > 0 => Ok(value),
        _ => refuse(Status::PARAM, format_args!("{what}({value}) must be positive")),
    }
}

/// Layout and quantisation of one side, checked.
fn layout(side: &str, code: i16, quantisation: i16) -> Result<Layout> {
    if quantisation != sys::RKNN_ABI_QUANT_PER_LAYER_SYM as i16 {
        return refuse(
            Status::PARAM,
            format_args!("quantisation {quantisation} of {side} is not emulated: use per-layer, symmetric"),
        );
    }
    match Layout::from_code(code) {
        Some(Layout::TpNorm) if side != "B" => (),
        Some(layout) => return Ok(layout),
        None => (),
    }
    refuse(Status::PARAM, format_args!("layout {code} is none of {side}'s"))
}

/// What a create with this `info` computes, on `chip`, without making anything.
///
/// # Errors
/// As [`create`].
pub fn checked_row(chip: &Chip, code: i32, k: i32, n: i32) -> Result<(&'static TypeRow, BShape)> {
    crate::faults::check_type(code)?;
    let (k, n) = (dimension("K", k)?, dimension("N", n)?);
    let row = chip.check(code, k, n)?;
    Ok((row, BShape::new(row, chip.k_segment, k, n)))
}

impl Context {
    fn new(
        chip: &'static Chip,
        info: &sys::rknn_matmul_info,
        given: &[sys::rknn_matmul_shape],
    ) -> Result<Self> {
        let shapes: Vec<_> = given.iter().map(|shape| dimension("M", shape.M)).collect::<Result<_>>()?;
        let (Some(first), Some(&rows)) = (given.first(), shapes.iter().max()) else {
            return refuse(Status::PARAM, format_args!("no shape is given"));
        };
        if let Some(other) = given.iter().find(|shape| (shape.K, shape.N) != (first.K, first.N)) {
            return refuse(
                Status::PARAM,
                format_args!(
                    "K={}, N={} after K={}, N={}: only M may vary",
                    other.K, other.N, first.K, first.N
                ),
            );
        }
        let (row, b) = checked_row(chip, info.type_, first.K, first.N)?;
        let b_layout = layout("B", info.B_layout, info.B_quant_type)?;
        let ac_layout = layout("A and C", info.AC_layout, info.AC_quant_type)?;
        let domain = usize::try_from(info.iommu_domain_id).ok().filter(|domain| *domain < DOMAINS);
        let Some(domain) = domain else {
            return refuse(
                Status::PARAM,
                format_args!("iommu domain {} is not within 0..{DOMAINS}", info.iommu_domain_id),
            );
        };
        if info.reserved.iter().any(|byte| *byte != 0) {
            return refuse(
                Status::PARAM,
                format_args!("reserved bytes are not zero: zero the whole struct first"),
            );
        }
        let native = ac_layout == Layout::Native;
        let (a_block, c_block) = if native { (row.a_block, row.c_block) } else { (b.k, b.n) };
        let product = Product { dtype: row.dtype, rows, b, a_block, c_block, ratio: 1.0 };
        let largest = [product.a_bytes(), product.b_bytes(), product.c_bytes()];
        if largest.iter().any(|bytes| u32::try_from(*bytes).is_err()) {
            return refuse(Status::PARAM, format_args!("an operand of {largest:?} bytes is past 32 bits"));
        }
        let state = Mutex::new(State { rows: shapes[0], ..State::default() });
        let share = Share::take(domain, crate::faults::io_space(chip.io_space))?;
        Ok(Self { chip, product, shapes, b_layout, domain, _share: share, state })
    }

    /// Name, dims, bytes and type of A, B and C for `rows` rows, as the caller binds them.
    pub fn attrs(&self, rows: usize) -> sys::rknn_matmul_io_attr {
        let product = Product { rows, ..self.product };
        let Product { dtype, rows: m, b, a_block, c_block, .. } = product;
        // Native blocks of C are narrower than any N, so that a block as wide as N is the row-major layout.
        let (a_dims, c_dims) = if c_block == b.n {
            (vec![m, b.k], vec![m, b.n])
        } else {
            (vec![b.k / a_block, m, a_block], vec![b.n / c_block, m, c_block])
        };
        let (bn, bk) = b.block;
        let b_dims = match self.b_layout {
            Layout::Norm => vec![b.k, b.n],
            Layout::TpNorm => vec![b.n, b.k],
            Layout::Native => vec![b.n / bn, b.k / bk, bn, bk],
        };
        sys::rknn_matmul_io_attr {
            A: attr(b'A', &a_dims, product.a_bytes(), dtype.a()),
            B: attr(b'B', &b_dims, product.b_bytes(), dtype.b()),
            C: attr(b'C', &c_dims, product.c_bytes(), dtype.c()),
        }
    }

    /// The I/O domain that it belongs to.
    pub fn domain(&self) -> usize {
        self.domain
    }

    /// The state, or -1 with a line when another thread is in a call on this context.
    fn state(&self, call: &str) -> Result<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Some(state) => Ok(state),
            None => refuse(Status::FAIL, format_args!("{call}: the context is in use by another thread")),
        }
    }

    /// Binds `view` to the operand that `name` begins ("A", "B" or "C"), and charges its whole allocation to the
    /// context's domain. A row-major B is converted here, from what the device sees now.
    ///
    /// # Errors
    /// -5 for another name or a memory that is too small or of another domain, -4 when the domain or host memory is used up, -1
    /// while another thread is in a call on this context.
    pub fn bind(&self, name: &str, view: View) -> Result<()> {
        let mut state = self.state("rknn_matmul_set_io_mem")?;
        let Product { dtype, b, .. } = self.product;
        let need = match name {
            "A" => self.product.a_bytes(),
            "B" => self.product.b_bytes(),
            "C" => self.product.c_bytes(),
            _ => return refuse(Status::PARAM, format_args!("no operand is called {name:?}")),
        };
        if let Some(domain) = view.domain.filter(|domain| *domain != self.domain) {
            return refuse(
                Status::PARAM,
                format_args!(
                    "{name} is a memory of domain {domain}, the context is of domain {}",
                    self.domain
                ),
            );
        }
        if view.bytes < need {
            let have = view.bytes;
            return refuse(Status::PARAM, format_args!("{name} takes {need} bytes, the memory has {have}"));
        }
        view.allocation.charge(self.domain, crate::faults::io_space(self.chip.io_space))?;
        let converted = if name == "B" && self.b_layout != Layout::Native { need } else { 0 };
        let noted = view.clone();
        match name {
            "A" => state.a = Some(view),
            "C" => state.c = Some(view),
            _ if self.b_layout == Layout::Native => state.b = Some(BoundB::Native(view)),
            _ => {
                let mut native = Vec::new();
                if native.try_reserve_exact(need).is_err() {
                    return refuse(Status::NO_MEMORY, format_args!("no host memory for {need} bytes of B"));
                }
                native.resize(need, 0);
                // SAFETY: the view holds B's `need` bytes, as checked above.
                unsafe { b_to_native(dtype.b(), &b, self.b_layout, true, view.device(), &mut native) };
                state.b = Some(BoundB::Converted(native, view));
            }
        }
        crate::clock::bound(self, &noted, converted);
        Ok(())
    }

    /// Pins the context to the core of `mask` (1, 2, 4), or leaves it to each run (0).
    ///
    /// # Errors
    /// -5 for several cores, which matmul contexts do not take, and for one that the chip lacks; -1 while
    /// another thread is in a call on this context.
    pub fn set_core_mask(&self, mask: i32) -> Result<()> {
        let core = match mask {
            0 => None,
            _ => {
                match (0..self.chip.cores).find(|core| mask == 1 << core) {
                    Some(core) => Some(core),
                    None => {
                        let cores = self.chip.cores;
                        return refuse(
                        Status::PARAM,
                        format_args!("core mask {mask:#x} is not one of {cores} cores, nor auto: a matmul runs on one"),
                    );
                    }
                }
            }
        };
        crate::faults::check_core(core)?;
        self.state("rknn_matmul_set_core_mask")?.core = core;
        Ok(())
    }

    /// Sets what the next runs take an operand's scale to be, see [`Quantisation::set`].
    ///
    /// # Errors
    /// As there; -1 while another thread is in a call on this context.
    ///
    /// # Safety
    /// The parameters' pointers are null or valid for their lengths.
    pub unsafe fn set_quant_params(&self, params: &sys::rknn_quant_params) -> Result<()> {
        // SAFETY: by this function's contract.
        unsafe { self.state("rknn_matmul_set_quant_params")?.quant.set(params) }
    }

    /// Shows what is set, see [`Quantisation::get`].
    ///
    /// # Errors
    /// As there; -1 while another thread is in a call on this context.
    pub fn quant_params(&self, params: &mut sys::rknn_quant_params) -> Result<f32> {
        self.state("rknn_matmul_get_quant_params")?.quant.get(params)
    }

    /// Makes `shape` that of the next runs.
    ///
    /// # Errors
    /// -5 for a shape that the context was not made for, -1 while another thread is in a call on this context.
    pub fn set_shape(&self, shape: &sys::rknn_matmul_shape) -> Result<()> {
        let b = self.product.b;
        let rows = self
            .shapes
            .iter()
            .find(|rows| [**rows, b.k, b.n].map(i32::try_from) == [Ok(shape.M), Ok(shape.K), Ok(shape.N)]);
        let Some(rows) = rows else {
            return refuse(
                Status::PARAM,
                format_args!(
                    "M={}, K={}, N={} is none of the context's shapes: M one of {:?}, K={}, N={}",
                    shape.M, shape.K, shape.N, self.shapes, b.k, b.n
                ),
            );
        };
        self.state("rknn_matmul_set_dynamic_shape")?.rows = *rows;
        Ok(())
    }

    /// Runs the product on its core and returns when C is in device memory; a paced run only takes its time.
    ///
    /// # Errors
    /// -8 when A or B is not bound or its memory was destroyed since, -9 when so for C, -1 while another thread is in a call on this context,
    /// -4 without host memory for scratch.
    pub fn run(&self) -> Result<()> {
        let mut state = self.state("rknn_matmul_run")?;
        let State { core, rows, a, b, c, quant, scratch } = &mut *state;
        let (Some(a), Some(b)) = (a, b) else {
            return refuse(Status::INPUT, format_args!("rknn_matmul_run: A or B is not bound"));
        };
        let Some(c) = c else {
            return refuse(Status::OUTPUT, format_args!("rknn_matmul_run: C is not bound"));
        };
        let freed = [("A", a.is_freed()), ("B", b.is_freed()), ("C", c.is_freed())];
        if let Some((name, _)) = freed.iter().find(|(_, freed)| *freed) {
            let status = if *name == "C" { Status::OUTPUT } else { Status::INPUT };
            return refuse(status, format_args!("the memory bound as {name} was destroyed since"));
        }
        let (_held, on) = self.take_core(*core);
        let whole = Product { rows: *rows, ratio: quant.ratio(), ..self.product };
        let shape = Shape::of(&whole);
        if pace::is_on() {
            let timing = Timing::of(self.chip.name);
            pace::run(timing, on, timing.run(&shape));
        } else {
            self.compute(&whole, (*core, on), (a, b, c), scratch)?;
        }
        crate::clock::ran((self, self.domain), shape, *core, [&*a].into_iter().chain(b.native()), c);
        Ok(())
    }

    /// Computes `whole`, with what the chip gets wrong, for a context pinned to `core` on the core `on`.
    fn compute(
        &self,
        whole: &Product,
        (core, on): (Option<usize>, usize),
        (a, b, c): (&View, &BoundB, &View),
        scratch: &mut Scratch,
    ) -> Result<()> {
        let crowded = CONTEXTS.read().len() > 1;
        let quirk = Altered::new(whole, Shape::of(whole).bits.1, b, core, crowded);
        let (product, read_b) = quirk.as_ref().map_or((whole, b), |quirk| (&quirk.product, quirk.b(b)));
        // SAFETY: `bind` checked that each view holds its operand, and keeps the memory alive; the caller orders
        // this run with others on the same bytes.
        unsafe { product.compute(a, read_b, c, scratch)? };
        crate::faults::ran_on(on, c, whole.c_bytes());
        Ok(())
    }

    /// Waits for the pinned core; unpinned, takes a free one or waits for the first.
    fn take_core(&self, pinned: Option<usize>) -> (MutexGuard<'static, ()>, usize) {
        let free = match pinned {
            Some(core) => return (CORES[core].lock(), core),
            None => (0..self.chip.cores).find_map(|core| Some((CORES[core].try_lock()?, core))),
        };
        free.unwrap_or_else(|| (CORES[0].lock(), 0))
    }
}

fn attr(name: u8, dims: &[usize], bytes: usize, kind: Element) -> sys::rknn_matmul_tensor_attr {
    let mut out = sys::rknn_matmul_tensor_attr {
        name: [0; 256],
        n_dims: dims.len() as u32,
        dims: [0; 16],
        // `Context::new` refused what does not fit.
        size: bytes as u32,
        type_: kind.tensor_type(),
    };
    out.name[0] = name as std::ffi::c_char;
    for (to, dim) in out.dims.iter_mut().zip(dims) {
        *to = *dim as u32;
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::memory;

    /// A context of 1×32×32 with all operands bound, pinned by `mask`.
    fn ready(mask: i32) -> Arc<Context> {
        // SAFETY: zero is valid for a plain struct.
        let mut info: sys::rknn_matmul_info = unsafe { std::mem::zeroed() };
        (info.M, info.K, info.N, info.type_) = (1, 32, 32, 2);
        let (handle, _) = create(&info).expect("a good shape");
        let context = find(handle).expect("just made");
        for (name, bytes) in [("A", 32), ("B", 1024), ("C", 128)] {
            let mem = memory::create(bytes, 1);
            context.bind(name, memory::view(mem).expect("live")).expect("fits");
        }
        context.set_core_mask(mask).expect("a core of rk3588");
        context
    }

    /// One test, because the cores are the process's: pinned runs wait for their core, others take a free one.
    #[test]
    fn a_core_is_held_by_one_run_at_a_time() {
        let run = |mask| {
            let (context, (done, finished)) = (ready(mask), channel());
            std::thread::spawn(move || done.send(context.run()));
            finished
        };
        let [short, long] = [50, 10_000].map(Duration::from_millis);
        let held = CORES[1].lock();
        let waiting = run(2);
        assert!(waiting.recv_timeout(short).is_err(), "core 1 is taken");
        assert_eq!(run(4).recv_timeout(long), Ok(Ok(())), "core 2 is not");
        let other = CORES[0].lock();
        assert_eq!(run(0).recv_timeout(long), Ok(Ok(())), "auto takes core 2");
        let last = CORES[2].lock();
        let auto = run(0);
        assert!(auto.recv_timeout(short).is_err(), "none is free");
        drop((held, other, last));
        assert_eq!(waiting.recv_timeout(long), Ok(Ok(())));
        assert_eq!(auto.recv_timeout(long), Ok(Ok(())));
    }
}
