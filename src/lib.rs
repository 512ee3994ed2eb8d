//! A ggml backend plugin for the NPU of Rockchip boards.
//!
//! The modules in the order of the data's way, from the host to the NPU and back: [`ffi`] (the C ABI), [`host`]
//! (registration, devices, products), [`policy`] (which pipeline), [`weights`] (conversion), [`plan`] (cutting),
//! [`kernels`] (the CPU's share), [`engine`] (the NPU's share). [`pool`] is the CPU's threads, [`cpus`] where they run, [`chip`] what each chip
//! can do, [`mode`] how far one is trusted; [`observe`] is what people are told; [`probe`] finds out what holds on this very board. `ARCHITECTURE.md` walks the whole way.

mod allocations;
pub mod chip;
pub mod cpus;
pub mod engine;
pub mod ffi;
pub mod host;
pub mod kernels;
pub mod mode;
mod names;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod pool;
pub mod probe;
pub mod weights;

pub use allocations::allocations;
