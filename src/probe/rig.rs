//! One context with memories of its own, and a product through it.

use std::sync::Arc;

use rknn_sys::{Binding, Context, Error, Layout, Library, MatmulSpec, MatmulType, Memory, Operand};

use super::layout::{Believed, Place};
use super::matrix::{compare, Matrix, Mismatch};
use crate::chip::Chip;

/// Which layouts a context uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layouts {
    /// B is native.
    pub native_b: bool,
    /// A and C are native.
    pub native_ac: bool,
}

impl Layouts {
    /// Everything native.
    pub const NATIVE: Self = Self { native_b: true, native_ac: true };
    /// Everything row-major.
    pub const NORM: Self = Self { native_b: false, native_ac: false };

    /// The spec of an `m`×`k`×`n` product in this mode.
    pub fn spec(self, dtype: MatmulType, m: usize, k: usize, n: usize) -> MatmulSpec {
        let layout = |native| if native { Layout::Native } else { Layout::Norm };
        MatmulSpec {
            dtype,
            rows: m,
            k,
            n,
            b_layout: layout(self.native_b),
            ac_layout: layout(self.native_ac),
            domain: 0,
        }
    }

    /// Where A, B and C lie in this mode.
    pub fn places(self, believed: &Believed) -> [Place; 3] {
        let pick = |native, place| if native { place } else { Place::RowMajor };
        [pick(self.native_ac, believed.a), pick(self.native_b, believed.b), pick(self.native_ac, believed.c)]
    }
}

/// A product that went wrong: a refused call, or wrong numbers.
#[derive(Debug)]
pub enum Trouble {
    /// The library refused.
    Refused(Error),
    /// The numbers are wrong.
    Wrong(Mismatch),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "{error}"),
            Self::Wrong(mismatch) => write!(f, "{mismatch}"),
        }
    }
}

/// A context, perhaps pinned, with an A and a C bound. B is the caller's, or made by [`Self::put_b`].
pub struct Rig {
    /// The context.
    pub context: Context,
    /// A's memory.
    pub a: Memory,
    /// C's memory.
    pub c: Memory,
    keeper: Arc<Context>,
    spec: MatmulSpec,
}

/// A context that does nothing but own memories of domain 0.
///
/// # Errors
/// The library's refusal.
pub fn keeper(library: &Library, chip: &Chip) -> Result<Arc<Context>, Error> {
    let create = |dtype| {
        // Aligned for every type on every chip.
        let align = |believed: Believed| (believed.k_align * 4, believed.n_align * 4);
        let (k, n) = Believed::of(chip, dtype).map_or((128, 128), align);
        Context::create(library, Layouts::NORM.spec(dtype, 1, k, n)).map(Arc::new)
    };
    // A library that lacks one of the types may still have the other.
    create(MatmulType::I8).or_else(|error| create(MatmulType::F16).map_err(|_| error))
}

impl Rig {
    /// Makes the context, on `core` if one is named, and its A and C.
    ///
    /// # Errors
    /// The first call that was refused.
    pub fn new(
        library: &Library,
        keeper: &Arc<Context>,
        spec: MatmulSpec,
        core: Option<usize>,
    ) -> Result<Self, Error> {
        let mut context = Context::create(library, spec)?;
        if let Some(core) = core {
            context.set_core(core)?;
        }
        // Not the library's word alone: what lies must not make us write past the end.
        let a = context.operand_bytes(Operand::A).max(spec.dtype.a().bytes(spec.rows * spec.k));
        let c = context.operand_bytes(Operand::C).max(spec.dtype.c().bytes(spec.rows * spec.n));
        let (a, c) = (keeper.allocate(a)?, keeper.allocate(c)?);
        context.bind(Operand::A, &a.binding())?;
        context.bind(Operand::C, &c.binding())?;
        Ok(Self { context, a, c, keeper: keeper.clone(), spec })
    }

    /// M, K and N.
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.spec.rows, self.spec.k, self.spec.n)
    }

    /// Bytes that a memory for B must have.
    pub fn b_bytes(&self) -> usize {
        self.context.operand_bytes(Operand::B).max(self.spec.dtype.b().bytes(self.spec.k * self.spec.n))
    }

    /// Writes A by `place` and syncs it.
    ///
    /// # Errors
    /// A refused sync.
    pub fn put_a(&mut self, a: &Matrix, place: Place) -> Result<(), Error> {
        a.store(self.spec.dtype.a(), place, self.a.as_mut_slice());
        self.a.sync_to_device()
    }

    /// A new memory with B by `place`, synced and bound.
    ///
    /// # Errors
    /// The first call that was refused.
    pub fn put_b(&mut self, b: &Matrix, place: Place) -> Result<Memory, Error> {
        let mut memory = self.keeper.allocate(self.b_bytes())?;
        b.store(self.spec.dtype.b(), place, memory.as_mut_slice());
        memory.sync_to_device()?;
        self.context.bind(Operand::B, &memory.binding())?;
        Ok(memory)
    }

    /// Binds a B that lies ready.
    ///
    /// # Errors
    /// The library's refusal.
    pub fn bind_b(&mut self, b: &Binding) -> Result<(), Error> {
        self.context.bind(Operand::B, b)
    }

    /// Runs and brings C to the host, which first forgets what it held.
    ///
    /// # Errors
    /// The first call that was refused.
    pub fn run(&mut self) -> Result<(), Error> {
        // A run that writes nothing must not pass on what an earlier one left.
        self.c.as_mut_slice().fill(0x5a);
        self.c.sync_to_device()?;
        self.context.run()?;
        self.c.sync_from_device()
    }

    /// Compares C, which lies by `place`, with the exact sums.
    ///
    /// # Errors
    /// How it differs.
    pub fn compare(&self, sums: &[i64], place: Place) -> Result<(), Trouble> {
        compare(self.spec.dtype, sums, self.spec.rows, place, self.c.as_slice()).map_err(Trouble::Wrong)
    }

    /// The whole way of one product: A and B into their places, the run, and the comparison of C.
    ///
    /// # Errors
    /// A refused call or wrong numbers.
    pub fn product(&mut self, a: &Matrix, b: &Matrix, places: [Place; 3]) -> Result<(), Trouble> {
        self.put_a(a, places[0])?;
        let _b = self.put_b(b, places[1])?;
        self.run()?;
        self.compare(&a.times(b), places[2])
    }
}
