//! Every fault happens when its text says so, and stops.
//!
//! Faults are the process's: the tests take turns ([`Faults`]).

mod common;

use std::ffi::CString;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use common::{in_child_on_rk3588, is_child};
use npu_emulator::controls::rknpu_emulator_set_faults;
use npu_emulator::exports::*;
use npu_emulator::faults::parse::{parse, Moment};
use parking_lot::{Mutex, MutexGuard};
use rknn_sys::sys::{self, rknn_tensor_mem};

static TURN: Mutex<()> = Mutex::new(());

/// A test's turn, at whose end all faults stop.
struct Faults(#[allow(dead_code)] MutexGuard<'static, ()>);

impl Faults {
    fn begin() -> Self {
        let turn = Self(TURN.lock());
        set("");
        turn
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // SAFETY: null ends all faults.
        assert_eq!(unsafe { rknpu_emulator_set_faults(std::ptr::null()) }, 0);
    }
}

fn try_set(text: &str) -> i32 {
    let text = CString::new(text).expect("no zero");
    // SAFETY: a C string.
    unsafe { rknpu_emulator_set_faults(text.as_ptr()) }
}

fn set(text: &str) {
    assert_eq!(try_set(text), 0, "{text}");
}

fn try_create(kind: i32, m: i32, k: i32, n: i32) -> Result<(u64, sys::rknn_matmul_io_attr), i32> {
    // SAFETY: zeroed plain structs, three valid pointers.
    unsafe {
        let mut info: sys::rknn_matmul_info = std::mem::zeroed();
        (info.M, info.K, info.N, info.type_, info.B_layout, info.AC_layout) = (m, k, n, kind, 1, 1);
        let (mut ctx, mut io) = (0, std::mem::zeroed());
        match rknn_matmul_create(&mut ctx, &mut info, &mut io) {
            0 => Ok((ctx, io)),
            code => Err(code),
        }
    }
}

/// An i8 context of 2×64×32 in the linked emulator, with A full of 1, B of 2: C is full of 128.
struct Small {
    ctx: u64,
    io: sys::rknn_matmul_io_attr,
    mems: [*mut rknn_tensor_mem; 3],
}

impl Small {
    fn new(mask: i32) -> Self {
        let (ctx, io) = try_create(2, 2, 64, 32).expect("a good shape");
        // SAFETY: live handles throughout.
        unsafe {
            let mems = [io.A.size, io.B.size, io.C.size].map(|size| rknn_create_mem(ctx, size));
            let mut small = Self { ctx, io, mems };
            assert_eq!(rknn_matmul_set_core_mask(ctx, mask), 0);
            for (at, value) in [(0, 1), (1, 2), (2, 0)] {
                small.bytes(at).fill(value);
                assert_eq!(rknn_mem_sync(ctx, mems[at], 1), 0);
                assert_eq!(small.bind(at), 0);
            }
            small
        }
    }

    fn bytes(&mut self, at: usize) -> &mut [u8] {
        // SAFETY: a live memory, mapped for its size.
        unsafe {
            let mem = &*self.mems[at];
            std::slice::from_raw_parts_mut(mem.virt_addr.cast(), mem.size as usize)
        }
    }

    fn bind(&mut self, at: usize) -> i32 {
        let attr = [&mut self.io.A, &mut self.io.B, &mut self.io.C].into_iter().nth(at).expect("three");
        // SAFETY: live handles.
        unsafe { rknn_matmul_set_io_mem(self.ctx, self.mems[at], attr) }
    }

    fn run(&self) -> i32 {
        // SAFETY: any handle will do.
        unsafe { rknn_matmul_run(self.ctx) }
    }

    /// C as the device has it.
    fn c(&mut self) -> Vec<i32> {
        // SAFETY: live handles.
        assert_eq!(unsafe { rknn_mem_sync(self.ctx, self.mems[2], 2) }, 0);
        self.bytes(2).chunks(4).map(|c| i32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }

    /// Calls by the grammar's name; memory calls give 0 or -1, and free what they made.
    fn call(&mut self, name: &str) -> i32 {
        let made = |mem: *mut rknn_tensor_mem| {
            if mem.is_null() {
                return -1;
            }
            // SAFETY: just made.
            unsafe { rknn_destroy_mem(self.ctx, mem) }
        };
        // SAFETY: live handles, valid pointers.
        unsafe {
            match name {
                "create" => match try_create(2, 1, 32, 32) {
                    Ok((ctx, _)) => rknn_matmul_destroy(ctx),
                    Err(code) => code,
                },
                "destroy" => {
                    let (ctx, _) = try_create(2, 1, 32, 32).expect("a good shape");
                    rknn_matmul_destroy(ctx)
                }
                "set_io_mem" => self.bind(0),
                "set_core_mask" => rknn_matmul_set_core_mask(self.ctx, 0),
                "run" => self.run(),
                "create_mem" => made(rknn_create_mem(self.ctx, 64)),
                "create_mem_from_fd" => {
                    let whole = &*self.mems[0];
                    made(rknn_create_mem_from_fd(self.ctx, whole.fd, whole.virt_addr, 8, 8))
                }
                "mem_sync" => rknn_mem_sync(self.ctx, self.mems[0], 1),
                "query" => {
                    let mut version: sys::rknn_sdk_version = std::mem::zeroed();
                    let bytes = std::mem::size_of_val(&version) as u32;
                    rknn_query(self.ctx, 5, (&raw mut version).cast(), bytes)
                }
                other => panic!("no call {other}"),
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: live handles.
        unsafe {
            for mem in self.mems {
                rknn_destroy_mem(self.ctx, mem);
            }
            rknn_matmul_destroy(self.ctx);
        }
    }
}

const CALLS: [&str; 9] = [
    "create",
    "set_io_mem",
    "set_core_mask",
    "run",
    "create_mem",
    "create_mem_from_fd",
    "mem_sync",
    "query",
    "destroy",
];

#[test]
fn every_call_fails_with_every_code_once_and_only_then() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    for name in CALLS {
        for code in -13..=-1 {
            set(&format!("{name}@2:{code}"));
            let memory = name.starts_with("create_mem");
            let want = if memory { -1 } else { code };
            assert_eq!([0; 3].map(|_| small.call(name)), [0, want, 0], "{name} {code}");
        }
        set(&format!("{name}:null"));
        assert_eq!(small.call(name), -1, "{name}");
        for other in CALLS {
            // Those two make contexts and destroy them.
            let both = [name, other].iter().all(|name| ["create", "destroy"].contains(name));
            if other != name && !both {
                assert_eq!(small.call(other), 0, "{other} while {name} fails");
            }
        }
        set("");
        assert_eq!(small.call(name), 0, "{name}");
    }
}

#[test]
fn moments_are_the_nth_from_the_nth_and_every_nth() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    for (text, want) in [
        ("query:-9", [-9; 7]),
        ("query@3:-9", [0, 0, -9, 0, 0, 0, 0]),
        ("query@3+:-9", [0, 0, -9, -9, -9, -9, -9]),
        (" query @ /3 : -9 ; ", [0, 0, -9, 0, 0, -9, 0]),
        ("query@p0:-9", [0; 7]),
        ("query@p1~5:-9", [-9; 7]),
        // The first whose time it is; both count.
        ("query@2:-1; query@/2:-2; run:-3", [0, -1, 0, -2, 0, -2, 0]),
        ("any@2:-1", [0, -1, 0, 0, 0, 0, 0]),
    ] {
        set(text);
        assert_eq!([0; 7].map(|_| small.call("query")), want, "{text}");
    }
}

#[test]
fn chance_is_the_same_for_a_seed_and_about_as_likely_as_asked() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    let mut calls = |seed: u64| {
        set(&format!("query@p0.25~{seed}:-2"));
        (0..400).map(|_| small.call("query")).collect::<Vec<_>>()
    };
    let (one, again, two) = (calls(1), calls(1), calls(2));
    assert_eq!(one, again);
    assert_ne!(one, two);
    for calls in [one, two] {
        let failed = calls.iter().filter(|code| **code == -2).count();
        assert!((60..140).contains(&failed), "{failed} of 400");
    }
    // Without a board of calls: 20000 draws each, within five standard deviations.
    for (p, seed) in [(0.01, 3), (0.5, 0), (0.9, u64::MAX)] {
        let hits = (1..=20_000).filter(|count| Moment::Chance(p, seed).is_now(*count)).count() as f64;
        let spread = (20_000.0 * p * (1.0 - p)).sqrt();
        assert!((hits - 20_000.0 * p).abs() < 5.0 * spread, "{p} {seed}: {hits}");
    }
}

#[test]
fn a_hang_takes_its_time_and_ends_in_a_timeout() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    set("run@1:hang=60; mem_sync:hang=0");
    let begin = Instant::now();
    assert_eq!(small.run(), -2);
    assert!(begin.elapsed() >= Duration::from_millis(60));
    assert_eq!(small.call("mem_sync"), -2);
    set("create_mem:hang=1");
    assert_eq!(small.call("create_mem"), -1);
    set("");
    assert_eq!(small.run(), 0);
    assert_eq!(small.c(), [128; 64]);
}

