//! Which files a package has, and where they go below its prefix.

use std::fs;
use std::path::Path;

use super::check::Kind;
use super::compile::Built;
use crate::error::{IoContext, Result};

/// The folder of the sources of what is neither code nor built.
const PACKAGING: &str = "packaging";

/// The file names of the three that are built.
pub const PLUGIN: &str = "libggml-rknpu.so";
/// The emulator's.
pub const EMULATOR: &str = "libnpu_emulator.so";
/// The doctor's.
pub const DOCTOR: &str = "rknpu-doctor";

/// A file of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it goes, below the prefix.
    pub path: String,
    /// Its permissions.
    pub mode: u32,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// The kind of package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form<'a> {
    /// To be unpacked anywhere.
    Archive,
    /// Debian's, for this folder of libraries.
    Debian {
        /// The folder's name, such as `aarch64-linux-gnu`.
        multiarch: &'a str,
    },
}

/// What goes along with the built files.
#[derive(Debug)]
pub struct Papers<'a> {
    /// The bill of materials.
    pub sbom: &'a [u8],
    /// The texts of licences.
    pub licences: &'a str,
    /// The commit.
    pub commit: &'a str,
}

/// The three that are built, and what each must be.
pub fn built(built: &Built) -> [(&'static str, &[u8], Kind); 3] {
    let plugin = Kind::Library {
        soname: Some(PLUGIN),
        exports: &[
            "ggml_backend_init",
            "ggml_backend_score",
            "ggml_backend_is_rknpu",
            "ggml_backend_rknpu_*",
        ],
    };
    let emulator = Kind::Library { soname: None, exports: &["rknn_*", "rknpu_emulator_*"] };
    [
        (PLUGIN, &built.plugin, plugin),
        (EMULATOR, &built.emulator, emulator),
        (DOCTOR, &built.doctor, Kind::Program),
    ]
}

/// All files, with those of the checkout at `root`.
///
/// # Errors
/// A file that is not there.
pub fn list(root: &Path, built: &Built, papers: &Papers, form: Form) -> Result<Vec<Entry>> {
    let read = |name: &str| {
        let path = root.join(name);
        fs::read_to_string(&path).at("read", &path)
    };
    let packaged = |name: &str| read(&format!("{PACKAGING}/{name}"));
    let (lib, readme, prefix) = match form {
        Form::Archive => ("lib".to_owned(), "README", ""),
        Form::Debian { multiarch } => (format!("lib/{multiarch}"), "README.Debian", "/usr/"),
    };
    let (plugin, emulator) = (format!("{lib}/{PLUGIN}"), format!("{lib}/ggml-rknpu/{EMULATOR}"));
    let doc = |name: &str| format!("share/doc/ggml-rknpu/{name}");
    let told = packaged("README")?
        .replace("@PLUGIN@", &format!("{prefix}{plugin}"))
        .replace("@EMULATOR@", &format!("{prefix}{emulator}"))
        .replace("@COMMIT@", papers.commit);

    let file = |path: String, mode: u32, content: &[u8]| Entry { path, mode, content: content.to_vec() };
    let mut entries = vec![
        file(plugin, 0o644, &built.plugin),
        file(emulator, 0o644, &built.emulator),
        file(format!("bin/{DOCTOR}"), 0o755, &built.doctor),
        file("include/ggml-rknpu.h".to_owned(), 0o644, read("include/ggml-rknpu.h")?.as_bytes()),
        // Before 50-, so that what a board's image says of these nodes counts, and this only where it says nothing.
        file("lib/udev/rules.d/49-rknpu.rules".to_owned(), 0o644, packaged("49-rknpu.rules")?.as_bytes()),
        file(doc(readme), 0o644, told.as_bytes()),
        file(doc("copyright"), 0o644, packaged("copyright")?.as_bytes()),
        file(doc("licences.txt"), 0o644, papers.licences.as_bytes()),
        file(doc("sbom.cdx.json"), 0o644, papers.sbom),
    ];
    for name in pages(root)? {
        entries.push(file(doc(&name), 0o644, read(&name)?.as_bytes()));
    }
    Ok(entries)
}

/// The pages for people and the examples that they speak of, as they lie in the checkout, so that their links lead on.
fn pages(root: &Path) -> Result<Vec<String>> {
    let mut names = vec!["README.md".to_owned()];
    for (folder, end) in [("docs", ".md"), ("packaging/examples", "")] {
        let path = root.join(folder);
        for entry in fs::read_dir(&path).at("read", &path)? {
            let name = entry.at("read", &path)?.file_name().to_string_lossy().into_owned();
            if name.ends_with(end) {
                names.push(format!("{folder}/{name}"));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// The script that Debian's package runs once it is unpacked.
///
/// # Errors
/// A file that is not there.
pub fn postinst(root: &Path, multiarch: &str) -> Result<String> {
    let path = root.join(PACKAGING).join("postinst");
    let text = fs::read_to_string(&path).at("read", &path)?;
    Ok(text.replace("@PLUGIN@", &format!("/usr/lib/{multiarch}/{PLUGIN}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::plugin::workspace;

    fn entries(form: Form) -> Vec<Entry> {
        let built = Built {
            plugin: b"p".to_vec(),
            emulator: b"e".to_vec(),
            doctor: b"d".to_vec(),
            packages: Default::default(),
        };
        let papers = Papers { sbom: b"{}", licences: "free", commit: "0123abc" };
        list(&workspace(), &built, &papers, form).unwrap()
    }

    fn text(entries: &[Entry], path: &str) -> String {
        let entry = entries.iter().find(|entry| entry.path == path).unwrap_or_else(|| panic!("{path}"));
        String::from_utf8(entry.content.clone()).unwrap()
    }

    #[test]
    fn the_readme_tells_where_the_plugin_is() {
        let archive = entries(Form::Archive);
        let readme = text(&archive, "share/doc/ggml-rknpu/README");
        assert!(readme.contains("GGML_BACKEND_PATH=lib/libggml-rknpu.so"), "{readme}");
        let debian = entries(Form::Debian { multiarch: "aarch64-linux-gnu" });
        let readme = text(&debian, "share/doc/ggml-rknpu/README.Debian");
        assert!(readme.contains("GGML_BACKEND_PATH=/usr/lib/aarch64-linux-gnu/libggml-rknpu.so"), "{readme}");
        assert!(readme.contains("0123abc"));
        assert_eq!(text(&debian, "lib/aarch64-linux-gnu/ggml-rknpu/libnpu_emulator.so"), "e");
        for entry in archive.iter().chain(&debian) {
            assert!(
                !String::from_utf8_lossy(&entry.content).contains('@') || entry.path.ends_with("copyright")
            );
        }
    }

    #[test]
    fn the_script_tells_the_path_too() {
        let script = postinst(&workspace(), "aarch64-linux-gnu").unwrap();
        assert!(script.starts_with("#!/bin/sh\nset -e\n"));
        assert!(
            script.contains("/usr/lib/aarch64-linux-gnu/libggml-rknpu.so") && !script.contains("@PLUGIN@")
        );
    }
}
