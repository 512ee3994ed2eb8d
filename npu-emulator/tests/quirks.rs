//! Quirks of boards, in the library that programs load: each changes the results that it should, and no others.
//!
//! Quirks are the library's: the tests take turns.

mod common;

use std::ffi::CString;
use std::sync::Arc;

use common::{product, Random, Rig};
use parking_lot::Mutex;
use rknn_sys::{Context, Layout, Library, MatmulSpec, MatmulType, Memory, Operand};

static TURN: Mutex<()> = Mutex::new(());

/// A library whose faults this sets: not the linked emulator, but the one that programs load.
fn set_in(library: &std::path::Path, text: &str) {
    let text = CString::new(text).expect("no zero");
    type Set = unsafe extern "C" fn(*const std::ffi::c_char) -> i32;
    // SAFETY: the emulator's own library and symbol, of this type.
    unsafe {
        let path = CString::new(library.as_os_str().as_encoded_bytes()).expect("no zero");
        let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW);
        assert!(!handle.is_null());
        let symbol = libc::dlsym(handle, c"rknpu_emulator_set_faults".as_ptr());
        assert!(!symbol.is_null());
        let set = std::mem::transmute::<*mut std::ffi::c_void, Set>(symbol);
        assert_eq!(set(text.as_ptr()), 0);
    }
}

/// Whether a random product of that type and layout comes out right.
fn is_right(library: &Library, spec: MatmulSpec) -> bool {
    let MatmulSpec { dtype, rows, k, n, .. } = spec;
    let mut random = Random(9);
    let (a, b) = (random.matrix(dtype, rows * k), random.matrix(dtype, k * n));
    let mut rig = Rig::new(library, spec);
    rig.write(&a, &b);
    let want = product(dtype, rows, k, n, &a, &b);
    rig.run().iter().zip(&want).all(|(got, want)| (got - want).abs() < 0.01)
}

#[test]
fn layouts_that_are_not_as_believed_give_wrong_results_where_they_are_used() {
    let _turn = TURN.lock();
    let library = common::library();
    let path = common::library_path();
    for dtype in [MatmulType::I8, MatmulType::I4, MatmulType::F16] {
        let spec = |rows, b_layout, ac_layout| MatmulSpec {
            dtype,
            rows,
            k: 128,
            n: 64,
            b_layout,
            ac_layout,
            domain: 0,
        };
        let (norm, native) = (Layout::Norm, Layout::Native);
        let cases =
            [spec(3, norm, norm), spec(3, native, norm), spec(3, norm, native), spec(1, norm, native)];
        let right = || cases.map(|spec| is_right(&library, spec));
        assert_eq!(right(), [true; 4]);
        set_in(&path, "native-b");
        assert_eq!(right(), [true, false, true, true], "{dtype:?}");
        set_in(&path, "native-ac");
        assert_eq!(right(), [true, true, false, true], "{dtype:?}");
        set_in(&path, "");
        assert_eq!(right(), [true; 4]);
    }
}

#[test]
fn a_transposed_block_is_the_transpose() {
    let _turn = TURN.lock();
    let library = common::library();
    let path = common::library_path();
    let (k, n) = (32, 32);
    let mut random = Random(4);
    let (a, b) = (random.matrix(MatmulType::I8, k), random.matrix(MatmulType::I8, k * n));
    // A block of i8 is square on this chip, so that all of B is.
    let transposed: Vec<u16> = (0..k * n).map(|at| b[at % n * k + at / n]).collect();
    let mut rig = Rig::new(&library, common::spec(MatmulType::I8, 1, k, n));
    rig.write(&a, &b);
    set_in(&path, "native-b");
    let got = rig.run();
    set_in(&path, "");
    assert_eq!(got, product(MatmulType::I8, 1, k, n, &a, &transposed));
    assert_eq!(rig.run(), product(MatmulType::I8, 1, k, n, &a, &b));
}

#[test]
fn views_are_ignored_beside_other_contexts_on_other_cores_than_the_first() {
    let _turn = TURN.lock();
    let library = common::library();
    let path = common::library_path();
    let spec = common::spec(MatmulType::I8, 1, 64, 32);
    let mut context = Context::create(&library, spec).expect("create");
    let keeper = Arc::new(Context::create(&library, spec).expect("create"));
    let whole = keeper.allocate(4096 + 64 + 128).expect("memory");
    let mut parts = whole.split(&[0..2048, 2048..4096, 4096..4160, 4160..4288]).expect("views").into_iter();
    let [mut first, mut second, mut a, mut c] = [(); 4].map(|()| parts.next().expect("four"));
    for (part, value) in [(&mut first, 1), (&mut second, 3), (&mut a, 1)] {
        part.as_mut_slice().fill(value);
        part.sync_to_device().expect("sync");
    }
    context.bind(Operand::A, &a.binding()).expect("bind");
    context.bind(Operand::C, &c.binding()).expect("bind");
    let mut result = |context: &mut Context, b: &Memory, core: usize| {
        context.bind(Operand::B, &b.binding()).expect("bind");
        context.set_core(core).expect("a core");
        context.run().expect("run");
        c.sync_from_device().expect("sync");
        let c = c.as_slice();
        i32::from_le_bytes([c[0], c[1], c[2], c[3]])
    };
    assert_eq!(result(&mut context, &second, 1), 192);
    set_in(&path, "views");
    assert_eq!(result(&mut context, &second, 1), 64, "the first view's bytes");
    assert_eq!(result(&mut context, &second, 0), 192, "core 0 is not affected");
    assert_eq!(result(&mut context, &first, 2), 64, "nor a view without an offset");
    set_in(&path, "");
    assert_eq!(result(&mut context, &second, 2), 192);
}
