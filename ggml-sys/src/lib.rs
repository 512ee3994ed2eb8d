//! ggml's plugin ABI, seen from a plugin.
//!
//! * [`sys`]: the raw structs, made by bindgen from our own `include/ggml_host_abi.h` (generation v3);
//! * [`locate`]: finds the one libggml-base that is already in the process, wherever its symbols are visible;
//! * [`rows`]: reads rows of any ggml type as f32, by the host's own dequantisers;
//! * `sample`: a node that the host makes, looked at before any is trusted to lie as we believe;
//! * [`uses`]: how many nodes of a graph read a tensor;
//! * [`host`]: the host's functions, resolved once; op codes by name, since their numbers move between versions.
//!
//! No llama.cpp checkout is needed to build. A plugin must never bring a second copy of ggml nor link to one.
//! Nothing of the NPU may be known here.

pub mod host;
pub mod locate;
pub mod rows;
mod sample;
#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_snake_case)]
pub mod sys;
pub mod uses;

pub use host::{Error, Generation, Glu, Host, Ops};
pub use rows::RowReader;
