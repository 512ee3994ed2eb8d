//! Memory: two sides that only a sync joins, views, descriptors, the I/O address space.

mod common;

use std::sync::Arc;

use common::raw::{self, bind, filled, info};
use common::{on_chip, product, spec, Random, Rig, CHILD};
use npu_emulator::exports::*;
use npu_emulator::memory::DOMAINS;
use rknn_sys::sys::{self, rknn_tensor_mem};
use rknn_sys::{Arena, Context, Error, Layout, MatmulSpec, MatmulType, Operand};

const TO: i32 = 1;
const FROM: i32 = 2;

/// A context handle of the emulator linked into this test.
fn handle(domain: i32) -> u64 {
    // SAFETY: zero is valid for plain structs; three valid pointers.
    unsafe {
        let mut info: sys::rknn_matmul_info = std::mem::zeroed();
        (info.M, info.K, info.N, info.type_, info.iommu_domain_id) = (1, 32, 32, 2, domain);
        (info.B_layout, info.AC_layout) = (1, 1);
        let (mut ctx, mut io) = (0, std::mem::zeroed());
        assert_eq!(rknn_matmul_create(&mut ctx, &mut info, &mut io), 0);
        ctx
    }
}

/// The host's byte `at` of a memory.
fn byte(mem: *mut rknn_tensor_mem, at: usize) -> *mut u8 {
    // SAFETY: live memories of these tests, indices within them.
    unsafe { (*mem).virt_addr.cast::<u8>().add((*mem).offset as usize + at) }
}

#[test]
fn a_run_sees_only_what_was_synced_and_shows_only_what_is_synced() {
    let library = common::library();
    let (k, n) = (64, 32);
    let mut random = Random(1);
    let (a, b) = (random.matrix(MatmulType::I8, k), random.matrix(MatmulType::I8, k * n));
    let other = random.matrix(MatmulType::I8, k);
    let mut rig = Rig::new(&library, spec(MatmulType::I8, 1, k, n));
    rig.write(&a, &b);
    let want = product(MatmulType::I8, 1, k, n, &a, &b);
    assert_eq!(rig.run(), want);

    // New A, not synced: the same result.
    rig.write(&other, &b);
    rig.context.run().expect("run");
    rig.c.sync_from_device().expect("sync");
    assert_eq!(rig.read(), want);

    // Synced, but C is not read back: still the old one, whatever the host wrote over it.
    rig.a.sync_to_device().expect("sync");
    rig.c.as_mut_slice().fill(0x11);
    rig.context.run().expect("run");
    assert!(rig.c.as_slice().iter().all(|byte| *byte == 0x11));
    rig.c.sync_from_device().expect("sync");
    assert_eq!(rig.read(), product(MatmulType::I8, 1, k, n, &other, &b));
}

#[test]
fn a_row_major_b_is_a_snapshot_of_its_binding_and_a_native_one_is_not() {
    let library = common::library();
    let (k, n) = (64, 64);
    for (b_layout, follows) in [(Layout::Norm, false), (Layout::Native, true)] {
        let mut random = Random(2);
        let a = random.matrix(MatmulType::I8, k);
        let (b, later) = (random.matrix(MatmulType::I8, k * n), random.matrix(MatmulType::I8, k * n));
        let mut rig = Rig::new(&library, MatmulSpec { b_layout, ..spec(MatmulType::I8, 1, k, n) });
        rig.write(&a, &b);
        rig.run();
        rig.write(&a, &later);
        let seen = if follows { &later } else { &b };
        assert_eq!(rig.run(), product(MatmulType::I8, 1, k, n, &a, seen), "{b_layout:?}");
    }
}

