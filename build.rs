//! Gives the shared library the name that hosts and people expect; cargo's own has an underscore.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libggml-rknpu.so");
    // The library has threads of its own: a host that unloads it must not pull their code away.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
