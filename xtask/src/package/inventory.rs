//! What is inside the files: the packages whose code was compiled into them, as cargo knows them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Deserialize;

use super::compile::Tools;
use super::target::Target;
use crate::error::{Error, Result};
use crate::process;
use crate::setup::cargo;

/// A package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence, an SPDX expression.
    pub licence: Option<String>,
    /// Where its sources lie.
    pub folder: PathBuf,
    /// Whether it is part of this checkout.
    pub is_own: bool,
    /// Names and versions of those that it is built on, of which each is in the list too.
    pub needs: BTreeSet<(String, String)>,
}

/// What `cargo metadata` prints, as far as this looks at it.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Described>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Described {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    /// None for a normal dependency.
    kind: Option<String>,
}

/// The packages of these ids, which a build of the checkout at `root` named, sorted by name.
///
/// # Errors
/// cargo's, or an answer that is not understood.
pub fn of(root: &Path, ids: &BTreeSet<String>, target: &Target, tools: &Tools) -> Result<Vec<Package>> {
    let mut command = cargo::cargo();
    command.current_dir(root).env("RUSTC", &tools.rustc).stdin(Stdio::null()).stderr(Stdio::inherit());
    command.args(["metadata", "--format-version=1", "--locked", "--filter-platform", target.triple]);
    let output = command.output().map_err(|source| Error::Io { doing: "start cargo".to_owned(), source })?;
    if !output.status.success() {
        let (program, outcome) = ("cargo metadata".to_owned(), process::outcome(output.status));
        return Err(Error::Tool { program, outcome, tail: Vec::new(), log: None });
    }
    listed(&output.stdout, ids)
}

fn listed(metadata: &[u8], ids: &BTreeSet<String>) -> Result<Vec<Package>> {
    let metadata: Metadata = serde_json::from_slice(metadata)
        .map_err(|error| Error::Refused(format!("cargo metadata is not understood: {error}")))?;
    let inside: BTreeMap<&str, &Described> = metadata
        .packages
        .iter()
        .filter(|one| ids.contains(&one.id))
        .map(|one| (one.id.as_str(), one))
        .collect();
    if let Some(unknown) = ids.iter().find(|id| !inside.contains_key(id.as_str())) {
        return Err(Error::Refused(format!("cargo built {unknown}, which cargo metadata does not know")));
    }
    let needs = |id: &str| -> BTreeSet<(String, String)> {
        let edges = metadata.resolve.nodes.iter().filter(|node| node.id == id).flat_map(|node| &node.deps);
        let linked = edges.filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none()));
        let known = linked.filter_map(|edge| inside.get(edge.pkg.as_str()));
        known.map(|one| (one.name.clone(), one.version.clone())).collect()
    };
    let mut all: Vec<Package> = inside
        .values()
        .map(|one| Package {
            name: one.name.clone(),
            version: one.version.clone(),
            licence: one.license.clone(),
            folder: one.manifest_path.parent().unwrap_or(Path::new("")).to_owned(),
            is_own: one.source.is_none(),
            needs: needs(&one.id),
        })
        .collect();
    all.sort();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(name: &str, source: &str) -> String {
        format!(
            r#"{{"id":"{name}","name":"{name}","version":"1.0.0","license":"MIT","source":{source},
            "manifest_path":"/s/{name}/Cargo.toml"}}"#
        )
    }

    #[test]
    fn what_was_built_is_listed_with_what_it_needs_of_it() {
        let packages = [
            described("plugin", "null"),
            described("rayon", "\"registry\""),
            described("tempfile", "\"registry\""),
            described("cc", "\"registry\""),
        ];
        let metadata = format!(
            r#"{{"packages":[{}],"resolve":{{"nodes":[{{"id":"plugin","deps":[
            {{"pkg":"rayon","dep_kinds":[{{"kind":"dev"}},{{"kind":null}}]}},
            {{"pkg":"tempfile","dep_kinds":[{{"kind":"dev"}}]}},{{"pkg":"cc","dep_kinds":[{{"kind":"build"}}]}}
            ]}}]}}}}"#,
            packages.join(",")
        );
        let ids = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
        let found = listed(metadata.as_bytes(), &ids(&["rayon", "plugin"])).unwrap();
        assert_eq!(found.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["plugin", "rayon"]);
        assert!(found[0].is_own && !found[1].is_own);
        assert_eq!(found[0].needs, BTreeSet::from([("rayon".to_owned(), "1.0.0".to_owned())]));
        assert_eq!(found[1].folder, Path::new("/s/rayon"));
        let error = listed(metadata.as_bytes(), &ids(&["serde"])).unwrap_err().to_string();
        assert_eq!(error, "cargo built serde, which cargo metadata does not know");
    }
}