#[test]
fn views_bind_and_sync_their_own_range_and_outlive_the_whole() {
    let library = common::library();
    let shape = spec(MatmulType::I8, 2, 64, 32);
    let keeper = Arc::new(Context::create(&library, shape).expect("create"));
    let mut context = Context::create(&library, shape).expect("create");
    // Odd gaps: device memory need not be aligned for the emulator.
    let whole = keeper.allocate(1 + 128 + 3 + 2048 + 5 + 256).expect("memory");
    let mut views = whole.split(&[1..129, 132..2180, 2185..2441]).expect("views").into_iter();
    let [mut a, mut b, mut c] = [(); 3].map(|()| views.next().expect("three"));
    a.as_mut_slice().fill(3);
    b.as_mut_slice().fill(0xfe);
    c.as_mut_slice().fill(0x55);
    a.sync_to_device().expect("sync");
    b.sync_to_device().expect("sync");
    for (operand, memory) in [(Operand::A, &a), (Operand::B, &b), (Operand::C, &c)] {
        context.bind(operand, &memory.binding()).expect("bind");
    }
    context.run().expect("run");
    a.sync_from_device().expect("sync");
    assert!(c.as_slice().iter().all(|byte| *byte == 0x55), "a sync of A does not touch C");
    c.sync_from_device().expect("sync");
    assert!(c.as_slice().chunks(4).all(|c| c == (64i32 * 3 * -2).to_le_bytes()));
}

