//! The bill of materials: a CycloneDX document of what is inside, the same for every build of a commit.

use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;
use spdx::{Expression, ParseMode};

use super::inventory::Package;
use crate::error::{Error, Result};

/// What the document is of.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The package that the others are for.
    pub name: &'a str,
    /// The commit.
    pub commit: &'a str,
    /// Its time, in seconds since 1970.
    pub time: u64,
    /// What it is built for.
    pub triple: &'a str,
    /// The compiler's own version, whose standard library is inside.
    pub rustc: &'a str,
    /// The linker's, whose unwinder is inside.
    pub linker: &'a str,
}

/// The document as CycloneDX 1.5 has it, as far as there is something to say. The crate cyclonedx-bom would need a newer
/// rustc than this workspace, and two dozen crates, for these few objects.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    bom_format: &'static str,
    spec_version: &'static str,
    version: u32,
    metadata: Metadata<'a>,
    components: Vec<Component<'a>>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Serialize)]
struct Metadata<'a> {
    timestamp: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    component: Option<Component<'a>>,
    properties: Vec<Property<'a>>,
}

#[derive(Debug, Serialize)]
struct Property<'a> {
    name: &'static str,
    value: &'a str,
}

#[derive(Debug, Serialize)]
struct Component<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "bom-ref")]
    reference: String,
    name: &'a str,
    version: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    licenses: Vec<Licence>,
    /// Where it comes from. Our own are in no registry.
    #[serde(skip_serializing_if = "Option::is_none")]
    purl: Option<String>,
}

#[derive(Debug, Serialize)]
struct Licence {
    expression: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Dependency {
    #[serde(rename = "ref")]
    of: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    depends_on: Vec<String>,
}

/// The document, in JSON.
///
/// # Errors
/// A licence that is no expression of SPDX.
pub fn json(subject: &Subject, packages: &[Package]) -> Result<Vec<u8>> {
    let is_subject = |package: &&Package| package.is_own && package.name == subject.name;
    let others = packages.iter().filter(|package| !is_subject(package));
    let depends = |package: &Package| Dependency {
        of: reference(&package.name, &package.version),
        depends_on: package.needs.iter().map(|(name, version)| reference(name, version)).collect(),
    };
    let told = [
        ("ggml-rknpu:commit", subject.commit),
        ("ggml-rknpu:target", subject.triple),
        ("ggml-rknpu:rustc", subject.rustc),
        ("ggml-rknpu:linker", subject.linker),
    ];
    // A serial number would be random, and is not required.
    let document = Document {
        bom_format: "CycloneDX",
        spec_version: "1.5",
        version: 1,
        metadata: Metadata {
            timestamp: humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(subject.time))
                .to_string(),
            component: packages.iter().find(is_subject).map(component).transpose()?,
            properties: told.map(|(name, value)| Property { name, value }).into(),
        },
        components: others.map(component).collect::<Result<_>>()?,
        dependencies: packages.iter().map(depends).collect(),
    };
    let mut out = serde_json::to_vec_pretty(&document)
        .map_err(|why| Error::Refused(format!("cannot write the bill of materials: {why}")))?;
    out.push(b'\n');
    Ok(out)
}

fn component(package: &Package) -> Result<Component<'_>> {
    let Package { name, version, .. } = package;
    let expression = |text: &String| {
        // The older way to write a choice.
        let text = text.replace('/', " OR ");
        Expression::parse_mode(&text, ParseMode::STRICT)
            .map_err(|error| {
                Error::Refused(format!("{name} {version} has the licence {text:?}: {}", error.reason))
            })
            .map(|_| Licence { expression: text })
    };
    Ok(Component {
        kind: "library",
        reference: reference(name, version),
        name,
        version,
        licenses: package.licence.iter().map(expression).collect::<Result<_>>()?,
        purl: (!package.is_own).then(|| format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"))),
    })
}

/// By which parts of the document speak of a package; cargo's own ids would name folders of this machine.
fn reference(name: &str, version: &str) -> String {
    format!("{name}@{version}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_document_names_all_and_is_the_same_every_time() {
        let package = |name: &str, is_own, needs: &[&str]| Package {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            licence: Some("MIT/Apache-2.0".to_owned()),
            folder: PathBuf::from("/secret/folder"),
            is_own,
            needs: needs.iter().map(|&name| (name.to_owned(), "1.0.0".to_owned())).collect::<BTreeSet<_>>(),
        };
        let packages = [package("ggml-rknpu", true, &["rayon"]), package("rayon", false, &[])];
        let subject = Subject {
            name: "ggml-rknpu",
            commit: "abc",
            time: 1_735_689_600,
            triple: "aarch64-unknown-linux-gnu",
            rustc: "rustc 1.96.0",
            linker: "zig 0",
        };
        let document = json(&subject, &packages).unwrap();
        assert_eq!(json(&subject, &packages).unwrap(), document);
        let text = String::from_utf8(document.clone()).unwrap();
        assert!(!text.contains("secret") && !text.contains("serialNumber"), "{text}");
        assert!(text.contains("2025-01-01T00:00:00Z") && text.contains("pkg:cargo/rayon@1.0.0"), "{text}");
        assert!(text.contains("MIT OR Apache-2.0"), "{text}");

        let value: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(value["metadata"]["component"]["name"], "ggml-rknpu");
        assert_eq!(value["components"].as_array().unwrap().len(), 1);
        assert_eq!(value["dependencies"][0]["dependsOn"][0], "rayon@1.0.0");
    }
}
