//! What a packaged file must be: for its processor, stripped, with the entry points and no other name to the outside,
//! and in need of nothing but a C library that is old enough.

use object::elf::{DT_NEEDED, DT_SONAME};
use object::read::elf::ElfFile64;
use object::{Architecture, Endianness, Object, ObjectSymbol};

use super::target::{Target, Version, GLIBC};
use crate::error::{Error, Result};

/// The C library's files: its own, and the compiler's that belongs to it.
const LIBC_FAMILY: [&str; 9] = [
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
    "libgcc_s.so.1",
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
];

/// What a file is for.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// A library.
    Library {
        /// The name by which the loader is to know it, where that matters.
        soname: Option<&'static str>,
        /// What it shows; one that ends in `*` stands for all that begin so. Each must be there, and no other.
        exports: &'static [&'static str],
    },
    /// A program.
    Program,
}

/// What a file says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Facts {
    architecture: Architecture,
    soname: Option<String>,
    needed: Vec<String>,
    exports: Vec<String>,
    /// The versions that it wants of its libraries, such as `GLIBC_2.17`.
    versions: Vec<String>,
    is_stripped: bool,
}

/// Checks a file, which errors call `name`.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check(name: &str, content: &[u8], kind: Kind, target: &Target) -> Result<Version> {
    let facts = read(content).map_err(|why| Error::Refused(format!("{name} is no ELF file: {why}")))?;
    judge(&facts, kind, target).map_err(|why| Error::Refused(format!("{name} cannot be packaged: {why}")))
}

/// The newest version of the C library that is needed, or what is wrong.
fn judge(facts: &Facts, kind: Kind, target: &Target) -> Result<Version, String> {
    if facts.architecture != target.architecture {
        return Err(format!("it is for {:?}, expected {:?}", facts.architecture, target.architecture));
    }
    if !facts.is_stripped {
        return Err("it has a symbol table or debug information, expected a stripped file".to_owned());
    }
    if let Some(other) = facts.needed.iter().find(|library| !LIBC_FAMILY.contains(&library.as_str())) {
        return Err(format!(
            "it needs {other}, expected nothing but the C library's {}",
            LIBC_FAMILY.join(" ")
        ));
    }
    if let Kind::Library { soname, exports } = kind {
        if soname.is_some() && facts.soname.as_deref() != soname {
            let (has, wanted) = (facts.soname.as_deref().unwrap_or("none"), soname.unwrap_or_default());
            return Err(format!("its soname is {has}, expected {wanted}"));
        }
        if let Some(name) =
            facts.exports.iter().find(|name| !exports.iter().any(|allowed| fits(allowed, name)))
        {
            return Err(format!("it exports {name}, expected only {}", exports.join(" ")));
        }
        if let Some(wanted) =
            exports.iter().find(|wanted| !facts.exports.iter().any(|name| fits(wanted, name)))
        {
            return Err(format!("it exports no {wanted}; did the linker drop the names of the library?"));
        }
    }
    let mut newest = Version(0, 0);
    for text in facts.versions.iter().filter(|text| text.starts_with("GLIBC_")) {
        // Others than numbers are the C library's inner affairs, or marks that only newer ones know.
        let version =
            glibc(text).ok_or_else(|| format!("it needs {text}, expected a version of up to {GLIBC}"))?;
        newest = newest.max(version);
    }
    if newest > GLIBC {
        return Err(format!("it needs glibc {newest}, expected {GLIBC} or older; what linked it?"));
    }
    Ok(newest)
}

fn fits(pattern: &str, name: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == name, |start| name.starts_with(start))
}

/// Of `GLIBC_2.17` and `GLIBC_2.2.5`.
fn glibc(text: &str) -> Option<Version> {
    let mut numbers = text.strip_prefix("GLIBC_")?.split('.').map(|part| part.parse().ok());
    let version = Version(numbers.next()??, numbers.next()??);
    numbers.all(|part| part.is_some()).then_some(version)
}

