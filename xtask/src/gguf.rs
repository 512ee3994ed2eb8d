//! A reader of the head of a GGUF file: metadata and the list of tensors, never the data.
//!
//! The file is untrusted input: every count is held against the bytes that are left before anything is
//! allocated or looped over, so that a broken or hostile file gives an error and nothing else.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be opened or read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("not a GGUF file: it begins with {0:?}, expected \"GGUF\"")]
    NotGguf(String),
    /// A version of the format that this reader does not know.
    #[error("GGUF version {0} is not known here; expected 2 or 3")]
    Version(u32),
    /// The head ends before all of it was read.
    #[error("truncated: the file ends at byte {size}, inside its header; fetch or derive it again")]
    TruncatedHead {
        /// The file's size.
        size: u64,
    },
    /// The data of the tensors reaches past the end.
    #[error("truncated: it needs {needs} bytes and has {has}; fetch or derive it again")]
    Truncated {
        /// Where the last tensor ends.
        needs: u64,
        /// The file's size.
        has: u64,
    },
    /// A field that makes no sense.
    #[error("damaged header: {0}")]
    Damaged(String),
}

type Result<T> = std::result::Result<T, Error>;

/// A metadata value, as far as this tool looks at them.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer or bool.
    Int(i128),
    /// Any float.
    Float(f64),
    /// A string.
    Text(String),
    /// An array of up to [`MAX_KEPT`] integers.
    Ints(Vec<i128>),
    /// Longer arrays and arrays of other things, whose content is skipped.
    Skipped,
}

/// Arrays of more elements (vocabularies) are skipped: per-layer values are what is wanted.
const MAX_KEPT: u64 = 4096;

/// The longest string that is kept in memory, in bytes; chat templates are the longest there are.
const MAX_TEXT: u64 = 1 << 26;

/// Arrays of arrays deeper than this are refused.
const MAX_DEPTH: u32 = 4;

/// One tensor of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its extents, innermost first.
    pub dims: Vec<u64>,
    /// The code of its type.
    pub dtype: u32,
    /// Where its data begins, relative to the data section.
    pub offset: u64,
}

impl Tensor {
    /// Bytes of its data; `None` for a type this table does not know or a size past 64 bits.
    pub fn bytes(&self) -> Option<u64> {
        let (block, bytes) = block_of(self.dtype)?;
        let elements = self.dims.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
        elements.div_ceil(block).checked_mul(bytes)
    }
}

/// The head of a file.
#[derive(Debug, Default)]
pub struct Gguf {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// The tensors in file order.
    pub tensors: Vec<Tensor>,
    /// Where the data section begins.
    pub data: u64,
}

