//! The host's functions and op codes, resolved once when the plugin is loaded.

use std::ffi::{c_int, CStr, CString};
use std::ptr::NonNull;

use crate::locate::{self, Scope};
use crate::rows::RowReader;
use crate::uses::Uses;
use crate::{sample, sys};

/// Which layout of the plugin ABI the host was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generation {
    /// API version 2, before the 2-D copies.
    V2,
    /// API version 2 with `set_tensor_2d` and `get_tensor_2d`.
    V2With2d,
    /// API version 3.
    V3,
}

/// A function that every ggml has.
const MARKER: &CStr = c"ggml_backend_buffer_init";

/// Why the host cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No ggml in the process.
    #[error("no ggml found in this process (tried {tried}); load the plugin with a llama.cpp program")]
    NotFound {
        /// The places that were tried.
        tried: String,
    },
    /// The host lacks a function that every host of the generation has.
    #[error("the host's ggml ({scope}) has no function {symbol}")]
    Symbol {
        /// Where it was looked for.
        scope: String,
        /// The function.
        symbol: &'static str,
    },
    /// A generation that this version of the plugin does not speak.
    #[error(
        "the host's ggml {version} ({scope}) speaks a plugin ABI that is not known: {found}; known are v2 and v2-2d (version \
         2) and v3 (version 3); a newer plugin may know it"
    )]
    Generation {
        /// Where ggml was found.
        scope: String,
        /// Its version, as it says.
        version: String,
        /// What tells it from those that are known.
        found: String,
    },
}