fn read(content: &[u8]) -> object::Result<Facts> {
    let file = ElfFile64::<Endianness>::parse(content)?;
    let (sections, endian) = (file.elf_section_table(), file.endian());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut soname, mut needed) = (None, Vec::new());
    let dynamic = file.elf_dynamic_table()?;
    for entry in dynamic.iter() {
        match entry.tag {
            DT_NEEDED => needed.push(text(dynamic.string(entry)?)),
            DT_SONAME => soname = Some(text(dynamic.string(entry)?)),
            _ => {}
        }
    }
    let mut versions = Vec::new();
    if let Some((mut needs, strings)) = sections.gnu_verneed(endian, content)? {
        let strings = sections.strings(endian, content, strings)?;
        while let Some((_, mut wanted)) = needs.next()? {
            while let Some(version) = wanted.next()? {
                versions.push(text(version.name(endian, strings)?));
            }
        }
    }
    let shown = file.dynamic_symbols().filter(|symbol| symbol.is_definition() && symbol.is_global());
    let exports = shown.map(|symbol| symbol.name_bytes().map(text)).collect::<object::Result<_>>()?;
    Ok(Facts {
        architecture: file.architecture(),
        soname,
        needed,
        exports,
        versions,
        is_stripped: file.symbols().next().is_none() && !file.has_debug_symbols(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boards() -> &'static Target {
        Target::of("aarch64-unknown-linux-gnu").unwrap()
    }

    const PLUGIN: Kind = Kind::Library {
        soname: Some("libggml-rknpu.so"),
        exports: &["ggml_backend_init", "ggml_backend_rknpu_*"],
    };

    fn good() -> Facts {
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Facts {
            architecture: Architecture::Aarch64,
            soname: Some("libggml-rknpu.so".to_owned()),
            needed: list(&["libpthread.so.0", "libc.so.6"]),
            exports: list(&["ggml_backend_init", "ggml_backend_rknpu_reg"]),
            versions: list(&["GLIBC_2.17", "GLIBC_2.31", "GCC_3.0", "GLIBC_2.2.5"]),
            is_stripped: true,
        }
    }

    fn refused(change: impl FnOnce(&mut Facts)) -> String {
        let mut facts = good();
        change(&mut facts);
        judge(&facts, PLUGIN, boards()).unwrap_err()
    }

    #[test]
    fn a_good_library_tells_the_newest_version_that_it_needs() {
        assert_eq!(judge(&good(), PLUGIN, boards()), Ok(Version(2, 31)));
    }

    #[test]
    fn each_thing_that_is_wrong_is_named() {
        let host = refused(|facts| facts.needed.push("libggml-base.so.0".to_owned()));
        assert!(host.starts_with("it needs libggml-base.so.0, expected nothing but"), "{host}");
        assert!(refused(|facts| facts.needed.push("librknnrt.so".to_owned())).contains("librknnrt.so"));
        let name = refused(|facts| facts.exports.push("rust_eh_personality".to_owned()));
        assert!(
            name.starts_with("it exports rust_eh_personality, expected only ggml_backend_init"),
            "{name}"
        );
        assert!(refused(|facts| facts.exports.clear()).contains("exports no ggml_backend_init"));
        let other = refused(|facts| facts.soname = None);
        assert_eq!(other, "its soname is none, expected libggml-rknpu.so");
        assert!(refused(|facts| facts.is_stripped = false).contains("expected a stripped file"));
        assert!(
            refused(|facts| facts.architecture = Architecture::X86_64).contains("X86_64, expected Aarch64")
        );
        let new = refused(|facts| facts.versions.push("GLIBC_2.34".to_owned()));
        assert_eq!(new, "it needs glibc 2.34, expected 2.31 or older; what linked it?");
        for inner in ["GLIBC_PRIVATE", "GLIBC_ABI_DT_RELR"] {
            assert!(refused(|facts| facts.versions.push(inner.to_owned())).contains(inner));
        }
    }

    #[test]
    fn a_program_may_show_what_it_likes() {
        let facts = Facts { exports: vec!["_IO_stdin_used".to_owned()], ..good() };
        assert!(judge(&facts, Kind::Program, boards()).is_ok());
    }

    #[test]
    fn a_real_file_is_read() {
        // This very program: for this machine, not stripped, and linked to the C library.
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let facts = read(&own).unwrap();
        assert!(facts.needed.contains(&"libc.so.6".to_owned()), "{facts:?}");
        assert!(facts.versions.iter().any(|version| glibc(version).is_some()), "{facts:?}");
        assert!(!facts.is_stripped && facts.soname.is_none());
        let here = Target::of(&format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).unwrap();
        let error = check("xtask", &own, Kind::Program, here).unwrap_err().to_string();
        assert!(error.starts_with("xtask cannot be packaged: it has a symbol table"), "{error}");
        let error = check("text", b"#!/bin/sh\n", Kind::Program, here).unwrap_err().to_string();
        assert!(error.starts_with("text is no ELF file: "), "{error}");
    }
}