impl Gguf {
    /// Reads the head of a file and checks that the file holds all the data the head speaks of.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let info = file.metadata()?;
        if info.is_dir() {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder, expected a file").into());
        }
        Self::read(BufReader::with_capacity(1 << 16, file), info.len())
    }

    /// The same from any reader of `size` bytes.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(source: impl Read, size: u64) -> Result<Self> {
        let mut input = Input { source, left: size, size };
        let mut magic = [0u8; 4];
        let known = size.min(4) as usize;
        input.fill(&mut magic[..known])?;
        if &magic != b"GGUF" {
            return Err(Error::NotGguf(magic[..known].escape_ascii().to_string()));
        }
        let version = input.u32()?;
        if !(2..=3).contains(&version) {
            return Err(Error::Version(version));
        }
        // A tensor's entry takes at least 24 bytes and a metadata pair at least 13.
        let tensor_count = input.count("tensors", 24)?;
        let pair_count = input.count("metadata pairs", 13)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..pair_count {
            let key = input.string()?;
            let kind = input.u32()?;
            let value = input.value(kind, 0)?;
            metadata.insert(key, value);
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(input.tensor()?);
        }
        let mut head = Self { metadata, tensors, data: 0 };
        head.data = head.check_data(size - input.left, size)?;
        Ok(head)
    }

    /// Every tensor's data must lie inside the file; where the data section begins.
    fn check_data(&self, head_end: u64, size: u64) -> Result<u64> {
        let alignment = match self.metadata.get("general.alignment") {
            None => 32,
            Some(Value::Int(n)) if (1..=1 << 20).contains(n) => *n as u64,
            Some(other) => return Err(Error::Damaged(format!("general.alignment is {other:?}"))),
        };
        let data_start = head_end.next_multiple_of(alignment);
        let mut needs = 0u64;
        for tensor in &self.tensors {
            // A type from a later format: at least its beginning must be there.
            let bytes = if block_of(tensor.dtype).is_some() { tensor.bytes() } else { Some(0) };
            let end = bytes
                .and_then(|bytes| bytes.checked_add(tensor.offset)?.checked_add(data_start))
                .ok_or_else(|| Error::Damaged(format!("the size of tensor {:?} overflows", tensor.name)))?;
            needs = needs.max(end);
        }
        if needs > size {
            return Err(Error::Truncated { needs, has: size });
        }
        Ok(data_start)
    }

    /// The architecture's name, under which the model's own keys are.
    pub fn architecture(&self) -> &str {
        match self.metadata.get("general.architecture") {
            Some(Value::Text(name)) => name,
            _ => "",
        }
    }

    /// How many files the model is in.
    pub fn parts(&self) -> u64 {
        match self.metadata.get("split.count") {
            Some(Value::Int(n)) => u64::try_from(*n).unwrap_or(1).max(1),
            _ => 1,
        }
    }

    /// A whole number of the architecture, by its key without the architecture's prefix.
    pub fn number(&self, key: &str) -> Option<u64> {
        match self.metadata.get(&format!("{}.{key}", self.architecture()))? {
            Value::Int(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The same for a value that may differ from layer to layer.
    pub fn number_of_layer(&self, key: &str, layer: usize) -> Option<u64> {
        match self.metadata.get(&format!("{}.{key}", self.architecture()))? {
            Value::Ints(all) => u64::try_from(*all.get(layer)?).ok(),
            _ => self.number(key),
        }
    }
}

struct Input<R> {
    source: R,
    left: u64,
    size: u64,
}

impl<R: Read> Input<R> {
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.left = self.left.checked_sub(bytes).ok_or(Error::TruncatedHead { size: self.size })?;
        Ok(())
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<()> {
        self.take(into.len() as u64)?;
        self.source.read_exact(into).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::TruncatedHead { size: self.size },
            _ => Error::Io(error),
        })
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.take(bytes)?;
        let skipped = io::copy(&mut (&mut self.source).take(bytes), &mut io::sink())?;
        if skipped < bytes {
            return Err(Error::TruncatedHead { size: self.size });
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(&mut out)?;
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A count of things that take at least `each` bytes, which the rest of the file must be able to hold.
    fn count(&mut self, what: &str, each: u64) -> Result<u64> {
        let count = self.u64()?;
        match count.checked_mul(each) {
            Some(bytes) if bytes <= self.left => Ok(count),
            // The same sight for a file cut short and for a wild number; only the latter is absurd.
            Some(bytes) if bytes <= 1 << 32 => Err(Error::TruncatedHead { size: self.size }),
            _ => Err(Error::Damaged(format!("{count} {what} in a file of {} bytes", self.size))),
        }
    }

    fn string(&mut self) -> Result<String> {
        let length = self.count("bytes of a string", 1)?;
        if length > MAX_TEXT {
            return Err(Error::Damaged(format!("a string of {length} bytes")));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Int(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Int(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Int(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Int(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Int(u32::from_le_bytes(self.bytes()?).into()),
            5 => Value::Int(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Int(i128::from(self.bytes::<1>()?[0] != 0)),
            8 => Value::Text(self.string()?),
            9 => self.array(depth)?,
            10 => Value::Int(self.u64()?.into()),
            11 => Value::Int(i64::from_le_bytes(self.bytes()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(Error::Damaged(format!("metadata of unknown type {other}"))),
        })
    }

    fn array(&mut self, depth: u32) -> Result<Value> {
        if depth >= MAX_DEPTH {
            return Err(Error::Damaged(format!("arrays nested deeper than {MAX_DEPTH}")));
        }
        let kind = self.u32()?;
        let each = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            other => return Err(Error::Damaged(format!("an array of unknown type {other}"))),
        };
        let count = self.count("array elements", each)?;
        match kind {
            8 | 9 => {
                for _ in 0..count {
                    if kind == 8 {
                        let length = self.count("bytes of a string", 1)?;
                        self.skip(length)?;
                    } else {
                        self.array(depth + 1)?;
                    }
                }
                Ok(Value::Skipped)
            }
            0..=5 | 7 | 10 | 11 if count <= MAX_KEPT => (0..count)
                .map(|_| match self.value(kind, depth)? {
                    Value::Int(n) => Ok(n),
                    other => Err(Error::Damaged(format!("{other:?} among integers"))),
                })
                .collect::<Result<_>>()
                .map(Value::Ints),
            _ => self.skip(count * each).map(|()| Value::Skipped),
        }
    }

    fn tensor(&mut self) -> Result<Tensor> {
        let name = self.string()?;
        let rank = self.u32()?;
        if rank > 8 {
            return Err(Error::Damaged(format!("tensor {name:?} of {rank} dimensions")));
        }
        let dims = (0..rank).map(|_| self.u64()).collect::<Result<_>>()?;
        Ok(Tensor { name, dims, dtype: self.u32()?, offset: self.u64()? })
    }
}

/// Elements and bytes of a block of each type of the format.
fn block_of(dtype: u32) -> Option<(u64, u64)> {
    Some(match dtype {
        0 | 26 => (1, 4),
        1 | 25 | 30 => (1, 2),
        2 | 20 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 | 21 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        16 | 35 => (256, 66),
        17 => (256, 74),
        18 => (256, 98),
        19 => (256, 50),
        22 => (256, 82),
        23 => (256, 136),
        24 => (1, 1),
        27 | 28 => (1, 8),
        29 => (256, 56),
        34 => (256, 54),
        39 => (32, 17),
        40 => (64, 36),
        41 => (128, 18),
        42 => (64, 18),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
