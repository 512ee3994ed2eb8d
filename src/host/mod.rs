//! llama.cpp's words on the left, ours on the right: what the environment asks for, which device there is, which
//! products are taken, and what happens when the NPU fails. Plain Rust types only: raw pointers stay in
//! [`crate::ffi`].

pub mod attention;
mod batches;
mod chain;
pub mod config;
mod conversion;
mod cores;
pub mod device;
pub mod experts;
pub mod host_copy;
pub mod machine;
pub mod mixture;
mod multiply;
pub mod numbers;
mod pages;
pub mod product;
mod progress;
pub mod trust;
mod weight;
