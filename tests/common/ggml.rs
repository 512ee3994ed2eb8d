//! The real host in this process: its libraries opened as a program would, the plugin loaded by its own loader.
#![allow(dead_code)]

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::OnceLock;

use ggml_sys::sys;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use crate::common::{self, Lab};

/// The host's number of this type.
pub const F32: c_int = 0;
/// The host's number of this type.
pub const F16: c_int = 1;
/// The host's number of this type.
pub const I32: c_int = 26;
/// The host's number of this use of a buffer.
pub const WEIGHTS: c_int = 1;

pub type Tensor = *mut sys::ggml_tensor;
pub type Context = *mut sys::ggml_context;

macro_rules! host {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The host's functions that the tests call, by their own names.
        #[allow(non_snake_case)]
        pub struct Ggml {
            $(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
            _library: Library,
        }

        impl Ggml {
            fn resolve(library: Library) -> Self {
                Self {
                    // SAFETY: the types are those of the host's public headers.
                    $($name: unsafe { *library.get(stringify!($name).as_bytes()).expect(stringify!($name)) },)*
                    _library: library,
                }
            }
        }
    };
}

host! {
    ggml_backend_load: fn(*const c_char) -> sys::ggml_backend_reg_t;
    ggml_backend_dev_count: fn() -> usize;
    ggml_backend_dev_by_name: fn(*const c_char) -> sys::ggml_backend_dev_t;
    ggml_backend_dev_description: fn(sys::ggml_backend_dev_t) -> *const c_char;
    ggml_backend_dev_type: fn(sys::ggml_backend_dev_t) -> c_int;
    ggml_backend_dev_memory: fn(sys::ggml_backend_dev_t, *mut usize, *mut usize);
    ggml_backend_dev_init: fn(sys::ggml_backend_dev_t, *const c_char) -> sys::ggml_backend_t;
    ggml_backend_dev_supports_op: fn(sys::ggml_backend_dev_t, *const sys::ggml_tensor) -> bool;
    ggml_backend_init_by_type: fn(c_int, *const c_char) -> sys::ggml_backend_t;
    ggml_backend_free: fn(sys::ggml_backend_t);
    ggml_backend_name: fn(sys::ggml_backend_t) -> *const c_char;
    ggml_backend_alloc_ctx_tensors_from_buft: fn(Context, sys::ggml_backend_buffer_type_t) -> sys::ggml_backend_buffer_t;
    ggml_backend_dev_buffer_type: fn(sys::ggml_backend_dev_t) -> sys::ggml_backend_buffer_type_t;
    ggml_backend_alloc_ctx_tensors_from_buft_size: fn(Context, sys::ggml_backend_buffer_type_t) -> usize;
    ggml_backend_buffer_get_size: fn(sys::ggml_backend_buffer_t) -> usize;
    ggml_backend_alloc_ctx_tensors: fn(Context, sys::ggml_backend_t) -> sys::ggml_backend_buffer_t;
    ggml_backend_buffer_free: fn(sys::ggml_backend_buffer_t);
    ggml_backend_buffer_set_usage: fn(sys::ggml_backend_buffer_t, c_int);
    ggml_backend_buffer_clear: fn(sys::ggml_backend_buffer_t, u8);
    ggml_backend_tensor_set: fn(Tensor, *const c_void, usize, usize);
    ggml_backend_tensor_get: fn(*const sys::ggml_tensor, *mut c_void, usize, usize);
    ggml_backend_supports_op: fn(sys::ggml_backend_t, *const sys::ggml_tensor) -> bool;
    ggml_backend_graph_compute: fn(sys::ggml_backend_t, *mut sys::ggml_cgraph) -> c_int;
    ggml_init: fn(sys::ggml_init_params) -> Context;
    ggml_free: fn(Context);
    ggml_new_tensor_4d: fn(Context, c_int, i64, i64, i64, i64) -> Tensor;
    ggml_mul_mat: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_mul_mat_id: fn(Context, Tensor, Tensor, Tensor) -> Tensor;
    ggml_flash_attn_ext: fn(Context, Tensor, Tensor, Tensor, Tensor, f32, f32, f32) -> Tensor;
    ggml_flash_attn_ext_add_sinks: fn(Tensor, Tensor);
    ggml_swiglu_split: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_geglu_split: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_reglu_split: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_set_output: fn(Tensor) -> ();
    ggml_cpy: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_add: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_mul: fn(Context, Tensor, Tensor) -> Tensor;
    ggml_scale: fn(Context, Tensor, f32) -> Tensor;
    ggml_rms_norm: fn(Context, Tensor, f32) -> Tensor;
    ggml_view_4d: fn(Context, Tensor, i64, i64, i64, i64, usize, usize, usize, usize) -> Tensor;
    ggml_permute: fn(Context, Tensor, c_int, c_int, c_int, c_int) -> Tensor;
    ggml_transpose: fn(Context, Tensor) -> Tensor;
    ggml_new_graph: fn(Context) -> *mut sys::ggml_cgraph;
    ggml_build_forward_expand: fn(*mut sys::ggml_cgraph, Tensor);
    ggml_quantize_chunk: fn(c_int, *const f32, *mut c_void, i64, i64, i64, *const f32) -> usize;
    ggml_row_size: fn(c_int, i64) -> usize;
}

