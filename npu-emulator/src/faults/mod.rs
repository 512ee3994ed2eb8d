//! What goes wrong on demand: from the environment (`RKNPU_EMU_FAULTS`, read once) or by
//! [`rknpu_emulator_set_faults`](crate::controls::rknpu_emulator_set_faults), which replaces everything and counts anew.
//!
//! ```text
//! faults = item { ";" item }
//! item   = call [ "@" when ] ":" what | quirk
//! call   = create | set_io_mem | set_core_mask | run | create_mem | create_mem_from_fd
//!        | mem_sync | query | destroy | any
//! when   = N      the Nth such call, from 1       | N+        the Nth and all later ones (default: 1+)
//!        | /N     every Nth                       | pP[~SEED] each with probability P, by a seed (default 0)
//! what   = -1 … -13      this code; a call that gives a memory gives null
//!        | null          the same as -1
//!        | hang[=MS]     sleep so long (default 100), then -2
//!        | submit        run: -1, C is untouched
//!        | space         set_io_mem: -4, out of I/O address space
//!        | fds           create_mem, create_mem_from_fd: null, out of descriptors (errno 24)
//!        | lost[=CALLS]  this and the following calls of every kind, so many in all, give -3 (default 1)
//!        | wrong=CORE    run: succeeds, C is wrong; only runs on this core count
//! quirk  = views         offset views are ignored under concurrency, see Quirks
//!        | native-b      NATIVE B is not laid out as believed
//!        | native-ac     nor are NATIVE A and C (of more than one row)
//!        | core=K        core K refuses: set_core_mask gives -5
//!        | domain=MB     an I/O domain serves so many MB of addresses only, as one that is fragmented or in others' use
//!        | type=CODE     create refuses the type with this code; type: f16, i8, i4 or typeN for the vendor's
//!                        number N; CODE: -1 … -13, or off for -5
//! ```
//!
//! For example `run@3:-1; create_mem@p0.1~7:fds; any@100:lost=20; views`. A call is counted by every fault that
//! covers it, whatever its arguments; the first fault in the text whose time it is happens, and a call that fails by
//! one has no effect, nor does it take modelled time. A seed gives the same calls in every run of a program that makes its calls in the same order.
//!
//! A text that does not parse is refused loudly: one line, and from the environment every create gives -3.

pub mod parse;
pub mod quirks;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::RwLock;

use crate::memory::View;
use crate::status::{refuse, Result, Status};
use parse::{Call, Fault, What};
use quirks::Quirks;

/// The environment variable, read once.
pub const FAULTS_VARIABLE: &str = "RKNPU_EMU_FAULTS";

/// What is to go wrong, and how far it has come.
#[derive(Default)]
pub struct Plan {
    faults: Vec<(Fault, AtomicU64)>,
    /// The permanent switches.
    pub quirks: Quirks,
    /// Calls for which the device is still lost.
    lost: AtomicU64,
    /// The environment's text did not parse.
    broken: bool,
}

impl Plan {
    fn parse(text: &str) -> std::result::Result<Self, String> {
        let (faults, quirks) = parse::parse(text)?;
        let faults = faults.into_iter().map(|fault| (fault, AtomicU64::new(0))).collect();
        Ok(Self { faults, quirks, ..Self::default() })
    }

    /// Counts a call of the faults that `matches`; the first whose time it is.
    fn due(&self, matches: impl Fn(&Fault) -> bool) -> Option<What> {
        let mut due = None;
        for (fault, count) in self.faults.iter().filter(|(fault, _)| matches(fault)) {
            let count = count.fetch_add(1, Ordering::Relaxed) + 1;
            if due.is_none() && fault.moment.is_now(count) {
                due = Some(fault.what);
            }
        }
        due
    }
}

static PLAN: LazyLock<RwLock<Arc<Plan>>> = LazyLock::new(|| {
    let text = std::env::var_os(FAULTS_VARIABLE).unwrap_or_default();
    let plan = text.to_str().ok_or_else(|| "not UTF-8".to_owned()).and_then(Plan::parse);
    RwLock::new(Arc::new(plan.unwrap_or_else(|why| {
        crate::log::line(format_args!(
            "{FAULTS_VARIABLE}: {why}; no context is made until this is corrected"
        ));
        Plan { broken: true, ..Plan::default() }
    })))
});