#[test]
fn a_failing_submit_leaves_c_alone() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    set("run@1:submit");
    assert_eq!(small.run(), -1);
    assert_eq!(small.c(), [0; 64]);
    assert_eq!(small.run(), 0);
    assert_eq!(small.c(), [128; 64]);
}

#[test]
fn address_space_and_descriptors_run_out_and_come_back() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    set("set_io_mem@1:space; create_mem@2:fds; create_mem_from_fd@1:fds");
    assert_eq!([0; 2].map(|_| small.call("set_io_mem")), [-4, 0]);
    assert_eq!([0; 3].map(|_| small.call("create_mem")), [0, -1, 0]);
    assert_eq!([0; 2].map(|_| small.call("create_mem_from_fd")), [-1, 0]);
    // create_mem2 is one of them.
    set("create_mem@1:fds");
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { rknn_create_mem2(small.ctx, 64, 1) }, null_mut());
}

#[test]
fn a_lost_device_comes_back_after_so_many_calls_of_any_kind() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    set("run@2:lost=5");
    assert_eq!([small.run(), small.run()], [0, -3]);
    assert_eq!(["query", "mem_sync", "create", "create_mem"].map(|call| small.call(call)), [-3, -3, -3, -1]);
    assert_eq!(CALLS.map(|call| small.call(call)), [0; 9]);
    assert_eq!(small.c(), [128; 64]);
    // From the nth call of all; by default for one.
    set("any@3:lost=2");
    assert_eq!([0; 6].map(|_| small.call("query")), [0, 0, -3, -3, 0, 0]);
    set("any@2:lost");
    assert_eq!([0; 4].map(|_| small.call("query")), [0, -3, 0, 0]);
}

