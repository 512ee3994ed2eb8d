//! Converted weights on disk: a second start takes them from there and gives the same results; a damaged one is
//! converted again.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{lab, output, report, Lab};

/// Text and report of eight tokens with converted weights kept in `cache`.
fn generate(lab: &Lab, cache: &Path, dir: &Path) -> (String, serde_json::Value, String) {
    let path = dir.join("report.json");
    let (out, err) = output(
        lab.npu("llama-completion", "rk3588")
            .args(["-no-cnv", "--temp", "0", "-n", "8", "-t", "2", "-p", "The capital of France is"])
            .arg("-m")
            .arg(lab.model("Q8_0"))
            .env("RKNPU_CACHE", cache)
            .env("RKNPU_REPORT", &path),
    );
    (out, report(&path), err)
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn a_second_start_takes_its_weights_from_the_disk() {
    let Some(lab) = lab("a_second_start_takes_its_weights_from_the_disk") else { return };
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("weights");
    let (first, cold, _) = generate(&lab, &cache, dir.path());
    assert_eq!(cold["weights_loaded"], 0);
    let count = entries(&cache).len() as u64;
    let weights = cold["tensors"].as_array().unwrap().len() as u64;
    assert_eq!(count, weights, "an entry a weight, where 9 GiB of the disk are free");

    let (second, warm, _) = generate(&lab, &cache, dir.path());
    assert_eq!((second, &warm["weights_loaded"]), (first.clone(), &count.into()));

    // One entry with a byte changed, one cut short: both are told, converted again, and put back.
    let broken = entries(&cache);
    let mut bytes = fs::read(&broken[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&broken[0], &bytes).unwrap();
    let bytes = fs::read(&broken[1]).unwrap();
    fs::write(&broken[1], &bytes[..bytes.len() - 1]).unwrap();
    let (third, mended, said) = generate(&lab, &cache, dir.path());
    assert_eq!((third, &mended["weights_loaded"]), (first.clone(), &(count - 2).into()), "{said}");
    for path in &broken[..2] {
        let name = path.file_name().unwrap().to_string_lossy();
        assert!(said.contains(&*name), "{name} is not told: {said}");
    }
    let (fourth, whole, _) = generate(&lab, &cache, dir.path());
    assert_eq!((fourth, &whole["weights_loaded"]), (first, &count.into()));
}