macro_rules! functions {
    ($($field:ident: $kind:ident = $symbol:literal, $doc:literal;)*) => {
        /// The host's functions; each field is the function of the same name without its `ggml_` or `ggml_backend_`.
        #[derive(Clone, Copy)]
        pub struct Functions {
            $(#[doc = $doc] pub $field: NonNullFn<sys::$kind>,)*
        }

        impl Functions {
            fn resolve(scope: &Scope) -> Result<Self, Error> {
                Ok(Self {
                    $($field: {
                        let name = CString::new($symbol).expect("no NUL in a symbol's name");
                        let address = scope
                            .symbol(&name)
                            .ok_or_else(|| Error::Symbol { scope: scope.name.clone(), symbol: $symbol })?;
                        // SAFETY: an `Option` of a function pointer has the layout of a pointer; the host's
                        // function of this name has this type in every generation that is accepted.
                        let function: sys::$kind = unsafe { std::mem::transmute(address) };
                        NonNullFn(function)
                    },)*
                })
            }
        }
    };
}

/// A function of the host that was found; `get` gives it to call.
#[derive(Clone, Copy)]
pub struct NonNullFn<F>(F);

impl<F: Copy> NonNullFn<Option<F>> {
    /// The function.
    pub fn get(self) -> F {
        self.0.expect("resolved from a non-null address")
    }
}

functions! {
    buffer_type: ggml_backend_buffer_get_type_fn = "ggml_backend_buffer_get_type", "The type of a buffer.";
    buffer_usage: ggml_backend_buffer_get_usage_fn = "ggml_backend_buffer_get_usage", "What a buffer is used for.";
    buffer_set_usage: ggml_backend_buffer_set_usage_fn = "ggml_backend_buffer_set_usage", "Says what a buffer is used for.";
    device: ggml_backend_get_device_fn = "ggml_backend_get_device", "The device of a backend.";
    buffer_init: ggml_backend_buffer_init_fn = "ggml_backend_buffer_init", "Makes a buffer from our functions; of v2 it has another type, see [`Host::buffer_init_v2`].";
    cpu_buffer_type: ggml_backend_cpu_buffer_type_fn = "ggml_backend_cpu_buffer_type", "The buffer type of plain memory, the CPU backend's.";
    buft_is_host: ggml_backend_buft_is_host_fn = "ggml_backend_buft_is_host", "Whether a buffer type is host memory.";
    op_name: ggml_op_name_fn = "ggml_op_name", "An op's name.";
    type_traits: ggml_get_type_traits_fn = "ggml_get_type_traits", "Block size and dequantiser of a type.";
    graph_n_nodes: ggml_graph_n_nodes_fn = "ggml_graph_n_nodes", "Nodes of a graph.";
    graph_nodes: ggml_graph_nodes_fn = "ggml_graph_nodes", "The nodes of a graph.";
    init: ggml_init_fn = "ggml_init", "A context for tensors and graphs.";
    free: ggml_free_fn = "ggml_free", "Frees that context.";
    tensor_overhead: ggml_tensor_overhead_fn = "ggml_tensor_overhead", "Bytes a tensor needs in a context.";
    new_tensor_2d: ggml_new_tensor_2d_fn = "ggml_new_tensor_2d", "A matrix in a context.";
    mul_mat: ggml_mul_mat_fn = "ggml_mul_mat", "A node of a product.";
    set_name: ggml_set_name_fn = "ggml_set_name", "Names a tensor.";
    build_forward: ggml_build_forward_expand_fn = "ggml_build_forward_expand", "Adds a node and its sources.";
    graph_overhead: ggml_graph_overhead_custom_fn = "ggml_graph_overhead_custom", "Bytes a graph needs in a context.";
    new_graph: ggml_new_graph_custom_fn = "ggml_new_graph_custom", "A graph in a context.";
    graph_add_node: ggml_graph_add_node_fn = "ggml_graph_add_node", "Adds one node, not its sources.";
    graph_clear: ggml_graph_clear_fn = "ggml_graph_clear", "Takes all nodes out of a graph.";
    graph_compute: ggml_backend_graph_compute_fn = "ggml_backend_graph_compute", "Runs a graph on a backend.";
    backend_free: ggml_backend_free_fn = "ggml_backend_free", "Frees a backend.";
    init_by_type: ggml_backend_init_by_type_fn = "ggml_backend_init_by_type", "A backend from the registry, by device type.";
    dev_reg: ggml_backend_dev_backend_reg_fn = "ggml_backend_dev_backend_reg", "The registration of a device.";
    dev_supports_op: ggml_backend_dev_supports_op_fn = "ggml_backend_dev_supports_op", "Whether a device does a node.";
    buft_alloc_buffer: ggml_backend_buft_alloc_buffer_fn = "ggml_backend_buft_alloc_buffer", "A buffer of a type.";
    buft_alloc_size: ggml_backend_buft_get_alloc_size_fn = "ggml_backend_buft_get_alloc_size", "Bytes that a tensor needs in a buffer of a type.";
    buffer_base: ggml_backend_buffer_get_base_fn = "ggml_backend_buffer_get_base", "The first address of a buffer.";
    buffer_free: ggml_backend_buffer_free_fn = "ggml_backend_buffer_free", "Frees a buffer.";
    tensor_alloc: ggml_backend_tensor_alloc_fn = "ggml_backend_tensor_alloc", "Puts a tensor to a place in a buffer.";
    tensor_set: ggml_backend_tensor_set_fn = "ggml_backend_tensor_set", "Writes a tensor's bytes, in its buffer's own layout.";
    reg_proc: ggml_backend_reg_get_proc_address_fn = "ggml_backend_reg_get_proc_address", "An optional function of a registration.";
}

/// Op codes of this host. The numbers move between versions, the names do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ops {
    /// A leaf: no operation.
    pub none: i32,
    /// Matrix product.
    pub mul_mat: i32,
    /// Matrix product with the matrices that ids name.
    pub mul_mat_id: i32,
    /// Attention.
    pub flash_attn_ext: i32,
    /// An activation times a gate, where the host has that as one op.
    pub glu: Option<Glu>,
    /// No-ops that only change how a tensor is seen.
    pub views: [i32; 4],
    /// What is done with a product's results: a bias added, or a factor for each column.
    pub by_column: [i32; 2],
    /// The same with one source of numbers: a norm, a factor for all, a rotation by positions.
    pub by_row: [i32; 3],
}

/// Codes of activations times gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glu {
    /// The op.
    pub op: i32,
    /// What its first parameter is for ReLU, GELU by tanh, and SiLU; `None` for one that the host has not.
    pub kinds: [Option<i32>; 3],
}

impl Glu {
    /// The first three are as old as the op; names beyond are not asked for.
    fn resolve(op: i32, kind_name: impl Fn(i32) -> String) -> Self {
        let kinds = ["REGLU", "GEGLU", "SWIGLU"].map(|name| (0..3).find(|kind| kind_name(*kind) == name));
        Self { op, kinds }
    }
}

impl Ops {
    fn resolve(op_name: impl Fn(i32) -> String, kind_name: Option<impl Fn(i32) -> String>) -> Option<Self> {
        // ggml indexes its table of names unchecked, so a search may not run past the last op: each of these
        // names exists in every version, or else is not looked for, so the search for it ends in time. 256 is only a guard.
        let find = |name: &str| (0..256).find(|op| op_name(*op) == name);
        Some(Self {
            none: find("NONE")?,
            mul_mat: find("MUL_MAT")?,
            mul_mat_id: find("MUL_MAT_ID")?,
            flash_attn_ext: find("FLASH_ATTN_EXT")?,
            glu: kind_name.and_then(|kind_name| Some(Glu::resolve(find("GLU")?, kind_name))),
            views: [find("RESHAPE")?, find("VIEW")?, find("PERMUTE")?, find("TRANSPOSE")?],
            by_column: [find("ADD")?, find("MUL")?],
            by_row: [find("RMS_NORM")?, find("SCALE")?, find("ROPE")?],
        })
    }
}