/// What is to go wrong now.
pub fn plan() -> Arc<Plan> {
    PLAN.read().clone()
}

/// Replaces every fault and quirk by those of `text`, which may be empty.
///
/// # Errors
/// -5, with a line, for a text that does not parse; nothing changes then.
pub fn set(text: &str) -> Result<()> {
    match Plan::parse(text) {
        Ok(plan) => {
            *PLAN.write() = Arc::new(plan);
            Ok(())
        }
        Err(why) => refuse(Status::PARAM, format_args!("faults: {why}")),
    }
}

/// Says what happens and gives the code: no misuse of the caller's.
fn happen(status: Status, message: std::fmt::Arguments<'_>) -> Result<()> {
    crate::log::line(message);
    Err(status)
}

/// Fails the call of that C name if a fault says so, before it has any effect.
///
/// # Errors
/// The fault's code.
pub fn before(call: &str) -> Result<()> {
    let plan = plan();
    if plan.broken && Call::Create.covers(call) {
        return happen(Status::NO_DEVICE, format_args!("{call}: {FAULTS_VARIABLE} does not parse"));
    }
    // What is wrong with one core's results is decided when the core is known.
    let due = plan.due(|fault| fault.call.covers(call) && !matches!(fault.what, What::Wrong(_)));
    let lost = |left: u64| left.checked_sub(1);
    if plan.lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lost).is_ok() {
        return happen(Status::NO_DEVICE, format_args!("{call}: the device is lost (fault)"));
    }
    match due {
        None | Some(What::Wrong(_)) => Ok(()),
        Some(What::Code(code)) => happen(Status(code), format_args!("{call}: fails with {code} (fault)")),
        Some(What::Hang(ms)) => {
            std::thread::sleep(Duration::from_millis(ms));
            happen(Status(-2), format_args!("{call}: timeout after {ms} ms (fault)"))
        }
        Some(What::Submit) => happen(Status::FAIL, format_args!("{call}: failed to submit (fault)")),
        Some(What::Space) => happen(Status::NO_MEMORY, format_args!("{call}: no I/O address space (fault)")),
        Some(What::Descriptors) => {
            happen(Status::FAIL, format_args!("failed to convert handle(1) to fd, errno 24 (fault)"))
        }
        Some(What::Lost(calls)) => {
            plan.lost.fetch_max(calls - 1, Ordering::Relaxed);
            happen(Status::NO_DEVICE, format_args!("{call}: the device is lost (fault)"))
        }
    }
}

/// Spoils the `bytes` bytes of C that a run on `core` has written, if a fault says so.
pub fn ran_on(core: usize, c: &View, bytes: usize) {
    if plan().due(|fault| fault.what == What::Wrong(core)).is_some() {
        for at in 0..bytes {
            // SAFETY: the view holds C's bytes, which this run has just written and still owns.
            unsafe { *c.device().add(at) ^= 0x55 };
        }
    }
}

/// Refuses a core that a quirk switched off.
///
/// # Errors
/// -5.
pub fn check_core(core: Option<usize>) -> Result<()> {
    match core.filter(|core| plan().quirks.cores.contains(core)) {
        Some(core) => happen(Status::PARAM, format_args!("core {core} does not take a context (quirk)")),
        None => Ok(()),
    }
}

/// Bytes of addresses that an I/O domain serves, where the chip says `chip`.
pub fn io_space(chip: u64) -> u64 {
    plan().quirks.domain.unwrap_or(chip)
}

/// Refuses a type that a quirk switched off, by the vendor's number.
///
/// # Errors
/// The quirk's code.
pub fn check_type(kind: i32) -> Result<()> {
    match plan().quirks.types.iter().find(|(refused, _)| *refused == kind) {
        Some((_, code)) => {
            happen(Status(*code), format_args!("unsupported matmul dtype {kind} in this platform (quirk)"))
        }
        None => Ok(()),
    }
}