#[test]
fn a_core_gives_wrong_results_and_the_others_right_ones() {
    let _turn = Faults::begin();
    let (mut one, mut two) = (Small::new(2), Small::new(4));
    set("run@2:wrong=1");
    let results = |small: &mut Small| {
        assert_eq!(small.run(), 0);
        small.c().iter().all(|c| *c == 128)
    };
    assert_eq!([(); 3].map(|()| results(&mut two)), [true; 3]);
    assert_eq!([(); 3].map(|()| results(&mut one)), [true, false, true], "runs on core 1 are counted");
    set("run:wrong=1");
    assert_eq!([results(&mut one), results(&mut two), results(&mut one)], [false, true, false]);
    set("");
    assert!(results(&mut one));
}

#[test]
fn a_core_or_a_type_that_is_switched_off_refuses() {
    let _turn = Faults::begin();
    let small = Small::new(0);
    // SAFETY: takes no pointer.
    let mask = |mask| unsafe { rknn_matmul_set_core_mask(small.ctx, mask) };
    set("core=1; core=2");
    assert_eq!([0, 1, 2, 4].map(mask), [0, 0, -5, -5]);
    set("i8=off; i4=-1; type3=-6");
    let create = |kind| {
        try_create(kind, 1, 64, 64).map(|(ctx, _)| {
            // SAFETY: takes no pointer.
            unsafe { rknn_matmul_destroy(ctx) };
        })
    };
    assert_eq!([2, 10, 3, 1].map(create), [Err(-5), Err(-1), Err(-6), Ok(())]);
    set("f16=-13");
    assert_eq!([1, 2].map(create), [Err(-13), Ok(())]);
    set("");
    assert_eq!([1, 2, 4].map(mask), [0; 3]);
    assert_eq!([1, 2, 10].map(create), [Ok(()); 3]);
}

