//! Finds out for which Slurm release the plugin is built: Slurm loads only a plugin whose major and minor are its own.

use std::process::Command;

const HEADER: &str = "/usr/include/slurm/slurm_version.h";

fn main() {
    println!("cargo:rerun-if-env-changed=DRAGON_SLURM_VERSION");
    println!("cargo:rerun-if-changed={HEADER}");
    println!("cargo:rerun-if-changed=build.rs");
    // rustc asks for immediate binding; Slurm's programs do not all have all symbols, so they are bound when used.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,lazy");
    link_unwinder_statically();
    let wanted = std::env::var("DRAGON_SLURM_VERSION").unwrap_or_default();
    let version = if wanted.is_empty() {
        from_header().or_else(from_srun).unwrap_or_else(|| {
            panic!(
                "no Slurm release found: install Slurm's development package, or set DRAGON_SLURM_VERSION, for example to 24.11"
            )
        })
    } else {
        number(&wanted).unwrap_or_else(|| {
            panic!("DRAGON_SLURM_VERSION is {wanted:?}: it must be a release of Slurm, for example 24.11 or 22.05.8")
        })
    };
    println!("cargo:rustc-env=SLURM_VERSION_NUMBER={version}");
}

/// Every srun and slurmstepd of the site loads the plugin, and none of them has libgcc_s.so loaded already: a linker script of
/// that name, found first, takes its archive instead, which spares each of them a library.
fn link_unwinder_statically() {
    let folder = std::env::var("OUT_DIR").unwrap_or_default();
    let script = std::path::Path::new(&folder).join("libgcc_s.so");
    if let Err(error) = std::fs::write(&script, "INPUT(-lgcc_eh)\n") {
        panic!("cannot write {}: {error}", script.display());
    }
    println!("cargo:rustc-link-search=native={folder}");
}

/// `22.05.8` or `22.05` as Slurm's version number: major, minor and micro, a byte each.
fn number(text: &str) -> Option<u32> {
    let mut parts = text.trim().split('.').map(|part| part.parse::<u8>().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    let micro = parts.next().flatten().unwrap_or(0);
    Some(u32::from(major) << 16 | u32::from(minor) << 8 | u32::from(micro))
}

fn from_header() -> Option<u32> {
    let text = std::fs::read_to_string(HEADER).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("#define SLURM_VERSION_NUMBER"))?;
    u32::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok()
}

fn from_srun() -> Option<u32> {
    let output = Command::new("srun").arg("--version").output().ok()?;
    number(
        String::from_utf8_lossy(&output.stdout)
            .trim()
            .strip_prefix("slurm")?
            .trim_start_matches("-wlm"),
    )
}