/// Two pieces of an arena of which one follows the other are one operand.
#[test]
fn a_window_goes_on_in_the_piece_that_follows() {
    let library = common::library();
    let shape = spec(MatmulType::I8, 1, 32, 64);
    let keeper = Arc::new(Context::create(&library, shape).expect("create"));
    let mut context = Context::create(&library, shape).expect("create");
    let mut arena = Arena::allocate(&keeper, 4096 + 3 * 1024).expect("an arena");
    let mut piece = |align| arena.take(1024, align).expect("no refusal").expect("room");
    let (mut one, mut two, far) = (piece(1), piece(1), piece(4096));
    assert_eq!(
        [one.is_followed_by(&two), two.is_followed_by(&one), two.is_followed_by(&far)],
        [true, false, false]
    );
    one.as_mut_slice().fill(1);
    two.as_mut_slice().fill(2);
    for piece in [&one, &two] {
        piece.sync_to_device().expect("sync");
    }
    let (mut a, mut c) = (keeper.allocate(32).expect("A"), keeper.allocate(64 * 4).expect("C"));
    a.as_mut_slice().fill(3);
    a.sync_to_device().expect("sync");
    // Columns 0 to 63 of both, and, of no more than the first has, as any window.
    let b = one.window_onwards(&(0..2048)).expect("a window");
    for (operand, binding) in
        [(Operand::A, a.binding()), (Operand::B, b.binding()), (Operand::C, c.binding())]
    {
        context.bind(operand, &binding).expect("bind");
    }
    context.run().expect("run");
    c.sync_from_device().expect("sync");
    let sums: Vec<i32> = c.as_slice().chunks(4).map(|c| i32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(sums, [[96; 32], [192; 32]].concat());
    assert!(one.window_onwards(&(512..1024)).is_ok());
    assert!(one.window_onwards(&(0..1 << 20)).is_err() && one.window_onwards(&(2048..2048)).is_err());
    assert!(a.window_onwards(&(0..64)).is_err(), "nothing follows what is no piece");
}

#[test]
fn a_sync_of_a_view_moves_its_range_only() {
    let ctx = handle(0);
    // SAFETY: live handles; indices within the memories.
    unsafe {
        let whole = rknn_create_mem(ctx, 8192);
        let view = rknn_create_mem_from_fd(ctx, (*whole).fd, (*whole).virt_addr, 100, 1000);
        std::slice::from_raw_parts_mut(byte(whole, 0), 8192).fill(7);
        assert_eq!(rknn_mem_sync(ctx, view, TO), 0);
        std::slice::from_raw_parts_mut(byte(whole, 0), 8192).fill(9);
        // The whole comes back: 7 where the view was synced, 0 where nothing ever was.
        assert_eq!(rknn_mem_sync(ctx, whole, FROM), 0);
        for at in [0, 999, 1000, 1099, 1100, 8191] {
            assert_eq!(*byte(whole, at), if (1000..1100).contains(&at) { 7 } else { 0 }, "byte {at}");
        }
        // A view survives the whole, also for its syncs, and through a duplicate of the descriptor.
        let fd = libc::dup((*whole).fd);
        assert_eq!(rknn_destroy_mem(ctx, whole), 0);
        assert_eq!(rknn_mem_sync(ctx, view, TO), 0);
        let again = rknn_create_mem_from_fd(ctx, fd, (*view).virt_addr, 8192, 0);
        assert!(!again.is_null());
        assert_eq!(rknn_mem_sync(ctx, again, FROM), 0);
        for mem in [view, again] {
            assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        }
        // Nothing of the allocation is left: its file is no longer the emulator's.
        assert!(rknn_create_mem_from_fd(ctx, fd, 4096 as *mut _, 1, 0).is_null());
        libc::close(fd);
        rknn_matmul_destroy(ctx);
    }
}

#[test]
fn memory_that_is_not_cached_has_one_side() {
    let ctx = handle(0);
    // SAFETY: live handles; indices within the memory.
    unsafe {
        let mem = rknn_create_mem2(ctx, 64, 2);
        byte(mem, 3).write(42);
        assert_eq!(rknn_mem_sync(ctx, mem, FROM), 0);
        assert_eq!(*byte(mem, 3), 42, "nothing stale came back");
        assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        // Without a context, no handle is needed; with one, a bad one is refused.
        let mem = rknn_create_mem2(0, 64, 0x20000);
        assert!(!mem.is_null());
        assert_eq!(rknn_mem_sync(0, mem, TO), 0);
        assert_eq!(rknn_mem_sync(12345, mem, TO), -7);
        assert_eq!(rknn_destroy_mem(0, mem), 0);
        rknn_matmul_destroy(ctx);
    }
}

#[test]
fn a_run_refuses_a_bound_memory_that_was_destroyed() {
    let ctx = handle(0);
    let operands = [(b'A', 32u32, -8), (b'B', 1024, -8), (b'C', 128, -9)];
    // SAFETY: live handles, zeroed plain structs.
    unsafe {
        let bound = operands.map(|(name, size, _)| {
            let mem = rknn_create_mem(ctx, size);
            assert_eq!(bind(ctx, mem, &[name]), 0);
            mem
        });
        assert_eq!(rknn_matmul_run(ctx), 0);
        for (mem, (name, size, code)) in bound.into_iter().zip(operands) {
            assert_eq!(rknn_destroy_mem(ctx, mem), 0);
            assert_eq!(rknn_matmul_run(ctx), code);
            // Another memory in its place, and all is well. The old one is gone for every call.
            let other = rknn_create_mem(ctx, size);
            assert_eq!(bind(ctx, other, &[name]), 0);
            assert_eq!(rknn_matmul_run(ctx), 0);
            assert_eq!(rknn_destroy_mem(ctx, mem), -5);
            assert_eq!(rknn_mem_sync(ctx, mem, TO), -5);
            assert_eq!(bind(ctx, mem, &[name]), -5);
        }
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn a_domain_holds_3_9_gb_counts_an_allocation_once_and_gives_it_back() {
    let last = DOMAINS as i32 - 1;
    let (ctx, elsewhere) = (handle(last), handle(last - 1));
    // SAFETY: live handles, a zeroed plain struct. The pages are never touched.
    unsafe {
        let mut attr: sys::rknn_matmul_tensor_attr = std::mem::zeroed();
        attr.name[0] = b'A' as _;
        let big = rknn_create_mem(ctx, 3 << 30);
        let view = rknn_create_mem_from_fd(ctx, (*big).fd, (*big).virt_addr, 4096, 4096);
        // Less the context's own part.
        let rest = 3_900_000_000 - (3 << 30) - 400_000;
        let (fits, over) = (rknn_create_mem2(ctx, rest, 1), rknn_create_mem2(ctx, 4096, 1));
        for mem in [big, view, big, fits] {
            assert_eq!(rknn_matmul_set_io_mem(ctx, mem, &mut attr), 0);
        }
        assert_eq!(rknn_matmul_set_io_mem(ctx, over, &mut attr), -4);
        let other = rknn_create_mem2(elsewhere, 4096, 1);
        assert_eq!(rknn_matmul_set_io_mem(elsewhere, other, &mut attr), 0, "another domain has room");
        rknn_destroy_mem(elsewhere, other);
        // The big one goes with its last memory, since no context has it bound any more.
        assert_eq!(rknn_destroy_mem(ctx, big), 0);
        assert_eq!(rknn_matmul_set_io_mem(ctx, over, &mut attr), -4, "the view holds all of it");
        assert_eq!(rknn_destroy_mem(ctx, view), 0);
        assert_eq!(rknn_matmul_set_io_mem(ctx, over, &mut attr), 0);
        for mem in [fits, over] {
            rknn_destroy_mem(ctx, mem);
        }
        rknn_matmul_destroy(ctx);
        rknn_matmul_destroy(elsewhere);
    }
}

#[test]
fn contexts_use_up_their_domain_until_they_are_destroyed() {
    let domain = 9;
    let try_create = || {
        let mut info = info(2, 1, 32, 32);
        info.iommu_domain_id = domain;
        raw::try_create(info).map(|(ctx, _)| ctx)
    };
    let mut made = Vec::new();
    let code = loop {
        match try_create() {
            Ok(ctx) => made.push(ctx),
            Err(code) => break code,
        }
    };
    assert_eq!((code, made.len()), (-4, 3_900_000_000 / 400_000), "the facts: 0.3 to 0.5 MB each");
    let destroy = |ctx| {
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { rknn_matmul_destroy(ctx) }, 0);
    };
    // Full for memories too, not for another domain; and what a context had is another's when it is gone.
    let mem = filled(made[0], &[0; 32]);
    assert_eq!(bind(made[0], mem, b"A"), -4);
    destroy(handle(domain - 1));
    destroy(made.pop().expect("many"));
    assert_eq!(bind(made[0], mem, b"A"), 0);
    assert_eq!(try_create(), Err(-4), "the memory is in its place");
    // SAFETY: a live memory.
    assert_eq!(unsafe { rknn_destroy_mem(made[0], mem) }, 0);
    destroy(made.swap_remove(0));
    made.push(try_create().expect("room for one"));
    made.push(try_create().expect("and for another"));
    assert_eq!(try_create(), Err(-4));
    made.into_iter().for_each(destroy);
}

#[test]
fn a_memory_is_bound_in_its_own_domain_only() {
    let (one, two) = (handle(1), handle(2));
    // SAFETY: live handles.
    unsafe {
        let mem = rknn_create_mem(one, 32);
        assert_eq!(bind(two, mem, b"A"), -5);
        assert_eq!(bind(one, mem, b"A"), 0);
        // The file can be given to another domain, and memory without a context goes to any.
        let view = rknn_create_mem_from_fd(two, (*mem).fd, (*mem).virt_addr, 32, 0);
        assert_eq!(bind(one, view, b"A"), -5);
        assert_eq!(bind(two, view, b"A"), 0);
        let free = rknn_create_mem2(0, 32, 0x20000);
        assert_eq!([bind(one, free, b"A"), bind(two, free, b"A")], [0, 0]);
        for mem in [mem, view] {
            assert_eq!(rknn_destroy_mem(one, mem), 0);
        }
        assert_eq!(rknn_destroy_mem(0, free), 0);
        assert_eq!([rknn_matmul_destroy(one), rknn_matmul_destroy(two)], [0, 0]);
    }
}

/// Lowers the limit of its process, hence only does so in the child that the next test starts.
#[test]
fn child_uses_up_its_descriptors() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let library = common::library();
    let keeper = Arc::new(Context::create(&library, spec(MatmulType::I8, 1, 32, 32)).expect("create"));
    let limit = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: a valid struct; lowering a limit is always allowed.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0);
    let mut kept = Vec::new();
    let error = loop {
        match keeper.allocate(4096) {
            Ok(memory) => kept.push(memory),
            Err(error) => break error,
        }
        assert!(kept.len() < 64, "one descriptor an allocation");
    };
    assert!(matches!(error, Error::NoMemory { .. }), "{error}");
    kept.pop();
    keeper.allocate(4096).expect("a freed descriptor serves again");
}

#[test]
fn running_out_of_descriptors_is_said_and_survived() {
    let (passed, text) = on_chip("rk3588", "child_uses_up_its_descriptors");
    assert!(passed, "{text}");
    assert!(text.contains("failed to convert handle(") && text.contains("errno 24"), "{text}");
}
