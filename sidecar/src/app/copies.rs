//! Copies of memory, on processors whose own way to make them can be slow.
//!
//! AMD's processors since Zen 3 say that `rep movsb` copies quickly, so glibc before 2.40 leaves to it whatever is longer
//! than a few KiB. It moves some 50 GB/s; but where a copy begins up to 15 bytes further into its page than the original
//! does, 1 to 3. A proxy meets that all the time: it puts 5 bytes before each record, and 9 before each frame.
//!
//! glibc can be told to copy with vectors instead, but listens only when a program starts. So the sidecar starts again, in
//! the same process, before it has done anything.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt as _;

use nix::unistd::execve;

/// Where glibc looks for what it is told.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// The least that it copies by `rep movsb`.
const LEAST: &str = "glibc.cpu.x86_rep_movsb_threshold";
/// More than is ever copied at once.
const NEVER: &str = "0x40000000";
/// Says that the program has started again. A program with file capabilities loses on the way what is told to glibc, and would
/// start for ever.
const AGAIN: &str = "SIDECAR_STARTED_AGAIN";

/// Starts the program again if its copies would be slow, and returns only if it does not: with the error if it
/// could not.
///
/// # Errors
/// What the system said. The program can go on as if it had not tried, and is slower.
pub fn make_quick() -> io::Result<()> {
    if !is_slow() || std::env::var_os(AGAIN).is_some() {
        return Ok(());
    }
    let Some(tunables) = with_vectors(std::env::var_os(TUNABLES).as_deref()) else {
        return Ok(());
    };
    let program = std::env::current_exe()?;
    // Started through the dynamic linker, that is the program that runs.
    if program
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"ld"))
    {
        return Ok(());
    }
    let Err(why) = start(program.into_os_string(), tunables);
    Err(why)
}

/// By the system call itself: what the standard library does before it, it does not take back where that fails.
fn start(program: OsString, tunables: OsString) -> io::Result<Infallible> {
    let variable = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        name
    };
    let others = std::env::vars_os().filter(|(name, _)| name != TUNABLES);
    let told = [(TUNABLES.into(), tunables), (AGAIN.into(), "1".into())];
    let environment = texts(others.chain(told).map(variable))?;
    let arguments = texts(std::env::args_os())?;
    let program = texts([program])?.remove(0);
    Ok(execve(&program, &arguments, &environment)?)
}

fn texts(texts: impl IntoIterator<Item = OsString>) -> io::Result<Vec<CString>> {
    let texts = texts.into_iter().map(|text| CString::new(text.into_vec()));
    Ok(texts.collect::<Result<_, _>>()?)
}

/// What is told to glibc already, and this. Nothing if somebody has decided it.
fn with_vectors(told: Option<&OsStr>) -> Option<OsString> {
    let mut all = OsString::new();
    if let Some(told) = told.filter(|told| !told.is_empty()) {
        if told.to_string_lossy().contains(LEAST) {
            return None;
        }
        all.push(told);
        all.push(":");
    }
    all.push(LEAST);
    all.push("=");
    all.push(NEVER);
    Some(all)
}

/// Whether it is one of these processors, and glibc.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
fn is_slow() -> bool {
    use std::arch::x86_64::__cpuid;

    let maker = __cpuid(0);
    let is_amd = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
    is_amd && family(__cpuid(1).eax) >= ZEN_3
}

#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
fn is_slow() -> bool {
    false
}

/// The family of Zen 3 and Zen 4.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
const ZEN_3: u32 = 0x19;

/// The processor's family, of the word that names it: the short one, and the long one where that says 15.
#[cfg(any(test, all(target_arch = "x86_64", target_env = "gnu")))]
fn family(signature: u32) -> u32 {
    match signature >> 8 & 0xf {
        0xf => 0xf + (signature >> 20 & 0xff),
        short => short,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_glibc_is_told_already_is_kept() {
        let told = |said: &str| with_vectors(Some(OsStr::new(said))).map(|all| all.to_string_lossy().into_owned());
        let ours = "glibc.cpu.x86_rep_movsb_threshold=0x40000000";
        assert_eq!(with_vectors(None).as_deref(), Some(OsStr::new(ours)));
        assert_eq!(told("").as_deref(), Some(ours));
        let before = "glibc.malloc.check=1";
        assert_eq!(told(before), Some(format!("{before}:{ours}")));
        assert_eq!(
            told("glibc.cpu.x86_rep_movsb_threshold=2048"),
            None,
            "somebody has decided it"
        );
    }

    #[test]
    fn a_program_that_is_gone_is_an_error_and_nothing_else() {
        let gone = start("/nowhere/sidecar (deleted)".into(), "x=y".into());
        assert_eq!(gone.map_err(|why| why.kind()), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn processors_are_told_apart() {
        assert_eq!(family(0x00a1_0f11), 0x19, "EPYC 9004, Zen 4");
        assert_eq!(family(0x00a0_0f11), 0x19, "EPYC 7003, Zen 3");
        assert_eq!(family(0x0083_0f10), 0x17, "EPYC 7002, Zen 2");
        assert_eq!(family(0x0008_06f8), 0x6, "Xeon 8480, Sapphire Rapids");
    }
}