#[test]
fn a_domain_serves_fewer_addresses_if_asked_to() {
    let _turn = Faults::begin();
    let library_has_room = |mb: u32| {
        let small = Small::new(0);
        // SAFETY: a live context; a zeroed plain struct; the memory is destroyed once.
        unsafe {
            let mut attr: rknn_sys::sys::rknn_matmul_tensor_attr = std::mem::zeroed();
            attr.name[0] = b'A' as _;
            let mem = rknn_create_mem2(small.ctx, u64::from(mb) * 1_000_000, 1);
            let code = rknn_matmul_set_io_mem(small.ctx, mem, &mut attr);
            assert_eq!(rknn_destroy_mem(small.ctx, mem), 0);
            code
        }
    };
    assert_eq!([5, 20].map(library_has_room), [0, 0]);
    // A context has its part.
    set("domain=5");
    assert_eq!([4, 5, 20].map(library_has_room), [0, -4, -4]);
    set("");
    assert_eq!([5, 20].map(library_has_room), [0, 0]);
}

#[test]
fn texts_that_do_not_parse_change_nothing_and_say_what_is_wrong() {
    let _turn = Faults::begin();
    let mut small = Small::new(0);
    set("query:-6");
    for text in [
        "query",
        "query:",
        "query:0",
        "query:-14",
        "query:1",
        "query@0:-1",
        "query@+:-1",
        "query@/0:-1",
        "query@p2:-1",
        "query@p-0.1:-1",
        "query@pNaN:-1",
        "query@p0.5~x:-1",
        "nothing:-1",
        ":-1",
        "query:submit",
        "run:space",
        "run:fds",
        "query:wrong=1",
        "run:wrong",
        "run:wrong=x",
        "any:lost=0",
        "any:lost=x",
        "run:hang=x",
        "run:submit=3",
        "core",
        "core=x",
        "domain",
        "domain=0",
        "domain=x",
        "domain=99999999999999",
        "i8",
        "i8=0",
        "i8=on",
        "i7=off",
        "type=off",
        "typex=-1",
        "view",
        "views=1",
        "query:-1, run:-1",
    ] {
        assert_eq!(try_set(text), -5, "{text}");
        let why = parse(text).expect_err(text);
        assert!(why.contains('"') && !why.contains('\n'), "{why}");
        assert_eq!(small.call("query"), -6, "{text}");
    }
    // SAFETY: a C string, of bytes that are not UTF-8.
    assert_eq!(unsafe { rknpu_emulator_set_faults(c"\xff".as_ptr()) }, -5);
    assert_eq!(parse(""), parse(" ; ;"));
}

#[test]
fn child_makes_contexts() {
    if !is_child() {
        return;
    }
    let made = [0; 3].map(|_| try_create(2, 1, 32, 32).map(|_| ()));
    println!("made {made:?}");
    set("");
    println!("then {:?}", try_create(2, 1, 32, 32).map(|_| ()));
}

#[test]
fn the_environment_sets_faults_and_a_mistake_in_it_refuses_every_context() {
    let (_, text) = in_child_on_rk3588("child_makes_contexts", &[("RKNPU_EMU_FAULTS", "create@2:-4")]);
    assert!(text.contains("made [Ok(()), Err(-4), Ok(())]") && text.contains("then Ok(())"), "{text}");
    let (_, text) = in_child_on_rk3588("child_makes_contexts", &[("RKNPU_EMU_FAULTS", "create@2:-4; oops")]);
    assert!(text.contains("made [Err(-3), Err(-3), Err(-3)]") && text.contains("then Ok(())"), "{text}");
    assert_eq!(text.matches("npu-emulator: RKNPU_EMU_FAULTS: \"oops\": neither").count(), 1, "{text}");
}

#[test]
fn child_runs_out_of_descriptors() {
    if is_child() {
        assert_eq!(Small::new(0).call("create_mem"), -1);
    }
}

#[test]
fn running_out_of_descriptors_is_said_in_the_vendors_words() {
    let (passed, text) =
        in_child_on_rk3588("child_runs_out_of_descriptors", &[("RKNPU_EMU_FAULTS", "create_mem@4:fds")]);
    assert!(passed, "{text}");
    assert!(text.contains("failed to convert handle(") && text.contains("errno 24"), "{text}");
}
