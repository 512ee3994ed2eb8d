//! Rockchip's matmul library (librknnrt) in software, for machines without the chip.
//!
//! The shared library exports the vendor's C symbols, so that a program opens it in the vendor's place. It keeps
//! what makes programs fail on boards: memory that is not coherent, per-chip layouts, alignments and K limits,
//! one file descriptor an allocation, I/O address space that runs out, one core a context.
//!
//! * [`chip`]: what each SoC can do, as rows of data; `RKNPU_EMU_SOC` picks one;
//! * [`dtype`]: what A, B and C hold; [`accepted`]: `RKNPU_EMU_TYPES`, which adds types or takes them away;
//! * [`layout`]: where each element lies, as formulas;
//! * [`kernels`]: the products: a scalar reference, AVX2 and NEON;
//! * [`memory`]: allocations with a host side and a device side, and the I/O address space;
//! * [`operand`]: what a context has bound, and how it is read and written; [`quant`]: the scales of i8 outputs;
//! * [`context`]: the state machine from create to run;
//! * [`exports`]: the C symbols, which check every handle and never unwind;
//! * [`clock`] and [`report`]: what the chip would have taken, modelled; `RKNPU_EMU_REPORT` names a JSON file,
//!   `RKNPU_EMU_PACE` has runs take that time for real in place of computing;
//! * [`faults`]: what goes wrong on demand, and reported quirks; `RKNPU_EMU_FAULTS`, whose grammar is told there;
//! * [`controls`]: the C calls that the vendor's library does not have, for tests:
//!   `int rknpu_emulator_set_faults(const char *)`, `uint64_t rknpu_emulator_clock_ns(int core)`;
//! * [`status`], [`log`] and [`strict`]: the vendor's codes, the one line that says why, and `RKNPU_EMU_STRICT`,
//!   which makes misuse abort.
//!
//! Overlapping accesses that real hardware would race on (a sync of bytes that a run is using, for example) race
//! here as well; they are the caller's to order. Everything else a caller can do wrong ends in a code and a line.

pub mod accepted;
pub mod chip;
pub mod clock;
pub mod context;
pub mod controls;
pub mod dtype;
pub mod exports;
pub mod faults;
pub mod kernels;
pub mod layout;
pub mod log;
pub mod memory;
pub mod operand;
pub mod quant;
pub mod report;
pub mod status;
pub mod strict;
