//! How the program is linked: in one piece with the C library, and with the code that every sidecar runs side by side.
//! docs/performance.md says what either saves.

use std::path::{Path, PathBuf};
use std::{env, fs, io, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=order.ld");
    let is = |variable: &str, value: &str| env::var(variable).is_ok_and(|it| it == value);
    if !is("PROFILE", "release") || !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return;
    }
    let folder = |variable: &str| env::var_os(variable).map(PathBuf::from).unwrap_or_default();
    let (here, out) = (folder("CARGO_MANIFEST_DIR"), folder("OUT_DIR"));
    link(&format!("-Wl,-T,{}", here.join("order.ld").display()));
    match in_one_piece(&out.join("static")) {
        Ok(arguments) => arguments.iter().for_each(|argument| link(argument)),
        Err(why) => println!("cargo::warning=the sidecar has shared libraries, and takes 1.5 MB more: {why}"),
    }
}

/// An argument for the linker of `sidecar`, and of nothing else.
fn link(argument: &str) {
    println!("cargo::rustc-link-arg-bins={argument}");
}

/// What has the linker leave out shared libraries, but leave code where the kernel likes, without a page that is written to
/// for each pointer in it.
///
/// rustc's own `crt-static` is for all that is built or for nothing, and procedural macros cannot have it. So it asks for
/// shared libraries, which the linker looks for in this folder first, and is sent on to the archives.
fn in_one_piece(stand_ins: &Path) -> Result<[String; 3], String> {
    let linker = env::var("RUSTC_LINKER").unwrap_or_else(|_| "cc".into());
    for archive in ["libc.a", "libm.a", "libgcc_eh.a"] {
        // What is not found comes back as it was asked for.
        if !Path::new(&said(&linker, &format!("-print-file-name={archive}"))?).is_absolute() {
            return Err(format!("there is no {archive}"));
        }
    }
    if !resolves_and_relocates_alone() {
        return Err("the C library is not this machine's, or older than glibc 2.36".into());
    }
    write(stand_ins).map_err(|why| format!("{}: {why}", stand_ins.display()))?;
    let found_in = format!("-L{}", stand_ins.display());
    Ok(["-static-pie".into(), found_in, "-Wl,-z,pack-relative-relocs".into()])
}

fn write(stand_ins: &Path) -> io::Result<()> {
    fs::create_dir_all(stand_ins)?;
    for (name, archives) in [
        ("gcc_s", "-l:libgcc_eh.a"),
        ("c", "-l:libc.a -l:libgcc_eh.a -l:libgcc.a"),
        ("m", "-l:libm.a"),
        ("util", "-l:libc.a"),
        ("rt", "-l:libc.a"),
        ("pthread", "-l:libc.a"),
        ("dl", "-l:libc.a"),
    ] {
        fs::write(
            stand_ins.join(format!("lib{name}.so")),
            format!("GROUP ( {archives} )\n"),
        )?;
    }
    Ok(())
}

/// Whether glibc needs no shared library to resolve the names of collectors (from 2.34 on), and understands packed
/// relocations (from 2.36 on; an older one would crash at the start).
fn resolves_and_relocates_alone() -> bool {
    let version = said("getconf", "GNU_LIBC_VERSION").unwrap_or_default();
    let minor = version.strip_prefix("glibc 2.").and_then(|minor| minor.parse().ok());
    env::var("HOST") == env::var("TARGET") && minor.is_some_and(|minor: u32| minor >= 36)
}

/// What a program says.
fn said(program: &str, argument: &str) -> Result<String, String> {
    let output = Command::new(program).arg(argument).output();
    let output = output.map_err(|why| format!("{program}: {why}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
