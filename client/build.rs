//! Gives the shared library its name at run time, so that programs linked today go on working with later releases.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libdragon.so.1");
}
