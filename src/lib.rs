//! A ggml backend plugin for the NPU of Rockchip boards.
pub mod chip;
pub mod engine;
pub mod kernels;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod weights;
