//! The matmul part of the vendor's runtime (librknnrt), in three levels and no more:
//!
//! * [`sys`]: the raw types, made by bindgen from our own `include/rknn_matmul_abi.h`;
//! * [`library`]: the shared library, opened at run time; one method a call, every return code a typed [`Error`];
//! * [`context`] and [`memory`]: what owns and frees itself. Nobody above this crate sees a pointer or a code.
//!   [`dynamic`] is a context of several M; [`attempt`] asks for types that the project does not compute with.
//!
//! Nothing here is needed to build: the library is looked for when [`Library::open`] is called.
//! Facts about the ABI: `docs/facts.md`.

pub mod attempt;
pub mod context;
pub mod dtype;
pub mod dynamic;
pub mod error;
pub mod library;
pub mod memory;
#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_snake_case)]
pub mod sys;

pub use context::{Context, Layout, MatmulSpec, Operand};
pub use dtype::{Element, MatmulType};
pub use dynamic::DynamicContext;
pub use error::Error;
pub use library::{Library, Version};
pub use memory::{Arena, Binding, Memory, Window};