/// The host, as far as the plugin needs it.
pub struct Host {
    /// Its functions.
    pub fns: Functions,
    /// Its op codes.
    pub ops: Ops,
    /// The layout of its tables of functions.
    pub generation: Generation,
    /// Whether it marks the nodes that are to be computed, so that others are skipped.
    marks_nodes: bool,
    /// How often a graph's nodes read a tensor, where its graphs lie as believed.
    pub uses: Option<Uses>,
    /// Where its symbols were found.
    pub scope: String,
}

impl Host {
    /// Finds the host's ggml in this process and resolves what the plugin calls.
    ///
    /// # Errors
    /// No ggml in the process, a function missing, or a generation that is not spoken.
    pub fn find() -> Result<Self, Error> {
        let scope = locate::find(MARKER).map_err(|tried| Error::NotFound { tried })?;
        let unknown =
            |found| Error::Generation { scope: scope.name.clone(), version: version(&scope), found };
        let generation =
            generation(api_version(&scope), |name| scope.symbol(name).is_some()).map_err(unknown)?;
        let fns = Functions::resolve(&scope)?;
        // SAFETY: asked only for codes up to the op looked for, see `Ops::resolve`; names are static strings.
        let op_name = |op| unsafe { CStr::from_ptr((fns.op_name.get())(op)) }.to_string_lossy().into_owned();
        let missing = Error::Symbol {
            scope: scope.name.clone(),
            symbol: "ggml_op_name (of MUL_MAT, MUL_MAT_ID and the views)",
        };
        // The function came with the op.
        let kind_name = scope.symbol(c"ggml_glu_op_name").map(|address| {
            // SAFETY: an `Option` of a function pointer has the layout of a pointer; the function has had this type in
            // every version of ggml that has it.
            let function: sys::ggml_glu_op_name_fn = unsafe { std::mem::transmute(address) };
            let function = function.expect("not null");
            // SAFETY: asked only for the first codes, see `Glu::resolve`; names are static strings.
            move |kind| unsafe { CStr::from_ptr(function(kind)) }.to_string_lossy().into_owned()
        });
        let ops = Ops::resolve(op_name, kind_name).ok_or(missing)?;
        // SAFETY: the functions and codes are the host's own.
        let marks_nodes = unsafe { sample::look(&fns, &ops) }.map_err(unknown)?;
        // SAFETY: its tensors lie as believed.
        let uses = unsafe { Uses::look(&fns) };
        Ok(Self { fns, ops, generation, marks_nodes, uses, scope: scope.name })
    }

    /// Whether the host does not want the node computed.
    pub fn skips(&self, node: &sys::ggml_tensor) -> bool {
        self.marks_nodes && node.flags as u32 & sys::GGML_HOST_TENSOR_FLAG_COMPUTE == 0
    }

    /// [`Functions::buffer_init`] as hosts of v2 have it; only for those.
    pub fn buffer_init_v2(&self) -> sys::ggml_backend_buffer_init_v2_fn {
        debug_assert_eq!(self.generation, Generation::V2);
        // SAFETY: both are options of pointers to functions; in v2 the table that is passed is the shorter one.
        unsafe { std::mem::transmute(self.fns.buffer_init.0) }
    }

    /// How rows of a type are read; `None` for types that hold no numbers to multiply.
    pub fn row_reader(&self, ggml_type: i32) -> Option<RowReader> {
        RowReader::new(ggml_type, self.type_traits(ggml_type)?)
    }

    fn type_traits(&self, ggml_type: i32) -> Option<&'static sys::ggml_type_traits> {
        // SAFETY: the type comes from a tensor of the host, so it is one of its own; the table is static.
        NonNull::new(unsafe { (self.fns.type_traits.get())(ggml_type) }.cast_mut())
            // SAFETY: not null and static.
            .map(|traits| unsafe { &*traits.as_ptr() })
    }
}