impl Ggml {
    /// Opens the host and lets it load its CPU backend and the plugin, on the emulated RK3588.
    pub fn open(lab: &Lab) -> Self {
        std::env::set_var("RKNPU_LIBRARY", &lab.emulator);
        std::env::set_var("RKNPU_EMU_SOC", "rk3588");
        std::env::set_var("RKNPU_EMU_STRICT", "1");
        // As a program's own dependency is opened, and as an addon is: the plugin must find its host either way.
        let flags =
            RTLD_NOW | if std::env::var_os("GGML_TEST_LOCAL").is_some() { RTLD_LOCAL } else { RTLD_GLOBAL };
        // SAFETY: the host's library, whose constructors are harmless.
        let library =
            unsafe { Library::open(Some(lab.host.join("libggml.so")), flags) }.expect("the host opens");
        let ggml = Self::resolve(library);
        for backend in [&lab.host.join("libggml-cpu.so"), &lab.plugin] {
            let path = CString::new(backend.as_os_str().as_bytes()).unwrap();
            // SAFETY: a path to a backend.
            let reg = unsafe { (ggml.ggml_backend_load)(path.as_ptr()) };
            assert!(!reg.is_null(), "{} loads", backend.display());
        }
        ggml
    }

    pub fn device(&self) -> sys::ggml_backend_dev_t {
        // SAFETY: a NUL-terminated name.
        let device = unsafe { (self.ggml_backend_dev_by_name)(c"RKNPU".as_ptr()) };
        assert!(!device.is_null(), "the host has the device RKNPU");
        device
    }

    pub fn description(&self) -> String {
        // SAFETY: the device's own description, NUL-terminated.
        unsafe { CStr::from_ptr((self.ggml_backend_dev_description)(self.device())) }
            .to_str()
            .unwrap()
            .to_owned()
    }

    pub fn backend(&self) -> sys::ggml_backend_t {
        // SAFETY: a live device.
        let backend = unsafe { (self.ggml_backend_dev_init)(self.device(), std::ptr::null()) };
        assert!(!backend.is_null());
        backend
    }

    /// Writes a tensor whose rows are of `k`, quantised if its type is; the bytes that were written.
    pub fn set(&self, tensor: Tensor, k: usize, values: &[f32]) -> Vec<u8> {
        // SAFETY: a live tensor; the type is its own, the sizes are those of its rows.
        unsafe {
            let (ggml_type, rows) = ((*tensor).type_, values.len() / k);
            let mut data = vec![0u8; (self.ggml_row_size)(ggml_type, k as i64) * rows];
            if ggml_type == F32 {
                data.copy_from_slice(bytemuck::cast_slice(values));
            } else if ggml_type == F16 {
                // The host's quantiser takes numbers only.
                for (bytes, value) in data.chunks_exact_mut(2).zip(values) {
                    bytes.copy_from_slice(&half::f16::from_f32(*value).to_ne_bytes());
                }
            } else {
                let (from, to) = (values.as_ptr(), data.as_mut_ptr().cast());
                (self.ggml_quantize_chunk)(ggml_type, from, to, 0, rows as i64, k as i64, std::ptr::null());
            }
            (self.ggml_backend_tensor_set)(tensor, data.as_ptr().cast(), 0, data.len());
            data
        }
    }

