//! The grammar of faults, told in [`super`], as a parser.

use super::quirks::Quirks;

/// A group of the vendor's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// `rknn_matmul_create` and `rknn_matmul_create_dynamic_shape`.
    Create,
    /// `rknn_matmul_set_io_mem`.
    SetIoMem,
    /// `rknn_matmul_set_core_mask`.
    SetCoreMask,
    /// `rknn_matmul_run`.
    Run,
    /// `rknn_create_mem` and `rknn_create_mem2`.
    CreateMem,
    /// `rknn_create_mem_from_fd`.
    CreateMemFromFd,
    /// `rknn_mem_sync`.
    MemSync,
    /// `rknn_query`.
    Query,
    /// `rknn_matmul_destroy`.
    Destroy,
    /// Every call of the library.
    Any,
}

/// Names in the grammar, and the C names (those of `Any` are all).
const CALLS: [(&str, Call, &[&str]); 10] = [
    ("create", Call::Create, &["rknn_matmul_create", "rknn_matmul_create_dynamic_shape"]),
    ("set_io_mem", Call::SetIoMem, &["rknn_matmul_set_io_mem"]),
    ("set_core_mask", Call::SetCoreMask, &["rknn_matmul_set_core_mask"]),
    ("run", Call::Run, &["rknn_matmul_run"]),
    ("create_mem", Call::CreateMem, &["rknn_create_mem", "rknn_create_mem2"]),
    ("create_mem_from_fd", Call::CreateMemFromFd, &["rknn_create_mem_from_fd"]),
    ("mem_sync", Call::MemSync, &["rknn_mem_sync"]),
    ("query", Call::Query, &["rknn_query"]),
    ("destroy", Call::Destroy, &["rknn_matmul_destroy"]),
    ("any", Call::Any, &[]),
];

impl Call {
    /// Whether the C function of that name is one of them.
    pub fn covers(self, c_name: &str) -> bool {
        self == Self::Any || CALLS.iter().any(|(_, call, names)| *call == self && names.contains(&c_name))
    }
}

/// Which of the matching calls, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Moment {
    /// The nth.
    At(u64),
    /// The nth and all later ones.
    From(u64),
    /// Every nth.
    Every(u64),
    /// Each with a probability, by a seed.
    Chance(f64, u64),
}

impl Moment {
    /// Whether the `count`th call is one. The same seed and count always give the same answer.
    pub fn is_now(self, count: u64) -> bool {
        match self {
            Self::At(n) => count == n,
            Self::From(n) => count >= n,
            Self::Every(n) => count % n == 0,
            Self::Chance(p, seed) => unit(seed.wrapping_add(count.wrapping_mul(0x9e37_79b9_7f4a_7c15))) < p,
        }
    }
}

/// A number in 0..1 that looks random: 53 bits of a finalising mix, in which each bit depends on every bit of `x`.
fn unit(mut x: u64) -> f64 {
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        x = (x ^ (x >> 30)).wrapping_mul(factor);
    }
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The call does nothing and gives this code; null where it gives a memory.
    Code(i32),
    /// The call sleeps that many ms, does nothing and gives -2.
    Hang(u64),
    /// The run is not taken: -1, and C is as it was.
    Submit,
    /// No I/O address space: -4.
    Space,
    /// No file descriptors: null.
    Descriptors,
    /// The next so many calls of any kind, this one included, give -3.
    Lost(u64),
    /// The run succeeds, C is wrong; counted and done on this core only.
    Wrong(usize),
}

/// One fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fault {
    /// Where.
    pub call: Call,
    /// When.
    pub moment: Moment,
    /// What.
    pub what: What,
}

/// Faults and quirks of a text.
///
/// # Errors
/// The item that is none, and what it could be.
pub fn parse(text: &str) -> Result<(Vec<Fault>, Quirks), String> {
    let (mut faults, mut quirks) = (Vec::new(), Quirks::default());
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let done = match item.split_once(':') {
            Some((place, what)) => fault(place, what.trim()).map(|fault| faults.push(fault)),
            None => quirk(item, &mut quirks),
        };
        done.map_err(|why| format!("{item:?}: {why}"))?;
    }
    Ok((faults, quirks))
}