/// Tells the generation by the API version of the host's own CPU backend, where that is known, and by which functions
/// exist, which alone tell within version 2; what was found if that fits none.
fn generation(version: Option<c_int>, has: impl Fn(&CStr) -> bool) -> Result<Generation, String> {
    let (generation, expected, functions) =
        match (has(c"ggml_backend_tensor_set_2d"), has(c"ggml_backend_buft_alloc_buffer_n")) {
            (true, true) => (Generation::V3, sys::GGML_HOST_API_VERSION, "v3"),
            (true, false) => (Generation::V2With2d, sys::GGML_HOST_API_VERSION_V2, "v2-2d"),
            (false, false) => (Generation::V2, sys::GGML_HOST_API_VERSION_V2, "v2"),
            (false, true) => {
                return Err("ggml_backend_buft_alloc_buffer_n without ggml_backend_tensor_set_2d".to_owned());
            }
        };
    match version {
        Some(version) if version != expected as c_int => {
            Err(format!("version {version}, with the functions of {functions}"))
        }
        _ => Ok(generation),
    }
}

/// The API version that the host's own CPU backend was built with; `None` where no such backend is loaded yet.
///
/// The registry would know it too, but may be the one who is just asking for us.
fn api_version(scope: &Scope) -> Option<c_int> {
    let base = scope.symbol(MARKER);
    // A process may hold another copy of ggml: only a backend of this one counts.
    let backends = locate::loaded("libggml-cpu").filter(|backend| backend.symbol(MARKER) == base);
    let address = std::iter::once(scope.clone())
        .chain(backends)
        .find_map(|scope| scope.symbol(c"ggml_backend_cpu_reg"))?;
    // SAFETY: an `Option` of a function pointer has the layout of a pointer; the function has had this type in every
    // version of ggml that has it.
    let function: sys::ggml_backend_cpu_reg_fn = unsafe { std::mem::transmute(address) };
    // SAFETY: it gives a static registration, which begins with the version in every generation.
    unsafe { function?().as_ref() }.map(|reg| reg.api_version)
}

/// What the host says that its ggml is: "0.26.0".
fn version(scope: &Scope) -> String {
    let Some(address) = scope.symbol(c"ggml_version") else { return "of no known version".to_owned() };
    // SAFETY: as in `api_version`; it gives a static string.
    unsafe {
        let function: sys::ggml_version_fn = std::mem::transmute(address);
        function.map_or_else(String::new, |version| CStr::from_ptr(version()).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_follows_from_the_version_and_the_functions_that_exist() {
        let two_d = c"ggml_backend_tensor_set_2d";
        let batch = c"ggml_backend_buft_alloc_buffer_n";
        let tell = |version, functions: &[&CStr]| generation(version, |name| functions.contains(&name));
        for (version, functions, name, expected) in [
            (2, &[][..], "v2", Generation::V2),
            (2, &[two_d][..], "v2-2d", Generation::V2With2d),
            (3, &[two_d, batch][..], "v3", Generation::V3),
        ] {
            assert_eq!(tell(Some(version), functions), Ok(expected));
            assert_eq!(tell(None, functions), Ok(expected), "without a CPU backend the functions tell");
            for other in [1, 4, 5 - version] {
                let found = tell(Some(other), functions).unwrap_err();
                assert_eq!(found, format!("version {other}, with the functions of {name}"));
            }
        }
        assert!(tell(None, &[batch]).is_err_and(|found| found.contains("without")));
    }

    #[test]
    fn ops_are_found_by_name_and_never_past_the_last_one_needed() {
        let names = [
            "NONE",
            "DUP",
            "VIEW",
            "MUL_MAT",
            "TRANSPOSE",
            "PERMUTE",
            "RESHAPE",
            "MUL_MAT_ID",
            "FLASH_ATTN_EXT",
            "ADD",
            "SCALE",
            "MUL",
            "ROPE",
            "RMS_NORM",
        ];
        let name = |op: i32| names[op as usize].to_owned();
        let ops = Ops::resolve(name, None::<fn(i32) -> String>).unwrap();
        let (views, by_column, by_row) = ([6, 2, 5, 4], [9, 11], [13, 10, 12]);
        let products = Ops {
            none: 0,
            mul_mat: 3,
            mul_mat_id: 7,
            flash_attn_ext: 8,
            glu: None,
            views,
            by_column,
            by_row,
        };
        assert_eq!(ops, products);
        let with = |op: i32| if op == 14 { "GLU".to_owned() } else { name(op) };
        let kinds = |kind: i32| ["GEGLU", "SWIGLU", "other"][kind as usize].to_owned();
        let glu = Glu { op: 14, kinds: [None, Some(0), Some(1)] };
        assert_eq!(Ops::resolve(with, Some(kinds)), Some(Ops { glu: Some(glu), ..ops }));
        assert!(Ops::resolve(|_| String::new(), Some(kinds)).is_none());
    }

    #[test]
    fn without_a_host_the_error_says_where_it_was_looked_for() {
        let error = Host::find().err().unwrap().to_string();
        assert!(error.contains("the process's own symbols"), "{error}");
    }
}
