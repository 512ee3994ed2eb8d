//! The C ABI towards the host: every `extern "C"` function, every raw pointer of ggml's, and the shield that
//! keeps panics inside.
//!
//! * [`exports`]: the symbols of the shared library;
//! * [`registry`]: what is registered, once a process;
//! * [`device`], [`buffer`], [`backend`]: ggml's tables of functions;
//! * [`tensor`]: ggml's tensors as plain numbers and slices;
//! * [`attention`]: attention's nodes likewise;
//! * [`generation`]: the tables as each generation of hosts has them;
//! * [`order`]: the order of a graph's nodes, before they have memory;
//! * [`group`]: a graph's nodes, those together that do not wait for each other; [`waiting`]: what these read and write;
//!   [`experts`]: nodes with experts among them;
//! * [`gated`]: what is made of the results of two products, part by part; [`epilogue`]: what becomes of one's;
//! * [`chain`]: products that follow from each other; [`tile`]: what is made row by row between them;
//! * [`cpu`]: the host's own CPU backend, for what the NPU does not do;
//! * [`host_copy`]: second copies of weights, as its kernels like them.
//!
//! No decision is made here; see [`crate::host`].

mod attention;
mod backend;
mod buffer;
mod chain;
mod cpu;
mod device;
mod epilogue;
mod experts;
pub mod exports;
mod gated;
mod generation;
mod group;
mod host_copy;
mod norm;
mod order;
mod registry;
mod tensor;
#[cfg(test)]
mod test_nodes;
mod tile;
mod waiting;

use std::panic::{catch_unwind, AssertUnwindSafe};

use crate::log;

/// Runs `body`; a panic is logged and becomes `failed`. Nothing unwinds into the host.
fn shield<T>(call: &str, failed: T, body: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .copied()
                .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("no message");
            log!(Error, "a bug in {call}: {text}; please report it");
            failed
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_panic_becomes_the_failure_value() {
        assert_eq!(super::shield("test", -1, || panic!("on purpose")), -1);
        assert_eq!(super::shield("test", -1, || 5), 5);
    }
}