    /// Gives all tensors of a context memory as weights: of the device's own type, as hosts do, since that of a backend is the
    /// CPU's where a model is loaded; on another backend of that backend's type.
    ///
    /// # Safety
    /// Both are live.
    pub unsafe fn weights(
        &self,
        context: Context,
        backend: sys::ggml_backend_t,
    ) -> sys::ggml_backend_buffer_t {
        // SAFETY: by the contract; a name is NUL-terminated.
        unsafe {
            let buffer = if CStr::from_ptr((self.ggml_backend_name)(backend)) == c"RKNPU" {
                self.ours(context)
            } else {
                (self.ggml_backend_alloc_ctx_tensors)(context, backend)
            };
            (self.ggml_backend_buffer_set_usage)(buffer, WEIGHTS);
            buffer
        }
    }

    /// Gives all tensors of a context memory of the device's own type.
    ///
    /// # Safety
    /// It is live.
    pub unsafe fn ours(&self, context: Context) -> sys::ggml_backend_buffer_t {
        // SAFETY: by the contract, and a live device.
        unsafe {
            let buft = (self.ggml_backend_dev_buffer_type)(self.device());
            (self.ggml_backend_alloc_ctx_tensors_from_buft)(context, buft)
        }
    }

    /// A context for tensors without data.
    pub fn context(&self) -> Context {
        // SAFETY: plain parameters.
        unsafe {
            (self.ggml_init)(sys::ggml_init_params {
                mem_size: 1 << 20,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            })
        }
    }
}

/// A product in a graph of its own, with a weight in a buffer of weights.
pub struct Product<'a> {
    ggml: &'a Ggml,
    pub backend: sys::ggml_backend_t,
    contexts: [Context; 2],
    pub buffers: [sys::ggml_backend_buffer_t; 2],
    pub weight: Tensor,
    activations: Tensor,
    pub out: Tensor,
    pub graph: *mut sys::ggml_cgraph,
    k: usize,
    n: usize,
}

impl<'a> Product<'a> {
    /// K, N and rows on `backend`, which it then owns.
    pub fn new(
        ggml: &'a Ggml,
        backend: sys::ggml_backend_t,
        ggml_type: c_int,
        (k, n, rows): (usize, usize, usize),
    ) -> Self {
        let context = ggml.context();
        // SAFETY: the host's functions on the host's live objects, as its headers say.
        unsafe {
            let weight = (ggml.ggml_new_tensor_4d)(context, ggml_type, k as i64, n as i64, 1, 1);
            let weights = ggml.weights(context, backend);
            Self::of(ggml, backend, (context, weights, weight), (k, n, rows))
        }
    }

    /// The same weight's product with other rows, on a backend of its own; not to outlive this one.
    pub fn again(&self, rows: usize) -> Self {
        let weight = (std::ptr::null_mut(), std::ptr::null_mut(), self.weight);
        // SAFETY: the weight is live.
        unsafe { Self::of(self.ggml, self.ggml.backend(), weight, (self.k, self.n, rows)) }
    }

    /// # Safety
    /// The weight is a live tensor of K and N.
    unsafe fn of(
        ggml: &'a Ggml,
        backend: sys::ggml_backend_t,
        (context, weights, weight): (Context, sys::ggml_backend_buffer_t, Tensor),
        (k, n, rows): (usize, usize, usize),
    ) -> Self {
        let contexts = [context, ggml.context()];
        // SAFETY: the host's functions on the host's live objects, as its headers say.
        unsafe {
            let activations = (ggml.ggml_new_tensor_4d)(contexts[1], F32, k as i64, rows as i64, 1, 1);
            let out = (ggml.ggml_mul_mat)(contexts[1], weight, activations);
            let graph = (ggml.ggml_new_graph)(contexts[1]);
            (ggml.ggml_build_forward_expand)(graph, out);
            let compute = if rows > 0 {
                (ggml.ggml_backend_alloc_ctx_tensors)(contexts[1], backend)
            } else {
                std::ptr::null_mut()
            };
            let buffers = [weights, compute];
            Self { ggml, backend, contexts, buffers, weight, activations, out, graph, k, n }
        }
    }

