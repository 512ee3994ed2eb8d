//! A linker for older C libraries than this machine's: zig, out of Python's package index, has the symbols of each of
//! glibc's versions, so that what it links runs on every later one.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::download::{self, Index, Indexes, Package};
use super::packages::{self, Need};
use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::progress::Step;

/// zig for this machine's processor.
const ZIG: Package = Package {
    name: "ziglang",
    version: "0.15.2",
    file: if cfg!(target_arch = "aarch64") {
        "ziglang-0.15.2-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl"
    } else {
        "ziglang-0.15.2-py3-none-manylinux_2_12_x86_64.manylinux2010_x86_64.musllinux_1_1_x86_64.whl"
    },
    sha256: if cfg!(target_arch = "aarch64") {
        "edc0aa60ec964a4cf462d40f68d7de242ddf37fd9a80f2afaee6397059463230"
    } else {
        "806316453d1ede7174ed3fefb8e5348154629089c3bb5fe812dfd0e172fac130"
    },
    index: Index::PythonWheel,
};

/// What the package brings, in words for a list of what something was built with.
pub fn version() -> String {
    format!("zig {}", ZIG.version)
}

/// A program that links for `target`, in zig's words (`aarch64-linux-gnu.2.31`), called as a C compiler is.
///
/// # Errors
/// What keeps zig from being fetched or unpacked.
pub fn linker(cache: &Cache, target: &str) -> Result<PathBuf> {
    let folder = cache.root().join(format!("{}-{}", ZIG.name, ZIG.version));
    if !folder.exists() {
        packages::ensure(&[Need::Pip])?;
        let archive = download::obtain(&Indexes, &ZIG, cache)?;
        unpack(&archive, &folder, cache)?;
    }
    let linker = folder.join(format!("cc-{target}"));
    let script = script(&folder, target);
    if fs::read_to_string(&linker).ok().as_ref() != Some(&script) {
        // By a rename: another build may be starting the old one at this moment.
        let partial = cache.partial()?;
        let half = partial.path().join("cc");
        fs::write(&half, script).at("write", &half)?;
        fs::set_permissions(&half, Permissions::from_mode(0o755)).at("make a program of", &half)?;
        fs::rename(&half, &linker).at("write", &linker)?;
    }
    Ok(linker)
}

fn unpack(archive: &Path, folder: &Path, cache: &Cache) -> Result<()> {
    let step = Step::spinner(format!("unpacking zig {}", ZIG.version));
    let damaged = |error: zip::result::ZipError| {
        Error::Refused(format!("cannot unpack {}: {error}", archive.display()))
    };
    let partial = cache.partial()?;
    let mut zip = zip::ZipArchive::new(File::open(archive).at("open", archive)?).map_err(damaged)?;
    zip.extract(partial.path()).map_err(damaged)?;
    match fs::rename(partial.keep(), folder) {
        // Another build was faster.
        Err(_) if folder.exists() => {}
        moved => moved.at("move zig to", folder)?,
    }
    step.done();
    Ok(())
}

/// zig keeps what it compiles for a target, libc's stubs and the unwinder, beside itself: once for all clones.
fn script(folder: &Path, target: &str) -> String {
    let quoted = |path: PathBuf| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    format!(
        "#!/bin/sh\n\
         export ZIG_GLOBAL_CACHE_DIR={cache} ZIG_LOCAL_CACHE_DIR={cache}\n\
         exec {zig} cc -target {target} \"$@\"\n",
        cache = quoted(folder.join("cache")),
        zig = quoted(folder.join("ziglang/zig")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_hands_its_arguments_to_zig_for_the_target() {
        let text = script(Path::new("/a b/it's"), "aarch64-linux-gnu.2.31");
        assert!(text.starts_with("#!/bin/sh\n"));
        assert!(
            text.ends_with("exec '/a b/it'\\''s/ziglang/zig' cc -target aarch64-linux-gnu.2.31 \"$@\"\n"),
            "{text}"
        );
    }
}