fn fault(place: &str, what: &str) -> Result<Fault, String> {
    let (name, moment) = match place.split_once('@') {
        Some((name, when)) => (name.trim(), moment(when.trim())?),
        None => (place.trim(), Moment::From(1)),
    };
    let Some((_, call, _)) = CALLS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<_> = CALLS.iter().map(|(name, ..)| *name).collect();
        return Err(format!("no call is named {name:?}: one of {}", known.join(", ")));
    };
    let what = outcome(what)?;
    let fits = match what {
        What::Submit | What::Wrong(_) => *call == Call::Run,
        What::Space => *call == Call::SetIoMem,
        What::Descriptors => matches!(call, Call::CreateMem | Call::CreateMemFromFd),
        What::Code(_) | What::Hang(_) | What::Lost(_) => true,
    };
    if fits {
        Ok(Fault { call: *call, moment, what })
    } else {
        Err("this call does not fail in that way".to_owned())
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    let parsed = if let Some(chance) = text.strip_prefix('p') {
        let (p, seed) = chance.split_once('~').unwrap_or((chance, "0"));
        let p = p.parse().ok().filter(|p| (0.0..=1.0).contains(p));
        p.zip(seed.parse().ok()).map(|(p, seed)| Moment::Chance(p, seed))
    } else if let Some(every) = text.strip_prefix('/') {
        positive(every).map(Moment::Every)
    } else if let Some(from) = text.strip_suffix('+') {
        positive(from).map(Moment::From)
    } else {
        positive(text).map(Moment::At)
    };
    parsed.ok_or_else(|| format!("{text:?} is no time: N, N+, /N or pP~SEED with 0 <= P <= 1"))
}

fn positive(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n| *n > 0)
}

/// A code of the vendor's, -1 to -13.
fn code(text: &str) -> Option<i32> {
    text.parse().ok().filter(|code| (-13..=-1).contains(code))
}

fn outcome(text: &str) -> Result<What, String> {
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let number = |default: Option<u64>| value.map_or(default, |value| value.parse().ok());
    let what = match name {
        "hang" => number(Some(100)).map(What::Hang),
        "lost" => number(Some(1)).filter(|calls| *calls > 0).map(What::Lost),
        "wrong" => number(None).map(|core| What::Wrong(core as usize)),
        _ if value.is_some() => None,
        "submit" => Some(What::Submit),
        "space" => Some(What::Space),
        "fds" => Some(What::Descriptors),
        "null" => Some(What::Code(-1)),
        _ => code(text).map(What::Code),
    };
    what.ok_or_else(|| {
        format!(
            "{text:?} is no outcome: -1 to -13, null, hang=MS, submit, space, fds, lost=CALLS, wrong=CORE"
        )
    })
}

fn quirk(item: &str, quirks: &mut Quirks) -> Result<(), String> {
    match item.split_once('=') {
        None => {
            match item {
                "views" => quirks.views = true,
                "native-b" => quirks.native_b = true,
                "native-ac" => quirks.native_ac = true,
                _ => return Err(
                    "neither CALL[@WHEN]:WHAT nor views, native-b, native-ac, core=K, domain=MB, TYPE=CODE"
                        .to_owned(),
                ),
            }
        }
        Some(("core", core)) => {
            let core = core.parse().map_err(|_| format!("{core:?} is no core"))?;
            quirks.cores.push(core);
        }
        Some(("domain", mb)) => {
            let bytes = positive(mb).and_then(|mb| mb.checked_mul(1_000_000));
            quirks.domain = Some(bytes.ok_or_else(|| format!("{mb:?} is no number of MB"))?);
        }
        Some((name, value)) => {
            let kind = match name {
                "f16" => 1,
                "i8" => 2,
                "i4" => 10,
                _ => name
                    .strip_prefix("type")
                    .and_then(|number| number.parse().ok())
                    .ok_or_else(|| format!("{name:?} is no type: f16, i8, i4 or typeN"))?,
            };
            let value = if value == "off" { Some(-5) } else { code(value) };
            let value = value.ok_or("a type is refused by off or a code from -1 to -13")?;
            quirks.types.push((kind, value));
        }
    }
    Ok(())
}