    pub fn ggml_type(&self) -> c_int {
        // SAFETY: a live tensor.
        unsafe { (*self.weight).type_ }
    }

    /// Writes the weight, quantised if its type is; the bytes that were written.
    pub fn set_weight(&self, values: &[f32]) -> Vec<u8> {
        self.ggml.set(self.weight, self.k, values)
    }

    /// Rows × N results.
    pub fn run(&self, activations: &[f32]) -> Vec<f32> {
        let mut out = vec![0f32; activations.len() / self.k * self.n];
        // SAFETY: both tensors have room for what is copied.
        unsafe {
            (self.ggml.ggml_backend_tensor_set)(
                self.activations,
                activations.as_ptr().cast(),
                0,
                activations.len() * 4,
            );
            assert_eq!((self.ggml.ggml_backend_graph_compute)(self.backend, self.graph), 0);
            (self.ggml.ggml_backend_tensor_get)(self.out, out.as_mut_ptr().cast(), 0, out.len() * 4);
        }
        out
    }
}

impl Drop for Product<'_> {
    fn drop(&mut self) {
        free(self.ggml, self.buffers, self.contexts, self.backend);
    }
}

/// A product of a mixture of experts in a graph of its own.
pub struct Mixture<'a> {
    ggml: &'a Ggml,
    backend: sys::ggml_backend_t,
    contexts: [Context; 2],
    buffers: [sys::ggml_backend_buffer_t; 2],
    weights: Tensor,
    activations: Tensor,
    ids: Tensor,
    out: Tensor,
    graph: *mut sys::ggml_cgraph,
    pub k: usize,
    pub n: usize,
    pub used: usize,
}

impl<'a> Mixture<'a> {
    /// K, N and experts, and for each of `tokens` tokens `used` of them and `rows` rows, on `backend`, which it then owns.
    pub fn new(
        ggml: &'a Ggml,
        backend: sys::ggml_backend_t,
        ggml_type: c_int,
        shape: (usize, usize, usize),
        rows: (usize, usize, usize),
    ) -> Self {
        Self::with(ggml, backend, ggml_type, shape, rows, |_, product| product)
    }

    /// The same with what `make` makes of the product, a node as large, for its results.
    pub fn with(
        ggml: &'a Ggml,
        backend: sys::ggml_backend_t,
        ggml_type: c_int,
        (k, n, experts): (usize, usize, usize),
        (used, rows, tokens): (usize, usize, usize),
        make: impl FnOnce(Context, Tensor) -> Tensor,
    ) -> Self {
        let contexts = [ggml.context(), ggml.context()];
        let tensor = |context, ggml_type, ne: [usize; 3]| {
            let [a, b, c] = ne.map(|extent| extent as i64);
            // SAFETY: a live context.
            unsafe { (ggml.ggml_new_tensor_4d)(context, ggml_type, a, b, c, 1) }
        };
        // SAFETY: the host's functions on the host's live objects, as its headers say.
        unsafe {
            let weights = tensor(contexts[0], ggml_type, [k, n, experts]);
            let constant = ggml.weights(contexts[0], backend);
            let activations = tensor(contexts[1], F32, [k, rows, tokens]);
            let ids = tensor(contexts[1], I32, [used, tokens, 1]);
            let out = make(contexts[1], (ggml.ggml_mul_mat_id)(contexts[1], weights, activations, ids));
            assert!((ggml.ggml_backend_supports_op)(backend, out), "the backend takes it");
            let graph = (ggml.ggml_new_graph)(contexts[1]);
            (ggml.ggml_build_forward_expand)(graph, out);
            let compute = if tokens > 0 {
                (ggml.ggml_backend_alloc_ctx_tensors)(contexts[1], backend)
            } else {
                std::ptr::null_mut()
            };
            let buffers = [constant, compute];
            Self { ggml, backend, contexts, buffers, weights, activations, ids, out, graph, k, n, used }
        }
    }

    /// Writes all experts' weights, quantised if their type is.
    pub fn set_weights(&self, values: &[f32]) {
        self.ggml.set(self.weights, self.k, values);
    }

    /// Tokens × experts used × N results, or the host's status if that is an error.
    pub fn run(&self, activations: &[f32], ids: &[i32]) -> Result<Vec<f32>, c_int> {
        let mut out = vec![0f32; ids.len() * self.n];
        // SAFETY: the tensors have room for what is copied.
        unsafe {
            let set = self.ggml.ggml_backend_tensor_set;
            set(self.activations, activations.as_ptr().cast(), 0, size_of_val(activations));
            set(self.ids, ids.as_ptr().cast(), 0, size_of_val(ids));
            self.compute()?;
            (self.ggml.ggml_backend_tensor_get)(self.out, out.as_mut_ptr().cast(), 0, out.len() * 4);
        }
        Ok(out)
    }

    /// Has the graph computed; the host's status if that is an error.
    pub fn compute(&self) -> Result<(), c_int> {
        // SAFETY: a live backend and a graph of it.
        match unsafe { (self.ggml.ggml_backend_graph_compute)(self.backend, self.graph) } {
            0 => Ok(()),
            status => Err(status),
        }
    }
}

impl Drop for Mixture<'_> {
    fn drop(&mut self) {
        free(self.ggml, self.buffers, self.contexts, self.backend);
    }
}

/// How many values differ in their bits, NaNs aside.
pub fn differ(one: &[f32], other: &[f32]) -> usize {
    assert_eq!(one.len(), other.len());
    let alike =
        |(one, other): &(&f32, &f32)| one.to_bits() == other.to_bits() || one.is_nan() && other.is_nan();
    one.iter().zip(other).filter(|pair| !alike(pair)).count()
}

/// The values of a tensor of f32.
///
/// # Safety
/// The tensor is live and has as many values.
pub unsafe fn read(ggml: &Ggml, tensor: Tensor, len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    // SAFETY: the tensor is live and has as many values, by the contract.
    unsafe { (ggml.ggml_backend_tensor_get)(tensor, values.as_mut_ptr().cast(), 0, len * 4) };
    values
}

/// Frees what a graph of ours was made of, which nobody uses any more.
pub fn free(
    ggml: &Ggml,
    buffers: [sys::ggml_backend_buffer_t; 2],
    contexts: [Context; 2],
    backend: sys::ggml_backend_t,
) {
    // SAFETY: made by the host for one graph, freed once.
    unsafe {
        for buffer in buffers.into_iter().filter(|buffer| !buffer.is_null()) {
            (ggml.ggml_backend_buffer_free)(buffer);
        }
        for context in contexts.into_iter().filter(|context| !context.is_null()) {
            (ggml.ggml_free)(context);
        }
        (ggml.ggml_backend_free)(backend);
    }
}

struct Shared(Ggml);
// SAFETY: a table of functions that may be called from any thread.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// The host, opened once for all tests of a file; `None`, counted as skipped, where there is none.
pub fn host(test: &str) -> Option<&'static Ggml> {
    static HOST: OnceLock<Option<Shared>> = OnceLock::new();
    let shared = HOST.get_or_init(|| common::lab(test).map(|lab| Shared(Ggml::open(&lab))));
    shared.as_ref().map(|shared| &shared.0)
}

/// out[row][column] = Σ activations[row][k] · weight[column][k], in f64.
pub fn oracle(weight: &[f32], activations: &[f32], k: usize) -> Vec<f64> {
    activations
        .chunks(k)
        .flat_map(|row| {
            weight
                .chunks(k)
                .map(move |column| row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
        })
        .collect()
}

/// Mean squared error over mean square.
pub fn nmse(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    error / want.iter().map(|w| w * w).sum::<f64>()
}

/// Numbers in −1..1 that repeat with the seed.
pub fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as f32 / u32::MAX as f32 * 2.0 - 1.0
        })
        .collect()
}
